"""RDMSR, WRMSR and the time-stamp counter in the guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, GUEST, Bench, execution, fault_of
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr

U64 = st.integers(0, (1 << 64) - 1)
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


@given(tsc=U64, adjust=U64, offset=U64, multiplier=U64, offsets=st.booleans(), scales=st.booleans())
def test_time_stamp_counter(
    bench: Bench, tsc: int, adjust: int, offset: int, multiplier: int, offsets: bool, scales: bool
) -> None:
    """Scaling acts only with offsetting, and before it; RDTSC, RDTSCP and RDMSR agree."""
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | (Proc1.USE_TSC_OFFSETTING if offsets else 0),
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: Proc2.ENABLE_RDTSCP
        | (Proc2.USE_TSC_SCALING if scales else 0),
        F.TSC_OFFSET: offset,
        F.TSC_MULTIPLIER: multiplier,
    }
    processor = bench(fields)
    processor.regs.msrs[Msr.IA32_TSC_ADJUST] = adjust
    processor.regs.msrs[Msr.IA32_TSC_AUX] = 0x55
    processor.tsc = tsc
    real = (tsc + adjust) & MASK
    value = real
    if offsets:
        value = ((real * multiplier >> 48 if scales else real) + offset) & MASK
    for text in ("rdtsc", "rdtscp", "rdmsr msr=IA32_TSC"):
        processor.regs.rax = processor.regs.rdx = processor.regs.rcx = MASK
        execution(processor, text)
        assert processor.regs.rdx << 32 | processor.regs.rax == value
        if text == "rdtscp":
            assert processor.regs.rcx == 0x55


@given(value=U64, tsc=st.integers(0, 1 << 40))
def test_writing_the_counter(bench: Bench, value: int, tsc: int) -> None:
    processor = bench()
    processor.tsc = tsc
    execution(processor, f"wrmsr msr=IA32_TSC value={value}")
    processor.tsc += 10
    execution(processor, "rdmsr msr=IA32_TSC")
    assert processor.regs.rdx << 32 | processor.regs.rax == (value + 10) & MASK


PLAIN = [Msr.IA32_LSTAR, Msr.IA32_STAR, Msr.IA32_KERNEL_GS_BASE, Msr.IA32_FS_BASE, Msr.IA32_GS_BASE,
         Msr.IA32_SYSENTER_EIP, Msr.IA32_TSC_DEADLINE, Msr.IA32_MISC_ENABLE]  # fmt: skip


@given(msr=st.sampled_from(PLAIN), value=st.integers(0, (1 << 47) - 1))
def test_what_is_written_is_read(bench: Bench, msr: Msr, value: int) -> None:
    processor = bench()
    execution(processor, f"wrmsr msr={int(msr)} value={value}")
    processor.regs.rax = processor.regs.rdx = MASK
    execution(processor, f"rdmsr msr={msr.name}")
    assert processor.regs.rdx << 32 | processor.regs.rax == value
    if msr is Msr.IA32_GS_BASE:
        assert processor.regs.gs.base == value


@pytest.mark.parametrize(
    "text",
    [
        "rdmsr msr=0x1fff",
        "wrmsr msr=0x1fff value=0",
        "wrmsr msr=IA32_VMX_BASIC value=0",
        "wrmsr msr=IA32_LSTAR value=0x0100_0000_0000_0000",
        "wrmsr msr=IA32_EFER value=0x8000_0000_0000_0000",
        "wrmsr msr=IA32_PAT value=2",
        "rdmsr msr=IA32_PRED_CMD",
        "rdmsr msr=0x808",
        "wrmsr msr=0x808 value=0",
    ],
)
def test_general_protection(bench: Bench, text: str) -> None:
    assert fault_of(bench(), text) == (13, 0)


def test_processor_trace_in_vmx_operation(bench: Bench) -> None:
    """WRMSR of IA32_RTIT_CTL faults unless IA32_VMX_MISC[14] allows tracing."""
    processor = bench()
    misc = processor.shape.msrs[Msr.IA32_VMX_MISC]
    try:
        processor.shape.msrs[Msr.IA32_VMX_MISC] = misc & ~(1 << 14)  # type: ignore[index]
        assert fault_of(processor, "wrmsr msr=IA32_RTIT_CTL value=0") == (13, 0)
        processor.shape.msrs[Msr.IA32_VMX_MISC] = misc | 1 << 14  # type: ignore[index]
        execution(processor, "wrmsr msr=IA32_RTIT_CTL value=0")
    finally:
        processor.shape.msrs[Msr.IA32_VMX_MISC] = misc  # type: ignore[index]


def test_capabilities_and_reset_values(bench: Bench) -> None:
    processor = bench()
    for msr, value in {
        Msr.IA32_VMX_BASIC: processor.shape.msr(Msr.IA32_VMX_BASIC),
        Msr.IA32_APIC_BASE: 0xFEE0_0900,
    }.items():
        execution(processor, f"rdmsr msr={msr.name}")
        assert processor.regs.rdx << 32 | processor.regs.rax == value


def test_commands_and_microcode_do_nothing_that_can_be_read(bench: Bench) -> None:
    processor = bench()
    before = dict(processor.regs.msrs)
    execution(processor, "wrmsr msr=IA32_PRED_CMD value=1")
    execution(processor, "wrmsr msr=IA32_BIOS_UPDT_TRIG value=0x1234")
    assert processor.regs.msrs == before


def test_efer(bench: Bench) -> None:
    """LMA is not written; NXE reaches translation at once."""
    processor = bench()
    before = processor.regs.efer
    execution(processor, f"wrmsr msr=IA32_EFER value={before & ~0x400 & ~0x800}")
    assert processor.regs.efer == before & ~0x800 == processor.context.efer
    assert fault_of(processor, f"wrmsr msr=IA32_EFER value={before & ~0x100}") == (13, 0)


@given(
    value=st.sampled_from([0, 1, 2, 4, 7]), old=st.sampled_from([0, 1, 7]), mask=st.integers(0, 7)
)
def test_speculation_control(bench: Bench, value: int, old: int, mask: int) -> None:
    """With virtualization the guest reads what it wrote, and masked bits keep their value."""
    fields = {
        F.TERTIARY_PROCESSOR_BASED_CONTROLS: int(Proc3.VIRTUALIZE_IA32_SPEC_CTRL),
        F.IA32_SPEC_CTRL_MASK: mask,
    }
    processor = bench(fields)
    processor.regs.msrs[Msr.IA32_SPEC_CTRL] = old
    execution(processor, f"wrmsr msr=IA32_SPEC_CTRL value={value}")
    execution(processor, "rdmsr msr=IA32_SPEC_CTRL")
    assert processor.regs.rax == value
    assert processor.regs.msrs[Msr.IA32_SPEC_CTRL] == old & mask | value & ~mask


def test_forms_with_registers(bench: Bench) -> None:
    processor = bench()
    execution(processor, f"wrmsrns {int(Msr.IA32_LSTAR)}, r9 value=0x1234_5678_9abc")
    execution(processor, f"rdmsr r10, {int(Msr.IA32_LSTAR)}")
    assert processor.regs.r10 == 0x1234_5678_9ABC
    execution(processor, "uwrmsr rbx, rcx msr=0x6e0 value=77")
    execution(processor, "urdmsr rdx, rbx msr=0x6e0")
    assert processor.regs.rdx == 77


@given(mask=st.sets(st.integers(0, 5)), bad=st.none() | st.integers(0, 5))
def test_lists_of_msrs(bench: Bench, mask: set[int], bad: int | None) -> None:
    """Entries go one by one from the lowest bit on; a fault leaves the ones done in RCX."""
    table, data, msrs = 0x7000, 0x8000, [int(m) for m in PLAIN[:6]]
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.USE_MSR_BITMAPS,
        F.MSR_BITMAP: bench.page(0),
    }
    processor = bench(fields, rsi=table, rdi=data, rcx=sum(1 << n for n in mask))
    memory = processor.memory
    for n, msr in enumerate(msrs):
        memory.write_u64(GUEST + table + 8 * n, 0x1FFF if n == bad else msr)
        memory.write_u64(GUEST + data + 8 * n, 0x1000 * n)
    try:
        assert execution(processor, "wrmsrlist") is None
    except GuestFault:
        assert bad in mask
    else:
        assert bad not in mask
    done = {n for n in mask if bad not in mask or n < (bad or 0)}
    assert processor.regs.rcx == sum(1 << n for n in mask - done)
    for n in done:
        assert processor.regs.read_msr(msrs[n]) == 0x1000 * n
    processor.regs.rcx = sum(1 << n for n in done)
    for n in done:
        memory.write_u64(GUEST + data + 8 * n, 0)
    assert execution(processor, "rdmsrlist") is None
    assert all(memory.read_u64(GUEST + data + 8 * n) == 0x1000 * n for n in done)


def test_a_list_exits_in_its_middle(bench: Bench) -> None:
    msrs = [int(m) for m in (Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_ESP, Msr.IA32_SYSENTER_EIP)]
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.USE_MSR_BITMAPS,
        F.MSR_BITMAP: bench.page(0, msrs[2], 16384 + msrs[1]),
    }
    for text, left, reason in (("rdmsrlist", 0b100, 78), ("wrmsrlist", 0b110, 79)):
        processor = bench(fields, rsi=0x7000, rdi=0x8000, rcx=0b111)
        for n, msr in enumerate(msrs):
            processor.memory.write_u64(GUEST + 0x7000 + 8 * n, msr)
        exit = execution(processor, text)
        assert exit is not None
        assert exit.reason == reason
        assert processor.regs.rcx == left
        assert processor.regs.rip == bench.initial[F.GUEST_RIP]


@pytest.mark.parametrize(("mask", "trap"), [(0b01, True), (0b11, False)])
def test_a_trap_in_the_middle_of_a_list_comes_back_to_it(
    bench: Bench, mask: int, trap: bool
) -> None:
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.USE_MSR_BITMAPS | Proc1.USE_TPR_SHADOW,
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.VIRTUALIZE_X2APIC_MODE),
        F.MSR_BITMAP: bench.page(0),
        F.VIRTUAL_APIC_ADDRESS: bench.page(0),
        F.TPR_THRESHOLD: 5,
    }
    processor = bench(fields, rsi=0x7000, rdi=0x8000, rcx=mask)
    for n, (msr, value) in enumerate([(Msr.IA32_X2APIC_TPR, 0x10), (Msr.IA32_STAR, 7)]):
        processor.memory.write_u64(GUEST + 0x7000 + 8 * n, int(msr))
        processor.memory.write_u64(GUEST + 0x8000 + 8 * n, value)
    exit = execution(processor, "wrmsrlist")
    assert exit is not None
    assert (exit.reason, exit.trap) == (43, trap)
    assert processor.regs.rcx == mask & ~1
    assert (processor.regs.rip > bench.initial[F.GUEST_RIP]) == trap
