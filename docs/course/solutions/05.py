"""Lesson 05: answer CPUID."""

import vtx


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Answer CPUID for the processor, and let the guest go on behind it."""
    leaf = cpu.regs.rax & 0xFFFF_FFFF
    cpu.regs.rax = cpu.regs.rbx = cpu.regs.rcx = cpu.regs.rdx = 0
    if leaf == 1:
        cpu.regs.rcx = 1 << 31
    elif leaf == 0x4000_0000:
        cpu.regs.rax = 0x4000_0000
        cpu.regs.rbx, cpu.regs.rcx, cpu.regs.rdx = (
            int.from_bytes(part, "little") for part in (b"Teac", b"hing", b"VM!!")
        )
    cpu.skip(exit)
