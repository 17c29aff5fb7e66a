"""DR0 to DR3, and single-stepping on branches, while a guest runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import CODE, capable_shape, guest, inside
from tests.rules.bench import Bench
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.machine.mmu import Access
from vtx.machine.program import Instruction
from vtx.rules.breakpoints import conditions_of
from vtx.rules.execution_memory import read, write

EXECUTE, WRITE, PORT, READ_OR_WRITE = range(4)
ONE, TWO, EIGHT, FOUR = range(4)


def armed(kind: int, length: int = ONE, number: int = 0) -> int:
    """Return DR7 with one breakpoint."""
    return 0x400 | 1 << 2 * number | (kind | length << 2) << 16 + 4 * number


def first_exit(
    text: str, dr7: int, address: int, *, rflags: int = 2, debugctl: int = 0, cr4: int = 0,
    number: int = 0, interruptibility: int = 0,
) -> tuple[Why, int, int]:  # fmt: skip
    """Return reason, RIP and qualification of the first exit of a guest that intercepts #DB."""
    with guest() as cpu:
        cpu.vmwrite(F.EXCEPTION_BITMAP, 1 << 1)
        cpu.vmwrite(F.GUEST_DR7, dr7)
        cpu.vmwrite(F.GUEST_RFLAGS, rflags)
        cpu.vmwrite(F.GUEST_IA32_DEBUGCTL, debugctl)
        cpu.vmwrite(F.GUEST_INTERRUPTIBILITY_STATE, interruptibility)
        cpu.vmwrite(F.GUEST_CR4, cpu.vmread(F.GUEST_CR4) | cr4)
        setattr(cpu.regs, f"dr{number}", address)
        exit = cpu.enter(text)
        return exit.reason, exit.rip, exit.qualification


def test_an_instruction_breakpoint_faults_before_the_instruction() -> None:
    at = CODE + 1
    for number in range(4):
        dr7 = armed(EXECUTE, number=number)
        found = first_exit("nop\nnop\ncpuid", dr7, at, number=number)
        assert found == (Why.EXCEPTION_OR_NMI, at, 1 << number)
    found = first_exit("nop\nnop\ncpuid", 0x400, at)
    assert found[0] == Why.CPUID


def test_rf_and_mov_ss_hold_an_instruction_breakpoint_off() -> None:
    found = first_exit("nop\ncpuid", armed(EXECUTE), CODE, rflags=0x1_0002)
    assert found[0] == Why.CPUID
    found = first_exit("nop\ncpuid", armed(EXECUTE), CODE, interruptibility=2)
    assert found[0] == Why.CPUID


@pytest.mark.parametrize(
    ("kind", "text", "hit"),
    [
        (WRITE, "store 0x7000 value=1 size=4", True),
        (WRITE, "load rax, 0x7000 size=4", False),
        (READ_OR_WRITE, "load rax, 0x7000 size=4", True),
        (READ_OR_WRITE, "store 0x7004 value=1 size=4", False),
        (WRITE, "modify 0x6ffd size=4", True),
    ],
)
def test_data_breakpoints_trap_after_the_instruction(kind: int, text: str, hit: bool) -> None:
    found = first_exit(f"{text}\ncpuid", armed(kind, FOUR), 0x7000)
    if hit:
        length = found[1] - CODE
        assert found[0] == Why.EXCEPTION_OR_NMI
        assert length > 0
        assert found[2] & 0xF == 1
    else:
        assert found[0] == Why.CPUID


def test_port_breakpoints_need_debugging_extensions() -> None:
    for cr4, reason in ((8, Why.EXCEPTION_OR_NMI), (0, Why.CPUID)):
        found = first_exit("in al, 0x60\ncpuid", armed(PORT), 0x60, cr4=cr4)
        assert found[0] == reason


def test_single_stepping_on_branches_passes_over_the_rest() -> None:
    text = f"nop\nnop\njmp {CODE + 16:#x}\ncpuid\ncpuid rip={CODE + 16:#x}"
    found = first_exit(text, 0x400, 0, rflags=0x102)
    assert found == (Why.EXCEPTION_OR_NMI, CODE + 1, 1 << 14)
    found = first_exit(text, 0x400, 0, rflags=0x102, debugctl=2)
    assert found == (Why.EXCEPTION_OR_NMI, CODE + 16, 1 << 14)


def test_delivery_of_a_debug_exception_ends_stepping_on_branches() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_DR7, armed(WRITE, FOUR))
        cpu.vmwrite(F.GUEST_IA32_DEBUGCTL, 3)
        cpu.regs.dr0 = 0x7000
        exit = cpu.enter("store 0x7000 value=1 size=4\nnop", vector_1="cpuid\niret")
        assert exit.reason == Why.CPUID
        assert cpu.regs.dr6 & 0xF == 1
        assert cpu.vmread(F.GUEST_IA32_DEBUGCTL) == 0


def test_a_breakpoint_that_the_vmm_moves_is_met_after_many_equal_round_trips() -> None:
    """DR0 is no field of the VMCS: nothing there says that the guest has changed."""
    with guest() as cpu:
        cpu.vmwrite(F.EXCEPTION_BITMAP, 1 << 1)
        cpu.vmwrite(F.GUEST_DR7, armed(EXECUTE))
        exit = cpu.enter("cpuid\n" * 4)
        for step in range(1, 40):
            assert exit.reason == Why.CPUID
            cpu.vmwrite(F.GUEST_RIP, CODE + 2 * (step % 4))
            exit = cpu.resume()
        cpu.vmwrite(F.GUEST_RIP, CODE)
        cpu.regs.dr0 = CODE
        exit = cpu.resume()
        assert (exit.reason, exit.qualification) == (Why.EXCEPTION_OR_NMI, 1)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


@given(
    kinds=st.tuples(*[st.sampled_from([EXECUTE, WRITE, READ_OR_WRITE])] * 4),
    lengths=st.tuples(*[st.integers(0, 3)] * 4),
    enabled=st.integers(0, 255),
    addresses=st.tuples(*[st.integers(0x7000, 0x7020)] * 4),
    access=st.tuples(st.integers(0x7000, 0x7020), st.integers(1, 16), st.booleans()),
)
def test_data_breakpoints_as_restated(
    bench: Bench,
    kinds: tuple[int, ...],
    lengths: tuple[int, ...],
    enabled: int,
    addresses: tuple[int, ...],
    access: tuple[int, int, bool],
) -> None:
    """A byte of the access is one of the bytes that the breakpoint's aligned range covers."""
    linear, size, writes = access
    dr7 = 0x400 | enabled
    for number in range(4):
        dr7 |= (kinds[number] | lengths[number] << 2) << 16 + 4 * number
    registers = {f"dr{number}": address for number, address in enumerate(addresses)}
    processor = bench(dr7=dr7, **registers)
    processor.watched = []
    if writes:
        write(processor, linear, bytes(size))
    else:
        read(processor, linear, size)
    assert {kind for _, _, kind in processor.watched} == {Access.STORE if writes else Access.LOAD}
    touched = set(range(linear, linear + size))
    expected = 0
    for number in range(4):
        bytes_ = (1, 2, 8, 4)[lengths[number]]
        start = addresses[number] // bytes_ * bytes_
        right = kinds[number] == READ_OR_WRITE or (kinds[number] == WRITE and writes)
        if right and dr7 >> 2 * number & 3 and touched & set(range(start, start + bytes_)):
            expected |= 1 << number
    found = conditions_of(processor, Instruction("nop"))
    assert found == (expected | 1 << 12 if expected else 0)
    assert processor.watched is None
