"""Loads, stores, stack and ports of the guest: what reaches its memory, and what stops it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench, execution, fault_of
from vtx.facts.controls import Proc2
from vtx.facts.fields import Field as F
from vtx.rules.execution_memory import ExitTaken

U64 = st.integers(0, (1 << 64) - 1)
#: Guest memory that is mapped; addresses near a page's end are the interesting ones.
ADDRESS = st.one_of(st.integers(0x7000, 0x9000), st.integers(0x7FF0, 0x8010))
SIZE = st.sampled_from([1, 2, 4, 8])
UNMAPPED_BY_EPT = 0x3000_0000


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        cpu.ept.unmap(UNMAPPED_BY_EPT)
        cpu.ept.unmap(0x3020_0000)
        cpu.mmu.flush_all()
        yield Bench(cpu)


def low(value: int, size: int) -> int:
    return value & (1 << 8 * size) - 1


@given(address=ADDRESS, size=SIZE, value=U64)
def test_stores_and_loads(bench: Bench, address: int, size: int, value: int) -> None:
    processor = bench()
    memory = processor.memory
    memory.write(GUEST + address - 8, bytes(24))
    rip = processor.regs.rip
    execution(processor, f"store {address} size={size} value={value}")
    content = low(value, size).to_bytes(size, "little")
    assert memory.read(GUEST + address - 8, 24) == bytes(8) + content + bytes(16 - size)
    execution(processor, f"load rcx, {address} size=8")
    assert processor.regs.rcx == low(value, size)
    assert processor.regs.rip == rip + 16


@given(address=ADDRESS, value=U64, addend=U64, size=SIZE)
def test_modify_adds(bench: Bench, address: int, value: int, addend: int, size: int) -> None:
    processor = bench()
    processor.memory.write_u64(GUEST + address, value)
    execution(processor, f"modify {address} size={size} value={addend}")
    assert processor.memory.read(GUEST + address, size) == low(value + addend, size).to_bytes(
        size, "little"
    )
    execution(processor, f"modify {address} size={size}")
    assert processor.memory.read(GUEST + address, size) == low(value + addend, size).to_bytes(
        size, "little"
    )


@given(value=U64, old=U64, register=st.sampled_from(["ax", "eax", "rax"]), base=ADDRESS)
def test_moves_between_registers_and_memory(
    bench: Bench, value: int, old: int, register: str, base: int
) -> None:
    processor = bench(rbx=base, rax=value, rcx=old)
    size = {"ax": 2, "eax": 4, "rax": 8}[register]
    processor.memory.write_u64(GUEST + base, old)
    execution(processor, f"mov [rbx], {register}")
    expected = old & ~((1 << 8 * size) - 1) | low(value, size)
    assert processor.memory.read_u64(GUEST + base) == expected
    destination = {"ax": "cx", "eax": "ecx", "rax": "rcx"}[register]
    processor.regs.rcx = old
    execution(processor, f"mov {destination}, [rbx]")
    kept = old & ~0xFFFF if size == 2 else 0
    assert processor.regs.rcx == kept | low(value, size)


def test_moves_of_numbers_and_registers(bench: Bench) -> None:
    processor = bench()
    execution(processor, "mov r9, 0x1122334455667788")
    execution(processor, "mov rdx, r9")
    execution(processor, "mov ecx, edx")
    assert (processor.regs.rdx, processor.regs.rcx) == (0x1122_3344_5566_7788, 0x5566_7788)


@given(value=U64, top=st.integers(0x7008, 0x9000))
def test_the_stack(bench: Bench, value: int, top: int) -> None:
    processor = bench(rsp=top, rbx=value)
    execution(processor, "push rbx")
    assert processor.regs.rsp == top - 8
    assert processor.memory.read_u64(GUEST + top - 8) == value
    execution(processor, "pop r12")
    assert (processor.regs.rsp, processor.regs.r12) == (top, value)


@pytest.mark.parametrize(
    ("text", "access"),
    [
        (f"load {UNMAPPED_BY_EPT} size=8", 0b001),
        (f"store {UNMAPPED_BY_EPT} size=8 value=1", 0b010),
        (f"modify {UNMAPPED_BY_EPT} size=8 value=1", 0b010),
        (f"fetch {UNMAPPED_BY_EPT}", 0b100),
    ],
)
def test_ept_violations(bench: Bench, text: str, access: int) -> None:
    processor = bench()
    before = processor.regs.copy()
    with pytest.raises(ExitTaken) as caught:
        execution(processor, text)
    exit = caught.value.information
    assert exit.reason == 48
    assert exit.qualification & 0b111 & ~1 == access & ~1 or exit.qualification & access
    assert exit.qualification & 0x180 == 0x180
    assert exit.guest_linear_address == exit.guest_physical_address == UNMAPPED_BY_EPT
    assert exit.resume_flag == 1
    assert processor.regs.as_dict() == before.as_dict()


def test_nothing_is_written_if_the_second_page_is_missing(bench: Bench) -> None:
    processor = bench()
    address = UNMAPPED_BY_EPT - 4
    processor.memory.write(GUEST + address, b"\x11" * 4)
    with pytest.raises(ExitTaken) as caught:
        execution(processor, f"store {address} value={(1 << 64) - 1}")
    assert caught.value.information.guest_linear_address == UNMAPPED_BY_EPT
    assert processor.memory.read(GUEST + address, 4) == b"\x11" * 4


def test_faults(bench: Bench) -> None:
    assert fault_of(bench(), "load 0x8000_0000_0000") == (13, 0)
    assert fault_of(bench(cpl=3), "load 0xffff_8880_0000_0000") == (14, 5)
    assert fault_of(bench(), "load 0x7000_0000_0000") == (14, 0)
    assert fault_of(bench(), "store 0x7000_0000_0000 value=1") == (14, 2)


# Ports without devices.


@given(old=U64, size=st.sampled_from([1, 2, 4]))
def test_reading_a_port_gives_ones(bench: Bench, old: int, size: int) -> None:
    processor = bench(rax=old)
    execution(processor, f"in {'al' if size == 1 else 'ax' if size == 2 else 'eax'}, dx")
    kept = 0 if size == 4 else old & ~((1 << 8 * size) - 1)
    assert processor.regs.rax == kept | (1 << 8 * size) - 1
    before = processor.regs.copy()
    execution(processor, "out dx, eax")
    assert processor.regs.rax == before.rax


@given(count=st.integers(0, 5), size=st.sampled_from("bwd"), down=st.booleans(), rep=st.booleans(),
       narrow=st.booleans(), high=st.sampled_from([0, 1 << 40]))  # fmt: skip
def test_string_ports(
    bench: Bench, count: int, size: str, down: bool, rep: bool, narrow: bool, high: int
) -> None:
    """RCX and the pointer move as the address size and DF say; INS fills memory with ones."""
    high = high if narrow else 0
    processor = bench(rdi=0x7800 | high, rsi=0x7800 | high, rcx=count | high)
    processor.regs.rflags |= 0x400 if down else 0
    processor.memory.write(GUEST + 0x7000, bytes(0x1000))
    width = {"b": 1, "w": 2, "d": 4}[size]
    text = ("rep " if rep else "") + ("a32 " if narrow else "")
    execution(processor, f"{text}ins{size}")
    execution(processor, f"{text}outs{size}") if not rep else None
    times = count if rep else 1
    step = -width if down else width
    assert processor.regs.rdi == (0x7800 + times * step) | high
    assert processor.regs.rcx == ((0 if rep else count) | high)
    assert processor.memory.read(GUEST + 0x7000, 0x1000).count(0xFF) == times * width
    if not rep:
        assert processor.regs.rsi == (0x7800 + step) | high


def test_a_string_stops_at_a_fault_with_what_is_left(bench: Bench) -> None:
    processor = bench(rdi=UNMAPPED_BY_EPT - 8, rcx=5)
    with pytest.raises(ExitTaken):
        execution(processor, "rep insd")
    assert (processor.regs.rcx, processor.regs.rdi) == (3, UNMAPPED_BY_EPT)


def test_no_device_takes_a_command(bench: Bench) -> None:
    processor = bench({F.SECONDARY_PROCESSOR_BASED_CONTROLS: 0}, rax=0x9000)
    processor.regs.rflags |= 0x8D5
    execution(processor, "enqcmds rax, [0x7000]")
    assert processor.regs.rflags & 0x8D5 == 0x40


# Accesses that #VE takes from the VMM.


@given(busy=st.booleans(), suppress=st.booleans(), on=st.booleans())
def test_virtualization_exceptions(bench: Bench, busy: bool, suppress: bool, on: bool) -> None:
    """A convertible EPT violation is #VE unless the area is busy or the entry suppresses it."""
    area, page = bench.page(6), 0x3020_0000
    memory, ept = bench.cpu.memory, bench.cpu.ept
    memory.write_u32(area + 4, 0xFFFF_FFFF if busy else 0)
    table = ept_entry_address(bench, page)
    memory.write_u64(table, (1 << 63) if suppress else 0)
    bench.cpu.mmu.flush_all()
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.EPT_VIOLATION_VE) if on else 0,
        F.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS: area,
        F.EPTP_INDEX: 7,
    }
    processor = bench(fields)
    if on and not busy and not suppress:
        assert fault_of(processor, f"load {page + 0x18}") == (20, None)
        words = [memory.read_u64(area + offset) for offset in (8, 16, 24)]
        assert memory.read_u32(area) == 48
        assert memory.read_u32(area + 4) == 0xFFFF_FFFF
        assert words[0] & 0x187 == 0x181
        assert words[1:] == [page + 0x18, page + 0x18]
        assert memory.read_u16(area + 32) == 7
    else:
        with pytest.raises(ExitTaken):
            execution(processor, f"load {page}")
    assert ept.eptp


def ept_entry_address(bench: Bench, gpa: int) -> int:
    """Return where the level-2 EPT entry of a guest-physical address stands."""
    table = bench.cpu.ept.eptp & ~0xFFF
    for shift in (39, 30):
        table = bench.cpu.memory.read_u64(table + 8 * (gpa >> shift & 511)) & 0xF_FFFF_FFFF_F000
    return table + 8 * (gpa >> 21 & 511)


FLAGS = {"of": 1 << 11, "sf": 1 << 7, "zf": 1 << 6, "af": 1 << 4, "pf": 1 << 2, "cf": 1}


def flags_of(*names: str) -> int:
    return sum(FLAGS[name] for name in names)


@pytest.mark.parametrize(
    ("line", "rbx", "rcx", "names", "result"),
    [
        ("add [0x8000], ebx", 1, 0xFFFF_FFFF, ("zf", "cf", "af", "pf"), 0),
        ("add [0x8000], ebx", 0x7FFF_FFFF, 1, ("of", "sf", "af", "pf"), 0x8000_0000),
        ("add [0x8000], rbx", 0, 7, (), 7),
        ("xor ebx, ecx", 0xF0, 0x0F, ("pf",), 0xFF),
        ("xor ebx, ecx", 5, 5, ("zf", "pf"), 0),
        ("test rbx, rcx", 1 << 63, 1 << 63, ("sf", "pf"), 1 << 63),
        ("btr rbx, 4", 0x11, 0, ("cf",), 1),
        ("btr rbx, 3", 0x11, 0, (), 0x11),
    ],
)
def test_arithmetic_sets_the_status_flags(
    bench: Bench, line: str, rbx: int, rcx: int, names: tuple[str, ...], result: int
) -> None:
    processor = bench()
    processor.regs.rbx, processor.regs.rcx = rbx, rcx
    processor.memory.write_u64(GUEST + 0x8000, rcx)
    execution(processor, line)
    memory = processor.memory.read_u64(GUEST + 0x8000)
    assert (memory if line.startswith("add") else processor.regs.rbx) == result
    assert processor.regs.rflags & sum(FLAGS.values()) == flags_of(*names)


def test_division(bench: Bench) -> None:
    processor = bench()
    processor.regs.rdx, processor.regs.rax, processor.regs.rcx = 1, 7, 16
    execution(processor, "div ecx")
    assert (processor.regs.rax, processor.regs.rdx) == (0x1000_0000, 7)
    processor.regs.rdx = 16
    assert fault_of(processor, "div ecx") == (0, None)
    processor.regs.rcx = 0
    assert fault_of(processor, "div ecx") == (0, None)
