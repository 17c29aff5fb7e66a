"""Lesson 06: CR and MSR exits."""

import vtx
from vtx import ExitReason, Field, Proc1

SECRET = 0x1122_3344_5566_7788


def setup(cpu: vtx.Cpu, owned: int, hidden: int, guarded: int, offset: int) -> None:
    """Take bits of CR0, MSR accesses, and the time."""
    cpu.vmwrite(Field.CR0_GUEST_HOST_MASK, owned)
    cpu.vmwrite(Field.CR0_READ_SHADOW, cpu.guest.cr0)
    cpu.exiting.msr_reads = {hidden}
    cpu.exiting.msr_writes = {guarded}
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls | Proc1.USE_TSC_OFFSETTING)
    cpu.vmwrite(Field.TSC_OFFSET, offset)


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Handle MOV to CR0, RDMSR and WRMSR."""
    if exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
        mask = cpu.vmread(Field.CR0_GUEST_HOST_MASK)
        value = cpu.guest[exit.cr.register]
        cpu.vmwrite(Field.CR0_READ_SHADOW, value)
        cpu.guest.cr0 = cpu.guest.cr0 & mask | value & ~mask
    elif exit.reason is ExitReason.RDMSR:
        cpu.guest.rdx, cpu.guest.rax = SECRET >> 32, SECRET & 0xFFFF_FFFF
    elif exit.reason is ExitReason.WRMSR:
        cpu.inject("#GP")
        return
    cpu.skip(exit)
