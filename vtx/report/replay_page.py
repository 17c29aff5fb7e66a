"""A replay as a page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtx.lab.ledger import Ledger, reason_name
from vtx.lab.profile import Profile
from vtx.lab.report import counted, exit_table, summary_table, translation_table
from vtx.lab.table import Table
from vtx.machine.walk_svg import walk_svg
from vtx.report import figures
from vtx.report.bins import latency_bin
from vtx.report.exit_lists import replayed_exits
from vtx.report.page import Figure, Page
from vtx.report.pricing import bars_of, exit_cycles, flame_of, ledger_bounds
from vtx.report.recorder import Recorder

if TYPE_CHECKING:
    from vtx.hypervisor.run import Run
    from vtx.lab.compare import Comparison

__all__ = ["recorder_for", "replay_page"]


def recorder_for(profile: Profile) -> Recorder:
    """Return what a replay for a page is watched with."""

    def cost(reason: int, counts: Sequence[int]) -> float:
        return exit_cycles(profile, reason, counts) if profile.has_prices else 0.0

    return Recorder(cost)


def replay_page(
    run: Run,
    ledger: Ledger,
    recorder: Recorder,
    comparison: Comparison | None,
    expectations: Table | None = None,
) -> Page:
    """Return the report of a replay.

    Parameters
    ----------
    run : Run
        What happened.
    ledger : Ledger
        What it cost.
    recorder : Recorder
        What was seen while it ran.
    comparison : Comparison or None
        The same trace on other CPUs, if it was run there.
    expectations : Table, optional
        What the trace expected.
    """
    profile = ledger.profile
    header = run.trace.header
    subtitle = f"{run.file} on {profile.id} ({profile.name}, {profile.nominal_ghz:g} GHz)"
    tables = [exit_table(ledger, "VM exits by reason"), translation_table(ledger)]
    tables.append(summary_table(run.translation))
    if expectations is not None:
        tables.append(expectations)
    if comparison is not None:
        tables.append(comparison.table(profile.id if ledger.priced else None))
    texts = [("Description", header.description), ("Source", header.source)]
    texts.append(("Console of the guest", run.console))
    return Page(
        title=f"Replay of {run.name}",
        subtitle=subtitle,
        facts=_facts(run, ledger),
        warnings=_warnings(run, ledger),
        figures=[f for f in _figures(ledger, recorder, comparison) if f is not None],
        exits=replayed_exits(recorder, _costs(ledger, recorder)) if recorder.exits else None,
        tables=tables,
        pictures=[(title, walk_svg(walk)) for title, walk in recorder.walks],
        texts=[(title, text) for title, text in texts if text],
    )


def _facts(run: Run, ledger: Ledger) -> list[tuple[str, str]]:
    facts = [
        ("Outcome", run.outcome),
        ("VM exits", f"{run.total_exits:,}"),
        ("Guest steps", f"{run.steps:,}"),
    ]
    if ledger.priced:
        low, value, high = (ns / 1000 for ns in ledger_bounds(ledger))
        facts += [
            ("Cycles", f"{round(ledger.cycles):,}"),
            ("Time", f"{value:,.2f} µs ({low:,.2f} to {high:,.2f})"),
        ]
    return facts


def _warnings(run: Run, ledger: Ledger) -> list[str]:
    found = [run.message] if run.message else []
    found += [f"Line {result.line}: {result}" for result in run.results if not result.holds]
    if not ledger.priced:
        why = ledger.profile.prices["round_trip"].source
        found.append(f"{ledger.profile.id} has no prices: {why}. Nothing is priced.")
    return found


def _figures(
    ledger: Ledger, recorder: Recorder, comparison: Comparison | None
) -> list[Figure | None]:
    names = {reason: reason_name(reason) for reason, _ in recorder.tallies}
    found = [figures.over_time(recorder.over_time, names, "exits and guest steps", 1)]
    if ledger.priced:
        note = "Cycles by exit reason and category; choose a part to see its exits."
        found.append(figures.flame(flame_of(ledger), "cycles", note))
        counts: dict[tuple[int, int], int] = {}
        for (reason, number), count in recorder.tallies.items():
            cycles = exit_cycles(ledger.profile, reason, recorder.vectors[number])
            key = reason, latency_bin(cycles)
            counts[key] = counts.get(key, 0) + count
        note = "What the model prices of each exit: transitions, VMREADs, VMWRITEs and the like."
        found.append(figures.distribution(counts, names, "cycles", note))
    if comparison is not None:
        note = (
            "Shaded by what the prices rest on; bars from low to high are how far they may be off "
            f"by their provenance. {counted(len(comparison.priced), 'CPU')} with figures."
        )
        found.append(figures.comparison(bars_of(comparison), "µs", note))
    return found


def _costs(ledger: Ledger, recorder: Recorder) -> list[float | None]:
    if not ledger.priced:
        return [None] * len(recorder.exits)
    known: dict[tuple[int, int], float] = {}
    for reason, number in recorder.tallies:
        known[reason, number] = exit_cycles(ledger.profile, reason, recorder.vectors[number])
    return [known[one.reason, one.counts] for one in recorder.exits]
