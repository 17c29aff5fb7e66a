"""Instructions that change where the guest goes on, and the flags that decide on interrupts."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from vtx.bits import MASK64, bit
from vtx.errors import GuestFault, NotSupported
from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.machine.registers import Efer, Interruptibility, Rflags, Segment
from vtx.rules.delivery import Event, exception, fault_event, hand_over
from vtx.rules.delivery_idt import Descriptor, read_descriptor
from vtx.rules.execution_context import is_linear_address, refresh_privilege
from vtx.rules.execution_data import push_value
from vtx.rules.execution_memory import ExitTaken, read, read_u64
from vtx.rules.exiting_faults import GP, NP, SS, UD
from vtx.rules.exiting_information import operand_address
from vtx.rules.injected import EventType

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS", "TRANSFERS"]

_BP, _OF, _DB = 3, 4, 1
#: What IRET pops: RIP, CS, RFLAGS, RSP, SS.
_FRAME = struct.Struct("<5Q")
#: Flags that IRET and POPF load at any privilege level.
_USER_FLAGS = (
    Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.TF | Rflags.DF
    | Rflags.OF | Rflags.NT | Rflags.AC | Rflags.ID
)  # fmt: skip
_NMI_UNBLOCKING = 1 << 12
_REPORT_UNBLOCKING = frozenset(
    {
        ExitReason.EPT_VIOLATION,
        ExitReason.PAGE_MODIFICATION_LOG_FULL,
        ExitReason.SPP_RELATED_EVENT,
    }
)


# Software interrupts and exceptions.


def software_interrupt(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT n: never asks the exception bitmap."""
    vector = instruction.operands["vector"]
    event = Event(vector, EventType.SOFTWARE_INTERRUPT, None, instruction.length)
    return hand_over(processor, event)


def int3(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT3: #BP as a software exception."""
    event = Event(_BP, EventType.SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def into(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INTO: #OF as a software exception if OF is 1; 64-bit mode does not have it."""
    regs = processor.regs
    if regs.in_64bit_mode:
        raise GuestFault(UD, None, "INTO in 64-bit mode")
    if not regs.rflags & Rflags.OF:
        regs.rip = regs.rip + instruction.length & MASK64
        return None
    event = Event(_OF, EventType.SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def int1(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT1: #DB as a privileged software exception."""
    event = Event(_DB, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def undefined(processor: Processor, instruction: Instruction) -> None:
    """UD0, UD1 and UD2."""
    raise GuestFault(UD, None, instruction.name.upper())


# IRET.


def unblock_nmis(processor: Processor) -> bool:
    """Do what IRET does to the blocking of NMIs; return whether there was blocking to remove.

    With "NMI exiting" 1 and "virtual NMIs" 0 IRET leaves the blocking of NMIs as it is.
    """
    vmcs, regs = processor.vmcs, processor.regs
    assert vmcs is not None
    if vmcs.pin & Pin.NMI_EXITING and not vmcs.pin & Pin.VIRTUAL_NMIS:
        return False
    blocked = bool(regs.interruptibility_state & Interruptibility.NMI)
    regs.interruptibility_state &= ~Interruptibility.NMI
    if not vmcs.pin & Pin.VIRTUAL_NMIS:
        processor.nmi_blocked = False
    return blocked


def iret(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """IRET in IA-32e mode: unblocks NMIs even if it faults, and returns to what was interrupted."""
    regs = processor.regs
    if not regs.efer & Efer.LMA:
        raise NotSupported("IRET is executed for guests in IA-32e mode only")
    unblocked = unblock_nmis(processor)
    try:
        _return(processor, _error_code_bytes(processor))
    except GuestFault as fault:
        return exception(processor, replace(fault_event(fault), unblocked_nmis=unblocked))
    except ExitTaken as taken:
        # SDM, "Information About NMI Unblocking Due to IRET".
        if unblocked and taken.information.reason in _REPORT_UNBLOCKING:
            taken.information.qualification |= _NMI_UNBLOCKING
        raise
    return None


def _error_code_bytes(processor: Processor) -> int:
    """Return the bytes of the error code that is still on the stack of a handler's program."""
    return processor.cursors[-1].error_code_bytes if processor.cursors else 0


def _return(processor: Processor, skipped: int) -> None:
    """Pop the frame above `skipped` bytes and load it, after every check."""
    regs = processor.regs
    if regs.rflags & Rflags.NT:
        raise GuestFault(GP, 0, "IRET with NT 1 in IA-32e mode")
    raw = read(processor, regs.rsp + skipped & MASK64, _FRAME.size)
    rip, cs, rflags, rsp, ss = _FRAME.unpack(raw)
    cs &= 0xFFFF
    ss &= 0xFFFF
    code = _return_code_segment(processor, cs)
    if not is_linear_address(processor, rip):
        raise GuestFault(GP, 0, "IRET to an address that is not canonical")
    new_cpl = cs & 3
    stack = _return_stack_segment(processor, ss, new_cpl, code)
    _load_flags(processor, rflags, iopl_too=not regs.cpl)
    regs.rip, regs.rsp = rip, rsp
    regs.system = regs.system._replace(cs=code.segment(cs), ss=stack)
    if new_cpl > 0:
        _drop_privileged_segments(processor, new_cpl)
    refresh_privilege(processor)


def _return_code_segment(processor: Processor, selector: int) -> Descriptor:
    error = selector & ~3
    if not error:
        raise GuestFault(GP, 0, "IRET to a null code segment")
    descriptor = read_descriptor(processor, selector, GP, 0)
    value, rpl = descriptor.value, selector & 3
    is_code = bit(value, 44) and bit(value, 43)
    fits = descriptor.dpl <= rpl if bit(value, 42) else descriptor.dpl == rpl
    if not is_code or rpl < processor.regs.cpl or not fits:
        raise GuestFault(GP, error, f"IRET to selector {selector:#x}")
    if not bit(value, 47):
        raise GuestFault(NP, error, f"the code segment {selector:#x} is not present")
    if bit(value, 53) and bit(value, 54):
        raise GuestFault(GP, error, f"the code segment {selector:#x} has L and D set")
    return descriptor


def _return_stack_segment(
    processor: Processor, selector: int, cpl: int, code: Descriptor
) -> Segment:
    """Return SS after IRET; in 64-bit mode below CPL 3 it may be null."""
    error = selector & ~3
    if not error:
        if cpl == 3 or not bit(code.value, 53):
            raise GuestFault(GP, 0, "IRET to a null stack segment")
        return Segment(selector, 0, 0, 1 << 16 | cpl << 5)
    descriptor = read_descriptor(processor, selector, GP, 0)
    value = descriptor.value
    is_writable_data = bit(value, 44) and not bit(value, 43) and bit(value, 41)
    if not is_writable_data or selector & 3 != cpl or descriptor.dpl != cpl:
        raise GuestFault(GP, error, f"IRET to stack selector {selector:#x}")
    if not bit(value, 47):
        raise GuestFault(SS, error, f"the stack segment {selector:#x} is not present")
    return descriptor.segment(selector)


def _drop_privileged_segments(processor: Processor, cpl: int) -> None:
    """Make data segments null that the new privilege level may not use."""
    regs = processor.regs
    for name in ("es", "ds", "fs", "gs"):
        segment: Segment = getattr(regs.system, name)
        if segment.usable and segment.dpl < cpl and segment.type & 0xC != 0xC:
            setattr(regs, name, Segment(0, segment.base, 0, 1 << 16))


def _load_flags(processor: Processor, value: int, *, iopl_too: bool) -> None:
    """Load the flags that the privilege level allows, as IRET and POPF do."""
    regs = processor.regs
    loaded = _USER_FLAGS | Rflags.RF
    if iopl_too:
        loaded |= Rflags.IOPL | Rflags.IF | Rflags.VIF | Rflags.VIP
    elif regs.cpl <= regs.rflags >> 12 & 3:
        loaded |= Rflags.IF
    regs.rflags = regs.rflags & ~loaded | value & loaded | Rflags.RESERVED_1


# Stack, jumps, flags.


def pushf(processor: Processor, instruction: Instruction) -> None:
    """PUSHF: RF and VM are pushed as 0."""
    push_value(processor, processor.regs.rflags & ~(Rflags.RF | Rflags.VM))


def popf(processor: Processor, instruction: Instruction) -> None:
    """POPF."""
    regs = processor.regs
    value = read_u64(processor, regs.rsp)
    _load_flags(processor, value & ~Rflags.RF, iopl_too=not regs.cpl)
    regs.rsp = regs.rsp + 8 & MASK64
    refresh_privilege(processor)


def call(processor: Processor, instruction: Instruction) -> None:
    """CALL through memory: pushes the return address."""
    regs = processor.regs
    target = read_u64(processor, operand_address(regs, instruction.operands))
    if not is_linear_address(processor, target):
        raise GuestFault(GP, 0, "CALL to an address that is not canonical")
    push_value(processor, regs.rip + instruction.length & MASK64)
    regs.rip = target


def jmp(processor: Processor, instruction: Instruction) -> None:
    """JMP to the linear address of another step."""
    target = instruction.operands["target"]
    if not is_linear_address(processor, target):
        raise GuestFault(GP, 0, "JMP to an address that is not canonical")
    processor.regs.rip = target


def sti(processor: Processor, instruction: Instruction) -> None:
    """STI: if IF was 0, interrupts stay blocked until the next instruction is done."""
    regs = processor.regs
    _may_change_if(processor, instruction)
    if not regs.rflags & Rflags.IF:
        regs.rflags |= Rflags.IF
        regs.interruptibility_state |= Interruptibility.STI


def cli(processor: Processor, instruction: Instruction) -> None:
    """CLI."""
    _may_change_if(processor, instruction)
    processor.regs.rflags &= ~Rflags.IF


def _may_change_if(processor: Processor, instruction: Instruction) -> None:
    regs = processor.regs
    if regs.cpl > regs.rflags >> 12 & 3:
        raise GuestFault(GP, 0, f"{instruction.name} at CPL {regs.cpl} above IOPL")


def std(processor: Processor, instruction: Instruction) -> None:
    """STD."""
    processor.regs.rflags |= Rflags.DF


def cld(processor: Processor, instruction: Instruction) -> None:
    """CLD."""
    processor.regs.rflags &= ~Rflags.DF


def fred_return(processor: Processor, instruction: Instruction) -> None:
    """ERETS and ERETU: #UD, as the guest cannot have CR4.FRED set without FRED in the model."""
    raise GuestFault(UD, None, f"{instruction.name} without FRED")


#: What each instruction does when it does not exit.
EFFECTS = {
    "int": software_interrupt,
    "int3": int3,
    "into": into,
    "int1": int1,
    **dict.fromkeys(("ud0", "ud1", "ud2"), undefined),
    "iret": iret,
    **dict.fromkeys(("erets", "eretu"), fred_return),
    "pushf": pushf,
    "popf": popf,
    "call": call,
    "jmp": jmp,
    "sti": sti,
    "cli": cli,
    "std": std,
    "cld": cld,
}

#: Instructions that load RIP themselves.
TRANSFERS = frozenset({"int", "int3", "into", "int1", "iret", "call", "jmp"})
