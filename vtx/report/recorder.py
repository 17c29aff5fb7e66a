"""What a replay is watched for: its exits one by one, what each counted, what changed in the VMCS.

Memory is bounded: the first exits are kept, statistics cover all, and differences of VMCSs are kept
for the first exits and for the dearest.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vtx.errors import VtxError
from vtx.facts.fields import Field
from vtx.machine.context import Access
from vtx.machine.events import Event
from vtx.report.bins import Bins

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit
    from vtx.machine.walk import Walk

__all__ = ["KEPT", "Change", "Recorded", "Recorder"]

#: Exits that are kept one by one.
KEPT = 100_000
#: Exits whose VMCS differences are kept: so many from the first on, and so many of the dearest.
FIRST, DEAREST = 1000, 200
_OWN = (Event.VM_EXIT, Event.FAULT_EXIT, Event.ENTRY_FAILURE)
_WALKS = 3
_RIP = Field.GUEST_RIP
_NOTHING: Mapping[int, int] = {}


class Recorded(NamedTuple):
    """One exit; `counts` is the number of its counts in :attr:`Recorder.vectors`, if it is kept."""

    processor: int
    step: int
    reason: int
    qualification: int
    rip: int
    guest_physical_address: int
    interruption_information: int
    instruction_information: int
    counts: int


class Change(NamedTuple):
    """One field of the VMCS: who changed it, the processor at the exit or its handler."""

    field: int
    by_handler: bool
    before: int
    after: int


class _Pending(NamedTuple):
    """An exit whose handling is not over."""

    sequence: int
    recorded: Recorded
    own: tuple[int, ...]
    at_entry: Mapping[int, int]
    at_exit: Mapping[int, int]


class Recorder:
    """Watches a replay (see :class:`vtx.hypervisor.vmm.Observer`).

    Parameters
    ----------
    cost : callable
        ``cost(reason, counts)``: what an exit with these counts costs, by
        :class:`~vtx.machine.events.Event`; in any unit, it only orders exits.
    each : callable, optional
        ``each(sequence, recorded, counts)``: told of every exit when its handling is over.
    keep : bool
        Keep exits, statistics, differences and walks; otherwise `each` alone is told.

    Attributes
    ----------
    exits : list of Recorded
        The first exits.
    vectors : list of tuple of int
        The different counts of exits, by :class:`~vtx.machine.events.Event`.
    tallies : Counter of (int, int)
        How many exits of a reason had which counts; all exits.
    over_time : Bins
        Exits by reason over the guest's steps, those that exited among them; all exits.
    walks : list of (str, Walk)
        Walks in the guest as it was at the end, with what their addresses are.
    """

    def __init__(
        self,
        cost: Callable[[int, Sequence[int]], float],
        each: Callable[[int, Recorded, Sequence[int]], None] | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self._keep = keep
        self._cost = cost
        self._each = each
        self.exits: list[Recorded] = []
        self.vectors: list[tuple[int, ...]] = []
        self.tallies: Counter[tuple[int, int]] = Counter()
        self.over_time = Bins()
        self.walks: list[tuple[str, Walk]] = []
        self.count = 0
        self._numbers: dict[tuple[int, ...], int] = {}
        self._costs: dict[tuple[int, int], float] = {}
        self._seen: dict[int, list[int]] = {}
        self._pending: _Pending | None = None
        self._entered: dict[int, Mapping[int, int]] = {}
        self._first: dict[int, list[Change]] = {}
        self._dearest: list[tuple[float, int, list[Change]]] = []
        self._addresses: dict[int, str] = {}

    # ---- What the VMM tells ----------------------------------------------------------------------

    def exit(self, cpu: Cpu, exit: Exit) -> None:
        """See a VM exit before it is handled."""
        information = exit.information
        reason = int(information.reason)
        row = cpu.events.counts[reason]
        self._close(cpu)
        seen = self._seen.setdefault(reason, [0] * len(Event))
        own = [0] * len(Event)
        for event in _OWN:
            own[event] = row[event] - seen[event]
            seen[event] = row[event]
        recorded = Recorded(
            cpu.number,
            cpu.steps,
            reason,
            information.qualification,
            information.guest_rip,
            information.guest_physical_address,
            information.interruption_information,
            information.instruction_information,
            0,
        )
        if self._keep:
            self.over_time.add(reason, cpu.steps + self.count)
        if information.guest_linear_address:
            self._addresses[information.guest_linear_address] = "of the last exit with an address"
        values = self._values(cpu) if self._keep else _NOTHING
        before = self._entered.pop(cpu.number, values)
        self._pending = _Pending(self.count, recorded, tuple(own), before, values)
        self.count += 1

    def entry(self, cpu: Cpu) -> None:
        """See what a handled exit left behind."""
        if self._keep:
            self._entered[cpu.number] = self._values(cpu)

    def finished(self, cpu: Cpu) -> None:
        """Close the last exit, and walk some addresses in the guest as it is now."""
        self._close(cpu)
        if cpu.context_vmcs is None or not self._keep:
            return
        wanted = {cpu.context_vmcs[_RIP]: "of the guest's last instruction (GUEST_RIP)"}
        for address in list(self._addresses)[-1:]:
            wanted.setdefault(address, self._addresses[address])
        for address, what in list(wanted.items())[:_WALKS]:
            access = Access.FETCH if what.endswith("(GUEST_RIP)") else Access.LOAD
            try:
                walk = cpu.mmu.walk(cpu.context, address, access, record=True)
            except VtxError:
                continue  # an address that the guest, in its last mode, cannot use
            if walk.steps:
                self.walks.append((f"Linear address {what}", walk))

    # ---- What came of it -------------------------------------------------------------------------

    @property
    def changes(self) -> dict[int, list[Change]]:
        """VMCS fields that changed around an exit, by its sequence number."""
        found = dict(self._first)
        found.update({-sequence: changes for _, sequence, changes in self._dearest})
        return found

    @staticmethod
    def _values(cpu: Cpu) -> Mapping[int, int]:
        assert cpu.vmcs is not None
        return dict(cpu.vmcs.values)

    def _close(self, cpu: Cpu) -> None:
        """Finish the exit before: all that was counted since belongs to it."""
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        reason = pending.recorded.reason
        row, seen = cpu.events.counts[reason], self._seen[reason]
        counts = list(pending.own)
        for event in range(len(row)):
            if event not in _OWN:
                counts[event] = row[event] - seen[event]
                seen[event] = row[event]
        if self._each is not None:
            self._each(pending.sequence, pending.recorded, counts)
        if self._keep:
            self._store(pending, counts)

    def _store(self, pending: _Pending, counts: Sequence[int]) -> None:
        """Keep a finished exit, as far as there is room."""
        reason = pending.recorded.reason
        number = self._number(tuple(counts))
        self.tallies[reason, number] += 1
        recorded = pending.recorded._replace(counts=number)
        if len(self.exits) < KEPT:
            self.exits.append(recorded)
        self._keep_changes(pending, self._price(reason, number))

    def _number(self, counts: tuple[int, ...]) -> int:
        number = self._numbers.get(counts)
        if number is None:
            number = self._numbers[counts] = len(self.vectors)
            self.vectors.append(counts)
        return number

    def _price(self, reason: int, number: int) -> float:
        cost = self._costs.get((reason, number))
        if cost is None:
            cost = self._costs[reason, number] = self._cost(reason, self.vectors[number])
        return cost

    def _keep_changes(self, pending: _Pending, cost: float) -> None:
        sequence = pending.sequence
        if sequence < FIRST:
            self._first[sequence] = self._changes(pending)
        elif sequence < KEPT and (len(self._dearest) < DEAREST or cost > self._dearest[0][0]):
            # Among exits of one cost the earlier ones stay: their numbers are negated.
            entry = (cost, -sequence, self._changes(pending))
            if len(self._dearest) < DEAREST:
                heapq.heappush(self._dearest, entry)
            else:
                heapq.heapreplace(self._dearest, entry)

    def _changes(self, pending: _Pending) -> list[Change]:
        # A VMM that stops its guest does not enter it again.
        resumed = self._entered.get(pending.recorded.processor, pending.at_exit)
        return [
            *_differences(pending.at_entry, pending.at_exit, False),
            *_differences(pending.at_exit, resumed, True),
        ]


def _differences(
    before: Mapping[int, int], after: Mapping[int, int], by_handler: bool
) -> list[Change]:
    return [
        Change(field, by_handler, value, after[field])
        for field, value in before.items()
        if after[field] != value
    ]
