"""Lesson 05: answer CPUID. Complete handle(), then: vtx lab run 05 THIS_FILE."""

import vtx


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Answer CPUID for the processor, and let the guest go on behind it."""
    leaf = cpu.regs.rax & 0xFFFF_FFFF
    # Your code: what do the leaves 1 and 0x40000000 answer, and what do all others?
    # What must happen to RIP?
