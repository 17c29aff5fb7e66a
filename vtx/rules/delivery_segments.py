"""Descriptors of code and data segments, as event delivery and returns read and load them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vtx.bits import bit
from vtx.errors import GuestFault
from vtx.machine.registers import AccessRights, Segment
from vtx.rules.execution_memory import read, write

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["Descriptor", "mark_accessed", "read_descriptor", "real_mode_segment"]

#: Access rights of every segment in virtual-8086 mode (SDM, "Checks on Guest Segment Registers").
_VIRTUAL_8086_RIGHTS = 0xF3
#: Type of an accessed, writable, expand-up data segment.
_WRITABLE_DATA = 3


class Descriptor(NamedTuple):
    """A code- or data-segment descriptor.

    Attributes
    ----------
    value : int
        Its 8 bytes.
    address : int
        Linear address it stands at.
    """

    value: int
    address: int

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.value >> 45 & 3

    def segment(self, selector: int) -> Segment:
        """Return the segment register that loading it gives: the descriptor is accessed then."""
        return _segment(self.value, selector)


@lru_cache
def _segment(value: int, selector: int) -> Segment:
    """Return what loading `selector` gives if `value` is its descriptor."""
    limit = value & 0xFFFF | value >> 32 & 0xF_0000
    if bit(value, 55):
        limit = limit << 12 | 0xFFF
    base = value >> 16 & 0xFF_FFFF | value >> 32 & 0xFF00_0000
    accessed = value >> 44 & 1  # of code and data segments; system segments have no such bit
    return Segment(selector, base, limit, value >> 40 & 0xF0FF | AccessRights.P | accessed)


def read_descriptor(
    processor: Processor, selector: int, vector: int, external: int, *, delivery: bool = False
) -> Descriptor:
    """Return the descriptor that `selector` names in the GDT or the LDT.

    Raises
    ------
    GuestFault
        Exception `vector` with the selector as its error code: it is beyond the table.
    """
    system = processor.regs.system
    error = selector & ~3 | external
    if selector & 4:
        if not system.ldtr.usable:
            raise GuestFault(vector, error, "there is no LDT")
        base, limit = system.ldtr.base, system.ldtr.limit
    else:
        base, limit = system.gdtr
    if (selector | 7) > limit:
        raise GuestFault(vector, error, f"selector {selector:#x} is beyond its table")
    address = base + (selector & ~7)
    raw = read(processor, address, 8, supervisor=True, delivery=delivery)
    return Descriptor(int.from_bytes(raw, "little"), address)


def mark_accessed(processor: Processor, descriptor: Descriptor, *, delivery: bool = True) -> None:
    """Set the accessed bit of the descriptor in memory, as loading a segment register does."""
    if not bit(descriptor.value, 40):
        byte = descriptor.value >> 40 & 0xFF | 1
        where = descriptor.address + 5
        write(processor, where, bytes([byte]), supervisor=True, delivery=delivery)


def real_mode_segment(
    processor: Processor, old: Segment, selector: int, *, code: bool = False
) -> Segment:
    """Return a segment register that real-address or virtual-8086 mode loads.

    In real-address mode limit and access rights stay what they were; but CS becomes a writable
    data segment (which is why VM entry allows its type there).
    """
    selector &= 0xFFFF
    if processor.regs.in_virtual_8086_mode:
        return Segment(selector, selector << 4, 0xFFFF, _VIRTUAL_8086_RIGHTS)
    rights = old.access_rights
    if code:
        rights = rights & ~AccessRights.TYPE | _WRITABLE_DATA
    return Segment(selector, selector << 4, old.limit, rights)
