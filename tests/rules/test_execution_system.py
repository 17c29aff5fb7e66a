"""System instructions of the guest: descriptor tables, invalidation, waiting, keys, state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, GUEST, Bench, execution, fault_of
from vtx.errors import NotSupported
from vtx.facts.controls import Proc2, Proc3
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.mmu import Access
from vtx.machine.registers import Activity, Cr0, Cr4, Interruptibility, Segment, TableRegister

U64 = st.integers(0, (1 << 64) - 1)
STATUS = 0x8D5
TABLE = 0x6000
#: The descriptors that tests put into the GDT at TABLE.
LDT, TSS, BUSY_TSS, CODE, DATA, READ_ONLY = 0x08, 0x18, 0x28, 0x38, 0x40, 0x48
DESCRIPTORS = {
    LDT: 0x0000_8200_7000_00FF,
    LDT + 8: 0,
    TSS: 0x0000_8900_8000_0067,
    TSS + 8: 0xFFFF_8880,
    BUSY_TSS: 0x0000_8B00_8000_0067,
    BUSY_TSS + 8: 0,
    CODE: 0x00AF_9B00_0000_FFFF,
    DATA: 0x00CF_9200_0000_FFFF,
    READ_ONLY: 0x00CF_9000_0000_FFFF,
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def with_table(bench: Bench, cpl: int = 0, **registers: int) -> Bench:
    processor = bench(cpl=cpl, **registers)
    processor.regs.gdtr = TableRegister(TABLE, 0x4F)
    for selector, value in DESCRIPTORS.items():
        processor.memory.write_u64(GUEST + TABLE + selector, value)
    return bench


@given(
    base=U64 | st.sampled_from([0xFF, 0]).map(lambda top: top << 56 | 0x1234),
    limit=st.integers(0, 0xFFFF),
    gdt=st.booleans(),
)
def test_tables_are_stored_as_they_were_loaded(
    bench: Bench, base: int, limit: int, gdt: bool
) -> None:
    processor = bench(rbx=0x7000)
    letter = "g" if gdt else "i"
    memory = processor.memory
    memory.write(GUEST + 0x7000, limit.to_bytes(2, "little") + base.to_bytes(8, "little"))
    if base >> 56 not in (0, 0xFF):
        assert fault_of(processor, f"l{letter}dt [rbx]") == (13, 0)
        return
    execution(processor, f"l{letter}dt [rbx]")
    execution(processor, f"s{letter}dt [rbx+0x100]")
    assert memory.read(GUEST + 0x7100, 10) == memory.read(GUEST + 0x7000, 10)


@given(selector=st.integers(0, 0xFFFF), ldt=st.booleans(),
       where=st.sampled_from(["ax", "eax", "[rbx]"]))  # fmt: skip
def test_selectors_are_stored(bench: Bench, selector: int, ldt: bool, where: str) -> None:
    processor = bench(rbx=0x7000, rax=(1 << 64) - 1)
    processor.regs.ldtr = processor.regs.tr = Segment(0x5555)
    setattr(processor.regs, "ldtr" if ldt else "tr", Segment(selector))
    processor.memory.write_u64(GUEST + 0x7000, (1 << 64) - 1)
    execution(processor, f"{'sldt' if ldt else 'str'} {where}")
    ones = (1 << 64) - 1 & ~0xFFFF
    if where == "[rbx]":
        assert processor.memory.read_u64(GUEST + 0x7000) == ones | selector
    else:
        assert processor.regs.rax == (selector if where == "eax" else ones | selector)


def test_lldt(bench: Bench) -> None:
    processor = with_table(bench).cpu
    execution(processor, f"lldt ax value={LDT}")
    assert processor.regs.ldtr == Segment(LDT, 0x7000, 0xFF, 0x82)
    execution(processor, "lldt cx value=3")
    assert not processor.regs.ldtr.usable
    for selector, vector in {LDT | 4: 13, TSS: 13, 0x1000: 13}.items():
        with_table(bench)
        assert fault_of(processor, f"lldt ax value={selector}") == (vector, selector & ~3)
    processor.memory.write_u64(GUEST + TABLE + LDT, DESCRIPTORS[LDT] & ~(1 << 47))
    assert fault_of(processor, f"lldt ax value={LDT}") == (11, LDT)


def test_ltr_makes_the_tss_busy(bench: Bench) -> None:
    processor = with_table(bench, rbx=0x7000).cpu
    processor.memory.write_u16(GUEST + 0x7000, TSS)
    execution(processor, "ltr [rbx]")
    assert processor.regs.tr == Segment(TSS, 0xFFFF_8880_0000_8000, 0x67, 0x8B)
    assert processor.memory.read_u64(GUEST + TABLE + TSS) == DESCRIPTORS[TSS] | 2 << 40
    with_table(bench)
    for selector in (BUSY_TSS, LDT, 0, TSS | 4):
        assert fault_of(processor, f"ltr ax value={selector}") == (13, selector & ~3)


def test_both_halves_of_a_system_descriptor_must_be_in_the_table(bench: Bench) -> None:
    processor = with_table(bench).cpu
    for limit, loads in ((TSS + 15, True), (TSS + 14, False), (TSS + 7, False), (TSS, False)):
        with_table(bench)
        processor.regs.gdtr = processor.regs.gdtr._replace(limit=limit)
        if loads:
            execution(processor, f"ltr ax value={TSS}")
        else:
            assert fault_of(processor, f"ltr ax value={TSS}") == (13, TSS)


def test_mov_to_ss_blocks_events(bench: Bench) -> None:
    processor = with_table(bench).cpu
    execution(processor, f"mov ss, ax value={DATA}")
    assert processor.regs.ss == Segment(DATA, 0, 0xFFFF_FFFF, 0xC093)
    assert processor.memory.read_u8(GUEST + TABLE + DATA + 5) == 0x93
    assert processor.regs.interruptibility_state == Interruptibility.MOV_SS
    execution(processor, "mov ss, ax value=0")
    assert not processor.regs.ss.usable
    for selector in (CODE, READ_ONLY, DATA | 3, 0x50, 3):
        with_table(bench)
        assert fault_of(processor, f"mov ss, ax value={selector}") == (13, selector & ~3)
    processor.memory.write_u64(GUEST + TABLE + DATA, DESCRIPTORS[DATA] & ~(1 << 47))
    assert fault_of(processor, f"mov ss, ax value={DATA}") == (12, DATA)


def test_swapgs(bench: Bench) -> None:
    processor = bench()
    processor.regs.gs = processor.regs.gs._replace(base=0x1000)
    processor.regs.msrs[Msr.IA32_KERNEL_GS_BASE] = 0x2000
    execution(processor, "swapgs")
    assert processor.regs.gs.base == 0x2000
    assert processor.regs.msrs[Msr.IA32_KERNEL_GS_BASE] == 0x1000
    assert fault_of(bench(cpl=3), "swapgs") == (13, 0)


# Translation caches.


def retarget(bench: Bench, address: int) -> None:
    """Point the guest's 2-MByte page at `address` elsewhere, behind the TLBs' back."""
    memory, table = bench.cpu.memory, GUEST + (bench.initial[F.GUEST_CR3] & ~0xFFF)
    for shift in (39, 30):
        table = GUEST + (memory.read_u64(table + 8 * (address >> shift & 511)) & 0xF_FFFF_FFFF_F000)
    slot = table + 8 * (address >> 21 & 511)
    memory.write_u64(slot, memory.read_u64(slot) ^ 0x20_0000)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("invlpg [0x40_0000]", True),
        ("invlpg [0x60_0000]", False),
        ("invlpg [0x8000_0000_0000]", False),
        ("invpcid rax, [0x7000] type=0", True),
        ("invpcid rax, [0x7000] type=1", True),
        ("invpcid rax, [0x7000] type=2", True),
        ("invpcid rax, [0x7000] type=3", True),
        ("nop", False),
    ],
)
def test_what_invalidation_lets_be_seen(bench: Bench, text: str, seen: bool) -> None:
    """A changed page-table entry is seen after the invalidation of its page, and not before."""
    processor = bench()
    processor.memory.write_u64(GUEST + 0x7000, 0)
    processor.memory.write_u64(GUEST + 0x7008, 0x40_0000)
    translate = processor.mmu.translate
    before = translate(processor.context, 0x40_0000, Access.LOAD).hpa
    retarget(bench, 0x40_0000)
    try:
        text = text.replace("_", "")
        execution(processor, text)
        after = translate(processor.context, 0x40_0000, Access.LOAD).hpa
    finally:
        retarget(bench, 0x40_0000)
        processor.mmu.flush_all()
    assert (after != before) == seen


@given(kind=st.integers(0, 5), low=st.sampled_from([0, 5, 1 << 12, 1 << 63]),
       linear=st.sampled_from([0, 0x7FFF_FFFF_F000, 0x8000_0000_0000]),
       pcide=st.booleans())  # fmt: skip
def test_invpcid_faults(bench: Bench, kind: int, low: int, linear: int, pcide: bool) -> None:
    processor = bench()
    if pcide:
        processor.regs.cr4 |= Cr4.PCIDE
    processor.memory.write_u64(GUEST + 0x7000, low)
    processor.memory.write_u64(GUEST + 0x7008, linear)
    text = f"invpcid rax, [0x7000] type={kind}"
    bad = (
        kind > 3 or low >> 12
        or (kind < 2 and low and not pcide)
        or (kind == 0 and linear == 0x8000_0000_0000)
    )  # fmt: skip
    if bad:
        assert fault_of(processor, text) == (13, 0)
    else:
        execution(processor, text)


# Waiting.


def test_hlt_and_monitoring(bench: Bench) -> None:
    processor = bench()
    execution(processor, "hlt")
    assert processor.regs.activity_state == Activity.HLT
    processor = bench()
    execution(processor, "monitor address=0x7000 extensions=0")
    assert processor.monitor_armed
    execution(processor, "mwait hints=0 extensions=1")
    assert not processor.monitor_armed
    assert fault_of(processor, "mwait extensions=2") == (13, 0)
    assert fault_of(processor, "monitor address=0x7000 extensions=1") == (13, 0)
    assert fault_of(processor, "monitor address=0x7000_0000_0000 extensions=0") == (14, 0)


@given(source=st.integers(0, 3), flags=st.integers(0, 0xFFFF))
def test_timed_waits(bench: Bench, source: int, flags: int) -> None:
    for text in ("tpause ebx", "umwait ebx"):
        processor = bench()
        processor.regs.rflags |= flags & STATUS
        if source > 1:
            assert fault_of(processor, f"{text} value={source}") == (13, 0)
        else:
            execution(processor, f"{text} value={source}")
            assert not processor.regs.rflags & STATUS


def test_umonitor_and_rdpid_are_enabled_by_controls(bench: Bench) -> None:
    assert fault_of(bench(), "umonitor rax address=0x7000") == (6, None)
    assert fault_of(bench(), "rdpid rcx") == (6, None)
    assert fault_of(bench(), "pbndkb") == (6, None)
    wait = {F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.ENABLE_USER_WAIT_AND_PAUSE)}
    processor = bench(wait)
    execution(processor, "umonitor rax address=0x7000")
    assert processor.monitor_armed
    processor = bench({F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.ENABLE_RDTSCP)})
    processor.regs.msrs[Msr.IA32_TSC_AUX] = 9
    execution(processor, "rdpid rcx")
    assert processor.regs.rcx == 9
    keys = {F.TERTIARY_PROCESSOR_BASED_CONTROLS: int(Proc3.ENABLE_PBNDKB)}
    assert fault_of(bench(keys), "pbndkb") == (13, 0)


# Numbers, extended state, keys.


@given(tsc=U64, old=U64, size=st.sampled_from(["ax", "eax", "rax"]))
def test_random_numbers_repeat_with_time(bench: Bench, tsc: int, old: int, size: str) -> None:
    values = []
    for _ in range(2):
        processor = bench(rax=old)
        processor.tsc = tsc
        processor.regs.rflags |= STATUS
        execution(processor, f"rdrand {size}")
        assert processor.regs.rflags & STATUS == 1
        values.append(processor.regs.rax)
    assert values[0] == values[1]
    if size == "ax":
        assert values[0] >> 16 == old >> 16
    elif size == "eax":
        assert not values[0] >> 32
    execution(processor, f"rdseed {size}")


def test_performance_counters(bench: Bench) -> None:
    processor = bench(rax=5, rdx=5)
    execution(processor, "rdpmc counter=7")
    assert (processor.regs.rax, processor.regs.rdx) == (0, 0)
    execution(processor, "rdpmc counter=0x4000_0003")
    assert fault_of(processor, "rdpmc counter=8") == (13, 0)
    assert fault_of(processor, "rdpmc counter=0x4000_0004") == (13, 0)


def test_xgetbv(bench: Bench) -> None:
    processor = bench()
    assert fault_of(processor, "xgetbv xcr=0") == (6, None)
    processor.regs.cr4 |= Cr4.OSXSAVE
    processor.regs.xcr0 = 0x1_0000_0007
    execution(processor, "xgetbv xcr=0")
    assert (processor.regs.rdx, processor.regs.rax) == (1, 7)
    assert fault_of(processor, "xgetbv xcr=2") == (13, 0)


@given(asked=st.integers(0, 0x3FFF), enabled=st.sampled_from([0, 0x100, 0x1900]))
def test_xsaves_writes_a_header_that_xrstors_takes(bench: Bench, asked: int, enabled: int) -> None:
    processor = bench(rax=asked, rdx=0)
    processor.regs.xcr0 = 7
    processor.regs.msrs[Msr.IA32_XSS] = enabled
    processor.memory.write(GUEST + 0x7000, bytes(0x1000))
    execution(processor, "xsaves [0x7000]")
    assert processor.memory.read_u64(GUEST + 0x7208) == 1 << 63 | asked & (7 | enabled)
    execution(processor, "xrstors [0x7000]")
    processor.memory.write_u64(GUEST + 0x7208, 0)
    assert fault_of(processor, "xrstors [0x7000]") == (13, 0)
    processor.memory.write_u64(GUEST + 0x7208, 1 << 63 | 1 << 40)
    assert fault_of(processor, "xrstors [0x7000]") == (13, 0)
    processor.memory.write_u64(GUEST + 0x7208, 1 << 63)
    processor.memory.write_u64(GUEST + 0x7210, 1)
    assert fault_of(processor, "xrstors [0x7000]") == (13, 0)
    assert fault_of(processor, "xsaves [0x7008]") == (13, 0)
    processor.regs.cr0 |= Cr0.TS
    assert fault_of(processor, "xsaves [0x7000]") == (7, None)


def test_keys_and_enclaves(bench: Bench) -> None:
    processor = bench()
    processor.regs.rflags |= STATUS
    execution(processor, "loadiwkey xmm1, xmm2 control=1")
    assert not processor.regs.rflags & STATUS
    assert fault_of(processor, "loadiwkey xmm1, xmm2 control=0x20") == (13, 0)
    assert fault_of(processor, "loadiwkey xmm1, xmm2 control=4") == (13, 0)
    processor.regs.cr0 |= Cr0.TS
    assert fault_of(processor, "loadiwkey xmm1, xmm2") == (7, None)
    assert fault_of(processor, "pconfig") == (13, 0)
    with pytest.raises(NotSupported, match="exiting bitmap"):
        execution(processor, "encls leaf=1")


@pytest.mark.parametrize("text", ["nop", "pause", "wbinvd", "wbnoinvd"])
def test_instructions_without_visible_effect(bench: Bench, text: str) -> None:
    processor = bench({F.PRIMARY_PROCESSOR_BASED_CONTROLS: int(ACTIVATE)})
    before = processor.regs.as_dict()
    execution(processor, text)
    after = processor.regs.as_dict()
    assert after.pop("rip") == before.pop("rip") + {"nop": 1, "wbnoinvd": 3}.get(text, 2)
    assert after == before
