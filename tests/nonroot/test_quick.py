"""The quick way of a round trip leaves everything as the full way does, whatever happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtx.cpu import Cpu
from vtx.errors import VtxError
from vtx.facts.controls import Pin, Proc1
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.processor import PendingEvents
from vtx.machine.program import Loop, Program
from vtx.machine.registers import Registers, Rflags
from vtx.machine.vmcs import Vmcs
from vtx.nonroot.quick import QuickPath

LINES = (
    "cpuid leaf=1", "vmcall", "rdmsr msr=0x1b", "wrmsr msr=0x1b value=5", "hlt", "pause", "nop",
    "out dx, al port=0x3f8 value=0x41", "in al, 0x60", "mov cr3, rax value=0x300000", "rdtsc",
    "mov rax, cr8", "store 0x7000 value=1", "load 0x20000000", "sti", "cli", "invlpg [0x7000]",
    "external_interrupt vector=32", "xsetbv", "ud2", "monitor", "mwait", "rdpmc", "wbinvd",
)  # fmt: skip


ALWAYS = ("cpuid leaf=1", "cpuid", "vmcall")


def state(cpu: Cpu) -> dict[str, Any]:
    """Return everything that can be observed of a processor."""
    regs, vmcs, cursor = cpu.regs, cpu.vmcs, cpu.cursors[-1]
    plain = (
        "non_root",
        "in_vmx",
        "tsc",
        "steps",
        "nmi_blocked",
        "monitor_armed",
        "delivered",
        "preemption_timer",
        "pause_loop",
        "apic_write",
        "pending",
        "current_vmcs_pointer",
    )
    return {
        "values": dict(vmcs.values),
        "dirty": set(vmcs.dirty),
        "launched": vmcs.launched,
        **{name: getattr(regs, name) for name in Registers.__slots__ if name != "msrs"},
        "msrs": dict(regs.msrs),
        **{name: getattr(cpu, name) for name in plain},
        "context": repr(cpu.context),
        "counters": cpu.mmu.counters(),
        "counts": {reason: list(row) for reason, row in cpu.events.counts.items()},
        "handling": cpu.events.reason,
        "row": list(cpu.events.row),
        "exits": list(cpu.events.exits),
        "exit_count": cpu.events.exit_count,
        "cursor": (cursor.index, cursor.reached, cursor.address, dict(cursor.iterations)),
        "cursors": len(cpu.cursors),
    }  # fmt: skip


class Pair:
    """Two machines that do the same; one of them never takes the quick way."""

    def __init__(self, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.taken = 0
        self.quick, self.full = Cpu(profile="skylake_sp"), Cpu(profile="skylake_sp")
        # A guest that never exits would never come back.
        lines = lines if lines[0] in ALWAYS else [*lines, "vmcall"]
        program = Program((*map(parse_instruction, lines), Loop(0, 1 << 40)))
        self.exits: list[Exit | None] = [None, None]
        self.both(lambda cpu: cpu.vmxon())
        self.both(lambda cpu: cpu.load(Vmcs.for_64bit_guest(cpu.shape)))
        self.both(lambda cpu: cpu.vmlaunch(program))

    def both(self, action: Callable[[Cpu], Any]) -> None:
        """Do the same on both, and compare all there is."""
        outcomes = []
        for number, cpu in enumerate((self.quick, self.full)):
            try:
                outcome = action(cpu)
            except VtxError as error:
                outcome = (type(error), str(error))
            if isinstance(outcome, Exit):
                self.exits[number] = outcome
                outcome = outcome.information
            outcomes.append(outcome)
        assert outcomes[0] == outcomes[1]
        if self.quick.cursors:
            before, after = state(self.full), state(self.quick)
            assert {key: after[key] for key in after} == before

    def resume(self) -> None:
        """VMRESUME on both; the second forgets what it learnt."""

        def resume(cpu: Cpu) -> Exit:
            if cpu is self.full:
                cpu.vmcs.quick = None
                return cpu.vmresume()
            original = QuickPath.round_trip

            def counted(path: QuickPath) -> Any:
                info = original(path)
                self.taken += info is not None
                return info

            with self.monkeypatch.context() as patch:
                patch.setattr(QuickPath, "round_trip", counted)
                return cpu.vmresume()

        self.both(resume)

    def handle(self, *, skip: bool = True) -> None:
        """Do what a VMM does about the last exit, and resume."""
        if self.full.non_root:  # the guest is stuck: it does not exit
            return

        def handle(cpu: Cpu) -> None:
            exit = self.exits[cpu is self.full]
            assert exit is not None
            if exit.information.exit_reason_bits:
                return
            if exit.reason is ExitReason.EPT_VIOLATION:
                cpu.ept.map(exit.ept.gpa & ~0x1F_FFFF, size="2M")
            elif skip and exit.information.instruction_length:
                cpu.vmwrite(F.GUEST_RIP, exit.rip + exit.instruction_length)

        self.both(handle)
        self.resume()


def write(field: F, value: int) -> Callable[[Cpu], Any]:
    return lambda cpu: cpu.vmwrite(field, value)


def toggle(field: F, mask: int) -> Callable[[Cpu], Any]:
    return lambda cpu: cpu.vmwrite(field, cpu.vmread(field) ^ mask)


def pend(name: str, value: Any) -> Callable[[Cpu], Any]:
    return lambda cpu: setattr(cpu.pending, name, value)


def put(name: str, value: Any) -> Callable[[Cpu], Any]:
    return lambda cpu: setattr(cpu.regs, name, value)


def forget_code(cpu: Cpu) -> None:
    """Unmap the guest's code, and let no translation of it stay."""
    cpu.ept.unmap(0x20_0000)
    cpu.invept(2)


def other_vmcs(cpu: Cpu) -> None:
    """Have the processor enter another VMCS in between."""
    mine, cursors = cpu.current_vmcs_pointer, cpu.cursors
    cpu.load(Vmcs.for_64bit_guest(cpu.shape))
    cpu.vmlaunch(Program((parse_instruction("vmcall"),)))
    cpu.vmptrld(mine)
    cpu.cursors = cursors


DISTURBANCES: dict[str, Callable[[Cpu], Any]] = {
    "nothing": lambda cpu: None,
    "hlt exiting": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.HLT_EXITING),
    "rdtsc exiting": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.RDTSC_EXITING),
    "io exiting": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.UNCONDITIONAL_IO_EXITING),
    "msr bitmaps": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.USE_MSR_BITMAPS),
    "mtf": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.MONITOR_TRAP_FLAG),
    "interrupt window": toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.INTERRUPT_WINDOW_EXITING),
    "interrupts deliver": toggle(F.PIN_BASED_CONTROLS, Pin.EXTERNAL_INTERRUPT_EXITING),
    "timer": toggle(F.PIN_BASED_CONTROLS, Pin.ACTIVATE_VMX_PREEMPTION_TIMER),
    "timer value": write(F.VMX_PREEMPTION_TIMER_VALUE, 1),
    "all exceptions": write(F.EXCEPTION_BITMAP, 0xFFFF_FFFF),
    "inject": write(F.VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0020),
    "inject an exception": write(F.VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0306),
    "blocking": write(F.GUEST_INTERRUPTIBILITY_STATE, 8),
    "blocking by STI": write(F.GUEST_INTERRUPTIBILITY_STATE, 1),
    "no blocking": write(F.GUEST_INTERRUPTIBILITY_STATE, 0),
    "asleep": write(F.GUEST_ACTIVITY_STATE, 1),
    "awake": write(F.GUEST_ACTIVITY_STATE, 0),
    "RF": toggle(F.GUEST_RFLAGS, 1 << 16),
    "TF": toggle(F.GUEST_RFLAGS, 1 << 8),
    "IF": toggle(F.GUEST_RFLAGS, 1 << 9),
    "bad flags": toggle(F.GUEST_RFLAGS, 1 << 3),
    "RIP not canonical": write(F.GUEST_RIP, 0x8000_0000_0000),
    "RSP": write(F.GUEST_RSP, 0x30_0000),
    "stack rights": toggle(F.GUEST_SS_ACCESS_RIGHTS, 0x60),
    "code rights": toggle(F.GUEST_CS_ACCESS_RIGHTS, 0x60),
    "host RIP": toggle(F.HOST_RIP, 0x1000),
    "host RSP": toggle(F.HOST_RSP, 0x1000),
    "bad host": toggle(F.HOST_CR4, 0x20),
    "MSR area": toggle(F.VM_EXIT_MSR_STORE_COUNT, 1),
    "entry MSR area": toggle(F.VM_ENTRY_MSR_LOAD_COUNT, 1),
    "nmi": pend("nmi", True),
    "init": pend("init", True),
    "machine check": pend("machine_check", True),
    "interrupt": lambda cpu: cpu.pending.interrupts.append(33),
    "host rax": put("rax", 0x1234),
    "host rcx": put("rcx", 0x10),
    "host rdx": put("rdx", 0x60),
    "host flags": put("rflags", 0x246),
    "host cr3": lambda cpu: setattr(cpu.regs, "cr3", cpu.regs.cr3),
    "host MOV SS": put("interruptibility_state", 2),
    "host MSR": lambda cpu: cpu.regs.write_msr(Msr.IA32_PAT, 0x0606_0606_0606_0606),
    "host efer": lambda cpu: cpu.regs.write_msr(Msr.IA32_EFER, cpu.regs.efer ^ 0x800),
    "read": lambda cpu: cpu.vmread(F.GUEST_CR3),
    "read no field": lambda cpu: cpu.vmread(0x7FFE),
    "write read-only": write(F.EXIT_REASON, 5),
    "invept": lambda cpu: cpu.invept(2),
    "invvpid": lambda cpu: cpu.invvpid(2),
    "unmap": forget_code,
    "other VMCS": other_vmcs,
    "smm": lambda cpu: setattr(cpu, "in_seam", not cpu.in_seam),
}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.sampled_from(sorted(DISTURBANCES)), st.booleans(), st.integers(1, 8)),
        max_size=5,
    ),
)
def test_quick_and_full_way_agree(
    lines: list[str], disturbances: list[tuple[str, bool, int]]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        pair = Pair(lines, monkeypatch)
        for _ in range(7 * len(lines)):
            pair.handle()
        for name, skip, times in disturbances:
            pair.both(DISTURBANCES[name])
            for _ in range(times):
                pair.handle(skip=skip)


@pytest.mark.parametrize("name", sorted(DISTURBANCES))
def test_quick_way_after_each_disturbance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(["cpuid leaf=1", "rdmsr msr=0x1b"], monkeypatch)
    for _ in range(16):
        pair.handle()
    assert pair.taken >= 5  # else nothing was disturbed
    pair.both(DISTURBANCES[name])
    for _ in range(4):
        pair.handle()
    for _ in range(12):
        pair.handle()


@pytest.mark.parametrize(
    ("line", "steady"),
    [
        ("cpuid leaf=1", True),
        ("vmcall", True),
        ("rdmsr msr=0x1b", True),
        ("out dx, al port=0x3f8 value=0x41", True),
        ("hlt", True),
        ("store 0x20000000 value=1", False),
    ],
)
def test_which_instructions_take_the_quick_way(
    line: str, steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair([line], monkeypatch)
    for _ in range(12):
        pair.handle(skip=steady)
        if not steady:
            pair.both(lambda cpu: cpu.ept.unmap(0x2000_0000))
            pair.both(lambda cpu: cpu.invept(2))
    assert (pair.taken > 3) is steady


@pytest.mark.parametrize(
    ("field", "value", "taken"),
    [
        (F.GUEST_DR7, 0x400, True),
        (F.GUEST_DR7, 0x401, False),  # a breakpoint could be where RIP comes to
        (F.GUEST_CS_ACCESS_RIGHTS, 0xA09B, True),
        (F.GUEST_CS_ACCESS_RIGHTS, 0xC09B, False),  # the segment's base and limit count
        (F.GUEST_RFLAGS, 2, True),
        (F.GUEST_RFLAGS, 2 | Rflags.VIP, False),  # a virtual interrupt could be waiting
    ],
)
def test_which_guests_take_the_quick_way(
    field: F, value: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(["cpuid leaf=1", "vmcall"], monkeypatch)
    pair.both(write(field, value))
    seen = set()
    for _ in range(20):
        pair.handle()
        assert pair.exits[0] is not None
        seen.add(pair.exits[0].information.reason)
    assert {ExitReason.CPUID, ExitReason.VMCALL} == seen - {ExitReason.EPT_VIOLATION}
    assert (pair.taken > 3) is taken


def test_decision_from_memory_is_made_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bitmap in memory can change without any VMWRITE."""
    pair = Pair(["cpuid", "rdmsr msr=0x1b"], monkeypatch)
    pair.both(toggle(F.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.USE_MSR_BITMAPS))
    bitmap = 0x80_0000
    pair.both(write(F.MSR_BITMAP, bitmap))
    pair.both(lambda cpu: cpu.memory.write(bitmap, b"\xff" * 4096))
    for _ in range(20):
        pair.handle()
    assert pair.exits[0] is not None
    seen = {record.reason for record in list(pair.quick.events.exits)[-2:]}
    assert seen == {ExitReason.RDMSR, ExitReason.CPUID}
    pair.both(lambda cpu: cpu.memory.write(bitmap, bytes(4096)))
    for _ in range(4):
        pair.handle()
    assert [record.reason for record in list(pair.quick.events.exits)[-2:]] == [
        ExitReason.CPUID, ExitReason.CPUID,
    ]  # fmt: skip


def test_every_pending_event_stops_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {"interrupts": [32], "sipi": 0}
    for member in dataclasses.fields(PendingEvents):
        pair = Pair(["cpuid"], monkeypatch)
        for _ in range(10):
            pair.handle()
        quick = pair.quick.vmcs.quick
        assert isinstance(quick, QuickPath)
        pair.quick.vmwrite(F.GUEST_RIP, pair.quick.vmread(F.GUEST_RIP) + 2)
        setattr(pair.quick.pending, member.name, some.get(member.name, True))
        assert quick.round_trip() is None, member.name
