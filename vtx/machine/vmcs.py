"""The virtual-machine control structure (SDM, "Virtual Machine Control Structures").

A :class:`Vmcs` is the data that a logical processor keeps of an active VMCS. While the VMCS is
active, its region in memory may be stale; VMCLEAR writes the data there, VMPTRLD reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Self

from vtx.bits import MASK32
from vtx.errors import InputError, UsageError
from vtx.facts.controls import Entry, Exit1, Proc1
from vtx.facts.fields import FIELDS, Field, Width, find_field, mask

if TYPE_CHECKING:
    from vtx.machine.shape import Shape

__all__ = ["ABORT_INDICATOR_OFFSET", "NO_LINK", "REGION_BYTES", "SHADOW_BIT", "Vmcs"]

#: A VMCS region, in bytes.
REGION_BYTES = 4096
#: Bit 31 of the first word of a region: the VMCS is a shadow VMCS.
SHADOW_BIT = 1 << 31
#: Where a VMX abort leaves its number, in bytes from the start of the region.
ABORT_INDICATOR_OFFSET = 4
#: The VMCS link pointer that links nothing.
NO_LINK = 0xFFFF_FFFF_FFFF_FFFF

# The region. Only its first 8 bytes are architectural:
#
#   0  bits 30:0 revision identifier, bit 31 shadow-VMCS indicator
#   4  VMX-abort indicator
#   8  FORMAT if the fields below were ever written, 0 in a region that software only prepared
#  12  launch state: 0 clear, 1 launched
#  16  the session of VMX operation (counted from VMXON) of the last successful VMLAUNCH
#  24  one bit per field in the order of the field table: the region holds its value
#  56  those values in that order, each of its field's width, without gaps
#
# A processor writes only the fields that it has, so that the data fit into the bytes that its
# IA32_VMX_BASIC reports; which ones it wrote is in the region, so that any processor reads it.
_FORMAT = 0x3258_5456
_FIELD_ORDER = tuple(FIELDS)
_MAP_BYTES = 32
_HEADER = struct.Struct(f"<IIIIQ{_MAP_BYTES}s")
_CODES = {Width.W16: "H", Width.W32: "I", Width.W64: "Q", Width.NATURAL: "Q"}
_MASKS: dict[int, int] = {field: mask(field) for field in _FIELD_ORDER}


def _no_field(field: object) -> Exception:
    """Return what to raise where `field` names no field of a VMCS."""
    if isinstance(field, int):
        return KeyError(field)
    return UsageError(
        f"a VMCS is indexed by members of vtx.Field, such as Field.GUEST_RIP, not by {field!r}"
    )


class _Layout(NamedTuple):
    """Where a region that holds some of the fields has them."""

    present: bytes
    fields: tuple[Field, ...]
    values: struct.Struct


@lru_cache
def _layout(held: frozenset[int] | tuple[int, ...]) -> _Layout:
    """Return the layout of a region that holds these fields."""
    fields = tuple(field for field in _FIELD_ORDER if field in held)
    present = sum(1 << place for place, field in enumerate(_FIELD_ORDER) if field in held)
    codes = "".join(_CODES[FIELDS[field].width] for field in fields)
    return _Layout(present.to_bytes(_MAP_BYTES, "little"), fields, struct.Struct(f"<{codes}"))


@lru_cache
def _layout_of(present: bytes) -> _Layout | None:
    """Return the layout of a region with this map of fields, None if there is no such."""
    places = int.from_bytes(present, "little")
    if places >> len(_FIELD_ORDER):
        return None
    held = frozenset(field for place, field in enumerate(_FIELD_ORDER) if places >> place & 1)
    return _layout(held)


# The fields of the control words, under names that need no look-up in a class.
_PIN = Field.PIN_BASED_CONTROLS
_PROC1 = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
_PROC2 = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
_PROC3 = Field.TERTIARY_PROCESSOR_BASED_CONTROLS
_EXIT1 = Field.VM_EXIT_CONTROLS
_EXIT2 = Field.SECONDARY_VM_EXIT_CONTROLS
_ENTRY = Field.VM_ENTRY_CONTROLS
_VM_FUNCTIONS = Field.VM_FUNCTION_CONTROLS


class Vmcs:
    """The data of one VMCS: every field by :class:`~vtx.facts.fields.Field`, and its state.

    Indexing reads and writes fields as the processor does, with no access check: what VMREAD
    and VMWRITE may do is a matter of :class:`vtx.cpu.Cpu`.

    Parameters
    ----------
    revision_id : int
        VMCS revision identifier, 31 bits.

    Attributes
    ----------
    values : dict of Field to int
        All fields, whether or not the CPU at hand has them.
    dirty : set of Field
        Fields that were set since the last VM entry that loaded this VMCS; all of them in one
        that was never entered.
    shadow : bool
        This is a shadow VMCS: VMREAD and VMWRITE may use it, VM entry may not.
    launched : bool
        Launch state: launched (True) or clear.
    session : int
        Which session of VMX operation launched it: VMRESUME can tell a VMXOFF in between.
    abort_indicator : int
        What the region says about a VMX abort; 0 for none.
    """

    __slots__ = (
        "abort_indicator",
        "dirty",
        "judged",
        "launched",
        "quick",
        "revision_id",
        "session",
        "shadow",
        "synced",
        "values",
    )

    def __init__(self, revision_id: int = 0) -> None:
        self.revision_id = revision_id
        self.shadow = False
        self.launched = False
        self.session = 0
        self.abort_indicator = 0
        self.values: dict[int, int] = dict.fromkeys(_FIELD_ORDER, 0)
        self.dirty: set[int] = set(_FIELD_ORDER)
        #: What the last VM entry and VM exit established between this VMCS and the registers;
        #: belongs to :mod:`vtx.rules.transitions`.
        self.synced: object | None = None
        #: What :mod:`vtx.rules.check` knows of this VMCS from its last successful VM entry.
        self.judged: object | None = None
        #: What :mod:`vtx.nonroot.quick` knows of it from round trips that changed nothing but RIP.
        self.quick: object | None = None

    def __getitem__(self, field: int) -> int:
        try:
            return self.values[field]
        except KeyError:
            raise _no_field(field) from None

    def __setitem__(self, field: int, value: int) -> None:
        try:
            self.values[field] = value & _MASKS[field]
        except KeyError:
            raise _no_field(field) from None
        except TypeError:
            raise UsageError(f"a VMCS field holds an int, not {value!r}") from None
        self.dirty.add(field)

    def __repr__(self) -> str:
        kind = "shadow VMCS" if self.shadow else "VMCS"
        state = "launched" if self.launched else "clear"
        return f"<{kind} revision={self.revision_id:#x} {state} rip={self[Field.GUEST_RIP]:#x}>"

    def update(self, **fields: int) -> Self:
        """Set fields by name: ``vmcs.update(guest_rip=0x1000)``; return the VMCS itself.

        Raises
        ------
        UnknownName
            There is no such field; the nearest names are given.
        """
        for name, value in fields.items():
            self[find_field(name).field] = value
        return self

    # The control words as they act: 0 where the control that activates them is 0.

    @property
    def pin(self) -> int:
        """Pin-based VM-execution controls (:class:`~vtx.facts.controls.Pin`)."""
        return self[_PIN]

    @property
    def proc1(self) -> int:
        """Primary processor-based controls (:class:`~vtx.facts.controls.Proc1`)."""
        return self[_PROC1]

    @property
    def proc2(self) -> int:
        """Secondary processor-based controls, 0 if not activated."""
        if self[_PROC1] & 0x8000_0000:
            return self[_PROC2]
        return 0

    @property
    def proc3(self) -> int:
        """Tertiary processor-based controls, 0 if not activated."""
        if self[_PROC1] & Proc1.ACTIVATE_TERTIARY_CONTROLS:
            return self[_PROC3]
        return 0

    @property
    def exit1(self) -> int:
        """Primary VM-exit controls (:class:`~vtx.facts.controls.Exit1`)."""
        return self[_EXIT1]

    @property
    def exit2(self) -> int:
        """Secondary VM-exit controls, 0 if not activated."""
        if self[_EXIT1] & Exit1.ACTIVATE_SECONDARY_CONTROLS:
            return self[_EXIT2]
        return 0

    @property
    def entry(self) -> int:
        """VM-entry controls (:class:`~vtx.facts.controls.Entry`)."""
        return self[_ENTRY]

    @property
    def vm_functions(self) -> int:
        """VM-function controls, 0 if "enable VM functions" is 0."""
        if self.proc2 & 0x2000:
            return self[_VM_FUNCTIONS]
        return 0

    @property
    def ia32e_guest(self) -> bool:
        """Whether VM entry enters IA-32e mode."""
        return bool(self[_ENTRY] & Entry.IA32E_MODE_GUEST)

    # The region in memory.

    def to_bytes(self, held: frozenset[int] | tuple[int, ...] = _FIELD_ORDER) -> bytes:
        """Return the 4096 bytes of this VMCS's region (parameters: :meth:`content`)."""
        return self.content(held).ljust(REGION_BYTES, b"\0")

    def content(self, held: frozenset[int] | tuple[int, ...] = _FIELD_ORDER) -> bytes:
        """Return the bytes of the region that are used, from its beginning.

        Parameters
        ----------
        held : frozenset or tuple of Field
            The fields that the region holds; those that a CPU has
            (:attr:`vtx.machine.shape.Shape.fields`) fit into the bytes that it reports.
        """
        layout = _layout(held)
        first = self.revision_id | (SHADOW_BIT if self.shadow else 0)
        state = (first, self.abort_indicator, _FORMAT, self.launched, self.session)
        values = self.values
        packed = layout.values.pack(*[values[field] for field in layout.fields])
        return _HEADER.pack(*state, layout.present) + packed

    @classmethod
    def from_bytes(cls, region: bytes) -> Vmcs:
        """Return the VMCS that is in a region.

        A region of which software prepared only the first word holds fields that are all 0, and
        its launch state is clear.

        Raises
        ------
        InputError
            The region has not 4096 bytes.
        """
        if len(region) != REGION_BYTES:
            raise InputError(f"a VMCS region has {REGION_BYTES} bytes, not {len(region)}")
        first, abort_indicator, form, launched, session, present = _HEADER.unpack_from(region)
        vmcs = cls(first & ~SHADOW_BIT & MASK32)
        vmcs.shadow = bool(first & SHADOW_BIT)
        vmcs.abort_indicator = abort_indicator
        layout = _layout_of(present) if form == _FORMAT else None
        if layout is not None:
            vmcs.launched = launched == 1
            vmcs.session = session
            vmcs.values.update(
                zip(layout.fields, layout.values.unpack_from(region, _HEADER.size), strict=True)
            )
        return vmcs

    def copy(self) -> Vmcs:
        """Return a VMCS of equal content."""
        return Vmcs.from_bytes(self.to_bytes())

    def _repr_html_(self) -> str:
        """Return the fields that are not 0 as notebooks show them."""
        from vtx.machine.html_table import html_table

        rows = [
            [info.sdm_name, f"{int(field):#x}", f"{self.values[field]:#x}"]
            for field, info in FIELDS.items()
            if self.values[field]
        ]
        state = "launched" if self.launched else "clear"
        kind = "Shadow VMCS" if self.shadow else "VMCS"
        title = f"{kind}, {state}, revision {self.revision_id:#x}: fields that are not 0"
        return html_table(title, ["field", "encoding", "value"], rows, figures=[1, 2])

    def fields(self) -> Iterable[tuple[Field, int]]:
        """Return pairs of field and value, in the order of the field table."""
        return ((field, self.values[field]) for field in _FIELD_ORDER)

    @classmethod
    def for_64bit_guest(
        cls,
        shape: Shape | None = None,
        *,
        guest_base: int | None = None,
        user: bool = False,
        processor: int = 0,
    ) -> Vmcs:
        """Return a VMCS from which a 64-bit guest can be launched.

        It describes the guest that :class:`vtx.machine.image.GuestImage` puts into memory. HLT,
        all I/O and MSR accesses, external interrupts and NMIs cause VM exits; EPT and VPID are
        used where the CPU has them. The EPT pointer is left 0 for whoever makes the tables.

        Parameters
        ----------
        shape : Shape, optional
            The CPU whose capability MSRs say which controls are allowed; by default one that has
            EPT and VPID and allows every setting used here.
        guest_base : int, optional
            Guest-physical address of the guest's image; by default 0 under EPT, and
            :data:`vtx.machine.image.GUEST_BASE` without it.
        user : bool
            Start at privilege level 3 instead of 0.
        processor : int
            Logical processor: each has its own stacks and task-state segment.
        """
        from vtx.machine.vmcs_presets import fill_64bit_guest

        vmcs = cls(shape.revision_id if shape is not None else 0)
        fill_64bit_guest(vmcs, shape, guest_base=guest_base, user=user, processor=processor)
        return vmcs
