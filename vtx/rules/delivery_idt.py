"""The way through the guest's IDT: in IA-32e mode here, in the other modes by their own modules.

SDM, "Exception and Interrupt Handling in 64-bit Mode". Nothing in the
registers changes until every access has succeeded, so that a fault leaves the guest where the event
found it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vtx.bits import MASK64, bit
from vtx.errors import GuestFault
from vtx.machine.registers import AccessRights, Cr0, Efer, Rflags, Segment
from vtx.rules.delivery_protected import through_protected_idt
from vtx.rules.delivery_real import (
    is_redirected,
    through_real_mode_table,
    through_redirected_table,
)
from vtx.rules.delivery_segments import Descriptor, mark_accessed, read_descriptor
from vtx.rules.execution_context import is_linear_address, refresh_privilege
from vtx.rules.execution_memory import read, write
from vtx.rules.injected import EventType

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.rules.delivery import Event

__all__ = ["code_segment", "through_idt"]

_TS, _NP, _SS, _GP = 10, 11, 12, 13
_GATE_BYTES = 16
#: What delivery pushes, from the lowest address: RIP, CS, RFLAGS, RSP, SS.
_FRAME = struct.Struct("<5Q")
_INTERRUPT_GATE, _TRAP_GATE = 14, 15
_IN_IDT = 2
#: Offsets into the 64-bit TSS (SDM, "Task Management in 64-bit Mode").
_TSS_RSP0, _TSS_IST1 = 4, 36
_CLEARED = Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM
#: Access rights of SS when it becomes null on the way to a more privileged stack.
_NULL_SS_RIGHTS = int(AccessRights.UNUSABLE)


class _Gate(NamedTuple):
    offset: int
    selector: int
    ist: int
    kind: int
    dpl: int
    present: int


def through_idt(processor: Processor, event: Event, rf: int) -> None:
    """Take the guest to the first instruction of the handler of `event`.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    event : Event
        What is delivered.
    rf : int
        RF of the RFLAGS image on the stack.

    Raises
    ------
    GuestFault
        A fault during delivery.
    ExitTaken
        A VM exit during delivery; through a task gate the attempted task switch.
    """
    regs = processor.regs
    if not regs.efer & Efer.LMA:
        _outside_ia32e_mode(processor, event, rf)
        return
    gate = _checked_gate(processor, event)
    code = code_segment(processor, gate.selector, event.external)
    cpl = regs.cpl
    conforming = bool(code.value >> 40 & 4)
    new_cpl = cpl if conforming else code.dpl
    stack = _stack_pointer(processor, gate, new_cpl, event)
    frame = _frame(processor, event, rf)
    if not is_linear_address(processor, gate.offset):
        raise GuestFault(_GP, event.external, "the handler's address is not canonical")
    _push(processor, stack, frame, new_cpl)
    mark_accessed(processor, code)
    regs.rsp = stack - len(frame) & MASK64
    regs.rip = gate.offset
    ss = regs.ss
    if new_cpl != cpl:
        ss = Segment(new_cpl, 0, 0, _NULL_SS_RIGHTS | new_cpl << 5)
    regs.system = regs.system.with_code_and_stack(code.segment(gate.selector & ~3 | new_cpl), ss)
    regs.rflags &= ~_CLEARED
    if gate.kind == _INTERRUPT_GATE:
        regs.rflags &= ~Rflags.IF
    processor.pushed_bytes = 8
    refresh_privilege(processor)


def _outside_ia32e_mode(processor: Processor, event: Event, rf: int) -> None:
    """Take the way of the guest's mode: real-address, virtual-8086 or protected mode."""
    regs = processor.regs
    if not regs.cr0 & Cr0.PE:
        through_real_mode_table(processor, event)
        return
    if (
        regs.rflags & Rflags.VM
        and event.type == EventType.SOFTWARE_INTERRUPT
        and is_redirected(processor, event)
    ):
        through_redirected_table(processor, event)
        return
    through_protected_idt(processor, event, rf)


def _checked_gate(processor: Processor, event: Event) -> _Gate:
    """Read the event's gate and check it, in the manual's order."""
    regs = processor.regs
    error = event.vector << 3 | _IN_IDT | event.external
    offset = event.vector * _GATE_BYTES
    idtr = regs.system.idtr
    if offset + _GATE_BYTES - 1 > idtr.limit:
        raise GuestFault(_GP, error, f"vector {event.vector} is beyond the IDT")
    raw = read(processor, idtr.base + offset, _GATE_BYTES, supervisor=True, delivery=True)
    gate = _decode_gate(int.from_bytes(raw, "little"))
    if gate.kind not in (_INTERRUPT_GATE, _TRAP_GATE):
        raise GuestFault(_GP, error, f"gate {event.vector} is no 64-bit interrupt or trap gate")
    checks_dpl = event.type in (EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION)
    if checks_dpl and gate.dpl < regs.cpl:
        raise GuestFault(_GP, error, f"gate {event.vector} is not for CPL {regs.cpl}")
    if not gate.present:
        raise GuestFault(_NP, error, f"gate {event.vector} is not present")
    return gate


@lru_cache
def _decode_gate(raw: int) -> _Gate:
    offset = raw & 0xFFFF | (raw >> 48 & 0xFFFF) << 16 | (raw >> 64 & 0xFFFF_FFFF) << 32
    return _Gate(
        offset,
        raw >> 16 & 0xFFFF,
        raw >> 32 & 7,
        raw >> 40 & 0x1F,
        raw >> 45 & 3,
        raw >> 47 & 1,
    )


def code_segment(processor: Processor, selector: int, external: int) -> Descriptor:
    """Return the 64-bit code segment that a gate names, checked in the manual's order."""
    if not selector & ~3:
        raise GuestFault(_GP, external, "the gate's code selector is null")
    descriptor = read_descriptor(processor, selector, _GP, external, delivery=True)
    error = selector & ~3 | external
    wrong = _wrong_code_segment(descriptor, processor.regs.cpl)
    if wrong is not None:
        vector, what = wrong
        raise GuestFault(vector, error, f"the code segment {selector:#x} of the handler {what}")
    return descriptor


@lru_cache
def _wrong_code_segment(descriptor: Descriptor, cpl: int) -> tuple[int, str] | None:
    """Return the exception that the code segment of a gate raises, and why; None if it is good."""
    value = descriptor.value
    is_code = bit(value, 44) and bit(value, 43)
    if not is_code or descriptor.dpl > cpl:
        return _GP, "is no code segment for it"
    if not bit(value, 47):
        return _NP, "is not present"
    return (_GP, "is not 64-bit") if not bit(value, 53) or bit(value, 54) else None


def _stack_pointer(processor: Processor, gate: _Gate, new_cpl: int, event: Event) -> int:
    """Return the stack pointer of the handler before the frame, aligned to 16 bytes."""
    regs = processor.regs
    if gate.ist:
        offset = _TSS_IST1 + 8 * (gate.ist - 1)
    elif new_cpl != regs.cpl:
        offset = _TSS_RSP0 + 8 * new_cpl
    else:
        return regs.rsp & ~0xF
    tr = regs.system.tr
    if offset + 7 > tr.limit:
        error = tr.selector & ~3 | event.external
        raise GuestFault(_TS, error, "the TSS has no such stack pointer")
    raw = read(processor, tr.base + offset, 8, supervisor=True, delivery=True)
    stack = int.from_bytes(raw, "little")
    if not is_linear_address(processor, stack):
        raise GuestFault(_SS, event.external, "the handler's stack pointer is not canonical")
    return stack & ~0xF


def _frame(processor: Processor, event: Event, rf: int) -> bytes:
    """Return what delivery pushes, lowest address first."""
    regs = processor.regs
    rip = regs.rip + (event.instruction_length if event.is_software else 0)
    rflags = regs.rflags & ~Rflags.RF | (Rflags.RF if rf else 0)
    system = regs.system
    rsp = regs.rsp & MASK64
    frame = _FRAME.pack(rip & MASK64, system.cs.selector, rflags, rsp, system.ss.selector)
    code = event.error_code
    return frame if code is None else (code & MASK64).to_bytes(8, "little") + frame


def _push(processor: Processor, stack: int, frame: bytes, new_cpl: int) -> None:
    """Write the frame below `stack`, as the handler's privilege level."""
    bottom = stack - len(frame) & MASK64
    if not is_linear_address(processor, bottom):
        raise GuestFault(_SS, 0, "the handler's stack is not canonical")
    write(processor, bottom, frame, supervisor=new_cpl < 3, delivery=True)
