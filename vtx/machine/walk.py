"""What a translation says: its outcome, and the references of its walk in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from vtx.facts.members import plain_members
from vtx.machine.context import Access, Member

__all__ = [
    "STATUSES",
    "Dimension",
    "Hit",
    "RunResult",
    "Source",
    "Status",
    "Step",
    "StepKind",
    "Translations",
    "Walk",
    "WalkStatus",
]


@plain_members
class WalkStatus(IntEnum):
    """How a translation, or a run, ended."""

    OK = 0
    PAGE_FAULT = 1
    NON_CANONICAL = 2
    EPT_VIOLATION = 3
    EPT_MISCONFIGURATION = 4
    PML_FULL = 5
    SPP_MISS = 6
    SPP_MISCONFIGURATION = 7
    BEYOND_MEMORY = 8
    INSTRUCTION = 9
    END = 10
    BAD_RECORD = 11
    APIC_ACCESS = 12

    __hash__ = int.__hash__


@plain_members
class Source(IntEnum):
    """Where a translation came from."""

    WALK = 0
    L1 = 1
    L2 = 2
    IDENTITY = 3


@plain_members
class Dimension(IntEnum):
    """Which structures a step of a walk belongs to."""

    GUEST = 1
    EPT = 2
    LOG = 3
    SPP = 4


@plain_members
class StepKind(IntEnum):
    """What a step of a walk did; CACHED steps are not references."""

    READ = 0
    WRITE = 1
    CACHED = 2


@plain_members
class Hit(IntEnum):
    """What had the entry that a step read."""

    #: Not modelled, or no reference through the TLBs.
    UNKNOWN = 0
    L1 = 1
    L2 = 2
    L3 = 3
    MEMORY = 4


#: The short name that rules use.
Status = WalkStatus

STATUSES: tuple[WalkStatus, ...] = tuple(WalkStatus)
_SOURCES: tuple[Source, ...] = tuple(Source)
_DIMENSIONS: Mapping[int, Dimension] = {int(d): d for d in Dimension}
_STEP_KINDS: tuple[StepKind, ...] = tuple(StepKind)
_HITS: tuple[Hit, ...] = tuple(Hit)


class Step(NamedTuple):
    """One reference of a walk, in order.

    Attributes
    ----------
    dimension : Dimension
        Guest paging structures, EPT structures, the page-modification log, or the
        sub-page-permission table.
    level : int
        Level of the entry, 5 to 1. A cached EPT step of level 0 is a hit in the nested TLB.
    guest_level : int
        Level of the guest entry that an EPT step serves; 0 for the final access.
    kind : StepKind
        READ, WRITE (accessed and dirty flags, log) or CACHED (a paging-structure cache or the
        nested TLB answered).
    address : int
        Host-physical address; 0 for CACHED.
    gpa : int
        Guest-physical address of the guest entry, or the one that EPT translates.
    value : int
        Entry as read, or as written; for CACHED the host-physical address that was found.
    size_bytes : int
        4 for entries of 32-bit paging, else 8.
    hit : Hit
        The data cache that had the entry, if the shape has data caches and the step is a READ of
        a walk through the TLBs.
    """

    dimension: Dimension
    level: int
    guest_level: int
    kind: StepKind
    address: int
    gpa: int
    value: int
    size_bytes: int
    hit: Hit = Hit.UNKNOWN


class Walk:
    """What one translation came to.

    Attributes
    ----------
    gva : int
        Linear address.
    hpa : int
        Host-physical address, if `status` is OK.
    qualification : int
        Exit qualification, if `status` is EPT_VIOLATION (bit 12, of IRET, is not known here).
    error_code : int
        Page-fault error code, if `status` is PAGE_FAULT.
    fault_address : int
        The physical address that is beyond memory, if `status` is BEYOND_MEMORY.
    guest_entry, ept_entry : int
        The last entry read in each dimension (bit 63 of an EPT entry: suppress #VE).
    guest_level, ept_level : int
        Their levels; 0 if none was read.
    guest_shift, ept_shift, page_shift : int
        Base-2 logarithms of the guest page's, the EPT page's and the effective page's bytes; 0
        where there is none or a TLB hit does not tell.
    protection_key, pat_index, ept_memory_type : int
        From the leaf entries, for a translation that succeeded.
    step_count : int
        Steps recorded, CACHED ones and writes included.
    """

    __slots__ = ("_c", "_steps")

    gva = Member()
    hpa = Member()
    qualification = Member()
    error_code = Member()
    fault_address = Member()
    guest_entry = Member()
    ept_entry = Member()
    guest_level = Member()
    ept_level = Member()
    guest_shift = Member()
    ept_shift = Member()
    page_shift = Member()
    protection_key = Member()
    pat_index = Member()
    ept_memory_type = Member()
    step_count = Member()

    def __init__(self, structure: Any, steps: Any = None) -> None:
        self._c = structure
        self._steps = steps

    @property
    def status(self) -> WalkStatus:
        """How it ended."""
        status: int = self._c.status
        return STATUSES[status]

    @property
    def ok(self) -> bool:
        """Whether there is a translation."""
        return not self._c.status

    @property
    def access(self) -> Access:
        """What was asked for."""
        return Access(self._c.access)

    @property
    def gpa(self) -> int | None:
        """Guest-physical address: translated, or where an EPT event was met; None if not known."""
        return self._c.gpa if self._c.gpa_valid else None

    @property
    def translated(self) -> bool:
        """Whether an EPT event was met on the final address (not on a guest entry's)."""
        return bool(self._c.translated)

    @property
    def source(self) -> Source:
        """What gave the translation."""
        source: int = self._c.source
        return _SOURCES[source]

    @property
    def user(self) -> bool:
        """Whether the linear address is a user-mode address (U/S of all entries)."""
        return bool(self._c.user)

    @property
    def writable(self) -> bool:
        """Whether guest paging lets the page be written (R/W of all entries)."""
        return bool(self._c.writable)

    @property
    def executable(self) -> bool:
        """Whether guest paging lets the page be executed (XD of no entry)."""
        return bool(self._c.executable)

    @property
    def is_global(self) -> bool:
        """Whether the translation is global."""
        return bool(getattr(self._c, "global"))

    @property
    def ignore_pat(self) -> bool:
        """Bit 6 of the EPT leaf."""
        return bool(self._c.ignore_pat)

    @property
    def steps(self) -> list[Step]:
        """Every reference in order, if the walk was recorded; else empty."""
        if self._steps is None:
            return []
        return [
            Step(
                _DIMENSIONS[s.dimension],
                s.level,
                s.guest_level,
                _STEP_KINDS[s.kind],
                s.address,
                s.gpa,
                s.value,
                s.size,
                _HITS[s.hit],
            )
            for s in self._steps[0 : self._c.step_count]
        ]

    @property
    def references(self) -> int:
        """Number of paging-structure entries that the walk read, if it was recorded."""
        return sum(step.kind == StepKind.READ for step in self.steps)

    def explain(self) -> str:
        """Say in one sentence what happened."""
        status = self.status
        what = f"{Access(self._c.access).name.lower()} at {self.gva:#x}"
        gpa = f"guest-physical address {self._c.gpa:#x}"
        if status is WalkStatus.OK:
            return f"{what}: host-physical address {self.hpa:#x}"
        if status is WalkStatus.PAGE_FAULT:
            return f"{what}: #PF({self.error_code:#x})"
        if status is WalkStatus.EPT_VIOLATION:
            return f"{what}: EPT violation at {gpa}, qualification {self.qualification:#x}"
        if status is WalkStatus.BEYOND_MEMORY:
            return f"{what}: physical address {self.fault_address:#x} is beyond memory"
        name = status.name.lower().replace("_", " ")
        return f"{what}: {name}" + (f" at {gpa}" if self._c.gpa_valid else "")

    def _repr_html_(self) -> str | None:
        """Draw a recorded walk, as notebooks ask for it."""
        if self._steps is None:
            return None
        from vtx.machine.walk_svg import walk_svg

        return walk_svg(self)

    def __repr__(self) -> str:
        return f"<Walk {self.explain()}>"


class RunResult(NamedTuple):
    """Why a run stopped.

    Attributes
    ----------
    status : WalkStatus
        END at the end of the window, INSTRUCTION or BAD_RECORD at an instruction record, else what
        the translation of a reference came to.
    index : int
        The record that stopped it; run again from here once the cause is dealt with.
    operand : int
        Payload of an instruction record.
    walk : Walk or None
        The translation that stopped it.
    """

    status: WalkStatus
    index: int  # type: ignore[assignment]  # hides tuple.index, which no result needs
    operand: int = 0
    walk: Walk | None = None


@dataclass(frozen=True, slots=True)
class Translations:
    """Translations of many addresses: numpy arrays of equal length, one element an address.

    Attributes
    ----------
    status, error_code : array of uint32
        :class:`WalkStatus` values; page-fault error codes.
    hpa, gpa, qualification : array of uint64
        As in :class:`Walk`; `gpa` is 0 where a TLB answered.
    page_shift, source : array of uint8
        As in :class:`Walk`.
    """

    status: Any
    hpa: Any
    gpa: Any
    qualification: Any
    error_code: Any
    page_shift: Any
    source: Any

    def __len__(self) -> int:
        return len(self.status)
