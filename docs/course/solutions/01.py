"""Lesson 01: the ten instructions."""

from collections.abc import Callable

import vtx
from vtx import ExitReason


def outcome(instruction: Callable[[], object]) -> str:
    """Call instruction(), and say how the VMX instruction in it ended."""
    try:
        instruction()
    except vtx.VMfailInvalid:
        return "VMfailInvalid"
    except vtx.VMfailValid as failure:
        return f"VMfailValid({failure.error})"
    return "VMsucceed"


def visit(cpu: vtx.Cpu, program: object) -> list[int]:
    """Run the program as a guest until it halts; return RAX at each of its VMCALLs."""
    calls: list[int] = []
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    exit = cpu.vmlaunch(program)
    while exit.reason is not ExitReason.HLT:
        if exit.reason is ExitReason.VMCALL:
            calls.append(cpu.guest.rax)
        cpu.skip(exit)
        exit = cpu.vmresume()
    cpu.vmxoff()
    return calls
