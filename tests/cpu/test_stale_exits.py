"""An exit whose fields a later exit has overwritten says so, instead of showing the later one's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vtx
from vtx import Cpu, ExitReason, Field, UsageError, Vmcs


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu() as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        cpu.ept.map(0, size="1G")
        yield cpu


def test_what_was_read_stays_and_the_rest_is_over(cpu: Cpu) -> None:
    first = cpu.vmlaunch(vtx.program("cpuid\nhlt"))
    assert first.reason is ExitReason.CPUID
    cpu.skip(first)
    second = cpu.vmresume()
    assert (first.reason, first.rip) == (ExitReason.CPUID, 0x200000)
    with pytest.raises(UsageError, match=r"this exit is over.* exit_qualification was not read"):
        _ = first.qualification
    with pytest.raises(UsageError, match="this exit is over"):
        first.read(Field.GUEST_CR3)
    assert "CPUID" in first.explain()
    assert second.qualification == 0
    assert second.rip == 0x200002


def test_on_the_quick_way_too(cpu: Cpu) -> None:
    exits = [cpu.vmlaunch(vtx.program("\n".join(["cpuid"] * 40)))]
    for _ in range(30):
        cpu.skip(exits[-1])
        exits.append(cpu.vmresume())
    for exit in exits[:-1]:
        with pytest.raises(UsageError, match="this exit is over"):
            _ = exit.qualification
    assert exits[-1].qualification == 0


def test_registers_of_a_later_exit_are_not_taken_for_an_msr(cpu: Cpu) -> None:
    first = cpu.vmlaunch(vtx.program("rdmsr msr=0x10\nrdmsr msr=0x1b"))
    assert first.msr.index == 0x10
    cpu.skip(first)
    assert cpu.vmresume().msr.index == 0x1B
    with pytest.raises(UsageError, match="this exit is over"):
        _ = first.msr


def test_a_vm_entry_that_fails_before_it_begins_overwrites_nothing(cpu: Cpu) -> None:
    exit = cpu.vmlaunch(vtx.program("cpuid\nhlt"))
    with pytest.raises(vtx.VMfailValid):
        cpu.vmlaunch()
    assert exit.reason is ExitReason.CPUID


def test_other_processors_have_exits_of_their_own() -> None:
    with vtx.Machine(processors=2) as machine:
        exits = []
        for cpu in machine.cpus:
            cpu.vmxon()
            cpu.load(Vmcs.for_64bit_guest(cpu.shape))
            cpu.ept.map(0, size="1G")
            exits.append(cpu.vmlaunch(vtx.program("cpuid\nhlt")))
        assert [exit.reason for exit in exits] == [ExitReason.CPUID] * 2
