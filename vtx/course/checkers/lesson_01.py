"""The ten instructions: outcomes, and a guest's life from VMXON to VMXOFF."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.course.lab import Lab

__all__ = ["check"]

_SAME_MISTAKE = (
    "the same mistake is VMfailInvalid without a current VMCS, and VMfailValid with one: take what "
    "was raised, not what you expect of the instruction"
)


def check(lab: Lab) -> None:
    """Ask for outcomes with and without a current VMCS, then for a whole visit."""
    outcome = lab.function("outcome", "outcome(instruction) says how it ended")
    visit = lab.function("visit", "visit(cpu, program) returns RAX at each VMCALL")
    _outcomes(lab, outcome)
    _visits(lab, visit)


def _outcomes(lab: Lab, outcome: Callable[..., object]) -> None:
    """Compare what is said of instructions in random order with what they do."""
    cpu = lab.cpu()
    misaligned = lab.random.randrange(0x1000, 0x8000, 0x1000) + lab.random.randrange(1, 0x1000)
    lab.equal(
        outcome(lambda: cpu.vmptrld(misaligned)),
        "VMfailInvalid",
        "VMPTRLD of a misaligned address, no VMCS being current, is VMfailInvalid",
        _SAME_MISTAKE,
    )
    region = cpu.new_region()
    cpu.vmclear(region)
    lab.equal(outcome(lambda: cpu.vmptrld(region)), "VMsucceed", "VMPTRLD of a region succeeds")
    instructions: list[tuple[str, Callable[[], object], str]] = [
        ("VMPTRLD of a misaligned address", lambda: cpu.vmptrld(misaligned), "VMfailValid(9)"),
        ("VMREAD of no field", lambda: cpu.vmread(0x5000), "VMfailValid(12)"),
        ("VMRESUME before VMLAUNCH", cpu.vmresume, "VMfailValid(5)"),
        ("VMXON in VMX operation", lambda: cpu.vmxon(cpu.new_region()), "VMfailValid(15)"),
        ("VMREAD of guest RIP", lambda: cpu.vmread(Field.GUEST_RIP), "VMsucceed"),
    ]
    lab.random.shuffle(instructions)
    for what, instruction, wanted in instructions:
        hint = "the number is the error of the exception: failure.error"
        lab.equal(outcome(instruction), wanted, f"{what} ends in {wanted}", hint)


def _visits(lab: Lab, visit: Callable[..., object]) -> None:
    """Let guests make calls, among other exits, and see whether the processor is left clean."""
    from vtx.hypervisor.trace import program

    for _ in range(2):
        calls = [lab.random.randrange(1 << 32) for _ in range(lab.random.randrange(2, 6))]
        steps = [f"vmcall rax={call:#x}" for call in calls]
        steps.insert(lab.random.randrange(len(steps)), "cpuid leaf=0")
        cpu = lab.cpu(vmx=False)
        got = visit(cpu, program("\n".join([*steps, "hlt"])))
        if not cpu.events.exit_count:
            lab.expect(False, "the guest runs", "enter it: cpu.vmlaunch(program)")
            return
        if got is None:
            lab.expect(False, "visit returns the list of the calls", "end it with: return calls")
            return
        lab.equal(
            got,
            calls,
            "the list has RAX at each VMCALL, and at no other exit",
            "look at exit.reason: the guest also executes CPUID; step over that without noting it",
        )
        lab.expect(
            not cpu.in_vmx,
            "the processor is outside VMX operation at the end",
            "VMXON has a counterpart: cpu.vmxoff()",
        )
