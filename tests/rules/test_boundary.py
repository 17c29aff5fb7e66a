"""Events at an instruction boundary: which comes first, what blocks it, where it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, Bench
from vtx.facts.controls import Exit1, Pin, Proc1, Proc2
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import PendingEvents, Processor
from vtx.machine.registers import Activity, Interruptibility, Rflags
from vtx.rules.boundary import after_vm_entry, at_boundary, is_quiet, steps_to_timer, tick

STI, MOV_SS, NMI_BLOCKED = (
    int(Interruptibility.STI),
    int(Interruptibility.MOV_SS),
    int(Interruptibility.NMI),
)
ACKNOWLEDGE = int(Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
#: Events that all wait at once, highest priority first, with the exit each causes.
ORDER = [
    ("init", 3),
    ("mtf", 37),
    ("debug", 0),
    ("timer", 52),
    ("nmi_window", 8),
    ("nmi", 0),
    ("interrupt_window", 7),
    ("interrupt", 1),
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def at(bench: Bench, *events: str, pin: int = 0, proc1: int = 0, **registers: int) -> Processor:
    """Return a processor at a boundary at which these events wait, each one exiting."""
    pins = {"timer": 0, "nmi": Pin.NMI_EXITING, "interrupt": Pin.EXTERNAL_INTERRUPT_EXITING}
    windows = {"nmi_window": Proc1.NMI_WINDOW_EXITING,
               "interrupt_window": Proc1.INTERRUPT_WINDOW_EXITING}  # fmt: skip
    for event in events:
        pin |= pins.get(event, 0)
        proc1 |= windows.get(event, 0)
    if "nmi_window" in events:
        pin |= Pin.NMI_EXITING | Pin.VIRTUAL_NMIS
    fields = {
        F.PIN_BASED_CONTROLS: int(pin),
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: int(ACTIVATE | proc1),
        F.EXCEPTION_BITMAP: 1 << 1,
        F.VM_EXIT_CONTROLS: bench.initial[F.VM_EXIT_CONTROLS] & ~ACKNOWLEDGE,
    }
    registers.setdefault("rflags", 0x202)
    processor = bench(fields, **registers)
    processor.pending = PendingEvents(
        interrupts=deque([0x30] if "interrupt" in events else []),
        nmi="nmi" in events,
        init="init" in events,
        mtf="mtf" in events,
    )
    processor.preemption_timer = 0 if "timer" in events else None
    if "debug" in events:
        processor.regs.pending_debug_exceptions = 1 << 14
    return processor


# Priority.


@given(st.sets(st.sampled_from([name for name, _ in ORDER])))
def test_the_order_of_priority(bench: Bench, names: set[str]) -> None:
    """Event after event exits in the manual's order until none is left."""
    processor = at(bench, *names)
    left = [pair for pair in ORDER if pair[0] in names]
    for name, reason in left:
        exit = at_boundary(processor)
        assert exit is not None
        assert exit.reason == reason, name
        if name == "nmi":
            assert exit.interruption_information == 1 << 31 | 2 << 8 | 2
        if name == "debug":
            assert exit.interruption_information == 1 << 31 | 3 << 8 | 1
            assert exit.qualification == 1 << 14
        if name == "timer":
            processor.preemption_timer = None
        for window, control in (("nmi_window", Proc1.NMI_WINDOW_EXITING),
                                ("interrupt_window", Proc1.INTERRUPT_WINDOW_EXITING)):  # fmt: skip
            if name == window:
                bench.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] &= ~control
        if name == "interrupt":
            assert list(processor.pending.interrupts) == [0x30]
            processor.pending.interrupts.clear()
    assert at_boundary(processor) is None
    assert processor.delivered is None


# Blocking.


@given(name=st.sampled_from([name for name, _ in ORDER]), enabled=st.booleans(),
       blocking=st.sampled_from([0, STI, MOV_SS, NMI_BLOCKED]))  # fmt: skip
def test_blocking_of_exits(bench: Bench, name: str, enabled: bool, blocking: int) -> None:
    """Interrupts and NMIs that exit are held up by neither IF nor STI nor MOV SS."""
    processor = at(bench, name, rflags=0x202 if enabled else 2)
    processor.regs.interruptibility_state = blocking
    exits = at_boundary(processor) is not None
    expected = {
        "debug": blocking != MOV_SS,
        "nmi_window": not blocking,
        "interrupt_window": enabled and blocking not in (STI, MOV_SS),
    }.get(name, True)
    assert exits == expected


@given(nmi=st.booleans(), enabled=st.booleans(),
       blocking=st.sampled_from([0, STI, MOV_SS, NMI_BLOCKED]))  # fmt: skip
def test_blocking_of_delivery(bench: Bench, nmi: bool, enabled: bool, blocking: int) -> None:
    """What does not exit is delivered to the guest, unless it is blocked."""
    processor = at(bench, rflags=0x202 if enabled else 2)
    processor.regs.interruptibility_state = blocking
    processor.nmi_blocked = blocking == NMI_BLOCKED
    if nmi:
        processor.pending.nmi = True
    else:
        processor.pending.interrupts.append(0x40)
    assert at_boundary(processor) is None
    if nmi:
        delivered = blocking not in (MOV_SS, NMI_BLOCKED)
    else:
        delivered = enabled and blocking not in (STI, MOV_SS)
    assert processor.delivered == ((2 if nmi else 0x40, None) if delivered else None)
    waiting = processor.pending.nmi or bool(processor.pending.interrupts)
    assert waiting != delivered


@given(virtual=st.booleans(), blocked=st.booleans())
def test_nmis_that_exit_are_blocked_only_without_virtual_nmis(
    bench: Bench, virtual: bool, blocked: bool
) -> None:
    processor = at(bench, "nmi", pin=int(Pin.VIRTUAL_NMIS) if virtual else 0)
    processor.nmi_blocked = blocked and not virtual
    if blocked:
        processor.regs.interruptibility_state = NMI_BLOCKED
    assert (at_boundary(processor) is not None) == (virtual or not blocked)


BLOCKED_IN = {
    Activity.ACTIVE: set(),
    Activity.HLT: set(),
    Activity.SHUTDOWN: {"mtf", "interrupt_window", "interrupt"},
    Activity.WAIT_FOR_SIPI: {
        "init", "mtf", "timer", "nmi_window", "nmi", "interrupt_window", "interrupt",
    },
}  # fmt: skip


@pytest.mark.parametrize("state", BLOCKED_IN)
@pytest.mark.parametrize("name", [name for name, _ in ORDER if name != "debug"])
def test_activity_states_block_events(bench: Bench, state: Activity, name: str) -> None:
    processor = at(bench, name)
    processor.regs.activity_state = state
    assert (at_boundary(processor) is None) == (name in BLOCKED_IN[state])
    assert processor.regs.activity_state == state


def test_start_up_ipis(bench: Bench) -> None:
    processor = at(bench)
    processor.pending.sipi = 0x9A
    assert at_boundary(processor) is None
    assert processor.pending.sipi is None  # dropped in every state but one
    processor.pending.sipi = 0x9A
    processor.regs.activity_state = Activity.WAIT_FOR_SIPI
    exit = at_boundary(processor)
    assert exit is not None
    assert (exit.reason, exit.qualification) == (4, 0x9A)


# External interrupts.


@given(acknowledge=st.booleans(), vectors=st.lists(st.integers(16, 255), min_size=1, max_size=3))
def test_acknowledging_on_exit(bench: Bench, acknowledge: bool, vectors: list[int]) -> None:
    processor = at(bench, "interrupt")
    processor.pending.interrupts = deque(vectors)
    if acknowledge:
        bench.vmcs[F.VM_EXIT_CONTROLS] |= ACKNOWLEDGE
    exit = at_boundary(processor)
    assert exit is not None
    assert exit.interruption_information == (1 << 31 | vectors[0] if acknowledge else 0)
    assert list(processor.pending.interrupts) == vectors[acknowledge:]


# The VMX-preemption timer.


@given(value=st.integers(0, 1 << 20), shift=st.integers(0, 8), tsc=st.integers(0, 1 << 20),
       steps=st.lists(st.integers(1, 5000), max_size=5))  # fmt: skip
def test_the_preemption_timer(
    bench: Bench, value: int, shift: int, tsc: int, steps: list[int]
) -> None:
    """It counts down each time bit X of the TSC changes, and stops at 0."""
    processor = at(bench)
    misc = processor.shape.msrs[Msr.IA32_VMX_MISC]
    try:
        processor.shape.msrs[Msr.IA32_VMX_MISC] = misc & ~0x1F | shift  # type: ignore[index]
        processor.tsc, processor.preemption_timer = tsc, value
        needed = steps_to_timer(processor)
        changes = 0
        for count in steps:
            for now in range(processor.tsc + 1, processor.tsc + count + 1):
                changes += (now >> shift) != (now - 1 >> shift)
            tick(processor, count)
            assert processor.preemption_timer == max(value - changes, 0)
        processor.tsc, processor.preemption_timer = tsc, value
        assert needed is not None
        if needed:
            tick(processor, needed - 1)
            assert processor.preemption_timer == 1
            tick(processor)
        assert processor.preemption_timer == 0
    finally:
        processor.shape.msrs[Msr.IA32_VMX_MISC] = misc  # type: ignore[index]


# Debug traps.


@given(pending=st.integers(0, 0x1_FFFF), blocked=st.booleans())
def test_pending_debug_exceptions(bench: Bench, pending: int, blocked: bool) -> None:
    """They become #DB if single-step or an enabled breakpoint is among them, and MOV SS allows."""
    processor = at(bench)
    processor.regs.pending_debug_exceptions = pending
    processor.regs.interruptibility_state = MOV_SS if blocked else 0
    exit = at_boundary(processor)
    due = bool(pending & (1 << 14 | 1 << 12)) and not blocked
    assert (exit is not None) == due
    if exit is not None:
        assert exit.qualification == pending & 0x1_480F
        assert exit.resume_flag == 0
        assert processor.regs.pending_debug_exceptions == 0


# Virtual interrupts.


def virtual_apic(bench: Bench, rvi: int, svi: int, vtpr: int = 0) -> Processor:
    page = bench.page(0)
    processor = at(bench, proc1=int(Proc1.USE_TPR_SHADOW))
    bench.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = int(Proc2.VIRTUAL_INTERRUPT_DELIVERY)
    bench.vmcs[F.VIRTUAL_APIC_ADDRESS] = page
    bench.vmcs[F.GUEST_INTERRUPT_STATUS] = rvi | svi << 8
    memory = processor.memory
    memory.write_u32(page + 0x80, vtpr)
    if rvi:
        memory.write_u32(page + 0x200 + rvi // 32 * 16, 1 << rvi % 32)
    return processor


@given(rvi=st.integers(0, 255), svi=st.integers(0, 255), vtpr=st.integers(0, 255),
       enabled=st.booleans(), window=st.booleans())  # fmt: skip
def test_virtual_interrupt_delivery(
    bench: Bench, rvi: int, svi: int, vtpr: int, enabled: bool, window: bool
) -> None:
    processor = virtual_apic(bench, rvi, svi, vtpr)
    page, memory = bench.vmcs[F.VIRTUAL_APIC_ADDRESS], processor.memory
    assert after_vm_entry(processor) is None
    vppr = vtpr if vtpr >> 4 >= svi >> 4 else svi & 0xF0
    assert memory.read_u32(page + 0xA0) == vppr
    if window:
        bench.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] |= Proc1.INTERRUPT_WINDOW_EXITING
    if not enabled:
        processor.regs.rflags &= ~Rflags.IF
    exit = at_boundary(processor)
    assert (exit is not None) == (window and enabled)
    due = enabled and not window and rvi >> 4 > vppr >> 4
    assert processor.delivered == ((rvi, None) if due else None)
    if due:
        assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] == rvi << 8
        assert memory.read_u32(page + 0x100 + rvi // 32 * 16) == 1 << rvi % 32
        assert memory.read_u32(page + 0x200 + rvi // 32 * 16) == 0
        assert memory.read_u32(page + 0xA0) == rvi & 0xF0


@given(posted=st.sets(st.integers(16, 255), max_size=4), own=st.integers(0, 255))
def test_posted_interrupts(bench: Bench, posted: set[int], own: int) -> None:
    processor = virtual_apic(bench, own, 0, vtpr=0xFF)
    bench.vmcs[F.VM_EXIT_CONTROLS] |= ACKNOWLEDGE
    pins = Pin.EXTERNAL_INTERRUPT_EXITING | Pin.PROCESS_POSTED_INTERRUPTS
    bench.vmcs[F.PIN_BASED_CONTROLS] = int(pins)
    descriptor = bench.page(1, *posted, 256)
    bench.vmcs[F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS] = descriptor
    bench.vmcs[F.POSTED_INTERRUPT_NOTIFICATION_VECTOR] = 0xF2
    page, memory = bench.vmcs[F.VIRTUAL_APIC_ADDRESS], processor.memory
    memory.write_u32(page + 0xA0, 0xF0)
    processor.pending.interrupts = deque([0xF2, 0x31])
    exit = at_boundary(processor)
    assert exit is not None
    assert exit.interruption_information == 1 << 31 | 0x31
    expected = posted | ({own} if own else set())
    for vector in range(256):
        word = memory.read_u32(page + 0x200 + vector // 32 * 16)
        assert word >> vector % 32 & 1 == (vector in expected)
    assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] & 0xFF == max(expected, default=0)
    assert memory.read(descriptor, 33) == bytes(33)


# After VM entry.


@given(vtpr=st.integers(0, 255), threshold=st.integers(0, 15), accesses=st.booleans(),
       shadow=st.booleans(), state=st.sampled_from(Activity))  # fmt: skip
def test_the_tpr_threshold_at_vm_entry(
    bench: Bench, vtpr: int, threshold: int, accesses: bool, shadow: bool, state: Activity
) -> None:
    page = bench.page(0)
    processor = at(bench, proc1=int(Proc1.USE_TPR_SHADOW) if shadow else 0)
    bench.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = (
        int(Proc2.VIRTUALIZE_APIC_ACCESSES) if accesses else 0
    )
    bench.vmcs[F.VIRTUAL_APIC_ADDRESS] = page
    bench.vmcs[F.TPR_THRESHOLD] = threshold
    processor.memory.write_u32(page + 0x80, vtpr)
    processor.regs.activity_state = state
    exit = after_vm_entry(processor)
    awake = state in (Activity.ACTIVE, Activity.HLT)
    assert (exit is not None) == (shadow and accesses and awake and vtpr >> 4 < threshold)
    assert exit is None or exit.reason == 43


def test_the_monitor_trap_flag_after_an_injection(bench: Bench) -> None:
    processor = at(bench, proc1=int(Proc1.MONITOR_TRAP_FLAG))
    assert after_vm_entry(processor) is None
    assert not processor.pending.mtf
    processor.delivered = (32, None)
    after_vm_entry(processor)
    assert processor.pending.mtf


def test_what_makes_boundaries_worth_a_look(bench: Bench) -> None:
    assert is_quiet(at(bench))
    for control in (Proc1.MONITOR_TRAP_FLAG, Proc1.NMI_WINDOW_EXITING,
                    Proc1.INTERRUPT_WINDOW_EXITING):  # fmt: skip
        assert not is_quiet(at(bench, proc1=int(control)))
    assert not is_quiet(at(bench, "timer"))
    assert not is_quiet(virtual_apic(bench, 0, 0))
