"""What exits and runs cost, for reports: the ledger's figures in other arrangements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtx.lab.compare import Comparison
from vtx.lab.ledger import Ledger, Row, price
from vtx.lab.profile import Profile, Status
from vtx.report.figures import Bar, Part

if TYPE_CHECKING:
    from vtx.lab.exit_compare import ExitComparison

__all__ = ["bars_of", "exit_cycles", "exit_row", "flame_of", "ledger_bounds", "recorded_bars"]


@dataclass(frozen=True)
class _Counts:
    counts: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class _One:
    """One exit as the ledger looks at a run."""

    events: _Counts
    translation: Mapping[str, int]


def exit_row(profile: Profile, reason: int, counts: Sequence[int]) -> Row:
    """Return what one exit costs: the ledger's row for a run that has only this exit.

    Parameters
    ----------
    profile : Profile
        Whose prices.
    reason : int
        Basic exit reason.
    counts : sequence of int
        By :class:`~vtx.machine.events.Event`; at least one is not 0.
    """
    return price(_One(_Counts({reason: counts}), {}), profile).rows[0]


def exit_cycles(profile: Profile, reason: int, counts: Sequence[int]) -> float:
    """Return the cycles of :func:`exit_row`."""
    return float(exit_row(profile, reason, counts).cycles)


def ledger_bounds(ledger: Ledger) -> tuple[float, float, float]:
    """Return low, value and high of a total in nanoseconds, from the provenance of its prices."""
    low, high = ledger.ns_bounds
    return float(low), float(ledger.ns), float(high)


def flame_of(ledger: Ledger) -> list[Part]:
    """Return reasons and their categories, and the guest's own translations."""
    parts = []
    for row in ledger.rows:
        if not row.cycles:
            continue
        key = f"r{row.reason}"
        note = f"{row.samples:,} exits"
        parts.append(Part(key, "", row.name, float(row.cycles), row.name, note))
        for cell in row.cells:
            if cell.cycles:
                note = f"{cell.count:,} events"
                cycles = float(cell.cycles)
                name = f"{key}/{cell.category.key}"
                parts.append(Part(name, key, cell.category.value, cycles, row.name, note))
    if ledger.translation_cycles:
        what = "(guest translation)"
        parts.append(Part("t", "", what, float(ledger.translation_cycles), what))
        for cell in ledger.translation:
            if cell.cycles:
                note = f"{cell.count:,} events"
                name = f"t/{cell.category.key}"
                parts.append(Part(name, "t", cell.category.value, float(cell.cycles), what, note))
    return parts


def bars_of(comparison: Comparison) -> list[Bar]:
    """Return the CPUs of a comparison that have figures, in microseconds."""
    bars = []
    for outcome in comparison.priced:
        ledger = outcome.ledger
        low, value, high = (ns / 1000 for ns in ledger_bounds(ledger))
        founded = ledger.by_status
        parts = {
            status.value: float(ledger.profile.ns(founded[status])) / 1000 for status in Status
        }
        bars.append(Bar(outcome.profile.id, parts, value, low, high))
    return bars


def recorded_bars(comparison: ExitComparison) -> list[Bar]:
    """Return the CPUs on which a recording was priced, in milliseconds.

    The hardware's part is shaded by the provenance of the round trip, which is most of it.
    """
    bars = []
    for outcome in comparison.outcomes:
        priced = outcome.priced
        if priced is None:
            continue
        status = outcome.profile.prices["round_trip"].status
        parts = {one.value: 0.0 for one in Status}
        if status is not None:
            parts[status.value] = priced.hardware.value / 1e6
        parts["software, as measured in the trace"] = priced.software.value / 1e6
        total = priced.total
        bars.append(
            Bar(outcome.profile.id, parts, total.value / 1e6, total.low / 1e6, total.high / 1e6)
        )
    return bars
