"""``vtx import``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vtx.lab.table import Table
    from vtx.streams import Stream
    from vtx.streams.column import Header

__all__ = ["Import"]

SCHEMA = "vtx.import/1"
#: As vtx.streams.FORMATS, which is not imported for help alone; a test compares them.
FORMATS = ("u64", "lackey", "drmemtrace", "champsim", "cloudsuite")
_MOST_ID = (1 << 63) - 1


class Import(Command):
    """Make a column file of references that another tool has recorded.

    INPUT is text of valgrind's lackey, a trace of DynamoRIO's drmemtrace or of ChampSim, or
    records of vtx (.u64, .npy), packed with xz or gzip or not; several are joined in their
    order. A column file is memory-mapped where streams are used. It appears when all of it
    is written; an import that fails or is interrupted leaves nothing behind. Examples:

    valgrind --tool=lackey --trace-mem=yes ls 2>&1 | vtx import - -o ls.vtxs
    vtx import drmemtrace.app.*.dir/trace/*.trace.zip -o app.vtxs --tid 4711
    vtx import 600.perlbench_s-210B.champsimtrace.xz -o perlbench.vtxs
    """

    name = "import"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument(
            "inputs", metavar="INPUT", nargs="+", help="recorded trace; - is standard input"
        )
        parser.add_argument(
            "-o", "--output", metavar="FILE", required=True, help="column file to write"
        )
        parser.add_argument("--force", action="store_true", help="let -o overwrite a file")
        parser.add_argument(
            "--from",
            dest="source",
            choices=FORMATS,
            help="what INPUT is in (default: as its first bytes and its name tell)",
        )
        parser.add_argument("--pid", metavar="N", help="only this process (drmemtrace)")
        parser.add_argument("--tid", metavar="N", help="only this thread (drmemtrace)")
        parser.add_argument(
            "--skip-malformed",
            action="store_true",
            help="count damaged lines and entries instead of stopping at the first",
        )
        parser.add_argument(
            "--format", choices=("table", "json"), default="table", help="what to print of it"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Read the inputs, write the file, and print what was read and what was not."""
        from vtx.streams import write_stream

        target = _target(args)
        work = _Import(args)
        with Progress("importing") as progress:
            header = write_stream(target, work.chunks(progress), replace=args.force)
        if args.format == "json":
            import json

            print(json.dumps(work.document(target, header), indent=2))
        else:
            print("\n\n".join(map(str, work.tables(target, header))))
        return FINE


def _target(args: argparse.Namespace) -> Path:
    """Return the output file; everything that can be wrong with it is found before the work."""
    if args.output == "-":
        raise UsageError("the header of a column file is written last, so -o wants a file")
    target = Path(args.output)
    if target.is_dir():
        raise UsageError(f"{target} is a directory; -o wants a file")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no directory to write {target.name} into")
    if target.exists() and not args.force:
        raise UsageError(f"{target} exists (--force overwrites it)")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is no file; a column file cannot go there")
    if args.inputs.count("-") > 1:
        raise UsageError("standard input can be read only once")
    return target


def _number(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > _MOST_ID:
        raise UsageError(f"{option} wants a number, not {text!r}")
    return int(text)


class _Import:
    """The inputs of one import, and what has become of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._pid = _number("--pid", args.pid)
        self._tid = _number("--tid", args.tid)
        self._streams: list[Stream] = []

    def chunks(self, progress: Progress) -> Iterator[NDArray[np.uint64]]:
        """Yield the references of all inputs in order."""
        from vtx.streams import open_stream

        for number, name in enumerate(self._args.inputs):
            stream = open_stream(
                name,
                format=self._args.source,
                pid=self._pid,
                tid=self._tid,
                skip_malformed=self._args.skip_malformed,
            )
            label = f"{number + 1} of {len(self._args.inputs)}"
            self._streams.append(stream)
            for chunk in stream.chunks():
                yield chunk
                if stream.size_bytes:
                    progress.update(stream.done_bytes, stream.size_bytes, label)
            self._warn(stream)

    def _warn(self, stream: Stream) -> None:
        summary = stream.summary
        malformed = summary.skipped.get("malformed", 0)
        if malformed:
            print(
                f"vtx: {stream.name}:{summary.first_malformed}: the first of {malformed:,} "
                f"malformed {summary.unit} that were skipped",
                file=sys.stderr,
            )

    def document(self, target: Path, header: Header) -> dict[str, Any]:
        """Return the JSON document."""
        from vtx.streams.record import KINDS

        inputs = [
            {"file": stream.name, "from": stream.format.name, **stream.summary.as_dict()}
            for stream in self._streams
        ]
        return {
            "schema": SCHEMA,
            "file": str(target),
            "records": header.count,
            "references": dict(zip(KINDS, header.kinds, strict=True)),
            "inputs": inputs,
        }

    def tables(self, target: Path, header: Header) -> list[Table]:
        """Return the tables: the references by kind, and what was read, used and skipped."""
        from vtx.lab.table import Column, Table
        from vtx.streams.record import KINDS

        kinds = [[kind, f"{number:,}"] for kind, number in zip(KINDS, header.kinds, strict=True)]
        title = f"{target}: {header.count:,} references"
        columns = (Column("kind"), Column("references", True))
        columns_read = (Column("input"), Column("", False), Column("number", True))
        rows = [row for stream in self._streams for row in _rows(stream)]
        return [Table(title, columns, kinds), Table("", columns_read, rows)]


def _rows(stream: Stream) -> list[list[str]]:
    """Return what became of one input, a line for each reason."""
    from vtx.streams.summary import SKIPPED

    summary = stream.summary
    rows = [
        [stream.name, f"{summary.unit} read ({stream.format.name})", f"{summary.read:,}"],
        ["", f"{summary.unit} used", f"{summary.used:,}"],
    ]
    rows += [
        ["", f"skipped: {SKIPPED[key]}", f"{number:,}"] for key, number in summary.skipped.items()
    ]
    if summary.dropped:
        rows.append(["", "addresses dropped: not canonical in 48 bits", f"{summary.dropped:,}"])
    if summary.split:
        rows.append(["", "references split: above 4096 bytes", f"{summary.split:,}"])
    return rows
