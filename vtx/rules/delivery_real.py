"""Interrupts of 8086 programs: the interrupt-vector table, in real-address and virtual-8086 mode.

SDM, operation of INT n (REAL-ADDRESS-MODE); "Class 3 - Software Interrupt Handling Methods"
(virtual-8086 mode extensions); "Details of Event Injection".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, bit
from vtx.errors import GuestFault
from vtx.machine.registers import Cr4, Rflags
from vtx.rules.delivery_segments import real_mode_segment
from vtx.rules.execution_memory import read
from vtx.rules.stack import Stack

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.rules.delivery import Event

__all__ = ["is_redirected", "through_real_mode_table", "through_redirected_table"]

_GP = 13
_ENTRY_BYTES = 4
_IO_MAP_BASE = 0x66
_REDIRECTION_BYTES = 32
_LEAST_TSS_LIMIT = 0x67


def through_real_mode_table(processor: Processor, event: Event) -> None:
    """Take a guest in real-address mode to its handler: no error code is pushed."""
    regs = processor.regs
    offset = event.vector * _ENTRY_BYTES
    if offset + _ENTRY_BYTES - 1 > regs.idtr.limit:
        raise GuestFault(_GP, None, f"vector {event.vector} is beyond the table")
    _enter(processor, event, regs.idtr.base + offset & MASK32, regs.rflags & 0xFFFF)
    regs.rflags &= ~(Rflags.IF | Rflags.TF | Rflags.AC | Rflags.RF)


def is_redirected(processor: Processor, event: Event) -> bool:
    """Tell whether INT n of a virtual-8086 task goes to the 8086 program's own handler.

    Raises
    ------
    GuestFault
        #GP(0): IOPL is below 3 and the interrupt goes to the protected-mode handler. An injected
        one cannot fault for IOPL.
    """
    regs = processor.regs
    if regs.cr4 & Cr4.VME and not _redirection_bit(processor, event.vector):
        return True
    if regs.rflags & Rflags.IOPL != Rflags.IOPL and not event.injected:
        raise GuestFault(_GP, 0, f"INT {event.vector} in virtual-8086 mode with IOPL below 3")
    return False


def _redirection_bit(processor: Processor, vector: int) -> int:
    """Return the vector's bit in the software-interrupt redirection bitmap of the TSS."""
    task = processor.regs.tr
    if task.limit < _LEAST_TSS_LIMIT:
        raise GuestFault(_GP, 0, "the TSS has no redirection bitmap")
    raw = read(processor, task.base + _IO_MAP_BASE & MASK32, 2, supervisor=True, delivery=True)
    offset = int.from_bytes(raw, "little") - _REDIRECTION_BYTES + (vector >> 3)
    if not 0 <= offset <= task.limit:
        raise GuestFault(_GP, 0, "the redirection bitmap is beyond the TSS")
    raw = read(processor, task.base + offset & MASK32, 1, supervisor=True, delivery=True)
    return bit(raw[0], vector & 7)


def through_redirected_table(processor: Processor, event: Event) -> None:
    """Take a virtual-8086 task to its own handler, through the table at linear address 0."""
    regs = processor.regs
    flags = regs.rflags & 0xFFFF
    full = regs.rflags & Rflags.IOPL == Rflags.IOPL
    if not full:
        flags = (flags | Rflags.IOPL) & ~Rflags.IF
        flags |= Rflags.IF if regs.rflags & Rflags.VIF else 0
    _enter(processor, event, event.vector * _ENTRY_BYTES, flags)
    regs.rflags &= ~(Rflags.TF | Rflags.RF | (Rflags.IF if full else Rflags.VIF))


def _enter(processor: Processor, event: Event, entry: int, flags: int) -> None:
    """Push FLAGS, CS and IP, and go where the table's entry at linear address `entry` says."""
    regs = processor.regs
    raw = read(processor, entry, _ENTRY_BYTES, supervisor=not regs.cpl, delivery=True)
    ip, cs = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:], "little")
    rip = regs.rip + (event.instruction_length if event.is_software else 0)
    stack = Stack(processor, delivery=True)
    for value in (flags, regs.cs.selector, rip):
        stack.push(value, 2)
    segment = real_mode_segment(processor, regs.cs, cs, code=True)
    if ip > segment.limit:
        raise GuestFault(_GP, 0 if regs.cr0 & 1 else None, "the handler is beyond its segment")
    regs.rsp, regs.rip = stack.pointer, ip
    regs.cs = segment
    processor.pushed_bytes = 2
