"""References of recorded streams to the APIC-access page: exits, virtualization, emulation."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nonroot.guests import GuestCpu, capable_shape, guest, listing
from tests.nonroot.test_streams import FETCH, LOAD, MODIFY, STORE, records, stream
from vtx.errors import EndOfTrace
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.machine.exit import Exit
from vtx.machine.image import GUEST_BASE
from vtx.machine.program import Program
from vtx.rules.execution_memory import ExitTaken, guest_physical

APIC = 0x20_7000
KINDS = {FETCH: 2, LOAD: 0, STORE: 1, MODIFY: 1}


def virtualize(cpu: GuestCpu, *, shadow: bool = False, delivery: bool = False) -> int:
    """Turn the guest page of APIC into the APIC-access page; return the virtual-APIC page."""
    cpu.vmwrite(F.APIC_ACCESS_ADDRESS, GUEST_BASE + APIC)
    cpu.set("proc2", Proc2.VIRTUALIZE_APIC_ACCESSES)
    if shadow:
        cpu.set("proc1", Proc1.USE_TPR_SHADOW)
    if delivery:
        cpu.set("proc1", Proc1.USE_TPR_SHADOW)
        cpu.set("proc2", Proc2.VIRTUAL_INTERRUPT_DELIVERY)
        cpu.set("pin", 1)
    return cpu.bitmap(F.VIRTUAL_APIC_ADDRESS)


def split(cpu: GuestCpu) -> None:
    """Map what the guest has around APIC with 4-KByte pages instead of one of 2 MBytes."""
    cpu.ept.unmap(0x20_0000)
    for page in range(0x20_0000, 0x40_0000, 0x1000):
        cpu.ept.map(page, size="4K")


def run(cpu: GuestCpu, *items: tuple[int, int, int]) -> Exit:
    operations = (stream(records(*items)), *listing("vmcall"))
    return cpu.vmlaunch(Program(operations))


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("kind", "code"), KINDS.items())
def test_a_reference_that_is_not_virtualized_exits(small: bool, kind: int, code: int) -> None:
    with guest() as cpu:
        virtualize(cpu)
        if small:
            split(cpu)
        near = (LOAD, 8, APIC + 0x1000)
        exit = run(cpu, (FETCH, 4, 0x5000), near, near, (kind, 8, APIC + 0x123), near)
        assert exit.reason is Why.APIC_ACCESS
        assert exit.qualification == 0x123 | code << 12
        assert cpu.vmread(F.GUEST_RFLAGS) >> 16 & 1
        # Fault-like, again and again; stepping over it goes on behind it.
        assert cpu.vmresume().reason is Why.APIC_ACCESS
        cpu.vmwrite(F.SECONDARY_PROCESSOR_BASED_CONTROLS, int(Proc2.ENABLE_EPT | Proc2.ENABLE_VPID))
        assert cpu.vmresume().reason is Why.VMCALL


def test_without_the_control_the_page_is_like_any_other() -> None:
    with guest() as cpu:
        cpu.vmwrite(F.APIC_ACCESS_ADDRESS, GUEST_BASE + APIC)
        assert run(cpu, (FETCH, 4, 0x5000), (LOAD, 8, APIC + 0x80)).reason is Why.VMCALL


def test_a_page_that_was_used_before_becomes_the_apic_access_page() -> None:
    """What the core has cached of a page does not outlive a change of the VMCS."""
    with guest() as cpu:
        cpu.vmwrite(F.APIC_ACCESS_ADDRESS, GUEST_BASE + APIC)
        items = [(LOAD, 4, APIC + 0x80)] * 3
        body = records((FETCH, 4, 0x5000), *items)
        program = Program((stream(body), *listing("vmcall"), stream(body), *listing("vmcall")))
        exit = cpu.vmlaunch(program)
        assert exit.reason is Why.VMCALL
        cpu.set("proc2", Proc2.VIRTUALIZE_APIC_ACCESSES)
        assert cpu.resume(exit).reason is Why.APIC_ACCESS


def test_the_second_page_of_a_reference_counts() -> None:
    with guest() as cpu:
        virtualize(cpu, shadow=True)
        exit = run(cpu, (FETCH, 4, 0x5000), (STORE, 8, APIC - 4))
        assert (exit.reason, exit.qualification) == (Why.APIC_ACCESS, 1 << 12)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 4), vtpr=st.integers(0, 255), threshold=st.integers(0, 15))
def test_virtualized_references_run_on(count: int, vtpr: int, threshold: int) -> None:
    """Reads pass; a write of the TPR is emulated with what the virtual-APIC page holds."""
    with guest() as cpu:
        page = virtualize(cpu, shadow=True)
        cpu.memory.write_u32(page + 0x80, vtpr)
        cpu.vmwrite(F.TPR_THRESHOLD, min(threshold, vtpr >> 4))
        reads = [(LOAD, 4, APIC + 0x80)] * count
        program = Program(
            (
                stream(records((FETCH, 4, 0x5000), *reads)),
                *listing("vmcall"),
                stream(records((FETCH, 4, 0x6000), (STORE, 4, APIC + 0x80), (FETCH, 2, 0x6004))),
                *listing("vmcall"),
            )
        )
        exit = cpu.vmlaunch(program)
        assert exit.reason is Why.VMCALL
        assert cpu.steps == count + 1
        cpu.skip(exit)
        # VM entry itself looks at the threshold, so it rises once the guest runs.
        rises = functools.partial(cpu.vmcs.__setitem__, F.TPR_THRESHOLD, threshold)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vtx.nonroot.loop.after_vm_entry", lambda processor: rises())
            exit = cpu.vmresume()
        if vtpr >> 4 < threshold:
            assert (exit.reason, exit.rip) == (Why.TPR_BELOW_THRESHOLD, 0x6004)
        else:
            assert exit.reason is Why.VMCALL


def test_an_eoi_of_a_stream_is_virtualized() -> None:
    with guest(capable_shape()) as cpu:
        page = virtualize(cpu, delivery=True)
        cpu.vmwrite(F.GUEST_INTERRUPT_STATUS, 0x41 << 8)
        cpu.memory.write_u32(page + 0x100 + 0x20, 1 << 1)
        exit = run(cpu, (FETCH, 4, 0x5000), (STORE, 4, APIC + 0xB0), (FETCH, 4, 0x5004))
        assert exit.reason is Why.VMCALL
        assert cpu.vmread(F.GUEST_INTERRUPT_STATUS) == 0
        assert cpu.memory.read_u32(page + 0x120) == 0


def test_an_apic_write_exit_of_a_stream_is_a_trap() -> None:
    with guest(capable_shape()) as cpu:
        virtualize(cpu, delivery=True)
        exit = run(cpu, (FETCH, 4, 0x5000), (STORE, 4, APIC + 0x300), (FETCH, 4, 0x5004))
        assert (exit.reason, exit.qualification) == (Why.APIC_WRITE, 0x300)
        assert exit.rip == 0x5004
        assert cpu.vmresume().reason is Why.VMCALL


def test_a_guest_physical_access_exits_whatever_is_virtualized() -> None:
    with guest(capable_shape()) as cpu:
        virtualize(cpu, delivery=True)
        with pytest.raises(EndOfTrace):
            cpu.vmlaunch(Program(()))
        assert guest_physical(cpu, APIC + 0x1000, LOAD) == GUEST_BASE + APIC + 0x1000
        with pytest.raises(ExitTaken) as taken:
            guest_physical(cpu, APIC + 0x80, LOAD)
        information = taken.value.information
        assert (information.reason, information.qualification) == (Why.APIC_ACCESS, 0xF000)
