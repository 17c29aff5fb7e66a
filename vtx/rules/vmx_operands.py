"""Operands of VMX instructions: in memory, in a register, or already read.

A caller in Python mostly has the value at hand and passes an ``int``. Where a step of the manual
is about the operand itself (a register where memory must be, a fault on reading it), it passes a
:class:`MemoryOperand` or a :class:`RegisterOperand`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx.bits import MASK32, MASK64, is_canonical
from vtx.errors import GuestFault, UsageError
from vtx.machine.mmu import Access
from vtx.machine.registers import GPR_NAMES
from vtx.rules import execution_memory
from vtx.rules.transitions_context import translate

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.registers import Segment

__all__ = [
    "MemoryOperand",
    "Operand",
    "RegisterOperand",
    "is_register",
    "mode_mask",
    "read_memory",
    "read_operand",
    "write_memory",
]

_GP, _SS_FAULT = 13, 12
_PAGE = 4096
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


class MemoryOperand(NamedTuple):
    """An operand in memory.

    Attributes
    ----------
    offset : int
        Effective address in the segment; without a segment base, the linear address.
    segment : str
        ``"ds"``, ``"ss"`` ...
    """

    offset: int
    segment: str = "ds"


class RegisterOperand(NamedTuple):
    """An operand in a general-purpose register, by number (0 RAX ... 15 R15)."""

    number: int


Operand = int | MemoryOperand | RegisterOperand


def is_register(operand: Operand) -> bool:
    """Tell whether an operand is a register, where the encoding has only a memory form."""
    return isinstance(operand, RegisterOperand)


def mode_mask(processor: Processor) -> int:
    """Return the mask of a general-purpose operand: 64 bits in 64-bit mode, else 32."""
    return MASK64 if processor.regs.in_64bit_mode else MASK32


def read_operand(processor: Processor, operand: Operand, size: int) -> int:
    """Return the value of an operand of `size` bytes.

    Raises
    ------
    GuestFault
        #GP, #SS or #PF on reading memory.
    UsageError
        It is no operand.
    """
    if isinstance(operand, int):
        return operand
    if isinstance(operand, RegisterOperand):
        value: int = getattr(processor.regs, GPR_NAMES[operand.number])
        return value & mode_mask(processor)
    if not isinstance(operand, MemoryOperand):
        raise UsageError(f"an operand is an int, a MemoryOperand or a RegisterOperand: {operand!r}")
    return int.from_bytes(read_memory(processor, operand, size), "little")


def read_memory(processor: Processor, operand: MemoryOperand, size: int) -> bytes:
    """Return `size` bytes of an operand in memory (raises as :func:`read_operand`)."""
    return b"".join(
        processor.memory.read(address, length)
        for address, length in _pieces(processor, operand, size, write=False)
    )


def write_memory(processor: Processor, operand: MemoryOperand, value: int, size: int) -> None:
    """Write `size` bytes to an operand in memory (raises as :func:`read_operand`)."""
    data = value.to_bytes(size, "little")
    for address, length in _pieces(processor, operand, size, write=True):
        processor.memory.write(address, data[:length])
        data = data[length:]


def _pieces(
    processor: Processor, operand: MemoryOperand, size: int, *, write: bool
) -> list[tuple[int, int]]:
    """Return the operand's bytes as pairs of host-physical address and length, by page."""
    linear = _linear(processor, operand, size, write=write)
    pieces = []
    while size:
        length = min(size, _PAGE - linear % _PAGE)
        pieces.append((_physical(processor, linear, write=write), length))
        linear += length
        size -= length
    return pieces


def _physical(processor: Processor, linear: int, *, write: bool) -> int:
    """Return the host-physical address of a linear address, in either mode of VMX operation."""
    if processor.non_root:
        return execution_memory.translate(processor, linear, Access.STORE if write else Access.LOAD)
    return translate(processor, linear, write=write)


def _linear(processor: Processor, operand: MemoryOperand, size: int, *, write: bool) -> int:
    """Return the linear address of an operand, after the checks on segment and canonicality."""
    regs = processor.regs
    fault = _SS_FAULT if operand.segment == "ss" else _GP
    segment: Segment = getattr(regs, operand.segment)
    if not regs.in_64bit_mode:
        _check_segment(segment, operand, size, write=write, fault=fault)
        return segment.base + operand.offset & MASK32
    base = segment.base if operand.segment in ("fs", "gs") else 0
    linear = base + operand.offset & MASK64
    width = 57 if regs.cr4 & 0x1000 else 48
    if not (is_canonical(linear, width) and is_canonical(linear + size - 1 & MASK64, width)):
        raise GuestFault(fault, 0, f"linear address {linear:#x} is not canonical")
    return linear


def _check_segment(
    segment: Segment, operand: MemoryOperand, size: int, *, write: bool, fault: int
) -> None:
    """Check usability, type and limit of a segment outside 64-bit mode."""
    if not segment.usable:
        raise GuestFault(fault, 0, f"{operand.segment.upper()} is unusable")
    code = segment.type & 8
    if write and (code or not segment.type & 2):
        raise GuestFault(_GP, 0, f"{operand.segment.upper()} is not writable")
    if not write and code and not segment.type & 2:
        raise GuestFault(_GP, 0, f"{operand.segment.upper()} is not readable")
    expands_down = not code and segment.type & 4
    last = operand.offset + size - 1
    top = MASK32 if segment.access_rights & 0x4000 else 0xFFFF
    if expands_down:
        inside = operand.offset > segment.limit and last <= top
    else:
        inside = last <= segment.limit
    if not inside:
        raise GuestFault(fault, 0, f"the operand is outside the limit of {operand.segment.upper()}")
