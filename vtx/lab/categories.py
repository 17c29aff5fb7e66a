"""Where cycles go: the categories of the ledger, and which event and price each is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from vtx.machine.events import Event

__all__ = [
    "DIVIDED",
    "EVENTS",
    "NEVER_PRICED",
    "SOFTWARE",
    "TRANSLATION",
    "Category",
    "Counted",
    "Counts",
]


class Category(StrEnum):
    """Where cycles go."""

    GUEST = "guest instructions that did not exit"
    STLB_HITS = "second-level TLB hits"
    WALK_FIXED = "page walks, fixed part"
    GUEST_REFERENCES = "page walks, guest dimension"
    EPT_REFERENCES = "page walks, EPT dimension"
    GUEST_L1 = "guest dimension, from L1"
    GUEST_L2 = "guest dimension, from L2"
    GUEST_L3 = "guest dimension, from L3"
    GUEST_MEMORY = "guest dimension, from memory"
    EPT_L1 = "EPT dimension, from L1"
    EPT_L2 = "EPT dimension, from L2"
    EPT_L3 = "EPT dimension, from L3"
    EPT_MEMORY = "EPT dimension, from memory"
    EXIT = "exit transition"
    FAULT = "fault extra"
    VMREAD = "VMREAD"
    VMWRITE = "VMWRITE"
    INVALIDATION = "INVEPTs and INVVPIDs"
    VMX_INSTRUCTION = "other VMX instructions"
    INJECTION = "event injections"
    HANDLER = "software of exit handlers"
    DELIVERY = "events delivered through the guest's IDT"
    ENTRY = "entry transition"

    @property
    def key(self) -> str:
        """Name in JSON and CSV."""
        return self._name_.lower()


#: Which event of the log is priced how.
EVENTS: tuple[tuple[Category, Event, str], ...] = (
    (Category.GUEST, Event.GUEST_INSTRUCTION, "guest_instruction"),
    (Category.EXIT, Event.VM_EXIT, "exit"),
    (Category.FAULT, Event.FAULT_EXIT, "fault_exit_extra"),
    (Category.VMREAD, Event.VMREAD, "vmread"),
    (Category.VMWRITE, Event.VMWRITE, "vmwrite"),
    (Category.INVALIDATION, Event.INVALIDATION, "invalidation"),
    (Category.VMX_INSTRUCTION, Event.VMX_INSTRUCTION, "vmx_instruction"),
    (Category.INJECTION, Event.INJECTION, "injection"),
    (Category.HANDLER, Event.VM_EXIT, "handler"),
    (Category.DELIVERY, Event.DELIVERY, "delivery"),
    (Category.ENTRY, Event.VM_ENTRY, "entry"),
)


def _levels(counter: str) -> tuple[str, ...]:
    """Return the keys of a counter that is kept for each level of the paging structures."""
    return tuple(f"{counter}_level{level}" for level in range(1, 6))


#: The same of the translation counters; the counters of one tuple are added up.
TRANSLATION: tuple[tuple[Category, tuple[str, ...], str], ...] = (
    (Category.STLB_HITS, ("l2i_hits", "l2d_hits"), "stlb_hit"),
    (Category.WALK_FIXED, ("walks", "walks_stopped"), "walk.fixed"),
    (Category.GUEST_REFERENCES, _levels("guest_references"), "walk.reference"),
    (Category.EPT_REFERENCES, _levels("ept_references"), "walk.reference"),
)
#: Events for which no profile has a price.
NEVER_PRICED: tuple[tuple[Event, str], ...] = (
    (Event.ENTRY_FAILURE, "VM entries that failed while loading guest state"),
    (Event.VMFAIL, "VMX instructions that ended in VMfail"),
)
#: Where the shape has data caches: the categories of a dimension of the walk by what held the
#: entry, with counter and price. They take the place of as many references of the first category.
DIVIDED: dict[Category, tuple[tuple[Category, str, str], ...]] = {
    Category.GUEST_REFERENCES: (
        (Category.GUEST_L1, "guest_walk_l1", "walk.l1"),
        (Category.GUEST_L2, "guest_walk_l2", "walk.l2"),
        (Category.GUEST_L3, "guest_walk_l3", "walk.l3"),
        (Category.GUEST_MEMORY, "guest_walk_memory", "walk.memory"),
    ),
    Category.EPT_REFERENCES: (
        (Category.EPT_L1, "ept_walk_l1", "walk.l1"),
        (Category.EPT_L2, "ept_walk_l2", "walk.l2"),
        (Category.EPT_L3, "ept_walk_l3", "walk.l3"),
        (Category.EPT_MEMORY, "ept_walk_memory", "walk.memory"),
    ),
}
#: Work of software, the guest's and the VMM's: not the hardware's virtualization.
SOFTWARE = (Category.GUEST, Category.HANDLER)


class Counts(Protocol):
    """Counts of events, as a :class:`vtx.machine.events.EventLog` keeps them."""

    @property
    def counts(self) -> Mapping[int, Sequence[int]]:
        """Events by exit reason, indexed by :class:`vtx.machine.events.Event`."""


class Counted(Protocol):
    """What of a run the lab looks at."""

    @property
    def events(self) -> Counts:
        """What happened, by exit reason."""

    @property
    def translation(self) -> Mapping[str, int]:
        """Counters of the translation unit, as in :meth:`vtx.machine.mmu.Mmu.counters`."""
