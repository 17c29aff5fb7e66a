"""Lesson 06: CR and MSR exits. Complete both functions, then: vtx lab run 06 THIS_FILE."""

import vtx
from vtx import ExitReason, Field

SECRET = 0x1122_3344_5566_7788


def setup(cpu: vtx.Cpu, owned: int, hidden: int, guarded: int, offset: int) -> None:
    """Take bits of CR0, MSR accesses, and the time."""
    # Two fields for CR0. In the mask, does a 1 mean the VMM or the guest?
    # Two sets: cpu.exiting.msr_reads, cpu.exiting.msr_writes.
    # A control and a field for the time.


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Handle MOV to CR0, RDMSR and WRMSR."""
    if exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
        mask = cpu.vmread(Field.CR0_GUEST_HOST_MASK)
        # Which register has the new value? What goes into the shadow, what into cpu.guest.cr0?
    elif exit.reason is ExitReason.RDMSR:
        # SECRET has 64 bits.
        pass
    elif exit.reason is ExitReason.WRMSR:
        # Inject; and RIP?
        pass
    cpu.skip(exit)
