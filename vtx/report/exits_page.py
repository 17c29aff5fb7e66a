"""Recorded exits, and their prices on other CPUs, as pages of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtx.facts.exits import ExitReason
from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_tables import microseconds
from vtx.lab.table import Table
from vtx.report import figures
from vtx.report.exit_tap import ExitTap
from vtx.report.figures import Part
from vtx.report.page import Figure, Page
from vtx.report.pricing import bars_of, recorded_bars
from vtx.report.recorded_exits import recorded_exits

if TYPE_CHECKING:
    from vtx.lab.compare import Comparison
    from vtx.lab.exit_compare import ExitComparison

__all__ = ["comparison_page", "exits_page", "recorded_comparison_page"]

_IDLE = int(ExitReason.HLT)
_PARTS = 25


def exits_page(report: ExitReport, tap: ExitTap, tables: Sequence[Table]) -> Page:
    """Return the page of a recording.

    Parameters
    ----------
    report : ExitReport
        What it says.
    tap : ExitTap
        What was kept of its exits; it has seen none if the recording is a report itself.
    tables : sequence of Table
        The figures.
    """
    return Page(
        title=f"VM exits in {report.name}",
        subtitle=f"{report.form}; {report.lines}",
        facts=_facts(report),
        warnings=report.warnings,
        figures=[figure for figure in _figures(report, tap) if figure is not None],
        exits=recorded_exits(tap),
        tables=tables,
    )


def _facts(report: ExitReport) -> list[tuple[str, str]]:
    facts = [("VM exits", f"{report.total.samples:,}")]
    if report.span_ns:
        seconds = report.span_ns / 1e9
        facts += [
            ("Recorded", f"{seconds:,.3f} s" if seconds >= 1 else f"{seconds * 1e3:,.3f} ms"),
            ("Exits a second", f"{report.total.samples / seconds:,.0f}"),
        ]
    idle = sum(r.times.total for r in report.rows if r.number == _IDLE and r.times)
    if report.total.times is not None:
        facts.append(
            ("Handling, without HLT", f"{(report.total.times.total - idle) / 1e6:,.3f} ms")
        )
        if idle:
            facts.append(("HLT", f"{idle / 1e6:,.3f} ms"))
    if report.slowest:
        slow = report.slowest[0].exit
        facts.append(("Slowest", f"{microseconds(slow.duration_ns or 0)} µs, {slow.reason}"))
    if report.storms:
        facts.append(("Storms", f"{len(report.storms):,}"))
    return facts


def _figures(report: ExitReport, tap: ExitTap) -> list[Figure | None]:
    names = dict(enumerate(tap.names))
    timed = report.total.times is not None
    latencies = {(reason, number): count for (reason, number), count in tap.latencies.items()}
    note = (
        "From the exit to the entry that follows, each reason by itself; HLT is the guest's rest."
    )
    return [
        figures.over_time(tap.over_time, names, "seconds since the first exit, s", 1e9),
        figures.flame(_parts(report, timed), "µs" if timed else "exits", _flame_note(timed)),
        figures.distribution(latencies, names, "ns", note),
    ]


def _flame_note(timed: bool) -> str:
    what = "Time from exit to entry" if timed else "Exits"
    left_out = " HLT, the guest's rest, is left out." if timed else ""
    return f"{what} by reason and what it was about.{left_out} Choose a part to see its exits."


def _parts(report: ExitReport, timed: bool) -> list[Part]:
    """Return reasons and their details; durations in microseconds, or samples."""
    parts = []
    for at, row in enumerate(report.rows):
        if timed and (row.times is None or row.number == _IDLE):
            continue
        value = row.times.total / 1e3 if timed and row.times else float(row.samples)
        if not value:
            continue
        key = f"r{at}"
        note = f"{row.samples:,} exits"
        parts.append(Part(key, "", row.reason, value, row.reason, note))
        for place, (text, tally) in enumerate(row.details[:_PARTS]):
            size = tally.times.total / 1e3 if timed and tally.times else 0.0
            size = size if timed else float(tally.samples)
            if size:
                note = f"{tally.samples:,} exits"
                parts.append(Part(f"{key}/{place}", key, text, size, row.reason, note))
    return parts


def comparison_page(comparison: Comparison, baseline: str | None) -> Page:
    """Return the page of a trace on several CPUs."""
    note = (
        "Shaded by what the prices rest on; bars from low to high are how far they may be off by "
        "their provenance."
    )
    figure = figures.comparison(bars_of(comparison), "µs", note)
    left_out = [f"{o.profile.id}: {o.state.value}" for o in comparison.outcomes if o.why]
    return Page(
        title=comparison.title,
        facts=[("CPUs with figures", f"{len(comparison.priced)}"), ("Runs", f"{comparison.runs}")],
        warnings=[f"Without figures: {', '.join(left_out)}."] if left_out else [],
        figures=[figure] if figure else [],
        tables=[comparison.table(baseline)],
    )


def recorded_comparison_page(comparison: ExitComparison) -> Page:
    """Return the page of a recording on several CPUs."""
    report = comparison.recording.report
    note = (
        "What the hardware takes is shaded by the provenance of the round trip's price; the "
        "software stays as measured. Bars from low to high are how far both may be off."
    )
    figure = figures.comparison(recorded_bars(comparison), "ms", note)
    base = comparison.baseline
    source = comparison.recording.source
    facts = [
        ("VM exits", f"{report.total.samples:,}"),
        ("Recorded on", source.id if source else "not known"),
        ("Compared with", base.profile.id if base else "-"),
    ]
    return Page(
        title=f"{report.name} on other CPUs",
        subtitle=f"{report.form}; {report.lines}",
        facts=facts,
        warnings=report.warnings,
        figures=[figure] if figure else [],
        tables=comparison.tables(),
    )
