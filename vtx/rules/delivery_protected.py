"""The way through the IDT outside IA-32e mode: protected mode and virtual-8086 mode.

SDM, operation of INT n/INTO/INT3/INT1 (PROTECTED-MODE); "Exception- and Interrupt-Handler
Procedures"; "Interrupt and Exception Handling in Virtual-8086 Mode". Gates are of 16 or 32 bits,
interrupt, trap or task gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx.bits import MASK32, bit
from vtx.errors import GuestFault
from vtx.facts.exits import ExitReason
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import UNUSABLE, AccessRights, Registers, Rflags, Segment
from vtx.rules.delivery_segments import Descriptor, mark_accessed, read_descriptor
from vtx.rules.execution_context import refresh_privilege
from vtx.rules.execution_memory import ExitTaken, read
from vtx.rules.injected import EventType
from vtx.rules.stack import Stack
from vtx.rules.task_switch import BY_GATE, check_task

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.rules.delivery import Event

__all__ = ["through_protected_idt"]

_TS, _NP, _SS, _GP = 10, 11, 12, 13
_IN_IDT = 2
_GATE_BYTES = 8
_TASK_GATE = 5
_INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32 = 6, 7, 14, 15
_INTERRUPT_GATES = (_INTERRUPT_16, _INTERRUPT_32)
_GATES = (_TASK_GATE, _INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32)
_CLEARED = Rflags.TF | Rflags.NT | Rflags.RF | Rflags.VM
#: A data segment register that holds a null selector.
_NULL = Segment(0, 0, 0, UNUSABLE)


class _Gate(NamedTuple):
    kind: int
    selector: int
    offset: int
    size: int


def through_protected_idt(processor: Processor, event: Event, rf: int) -> None:
    """Take the guest to its handler of `event`; raises as :func:`vtx.rules.delivery_idt`."""
    gate = _checked_gate(processor, event)
    if gate.kind == _TASK_GATE:
        qualification = check_task(processor, gate.selector, BY_GATE, event.external)
        raise ExitTaken(ExitInformation(ExitReason.TASK_SWITCH, qualification))
    regs = processor.regs
    code = _code_segment(processor, gate.selector, event.external)
    new_cpl = regs.cpl if bit(code.value, 42) else code.dpl
    if regs.rflags & Rflags.VM and new_cpl:
        error = gate.selector & ~3 | event.external
        raise GuestFault(_GP, error, "a virtual-8086 task is interrupted to level 0 only")
    stack = _stack(processor, event, new_cpl)
    segment = code.segment(gate.selector & ~3 | new_cpl)
    if gate.offset > segment.limit:
        raise GuestFault(_GP, event.external, "the handler is beyond its code segment")
    for value in _frame(regs, event, rf, outer=new_cpl != regs.cpl):
        stack.push(value, gate.size)
    mark_accessed(processor, code)
    _enter(processor, gate, segment, stack)


def _enter(processor: Processor, gate: _Gate, code: Segment, stack: Stack) -> None:
    """Load what delivery loads, once nothing can fault any more."""
    regs = processor.regs
    system = regs.system._replace(cs=code, ss=stack.segment)
    if regs.rflags & Rflags.VM:
        system = system._replace(es=_NULL, ds=_NULL, fs=_NULL, gs=_NULL)
    regs.system = system
    regs.rsp, regs.rip = stack.pointer & MASK32, gate.offset
    regs.rflags &= ~_CLEARED
    if gate.kind in _INTERRUPT_GATES:
        regs.rflags &= ~Rflags.IF
    processor.pushed_bytes = gate.size
    refresh_privilege(processor)


def _checked_gate(processor: Processor, event: Event) -> _Gate:
    """Read the event's gate and check it, in the manual's order."""
    regs = processor.regs
    error = event.vector << 3 | _IN_IDT | event.external
    offset = event.vector * _GATE_BYTES
    if offset + _GATE_BYTES - 1 > regs.idtr.limit:
        raise GuestFault(_GP, error, f"vector {event.vector} is beyond the IDT")
    where = regs.idtr.base + offset & MASK32
    entry = read(processor, where, _GATE_BYTES, supervisor=True, delivery=True)
    raw = int.from_bytes(entry, "little")
    kind = raw >> 40 & 0x1F
    if kind not in _GATES:
        raise GuestFault(_GP, error, f"gate {event.vector} is no interrupt, trap or task gate")
    checks_dpl = event.type in (EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION)
    if checks_dpl and raw >> 45 & 3 < regs.cpl:
        raise GuestFault(_GP, error, f"gate {event.vector} is not for CPL {regs.cpl}")
    if not bit(raw, 47):
        raise GuestFault(_NP, error, f"gate {event.vector} is not present")
    if kind & 8:
        return _Gate(kind, raw >> 16 & 0xFFFF, raw & 0xFFFF | raw >> 32 & 0xFFFF_0000, 4)
    return _Gate(kind, raw >> 16 & 0xFFFF, raw & 0xFFFF, 2)


def _code_segment(processor: Processor, selector: int, external: int) -> Descriptor:
    """Return the code segment that a gate names, checked in the manual's order."""
    if not selector & ~3:
        raise GuestFault(_GP, external, "the gate's code selector is null")
    descriptor = read_descriptor(processor, selector, _GP, external, delivery=True)
    error, value = selector & ~3 | external, descriptor.value
    if not (bit(value, 44) and bit(value, 43)) or descriptor.dpl > processor.regs.cpl:
        raise GuestFault(_GP, error, f"selector {selector:#x} is no code segment for the handler")
    if not bit(value, 47):
        raise GuestFault(_NP, error, f"the code segment {selector:#x} is not present")
    return descriptor


def _stack(processor: Processor, event: Event, new_cpl: int) -> Stack:
    """Return the handler's stack: the current one, or that of the TSS for an inner level."""
    regs, external = processor.regs, event.external
    if new_cpl == regs.cpl:
        return Stack(processor, error=external, delivery=True)
    selector, pointer = _pointer_in_tss(processor, new_cpl, external)
    if not selector & ~3:
        raise GuestFault(_TS, external, "the TSS has a null stack selector")
    error = selector & ~3 | external
    if selector & 3 != new_cpl:
        raise GuestFault(_TS, error, f"stack selector {selector:#x} is not for CPL {new_cpl}")
    descriptor = read_descriptor(processor, selector, _TS, external, delivery=True)
    value = descriptor.value
    is_writable_data = bit(value, 44) and not bit(value, 43) and bit(value, 41)
    if descriptor.dpl != new_cpl or not is_writable_data:
        raise GuestFault(_TS, error, f"selector {selector:#x} is no stack for CPL {new_cpl}")
    if not bit(value, 47):
        raise GuestFault(_SS, error, f"the stack segment {selector:#x} is not present")
    mark_accessed(processor, descriptor)
    segment = descriptor.segment(selector)
    if not segment.access_rights & AccessRights.DB:
        pointer = pointer & 0xFFFF | regs.rsp & MASK32 & ~0xFFFF  # only SP is loaded
    return Stack(processor, segment, pointer, cpl=new_cpl, error=error, delivery=True)


def _pointer_in_tss(processor: Processor, cpl: int, external: int) -> tuple[int, int]:
    """Return selector and offset of the stack that the TSS holds for privilege level `cpl`."""
    task = processor.regs.tr
    size = 4 if task.access_rights & 8 else 2
    offset = cpl * 2 * size + size
    if offset + size + 1 > task.limit:
        error = task.selector & ~3 | external
        raise GuestFault(_TS, error, "the TSS has no such stack pointer")
    where = task.base + offset & MASK32
    raw = read(processor, where, size + 2, supervisor=True, delivery=True)
    return int.from_bytes(raw[size:], "little"), int.from_bytes(raw[:size], "little")


def _frame(regs: Registers, event: Event, rf: int, *, outer: bool) -> list[int]:
    """Return what delivery pushes, first pushed first."""
    rip = regs.rip + (event.instruction_length if event.is_software else 0)
    rflags = regs.rflags & ~Rflags.RF | (Rflags.RF if rf else 0)
    system = regs.system
    values = [rflags, system.cs.selector, rip]
    if outer:
        values = [system.ss.selector, regs.rsp, *values]
    if regs.rflags & Rflags.VM:
        segments = (system.gs, system.fs, system.ds, system.es)
        values = [*(segment.selector for segment in segments), *values]
    return values if event.error_code is None else [*values, event.error_code]
