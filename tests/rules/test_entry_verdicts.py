"""VM entries that another implementation judged (Bochs 3.0), and what the manual says of them.

The sample is a few hundred entries out of thousands that were made at random around seven sound
guests: 64-bit, 32-bit, PAE, virtual-8086 and real-mode ones. Where the implementation is known to
differ from the manual, the case says what the manual says; the manual wins.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr0, Efer
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs
from vtx.rules.check import CHECKS, Stage, check_msr_load, entry_failure, failing_checks

from .entry_support import processor

Outcome = tuple[int | None, int | None, int | None] | None
FILE = Path(__file__).parent.parent / "data" / "entry_verdicts.json.xz"
DOCUMENT: dict[str, Any] = json.loads(lzma.decompress(FILE.read_bytes()))
CASES: list[dict[str, Any]] = DOCUMENT["cases"]
SHAPE = Shape(
    "Tiger Lake of Bochs",
    {Msr[name]: int(value, 16) for name, value in DOCUMENT["capability_msrs"].items()},
    maxphyaddr=DOCUMENT["maxphyaddr"],
    linear_bits=DOCUMENT["linear_bits"],
    features=frozenset(DOCUMENT["features"]),
)


class SparseMemory:
    """Memory of which every address exists, as the other implementation has it."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def write(self, address: int, content: bytes) -> None:
        self.bytes.update(enumerate(content, address))

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.bytes.get(address + n, 0) for n in range(length))


@cache
def _processor() -> Processor:
    return processor(SHAPE)


def prepare(case: dict[str, Any]) -> tuple[Vmcs, Processor]:
    """Return the VMCS of a case, and a processor that has it as its current VMCS."""
    memory = SparseMemory()
    for pointer in ("current_vmcs", "vmxon"):
        memory.write(int(DOCUMENT[pointer], 16), SHAPE.revision_id.to_bytes(4, "little"))
    for content in (DOCUMENT["memory"], case.get("memory", {})):
        for address, text in content.items():
            memory.write(int(address, 16), bytes.fromhex(text))
    vmcs = Vmcs(SHAPE.revision_id)
    for name, value in (DOCUMENT["guests"][case["guest"]] | case["change"]).items():
        vmcs[Field[name.upper()]] = int(value, 16)
    cpu = _processor()
    cpu.memory = memory  # type: ignore[assignment]
    cpu.current_vmcs_pointer = int(DOCUMENT["current_vmcs"], 16)
    return vmcs, cpu


def enter(vmcs: Vmcs, cpu: Processor) -> Outcome:
    """Return what comes of a VM entry: None, or error, reason and qualification."""
    failure = entry_failure(vmcs, cpu)
    if failure is not None:
        return failure[1:]
    kept = cpu.regs
    cpu.regs = kept.copy()
    cpu.regs.cr0 = vmcs[Field.GUEST_CR0]
    cpu.regs.efer = _efer_of_guest(vmcs, kept.efer)
    try:
        return _load_msrs(vmcs, cpu)
    finally:
        cpu.regs = kept


def _efer_of_guest(vmcs: Vmcs, efer: int) -> int:
    """Return IA32_EFER after guest state has been loaded."""
    if vmcs.entry & 1 << 15:
        return vmcs[Field.GUEST_IA32_EFER]
    switched = Efer.LMA | (Efer.LME if vmcs[Field.GUEST_CR0] & Cr0.PG else 0)
    return efer | switched if vmcs.ia32e_guest else efer & ~switched


def _load_msrs(vmcs: Vmcs, cpu: Processor) -> Outcome:
    address = vmcs[Field.VM_ENTRY_MSR_LOAD_ADDRESS]
    for number in range(1, vmcs[Field.VM_ENTRY_MSR_LOAD_COUNT] + 1):
        low, value = (
            int.from_bytes(cpu.memory.read(address + offset, 8), "little") for offset in (0, 8)
        )
        if check_msr_load(cpu, number, low, value) is not None:
            return None, 34, number
        if low == Msr.IA32_EFER:
            cpu.regs.efer = value & ~Efer.LMA | cpu.regs.efer & Efer.LMA
        address += 16
    return None


def outcomes(vmcs: Vmcs, cpu: Processor) -> set[Outcome]:
    """Return all that the manual allows: the order of checks within a stage is not fixed."""
    first = enter(vmcs, cpu)
    broken = failing_checks(vmcs, cpu)
    for stage in (Stage.CONTROLS_AND_HOST, Stage.GUEST):
        allowed = {
            (c.error, c.reason, c.qualification)
            for c in (check.consequence for check in broken if check.area.stage is stage)
        }
        if allowed:
            assert first in allowed
            return {*allowed}
    return {first}


def as_outcome(verdict: list[int | None] | str) -> Outcome:
    if isinstance(verdict, str):
        assert verdict == "entered"
        return None
    error, reason, qualification = verdict
    return error, reason, qualification


def _name(case: dict[str, Any]) -> str:
    return "-".join((case["guest"], *list(case["change"])[:3]))


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_verdict(case: dict[str, Any]) -> None:
    vmcs, cpu = prepare(case)
    expected = case.get("manual", case["verdict"])
    assert as_outcome(expected) in outcomes(vmcs, cpu)


def test_the_sample_is_worth_its_name() -> None:
    kinds = {as_outcome(case["verdict"]) for case in CASES}
    assert len(CASES) >= 300
    assert {None, (7, None, None), (8, None, None)} <= kinds
    assert {(None, 33, 0), (None, 33, 2), (None, 33, 4), (None, 34, 1), (None, 34, 2)} <= kinds
    assert {case["guest"] for case in CASES} == set(DOCUMENT["guests"])
    assert all(case["why"] and case["manual"] != case["verdict"] for case in CASES if "why" in case)


@pytest.mark.parametrize("guest", DOCUMENT["guests"])
def test_the_guests_around_which_it_was_made_are_sound(guest: str) -> None:
    vmcs, cpu = prepare({"guest": guest, "change": {}})
    assert failing_checks(vmcs, cpu) == []
    assert enter(vmcs, cpu) is None


def test_many_checks_fail_somewhere_in_the_sample() -> None:
    seen = {check.id for case in CASES for check in failing_checks(*prepare(case))}
    assert len(seen & set(CHECKS)) > 200
