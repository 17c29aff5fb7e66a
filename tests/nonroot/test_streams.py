"""Streams of references in the run loop: RIP, exits and resuming, events at exact records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.nonroot.guests import CODE, GuestCpu, guest, listing
from vtx.errors import EndOfTrace, InputError
from vtx.facts.controls import Exit1, Pin, Proc1
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.machine.exit import Exit
from vtx.machine.program import Instruction, Program, Stream

FETCH, LOAD, STORE, MODIFY = range(4)


def records(*items: tuple[int, int, int]) -> NDArray[np.uint64]:
    """Return packed records from (kind, size, address)."""
    packed = [kind << 62 | size << 48 | address & (1 << 48) - 1 for kind, size, address in items]
    return np.array(packed, dtype=np.uint64)


def instruction(index: int) -> tuple[int, int, int]:
    return (FETCH, 0, index)


def stream(array: NDArray[np.uint64], *lines: str) -> Stream:
    return Stream(array, 0, len(array), tuple(s for line in lines for s in listing(line)))


def launch(cpu: GuestCpu, *operations: Stream | Instruction) -> Exit:
    return cpu.vmlaunch(Program(operations))


def counted(cpu: GuestCpu) -> int:
    counters = cpu.mmu.counters()
    return sum(counters[f"references_{kind}"] for kind in ("fetch", "load", "store", "modify"))


CALL = Instruction("vmcall", rip=0x9_0000)
PLAIN = records(
    (FETCH, 4, 0x5000), (LOAD, 8, 0x7000), (FETCH, 3, 0x5004), (STORE, 8, 0x7008),
    (MODIFY, 4, 0x7010), (FETCH, 2, 0x5007),
)  # fmt: skip


def test_a_stream_runs_and_the_listing_goes_on() -> None:
    with guest() as cpu:
        exit = launch(cpu, stream(PLAIN), CALL)
        assert (exit.reason, exit.rip) == (Why.VMCALL, 0x9_0000)
        assert cpu.steps == 6
        assert counted(cpu) == 6 + 1


def test_an_ept_violation_repeats_its_record() -> None:
    with guest(mapped=False) as cpu:
        exit, seen = launch(cpu, stream(PLAIN), CALL), []
        while exit.reason == Why.EPT_VIOLATION:
            if exit.qualification & 0x100:
                seen.append((exit.rip, exit.guest_linear_address, exit.qualification & 7))
            cpu.ept.map(exit.guest_physical_address, size="4K")
            exit = cpu.resume()
        assert seen == [(0x5000, 0x5000, 4), (0x5000, 0x7000, 1), (0x9_0000, 0x9_0000, 4)]
        assert exit.reason == Why.VMCALL
        assert cpu.steps == 6


def test_a_vmm_that_completes_the_instruction_skips_its_references() -> None:
    """From RIP + length on, the stream goes on at the next fetch."""
    with guest() as cpu:
        cpu.ept.unmap(0x80_0000)
        array = records((FETCH, 4, 0x5000), (LOAD, 8, 0x80_0000), (STORE, 8, 0x80_0008),
                        (FETCH, 3, 0x5004), (LOAD, 8, 0x7000))  # fmt: skip
        exit = launch(cpu, stream(array), CALL)
        assert (exit.reason, exit.rip) == (Why.EPT_VIOLATION, 0x5000)
        cpu.vmwrite(F.GUEST_RIP, 0x5004)
        exit = cpu.resume()
        assert exit.reason == Why.VMCALL
        assert cpu.steps == 1 + 2


def test_instructions_in_a_stream() -> None:
    """They stand where the last fetch ended; RIP tells whether the VMM has completed them."""
    array = records((FETCH, 4, 0x5000), instruction(0), (FETCH, 3, 0x5006), instruction(1),
                    instruction(0))  # fmt: skip
    with guest() as cpu:
        exit = launch(cpu, stream(array, "cpuid leaf=7", "mov rbx, 5"), CALL)
        assert (exit.reason, exit.rip, cpu.regs.rax) == (Why.CPUID, 0x5004, 7)
        cpu.regs.rax = 99
        exit = cpu.resume()
        assert (exit.reason, exit.rip, cpu.regs.rax) == (Why.CPUID, 0x5004, 99)
        exit = cpu.resume(exit)
        assert (exit.reason, cpu.regs.rbx) == (Why.CPUID, 5)
        assert cpu.resume(exit).reason == Why.VMCALL


def test_instructions_in_a_stream_with_addresses_of_their_own() -> None:
    array = records((FETCH, 4, 0x5000), instruction(0), (FETCH, 3, 0x5006))
    with guest() as cpu:
        exit = launch(cpu, stream(array, "cpuid rip=0x6000"), CALL)
        assert exit.rip == 0x6000
        assert cpu.resume(exit).reason == Why.VMCALL


def test_events_in_a_stream() -> None:
    array = records((FETCH, 4, 0x5000), (LOAD, 8, 0x7000), instruction(0), (FETCH, 3, 0x5006))
    with guest() as cpu:
        cpu.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING)
        cpu.set("exit1", Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        exit = launch(cpu, stream(array, "external_interrupt vector=0x20"), CALL)
        assert (exit.reason, exit.rip, cpu.steps) == (Why.EXTERNAL_INTERRUPT, 0x5006, 2)
        assert cpu.resume().reason == Why.VMCALL


def test_interrupts_between_windows() -> None:
    with guest() as cpu:
        array = PLAIN
        event = Instruction("external_interrupt", {"vector": 0x31})
        program = Program(
            (Stream(array, 0, 3), event, Stream(array, 3, 6), CALL),
            handlers={0x31: Program(listing("mov rbx, 5\niret"))},
        )
        exit = cpu.vmlaunch(program)
        assert (exit.reason, cpu.regs.rbx) == (Why.VMCALL, 5)
        assert cpu.steps == 3 + 2 + 3


def test_page_faults_of_a_stream_go_to_the_guest() -> None:
    array = records((FETCH, 4, 0x5000), (STORE, 8, 0x7FFF_0000_0000), (FETCH, 3, 0x5004))
    with guest() as cpu:
        cpu.vmwrite(F.EXCEPTION_BITMAP, 1 << 14)
        exit = launch(cpu, stream(array), CALL)
        assert (exit.reason, exit.rip) == (Why.EXCEPTION_OR_NMI, 0x5000)
        assert exit.qualification == 0x7FFF_0000_0000
        assert cpu.vmread(F.VM_EXIT_INTERRUPTION_ERROR_CODE) == 2


def test_an_unknown_instruction_record() -> None:
    with guest() as cpu, pytest.raises(InputError, match="instruction 3"):
        launch(cpu, stream(records((FETCH, 4, 0x5000), instruction(3)), "cpuid"), CALL)


def test_streams_of_data_alone() -> None:
    array = records(*[(LOAD, 8, 0x7000 + 8 * n) for n in range(20)])
    with guest() as cpu:
        exit = launch(cpu, stream(array), CALL)
        assert (exit.reason, cpu.steps) == (Why.VMCALL, 20)
        assert counted(cpu) == 21
    with guest(mapped=False) as cpu:
        exit = launch(cpu, stream(array), CALL)
        assert exit.rip == CODE


@given(value=st.integers(0, 12), split=st.integers(1, 19))
@settings(max_examples=15, deadline=None)
def test_the_preemption_timer_stops_at_its_record(value: int, split: int) -> None:
    """Whatever the windows, the exit comes before the record at which the timer is 0."""
    array = records(*[(FETCH, 1, 0x5000 + n) for n in range(600)])
    with guest() as cpu:
        shift = cpu.shape.msr(0x485) & 0x1F
        cpu.set("pin", Pin.ACTIVATE_VMX_PREEMPTION_TIMER)
        cpu.vmwrite(F.VMX_PREEMPTION_TIMER_VALUE, value)
        windows = (Stream(array, 0, split), Stream(array, split, 600))
        exit = launch(cpu, *windows, CALL)
        due = value << shift
        if due <= 600:
            assert exit.reason == Why.VMX_PREEMPTION_TIMER_EXPIRED
            assert cpu.steps == due
            assert exit.rip == (0x5000 + due if due < 600 else 0x9_0000)
        else:
            assert exit.reason == Why.VMCALL


def test_the_monitor_trap_flag_stops_after_each_instruction() -> None:
    with guest() as cpu:
        cpu.set("proc1", Proc1.MONITOR_TRAP_FLAG)
        exit, rips = launch(cpu, stream(PLAIN), CALL), []
        while exit.reason == Why.MONITOR_TRAP_FLAG:
            rips.append((exit.rip, cpu.steps))
            exit = cpu.resume()
        assert rips == [(0x5004, 2), (0x5007, 5), (0x9_0000, 6)]
        assert exit.reason == Why.VMCALL


def test_single_stepping_a_stream() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.GUEST_RFLAGS, 0x302)
        cpu.vmwrite(F.EXCEPTION_BITMAP, 2)
        exit = launch(cpu, stream(PLAIN), CALL)
        assert (exit.reason, exit.rip, exit.qualification) == (
            Why.EXCEPTION_OR_NMI,
            0x5004,
            1 << 14,
        )


def test_the_end_of_a_stream_that_ends_the_program() -> None:
    with guest() as cpu, pytest.raises(EndOfTrace):
        launch(cpu, stream(PLAIN))


@given(
    items=st.lists(
        st.tuples(
            st.sampled_from([FETCH, LOAD, STORE, MODIFY]),
            st.integers(1, 8),
            st.integers(0x7000, 0xF000),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=25, deadline=None)
def test_a_stream_counts_like_its_steps_one_by_one(items: list[tuple[int, int, int]]) -> None:
    """The same references as steps of a listing lead to the same accesses of memory."""
    names = {FETCH: "fetch", LOAD: "load", STORE: "store", MODIFY: "modify"}
    with guest() as cpu:
        launch(cpu, stream(records(*items)), CALL)
        at_once = cpu.mmu.counters()
    with guest() as cpu:
        text = "\n".join(f"{names[k]} {address} size={size}" for k, size, address in items)
        cpu.enter(text + "\nvmcall")
        singly = cpu.mmu.counters()
    crossing = sum((address & 0xFFF) + size > 0x1000 for _, size, address in items)
    for kind in ("load", "store", "modify"):
        pieces = sum(
            (address & 0xFFF) + size > 0x1000 for k, size, address in items if names[k] == kind
        )
        assert singly[f"references_{kind}"] == at_once[f"references_{kind}"] + pieces
    assert at_once["page_crossings"] == crossing
