"""Events, IRET and the flag instructions outside IA-32e mode, as another emulator (Bochs) has them.

Each case enters a guest in protected mode (32-bit or PAE paging), virtual-8086 mode or real-address
mode, with tables that are damaged at random; it injects an event or executes one instruction, and
every handler begins with CPUID, which exits. Compared are the exit with all its information, the
saved registers and segment registers, and the memory of stacks and GDT. Not compared, because
the manual leaves them undefined or open:

* the instruction length of exits due to hardware exceptions, task switches by them, triple faults;
* what a triple fault left in memory before it;
* the access rights of CS in real-address mode: that emulator changes them at VM entry already.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vtx.cpu import Cpu, Machine
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Field
from vtx.hypervisor.verify.processors import shape_of
from vtx.machine.program import Instruction, Program

CORPUS = Path(__file__).parents[1] / "data" / "deliveries.jsonl.xz"
LINES = lzma.decompress(CORPUS.read_bytes()).decode().splitlines()
HEADER, CASES = json.loads(LINES[0]), [json.loads(line) for line in LINES[1:]]
SHAPE = shape_of({"cpu_model": "tigerlake"}, "")
EXCEPTION, HARDWARE = ExitReason.EXCEPTION_OR_NMI, 3
VALID = 1 << 31


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(SHAPE, memory_bytes=1 << 32) as machine:
        yield machine


def step_of(case: dict[str, Any], rip: int) -> Instruction:
    """Return the instruction of a case (CPUID if it injects an event)."""
    name, _, rest = case["how"].partition(" ")
    if name == "inject":
        return Instruction("cpuid", rip=rip)
    operands = {"vector": int(rest)} if name == "int" else {}
    if rest.startswith("size="):
        operands = {"operand_size": int(rest.removeprefix("size="))}
    return Instruction(name, operands, length=case["length"], rip=rip)


def run(case: dict[str, Any], machine: Machine) -> tuple[Cpu, dict[int, int]]:
    """Run a case; return the processor and what its VMCS held before."""
    memory = machine.memory
    memory.clear()
    for contents in (HEADER["memory"], case["memory"]):
        for address, content in contents.items():
            memory.write(int(address, 16), bytes.fromhex(content))
    cpu = Cpu(machine=machine)
    cpu.vmxon(cpu.new_region())
    region = cpu.new_region()
    cpu.vmclear(region)
    cpu.vmptrld(region)
    fields = HEADER["goldens"][case["base"]] | case["fields"]
    before = {int(name, 16): value for name, value in fields.items()}
    for field, value in before.items():
        if field in FIELDS and SHAPE.field_exists(Field(field)):
            cpu.vmwrite(field, value)
    rip = before.get(Field.GUEST_RIP, 0)
    step = step_of(case, rip)
    steps = [step]
    if step.name != "cpuid":
        steps.append(Instruction("cpuid", rip=step.end))
    if case["target"]:
        steps.append(Instruction("cpuid", rip=case["target"]))  # where IRET leads
    handler = Program((Instruction("cpuid"),))
    cpu.vmlaunch(Program(tuple(steps), handlers=dict.fromkeys(range(256), handler)))
    return cpu, before


def compared(case: dict[str, Any]) -> list[Field]:
    """Return the fields whose value the manual defines for the exit."""
    skipped = set()
    exit = case["exit"]
    information = exit.get(f"{Field.VM_EXIT_INTERRUPTION_INFORMATION:x}", 0)
    vectoring = exit.get(f"{Field.IDT_VECTORING_INFORMATION:x}", 0)
    source = information if exit["reason"] == EXCEPTION else vectoring
    hardware = source >> 8 & 7 in (0, 2, HARDWARE)
    reason = exit["reason"]
    if reason == ExitReason.TRIPLE_FAULT or (reason == EXCEPTION and hardware):
        skipped.add(Field.VM_EXIT_INSTRUCTION_LENGTH)
    if reason == ExitReason.TASK_SWITCH and vectoring & VALID and hardware:
        skipped.add(Field.VM_EXIT_INSTRUCTION_LENGTH)
    if not information & 1 << 11:
        skipped.add(Field.VM_EXIT_INTERRUPTION_ERROR_CODE)
    if not vectoring & 1 << 11:
        skipped.add(Field.IDT_VECTORING_ERROR_CODE)
    if case["base"] == "greal":
        skipped.add(Field.GUEST_CS_ACCESS_RIGHTS)
    names = ("RIP", "RSP", "RFLAGS", "INTERRUPTIBILITY_STATE", "ACTIVITY_STATE")
    fields = [Field[f"GUEST_{name}"] for name in names]
    for segment in ("CS", "SS", "DS", "ES", "FS", "GS"):
        fields += [Field[f"GUEST_{segment}_{part}"]
                   for part in ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")]  # fmt: skip
    fields += [
        Field.EXIT_QUALIFICATION,
        Field.VM_EXIT_INSTRUCTION_LENGTH,
        Field.VM_EXIT_INTERRUPTION_INFORMATION,
        Field.VM_EXIT_INTERRUPTION_ERROR_CODE,
        Field.IDT_VECTORING_INFORMATION,
        Field.IDT_VECTORING_ERROR_CODE,
    ]
    return [field for field in fields if field not in skipped]


def value_of(values: dict[int, int], field: Field) -> int:
    """Return a field; of a segment register that is unusable only that it is."""
    name = field.name
    if name.startswith("GUEST_") and name.endswith(("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")):
        rights = values.get(Field["_".join(name.split("_")[:2]) + "_ACCESS_RIGHTS"], 0)
        if rights >> 16 & 1:
            return 1 << 16
    return values.get(field, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['how']}")
def test_as_the_other_emulator(case: dict[str, Any], machine: Machine) -> None:
    cpu, before = run(case, machine)
    assert cpu.vmcs is not None
    ours = {int(field): value for field, value in cpu.vmcs.values.items()}
    theirs = before | {int(k, 16): v for k, v in case["exit"].items() if k != "reason"}
    assert ours[Field.EXIT_REASON] == case["exit"]["reason"]
    differ = {
        field.name: (hex(value_of(ours, field)), hex(value_of(theirs, field)))
        for field in compared(case)
        if value_of(ours, field) != value_of(theirs, field)
    }
    assert not differ
    if case["exit"]["reason"] != ExitReason.TRIPLE_FAULT:
        for address, content in case["after"].items():
            found = machine.memory.read(int(address, 16), len(content) // 2).hex()
            assert (address, found) == (address, content)
