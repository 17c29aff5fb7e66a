"""IRET, software interrupts, flags and jumps of the guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench, execution, fault_of
from vtx.errors import GuestFault
from vtx.facts.controls import Pin
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr4, Interruptibility, Rflags, Segment
from vtx.rules.execution_memory import ExitTaken

U64 = st.integers(0, (1 << 64) - 1)
STACK = 0x7800
KERNEL_CS, KERNEL_SS, USER_SS, USER_CS = 0x08, 0x10, 0x1B, 0x23
USER_FLAGS = 0x0020_4DD5 | 1 << 18
UNMAPPED = 0x3000_0000


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        cpu.ept.unmap(UNMAPPED)
        cpu.mmu.flush_all()
        yield Bench(cpu)


def frame(
    processor: Processor, rip: int, cs: int, rflags: int, rsp: int, ss: int, at: int = STACK
) -> Processor:
    for n, word in enumerate((rip, cs, rflags, rsp, ss)):
        processor.memory.write_u64(GUEST + at + 8 * n, word)
    processor.regs.rsp = at
    return processor


# IRET.


@given(rflags=U64, rsp=U64, user=st.booleans())
def test_iret_returns_to_what_was_interrupted(
    bench: Bench, rflags: int, rsp: int, user: bool
) -> None:
    processor = bench()
    processor.regs.rflags = 2
    cs, ss = (USER_CS, USER_SS) if user else (KERNEL_CS, KERNEL_SS)
    frame(processor, 0x1234, cs, rflags, rsp, ss)
    execution(processor, "iret")
    regs = processor.regs
    assert (regs.rip, regs.rsp, regs.cs.selector, regs.ss.selector) == (0x1234, rsp, cs, ss)
    assert regs.cpl == (3 if user else 0) == processor.context.cpl
    loaded = USER_FLAGS | 0x1_0000 | 0x3200 | 0x18_0000
    assert regs.rflags == (rflags & loaded | 2)
    assert regs.cs.access_rights == (0xA0FB if user else 0xA09B)


@given(rflags=U64, iopl=st.integers(0, 3), enabled=st.booleans())
def test_iret_of_a_user_keeps_the_privileged_flags(
    bench: Bench, rflags: int, iopl: int, enabled: bool
) -> None:
    """At CPL 3 IOPL stays, and IF changes only if IOPL allows it."""
    processor = bench(cpl=3)
    processor.regs.cs = Segment(USER_CS, 0, 0xFFFF_FFFF, 0xA0FB)
    before = 2 | iopl << 12 | enabled << 9
    processor.regs.rflags = before
    frame(processor, 0x1234, USER_CS, rflags, 0x9000, USER_SS)
    execution(processor, "iret")
    after = processor.regs.rflags
    assert after >> 12 & 3 == iopl
    assert after >> 9 & 1 == (rflags >> 9 & 1 if iopl == 3 else enabled)
    assert after & USER_FLAGS == rflags & USER_FLAGS


#: What is wrong with the frame, and the fault.
FRAMES = [
    ((0x1234, 0, 2, 0, KERNEL_SS), 13, 0),
    ((0x1234, KERNEL_SS, 2, 0, KERNEL_SS), 13, KERNEL_SS),
    ((0x1234, KERNEL_CS | 3, 2, 0, USER_SS), 13, KERNEL_CS),
    ((0x1234, 0x4000, 2, 0, KERNEL_SS), 13, 0x4000),
    ((0x1234, 0x4004, 2, 0, KERNEL_SS), 13, 0x4004),
    ((1 << 62, KERNEL_CS, 2, 0, KERNEL_SS), 13, 0),
    ((0x1234, KERNEL_CS, 2, 0, KERNEL_CS), 13, KERNEL_CS),
    ((0x1234, KERNEL_CS, 2, 0, USER_SS), 13, USER_SS & ~3),
    ((0x1234, USER_CS, 2, 0, 3), 13, 0),
]


@pytest.mark.parametrize(("words", "vector", "code"), FRAMES)
def test_frames_that_iret_refuses(
    bench: Bench, words: tuple[int, int, int, int, int], vector: int, code: int
) -> None:
    processor = frame(bench({F.EXCEPTION_BITMAP: 0xFFFF_FFFF}), *words)
    exit = execution(processor, "iret")
    assert exit is not None
    assert exit.interruption_information & 0xFF == vector
    assert exit.interruption_error_code == code
    assert processor.regs.rsp == STACK


def test_iret_with_a_null_stack_segment_in_the_kernel(bench: Bench) -> None:
    processor = frame(bench(), 0x1234, KERNEL_CS, 2, 0x9000, 0)
    execution(processor, "iret")
    assert not processor.regs.ss.usable
    assert processor.regs.cpl == 0


def test_iret_to_a_user_drops_the_kernels_segments(bench: Bench) -> None:
    processor = bench()
    processor.regs.ds = Segment(KERNEL_SS, 0, 0xFFFF_FFFF, 0xC093)
    processor.regs.es = Segment(USER_SS, 0, 0xFFFF_FFFF, 0xC0F3)
    frame(processor, 0x1234, USER_CS, 2, 0x9000, USER_SS)
    execution(processor, "iret")
    assert not processor.regs.ds.usable
    assert processor.regs.es.selector == USER_SS


def test_nested_tasks_in_ia32e_mode(bench: Bench) -> None:
    processor = frame(bench({F.EXCEPTION_BITMAP: 1 << 13}), 0x1234, KERNEL_CS, 2, 0, KERNEL_SS)
    processor.regs.rflags |= Rflags.NT
    exit = execution(processor, "iret")
    assert exit is not None
    assert exit.interruption_information & 0xFF == 13


@given(
    nmi_exiting=st.booleans(), virtual=st.booleans(), blocked=st.booleans(), faults=st.booleans()
)
def test_iret_and_the_blocking_of_nmis(
    bench: Bench, nmi_exiting: bool, virtual: bool, blocked: bool, faults: bool
) -> None:
    """Blocking ends even if IRET faults, and the exit says so; with NMI exiting alone it stays."""
    virtual = virtual and nmi_exiting
    pin = (Pin.NMI_EXITING if nmi_exiting else 0) | (Pin.VIRTUAL_NMIS if virtual else 0)
    fields = {F.PIN_BASED_CONTROLS: int(pin), F.EXCEPTION_BITMAP: 1 << 13}
    processor = bench(fields)
    processor.nmi_blocked = blocked and not virtual
    if blocked:
        processor.regs.interruptibility_state = int(Interruptibility.NMI)
    frame(processor, 1 << 62 if faults else 0x1234, KERNEL_CS, 2, 0, KERNEL_SS)
    exit = execution(processor, "iret")
    unblocks = virtual or not nmi_exiting
    still = blocked and not unblocks
    assert bool(processor.regs.interruptibility_state & Interruptibility.NMI) == still
    assert processor.nmi_blocked == (still and not virtual)
    if faults:
        assert exit is not None
        assert exit.interruption_information >> 12 & 1 == (blocked and unblocks)


@given(blocked=st.booleans())
def test_an_ept_violation_of_iret_reports_unblocking(bench: Bench, blocked: bool) -> None:
    processor = bench()
    processor.regs.rsp = UNMAPPED
    if blocked:
        processor.regs.interruptibility_state = int(Interruptibility.NMI)
    with pytest.raises(ExitTaken) as caught:
        execution(processor, "iret")
    exit = caught.value.information
    assert exit.reason == 48
    assert exit.qualification >> 12 & 1 == blocked


# Flags.


@given(value=U64, cpl=st.sampled_from([0, 3]), iopl=st.integers(0, 3))
def test_popf_and_pushf(bench: Bench, value: int, cpl: int, iopl: int) -> None:
    processor = bench(cpl=cpl, rsp=STACK)
    processor.regs.rflags = 2 | iopl << 12
    processor.memory.write_u64(GUEST + STACK, value)
    execution(processor, "popf")
    allowed = USER_FLAGS | (0x3200 if cpl == 0 else 0x200 if cpl <= iopl else 0)
    if cpl:
        allowed &= ~0x3000
    expected = value & allowed | 2 | (0 if cpl == 0 else iopl << 12)
    assert processor.regs.rflags == expected
    assert processor.regs.rsp == STACK + 8
    execution(processor, "pushf")
    assert processor.memory.read_u64(GUEST + STACK) == expected & ~0x3_0000


@given(cpl=st.sampled_from([0, 3]), iopl=st.integers(0, 3), enabled=st.booleans())
def test_sti_and_cli(bench: Bench, cpl: int, iopl: int, enabled: bool) -> None:
    """STI blocks interrupts for one instruction if they were disabled before."""
    flags = 2 | iopl << 12 | enabled << 9
    for text in ("sti", "cli"):
        processor = bench(cpl=cpl, rflags=flags)
        if cpl > iopl:
            assert fault_of(processor, text) == (13, 0)
            continue
        execution(processor, text)
        assert processor.regs.rflags >> 9 & 1 == (text == "sti")
        blocked = bool(processor.regs.interruptibility_state & Interruptibility.STI)
        assert blocked == (text == "sti" and not enabled)


def test_the_direction_flag(bench: Bench) -> None:
    processor = bench()
    execution(processor, "std")
    assert processor.regs.rflags & Rflags.DF
    execution(processor, "cld")
    assert not processor.regs.rflags & Rflags.DF


# Jumps, calls, invalid opcodes.


def test_jumps_and_calls(bench: Bench) -> None:
    processor = bench(rbx=0x7000, rsp=STACK)
    execution(processor, "jmp 0x123456")
    assert processor.regs.rip == 0x123456
    processor.memory.write_u64(GUEST + 0x7000, 0x777)
    execution(processor, "call [rbx]")
    assert processor.regs.rip == 0x777
    assert processor.memory.read_u64(GUEST + STACK - 8) == 0x123458
    processor.memory.write_u64(GUEST + 0x7000, 1 << 60)
    assert fault_of(processor, "call [rbx]") == (13, 0)
    assert fault_of(processor, "jmp 0x1000000000000000") == (13, 0)


@pytest.mark.parametrize("text", ["ud0", "ud1", "ud2", "into", "erets", "eretu"])
def test_invalid_opcodes(bench: Bench, text: str) -> None:
    assert fault_of(bench(), text) == (6, None)


def test_senduipi_needs_user_interrupts(bench: Bench) -> None:
    processor = bench()
    assert fault_of(processor, "senduipi rax index=0") == (6, None)
    processor.regs.cr4 |= Cr4.UINTR
    assert fault_of(processor, "senduipi rax index=0") == (6, None)
    processor.regs.msrs[0x98A] = 1
    assert fault_of(processor, "senduipi rax index=0") == (13, 0)


# Software exceptions ask the bitmap, software interrupts do not.


@given(bitmap=st.sampled_from([0, 1 << 1, 1 << 3, (1 << 32) - 1]))
def test_software_exceptions(bench: Bench, bitmap: int) -> None:
    for text, vector, kind in (("int3", 3, 6), ("int1", 1, 5)):
        processor = bench({F.EXCEPTION_BITMAP: bitmap})
        rip = processor.regs.rip
        exit = execution(processor, text)
        assert (exit is not None) == bool(bitmap >> vector & 1)
        if exit is not None:
            assert exit.reason == 0
            assert exit.interruption_information == 1 << 31 | kind << 8 | vector
            assert exit.instruction_length == 1
            assert processor.regs.rip == rip
        else:
            assert processor.delivered == (vector, None)
            assert processor.memory.read_u64(frame_at(processor)) == rip + 1


def frame_at(processor: Processor) -> int:
    """Return the host-physical address of the frame at RSP."""
    return processor.mmu.translate(processor.context, processor.regs.rsp).hpa


@given(vector=st.integers(0, 255))
def test_software_interrupts(bench: Bench, vector: int) -> None:
    processor = bench({F.EXCEPTION_BITMAP: (1 << 32) - 1})
    rip = processor.regs.rip
    try:
        exit = execution(processor, f"int {vector}")
    except GuestFault:
        raise AssertionError("INT n handles its faults itself") from None
    assert exit is None
    assert processor.delivered == (vector, None)
    assert processor.memory.read_u64(frame_at(processor)) == rip + 2
