"""Interrupts between processors: commands, IPI virtualization, posting and its notification."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, GUEST, Bench, execution, fault_of
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import PendingEvents, Processor
from vtx.machine.registers import Activity, Cr4
from vtx.rules.ipi import destinations, send

APIC, APIC_HOST = 0x7000, (1 << 30) + 0x7000
LAST = 5
PAGE, TABLE, DESCRIPTOR = 0, 1, 2


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def at(
    bench: Bench, *, ipis: bool = True, delivery: bool = False, by_msr: bool = False
) -> Processor:
    table = bench.page(TABLE)
    proc2 = Proc2.VIRTUALIZE_X2APIC_MODE if by_msr else Proc2.VIRTUALIZE_APIC_ACCESSES
    if delivery:
        proc2 |= Proc2.VIRTUAL_INTERRUPT_DELIVERY
    processor = bench(
        {
            F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.USE_TPR_SHADOW,
            F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(proc2),
            F.TERTIARY_PROCESSOR_BASED_CONTROLS: Proc3.IPI_VIRTUALIZATION if ipis else 0,
            F.VIRTUAL_APIC_ADDRESS: bench.page(PAGE),
            F.APIC_ACCESS_ADDRESS: APIC_HOST,
            F.PID_POINTER_TABLE_ADDRESS: table,
            F.LAST_PID_POINTER_INDEX: LAST,
            F.GUEST_INTERRUPT_STATUS: 0,
        }
    )
    descriptor = bench.page(DESCRIPTOR)
    for index in range(LAST + 2):
        processor.memory.write_u64(table + 8 * index, descriptor | 1)
    processor.pending = PendingEvents()
    return processor


def describe(bench: Bench, control: int, requests: int = 0) -> int:
    """Fill the descriptor and return its address."""
    address = bench.page(DESCRIPTOR)
    bench.cpu.memory.write(address, requests.to_bytes(32, "little"))
    bench.cpu.memory.write_u64(address + 32, control)
    return address


def write_icr(processor: Processor, low: int, target: int, *, by_msr: bool) -> object:
    """Send a command, and return the exit or None."""
    if by_msr:
        return execution(processor, f"wrmsr msr=0x830 value={target << 32 | low}")
    page = processor.vmcs[F.VIRTUAL_APIC_ADDRESS]
    processor.memory.write_u32(page + 0x310, target << 24)
    return execution(processor, f"store {APIC + 0x300} size=4 value={low}")


@given(
    vector=st.integers(0, 255),
    target=st.integers(0, LAST + 1),
    other=st.sampled_from([0, 0, 0x100, 0x500, 0x800, 0x4000, 0x8000, 0x40000, 0x80000, 0xC0000]),
    on=st.booleans(),
    suppressed=st.booleans(),
    before=st.integers(0, (1 << 256) - 1),
    ipis=st.booleans(),
    delivery=st.booleans(),
    by_msr=st.booleans(),
)
def test_ipi_virtualization(
    bench: Bench,
    vector: int,
    target: int,
    other: int,
    on: bool,
    suppressed: bool,
    before: int,
    ipis: bool,
    delivery: bool,
    by_msr: bool,
) -> None:
    """A fixed, edge-triggered, physical IPI is posted; all else exits, but for a self-IPI."""
    processor = at(bench, ipis=ipis, delivery=delivery, by_msr=by_msr and ipis)
    control = on | suppressed << 1 | 0xF2 << 16
    descriptor = describe(bench, control, before)
    if not (ipis or delivery):
        # The write to 300H is not virtualized at all.
        return
    exit = write_icr(processor, other | vector, target, by_msr=by_msr and ipis)
    memory = processor.memory
    posted = ipis and other in (0, 0x4000) and vector >= 16 and target <= LAST
    requests = int.from_bytes(memory.read(descriptor, 32), "little")
    assert requests == before | (1 << vector if posted else 0)
    notified = posted and not on and not suppressed
    assert list(processor.pending.interrupts) == ([0xF2] if notified else [])
    assert memory.read_u64(descriptor + 32) == control | notified
    to_self = delivery and other == 0x40000 and vector >= 16
    if posted or to_self:
        assert exit is None
        assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] == (vector if to_self else 0)
    else:
        assert (exit.reason, exit.qualification, exit.trap) == (56, 0x300, True)


@pytest.mark.parametrize(("control", "sends"), [(0, True), (1, False), (2, False), (3, False)])
def test_a_descriptor_that_is_outstanding_or_suppressed_sends_nothing(
    bench: Bench, control: int, sends: bool
) -> None:
    processor = at(bench)
    descriptor = describe(bench, control | 0x77 << 16)
    assert write_icr(processor, 0x40, 0, by_msr=False) is None
    assert list(processor.pending.interrupts) == ([0x77] if sends else [])
    assert processor.memory.read_u8(descriptor + 8) == 1


@pytest.mark.parametrize("flaw", [0, 2, 3, 1 | 1 << 5, 1 | 1 << 60])
def test_a_pid_pointer_that_is_not_valid_exits(bench: Bench, flaw: int) -> None:
    processor = at(bench)
    describe(bench, 0)
    table = bench.vmcs[F.PID_POINTER_TABLE_ADDRESS]
    pointer = processor.memory.read_u64(table + 8 * 2) & ~1 | flaw
    processor.memory.write_u64(table + 8 * 2, pointer)
    exit = write_icr(processor, 0x40, 2, by_msr=False)
    assert (exit.reason, exit.qualification) == (56, 0x300)
    assert processor.memory.read(pointer & ~0x3F & (1 << 40) - 1, 40) == bytes(40)


@given(st.integers(0, (1 << 32) - 1))
def test_reserved_bits_of_the_command_fault(bench: Bench, command: int) -> None:
    """Bits 31:20, 17:16 and 13:12 must be 0, whether the command is virtualized or real."""
    for ipis in (True, False):
        processor = at(bench, ipis=ipis, by_msr=True)
        processor.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0D00
        text = f"wrmsr msr=0x830 value={command}"
        if command & (0xFFF << 20 | 3 << 16 | 3 << 12):
            assert fault_of(processor, text) == (13, 0)
        else:
            execution(processor, text)


@pytest.mark.parametrize(("base", "ndst"), [(0xFEE0_0900, 0x0000), (0xFEE0_0D00, 0x0000_0000)])
def test_notifications_go_to_the_processor_that_the_descriptor_names(
    bench: Bench, base: int, ndst: int
) -> None:
    processor = at(bench)
    processor.regs.msrs[Msr.IA32_APIC_BASE] = base
    for destination, reaches in ((ndst, True), (0x0300, False), (0x03, base & 0x400 == 0)):
        processor.pending.interrupts.clear()
        describe(bench, 0x77 << 16 | destination << 32)
        write_icr(processor, 0x40, 0, by_msr=False)
        assert list(processor.pending.interrupts) == ([0x77] if reaches else [])


# ---- Real interrupts between the logical processors of a machine ---------------------------------


def named(sender: int, command: int, count: int) -> list[int]:
    """Restate which processors a command names."""
    shorthand, target = command >> 18 & 3, command >> 32
    everyone = list(range(count))
    if shorthand == 1:
        return [sender]
    if shorthand == 2:
        return everyone
    if shorthand == 3:
        return [number for number in everyone if number != sender]
    if target == 0xFFFF_FFFF:
        return everyone
    if command >> 11 & 1:
        return [n for n in everyone if n // 16 == target >> 16 and target >> n % 16 & 1]
    return [target] if target < count else []


@given(
    sender=st.integers(0, 39),
    shorthand=st.integers(0, 3),
    logical=st.booleans(),
    target=st.one_of(st.integers(0, 50), st.integers(0, 0x3_FFFF), st.just(0xFFFF_FFFF)),
)
def test_destinations(sender: int, shorthand: int, logical: bool, target: int) -> None:
    command = target << 32 | shorthand << 18 | logical << 11 | 0x40
    assert list(destinations(sender, command, range(40))) == named(sender, command, 40)


def test_what_a_command_brings(bench: Bench) -> None:
    processor = at(bench)
    pending = processor.pending
    send(processor, 0x4_0000 | 0x55)
    send(processor, 0x4_0000 | 0x0F)
    assert list(pending.interrupts) == [0x55]
    for mode, name in ((2, "smi"), (4, "nmi"), (5, "init")):
        assert not getattr(pending, name)
        send(processor, 0x4_0000 | mode << 8)
        assert getattr(pending, name)
        setattr(pending, name, False)
    send(processor, 0x4_0000 | 6 << 8 | 0x12)
    assert pending.sipi is None
    processor.regs.activity_state = Activity.WAIT_FOR_SIPI
    send(processor, 0x4_0000 | 6 << 8 | 0x12)
    assert pending.sipi == 0x12
    pending.sipi = None
    processor.regs.activity_state = Activity.ACTIVE


def test_the_guest_interrupts_itself_through_its_own_apic(bench: Bench) -> None:
    processor = at(bench, ipis=False)
    bench.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = 0
    processor.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0D00
    execution(processor, "wrmsr msr=0x83f value=0x41")
    execution(processor, "wrmsr msr=0x830 value=0x40042")
    assert list(processor.pending.interrupts) == [0x41, 0x42]
    execution(processor, "rdmsr msr=0x830")
    assert processor.regs.rax == 0x40042
    assert fault_of(processor, "wrmsr msr=0x83f value=0x100") == (13, 0)
    processor.pending.interrupts.clear()


# ---- User IPIs ----------------------------------------------------------------------------------

UITT, UPID, INDEX = 0x9000, 0xA000, 3


def with_targets(bench: Bench, vector: int, control: int, **controls: bool) -> Processor:
    """Return a processor whose user-interrupt target table has an entry."""
    processor = at(bench, **controls)
    regs, memory = processor.regs, processor.memory
    regs.cr4 |= Cr4.UINTR
    regs.msrs[Msr.IA32_UINTR_TT] = UITT | 1
    regs.msrs[Msr.IA32_UINTR_MISC] = INDEX
    regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0D00
    memory.write(GUEST + UITT + 16 * INDEX, (1 | vector << 8 | UPID << 64).to_bytes(16, "little"))
    memory.write(GUEST + UPID, control.to_bytes(16, "little"))
    return processor


@given(
    vector=st.integers(0, 63),
    posted=st.integers(0, (1 << 64) - 1),
    on=st.booleans(),
    suppressed=st.booleans(),
    shadow=st.booleans(),
    ipis=st.booleans(),
    target=st.integers(0, LAST + 1),
    by_msr=st.booleans(),
)
def test_user_ipis(
    bench: Bench,
    vector: int,
    posted: int,
    on: bool,
    suppressed: bool,
    shadow: bool,
    ipis: bool,
    target: int,
    by_msr: bool,
) -> None:
    """Posted for the receiver; the notification goes by the real or the virtual APIC."""
    ndst = target if by_msr or not shadow else target << 8
    control = on | suppressed << 1 | 0x99 << 16 | ndst << 32 | posted << 64
    processor = with_targets(bench, vector, control, ipis=ipis, by_msr=by_msr)
    descriptor = describe(bench, 0x77 << 16)
    if not shadow:
        bench.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] = ACTIVATE
    exit = execution(processor, f"senduipi rax index={INDEX}")
    notified = not on and not suppressed
    now = int.from_bytes(processor.memory.read(GUEST + UPID, 16), "little")
    assert now == control | 1 << 64 + vector | (1 if notified else 0)
    interrupts = list(processor.pending.interrupts)
    if not notified:
        assert exit is None
        assert not interrupts
    elif not shadow:
        # This machine's only processor has number 0.
        assert exit is None
        assert interrupts == ([0x99] if ndst == 0 else [])
    elif ipis and target <= LAST:
        assert exit is None
        assert interrupts == [0x77]
        assert processor.memory.read_u8(descriptor + 0x99 // 8) == 1 << 0x99 % 8
    else:
        assert (exit.reason, exit.qualification, exit.trap) == (56, 0x300, True)
        page = processor.vmcs[F.VIRTUAL_APIC_ADDRESS]
        high = target if by_msr else target << 24
        assert processor.memory.read_u32(page + 0x300) == 0x99
        assert processor.memory.read_u32(page + 0x310) == high


@pytest.mark.parametrize(
    ("entry", "control"),
    [
        (UPID << 64, 0),  # not valid
        (1 | 1 << 1 | UPID << 64, 0),
        (1 | 1 << 14 | UPID << 64, 0),
        (1 | 1 << 16 | UPID << 64, 0),
        (1 | (UPID + 1) << 64, 0),
        (1 | UPID << 64, 1 << 2),
        (1 | UPID << 64, 1 << 24),
    ],
)
def test_entries_and_descriptors_with_reserved_bits_fault(
    bench: Bench, entry: int, control: int
) -> None:
    processor = with_targets(bench, 0, control)
    processor.memory.write(GUEST + UITT + 16 * INDEX, entry.to_bytes(16, "little"))
    assert fault_of(processor, f"senduipi rax index={INDEX}") == (13, 0)
    assert fault_of(processor, f"senduipi rax index={INDEX + 1}") == (13, 0)
    assert processor.memory.read(GUEST + UPID, 16) == control.to_bytes(16, "little")
