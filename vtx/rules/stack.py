"""Stacks: pushes and pops through any SS, in any mode.

In 64-bit mode SS adds nothing and RSP is 64 bits wide; elsewhere the offset has the width that SS
gives it (B flag), is tested against the segment's limit, and is added to its base (SDM, "Stack
Segment", "Limit Checking").
"""

from __future__ import annotations

from struct import unpack
from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64
from vtx.errors import GuestFault
from vtx.machine.registers import AccessRights, Segment
from vtx.rules.execution_memory import read, write

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.registers import Registers

__all__ = ["Stack", "operand_size", "within_limit"]

_SS = 12
_BIG = int(AccessRights.DB)
_MASK16 = 0xFFFF
#: Letters of :mod:`struct` by the bytes of an item.
_FORMATS = {2: "H", 4: "I", 8: "Q"}


def within_limit(segment: Segment, offset: int, size: int) -> bool:
    """Tell whether `size` bytes at `offset` lie in a segment, expand-down ones included."""
    last = offset + size - 1
    if segment.limit == MASK32 and segment.type & 0xC != 0x4:
        # Beyond a limit of FFFFFFFFH an access may or may not fault ("Limit Checking"): it wraps.
        return True
    if segment.type & 0xC == 0x4:  # expand-down data: what is above the limit
        top = MASK32 if segment.access_rights & _BIG else _MASK16
        return offset > segment.limit and last <= top
    return last <= segment.limit


def operand_size(regs: Registers, operands: object = None, *, wide: bool = True) -> int:
    """Return the bytes that an instruction of the stack moves by default in the current mode.

    Parameters
    ----------
    regs : Registers
        Registers of the guest.
    operands : mapping, optional
        Operands of the instruction: `operand_size` overrides the default.
    wide : bool
        The default of 64-bit mode is 8 bytes.
    """
    given = operands.get("operand_size") if isinstance(operands, dict) else None
    if given is not None:
        return int(given)
    if regs.in_64bit_mode:
        return 8 if wide else 4
    return 4 if regs.system.cs.access_rights & _BIG else 2


class Stack:
    """A stack while an event, a return or a stack instruction uses it.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    segment : Segment, optional
        SS; the current one by default.
    pointer : int, optional
        Where its top is; the current RSP by default.
    cpl : int, optional
        The privilege level of the accesses; the current one by default.
    error : int
        Error code of the #SS that an access beyond the segment raises.
    delivery : bool
        The accesses deliver an event.

    Attributes
    ----------
    pointer : int
        The top of the stack, after what was pushed and popped.
    """

    __slots__ = ("_delivery", "_error", "_long", "_mask", "_processor", "_supervisor",
                 "pointer", "segment")  # fmt: skip

    def __init__(
        self,
        processor: Processor,
        segment: Segment | None = None,
        pointer: int | None = None,
        *,
        cpl: int | None = None,
        error: int = 0,
        delivery: bool = False,
    ) -> None:
        regs = processor.regs
        self._processor = processor
        self.segment = regs.system.ss if segment is None else segment
        self.pointer = regs.rsp if pointer is None else pointer
        # Reads and writes are at the current privilege level unless they are said to be above it.
        self._supervisor = cpl is not None and cpl < 3 and regs.cpl == 3
        self._error = error
        self._delivery = delivery
        self._long = regs.in_64bit_mode
        if self._long:
            self._mask = MASK64
        else:
            self._mask = MASK32 if self.segment.access_rights & _BIG else _MASK16

    def linear(self, offset: int, size: int) -> int:
        """Return the linear address of `size` bytes at `offset`; #SS if they are not in SS."""
        if self._long:
            return offset
        segment = self.segment
        if not within_limit(segment, offset, size):
            raise GuestFault(_SS, self._error, f"stack offset {offset:#x} is beyond its segment")
        return segment.base + offset & MASK32

    def _pieces(self, offset: int, size: int) -> list[tuple[int, int, int]]:
        """Return linear addresses and the bytes of an item there: two where 32 bits wrap."""
        linear = self.linear(offset, size)
        below = MASK32 + 1 - linear
        if self._long or below >= size:
            return [(linear, 0, size)]
        return [(linear, 0, below), (0, below, size)]

    def push(self, value: int, size: int) -> None:
        """Push the low `size` bytes of `value`."""
        pointer = self.pointer
        top = pointer - size & self._mask
        content = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for linear, start, stop in self._pieces(top, size):
            write(
                self._processor,
                linear,
                content[start:stop],
                supervisor=self._supervisor,
                delivery=self._delivery,
            )
        self.pointer = pointer & ~self._mask | top

    def pop(self, size: int) -> int:
        """Pop `size` bytes."""
        pointer, mask = self.pointer, self._mask
        pieces = self._pieces(pointer & mask, size)
        raw = b"".join(read(self._processor, at, stop - start) for at, start, stop in pieces)
        self.pointer = pointer & ~mask | pointer + size & mask
        return int.from_bytes(raw, "little")

    def pop_several(self, size: int, count: int) -> list[int]:
        """Pop `count` items of `size` bytes; in 64-bit mode with one access."""
        if not self._long:
            return [self.pop(size) for _ in range(count)]
        raw = read(self._processor, self.pointer, size * count)
        self.pointer = self.pointer + size * count & MASK64
        return list(unpack(f"<{count}{_FORMATS[size]}", raw))

    def skip(self, size: int) -> None:
        """Move the top as if `size` bytes were popped."""
        self.pointer = self.pointer & ~self._mask | self.pointer + size & self._mask
