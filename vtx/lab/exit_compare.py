"""Recorded exits on several CPUs side by side, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vtx.errors import InputError, UnknownName
from vtx.lab.bounds import UNCERTAINTY, Bounds
from vtx.lab.exit_pricing import PricedExits, Recording
from vtx.lab.exit_report import ExitReport
from vtx.lab.profile import Profile
from vtx.lab.report import counted
from vtx.lab.table import Column, Table
from vtx.lab.what_if import Claim, claim

__all__ = ["SCHEMA", "ExitComparison", "compare_exits"]

SCHEMA = "vtx.exit-compare/1"


@dataclass(frozen=True)
class ExitOutcome:
    """One CPU: the priced exits, or why there are none."""

    profile: Profile
    priced: PricedExits | None
    why: str


@dataclass(frozen=True)
class ExitComparison:
    """Recorded exits on several CPUs.

    Parameters
    ----------
    recording : Recording
        The exits and the CPU under them.
    outcomes : sequence of ExitOutcome
        One for each profile, in the order asked for.
    claims : sequence of Claim
        What if.
    baseline : ExitOutcome or None
        What the others are compared with.
    """

    recording: Recording
    outcomes: Sequence[ExitOutcome]
    claims: Sequence[Claim]
    baseline: ExitOutcome | None

    def notes(self) -> list[str]:
        """Return how the figures came about and what they rest on, one sentence each."""
        recording = self.recording
        inside, source = recording.inside_ns, recording.source
        where = f"on {source.id}" if source else "on a CPU that is not known (--recorded-on)"
        parts = ", ".join(f"{status.value} {float(off):.0%}" for status, off in UNCERTAINTY.items())
        found = [
            "Software: the time from exit to entry as measured, less the VMREADs that the trace "
            f"proves ({recording.reads} of each exit, {inside.value:.0f} ns, {inside.low:.0f} to "
            f"{inside.high:.0f}, {where}); it stays as it is on every CPU.",
            "Hardware: round trip, VMREADs and fault extra of the profile at its nominal clock; "
            "the tracepoints lie between exit and entry, so the transitions are not in the "
            "measured time.",
            "low and high: the range that the source of a price gives, or else what its provenance "
            f"allows ({parts}).",
        ]
        if recording.report.total.times is None:
            found.append("The trace has no durations: the software part is not known.")
        elif recording.untimed:
            found.append(
                f"Without a duration: {counted(recording.untimed, 'exit')}; only their hardware "
                "counts."
            )
        if recording.clamped:
            found.append(
                f"Shorter than their VMREADs: {counted(recording.clamped, 'exit')}, whose software "
                "counts as 0."
            )
        if recording.idle_ns:
            found.append(
                f"HLT lasted {recording.idle_ns / 1e6:,.3f} ms in all: the guest's rest, left out."
            )
        return found

    def _repr_html_(self) -> str:
        """Return the tables as notebooks show them."""
        return "".join(table._repr_html_() for table in self.tables())

    def to_pandas(self) -> Any:
        """Return one row for each profile, all times in nanoseconds, as a pandas.DataFrame.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from vtx.lab.frames import flat, frame

        return frame(flat(entry) for entry in self.as_dict()["profiles"])

    # ---- JSON -----------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Return the document that JSON shows; all times in nanoseconds."""
        recording, report = self.recording, self.recording.report
        return {
            "schema": SCHEMA,
            "trace": {"file": report.name, "form": report.form},
            "recorded_on": recording.source.id if recording.source else None,
            "baseline": self.baseline.profile.id if self.baseline else None,
            "samples": report.total.samples,
            "samples_without_duration": recording.untimed,
            "samples_clamped": recording.clamped,
            "vmreads_per_exit": recording.reads,
            "idle_ns": recording.idle_ns,
            "uncertainty": {status.value: float(off) for status, off in UNCERTAINTY.items()},
            "notes": self.notes(),
            "profiles": [self._outcome_dict(outcome) for outcome in self.outcomes],
            "what_if": [
                {"option": c.option, "claim": c.text, "exits_saved": c.exits.as_dict()}
                for c in self.claims
            ],
            "lines": {
                "read": report.lines.read,
                "used": report.lines.used,
                "skipped": dict(report.lines.skipped),
            },
        }

    def _outcome_dict(self, outcome: ExitOutcome) -> dict[str, Any]:
        document: dict[str, Any] = {
            **outcome.profile.summary(),
            "state": "priced" if outcome.priced else "no data",
            "why": outcome.why or None,
        }
        priced = outcome.priced
        if priced is None:
            return document
        recording = self.recording
        document |= {
            "hardware_ns": priced.hardware.as_dict(),
            "software_ns": priced.software.as_dict(),
            "total_ns": priced.total.as_dict(),
            "relative": self._relative(priced.total),
            "rows": [
                {
                    "reason": row.reason,
                    "samples": row.samples,
                    "hardware_ns": priced.hardware_of(row.number).times(row.samples).as_dict(),
                    "software_ns": software.as_dict() if row.times else None,
                }
                for row, software in zip(recording.report.rows, recording.software, strict=True)
            ],
            "what_if": [self._claim_dict(c, priced) for c in self.claims],
        }
        return document

    @staticmethod
    def _claim_dict(claimed: Claim, priced: PricedExits) -> dict[str, Any]:
        refusal = claimed.refuses(priced.profile)
        if refusal:
            return {"option": claimed.option, "total_ns": None, "why": refusal}
        total = claimed.total(priced)
        before = priced.total.value
        relative = total.value / before if before else None
        return {"option": claimed.option, "total_ns": total.as_dict(), "relative": relative}

    def _relative(self, total: Bounds) -> float | None:
        base = self.baseline.priced.total.value if self.baseline and self.baseline.priced else 0
        return total.value / base if base else None

    # ---- Tables ---------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        """Return what a terminal shows."""
        report = self.recording.report
        tables = [self._main_table(), *(self._claim_table(c) for c in self.claims)]
        last = tables[-1]
        closing = [*last.remarks, *report.warnings, f"{report.name}: {report.lines}"]
        tables[-1] = Table(last.title, last.columns, last.rows, closing)
        return tables

    def _main_table(self) -> Table:
        columns = (
            Column("profile"),
            *(Column(text, True) for text in ("transition ns", "hardware ms", "software ms")),
            *(Column(text, True) for text in ("total ms", "low", "high", "relative")),
        )
        rows = []
        for outcome in self.outcomes:
            priced = outcome.priced
            if priced is None:
                rows.append([outcome.profile.id, "no data", *[""] * 6])
                continue
            relative = self._relative(priced.total)
            rows.append(
                [
                    outcome.profile.id,
                    f"{priced.round_trip.value:,.0f}",
                    *_milliseconds(priced.hardware.value, priced.software.value),
                    *_milliseconds(priced.total.value, priced.total.low, priced.total.high),
                    "-" if relative is None else f"{relative:.3f}",
                ]
            )
        samples = self.recording.report.total.samples
        title = f"{counted(samples, 'exit')} of {self.recording.report.name} on other CPUs"
        return Table(title, columns, rows, self.notes())

    def _claim_table(self, claimed: Claim) -> Table:
        columns = (
            Column("profile"),
            *(Column(text, True) for text in ("total ms", "what if ms", "low", "high", "change")),
        )
        rows = [cells for outcome in self.outcomes for cells in _claim_cells(claimed, outcome)]
        return Table(f"What if {claimed.option}", columns, rows, [claimed.text])


def _claim_cells(claimed: Claim, outcome: ExitOutcome) -> Iterator[list[str]]:
    priced = outcome.priced
    if priced is None:
        return
    before, refusal = priced.total, claimed.refuses(priced.profile)
    start = [priced.profile.id, *_milliseconds(before.value)]
    if refusal:
        yield [*start, "not supported", "", "", ""]
        return
    total = claimed.total(priced)
    change = f"{total.value / before.value - 1:+.1%}" if before.value else "-"
    yield [*start, *_milliseconds(total.value, total.low, total.high), change]


def _milliseconds(*ns: float) -> list[str]:
    return [f"{value / 1e6:,.3f}" for value in ns]


def compare_exits(
    report: ExitReport,
    profiles: Sequence[Profile],
    *,
    recorded_on: Profile | None = None,
    baseline: str | None = None,
    options: Sequence[str] = (),
) -> ExitComparison:
    """Price recorded exits on several CPUs.

    Parameters
    ----------
    report : ExitReport
        The exits.
    profiles : sequence of Profile
        The CPUs.
    recorded_on : Profile, optional
        The CPU of the recording.
    baseline : str, optional
        The profile that the others are compared with; by default that of the recording, or the
        first that has prices.
    options : sequence of str
        What if: see :func:`vtx.lab.what_if.claim`.

    Raises
    ------
    InputError
        No profile has prices, or the baseline or `recorded_on` has none.
    UsageError
        A claim cannot be made.
    """
    if recorded_on is not None and not recorded_on.has_prices:
        raise InputError(f"{recorded_on.id} has no prices to split the measured times with")
    claims = [claim(report, option) for option in options]
    recording = Recording(report, recorded_on, profiles)
    outcomes = []
    for profile in profiles:
        if profile.has_prices:
            outcomes.append(ExitOutcome(profile, PricedExits(recording, profile), ""))
        else:
            outcomes.append(ExitOutcome(profile, None, profile.prices["round_trip"].source))
    priced = [outcome for outcome in outcomes if outcome.priced is not None]
    if not priced:
        raise InputError("none of these profiles has prices")
    return ExitComparison(recording, outcomes, claims, _base(outcomes, baseline, recorded_on))


def _base(
    outcomes: Sequence[ExitOutcome], wanted: str | None, recorded_on: Profile | None
) -> ExitOutcome | None:
    if wanted is None:
        priced = [outcome for outcome in outcomes if outcome.priced is not None]
        same = [o for o in priced if recorded_on and o.profile.id == recorded_on.id]
        return (same or priced)[0]
    for outcome in outcomes:
        if wanted in (outcome.profile.id, outcome.profile.file):
            if outcome.priced is None:
                raise InputError(f"{wanted} cannot be the baseline: it has no prices")
            return outcome
    raise UnknownName("profile in this comparison", wanted, [o.profile.id for o in outcomes])
