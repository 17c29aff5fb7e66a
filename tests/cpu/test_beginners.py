"""What a beginner's VMM leans on: programs with handlers, and mistakes that are named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vtx
from vtx import Cpu, InputError, UsageError, Vmcs


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu() as cpu:
        cpu.vmxon()
        yield cpu


def test_an_exit_before_an_instruction_has_nothing_to_skip(cpu: Cpu) -> None:
    cpu.load(Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    exit = cpu.vmlaunch(vtx.program("external_interrupt vector=0x41\nnop\nhlt"))
    with pytest.raises(UsageError, match="no instruction to skip: 'External interrupt'"):
        cpu.skip(exit)
    cpu.vmresume()
    assert cpu.guest.rip == 0x200001


def test_a_program_brings_its_handlers(cpu: Cpu) -> None:
    cpu.load(Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    handlers = {0x41: "store 0x5000 value=7\niret", "#UD": "store 0x5008 value=8\nhlt\niret"}
    cpu.vmlaunch(vtx.program("external_interrupt vector=0x40\nud2", handlers))
    cpu.inject(0x41)
    assert cpu.vmresume().reason is vtx.ExitReason.HLT
    assert cpu.guest.memory[0x5000] == 7
    assert cpu.guest.memory[0x5008] == 8


def test_a_size_in_the_place_of_an_address_is_named(cpu: Cpu) -> None:
    with pytest.raises(InputError, match=r'cpu.ept.map\(0x5000, size="4K"\)'):
        cpu.ept.map(0x5000, "4K")  # type: ignore[arg-type]
