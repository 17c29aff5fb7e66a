"""VMREAD and VMWRITE: every field, every width, every mode, and VMCS shadowing."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu import states
from tests.cpu.states import SCRATCH, outcome
from vtx.cpu import Cpu, MemoryOperand, RegisterOperand
from vtx.errors import UnhandledExit, VMfailValid
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field, Width, mask
from vtx.machine.events import GUEST, Event
from vtx.machine.vmcs import Vmcs

PROFILE = "sapphire_rapids"


@cache
def processor() -> Cpu:
    """Return a processor in VMX root operation with a VMCS to write to."""
    cpu = states.root(PROFILE)
    cpu.vmptrld(cpu.new_region())
    return cpu


@cache
def legacy() -> Cpu:
    """Return the same outside IA-32e mode."""
    cpu = states.root(PROFILE)
    cpu.vmptrld(cpu.new_region())
    states.legacy_mode(cpu)
    return cpu


def after_exit() -> Cpu:
    """Return a processor whose instructions take the short way."""
    return states.exited(PROFILE)


SUPPORTED = sorted(processor().shape.fields)
WIDE = [f for f in SUPPORTED if FIELDS[f].width is Width.W64]
ANY = st.integers(0, (1 << 64) - 1)


@given(st.sampled_from(SUPPORTED), ANY)
def test_vmread_after_vmwrite(field: Field, value: int):
    cpu = processor()
    cpu.vmwrite(field, value)
    assert cpu.vmread(field) == value & mask(field)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(SUPPORTED), ANY), max_size=4))
def test_the_short_way_reads_and_writes_the_same(writes: list[tuple[Field, int]]):
    long, short = processor(), short_cpu()
    for field, value in writes:
        results = []
        for cpu in (long, short):
            cpu.regs.rflags |= states.STATUS_FLAGS
            assert cpu.vmwrite(field, value) is None
            assert cpu.regs.rflags & states.STATUS_FLAGS == 0
            cpu.regs.rflags |= states.STATUS_FLAGS
            results.append(cpu.vmread(field))
            assert cpu.regs.rflags & states.STATUS_FLAGS == 0
        assert results[0] == results[1] == value & mask(field)


@cache
def short_cpu() -> Cpu:
    cpu = after_exit()
    assert cpu.regs.system is cpu.root_system
    return cpu


@given(st.sampled_from(WIDE), ANY, ANY)
def test_high_access(field: Field, value: int, high: int):
    cpu = processor()
    cpu.vmwrite(field, value)
    assert cpu.vmread(field | 1) == value >> 32
    cpu.vmwrite(field | 1, high)
    assert cpu.vmread(field) == (high & 0xFFFF_FFFF) << 32 | value & 0xFFFF_FFFF


@given(st.sampled_from(SUPPORTED), ANY, ANY)
def test_outside_64bit_mode_operands_have_32_bits(field: Field, old: int, value: int):
    cpu = legacy()
    assert cpu.vmcs is not None
    cpu.vmcs[field] = old
    assert cpu.vmread(field) == old & mask(field) & 0xFFFF_FFFF
    cpu.vmwrite(field, value)
    assert cpu.vmcs[field] == value & 0xFFFF_FFFF & mask(field)


@given(st.sampled_from(WIDE), ANY, ANY)
def test_high_access_outside_64bit_mode(field: Field, old: int, high: int):
    cpu = legacy()
    assert cpu.vmcs is not None
    cpu.vmcs[field] = old
    assert cpu.vmread(field | 1) == old >> 32
    cpu.vmwrite(field | 1, high)
    assert cpu.vmcs[field] == (high & 0xFFFF_FFFF) << 32 | old & 0xFFFF_FFFF


def test_outside_64bit_mode_the_encoding_has_32_bits():
    cpu = legacy()
    cpu.vmwrite(Field.GUEST_RIP | 1 << 32, 0x77)
    assert cpu.vmread(Field.GUEST_RIP | 1 << 40) == 0x77


@pytest.mark.parametrize("profile", ["penryn_core2", "nehalem", "skylake_sp", "sapphire_rapids"])
def test_exactly_the_fields_of_the_cpu_can_be_read(profile: str):
    cpu = states.root(profile)
    cpu.vmptrld(cpu.new_region())
    for field in Field:
        exists = cpu.shape.field_exists(field)
        assert (outcome(cpu, lambda c, f=field: c.vmread(f)) == "success") is exists


@pytest.mark.parametrize("start", [processor, after_exit], ids=["long", "short"])
def test_exit_information_can_be_written_where_the_cpu_allows_it(start):
    cpu = start()
    assert cpu.shape.misc(29)
    cpu.vmwrite(Field.EXIT_QUALIFICATION, 0x1234)
    assert cpu.vmread(Field.EXIT_QUALIFICATION) == 0x1234


def test_read_only_fields_of_an_older_cpu():
    cpu = states.loaded("nehalem")
    assert not cpu.shape.misc(29)
    for field in cpu.shape.fields:
        ends = "VMfail(13)" if FIELDS[field].area is Area.READ_ONLY else "success"
        assert outcome(cpu, lambda c, f=field: c.vmwrite(f, 0)) == ends


@pytest.mark.parametrize("start", [states.loaded, states.exited], ids=["long", "short"])
def test_operands_in_memory_and_registers(start):
    cpu = start()
    cpu.vmwrite(Field.GUEST_RIP, 0x1122_3344_5566_7788)
    cpu.vmread(Field.GUEST_RIP, MemoryOperand(SCRATCH))
    assert cpu.memory.read_u64(SCRATCH) == 0x1122_3344_5566_7788
    cpu.vmread(Field.GUEST_RIP, RegisterOperand(3))
    assert cpu.regs.rbx == 0x1122_3344_5566_7788
    cpu.memory.write_u64(SCRATCH + 0xFFC, 0x99AA_BBCC_DDEE_FF00)
    cpu.vmwrite(Field.GUEST_RSP, MemoryOperand(SCRATCH + 0xFFC))
    assert cpu.vmread(Field.GUEST_RSP) == 0x99AA_BBCC_DDEE_FF00
    cpu.regs.r15 = 0x4242
    cpu.vmwrite(Field.GUEST_RSP, RegisterOperand(15))
    assert cpu.vmread(Field.GUEST_RSP) == 0x4242


def test_fs_and_gs_have_a_base_in_64bit_mode():
    cpu = states.loaded()
    cpu.regs.fs = cpu.regs.fs._replace(base=SCRATCH)
    cpu.vmread(Field.HOST_RIP, MemoryOperand(8, "fs"))
    assert cpu.memory.read_u64(SCRATCH + 8) == cpu.vmread(Field.HOST_RIP)


def flat_legacy() -> Cpu:
    """Return a processor in 32-bit protected mode without paging."""
    cpu = states.root(PROFILE)
    cpu.vmptrld(cpu.new_region())
    states.legacy_mode(cpu)
    cpu.regs.cr0 &= ~(1 << 31)
    return cpu


@pytest.mark.parametrize(
    ("rights", "limit", "offset", "ends"),
    [
        (0xC093, 0xFFFF_FFFF, SCRATCH, "success"),
        (0x4093, 0xFFF, 0xFFC, "success"),
        (0x4093, 0xFFF, 0xFFD, "#GP(0)"),
        (0x4097, 0xFFF, 0x1000, "success"),
        (0x4097, 0xFFF, 0xFFF, "#GP(0)"),
        (0x4097, 0xFFF, 0xFFFF_FFFC, "success"),
        (0x0097, 0xFFF, 0xFFFD, "#GP(0)"),
        (0xC09B, 0xFFFF_FFFF, SCRATCH, "#GP(0)"),
        (0xC091, 0xFFFF_FFFF, SCRATCH, "#GP(0)"),
    ],
)
def test_segment_rules_outside_64bit_mode(rights: int, limit: int, offset: int, ends: str):
    cpu = flat_legacy()
    cpu.regs.ds = cpu.regs.ds._replace(access_rights=rights, limit=limit)
    if offset > 1 << 31:
        cpu.regs.ds = cpu.regs.ds._replace(base=0x2000)
    act = lambda c: c.vmread(Field.HOST_RIP, MemoryOperand(offset))  # noqa: E731
    assert outcome(cpu, act) == ends


def test_code_segments_can_be_read_if_they_say_so():
    cpu = flat_legacy()
    cpu.vmwrite(Field.GUEST_RIP, MemoryOperand(SCRATCH, "cs"))
    cpu.regs.cs = cpu.regs.cs._replace(access_rights=0xC099)
    act = lambda c: c.vmwrite(Field.GUEST_RIP, MemoryOperand(SCRATCH, "cs"))  # noqa: E731
    assert outcome(cpu, act) == "#GP(0)"


# ---- Order of conditions -------------------------------------------------


def test_vmread_tests_the_field_before_it_writes_memory():
    cpu = states.loaded()
    act = lambda c: c.vmread(0x2046, MemoryOperand(states.UNMAPPED))  # noqa: E731
    assert outcome(cpu, act) == "VMfail(12)"


def test_vmwrite_reads_memory_before_it_tests_the_field():
    cpu = states.loaded()
    act = lambda c: c.vmwrite(0x2046, MemoryOperand(states.UNMAPPED))  # noqa: E731
    assert outcome(cpu, act) == "#PF"


def test_the_error_names_the_encoding():
    with pytest.raises(VMfailValid, match="0x2046") as raised:
        states.loaded().vmread(0x2046)
    assert raised.value.error == 12


# ---- Counting -------------------------------------------------


@pytest.mark.parametrize("start", [states.loaded, states.exited], ids=["long", "short"])
def test_reads_and_writes_are_counted(start):
    cpu = start()
    row = cpu.events.row
    before = row[Event.VMREAD], row[Event.VMWRITE]
    cpu.vmread(Field.GUEST_RIP)
    cpu.vmread(Field.GUEST_RIP)
    cpu.vmwrite(Field.GUEST_RIP, 0)
    assert (row[Event.VMREAD] - before[0], row[Event.VMWRITE] - before[1]) == (2, 1)


def test_counts_go_to_the_exit_that_is_handled():
    cpu = states.exited()
    cpu.vmread(Field.GUEST_RIP)
    assert cpu.events.counts[ExitReason.CPUID][Event.VMREAD] == 1
    assert cpu.events.counts[GUEST][Event.VMREAD] == 0


# ---- VMCS shadowing -------------------------------------------------

BITMAPS = 0x6000


def shadowing_guest() -> tuple[Cpu, int]:
    """Return a guest with VMCS shadowing, and the address of its shadow VMCS."""
    cpu = states.root()
    shadow = cpu.new_region()
    cpu.memory.write_u32(shadow, cpu.shape.revision_id | 1 << 31)
    cpu.vmclear(shadow)
    cpu.load(
        Vmcs.for_64bit_guest(cpu.shape).update(
            vmcs_link_pointer=shadow,
            vmread_bitmap_address=BITMAPS,
            vmwrite_bitmap_address=BITMAPS + 0x1000,
        )
    )
    controls = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS) | Proc2.VMCS_SHADOWING
    cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, controls)
    for gpa in range(0, 16 << 20, 2 << 20):
        cpu.ept.map(gpa, size="2M")
    from vtx.errors import EndOfTrace

    with pytest.raises(EndOfTrace):
        cpu.vmlaunch(states.program("nop"))
    return cpu, shadow


def test_a_guest_reads_and_writes_the_shadow_vmcs():
    cpu, shadow = shadowing_guest()
    rip = cpu.vmcs[Field.GUEST_RIP]
    counted = cpu.events.total(Event.VMREAD), cpu.events.total(Event.VMWRITE)
    cpu.vmwrite(Field.GUEST_RIP, 0x7777)
    assert cpu.vmread(Field.GUEST_RIP) == 0x7777
    assert cpu.vmcs[Field.GUEST_RIP] == rip
    assert (cpu.events.total(Event.VMREAD), cpu.events.total(Event.VMWRITE)) == counted
    # The shadow VMCS is active: VMCLEAR brings its data to memory.
    cpu.vmxoff()
    cpu.vmclear(shadow)
    assert Vmcs.from_bytes(cpu.memory.read(shadow, 4096))[Field.GUEST_RIP] == 0x7777


def test_bitmaps_select_fields():
    cpu, _ = shadowing_guest()
    byte, bit = divmod(int(Field.GUEST_RIP), 8)
    cpu.memory.write(BITMAPS + byte, bytes([1 << bit]))
    cpu.vmwrite(Field.GUEST_RIP, 1)
    assert cpu.vmread(Field.GUEST_RSP) == 0
    with pytest.raises(UnhandledExit) as raised:
        cpu.vmread(Field.GUEST_RIP)
    assert raised.value.exit.reason is ExitReason.VMREAD
    assert not cpu.non_root


def test_errors_of_a_guest_go_to_the_current_vmcs():
    cpu, _ = shadowing_guest()
    assert outcome(cpu, lambda c: c.vmwrite(0x2046, 0)) == "VMfail(12)"
    assert cpu.link_vmcs is not None
    assert cpu.link_vmcs[Field.VM_INSTRUCTION_ERROR] == 0
