"""``vtx tlb``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vtx.lab.table import Table
    from vtx.tlb.geometry import Geometry
    from vtx.tlb.simulation import LevelCounts, Result

__all__ = ["Tlb"]

SCHEMA = "vtx.tlb/1"
_MOST_THREADS = 256


class Tlb(Command):
    """Run a stream of references through TLBs: hits, misses, walks and what they cost.

    Each geometry is a YAML file (docs/tlb.md) or a CPU profile; all of them see the stream in
    one pass. --virtualization repeats them for the columns of the table that papers print:
    'native', '2M' (native with such pages), '4K+2M' (guest pages over EPT pages).
    """

    name = "tlb"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("stream", metavar="STREAM", help="stream of references (- is stdin)")
        parser.add_argument(
            "--geometry", metavar="FILE", action="append", default=[], help="geometry, a YAML file"
        )
        parser.add_argument(
            "--profile", metavar="P", action="append", default=[], help="geometry of a CPU profile"
        )
        parser.add_argument(
            "--virtualization", metavar="LIST", help="such as native,4K+4K,4K+2M,2M+2M"
        )
        group = parser.add_argument_group("how the stream is taken, instead of what files say")
        group.add_argument("--stream", dest="used", choices=("all", "data", "instructions"))
        group.add_argument("--crossing", choices=("both", "first"), help="pages that are looked up")
        group.add_argument("--modify", choices=("once", "twice"), help="lookups of a modify")
        group.add_argument("--pages", choices=("4K", "2M", "1G"), help="size of all pages")
        parser.add_argument(
            "--threads", metavar="N", type=int, help="threads (default: as many as processors)"
        )
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Run the stream through all geometries, and print what they counted."""
        output = Output(args)
        results = _simulate(args)
        if output.format == "json":
            output.write_json(_document(args.stream, results))
        elif output.format == "csv":
            output.write(_csv(results))
        else:
            output.write_tables(_tables(results))
        return FINE


def _simulate(args: argparse.Namespace) -> list[Result]:
    from vtx.streams import open_stream
    from vtx.tlb.simulation import simulate

    geometries, labels = _geometries(args)
    threads = _threads(args.threads)
    stream = open_stream(args.stream)
    with Progress("simulating") as progress:
        results = simulate(
            geometries,
            stream.chunks(1 << 17),
            threads=threads,
            progress=lambda done: progress.update(
                stream.done_bytes or done, stream.size_bytes or done
            ),
        )
    pairs = zip(results, labels, strict=True)
    return [replace(result, virtualization=label) for result, label in pairs]


def _threads(asked: int | None) -> int:
    import os

    if asked is None:
        return os.cpu_count() or 1
    if not 1 <= asked <= _MOST_THREADS:
        raise UsageError(f"--threads is 1 to {_MOST_THREADS}, not {asked}")
    return asked


def _geometries(args: argparse.Namespace) -> tuple[list[Geometry], list[str]]:
    """Return the geometries, each for each way of virtualization, and the names of the ways."""
    from vtx.errors import UnknownName
    from vtx.tlb.geometry import PageSizes
    from vtx.tlb.geometry_file import check_sides, load_geometry, profile_geometry

    geometries = [load_geometry(path) for path in args.geometry]
    geometries += [profile_geometry(name) for name in args.profile]
    if not geometries:
        raise UsageError("no TLB is given (--geometry FILE or --profile NAME)")
    members: dict[str, Any] = {"stream": args.used, "crossing": args.crossing}
    members |= {"modify": args.modify}
    members["pages"] = None if args.pages is None else PageSizes.of(args.pages)
    given = {key: value for key, value in members.items() if value is not None}
    geometries = [replace(geometry, **given) for geometry in geometries]
    for geometry in geometries:
        check_sides(geometry)
    if args.virtualization is None:
        return geometries, [geometry.virtualization for geometry in geometries]
    ways = [way.strip() for way in args.virtualization.split(",")]
    try:
        both = [(g.virtualized(way), way) for g in geometries for way in ways]
    except UnknownName as error:
        raise UsageError(f"--virtualization: {error}") from None
    return [g for g, _ in both], [way for _, way in both]


# ---- What is printed ------------------------------------------------------------------------


def _by_kind(counts: tuple[int, ...]) -> dict[str, int]:
    from vtx.tlb.simulation import KINDS

    return dict(zip(KINDS, counts, strict=True))


def _level(counts: LevelCounts) -> dict[str, Any]:
    parts = {"accesses": counts.accesses, "hits": counts.hits, "misses": counts.misses}
    return {
        **{name: sum(part) for name, part in parts.items()},
        "by_kind": {name: _by_kind(part) for name, part in parts.items()},
    }


def _whole(cycles: float | None) -> float | None:
    return int(cycles) if cycles is not None and cycles == int(cycles) else cycles


def _document(stream: str, results: list[Result]) -> dict[str, Any]:
    return {"schema": SCHEMA, "stream": stream, "results": [_entry(result) for result in results]}


def _entry(result: Result) -> dict[str, Any]:
    geometry = result.geometry
    return {
        "geometry": geometry.name,
        "virtualization": result.virtualization,
        "stream": geometry.stream,
        "crossing": geometry.crossing,
        "modify": geometry.modify,
        "records": _by_kind(result.records),
        "accesses": sum(result.accesses),
        "accesses_by_kind": _by_kind(result.accesses),
        "page_crossings": result.crossings,
        "levels": {name: _level(counts) for name, counts in result.levels.items()},
        "walks": result.walks,
        "walks_by_kind": _by_kind(result.walks_by_kind),
        "references": result.references,
        "references_by_level": {
            "guest": {str(level): n for level, n in result.guest_references.items()},
            "ept": {str(level): n for level, n in result.ept_references.items()},
        },
        "cache_hits": result.cache_hits,
        "cycles": _whole(result.cycles),
        "cycles_by_event": {name: _whole(value) for name, value in result.cycles_by.items()},
        "costs": {
            name: {"cycles": cost.cycles, "status": cost.status, "source": cost.source}
            for name, cost in geometry.costs.items()
        },
    }


def _csv(results: list[Result]) -> str:
    """Return a line for each level, and for the walks of each geometry."""
    import csv
    import io

    from vtx.tlb.simulation import KINDS

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = [f"{kind}_{what}" for what in ("hits", "misses") for kind in KINDS]
    names = ["geometry", "virtualization", "level", "accesses", "hits", "misses", *kinds]
    writer.writerow([*names, "references", "cycles"])
    for result in results:
        head = [result.geometry.name, result.virtualization]
        for name, counts in result.levels.items():
            sums = [sum(part) for part in (counts.accesses, counts.hits, counts.misses)]
            writer.writerow([*head, name, *sums, *counts.hits, *counts.misses, "", ""])
        blank = [""] * len(KINDS)
        cycles = "" if result.cycles is None else _whole(result.cycles)
        walks = [result.walks, "", result.walks, *blank, *result.walks_by_kind]
        writer.writerow([*head, "walks", *walks, result.references, cycles])
    return out.getvalue()


def _tables(results: list[Result]) -> list[Table]:
    from vtx.lab.table import Column, Table

    figures = ("accesses", "hits", "misses", "miss %")
    columns = [Column("geometry"), Column("pages"), Column("level"), Column("kind")]
    levels = Table("TLBs", [*columns, *(Column(f, True) for f in figures)], list(_rows(results)))
    heads = ("walks", "references", "per walk", "cycles", "per access")
    walks = Table(
        "Walks",
        [Column("geometry"), Column("pages"), *(Column(head, True) for head in heads)],
        [_walk_row(result) for result in results],
        _remarks(results),
    )
    return [levels, walks]


def _rows(results: list[Result]) -> Iterator[list[str]]:
    from vtx.tlb.simulation import KINDS

    for result in results:
        head = [result.geometry.name, result.virtualization]
        for name, counts in result.levels.items():
            accesses = counts.accesses
            kinds = [(KINDS[i], accesses[i], counts.misses[i]) for i in range(4) if accesses[i]]
            if len(kinds) != 1:
                kinds.insert(0, ("all", sum(accesses), sum(counts.misses)))
            for kind, all_, missed in kinds:
                share = f"{100 * missed / all_:.3f}" if all_ else ""
                yield [*head, name, kind, f"{all_:,}", f"{all_ - missed:,}", f"{missed:,}", share]


def _walk_row(result: Result) -> list[str]:
    walks, cycles, accesses = result.walks, result.cycles, sum(result.accesses)
    return [
        result.geometry.name,
        result.virtualization,
        f"{walks:,}",
        f"{result.references:,}",
        f"{result.references / walks:.2f}" if walks else "",
        "" if cycles is None else f"{cycles:,.0f}",
        "" if cycles is None or not accesses else f"{cycles / accesses:.3f}",
    ]


def _remarks(results: list[Result]) -> list[str]:
    """Say on what the cycles rest, once for each figure."""
    remarks = []
    for result in results:
        for name, cost in result.geometry.costs.items():
            figure = "unknown" if cost.cycles is None else f"{cost.cycles:g} cycles"
            remarks.append(
                f"{result.geometry.name}: {name} {figure} ({cost.status}: {cost.source})"
            )
    return list(dict.fromkeys(remarks))
