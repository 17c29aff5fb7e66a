"""Faults that come before the VM exit of the same instruction.

SDM, "Relative Priority of Faults and VM Exits": invalid opcodes, faults based on privilege level
and #GP(0) from the I/O-permission bitmap come first; all other faults come after the exit. Each
function here raises :class:`GuestFault` or returns; the tables of :mod:`vtx.rules.exiting` name
them in the order in which they are tested.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from vtx.errors import GuestFault
from vtx.facts.controls import Proc2, Proc3
from vtx.facts.msrs import Msr
from vtx.machine.registers import Cr0, Cr4

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = [
    "GP",
    "UD",
    "Fault",
    "cpl",
    "cr4",
    "feature",
    "has_instruction",
    "needs_control",
    "vmx_mode",
]

DB = 1
UD = 6
NM = 7
TS = 10
NP = 11
SS = 12
GP = 13
PF = 14

#: A test that raises GuestFault if its condition holds.
Fault = Callable[["Processor", "Instruction"], None]


def cpl(processor: Processor, instruction: Instruction) -> None:
    """#GP(0) if CPL > 0."""
    if processor.regs.cpl:
        raise GuestFault(GP, 0, f"{instruction.name} at CPL {processor.regs.cpl}")


def cpl_ud(processor: Processor, instruction: Instruction) -> None:
    """#UD if CPL > 0."""
    if processor.regs.cpl:
        raise GuestFault(UD, None, f"{instruction.name} at CPL {processor.regs.cpl}")


def protected_mode(processor: Processor, instruction: Instruction) -> None:
    """#UD in real-address and virtual-8086 mode."""
    if not processor.regs.in_protected_mode:
        raise GuestFault(UD, None, f"{instruction.name} outside protected mode")


def vmx_mode(processor: Processor, instruction: Instruction) -> None:
    """#UD in real-address, virtual-8086 and compatibility mode."""
    if not processor.regs.in_protected_mode or processor.regs.in_compatibility_mode:
        raise GuestFault(UD, None, f"{instruction.name} in a mode that does not have it")


def cr4(flag: Cr4) -> Fault:
    """Return the test "#UD if this bit of CR4 is 0"."""

    def test(processor: Processor, instruction: Instruction) -> None:
        if not processor.regs.cr4 & flag:
            raise GuestFault(UD, None, f"{instruction.name} with CR4.{flag.name} 0")

    return test


def cpl_with(flag: Cr4) -> Fault:
    """Return the test "#GP(0) if CPL > 0 and this bit of CR4 is 1" (UMIP, TSD)."""

    def test(processor: Processor, instruction: Instruction) -> None:
        if processor.regs.cpl and processor.regs.cr4 & flag:
            raise GuestFault(GP, 0, f"{instruction.name} at CPL > 0 with CR4.{flag.name} 1")

    return test


def cpl_without_pce(processor: Processor, instruction: Instruction) -> None:
    """#GP(0) if CPL > 0 and CR4.PCE is 0 (in protected mode)."""
    regs = processor.regs
    if regs.cpl and regs.cr0 & Cr0.PE and not regs.cr4 & Cr4.PCE:
        raise GuestFault(GP, 0, "RDPMC at CPL > 0 with CR4.PCE 0")


def needs_control(group: str, control: IntEnum) -> Fault:
    """Return the test "#UD if this control is 0" (it enables the instruction)."""

    def test(processor: Processor, instruction: Instruction) -> None:
        vmcs = processor.vmcs
        assert vmcs is not None
        if not getattr(vmcs, group) & control:
            name = control.name.lower()
            raise GuestFault(UD, None, f"{instruction.name} with {name} 0")

    return test


def has_instruction(control: IntEnum) -> Fault:
    """Return the test "#UD if the CPU does not have the instruction".

    A CPU has the instruction exactly if it allows the control that governs it to be 1.
    """

    def test(processor: Processor, instruction: Instruction) -> None:
        if not processor.shape.supports(control):
            raise GuestFault(UD, None, f"{processor.shape.name} has no {instruction.name}")

    return test


def has_invalidation(control: IntEnum, capability: int) -> Fault:
    """Return the test "#UD without the feature or without its invalidating instruction"."""

    def test(processor: Processor, instruction: Instruction) -> None:
        shape = processor.shape
        if not shape.supports(control) or not shape.ept_vpid_cap(capability):
            raise GuestFault(UD, None, f"{shape.name} has no {instruction.name}")

    return test


def feature(name: str) -> Fault:
    """Return the test "#UD if CPUID does not report this feature"."""

    def test(processor: Processor, instruction: Instruction) -> None:
        if name not in processor.shape.features:
            raise GuestFault(UD, None, f"{processor.shape.name} has no {instruction.name}")

    return test


def sgx(processor: Processor, instruction: Instruction) -> None:
    """#UD without SGX; "enable ENCLS exiting" or the profile says that the CPU has it."""
    shape = processor.shape
    if "sgx" not in shape.features and not shape.supports(Proc2.ENABLE_ENCLS_EXITING):
        raise GuestFault(UD, None, f"{shape.name} has no SGX")


def monitor_enabled(processor: Processor, instruction: Instruction) -> None:
    """#UD if IA32_MISC_ENABLE[18] turns MONITOR and MWAIT off."""
    value = processor.regs.msrs.get(Msr.IA32_MISC_ENABLE)
    if value is not None and not value >> 18 & 1:
        raise GuestFault(UD, None, f"{instruction.name} is disabled by IA32_MISC_ENABLE")


def key_locker(processor: Processor, instruction: Instruction) -> None:
    """#UD if CR4.KL is 0, CR0.EM is 1 or CR4.OSFXSR is 0; #NM if CR0.TS is 1 comes later."""
    regs = processor.regs
    if not regs.cr4 & Cr4.KL or regs.cr0 & Cr0.EM or not regs.cr4 & Cr4.OSFXSR:
        raise GuestFault(UD, None, "LOADIWKEY without Key Locker and SSE enabled")


def msr_list(processor: Processor, instruction: Instruction) -> None:
    """#GP(0) for CPL > 0, outside 64-bit mode, or for a misaligned table or data address."""
    regs = processor.regs
    if regs.cpl or not regs.in_64bit_mode or regs.rsi & 7 or regs.rdi & 7:
        raise GuestFault(GP, 0, f"{instruction.name} needs CPL 0 and aligned RSI and RDI")


def outside_smm(processor: Processor, instruction: Instruction) -> None:
    """#UD outside system-management mode."""
    if not processor.smm:
        raise GuestFault(UD, None, "RSM outside system-management mode")


def into_in_64bit_mode(processor: Processor, instruction: Instruction) -> None:
    """#UD in 64-bit mode, which does not have the instruction."""
    if processor.regs.in_64bit_mode:
        raise GuestFault(UD, None, f"64-bit mode has no {instruction.name}")


#: The controls of the conditional rows that enable an instruction, by name.
ENABLED_BY = {
    "invpcid": needs_control("proc2", Proc2.ENABLE_INVPCID),
    "rdtscp": needs_control("proc2", Proc2.ENABLE_RDTSCP),
    "wait": needs_control("proc2", Proc2.ENABLE_USER_WAIT_AND_PAUSE),
    "pconfig": needs_control("proc2", Proc2.ENABLE_PCONFIG),
    "xsaves": needs_control("proc2", Proc2.ENABLE_XSAVES_XRSTORS),
    "msr_list": needs_control("proc3", Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
    "pbndkb": needs_control("proc3", Proc3.ENABLE_PBNDKB),
    "vm_functions": needs_control("proc2", Proc2.ENABLE_VM_FUNCTIONS),
}
