"""A guest asks who made the processor, and the VMM answers."""

import vtx
from vtx import ExitReason


def registers(text: bytes) -> list[int]:
    """Return twelve characters as three registers of four."""
    return [int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8)]


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Answer CPUID and step over it."""
    leaf = cpu.regs.rax & 0xFFFF_FFFF
    cpu.regs.rax = cpu.regs.rbx = cpu.regs.rcx = cpu.regs.rdx = 0
    if leaf == 0:
        cpu.regs.rax = 1
        cpu.regs.rbx, cpu.regs.rdx, cpu.regs.rcx = registers(b"GenuineTeach")
    print(f"RIP {exit.rip:#x}: leaf {leaf:#x} -> EBX {cpu.regs.rbx:#x}")
    cpu.skip(exit)


with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    exit = cpu.vmlaunch(vtx.program("cpuid leaf=0\ncpuid leaf=1\nhlt"))
    while exit.reason is ExitReason.CPUID:
        handle(cpu, exit)
        exit = cpu.vmresume()
    print(f"the guest ends with {exit.reason.name}")
