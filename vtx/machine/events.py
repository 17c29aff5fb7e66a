"""What the machine did, counted: the machine emits events and knows no latency.

Every event is counted under the VM exit during whose handling it happened (its *reason*), or
under :data:`GUEST` while no exit is being handled; so a price list turns the counts of one run
into cycles per exit reason with one product, for any CPU of the same shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from vtx.facts.members import plain_members

__all__ = ["GUEST", "Event", "EventLog", "ExitRecord"]

#: The row of events outside the handling of any VM exit (set-up by the VMM, guest execution).
GUEST = -1


@plain_members
class Event(IntEnum):
    """Kinds of event that have a price or a place in the ledger."""

    __hash__ = int.__hash__

    VM_ENTRY = 0
    """A successful VM entry (VMLAUNCH or VMRESUME)."""
    VM_EXIT = 1
    """A VM exit."""
    FAULT_EXIT = 2
    """A VM exit that found out during execution (exception, EPT violation, misconfiguration)."""
    VMREAD = 3
    """A VMREAD in VMX root operation."""
    VMWRITE = 4
    """A VMWRITE in VMX root operation."""
    INVALIDATION = 5
    """An INVEPT or INVVPID."""
    VMX_INSTRUCTION = 6
    """Any other VMX instruction in VMX root operation (VMPTRLD, VMCLEAR ...)."""
    ENTRY_FAILURE = 7
    """A VM entry that failed after it began to load guest state (reasons 33, 34, 41)."""
    VMFAIL = 8
    """A VMX instruction that ended in VMfail."""
    INJECTION = 9
    """An event delivered to the guest by VM entry."""
    DELIVERY = 10
    """An exception or interrupt delivered through the guest's IDT without a VM exit."""
    GUEST_INSTRUCTION = 11
    """An instruction of a trace that took effect in the guest without a VM exit."""


# Plain ints: a list is quicker to index with them.
_VM_EXIT, _FAULT_EXIT = int(Event.VM_EXIT), int(Event.FAULT_EXIT)


class ExitRecord(NamedTuple):
    """One VM exit of a run, for reports (units: steps are guest steps since the start)."""

    sequence: int
    processor: int
    step: int
    reason: int
    qualification: int
    guest_rip: int
    guest_physical_address: int
    injected: int


#: What stands in an :class:`ExitRecord`.
Record = tuple[int, int, int, int, int, int, int, int]
_REASON = ExitRecord._fields.index("reason")


class EventLog:
    """Counts of events by exit reason, and the last exits one by one.

    Parameters
    ----------
    keep_exits : int
        How many of the latest exits are kept as records; the counts are always complete.
    """

    #: Counts under the exit reason that is being handled, by :class:`Event`.
    row: list[int]

    def __init__(self, keep_exits: int = 100_000) -> None:
        self.counts: dict[int, list[int]] = {GUEST: [0] * len(Event)}
        self._set_records(deque(maxlen=keep_exits))
        self.exit_count = 0
        self.reason = GUEST
        self.row = self.counts[GUEST]

    def _set_records(self, records: deque[Record]) -> None:
        self._records = records
        #: Keeps the record of an exit that its caller has counted.
        self.keep: Callable[[Record], None] = records.append

    def count(self, event: Event, times: int = 1) -> None:
        """Count `event` under the exit reason that is being handled."""
        self.row[event] += times

    def handle(self, reason: int) -> None:
        """Count what follows under exit reason `reason` (or :data:`GUEST`)."""
        self.reason = reason
        row = self.counts.get(reason)
        if row is None:
            row = self.counts[reason] = [0] * len(Event)
        self.row = row

    @property
    def exits(self) -> list[ExitRecord]:
        """The latest exits, the last one last."""
        return [ExitRecord._make(record) for record in self._records]

    def vm_exit(self, record: Record, *, fault: bool) -> None:
        """Count a VM exit and keep its record; what follows belongs to its reason.

        Parameters
        ----------
        record : tuple of int
            What an :class:`ExitRecord` says, as that or as a plain tuple, which is quicker made.
        fault : bool
            The processor found out about the exit during execution.
        """
        reason = record[_REASON]
        if reason is not self.reason:
            self.handle(reason)
        row = self.row
        row[_VM_EXIT] += 1
        if fault:
            row[_FAULT_EXIT] += 1
        self.exit_count += 1
        self.keep(record)

    def copy(self) -> EventLog:
        """Return a log of equal content."""
        twin = EventLog(self._records.maxlen or 0)
        twin.replace(self)
        return twin

    def replace(self, other: EventLog) -> None:
        """Make this log one of `other`'s content; whoever holds it sees the change."""
        self.counts = {reason: list(row) for reason, row in other.counts.items()}
        self._set_records(other._records.copy())
        self.exit_count = other.exit_count
        self.handle(other.reason)

    def total(self, event: Event) -> int:
        """Return how often `event` happened in all."""
        return sum(row[event] for row in self.counts.values())
