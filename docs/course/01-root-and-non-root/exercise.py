"""Lesson 01: the ten instructions. Complete both functions, then: vtx lab run 01 THIS_FILE."""

from collections.abc import Callable

import vtx


def outcome(instruction: Callable[[], object]) -> str:
    """Call instruction(), and say how the VMX instruction in it ended."""
    # "VMsucceed", "VMfailInvalid", or "VMfailValid(9)" with the number of the error.
    # vtx raises vtx.VMfailInvalid and vtx.VMfailValid; the latter has the number in .error.
    instruction()
    return "VMsucceed"


def visit(cpu: vtx.Cpu, program: object) -> list[int]:
    """Run the program as a guest until it halts; return RAX at each of its VMCALLs."""
    calls: list[int] = []
    # 1. Enter VMX operation.
    # 2. Load a VMCS: vtx.Vmcs.for_64bit_guest(cpu.shape). Map memory: cpu.ept.map(0, size="1G").
    # 3. Enter the guest. Which instruction is the first entry, which one every further entry?
    # 4. For each VMCALL: take down cpu.guest.rax, and step over the instruction.
    # 5. When the guest halts: leave VMX operation.
    return calls
