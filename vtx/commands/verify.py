"""``vtx verify``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FAILED, FINE, Command
from vtx.commands.output import Output, add_output_arguments

if TYPE_CHECKING:
    from vtx.commands.progress import Progress
    from vtx.hypervisor.verify import Verification

__all__ = ["Verify"]

_COLUMNS = ("corpus", "id", "result", "what", "ours", "theirs")


class Verify(Command):
    """Replay corpora of verdicts that another implementation gave, and compare.

    CORPUS is a file of JSON lines, plain or compressed with xz: a header that names the
    format (bochs-entry-1, bochs-walk-1, bochs-insn-1 or bochs-root-1), then one case a
    line. Every case is replayed here: VM entries up to the first exit, accesses under
    guest paging and EPT, guest instructions, VMX instructions in root operation.

    Where the other implementation is known to deviate from the manual, the case says so;
    the result tells which side the manual is on. docs/verify.md says what is compared,
    what is not, and why.

    JSON: one object for one corpus; for several, {"schema": ..., "results": [...]}.

    Exit code 1: a difference that no known deviation explains; 3: a malformed corpus.
    """

    name = "verify"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("corpora", metavar="CORPUS", nargs="+", help="corpus, plain or .xz")
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Replay every corpus; when interrupted, show what was done so far."""
        from vtx.commands.progress import Progress
        from vtx.hypervisor.verify import Verification, verify

        output = Output(args)
        results: list[Verification] = []
        try:
            with Progress("verifying") as progress:
                for name in args.corpora:
                    results.append(Verification(name, ""))
                    verify(name, lambda result: _show(progress, result), results[-1])
        except KeyboardInterrupt:
            output.write(_RENDER[output.format](results))
            raise
        output.write(_RENDER[output.format](results))
        return FINE if all(result.explained for result in results) else FAILED


def _show(progress: Progress, result: Verification) -> None:
    progress.update(result.cases, max(result.expected, result.cases), result.corpus)


def _as_json(results: list[Verification]) -> str:
    import json

    from vtx.hypervisor.verify.verification import SCHEMA

    documents = [result.as_dict() for result in results]
    data: Any = documents[0] if len(documents) == 1 else {"schema": SCHEMA, "results": documents}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _as_csv(results: list[Verification]) -> str:
    import csv
    import io

    from vtx.hypervisor.verify.report import rows

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for result in results:
        writer.writerows(rows(result))
    return out.getvalue()


def _as_text(results: list[Verification]) -> str:
    from vtx.hypervisor.verify.report import text
    from vtx.lab.table import printable

    parts = ["\n".join(map(printable, text(result).split("\n"))) for result in results]
    return "\n\n".join(parts) + "\n"


_RENDER = {"table": _as_text, "json": _as_json, "csv": _as_csv}
