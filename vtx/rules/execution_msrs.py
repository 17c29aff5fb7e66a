"""RDMSR and WRMSR in the guest, and the instructions built on them, when no exit happens.

Time-stamp counter, IA32_SPEC_CTRL and the x2APIC registers are special in VMX non-root operation
(SDM, "Changes to Instruction Behavior in VMX Non-Root Operation"); all others are plain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.rules.execution_context import refresh
from vtx.rules.execution_memory import read_u64, write
from vtx.rules.execution_registers import put
from vtx.rules.exiting_faults import GP
from vtx.rules.exiting_information import msr_operand, register
from vtx.rules.exiting_rules import msr_list
from vtx.rules.msr_values import MISSING, READ_ONLY, wrmsr_fault

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.vmcs import Vmcs

__all__ = ["EFFECTS", "guest_tsc", "host_tsc", "read", "scaled_tsc", "write_msr"]

_TSC_FRACTION_BITS = 48
_PAGING_MSRS = frozenset({Msr.IA32_EFER, Msr.IA32_PKRS})
#: WRMSR to these does something once and leaves nothing to read.
_COMMANDS = frozenset({Msr.IA32_PRED_CMD, Msr.IA32_FLUSH_CMD})
_PT_IN_VMX = 14
#: IA32_APIC_BASE after reset: enabled, at its default address.
_APIC_BASE, _BOOTSTRAP_PROCESSOR = 0xFEE0_0800, 1 << 8
_LMA = 1 << 10


def _vmcs(processor: Processor) -> Vmcs:
    vmcs = processor.vmcs
    assert vmcs is not None
    return vmcs


def _fault(why: str) -> GuestFault:
    return GuestFault(GP, 0, why)


def is_x2apic(msr: int) -> bool:
    """Tell whether an MSR is in the x2APIC range, 800H-8FFH."""
    return msr >> 8 == 8


def scaled_tsc(value: int, multiplier: int) -> int:
    """Return a time-stamp counter as "use TSC scaling" multiplies it."""
    return value * multiplier >> _TSC_FRACTION_BITS & MASK64


def host_tsc(processor: Processor) -> int:
    """Return the logical processor's own time-stamp counter."""
    return processor.tsc + processor.regs.msrs.get(Msr.IA32_TSC_ADJUST, 0) & MASK64


def guest_tsc(processor: Processor) -> int:
    """Return the time-stamp counter as the guest reads it: scaled, then offset."""
    vmcs = _vmcs(processor)
    value = host_tsc(processor)
    if vmcs.proc1 & Proc1.USE_TSC_OFFSETTING:
        if vmcs.proc2 & Proc2.USE_TSC_SCALING:
            value = scaled_tsc(value, vmcs[Field.TSC_MULTIPLIER])
        value += vmcs[Field.TSC_OFFSET]
    return value & MASK64


def read(processor: Processor, msr: int) -> int:
    """Return what RDMSR reads.

    Raises
    ------
    GuestFault
        #GP(0): there is no such MSR.
    """
    if msr == Msr.IA32_TIME_STAMP_COUNTER:
        return guest_tsc(processor)
    if is_x2apic(msr):
        from vtx.rules.execution_apic import read_x2apic

        return read_x2apic(processor, msr)
    vmcs = _vmcs(processor)
    if msr == Msr.IA32_SPEC_CTRL and vmcs.proc3 & Proc3.VIRTUALIZE_IA32_SPEC_CTRL:
        return vmcs[Field.IA32_SPEC_CTRL_SHADOW]
    if msr == Msr.IA32_TSC_DEADLINE and vmcs.proc3 & Proc3.APIC_TIMER_VIRTUALIZATION:
        return vmcs[Field.GUEST_DEADLINE_SHADOW]
    if msr in processor.regs.msrs and msr not in _COMMANDS:
        return processor.regs.msrs[msr]
    if msr in processor.shape.msrs:
        return processor.shape.msrs[msr]
    if msr == Msr.IA32_APIC_BASE:
        return _APIC_BASE | (0 if processor.number else _BOOTSTRAP_PROCESSOR)
    if msr in _COMMANDS or _missing(processor, msr):
        raise _fault(f"RDMSR of {msr:#x}: there is no such MSR")
    return processor.regs.read_msr(msr)


def _missing(processor: Processor, msr: int) -> bool:
    """Tell whether the CPU has no such MSR: what WRMSR would say of 0 tells."""
    return msr in READ_ONLY or wrmsr_fault(processor, msr, 0) in MISSING


def write_msr(processor: Processor, msr: int, value: int) -> ExitInformation | None:
    """Do what WRMSR does; the VM exit is trap-like and comes of virtualizing the APIC.

    Raises
    ------
    GuestFault
        #GP(0): there is no such MSR, or it does not take the value.
    """
    if is_x2apic(msr):
        from vtx.rules.execution_apic import write_x2apic

        return write_x2apic(processor, msr, value)
    vmcs, regs = _vmcs(processor), processor.regs
    if msr == Msr.IA32_BIOS_UPDT_TRIG:
        # A microcode update in VMX non-root operation is ignored.
        return None
    if msr == Msr.IA32_RTIT_CTL and not processor.shape.misc(_PT_IN_VMX):
        raise _fault("IA32_RTIT_CTL in VMX operation")
    why = wrmsr_fault(processor, msr, value)
    if why is not None:
        raise _fault(f"WRMSR of {msr:#x}: {why}")
    if msr == Msr.IA32_SPEC_CTRL and vmcs.proc3 & Proc3.VIRTUALIZE_IA32_SPEC_CTRL:
        mask = vmcs[Field.IA32_SPEC_CTRL_MASK]
        vmcs[Field.IA32_SPEC_CTRL_SHADOW] = value
        value = regs.msrs.get(msr, 0) & mask | value & ~mask
    if msr in _COMMANDS:
        return None
    if msr == Msr.IA32_TSC_DEADLINE and vmcs.proc3 & Proc3.APIC_TIMER_VIRTUALIZATION:
        from vtx.rules.guest_timer import arm

        arm(processor, value)
        return None
    _store(processor, msr, value)
    return None


def _store(processor: Processor, msr: int, value: int) -> None:
    """Put a value that is legal into its MSR."""
    regs = processor.regs
    if msr == Msr.IA32_TIME_STAMP_COUNTER:
        regs.msrs[Msr.IA32_TSC_ADJUST] = value - processor.tsc & MASK64
    elif msr == Msr.IA32_EFER:
        regs.efer = value & ~_LMA | regs.efer & _LMA
    else:
        regs.write_msr(msr, value)
    if msr in _PAGING_MSRS:
        refresh(processor)


def _edx_eax(processor: Processor) -> int:
    return (processor.regs.rdx & MASK32) << 32 | processor.regs.rax & MASK32


def set_edx_eax(processor: Processor, value: int) -> None:
    """Put a 64-bit value into EDX:EAX; the upper halves of RDX and RAX become 0."""
    processor.regs.rax, processor.regs.rdx = value & MASK32, value >> 32 & MASK32


def rdmsr(processor: Processor, instruction: Instruction) -> None:
    """RDMSR."""
    set_edx_eax(processor, read(processor, processor.regs.rcx & MASK32))


def wrmsr(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """WRMSR and WRMSRNS."""
    return write_msr(processor, processor.regs.rcx & MASK32, _edx_eax(processor))


def rdmsr_to_register(processor: Processor, instruction: Instruction) -> None:
    """RDMSR with the MSR's number in the instruction, and URDMSR."""
    put(processor, instruction, read(processor, msr_operand(processor, instruction)))


def wrmsr_from_register(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """WRMSRNS with the MSR's number in the instruction, and UWRMSR."""
    value = register(processor.regs, instruction.operands["source"])
    return write_msr(processor, msr_operand(processor, instruction), value)


def rdmsrlist(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """RDMSRLIST: MSR after MSR, until one of them is selected for an exit."""
    regs = processor.regs
    while regs.rcx:
        number = (regs.rcx & -regs.rcx).bit_length() - 1
        value = read(processor, read_u64(processor, regs.rsi + 8 * number))
        write(processor, regs.rdi + 8 * number, value.to_bytes(8, "little"))
        regs.rcx &= regs.rcx - 1
        if regs.rcx and (exits := msr_list(processor, instruction)) is not None:
            return exits
    return None


def wrmsrlist(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """WRMSRLIST: MSR after MSR, until one of them is selected for an exit."""
    regs = processor.regs
    while regs.rcx:
        number = (regs.rcx & -regs.rcx).bit_length() - 1
        msr = read_u64(processor, regs.rsi + 8 * number)
        exits = write_msr(processor, msr, read_u64(processor, regs.rdi + 8 * number))
        regs.rcx &= regs.rcx - 1
        if exits is None and regs.rcx:
            exits = msr_list(processor, instruction)
        elif exits is not None and regs.rcx:
            # A trap behind one write of several: the guest resumes at the instruction itself.
            exits.trap = False
        if exits is not None:
            return exits
    return None


def rdtsc(processor: Processor, instruction: Instruction) -> None:
    """RDTSC."""
    set_edx_eax(processor, guest_tsc(processor))


def rdtscp(processor: Processor, instruction: Instruction) -> None:
    """RDTSCP: with IA32_TSC_AUX in ECX."""
    set_edx_eax(processor, guest_tsc(processor))
    processor.regs.rcx = processor.regs.msrs.get(Msr.IA32_TSC_AUX, 0) & MASK32


#: What each instruction does when it does not exit.
EFFECTS = {
    "rdmsr": rdmsr,
    "rdmsr_imm": rdmsr_to_register,
    "urdmsr": rdmsr_to_register,
    "urdmsr_imm": rdmsr_to_register,
    "wrmsr": wrmsr,
    "wrmsrns": wrmsr,
    "wrmsrns_imm": wrmsr_from_register,
    "uwrmsr": wrmsr_from_register,
    "uwrmsr_imm": wrmsr_from_register,
    "rdmsrlist": rdmsrlist,
    "wrmsrlist": wrmsrlist,
    "rdtsc": rdtsc,
    "rdtscp": rdtscp,
}
