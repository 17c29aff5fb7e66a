"""LLDT and LTR: the system segment that a selector names in the GDT, or the fault that it raises.

The instructions and a VMM that emulates them read the GDT in different ways, and load different
registers; what a descriptor means is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vtx.bits import MASK32, bit, is_canonical
from vtx.errors import GuestFault
from vtx.machine.registers import Segment
from vtx.rules.delivery_segments import Descriptor
from vtx.rules.exiting_faults import GP, NP

__all__ = ["BUSY", "Gdt", "ldt_segment", "tss_segment"]

#: The bit of a TSS's type that says it is busy; it is bit 41 of the descriptor, too.
BUSY = 2
_LDT, _TSS_16BIT, _TSS = 2, 1, 9


class Gdt(NamedTuple):
    """The global descriptor table, as a selector is looked up in it.

    Attributes
    ----------
    limit : int
        Offset of its last byte.
    wide : bool
        System descriptors have 16 bytes (IA-32e mode).
    linear_bits : int
        Width of linear addresses.
    read : callable
        ``read(offset, size)`` returns bytes of the table.
    """

    limit: int
    wide: bool
    linear_bits: int
    read: Callable[[int, int], bytes]


def ldt_segment(gdt: Gdt, selector: int) -> Segment:
    """Return LDTR as LLDT loads it; a null selector makes it unusable.

    Raises
    ------
    GuestFault
        #GP or #NP with the selector.
    """
    if not selector & ~3:
        return Segment(selector)
    return _load(gdt, selector, frozenset({_LDT}), "LLDT")


def tss_segment(gdt: Gdt, selector: int) -> Segment:
    """Return TR as LTR loads it, busy; the caller marks the descriptor (raises as above)."""
    if not selector & ~3:
        raise GuestFault(GP, 0, "LTR of a null selector")
    kinds = frozenset({_TSS} if gdt.wide else {_TSS, _TSS_16BIT})
    segment = _load(gdt, selector, kinds, "LTR")
    return segment._replace(access_rights=segment.access_rights | BUSY)


def _load(gdt: Gdt, selector: int, kinds: frozenset[int], name: str) -> Segment:
    error, offset = selector & ~3, selector & ~7
    if selector & 4:
        raise GuestFault(GP, error, f"{name} of a selector of the LDT")
    if offset + (15 if gdt.wide else 7) > gdt.limit:
        raise GuestFault(GP, error, f"{name}: selector {selector:#x} is beyond the GDT")
    value = int.from_bytes(gdt.read(offset, 8), "little")
    if value >> 40 & 0x1F not in kinds:
        raise GuestFault(GP, error, f"{name}: selector {selector:#x} names no such segment")
    high = int.from_bytes(gdt.read(offset + 8, 8), "little") if gdt.wide else 0
    segment = Descriptor(value, offset).segment(selector)
    base = segment.base | (high & MASK32) << 32
    if high >> 40 & 0x1F or not is_canonical(base, gdt.linear_bits):
        raise GuestFault(GP, error, f"{name}: the descriptor of {selector:#x} is malformed")
    if not bit(value, 47):
        raise GuestFault(NP, error, f"{name}: the segment {selector:#x} is not present")
    return segment._replace(base=base)
