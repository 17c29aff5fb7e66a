"""The guest's own timer: armed by WRMSR, expiring without an exit, at the step where it is due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nonroot.guests import GuestCpu, capable_shape, guest
from tests.nonroot.test_streams import FETCH, LOAD, records, stream
from vtx.errors import EmulationStopped
from vtx.facts.controls import Exit1, Pin, Proc1, Proc2, Proc3
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.program import Program

VECTOR = 0x51


@contextmanager
def timed(offset: int = 0, multiplier: int | None = None) -> Iterator[GuestCpu]:
    """Yield a guest whose timer is virtualized."""
    with guest(capable_shape()) as cpu:
        cpu.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING)
        cpu.set("exit1", Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        cpu.set("proc1", Proc1.USE_TPR_SHADOW, Proc1.USE_TSC_OFFSETTING)
        cpu.set("proc2", Proc2.VIRTUAL_INTERRUPT_DELIVERY)
        cpu.set("proc3", Proc3.APIC_TIMER_VIRTUALIZATION)
        cpu.bitmap(F.VIRTUAL_APIC_ADDRESS)
        cpu.vmwrite(F.VIRTUAL_TIMER_VECTOR, VECTOR)
        cpu.vmwrite(F.TSC_OFFSET, offset)
        if multiplier is not None:
            cpu.set("proc2", Proc2.USE_TSC_SCALING)
            cpu.vmwrite(F.TSC_MULTIPLIER, multiplier)
        yield cpu


def enter(cpu: GuestCpu, text: str, handler: str = "vmcall") -> Exit:
    return cpu.enter(text, vector_0x51=handler)


@settings(max_examples=30, deadline=None)
@given(
    ahead=st.integers(-20, 60),
    offset=st.sampled_from([0, 0x10_0000, (1 << 64) - 5]),
    scale=st.sampled_from([None, Fraction(3), Fraction(3, 2), Fraction(1, 4)]),
)
def test_it_expires_at_the_first_boundary_at_which_the_guest_has_reached_its_deadline(
    ahead: int, offset: int, scale: Fraction | None
) -> None:
    multiplier = None if scale is None else int(scale * (1 << 48))
    with timed(offset, multiplier) as cpu:
        cpu.tsc = 1000
        factor = scale or Fraction(1)
        # One step sets RAX and executes WRMSR; the deadline counts from what it finds.
        deadline = int(1000 * factor) + offset + ahead & (1 << 64) - 1
        lines = [f"wrmsr msr=IA32_TSC_DEADLINE value={deadline}", *["nop"] * 300]
        exit = enter(cpu, "\n".join(lines))
        assert exit.reason is Why.VMCALL
        after = max(ceil((int(1000 * factor) + ahead) / factor) - 1000, 1)
        assert cpu.steps == after
        assert cpu.vmread(F.GUEST_INTERRUPT_STATUS) >> 8 == VECTOR
        assert cpu.vmread(F.GUEST_DEADLINE) == cpu.vmread(F.GUEST_DEADLINE_SHADOW) == 0


def test_reading_gives_the_deadline_in_the_guests_own_time() -> None:
    with timed(offset=0x5000) as cpu:
        exit = enter(cpu, "wrmsr msr=0x6e0 value=0x123456789\nmov rax, 0\nrdmsr msr=0x6e0\nvmcall")
        assert (cpu.regs.rdx, cpu.regs.rax) == (1, 0x2345_6789)
        assert cpu.vmread(F.GUEST_DEADLINE_SHADOW) == 0x1_2345_6789
        assert cpu.vmread(F.GUEST_DEADLINE) == 0x1_2345_6789 - 0x5000
        # It stays armed across the exit.
        cpu.tsc = 0x1_2345_6789
        assert cpu.resume(exit).reason is Why.VMCALL
        assert cpu.vmread(F.GUEST_INTERRUPT_STATUS) >> 8 == VECTOR


def test_writing_0_disarms() -> None:
    with timed() as cpu:
        text = "wrmsr msr=0x6e0 value=20\nwrmsr msr=0x6e0 value=0\n" + "nop\n" * 40 + "cpuid leaf=0"
        assert enter(cpu, text).reason is Why.CPUID
        assert cpu.vmread(F.GUEST_INTERRUPT_STATUS) == 0


def test_it_wakes_a_halted_guest_that_takes_interrupts() -> None:
    with timed() as cpu:
        exit = enter(cpu, "wrmsr msr=0x6e0 value=5000\nhlt\nnop")
        assert exit.reason is Why.VMCALL
        assert cpu.tsc == 5000
    with timed() as cpu, pytest.raises(EmulationStopped, match="nothing wakes it"):
        enter(cpu, "cli\nwrmsr msr=0x6e0 value=5000\nhlt\nnop")


def test_it_interrupts_a_stream_at_its_record() -> None:
    with timed() as cpu:
        body = stream(records(*[(FETCH, 4, 0x5000), (LOAD, 8, 0x7000)] * 50))
        step = parse_instruction("wrmsr msr=0x6e0 value=31")
        handlers = {VECTOR: Program((parse_instruction("vmcall"),))}
        exit = cpu.vmlaunch(Program((step, body), handlers))
        assert exit.reason is Why.VMCALL
        assert cpu.steps == 31


def test_without_the_control_the_msr_is_like_any_other() -> None:
    with timed() as cpu:
        cpu.vmwrite(F.TERTIARY_PROCESSOR_BASED_CONTROLS, 0)
        assert enter(cpu, "wrmsr msr=0x6e0 value=3\n" + "nop\n" * 9 + "cpuid").reason is Why.CPUID
        assert cpu.regs.msrs[0x6E0] == 3
        assert cpu.vmread(F.GUEST_DEADLINE) == 0
