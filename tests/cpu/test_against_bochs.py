"""VMX instructions as an independent implementation of them ended."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.cpu import states
from tests.cpu.states import outcome
from vtx.cpu import Cpu, MemoryOperand
from vtx.facts.msrs import Msr
from vtx.machine.shape import Shape

DATA = json.loads((Path(__file__).parents[1] / "data" / "vmx_instructions.json").read_text())
CASES = DATA["cases"]
VMXON_REGION, VMCS_REGION = 0x1000, 0x2000


@cache
def shape() -> Shape:
    """Return the CPU that the cases were run on."""
    msrs = {Msr[name]: value for name, value in DATA["msrs"].items()}
    return Shape("tigerlake", msrs, DATA["maxphyaddr"], DATA["linear_bits"])


def prepare(case: dict[str, Any]) -> Cpu:
    """Return a processor in the state in which a case begins."""
    cpu = states.outside(shape())
    revision = cpu.shape.revision_id
    for address, word in (
        (VMXON_REGION, revision), (VMCS_REGION, revision), (0x3000, revision),
        (0x4000, revision | 1 << 31), (0x5000, revision + 1),
    ):  # fmt: skip
        cpu.memory.write_u32(address, word)
    setup = case["setup"]
    if setup == "unlocked":
        cpu.regs.write_msr(Msr.IA32_FEATURE_CONTROL, 4)
    if setup in ("root", "current", "shadow current"):
        cpu.vmxon(VMXON_REGION)
    if setup in ("current", "shadow current"):
        address = 0x4000 if setup == "shadow current" else VMCS_REGION
        cpu.vmclear(address)
        cpu.vmptrld(address)
    cpu.regs.rflags |= states.STATUS_FLAGS
    modes = {
        "compatibility": states.compatibility_mode,
        "CPL 3": lambda c: states.set_cpl(c, 3),
        "no VMXE": lambda c: setattr(c.regs, "cr4", 0x20),
    }
    if case["mode"] in modes:
        modes[case["mode"]](cpu)
    return cpu


def do(cpu: Cpu, name: str, *operands: Any) -> object:
    """Execute the instruction of a case."""
    memory = {"non-canonical": MemoryOperand(1 << 63), "page fault": MemoryOperand(1 << 41)}
    values = [memory.get(operand, operand) for operand in operands]
    return getattr(cpu, name)(*values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_outcome(case: dict[str, Any]):
    cpu = prepare(case)
    name, *operands = case["do"]
    if name == "write, read":
        written, value, read = operands
        cpu.vmwrite(written, value)
        assert cpu.vmread(read) == case["value"]
    else:
        assert outcome(cpu, lambda c: do(c, name, *operands)) == case["ends"]


def test_deviations_are_few_and_named():
    assert sorted({case["do"][0] for case in CASES if "peer" in case}) == [
        "invvpid", "vmcall", "vmlaunch",
    ]  # fmt: skip
    assert len(CASES) > 150
