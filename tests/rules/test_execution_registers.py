"""Control and debug registers in the guest, against restatements of the manual's rules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench, execution, fault_of
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.fields import Field as F
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.machine.mmu import Access
from vtx.machine.registers import Cr0, Cr4
from vtx.rules.execution_memory import ExitTaken

U64 = st.integers(0, (1 << 64) - 1)
GPR = st.sampled_from([r for r in GENERAL_REGISTERS if r != "rsp"])
CR0_FLAGS = [Cr0.PE, Cr0.MP, Cr0.EM, Cr0.TS, Cr0.ET, Cr0.NE, Cr0.WP, Cr0.AM, Cr0.NW, Cr0.CD, Cr0.PG]
#: Bits that MOV to CR0 leaves alone whatever the source says.
CR0_IGNORED = 0x1FFA_FFC0 & ~(Cr0.WP | Cr0.AM) | Cr0.ET


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def masks(mask: int, shadow: int, number: int = 0) -> dict[F, int]:
    return {F[f"CR{number}_GUEST_HOST_MASK"]: mask, F[f"CR{number}_READ_SHADOW"]: shadow}


# Reading.


@given(real=U64, mask=U64, shadow=U64, name=GPR, number=st.sampled_from([0, 4]))
def test_reads_mix_register_and_shadow(
    bench: Bench, real: int, mask: int, shadow: int, name: str, number: int
) -> None:
    processor = bench(masks(mask, shadow, number))
    setattr(processor.regs, f"cr{number}", real)
    execution(processor, f"mov {name}, cr{number}")
    value = getattr(processor.regs, name)
    for n in range(64):
        assert value >> n & 1 == (shadow if mask >> n & 1 else real) >> n & 1


@given(real=U64, mask=U64, shadow=U64, old=U64, size=st.sampled_from(["ax", "eax", "rax", "[rbx]"]))
def test_smsw(bench: Bench, real: int, mask: int, shadow: int, old: int, size: str) -> None:
    processor = bench(masks(mask, shadow), cr0=real, rax=old, rbx=0x7000)
    processor.memory.write_u64(GUEST + 0x7000, old)
    processor.context.cr0 = bench.initial[F.GUEST_CR0]
    execution(processor, f"smsw {size}")
    seen = real & ~mask | shadow & mask
    low = old & ~0xFFFF | seen & 0xFFFF
    if size == "[rbx]":
        assert processor.memory.read_u64(GUEST + 0x7000) == low
    else:
        expected = {"ax": low, "eax": seen & 0xFFFF_FFFF, "rax": seen}[size]
        assert processor.regs.rax == expected


def test_smsw_for_users_under_umip(bench: Bench) -> None:
    processor = bench(cpl=3)
    execution(processor, "smsw rax")
    processor.regs.cr4 |= Cr4.UMIP
    assert fault_of(processor, "smsw rax") == (13, 0)


@pytest.mark.parametrize("text", ["mov rax, cr0", "mov rax, cr4", "mov rax, cr2", "mov cr2, rax",
                                  "mov dr0, rax", "mov rax, dr0"])  # fmt: skip
def test_users_may_not(bench: Bench, text: str) -> None:
    assert fault_of(bench(cpl=3), text) == (13, 0)


def test_cr2_and_cr3(bench: Bench) -> None:
    processor = bench()
    execution(processor, "mov cr2, rax value=0x1234_5678_9abc")
    execution(processor, "mov rcx, cr2")
    assert processor.regs.rcx == 0x1234_5678_9ABC
    execution(processor, "mov rdx, cr3")
    assert processor.regs.rdx == processor.regs.cr3


# MOV to CR0.


@given(mask=U64, changed=st.sets(st.sampled_from(CR0_FLAGS)),
       high=st.sampled_from([0, 1 << 32, 1 << 63]),
       unrestricted=st.booleans())  # fmt: skip
def test_mov_to_cr0(
    bench: Bench, mask: int, changed: set[Cr0], high: int, unrestricted: bool
) -> None:
    """Unmasked bits are loaded, unless the value is one that a 64-bit guest may not have."""
    processor = bench(masks(mask, 0))
    if unrestricted:
        bench.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = int(Proc2.UNRESTRICTED_GUEST)
    before = processor.regs.cr0
    source = (before ^ sum(changed)) | high
    value = before & mask | source & ~mask
    fixed0 = 0x8000_0021 & ~(0x8000_0001 if unrestricted else 0)
    illegal = (
        value >> 32
        or value & fixed0 != fixed0
        or (value & Cr0.PG and not value & Cr0.PE)
        or (value & Cr0.NW and not value & Cr0.CD)
        or not value & Cr0.PG
    )
    try:
        execution(processor, f"mov cr0, rdi value={source}")
    except GuestFault as fault:
        assert illegal
        assert (fault.vector, fault.error_code) == (13, 0)
        assert processor.regs.cr0 == before
    else:
        assert not illegal
        expected = value & ~CR0_IGNORED | before & CR0_IGNORED
        assert processor.regs.cr0 == expected == processor.context.cr0


def test_clearing_wp_with_cet(bench: Bench) -> None:
    processor = bench()
    processor.regs.cr4 |= Cr4.CET
    assert fault_of(processor, f"mov cr0, rax value={processor.regs.cr0 & ~Cr0.WP}") == (13, 0)


@given(mask=st.integers(0, 15), source=st.integers(0, 0xFFFF), before=st.integers(0, 15))
def test_lmsw(bench: Bench, mask: int, source: int, before: int) -> None:
    """Loads MP, EM and TS where unmasked, may set PE, never clears it; bits 15:4 are ignored."""
    processor = bench(masks(mask, 0))
    processor.regs.cr0 = processor.regs.cr0 & ~0xE | before & 0xE | 1
    old = processor.regs.cr0
    execution(processor, f"lmsw cx value={source}")
    for n in range(4):
        loaded = source >> n & 1 if not mask >> n & 1 else old >> n & 1
        assert processor.regs.cr0 >> n & 1 == (1 if n == 0 else loaded)
    assert processor.regs.cr0 >> 4 == old >> 4


@given(mask=st.booleans(), ts=st.booleans())
def test_clts(bench: Bench, mask: bool, ts: bool) -> None:
    processor = bench(masks(8 if mask else 0, 0))
    processor.regs.cr0 = processor.regs.cr0 & ~8 | ts << 3
    old = processor.regs.cr0
    execution(processor, "clts")
    assert processor.regs.cr0 == (old if mask else old & ~8)


# MOV to CR3 and translation.


@given(bits=st.sets(st.integers(0, 63), max_size=3), pcide=st.booleans())
def test_reserved_bits_of_cr3(bench: Bench, bits: set[int], pcide: bool) -> None:
    """Bits from MAXPHYADDR (46 here) to 60 are reserved, and 63 without PCIDs; 62:61 are LAM's."""
    processor = bench()
    if pcide:
        processor.regs.cr4 |= Cr4.PCIDE
    value = sum(1 << n for n in bits)
    width = processor.shape.maxphyaddr
    reserved = any(width <= n <= 60 or (n == 63 and not pcide) for n in bits)
    try:
        execution(processor, f"mov cr3, rax value={value}")
    except GuestFault as fault:
        assert reserved
        assert fault.vector == 13
    else:
        assert not reserved
        assert processor.regs.cr3 == value & ~(1 << 63) == processor.context.cr3


def test_another_address_space_is_seen_at_once(bench: Bench) -> None:
    """The same linear address means another page after MOV to CR3."""
    processor = bench()
    memory = processor.memory
    tables = [0x60_0000 + 0x1000 * n for n in range(3)]
    for table, following in pairwise(tables):
        memory.write_u64(GUEST + table, following | 7)
    memory.write_u64(GUEST + tables[2], 0x80_0000 | 0x87)
    execution(processor, "mov rax, 5")
    before = processor.mmu.translate(processor.context, 0x1000, Access.LOAD).hpa
    execution(processor, f"mov cr3, rax value={tables[0]}")
    after = processor.mmu.translate(processor.context, 0x1000, Access.LOAD).hpa
    assert before == GUEST + 0x1000
    assert after == GUEST + 0x80_1000


# MOV to CR4.

CR4_FLAGS = [Cr4.TSD, Cr4.DE, Cr4.PGE, Cr4.OSFXSR, Cr4.SMEP, Cr4.SMAP, Cr4.UMIP, Cr4.PAE, Cr4.LA57,
             Cr4.VMXE, Cr4.PCIDE, Cr4.CET]  # fmt: skip


@given(mask=U64, changed=st.sets(st.sampled_from(CR4_FLAGS), max_size=3), beyond=st.booleans(),
       pcid=st.booleans())  # fmt: skip
def test_mov_to_cr4(bench: Bench, mask: int, changed: set[Cr4], beyond: bool, pcid: bool) -> None:
    processor = bench(masks(mask, 0, 4))
    if pcid:
        processor.regs.cr3 |= 5
    before = processor.regs.cr4
    source = before ^ sum(changed) | beyond << 40
    value = before & mask | source & ~mask
    flipped = value ^ before
    illegal = (
        not value & Cr4.VMXE
        or flipped & (Cr4.PAE | Cr4.LA57)
        or value >> 40 & 1
        or (flipped & value & Cr4.PCIDE and pcid)
    )
    try:
        execution(processor, f"mov cr4, r9 value={source}")
    except GuestFault as fault:
        assert illegal
        assert fault.vector == 13
        assert processor.regs.cr4 == before
    else:
        assert not illegal
        assert processor.regs.cr4 == value == processor.context.cr4


# CR8 and the TPR shadow.


@given(value=st.one_of(st.integers(0, 15), U64), old=st.integers(0, 0xFF),
       threshold=st.integers(0, 15), shadow=st.booleans())  # fmt: skip
def test_mov_to_cr8(bench: Bench, value: int, old: int, threshold: int, shadow: bool) -> None:
    """Under a TPR shadow the priority goes to VTPR, and falling below the threshold exits."""
    page = bench.page(0)
    bench.cpu.memory.write_u32(page + 0x80, old)
    fields = {F.VIRTUAL_APIC_ADDRESS: page, F.TPR_THRESHOLD: threshold}
    processor = bench(fields)
    if shadow:
        bench.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] |= Proc1.USE_TPR_SHADOW
    rip = processor.regs.rip
    if value > 15:
        assert fault_of(processor, f"mov cr8, rax value={value}") == (13, 0)
        return
    exit = execution(processor, f"mov cr8, rax value={value}")
    assert (exit is not None) == (shadow and value < threshold)
    if exit is not None:
        assert exit.reason == 43
        assert exit.trap
    assert processor.regs.rip == rip + 4
    execution(processor, "mov rcx, cr8")
    assert processor.regs.rcx == value
    if shadow:
        assert processor.memory.read_u32(page + 0x80) == value << 4


# Debug registers.


@given(number=st.integers(0, 7), value=U64, debug_extensions=st.booleans())
def test_debug_registers(bench: Bench, number: int, value: int, debug_extensions: bool) -> None:
    processor = bench()
    if debug_extensions:
        processor.regs.cr4 |= Cr4.DE
    text = f"mov dr{number}, rax value={value}"
    if number in (4, 5) and debug_extensions:
        assert fault_of(processor, text) == (6, None)
        return
    if number > 3 and value >> 32:
        assert fault_of(processor, text) == (13, 0)
        return
    assume(not (number in (5, 7) and value >> 13 & 1))
    execution(processor, text)
    execution(processor, f"mov rcx, dr{number}")
    read = processor.regs.rcx
    if number < 4:
        assert read == value
    elif number in (4, 6):
        assert read & 0xE00F == value & 0xE00F
        assert read & ~0xE00F == 0xFFFF_0FF0
    else:
        assert read & 0x400
        assert not read & 0xD000
        assert read & ~0xD400 == value & ~0xD400


def test_general_detect(bench: Bench) -> None:
    processor = bench()
    processor.regs.dr7 |= 1 << 13
    with pytest.raises(GuestFault) as caught:
        execution(processor, "mov rax, dr0")
    assert caught.value.vector == 1
    assert caught.value.address == 1 << 13


# PDPTEs of PAE paging.


def test_pdptes_are_loaded_through_ept(bench: Bench) -> None:
    processor = bench()
    processor.regs.efer &= ~0x400
    memory = processor.memory
    entries = [0x60_1001, 0x60_2001, 0, 0x60_3001]
    for n, entry in enumerate(entries):
        memory.write_u64(GUEST + 0x60_0020 + 8 * n, entry)
    execution(processor, f"mov cr3, rax value={0x60_0020}")
    assert list(processor.regs.pdptes) == entries
    memory.write_u64(GUEST + 0x60_0020, entries[0] | 1 << 60)
    assert fault_of(processor, f"mov cr3, rax value={0x60_0020}") == (13, 0)


def test_pdptes_beyond_ept_exit(bench: Bench) -> None:
    processor = bench()
    processor.regs.efer &= ~0x400
    with pytest.raises(ExitTaken) as caught:
        execution(processor, f"mov cr3, rax value={0x8000_0000}")
    exit = caught.value.information
    assert exit.reason == 48
    assert exit.guest_physical_address == 0x8000_0000
    assert not exit.qualification & 0x180


def test_unsupported_msrs_do_not_hide_values(bench: Bench) -> None:
    """CR0 and CR4 take the fixed bits from the capability MSRs, not from a constant."""
    fixed1 = bench.cpu.shape.msr(Msr.IA32_VMX_CR4_FIXED1)
    processor = bench()
    processor.shape.msrs[Msr.IA32_VMX_CR4_FIXED1] = fixed1 & ~Cr4.SMEP  # type: ignore[index]
    try:
        assert fault_of(processor, f"mov cr4, rax value={processor.regs.cr4 | Cr4.SMEP}") == (13, 0)
    finally:
        processor.shape.msrs[Msr.IA32_VMX_CR4_FIXED1] = fixed1  # type: ignore[index]
