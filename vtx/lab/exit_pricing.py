"""Recorded exits on other CPUs: the hardware part is priced again, the software part stays.

The tracepoints of KVM (and of Xen) lie between the VM exit and the VM entry: ``kvm_exit`` is
written after the CPU has left the guest, ``kvm_entry`` before it returns. What is measured between
the two is the software of the hypervisor together with the VMREADs and VMWRITEs it does; the two
transitions themselves lie outside and are known from a profile only. So

    software = measured - VMREADs that the trace proves x price on the CPU it was recorded on
    hardware = exits x (round trip + VMREADs x price) on the CPU that is asked about
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vtx.errors import InputError
from vtx.facts.exits import ExitReason
from vtx.lab.bounds import NOTHING, Bounds, price_ns
from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_rows import ExitRow, Tally
from vtx.lab.profile import Profile
from vtx.machine.exit_scanner import ExitFlag

__all__ = ["PricedExits", "Recording"]

#: The time in HLT is the guest's rest, not work of the hypervisor.
IDLE = int(ExitReason.HLT)
#: Exits that the CPU finds out in the middle of an access, which cost more.
_FAULT_EXITS = frozenset(
    {
        int(ExitReason.EPT_VIOLATION),
        int(ExitReason.EPT_MISCONFIGURATION),
        int(ExitReason.APIC_ACCESS),
        int(ExitReason.PAGE_MODIFICATION_LOG_FULL),
    }
)
_PRINTED = (ExitFlag.RIP, ExitFlag.INFO1, ExitFlag.INFO2, ExitFlag.INTR_INFO)


@dataclass
class Recording:
    """Exits that were measured, and what is known of the CPU under them.

    Parameters
    ----------
    report : ExitReport
        The exits.
    source : Profile or None
        The CPU they were recorded on; None if nobody said.
    known : sequence of Profile
        The CPUs that may have been it if nobody said.
    """

    report: ExitReport
    source: Profile | None
    known: Sequence[Profile]

    @cached_property
    def reads(self) -> int:
        """VMREADs of each exit that the trace proves: the exit reason, and each field printed."""
        return 1 + sum(bool(self.report.flags & flag) for flag in _PRINTED)

    @cached_property
    def inside_ns(self) -> Bounds:
        """What those VMREADs took within a measured interval."""
        sources = self.known if self.source is None else [self.source]
        found = [price for p in sources if (price := price_ns(p, "vmread")) is not None]
        if not found:
            return NOTHING
        middle = sorted(price.value for price in found)[len(found) // 2]
        low, high = min(price.low for price in found), max(price.high for price in found)
        return Bounds(low, middle, high).times(self.reads)

    def software_ns(self, tally: Tally, row: ExitRow | None = None) -> Bounds:
        """Return what is left of the measured time without the VMREADs.

        Parameters
        ----------
        tally : Tally
            The exits.
        row : ExitRow, optional
            The row whose exits they all are: intervals that are shorter than the VMREADs then
            count as 0, one by one.
        """
        if tally.times is None:
            return NOTHING
        inside = self.inside_ns
        low, value, high = (
            self._left(tally, row, limit) for limit in (inside.high, inside.value, inside.low)
        )
        return Bounds(low, value, high)

    def _left(self, tally: Tally, row: ExitRow | None, limit: float) -> float:
        assert tally.times is not None
        left = tally.times.total - tally.times.samples * limit
        if row is not None and self.report.below is not None:
            count, total = self.report.below(row.reason, round(limit))
            left += count * limit - total
        return max(0.0, left)

    @cached_property
    def clamped(self) -> int | None:
        """Exits that took less than their VMREADs would; None if single exits are not known."""
        if self.report.below is None:
            return None
        limit = round(self.inside_ns.value)
        return sum(self.report.below(row.reason, limit)[0] for row in self.report.rows)

    @cached_property
    def software(self) -> list[Bounds]:
        """The software part of each row; the guest's rest in HLT is none."""
        return [
            NOTHING if row.number == IDLE else self.software_ns(row.tally, row)
            for row in self.report.rows
        ]

    @property
    def untimed(self) -> int:
        """Exits whose software part is not known."""
        times = self.report.total.times
        return self.report.total.samples - (times.samples if times else 0)

    @property
    def idle_ns(self) -> float:
        """How long HLT lasted: left out everywhere."""
        return sum(row.times.total for row in self.report.rows if row.number == IDLE and row.times)


class PricedExits:
    """Recorded exits on one CPU.

    Parameters
    ----------
    recording : Recording
        The exits.
    profile : Profile
        The CPU.

    Raises
    ------
    InputError
        The profile has no price for transitions.
    """

    def __init__(self, recording: Recording, profile: Profile) -> None:
        self.recording = recording
        self.profile = profile
        round_trip = price_ns(profile, "round_trip")
        if round_trip is None:
            raise InputError(profile.prices["round_trip"].source)
        self.round_trip = round_trip
        self._reads = (price_ns(profile, "vmread") or NOTHING).times(recording.reads)
        self._fault = price_ns(profile, "fault_exit_extra") or NOTHING

    def hardware_of(self, number: int | None) -> Bounds:
        """Return what the CPU takes for one exit of a reason."""
        extra = self._fault if number in _FAULT_EXITS else NOTHING
        return self.round_trip + self._reads + extra

    @cached_property
    def hardware(self) -> Bounds:
        """What the CPU takes for all exits."""
        whole = NOTHING
        for row in self.recording.report.rows:
            whole += self.hardware_of(row.number).times(row.samples)
        return whole

    @cached_property
    def software(self) -> Bounds:
        """What the hypervisor takes, as measured."""
        return sum(self.recording.software, NOTHING)

    @cached_property
    def total(self) -> Bounds:
        """Both."""
        return self.hardware + self.software
