"""The virtual APIC: registers in memory and in MSRs, and the exits that virtualizing them has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, Bench, execution, fault_of
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.exit_information import ExitInformation
from vtx.machine.processor import Processor
from vtx.rules.execution_memory import ExitTaken

#: Where the guest sees the APIC-access page (identity-mapped), and that page's host address.
APIC, APIC_HOST = 0x7000, (1 << 30) + 0x7000
NAMES = {
    "shadow": Proc1.USE_TPR_SHADOW,
    "accesses": Proc2.VIRTUALIZE_APIC_ACCESSES,
    "x2apic": Proc2.VIRTUALIZE_X2APIC_MODE,
    "registers": Proc2.APIC_REGISTER_VIRTUALIZATION,
    "delivery": Proc2.VIRTUAL_INTERRUPT_DELIVERY,
}
CONTROLS = st.sets(st.sampled_from(["shadow", "registers", "delivery"]))
#: Registers by offset whose reads, and whose writes, "APIC-register virtualization" virtualizes.
WRITES = {0x020, 0x080, 0x0B0, 0x0D0, 0x0E0, 0x0F0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350,
          0x360, 0x370, 0x380, 0x3E0}  # fmt: skip
READS = WRITES | {0x030} | {0x100 + 16 * n for n in range(24)}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def at(bench: Bench, *names: str, rvi: int = 0, svi: int = 0) -> Processor:
    proc2 = sum(NAMES[name] for name in names if name != "shadow")
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE
        | (Proc1.USE_TPR_SHADOW if "shadow" in names else 0),
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(proc2),
        F.VIRTUAL_APIC_ADDRESS: bench.page(0),
        F.APIC_ACCESS_ADDRESS: APIC_HOST,
        F.GUEST_INTERRUPT_STATUS: rvi | svi << 8,
        F.TPR_THRESHOLD: 0,
    }
    return bench(fields)


def virtual(bench: Bench, offset: int) -> int:
    return bench.cpu.memory.read_u32(bench.vmcs[F.VIRTUAL_APIC_ADDRESS] + offset)


def put(bench: Bench, offset: int, value: int) -> None:
    bench.cpu.memory.write_u32(bench.vmcs[F.VIRTUAL_APIC_ADDRESS] + offset, value)


# Memory-mapped accesses.


@given(offset=st.one_of(st.integers(0, 0xFF8), st.sampled_from(sorted(READS | WRITES))),
       size=st.sampled_from([1, 2, 4, 8]), write=st.booleans(), names=CONTROLS)  # fmt: skip
def test_which_accesses_are_virtualized(
    bench: Bench, offset: int, size: int, write: bool, names: set[str]
) -> None:
    """Within the first 4 bytes of a register that the controls virtualize; all others exit (44)."""
    processor = at(bench, "accesses", *names)
    register, byte = offset & ~15, offset & 15
    known = {0x080}
    if "registers" in names:
        known |= WRITES if write else READS
    elif "delivery" in names:
        known |= {0x0B0, 0x300}
    good = "shadow" in names and byte + size <= 4 and register in known
    processor.memory.write(APIC_HOST, bytes(4096))
    put(bench, register, 0x1122_3344)
    text = f"store {APIC + offset} size={size} value=0" if write else f"load {APIC + offset}"
    try:
        exit = execution(processor, text + ("" if write else f" size={size}"))
    except ExitTaken as taken:
        assert not good
        assert taken.information.reason == 44
        assert taken.information.qualification == offset | (0x1000 if write else 0)
    else:
        assert good
        assert exit is None or exit.trap
    assert processor.memory.read(APIC_HOST, 4096) == bytes(4096)


def test_fetches_and_deliveries_exit(bench: Bench) -> None:
    processor = at(bench, "accesses", "shadow", "registers")
    with pytest.raises(ExitTaken) as caught:
        execution(processor, f"fetch {APIC + 0x80}")
    assert caught.value.information.qualification == 0x2080
    processor.regs.rsp = APIC + 0x200
    exit = execution(processor, "int 0x80")
    assert exit is not None
    assert exit.reason == 44
    assert exit.qualification >> 12 == 3
    assert exit.idt_vectoring_information == 1 << 31 | 4 << 8 | 0x80
    assert exit.instruction_length == 2


def test_a_virtualized_read_comes_from_the_virtual_page(bench: Bench) -> None:
    processor = at(bench, "accesses", "shadow")
    put(bench, 0x80, 0x50)
    execution(processor, f"load rcx, {APIC + 0x80} size=4")
    assert processor.regs.rcx & 0xFFFF_FFFF == 0x50


# What a write leads to.


@given(value=st.integers(0, (1 << 32) - 1), threshold=st.integers(0, 15), delivery=st.booleans(),
       svi=st.integers(0, 255))  # fmt: skip
def test_tpr_virtualization(
    bench: Bench, value: int, threshold: int, delivery: bool, svi: int
) -> None:
    names = ("shadow", "accesses", *(["delivery"] * delivery))
    processor = at(bench, *names, svi=svi)
    bench.vmcs[F.TPR_THRESHOLD] = threshold
    exit = execution(processor, f"store {APIC + 0x80} size=4 value={value}")
    vtpr = value & 0xFF
    assert virtual(bench, 0x80) == vtpr
    assert (exit is not None) == (not delivery and vtpr >> 4 < threshold)
    assert exit is None or (exit.reason, exit.trap) == (43, True)
    if delivery:
        assert virtual(bench, 0xA0) == (vtpr if vtpr >> 4 >= svi >> 4 else svi & 0xF0)


@given(svi=st.integers(1, 255), others=st.sets(st.integers(0, 255), max_size=3),
       exits=st.sets(st.integers(0, 255), max_size=3), by_msr=st.booleans())  # fmt: skip
def test_eoi_virtualization(
    bench: Bench, svi: int, others: set[int], exits: set[int], by_msr: bool
) -> None:
    """The vector in service leaves VISR; the next one follows; its EOI-exit bit decides."""
    processor = at(bench, "shadow", "x2apic" if by_msr else "accesses", "delivery", svi=svi)
    served = {vector for vector in others if vector < svi} | {svi}
    for vector in served:
        offset = 0x100 + vector // 32 * 16
        put(bench, offset, virtual(bench, offset) | 1 << vector % 32)
    for word in range(4):
        bits = sum(1 << v % 64 for v in exits if v // 64 == word)
        bench.vmcs[F[f"EOI_EXIT_BITMAP_{word}"]] = bits
    text = "wrmsr msr=0x80b value=0" if by_msr else f"store {APIC + 0xB0} size=4 value=5"
    exit = execution(processor, text)
    assert (exit is not None) == (svi in exits)
    assert exit is None or (exit.reason, exit.qualification, exit.trap) == (45, svi, True)
    following = max(served - {svi}, default=0)
    assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] >> 8 == following
    assert virtual(bench, 0x100 + svi // 32 * 16) >> svi % 32 & 1 == 0
    assert virtual(bench, 0xA0) == following & 0xF0
    assert virtual(bench, 0xB0) == 0


@given(vector=st.integers(0, 255), rvi=st.integers(0, 255),
       extra=st.sampled_from([0, 0x100, 0x8000, 0x1000, 0x80000, 0x4000, 0x800]))  # fmt: skip
def test_the_interrupt_command_register(bench: Bench, vector: int, rvi: int, extra: int) -> None:
    """A fixed, edge-triggered interrupt to self is virtualized; all else exits at 300H."""
    processor = at(bench, "shadow", "accesses", "delivery", rvi=rvi)
    command = vector | 0x4_0000 ^ (0xC_0000 if extra == 0x80000 else extra)
    exit = execution(processor, f"store {APIC + 0x300} size=4 value={command}")
    to_self = extra in (0, 0x4000, 0x800) and vector >= 16
    assert (exit is None) == to_self
    if exit is not None:
        assert (exit.reason, exit.qualification, exit.trap) == (56, 0x300, True)
    else:
        assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] & 0xFF == max(rvi, vector)
        assert virtual(bench, 0x200 + vector // 32 * 16) >> vector % 32 & 1


def test_other_registers_exit_after_the_write(bench: Bench) -> None:
    processor = at(bench, "shadow", "accesses", "registers")
    exit = execution(processor, f"store {APIC + 0x320} size=4 value={0x1_0030}")
    assert isinstance(exit, ExitInformation)
    assert (exit.reason, exit.qualification, exit.trap) == (56, 0x320, True)
    assert virtual(bench, 0x320) == 0x1_0030
    assert execution(processor, f"store {APIC + 0x310} size=4 value={0x1234_5678}") is None
    assert virtual(bench, 0x310) == 0x1200_0000


# x2APIC registers.


@given(msr=st.integers(0x800, 0x8FF), names=CONTROLS, on=st.booleans(), real=st.booleans())
def test_reading_x2apic_registers(
    bench: Bench, msr: int, names: set[str], on: bool, real: bool
) -> None:
    processor = at(bench, *names, *(["x2apic"] * on))
    put(bench, (msr & 0xFF) * 16, 0x77)
    put(bench, (msr & 0xFF) * 16 + 4, 0x55)
    processor.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0900 | (0xC00 if real else 0)
    is_virtual = on and (msr == 0x808 or "registers" in names)
    if is_virtual:
        execution(processor, f"rdmsr msr={msr}")
        assert (processor.regs.rdx, processor.regs.rax) == (0x55, 0x77)
    elif real:
        execution(processor, f"rdmsr msr={msr}")
        assert processor.regs.rax == 0
    else:
        assert fault_of(processor, f"rdmsr msr={msr}") == (13, 0)


def test_writing_x2apic_registers(bench: Bench) -> None:
    processor = at(bench, "shadow", "x2apic", "delivery")
    execution(processor, "wrmsr msr=0x808 value=0x35")
    assert virtual(bench, 0x80) == 0x35
    assert fault_of(processor, "wrmsr msr=0x808 value=0x100") == (13, 0)
    assert fault_of(processor, "wrmsr msr=0x80b value=1") == (13, 0)
    assert fault_of(processor, "wrmsr msr=0x83f value=0x100") == (13, 0)
    assert fault_of(processor, "wrmsr msr=0x820 value=0") == (13, 0)
    exit = execution(processor, "wrmsr msr=0x83f value=0x0f")
    assert exit is not None
    assert (exit.reason, exit.qualification) == (56, 0x3F0)
    assert execution(processor, "wrmsr msr=0x83f value=0x41") is None
    assert bench.vmcs[F.GUEST_INTERRUPT_STATUS] == 0x41


def test_the_processors_own_x2apic(bench: Bench) -> None:
    processor = at(bench)
    processor.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0D00
    execution(processor, "wrmsr msr=0x808 value=0x50")
    execution(processor, "mov rcx, cr8")
    assert processor.regs.rcx == 5
    execution(processor, "rdmsr msr=0x802")
    assert processor.regs.rax == processor.number
    assert fault_of(processor, "wrmsr msr=0x802 value=0") == (13, 0)
    execution(processor, "wrmsr msr=0x80b value=0")
    execution(processor, "wrmsr msr=0x832 value=0x20")
    execution(processor, "rdmsr msr=0x832")
    assert processor.regs.rax == 0x20
