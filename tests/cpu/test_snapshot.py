"""Snapshots: taken, put back, compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vtx
from vtx import Cpu, ExitReason, Field, Vmcs
from vtx.cpu import Machine
from vtx.errors import EndOfTrace, UsageError
from vtx.machine import snapshot
from vtx.machine.program import Instruction, Loop, Program

#: Attributes of a processor that a snapshot leaves out: what never changes, what is derived from
#: the rest, and what the snapshot has in another form.
DERIVED = {
    "shape", "memory", "number", "events", "fields", "writable_fields", "mmu", "context", "machine",
    "context_vmcs", "root_system", "non_root", "regs", "pending", "cursors", "active_vmcss", "vmcs",
    "link_vmcs", "observer", "watched", "last_exit",
}  # fmt: skip


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu() as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        cpu.ept.map(0, size="1G")
        yield cpu


def guest() -> Program:
    body = [
        Instruction("cpuid", {"leaf": 1}),
        Instruction("store", {"address": 0x5000, "value": 77, "size": 8}),
        Instruction("rdtsc"),
    ]
    return Program([*body, Loop(0, 4), Instruction("hlt")])


def play(cpu: Cpu, exit: vtx.Exit) -> list[tuple[int, int]]:
    seen = []
    while exit.reason is not ExitReason.HLT:
        seen.append((int(exit.reason), exit.rip))
        cpu.regs.rax = len(seen)
        cpu.skip(exit)
        exit = cpu.vmresume()
    return seen


def test_a_restored_machine_does_the_same_again(cpu: Cpu) -> None:
    exit = cpu.vmlaunch(guest())
    cpu.skip(exit)
    state = cpu.machine.snapshot()
    first = play(cpu, cpu.vmresume())
    end = cpu.machine.snapshot()
    assert len(first) == 3
    cpu.machine.restore(state)
    assert cpu.machine.snapshot() == state
    assert play(cpu, cpu.vmresume()) == first
    assert cpu.machine.snapshot() == end
    assert end != state


def test_a_snapshot_does_not_change_afterwards(cpu: Cpu) -> None:
    state = cpu.machine.snapshot()
    twin = cpu.machine.snapshot()
    play(cpu, cpu.vmlaunch(guest()))
    cpu.machine.restore(state)
    cpu.vmwrite(Field.GUEST_RIP, 1)
    cpu.regs.msrs[0x10] = 5
    assert state == twin


def test_differences_are_named(cpu: Cpu) -> None:
    before = cpu.machine.snapshot()
    assert before.differences(cpu.machine.snapshot()) == []
    cpu.regs.rbx = 5
    cpu.vmwrite(Field.GUEST_RSP, 0x1234)
    cpu.guest.memory[0x9004] = 0xFF
    differences = before.differences(cpu.machine.snapshot())
    kinds = [difference.kind for difference in differences]
    assert kinds == ["register", "vmcs", "event", "memory"]
    register, vmcs, event, memory = differences
    assert (register.name, register.before, register.after) == ("cpu 0 rbx", 0, 5)
    assert vmcs.name.endswith(" guest_rsp")
    assert vmcs.after == 0x1234
    assert event.name == "vmwrite under guest"
    assert int(memory.name, 16) % (1 << 30) == 0x9000
    assert memory.after == bytes(4) + b"\xff" + bytes(11)
    assert str(register) == "register cpu 0 rbx: 0x0 -> 0x5"


def test_the_launch_state_and_msrs_count(cpu: Cpu) -> None:
    before = cpu.machine.snapshot()
    cpu.vmlaunch(guest())
    cpu.regs.msrs[0x277] = 0x1234
    names = {d.name.split()[-1] for d in before.differences(cpu.machine.snapshot())}
    assert {"launched", "0x277", "program"} <= names


def test_a_guest_that_runs_has_no_snapshot(cpu: Cpu) -> None:
    with pytest.raises(EndOfTrace):
        cpu.vmlaunch(Program([Instruction("nop")]))
    with pytest.raises(UsageError, match="non-root"):
        cpu.machine.snapshot()


def test_processors_must_be_as_many() -> None:
    with Machine() as one, Machine(processors=2) as two:
        with pytest.raises(UsageError, match="2 logical processors, the machine 1"):
            one.restore(two.snapshot())
        assert any(d.name == "count" for d in one.snapshot().differences(two.snapshot()))


def test_memory_that_was_touched_goes_back_to_zero(cpu: Cpu) -> None:
    state = cpu.machine.snapshot()
    cpu.memory.write(50 << 30, b"x")
    assert 50 << 30 in cpu.memory.frames_in_use()
    cpu.machine.restore(state)
    assert cpu.memory.read(50 << 30, 1) == b"\0"
    assert cpu.memory.frames_in_use() == sorted(state.memory)


def test_every_attribute_of_a_processor_is_accounted_for(cpu: Cpu) -> None:
    known = DERIVED | set(snapshot._SCALARS)
    unknown = {name for name in vars(cpu) if not name.startswith("_")} - known
    assert not unknown, f"a snapshot must hold {unknown}, or DERIVED say why not"
