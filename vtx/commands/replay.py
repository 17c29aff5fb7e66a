"""``vtx replay``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FAILED, FINE, Command
from vtx.commands.handlers import blame_handlers, load_handlers
from vtx.commands.output import FORMATS, Output, add_output_arguments
from vtx.commands.plotting import Plot, add_plot_argument
from vtx.commands.progress import Progress
from vtx.commands.traces import DEFAULT_PROFILE, add_trace_arguments, read_trace

if TYPE_CHECKING:
    from fractions import Fraction

    from vtx.hypervisor.run import Run
    from vtx.hypervisor.trace import Trace
    from vtx.hypervisor.vmm import VmmLoop
    from vtx.lab.categories import Category
    from vtx.lab.ledger import Ledger
    from vtx.lab.profile import Profile, Status
    from vtx.lab.table import Table

__all__ = ["Replay"]

SCHEMA = "vtx.replay/1"
#: A page also shows other CPUs, if running the trace for each of them does not take long.
_COMPARED_STEPS = 100_000


class Replay(Command):
    """Run a trace as a guest and show its VM exits and what they cost.

    The table has the columns of 'perf kvm stat report', in cycles and microseconds at the
    nominal clock of the profile. If the trace has an 'expect' block, the exit code is 1
    when an expectation does not hold.
    """

    name = "replay"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add_trace_arguments(parser)
        parser.add_argument(
            "--profile",
            metavar="P",
            help=f"CPU profile, by name or YAML file (default: the trace's, or {DEFAULT_PROFILE})",
        )
        add_plot_argument(parser, "where the cycles go")
        add_output_arguments(parser, (*FORMATS, "html", "perfetto"))

    def run(self, args: argparse.Namespace) -> int:
        """Run the trace and print its exits."""
        from vtx.hypervisor.replay import replay
        from vtx.lab.ledger import price
        from vtx.lab.profile import load_profile

        output, plot = Output(args), Plot(args)
        trace = read_trace(args.trace)
        named = trace.header.profile or DEFAULT_PROFILE
        profile = load_profile(named if args.profile is None else args.profile)
        vmm = load_handlers(args.handlers)
        if output.format == "html":
            return _write_page(output, trace, profile, vmm, args.handlers)
        if output.format == "perfetto":
            return _write_perfetto(output, trace, profile, vmm, args.handlers)
        with Progress("running") as progress, blame_handlers(args.handlers):
            run = replay(trace, profile.shape, vmm=vmm, progress=progress.update)
        ledger = price(run, profile)
        if output.format == "json":
            output.write_json(_document(run, ledger))
        elif output.format == "csv":
            output.write(_csv(ledger))
        else:
            output.write_tables(_tables(run, ledger))
        plot.write(lambda: _picture(run, ledger, plot.kind))
        return _verdict(run)


def _picture(run: Run, ledger: Ledger, kind: str) -> bytes:
    from vtx.report.plots import breakdown

    return breakdown(ledger, f"{run.name} on {ledger.profile.id}", kind)


def _write_page(
    output: Output, trace: Trace, profile: Profile, vmm: VmmLoop | None, handlers: str | None
) -> int:
    """Run the trace, watched, and write a page of HTML."""
    from vtx.hypervisor.replay import compare, replay
    from vtx.lab.ledger import price
    from vtx.profiles import names
    from vtx.report.page import render
    from vtx.report.replay_page import recorder_for, replay_page

    recorder = recorder_for(profile)
    with Progress("running") as progress, blame_handlers(handlers):
        run = replay(trace, profile.shape, vmm=vmm, progress=progress.update, observer=recorder)
    comparison = None
    if run.steps <= _COMPARED_STEPS:
        others = [name for name in names() if name != profile.id]
        with Progress("comparing") as progress, blame_handlers(handlers):
            comparison = compare(
                run, [profile, *others], progress=lambda name, at, of: progress.update(at, of, name)
            )
    expectations = _expectations(run) if run.results else None
    page = replay_page(run, price(run, profile), recorder, comparison, expectations)
    output.write(render(page))
    return _verdict(run)


def _write_perfetto(
    output: Output, trace: Trace, profile: Profile, vmm: VmmLoop | None, handlers: str | None
) -> int:
    """Run the trace and write its exits, while they happen, as a trace over time."""
    from vtx.hypervisor.replay import replay
    from vtx.report.perfetto import ReplayTrace
    from vtx.report.recorder import Recorder

    with output.stream() as file, Progress("running") as progress, blame_handlers(handlers):
        written = ReplayTrace(file, trace.name, profile)
        recorder = Recorder(lambda reason, counts: 0.0, written.each, keep=False)
        run = replay(trace, profile.shape, vmm=vmm, progress=progress.update, observer=recorder)
        written.close()
    return _verdict(run)


def _verdict(run: Run) -> int:
    """Return the exit code, and say on standard error what does not hold."""
    failed = [result for result in run.results if not result.holds]
    for result in failed:
        print(f"vtx: {run.file}:{result.line}: {result}", file=sys.stderr)
    return FAILED if failed else FINE


def _tables(run: Run, ledger: Ledger) -> list[Table]:
    from vtx.lab.report import counted, exit_table, summary_table, translation_table

    profile = ledger.profile
    title = (
        f"{run.name} on {profile.id} ({profile.name}, {profile.nominal_ghz:g} GHz): "
        f"{counted(run.total_exits, 'exit')} in {counted(run.steps, 'step')}, {run.outcome}"
    )
    tables = [exit_table(ledger, title), translation_table(ledger), summary_table(run.translation)]
    if run.results:
        tables.append(_expectations(run))
    return tables


def _expectations(run: Run) -> Table:
    from vtx.lab.table import Column, Table

    columns = (Column("expectation"), Column("expected", True), Column("actual", True), Column(""))
    rows = [
        [
            result.what,
            _value(result.expected),
            _value(result.actual),
            "ok" if result.holds else "FAILED",
        ]
        for result in run.results
    ]
    return Table("", columns, rows)


def _value(value: int | str) -> str:
    """Return a value as people write it: counts in decimal, addresses and registers in hex."""
    return f"{value:#x}" if isinstance(value, int) and value >= 1 << 16 else str(value)


def _document(run: Run, ledger: Ledger) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "trace": {"name": run.name, "file": run.file},
        "profile": ledger.profile.summary(),
        "outcome": run.outcome,
        "message": run.message or None,
        "steps": run.steps,
        "references": run.references,
        "exits": ledger.samples,
        "ledger": ledger.as_dict(),
        "translation": dict(run.translation),
        "expectations": [
            {
                "what": result.what,
                "expected": result.expected,
                "actual": result.actual,
                "holds": result.holds,
                "line": result.line,
            }
            for result in run.results
        ],
    }


def _csv(ledger: Ledger) -> str:
    """Return one line for each exit reason, then the guest's translations and the total."""
    import csv
    import io

    from vtx.lab.categories import Category
    from vtx.lab.profile import Status

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = [f"{part}_cycles" for part in (*Status, *(c.key for c in Category))]
    bounds = ["cycles_low", "cycles_high"]
    writer.writerow(["exit_reason", "number", "samples", "cycles", "ns", *parts, *bounds])
    for row in ledger.rows:
        number = row.reason if row.reason >= 0 else ""
        cycles = {cell.category: cell.cycles for cell in row.cells}
        figures = _csv_figures(ledger, cycles, row.by_status, row.bounds)
        writer.writerow([row.name, number, row.samples, *figures])
    translation = {cell.category: cell.cycles for cell in ledger.translation}
    bounded = ledger.translation_by_status, ledger.translation_bounds
    figures = _csv_figures(ledger, translation, *bounded)
    writer.writerow(["(guest translation)", "", "", *figures])
    figures = _csv_figures(ledger, ledger.by_category, ledger.by_status, ledger.bounds)
    writer.writerow(["total", "", ledger.samples, *figures])
    return out.getvalue()


def _csv_figures(
    ledger: Ledger,
    cycles: dict[Category, Fraction],
    by_status: dict[Status, Fraction],
    bounds: tuple[Fraction, Fraction],
) -> list[object]:
    """Return cycles, ns, cycles by status and by category, bounds; empty fields without prices."""
    from fractions import Fraction

    from vtx.lab.categories import Category
    from vtx.lab.profile import plain_number

    if not ledger.priced:
        return [""] * (4 + len(by_status) + len(Category))
    total = sum(cycles.values(), start=Fraction(0))
    return [
        plain_number(total),
        float(ledger.profile.ns(total)),
        *(plain_number(value) for value in by_status.values()),
        *(plain_number(cycles[c]) if c in cycles else "" for c in Category),
        *map(plain_number, bounds),
    ]
