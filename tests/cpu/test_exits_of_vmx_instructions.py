"""VMX instructions that Python executes in VMX non-root operation exit as those of a listing do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import GuestCpu, capable_shape, inside
from vtx.cpu import Cpu, MemoryOperand, RegisterOperand
from vtx.errors import EndOfTrace, UnhandledExit
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS, SEGMENT_REGISTERS
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.program import Program

INFORMATION = (
    Field.EXIT_REASON,
    Field.EXIT_QUALIFICATION,
    Field.VM_EXIT_INSTRUCTION_LENGTH,
    Field.VM_EXIT_INSTRUCTION_INFORMATION,
    Field.GUEST_RFLAGS,
    Field.GUEST_RIP,
)
#: What Python calls, and the line of a listing that says the same.
Act = Callable[[Cpu], object]
FIXED: list[tuple[str, Act]] = [
    ("vmlaunch", lambda cpu: cpu.vmlaunch()),
    ("vmresume", lambda cpu: cpu.vmresume()),
    ("vmxoff", lambda cpu: cpu.vmxoff()),
    ("vmcall", lambda cpu: cpu.vmcall()),
    ("vmclear [0]", lambda cpu: cpu.vmclear(0x5000)),
    ("vmptrld [0x1230]", lambda cpu: cpu.vmptrld(MemoryOperand(0x1230))),
    ("vmptrst [fs:0x40]", lambda cpu: cpu.vmptrst(MemoryOperand(0x40, "fs"))),
    ("vmptrst [0]", lambda cpu: cpu.vmptrst()),
    ("vmxon [ss:8]", lambda cpu: cpu.vmxon(MemoryOperand(8, "ss"))),
    ("invept rcx, [0] type=1", lambda cpu: cpu.invept(1, 0x5000)),
    ("invvpid r9, [gs:0x10]", lambda cpu: cpu.invvpid(RegisterOperand(9), MemoryOperand(16, "gs"))),
    ("vmread rax, rcx field=GUEST_RIP", lambda cpu: cpu.vmread(Field.GUEST_RIP)),
    (
        "vmread [0x70], rcx field=GUEST_RSP",
        lambda cpu: cpu.vmread(Field.GUEST_RSP, MemoryOperand(0x70)),
    ),
    ("vmwrite rcx, rax field=GUEST_RIP value=7", lambda cpu: cpu.vmwrite(Field.GUEST_RIP, 7)),
    (
        "vmwrite rcx, r12 field=GUEST_RIP",
        lambda cpu: cpu.vmwrite(Field.GUEST_RIP, RegisterOperand(12)),
    ),
]


@pytest.fixture(scope="module")
def running() -> Iterator[GuestCpu]:
    with inside(capable_shape()) as cpu:
        yield cpu


def again(cpu: GuestCpu) -> GuestCpu:
    """Let the guest run on after its last exit, up to the end of its program."""
    if not cpu.non_root:
        with pytest.raises(EndOfTrace):
            cpu.vmresume()
    return cpu


def recorded(cpu: GuestCpu) -> tuple[int, ...]:
    """Return what the last exit recorded, and the registers that operands may be in."""
    regs = cpu.regs
    return (*(cpu.vmread(field) for field in INFORMATION), regs.rax, regs.rcx, regs.rdx)


def called(act: Act) -> tuple[int, ...]:
    """Return what the exit of a call records, with RFLAGS.RF 1 before it."""
    with inside(capable_shape()) as cpu:
        cpu.regs.rflags |= 1 << 16
        with contextlib.suppress(UnhandledExit):
            assert isinstance(act(cpu), Exit)
        return recorded(cpu)


def listed(text: str) -> tuple[int, ...]:
    """Return what the exit of the same instruction in a listing records."""
    with inside(capable_shape()) as cpu:
        cpu.regs.rflags |= 1 << 16
        cpu.proceed(Program((parse_instruction(text),)))
        return recorded(cpu)


@pytest.mark.parametrize(("text", "act"), FIXED, ids=[text for text, _ in FIXED])
def test_the_exit_says_what_a_listing_says(text: str, act: Act):
    assert called(act) == listed(text)


def test_vmfunc_exits_with_its_length():
    with inside(capable_shape()) as cpu:
        cpu.vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] |= Proc2.ENABLE_VM_FUNCTIONS
        cpu.regs.rax = 5
        exit = cpu.vmfunc()
        assert exit is not None
        assert (exit.reason, exit.instruction_length) == (ExitReason.VMFUNC, 3)


@given(
    st.integers(0, 15),
    st.integers(0, (1 << 31) - 1),
    st.sampled_from(SEGMENT_REGISTERS),
)
def test_operands_of_invept_are_where_the_manual_has_them(
    running: GuestCpu, register: int, offset: int, segment: str
):
    exit = again(running).invept(RegisterOperand(register), MemoryOperand(offset, segment))
    assert exit is not None
    assert exit.qualification == offset
    information = exit.instruction_information
    assert information >> 28 == register
    assert information >> 15 & 7 == SEGMENT_REGISTERS.index(segment)
    # Neither base nor index, 64-bit addresses.
    assert information & 0x0840_0780 == 0x0840_0100
    prefixes = (segment != "ds") + (register > 7)
    assert exit.instruction_length == 4 + 1 + 5 + prefixes


@given(st.integers(0, 15), st.integers(0, (1 << 64) - 1))
def test_operands_of_vmwrite_are_in_registers(running: GuestCpu, source: int, value: int):
    cpu = again(running)
    rsp = cpu.regs.rsp
    setattr(cpu.regs, GENERAL_REGISTERS[source], value)
    exit = cpu.vmwrite(Field.GUEST_RSP, RegisterOperand(source))
    assert exit is not None
    assert exit.instruction_information == 1 << 28 | 1 << 10 | source << 3
    assert exit.qualification == 0
    assert cpu.regs.rcx == Field.GUEST_RSP
    cpu.vmwrite(Field.GUEST_RSP, rsp)
