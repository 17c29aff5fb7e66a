"""Breakpoints in DR0 to DR3: on instructions (faults), on data and ports (traps).

SDM, "Debug Registers", "Breakpoint Field Recognition", "Debug Exceptions". Matches are looked for
only while DR7 enables a breakpoint; accesses by the processor to its own tables do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vtx.bits import MASK64
from vtx.errors import GuestFault
from vtx.machine.mmu import Access
from vtx.machine.registers import Cr4, Interruptibility, Rflags
from vtx.rules.exiting_faults import DB
from vtx.rules.exiting_information import io_port

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.registers import Registers

__all__ = ["ARMED", "before_instruction", "conditions_of"]

#: L and G bits of DR7: some breakpoint is enabled.
ARMED = 0xFF
_ENABLED_BREAKPOINT = 1 << 12
_EXECUTE, _WRITE, _IO, _READ_OR_WRITE = range(4)
_LENGTHS = (1, 2, 8, 4)
_PORTS = frozenset({"in", "out", "ins", "outs"})
_WRITES = (Access.STORE, Access.MODIFY)


def _breakpoints(regs: Registers) -> Iterator[tuple[int, int, int, int]]:
    """Yield condition bit, kind, first byte and length of every enabled breakpoint."""
    dr7 = regs.dr7
    for number, address in enumerate((regs.dr0, regs.dr1, regs.dr2, regs.dr3)):
        if dr7 >> 2 * number & 3:
            field = dr7 >> 16 + 4 * number & 0xF
            length = _LENGTHS[field >> 2]
            yield 1 << number, field & 3, address & -length & MASK64, length


def before_instruction(processor: Processor, linear: int) -> None:
    """Begin to watch an instruction at a linear address.

    Raises
    ------
    GuestFault
        #DB: an instruction breakpoint is there, and neither RF nor blocking by MOV SS holds it off.
    """
    regs = processor.regs
    processor.watched = []
    if regs.rflags & Rflags.RF or regs.interruptibility_state & Interruptibility.MOV_SS:
        return
    conditions = sum(
        bit
        for bit, kind, address, _ in _breakpoints(regs)
        if kind == _EXECUTE and address == linear
    )
    if conditions:
        raise GuestFault(DB, None, f"breakpoint at {linear:#x}", conditions)


def conditions_of(processor: Processor, instruction: Instruction) -> int:
    """Return the debug conditions that a completed instruction leaves pending; end watching it.

    Returns
    -------
    int
        In the format of the pending debug exceptions: breakpoints 3:0, 12 one was enabled.
    """
    accesses, processor.watched = processor.watched or [], None
    regs = processor.regs
    met = 0
    for bit, kind, address, length in _breakpoints(regs):
        if kind == _IO:
            hit = _touches_port(processor, instruction, address, length)
        else:
            hit = kind != _EXECUTE and any(
                linear < address + length
                and address < linear + size
                and (kind == _READ_OR_WRITE or access in _WRITES)
                for linear, size, access in accesses
            )
        met |= bit if hit else 0
    return met | _ENABLED_BREAKPOINT if met else 0


def _touches_port(
    processor: Processor, instruction: Instruction, address: int, length: int
) -> bool:
    """Tell whether an instruction accesses the ports of an I/O breakpoint; needs CR4.DE."""
    if instruction.name not in _PORTS or not processor.regs.cr4 & Cr4.DE:
        return False
    port = io_port(processor, instruction)
    return port < address + length and address < port + instruction.operands["size"]
