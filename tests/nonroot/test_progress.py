"""A student's loop that changes nothing is stopped, and told what it forgot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import vtx
from vtx import Cpu, EmulationStopped, Exit, ExitReason, Field, Vmcs
from vtx.machine.exit_information import ExitInformation
from vtx.machine.image import DIRECT_MAP
from vtx.machine.program import Instruction, Loop, Program
from vtx.nonroot.progress import Progress

Handler = Callable[[Cpu, Exit], object]


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu("ice_lake_sp") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        yield cpu


def loop(cpu: Cpu, handler: Handler, *steps: Instruction | Loop, most: int = 400) -> int:
    """Run a hand-written loop; return the number of exits until HLT."""
    exit = cpu.vmlaunch(Program([*steps, Instruction("hlt")]))
    for count in range(most):
        if exit.reason is ExitReason.HLT:
            return count
        handler(cpu, exit)
        exit = cpu.vmresume()
    raise AssertionError("the loop never ends")


def mapped(cpu: Cpu) -> None:
    cpu.ept.map(0, size="1G")


def test_rip_was_not_advanced(cpu: Cpu) -> None:
    mapped(cpu)
    with pytest.raises(EmulationStopped, match=r"'CPUID' at RIP 0x200000 .* call cpu.skip\(exit\)"):
        loop(cpu, lambda cpu, e: None, Instruction("cpuid"))


def test_rip_is_not_advanced_any_more_after_many_good_exits(cpu: Cpu) -> None:
    """The quick way of a round trip is left when an exit repeats itself."""
    mapped(cpu)
    seen = []

    def tires(cpu: Cpu, exit: Exit) -> None:
        seen.append(exit.rip)
        if len(seen) < 100:
            cpu.skip(exit)

    with pytest.raises(EmulationStopped, match="did not advance RIP"):
        loop(cpu, tires, Instruction("cpuid"), Loop(0, 1000))
    assert 100 < len(seen) < 150


def test_a_loop_at_one_address_makes_progress(cpu: Cpu) -> None:
    mapped(cpu)
    assert loop(cpu, lambda cpu, e: cpu.skip(e), Instruction("cpuid"), Loop(0, 300)) == 300


def test_the_page_was_not_mapped(cpu: Cpu) -> None:
    with pytest.raises(EmulationStopped, match=r"call cpu.ept.map\(exit.ept.gpa\), 0x300000"):
        loop(cpu, lambda cpu, e: None, Instruction("nop"))


def test_the_linear_address_was_mapped(cpu: Cpu) -> None:
    """A frequent slip: EPT gets the address that the guest's own tables translate."""
    cpu.ept.map(0x4000_0000)
    cpu.vmlaunch(Program([Instruction("cpuid")]))
    info = ExitInformation(
        ExitReason.EPT_VIOLATION,
        qualification=0x181,
        guest_linear_address=0x4000_0000,
        guest_physical_address=0x9000,
    )
    progress = Progress()
    with pytest.raises(EmulationStopped, match=r"guest-linear address 0x40000000.*here 0x9000"):
        for _ in range(100):
            progress.see(cpu, info, cpu.ept)


def test_a_right_is_missing(cpu: Cpu) -> None:
    cpu.ept.map(0, size="2M")
    cpu.ept.map(0x20_0000, size="2M")

    def read_only(cpu: Cpu, exit: Exit) -> None:
        cpu.ept.map(exit.ept.gpa, write=False)

    store = Instruction("store", {"address": DIRECT_MAP + 0x90_0000, "size": 8, "value": 1})
    with pytest.raises(EmulationStopped, match=r"without permission to write: .* write=True"):
        loop(cpu, read_only, store)


def test_an_event_was_not_dealt_with(cpu: Cpu) -> None:
    mapped(cpu)
    cpu.exiting.exceptions.add("#UD")
    with pytest.raises(EmulationStopped, match="neither injected the exception"):
        loop(cpu, lambda cpu, e: None, Instruction("ud2"))


def test_a_failed_entry_is_tried_again_and_again(cpu: Cpu) -> None:
    mapped(cpu)

    def breaks(cpu: Cpu, exit: Exit) -> None:
        cpu.vmwrite(Field.GUEST_RFLAGS, 0)

    with pytest.raises(EmulationStopped, match="Bit 1 of guest RFLAGS is 1"):
        loop(cpu, breaks, Instruction("cpuid"))


def test_after_the_sentence_the_guest_can_go_on(cpu: Cpu) -> None:
    mapped(cpu)
    with pytest.raises(EmulationStopped):
        loop(cpu, lambda cpu, e: None, Instruction("cpuid"))
    cpu.vmwrite(Field.GUEST_RIP, cpu.vmread(Field.GUEST_RIP) + 2)
    assert cpu.vmresume().reason is ExitReason.HLT


def test_what_changes_is_progress(cpu: Cpu) -> None:
    mapped(cpu)

    def counts(cpu: Cpu, exit: Exit) -> None:
        cpu.regs.rbx += 1
        if cpu.regs.rbx == 200:
            cpu.skip(exit)

    assert loop(cpu, counts, Instruction("cpuid")) == 200


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda cpu: cpu.vmresume(), "the first entry of a VMCS is VMLAUNCH"),
        (lambda cpu: cpu.vmptrld(0x5000), "IA32_VMX_BASIC"),
        (lambda cpu: cpu.vmclear(0x1234), "4-KByte region"),
        (lambda cpu: cpu.vmxon(), "already"),
        (lambda cpu: cpu.vmwrite(0x4F00, 1), "vtx explain"),
    ],
)
def test_a_failed_instruction_says_what_helps(cpu: Cpu, mistake: Handler, says: str) -> None:
    with pytest.raises(vtx.VMfailValid, match=says) as caught:
        mistake(cpu)
    assert caught.value.hint


def test_nothing_works_without_vmxon_and_vmptrld() -> None:
    with Cpu() as cpu:
        with pytest.raises(vtx.GuestFault, match=r"cpu.vmxon\(\)"):
            cpu.vmlaunch()
        cpu.vmxon()
        for instruction in (cpu.vmlaunch, lambda: cpu.vmread(Field.GUEST_RIP)):
            with pytest.raises(vtx.VMfailInvalid, match="VMPTRLD"):
                instruction()


def test_an_entry_failure_tells_its_rule(cpu: Cpu) -> None:
    cpu.vmwrite(Field.GUEST_RFLAGS, 0)
    assert (
        cpu.vmlaunch(Program([Instruction("nop")]))
        .explain()
        .endswith("(check guest.rflags.reserved_1). Bit 1 of guest RFLAGS is 1.")
    )


def test_a_launch_that_fails_over_and_over(cpu: Cpu) -> None:
    cpu.guest.rflags = 0
    assert cpu.vmlaunch(Program([Instruction("hlt")])).check == "guest.rflags.reserved_1"
    with pytest.raises(EmulationStopped, match="still breaks the rule Bit 1 of guest RFLAGS"):
        for _ in range(400):
            cpu.vmlaunch()


def test_an_injected_page_fault_that_cannot_be_delivered(cpu: Cpu) -> None:
    mapped(cpu)
    cpu.exiting.exceptions.add("#PF")
    cpu.guest.rsp = 0x7000_0000_0000

    def again(cpu: Cpu, exit: Exit) -> None:
        cpu.inject("#PF", error_code=exit.exception.error_code)

    with pytest.raises(EmulationStopped, match=r"#PF arises while #PF is delivered .* inject #DF"):
        loop(cpu, again, Instruction("exception", (("vector", 6),)))
