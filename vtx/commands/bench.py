"""``vtx bench``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.bench.registry import Benchmark, Result
    from vtx.lab.table import Table

__all__ = ["Bench"]

SCHEMA = "vtx.bench/1"


class Bench(Command):
    """Measure how fast vtx is on this machine.

    NAME is a benchmark, a group of them, or the beginning of a name; without one, all are run.
    Each figure stands beside its ceiling (what the machine allows at best, measured in the
    same run) and, where it is installed, a peer: another program that does the same work
    (pip install 'vtx[bench]').
    """

    name = "bench"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("names", metavar="NAME", nargs="*", help="benchmark, group or prefix")
        parser.add_argument("--list", action="store_true", help="list the benchmarks, run none")
        parser.add_argument(
            "--quick", action="store_true", help="rough figures, in about a second each"
        )
        add_output_arguments(parser, formats=("text", "json"))

    def run(self, args: argparse.Namespace) -> int:
        """Run the benchmarks, or list them."""
        from vtx.bench.registry import select

        output = Output(args)
        if args.list and args.quick:
            raise UsageError("--quick is for running benchmarks, not for --list")
        chosen = select(args.names)
        if args.list:
            _write_list(output, chosen)
        else:
            _write_results(output, _measure(chosen, quick=args.quick))
        return FINE


_Measured = list[tuple["Benchmark", "Result"]]


def _measure(chosen: list[Benchmark], *, quick: bool) -> _Measured:
    measured = []
    with Progress("measuring") as progress:
        for number, benchmark in enumerate(chosen):
            progress.update(number, len(chosen), benchmark.name)
            measured.append((benchmark, benchmark.run(quick)))
    return measured


def _write_list(output: Output, chosen: list[Benchmark]) -> None:
    from vtx.lab.table import Column, Table

    if output.format == "json":
        rows = [{"name": b.name, "unit": b.unit, "measures": b.summary} for b in chosen]
        output.write_json({"schema": SCHEMA, "benchmarks": rows})
        return
    columns = (Column("benchmark"), Column("unit"), Column("measures"))
    output.write_tables([Table("", columns, [[b.name, b.unit, b.summary] for b in chosen])])


def _write_results(output: Output, measured: _Measured) -> None:
    if output.format == "json":
        print(f"vtx: measured on {_machine()}", file=sys.stderr)
        output.write_json({"schema": SCHEMA, "results": [_row(*one) for one in measured]})
    else:
        output.write_tables([_table(measured)])


def _row(benchmark: Benchmark, result: Result) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "value": result.value,
        "unit": benchmark.unit,
        "ceiling": result.ceiling,
        "peer": result.peer,
        "peer_name": result.peer_name,
    }


def _table(measured: _Measured) -> Table:
    from vtx.lab.table import Column, Table

    headings = ("vtx", "ceiling", "peer")
    figures = (Column(heading, figures=True) for heading in headings)
    columns = (Column("benchmark"), *figures, Column("unit"), Column("peer is"))
    rows = [
        [
            benchmark.name,
            *map(_figure, (result.value, result.ceiling, result.peer)),
            benchmark.unit,
            result.peer_name or "",
        ]
        for benchmark, result in measured
    ]
    return Table(_machine(), columns, rows)


def _figure(value: float | None) -> str:
    """Return a figure with three digits or more."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machine() -> str:
    """Return in one line what the figures depend on: CPU, load, Python."""
    import os
    import platform

    import vtx

    parts = [
        _cpu_name() or platform.processor() or platform.machine(),
        f"{os.cpu_count()} logical processors",
    ]
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return ", ".join((*parts, platform.system(), python, f"vtx {vtx.__version__}"))


def _cpu_name() -> str | None:
    """Return the CPU's own name where Linux tells it."""
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
