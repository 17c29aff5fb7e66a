"""Transitions that exchange whole values do what going through the table does.

A history of VM entries and exits, with whatever guest and VMM may do in between, is played twice:
as it is, and with the exchanges turned off. Nothing may differ at any point.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rules.transition_states import leave, loaded, reenter
from vtx.cpu import Cpu
from vtx.facts.controls import Entry, Exit1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import Registers, Segment, SystemRegisters, TableRegister
from vtx.machine.vmcs import Vmcs
from vtx.rules import transitions
from vtx.rules.transitions_table import CONDITIONAL, GUEST_FIELDS, HOST_FIELDS

SEGMENTS = [Segment(8, 0, 0xFFFF_FFFF, 0xA09B), Segment(0, 5, 6, 0x1_0000), Segment(3, 1, 2, 0xF93)]
TABLES = [TableRegister(0x1000, 0xFF), TableRegister(0x2000, 0x1FF)]
MSRS = [row.register for row in CONDITIONAL if isinstance(row.register, Msr)]
MSRS += [Msr.IA32_LSTAR, Msr.IA32_UINTR_MISC]
# The guest stays in 64-bit mode, so that a 64-bit host and EPT stay possible.
NUMBERS = st.sampled_from([0, 1, 0x500, 0xD01, 0x1_0000_0000])
MODE_FIELDS = {Field.GUEST_CR4, Field.GUEST_IA32_EFER, Field.HOST_CR4, Field.HOST_IA32_EFER}
FIELDS = [
    *sorted((GUEST_FIELDS | HOST_FIELDS) - MODE_FIELDS),
    Field.VPID, Field.EPT_POINTER, Field.GUEST_RIP, Field.PML_INDEX,
]  # fmt: skip
TOGGLED = {
    Field.VM_ENTRY_CONTROLS: [
        Entry.LOAD_DEBUG_CONTROLS, Entry.LOAD_IA32_EFER, Entry.LOAD_IA32_PAT, Entry.LOAD_UINV,
        Entry.LOAD_CET_STATE, Entry.LOAD_FRED,
    ],
    Field.VM_EXIT_CONTROLS: [
        Exit1.SAVE_DEBUG_CONTROLS, Exit1.LOAD_IA32_EFER, Exit1.SAVE_IA32_EFER,
        Exit1.LOAD_CET_STATE, Exit1.CLEAR_UINV, Exit1.LOAD_IA32_PAT, Exit1.LOAD_PKRS,
    ],
    Field.SECONDARY_PROCESSOR_BASED_CONTROLS: [Proc2.ENABLE_VPID, Proc2.ENABLE_PML],
}  # fmt: skip


def system_values(name: str) -> st.SearchStrategy[Any]:
    """Return values for a system register."""
    if name in ("gdtr", "idtr"):
        return st.sampled_from(TABLES)
    if name in ("cr0", "cr4"):
        return st.sampled_from({"cr0": [0x8005_0033, 0xE005_0033], "cr4": [0x26A0, 0x2620]}[name])
    if name in ("cr3", "dr7", "ssp"):
        return st.sampled_from([0x400, 0x1000, 0x2401])
    return st.sampled_from(SEGMENTS)


CHANGES = st.one_of(
    st.sampled_from(SystemRegisters._fields).flatmap(
        lambda name: st.tuples(st.just("register"), st.just(name), system_values(name))
    ),
    st.tuples(
        st.just("register"), st.sampled_from(["rip", "rsp", "rflags", "rax", "cr2"]), NUMBERS
    ),
    st.tuples(st.just("msr"), st.sampled_from(MSRS), NUMBERS),
)
WRITES = st.one_of(
    CHANGES,
    st.tuples(st.just("field"), st.sampled_from(FIELDS), NUMBERS),
    st.sampled_from([(f, c) for f, controls in TOGGLED.items() for c in controls]).map(
        lambda pair: ("toggle", *pair)
    ),
    st.tuples(st.just("vmcs"), st.just(0), st.just(0)),
)
ROUNDS = st.lists(
    st.tuples(st.lists(CHANGES, max_size=2), st.lists(WRITES, max_size=2)), min_size=2, max_size=8
)


def apply(cpu: Cpu, other: list[Vmcs], kind: str, what: Any, value: Any) -> None:
    """Do something between two transitions."""
    vmcs = cpu.vmcs
    assert vmcs is not None
    if kind == "register":
        setattr(cpu.regs, what, value)
    elif kind == "msr":
        if what == Msr.IA32_EFER:
            value |= 0x500
        cpu.regs.write_msr(what, value)
    elif kind == "field":
        vmcs[what] = value
    elif kind == "toggle":
        vmcs[what] = vmcs[what] ^ value
    else:
        # Work with another VMCS for a while.
        cpu.vmcs, other[0] = other[0], vmcs


def state(cpu: Cpu) -> dict[str, Any]:
    """Return everything that transitions move."""
    vmcs = cpu.vmcs
    assert vmcs is not None
    regs = cpu.regs
    names = [name for name in Registers.__slots__ if name not in ("msrs", "system")]
    context = cpu.context
    return {
        **{name: getattr(regs, name) for name in names},
        **regs.system._asdict(),
        **{f"msr {msr:#x}": value for msr, value in regs.msrs.items() if value},
        **{field.name: value for field, value in vmcs.fields()},
        "context": [context.cr0, context.cr3, context.cr4, context.efer, context.cpl, context.eptp,
                    context.vpid, context.pml_address] if cpu.non_root else None,
    }  # fmt: skip


def play(rounds: list[Any]) -> list[dict[str, Any]]:
    """Play a history; return the state after each transition."""
    cpu = loaded()
    other = [Vmcs.for_64bit_guest(cpu.shape).update(guest_rip=0x1234, host_rip=0x5678)]
    states = []
    for by_guest, by_vmm in rounds:
        reenter(cpu)
        states.append(state(cpu))
        for change in by_guest:
            apply(cpu, other, *change)
        leave(cpu, ExitReason.CPUID)
        states.append(state(cpu))
        for write in by_vmm:
            apply(cpu, other, *write)
    return states


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROUNDS)
def test_exchanges_change_nothing(monkeypatch: pytest.MonkeyPatch, rounds: list[Any]):
    fast = play(rounds)
    with monkeypatch.context() as patch:
        patch.setattr(transitions, "exchange_for_guest", lambda processor, vmcs: False)
        patch.setattr(transitions, "exchange_for_host", lambda processor, known: False)
        slow = play(rounds)
    for number, (one, two) in enumerate(zip(fast, slow, strict=True)):
        differ = {key: (one.get(key), two.get(key)) for key in one | two
                  if one.get(key) != two.get(key)}  # fmt: skip
        assert not differ, f"after transition {number}"


def test_exchanges_happen():
    cpu = loaded()
    for _ in range(2):
        reenter(cpu)
        leave(cpu)
    guest, host = cpu.vmcs.synced.guest, cpu.regs.system
    reenter(cpu)
    assert cpu.regs.system is guest
    leave(cpu)
    assert cpu.regs.system is host
    assert cpu.vmcs.synced.paired


@pytest.mark.parametrize("name", ["ss", "cs", "cr0", "dr7", "ssp"])
def test_the_same_registers_at_every_exit(monkeypatch: pytest.MonkeyPatch, name: str):
    # What VM entry loads is not always what was saved: SS when it is unusable, cache bits of CR0.
    value = {"ss": SEGMENTS[1], "cs": SEGMENTS[0], "cr0": 0xE005_0033}.get(name, 0x2401)
    rounds: list[Any] = [([("register", name, value)], [])] * 5 + [([], [])] * 2
    fast = play(rounds)
    monkeypatch.setattr(transitions, "exchange_for_guest", lambda processor, vmcs: False)
    monkeypatch.setattr(transitions, "exchange_for_host", lambda processor, known: False)
    assert fast == play(rounds)


def test_an_msr_that_is_saved_but_not_loaded(monkeypatch: pytest.MonkeyPatch):
    toggle = ("toggle", Field.VM_EXIT_CONTROLS, Exit1.LOAD_CET_STATE)
    rounds: list[Any] = [([("msr", Msr.IA32_S_CET, 1)], [toggle]), ([], []), ([], [])]
    fast = play(rounds)
    monkeypatch.setattr(transitions, "exchange_for_guest", lambda processor, vmcs: False)
    monkeypatch.setattr(transitions, "exchange_for_host", lambda processor, known: False)
    assert fast == play(rounds)


def test_a_handler_with_a_null_stack_segment_is_exchanged(monkeypatch: pytest.MonkeyPatch):
    cpu = loaded()
    for _ in range(3):
        reenter(cpu)
        cpu.regs.ss = Segment(0, 0, 0, 0x1_0000)
        leave(cpu)
    monkeypatch.setattr(transitions, "save_guest", None)
    reenter(cpu)
    assert cpu.regs.ss.access_rights == 0x1_4000
    cpu.regs.ss = Segment(0, 0, 0, 0x1_0000)
    leave(cpu)
    assert cpu.vmcs.values[Field.GUEST_SS_ACCESS_RIGHTS] == 0x1_0000


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), st.integers(0, (1 << 64) - 1)))
def test_exit_after_entry_leaves_guest_state_as_it_was(fields: dict[Field, int]):
    cpu = loaded()
    vmcs = cpu.vmcs
    assert vmcs is not None
    for control in Entry:
        if control.name.startswith("LOAD_"):
            vmcs[Field.VM_ENTRY_CONTROLS] |= control
    for field, value in fields.items():
        if "ACCESS_RIGHTS" in field.name:
            value &= 0xF0FF
        elif field == Field.GUEST_CR0:
            value = value & 0x8005_0033 | 0x10
        elif field == Field.GUEST_UINV:
            value &= 0xFF
        elif field == Field.GUEST_DR7:
            value = value & 0x2BFF | 0x400
        vmcs[field] = value
    before = {field: vmcs[field] for field in GUEST_FIELDS}
    reenter(cpu)
    leave(cpu)
    assert {field: vmcs[field] for field in GUEST_FIELDS} == before
