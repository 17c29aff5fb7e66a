"""Interrupts between the guests of two logical processors, from the instruction to the handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.nonroot.guests import GuestCpu, capable_shape, listing, quiet
from vtx.cpu import Machine
from vtx.errors import EndOfTrace, NotSupported
from vtx.facts.controls import Exit1, Pin, Proc1, Proc2, Proc3
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.program import Program
from vtx.machine.registers import Activity
from vtx.machine.vmcs import Vmcs

NOTIFICATION = 0xF2


@contextmanager
def two() -> Iterator[list[GuestCpu]]:
    """Yield two processors in VMX root operation, with a guest each."""
    machine = Machine(capable_shape(), processors=0, memory_bytes=1 << 34)
    cpus = [GuestCpu(machine=machine, number=number) for number in range(2)]
    machine.cpus = list(cpus)
    with machine:
        for page in range(0, 1 << 30, 1 << 21):
            cpus[0].ept.map(page, size="2M")
        for cpu in cpus:
            cpu.vmxon()
            cpu.load(Vmcs.for_64bit_guest(cpu.shape, processor=cpu.number))
            quiet(cpu)
            cpu.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0C00
        yield cpus


def launch(cpu: GuestCpu, text: str, **handlers: str) -> None:
    """Run a guest's program to its end without a VM exit."""
    with pytest.raises(EndOfTrace):
        cpu.enter(text, **handlers)


def test_a_posted_interrupt_reaches_the_other_guest_without_an_exit():
    with two() as (sender, receiver):
        descriptor = receiver.bitmap(F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS)
        receiver.memory.write_u64(descriptor + 32, NOTIFICATION << 16 | 1 << 32)
        receiver.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING, Pin.PROCESS_POSTED_INTERRUPTS)
        receiver.set("exit1", Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        receiver.set("proc1", Proc1.USE_TPR_SHADOW)
        receiver.set("proc2", Proc2.VIRTUAL_INTERRUPT_DELIVERY)
        receiver.bitmap(F.VIRTUAL_APIC_ADDRESS)
        receiver.vmwrite(F.POSTED_INTERRUPT_NOTIFICATION_VECTOR, NOTIFICATION)
        launch(receiver, "nop", vector_0x41="")

        table = sender.bitmap(F.PID_POINTER_TABLE_ADDRESS)
        sender.memory.write_u64(table + 8 * 7, descriptor | 1)
        sender.vmwrite(F.LAST_PID_POINTER_INDEX, 7)
        sender.bitmap(F.VIRTUAL_APIC_ADDRESS)
        sender.set("proc1", Proc1.USE_TPR_SHADOW)
        sender.set("proc2", Proc2.VIRTUALIZE_X2APIC_MODE)
        sender.set("proc3", Proc3.IPI_VIRTUALIZATION)
        launch(sender, f"wrmsr msr=0x830 value={7 << 32 | 0x41}")
        assert list(receiver.pending.interrupts) == [NOTIFICATION]

        receiver.cursors[0].program.handlers[0x41] = Program(listing("cpuid leaf=5\niret"))
        exit = receiver.proceed()
        assert exit.reason is Why.CPUID
        assert receiver.vmread(F.GUEST_INTERRUPT_STATUS) >> 8 == 0x41
        assert not receiver.memory.read_u8(descriptor + 32) & 1
        assert not receiver.pending.interrupts


def test_without_ipi_virtualization_the_receiver_exits():
    with two() as (sender, receiver):
        receiver.set("pin", Pin.EXTERNAL_INTERRUPT_EXITING)
        receiver.set("exit1", Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        launch(receiver, "nop")
        launch(sender, f"wrmsr msr=0x830 value={1 << 32 | 0x41}")
        exit = receiver.proceed()
        assert exit.reason is Why.EXTERNAL_INTERRUPT
        assert receiver.vmread(F.VM_EXIT_INTERRUPTION_INFORMATION) == 1 << 31 | 0x41


def test_nmi_init_and_start_up_between_processors():
    with two() as (sender, receiver):
        receiver.set("pin", Pin.NMI_EXITING)
        launch(receiver, "nop")
        launch(sender, f"wrmsr msr=0x830 value={1 << 32 | 4 << 8}\nnop")
        exit = receiver.proceed()
        assert exit.reason is Why.EXCEPTION_OR_NMI
        with pytest.raises(EndOfTrace):
            sender.proceed(Program(listing(f"wrmsr msr=0x830 value={1 << 32 | 5 << 8}")))
        assert receiver.vmresume().reason is Why.INIT_SIGNAL
        receiver.vmwrite(F.GUEST_ACTIVITY_STATE, Activity.WAIT_FOR_SIPI)
        # A start-up IPI that finds the processor in VMX root operation is lost.
        start = Program(listing(f"wrmsr msr=0x830 value={1 << 32 | 6 << 8 | 0x9A}"))
        with pytest.raises(EndOfTrace):
            sender.proceed(start)
        with pytest.raises(EndOfTrace):
            receiver.vmresume()
        with pytest.raises(EndOfTrace):
            sender.proceed(start)
        exit = receiver.proceed()
        assert (exit.reason, exit.qualification) == (Why.STARTUP_IPI, 0x9A)


def test_an_smi_under_the_default_treatment_is_not_seen_by_the_guest():
    with two() as (cpu, _):
        rip = cpu.vmread(F.GUEST_RIP)
        exit = cpu.enter("nop\nsmi\nnop\nvmcall")
        assert (exit.reason, exit.rip) == (Why.VMCALL, rip + 2)
        assert not cpu.pending.smi


def test_an_smi_waits_for_a_processor_that_waits_for_a_start_up_ipi():
    with two() as (cpu, _):
        cpu.vmwrite(F.GUEST_ACTIVITY_STATE, Activity.WAIT_FOR_SIPI)
        exit = cpu.enter("smi\nsipi vector=3\nnop")
        assert exit.reason is Why.STARTUP_IPI
        assert cpu.pending.smi


def test_an_smi_under_the_dual_monitor_treatment_needs_a_monitor():
    with two() as (cpu, _):
        launch(cpu, "nop")
        cpu.dual_monitor_active = True
        with pytest.raises(NotSupported, match="SMM-transfer monitor"):
            cpu.proceed(Program(listing("smi\nnop")))
