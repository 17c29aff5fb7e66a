"""IRET in every mode: what it unblocks, what it pops, what it tests, and what it loads.

SDM, operation of IRET/IRETD/IRETQ; "Information About NMI Unblocking Due to IRET".
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vtx.bits import MASK32, bit
from vtx.errors import GuestFault
from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4, Interruptibility, Registers, Rflags, Segment
from vtx.rules.delivery import exception, fault_event
from vtx.rules.delivery_segments import (
    Descriptor,
    mark_accessed,
    read_descriptor,
    real_mode_segment,
)
from vtx.rules.execution_context import is_linear_address, refresh_privilege
from vtx.rules.execution_flags import load_extended_8086_flags, load_returned_flags
from vtx.rules.execution_memory import ExitTaken
from vtx.rules.exiting_faults import GP, NP, SS
from vtx.rules.stack import Stack, operand_size
from vtx.rules.task_switch import by_iret

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS", "iret", "unblock_nmis"]

_NMI_UNBLOCKING = 1 << 12
_REPORT_UNBLOCKING = frozenset(
    {
        ExitReason.EPT_VIOLATION,
        ExitReason.PAGE_MODIFICATION_LOG_FULL,
        ExitReason.SPP_RELATED_EVENT,
    }
)
_LAST_8086_IP = 0xFFFF
_USER = 3
_SEGMENTS = ("cs", "ss", "es", "ds", "fs", "gs")


class _Frame(NamedTuple):
    """What every IRET pops."""

    rip: int
    cs: int
    rflags: int


def unblock_nmis(processor: Processor) -> bool:
    """Do what IRET does to the blocking of NMIs; return whether there was blocking to remove.

    With "NMI exiting" 1 and "virtual NMIs" 0 IRET leaves the blocking of NMIs as it is.
    """
    vmcs, regs = processor.vmcs, processor.regs
    assert vmcs is not None
    pin = vmcs.pin
    if pin & Pin.NMI_EXITING and not pin & Pin.VIRTUAL_NMIS:
        return False
    blocked = bool(regs.interruptibility_state & Interruptibility.NMI)
    regs.interruptibility_state &= ~Interruptibility.NMI
    if not pin & Pin.VIRTUAL_NMIS:
        processor.nmi_blocked = False
    return blocked


def iret(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """IRET: unblocks NMIs even if it faults, and returns to what was interrupted."""
    unblocked = unblock_nmis(processor)
    try:
        _return(processor, instruction)
    except GuestFault as fault:
        return exception(processor, fault_event(fault)._replace(unblocked_nmis=unblocked))
    except ExitTaken as taken:
        if unblocked and taken.information.reason in _REPORT_UNBLOCKING:
            taken.information.qualification |= _NMI_UNBLOCKING
        raise
    return None


def _return(processor: Processor, instruction: Instruction) -> None:
    """Go the way of the guest's mode."""
    regs = processor.regs
    size = operand_size(regs, instruction.operands)
    stack = Stack(processor)
    # The error code that is still on the stack of a handler's program.
    stack.skip(processor.cursors[-1].error_code_bytes if processor.cursors else 0)
    if not regs.in_protected_mode:
        _return_in_8086_mode(processor, stack, size)
    elif not regs.rflags & Rflags.NT:
        _return_in_protected_mode(processor, stack, size)
    elif regs.in_ia32e_mode:
        raise GuestFault(GP, 0, "IRET with NT 1 in IA-32e mode")
    else:
        qualification = by_iret(processor)
        raise ExitTaken(
            ExitInformation(
                ExitReason.TASK_SWITCH, qualification, instruction.length, resume_flag=0
            )
        )
    refresh_privilege(processor)


# Real-address and virtual-8086 mode.


def _return_in_8086_mode(processor: Processor, stack: Stack, size: int) -> None:
    """Return within real-address or virtual-8086 mode."""
    regs = processor.regs
    virtual = bool(regs.rflags & Rflags.VM)
    extended = virtual and regs.rflags & Rflags.IOPL != Rflags.IOPL
    if extended and (not regs.cr4 & Cr4.VME or size != 2):
        raise GuestFault(GP, 0, "IRET in virtual-8086 mode with IOPL below 3")
    frame = _Frame(*stack.pop_several(size, 3))
    segment = real_mode_segment(processor, regs.cs, frame.cs, code=True)
    if frame.rip > segment.limit:
        raise GuestFault(GP, 0, f"IRET to {frame.rip:#x}, beyond the code segment")
    if extended:
        load_extended_8086_flags(regs, frame.rflags)
    elif virtual:
        load_returned_flags(regs, frame.rflags, size, _USER)
    else:
        kept = regs.rflags & (Rflags.VIF | Rflags.VIP)
        load_returned_flags(regs, frame.rflags, size, 0)
        regs.rflags = regs.rflags & ~(Rflags.VIF | Rflags.VIP) | kept
    regs.rip, regs.rsp, regs.cs = frame.rip, stack.pointer, segment


def _return_to_8086_mode(processor: Processor, stack: Stack, frame: _Frame) -> None:
    """Return from level 0 to a virtual-8086 task, with all of its segment registers."""
    regs = processor.regs
    rsp, ss, es, ds, fs, gs = stack.pop_several(4, 6)
    if frame.rip > _LAST_8086_IP:
        raise GuestFault(GP, 0, f"IRET to {frame.rip:#x} in virtual-8086 mode")
    regs.rflags = frame.rflags & _ALL_FLAGS | Rflags.RESERVED_1
    regs.rip, regs.rsp = frame.rip, rsp
    for name, selector in zip(_SEGMENTS, (frame.cs, ss, es, ds, fs, gs), strict=True):
        setattr(regs, name, real_mode_segment(processor, getattr(regs, name), selector))


#: Every defined flag.
_ALL_FLAGS = sum({int(flag) for flag in Rflags})


# Protected mode and IA-32e mode.


def _return_in_protected_mode(processor: Processor, stack: Stack, size: int) -> None:
    """Return to the same or an outer privilege level, or to a virtual-8086 task."""
    regs = processor.regs
    cpl, from_64bit = regs.cpl, regs.in_64bit_mode
    popped = stack.pop_several(size, 5 if from_64bit else 3)
    frame = _Frame(popped[0], popped[1] & 0xFFFF, popped[2])
    if size == 4 and not cpl and frame.rflags & Rflags.VM and not regs.in_ia32e_mode:
        _return_to_8086_mode(processor, stack, frame)
        return
    code = _return_code_segment(processor, frame.cs)
    new_cpl = frame.cs & 3
    new_stack, rsp = regs.system.ss, stack.pointer
    if new_cpl > cpl or from_64bit:
        outer = popped[3:] or stack.pop_several(size, 2)
        new_stack = _return_stack_segment(processor, outer[1] & 0xFFFF, new_cpl, code)
        rsp = _stack_pointer(regs, new_stack, outer[0])
    segment = code.segment(frame.cs)
    _check_target(processor, frame.rip, segment, code)
    mark_accessed(processor, code, delivery=False)
    load_returned_flags(regs, frame.rflags, size, cpl)
    regs.rip, regs.rsp = frame.rip, rsp
    regs.system = regs.system.with_code_and_stack(segment, new_stack)
    if new_cpl > cpl:
        _drop_privileged_segments(regs, new_cpl)


def _stack_pointer(regs: Registers, segment: Segment, popped: int) -> int:
    """Return RSP after a return to an outer level: a 16-bit stack keeps the upper bits."""
    if regs.in_ia32e_mode or segment.access_rights & 0x4000:
        return popped
    return regs.rsp & MASK32 & ~0xFFFF | popped & 0xFFFF


def _check_target(processor: Processor, rip: int, segment: Segment, code: Descriptor) -> None:
    """#GP(0) for an address that is not canonical, or beyond the code segment."""
    if processor.regs.in_ia32e_mode and bit(code.value, 53):
        if not is_linear_address(processor, rip):
            raise GuestFault(GP, 0, "IRET to an address that is not canonical")
    elif rip > segment.limit:
        raise GuestFault(GP, 0, f"IRET to {rip:#x}, beyond the code segment")


def _return_code_segment(processor: Processor, selector: int) -> Descriptor:
    error = selector & ~3
    if not error:
        raise GuestFault(GP, 0, "IRET to a null code segment")
    descriptor = read_descriptor(processor, selector, GP, 0)
    regs = processor.regs
    wrong = _wrong_code_segment(descriptor, selector & 3, regs.cpl, regs.in_ia32e_mode)
    if wrong is not None:
        vector, what = wrong
        raise GuestFault(vector, error, f"IRET: the code segment {selector:#x} {what}")
    return descriptor


@lru_cache
def _wrong_code_segment(
    descriptor: Descriptor, rpl: int, cpl: int, ia32e_mode: bool
) -> tuple[int, str] | None:
    """Return the exception that a code segment to return to raises, and why; None if it is good."""
    value = descriptor.value
    is_code = bit(value, 44) and bit(value, 43)
    fits = descriptor.dpl <= rpl if bit(value, 42) else descriptor.dpl == rpl
    if not is_code or rpl < cpl or not fits:
        return GP, "cannot be returned to"
    if not bit(value, 47):
        return NP, "is not present"
    if ia32e_mode and bit(value, 53) and bit(value, 54):
        return GP, "has L and D set"
    return None


def _return_stack_segment(
    processor: Processor, selector: int, cpl: int, code: Descriptor
) -> Segment:
    """Return SS after IRET; in 64-bit mode below CPL 3 it may be null."""
    error = selector & ~3
    if not error:
        if cpl == _USER or not (processor.regs.in_ia32e_mode and bit(code.value, 53)):
            raise GuestFault(GP, 0, "IRET to a null stack segment")
        return Segment(selector, 0, 0, 1 << 16 | cpl << 5)
    descriptor = read_descriptor(processor, selector, GP, 0)
    wrong = _wrong_stack_segment(descriptor, selector & 3, cpl)
    if wrong is not None:
        vector, what = wrong
        raise GuestFault(vector, error, f"IRET: the stack segment {selector:#x} {what}")
    mark_accessed(processor, descriptor, delivery=False)
    return descriptor.segment(selector)


@lru_cache
def _wrong_stack_segment(descriptor: Descriptor, rpl: int, cpl: int) -> tuple[int, str] | None:
    """Return the exception that a stack segment to return to raises, and why; None if good."""
    value = descriptor.value
    is_writable_data = bit(value, 44) and not bit(value, 43) and bit(value, 41)
    if not is_writable_data or rpl != cpl or descriptor.dpl != cpl:
        return GP, "cannot be returned to"
    return None if bit(value, 47) else (SS, "is not present")


def _drop_privileged_segments(regs: Registers, cpl: int) -> None:
    """Make data segments null that the new privilege level may not use."""
    for name in ("es", "ds", "fs", "gs"):
        segment: Segment = getattr(regs.system, name)
        if segment.usable and segment.dpl < cpl and segment.type & 0xC != 0xC:
            setattr(regs, name, Segment(0, segment.base, 0, 1 << 16))


#: What the instruction does when it does not exit.
EFFECTS = {"iret": iret}
