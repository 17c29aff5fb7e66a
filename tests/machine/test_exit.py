"""Exit: what a VMM reads of a VM exit, and what reading costs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rules.transition_states import loaded, reenter
from vtx.errors import UnhandledExit, UsageError
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.events import Event
from vtx.machine.exit import Exit
from vtx.machine.exit_information import ExitInformation
from vtx.machine.exit_views import CrAccess, IoAccess
from vtx.rules.transitions import vm_exit


def exit_with(reason: ExitReason, **information: Any) -> Exit:
    """Return a VM exit with this information."""
    cpu = loaded(guest_rip=0x4000)
    reenter(cpu)
    info = ExitInformation(reason, **information)
    vm_exit(cpu, info)
    return Exit(cpu, info, cpu.vmread)


PROPERTIES = {
    "qualification": 0x1234,
    "guest_linear_address": 0x5000,
    "guest_physical_address": 0x6000,
    "instruction_length": 3,
    "instruction_information": 0x77,
    "interruption_information": 0x8000_0B0E,
    "interruption_error_code": 2,
    "idt_vectoring_information": 0x8000_0B0D,
    "idt_vectoring_error_code": 8,
}


@pytest.mark.parametrize(("name", "value"), PROPERTIES.items())
def test_each_property_is_one_counted_vmread(name: str, value: int):
    exit = exit_with(ExitReason.EPT_VIOLATION, **{name: value})
    reads = exit.processor.events.total(Event.VMREAD)
    assert getattr(exit, name) == value
    assert getattr(exit, name) == value
    assert exit.processor.events.total(Event.VMREAD) == reads + 1


def test_reason_and_rip():
    exit = exit_with(ExitReason.HLT)
    assert exit.reason is ExitReason.HLT
    assert not exit.entry_failure
    assert exit.rip == 0x4000
    assert exit.processor.events.total(Event.VMREAD) == 2


def test_any_field_can_be_read():
    exit = exit_with(ExitReason.HLT)
    assert exit.read(Field.GUEST_RIP) == 0x4000


def test_what_was_read_stays():
    exit = exit_with(ExitReason.HLT)
    assert exit.rip == 0x4000
    exit.processor.vmwrite(Field.GUEST_RIP, 0x9999)
    assert exit.rip == 0x4000


# ---- Views -------------------------------------------------------------------------------------


def test_io():
    exit = exit_with(ExitReason.IO_INSTRUCTION, qualification=0x3F8 << 16 | 1 << 6 | 1 << 3 | 1)
    assert exit.io == IoAccess(0x3F8, 2, is_in=True, string=False, rep=False, immediate=True)


def test_cr():
    exit = exit_with(ExitReason.CONTROL_REGISTER_ACCESS, qualification=3 << 8 | 3)
    assert exit.cr == CrAccess(3, "mov to", "rbx", 0, memory_operand=False)
    lmsw = 0x1234 << 16 | 1 << 6 | 3 << 4
    exit = exit_with(ExitReason.CONTROL_REGISTER_ACCESS, qualification=lmsw)
    assert exit.cr == CrAccess(0, "lmsw", "rax", 0x1234, memory_operand=True)


def test_dr():
    exit = exit_with(ExitReason.MOV_DR, qualification=7 | 1 << 4 | 9 << 8)
    assert tuple(exit.dr) == (7, True, "r9")


@pytest.mark.parametrize("reason", [ExitReason.RDMSR, ExitReason.WRMSR])
def test_msr(reason: ExitReason):
    exit = exit_with(reason)
    regs = exit.processor.regs
    regs.rcx, regs.rdx, regs.rax = 0xFF_C000_0080, 0x11, 0xFF_0000_0022
    is_write = reason is ExitReason.WRMSR
    assert tuple(exit.msr) == (0xC000_0080, is_write, 0x11_0000_0022 if is_write else 0)


def test_ept_violation():
    exit = exit_with(
        ExitReason.EPT_VIOLATION,
        qualification=0x182,
        guest_physical_address=0x6123,
        guest_linear_address=0x5123,
    )
    ept = exit.ept
    assert (ept.gpa, ept.gla) == (0x6123, 0x5123)
    assert (ept.read, ept.write, ept.fetch) == (False, True, False)
    assert not (ept.readable or ept.writable or ept.executable)
    assert ept.translated


def test_ept_violation_without_linear_address():
    exit = exit_with(ExitReason.EPT_VIOLATION, qualification=0x101, guest_physical_address=0x6000)
    assert exit.ept.gla is None
    assert not exit.ept.translated


def test_ept_misconfiguration():
    exit = exit_with(ExitReason.EPT_MISCONFIGURATION, guest_physical_address=0x6000)
    assert exit.ept.gpa == 0x6000
    assert exit.ept.gla is None


def test_page_fault():
    exit = exit_with(
        ExitReason.EXCEPTION_OR_NMI,
        qualification=0x7000,
        interruption_information=0x8000_0B0E,
        interruption_error_code=6,
    )
    assert tuple(exit.exception) == (14, 3, 6, 0x7000, False)


def test_exception_without_error_code():
    exit = exit_with(
        ExitReason.EXCEPTION_OR_NMI, interruption_information=0x8000_1306, qualification=5
    )
    assert tuple(exit.exception) == (6, 3, None, None, True)


def test_external_interrupt():
    exit = exit_with(ExitReason.EXTERNAL_INTERRUPT, interruption_information=0x8000_0030)
    assert exit.exception.vector == 0x30
    with pytest.raises(UsageError, match="not acknowledged"):
        _ = exit_with(ExitReason.EXTERNAL_INTERRUPT).exception


def test_idt_vectoring():
    assert exit_with(ExitReason.HLT).idt_vectoring is None
    exit = exit_with(
        ExitReason.EPT_VIOLATION,
        idt_vectoring_information=0x8000_0B0D,
        idt_vectoring_error_code=8,
    )
    assert tuple(exit.idt_vectoring or ()) == (13, 3, 8, None, False)


def test_task_switch_and_apic_access():
    exit = exit_with(ExitReason.TASK_SWITCH, qualification=3 << 30 | 0x28)
    assert tuple(exit.task_switch) == (0x28, "task gate")
    exit = exit_with(ExitReason.APIC_ACCESS, qualification=1 << 12 | 0x300)
    assert tuple(exit.apic_access) == (0x300, 1, False)


@pytest.mark.parametrize(
    "view", ["io", "cr", "dr", "msr", "ept", "exception", "task_switch", "apic_access"]
)
def test_a_view_is_only_for_its_exits(view: str):
    exit = exit_with(ExitReason.CPUID)
    with pytest.raises(UsageError, match="CPUID"):
        getattr(exit, view)


# ---- Words -------------------------------------------------------------------------------------


def test_explain_counts_nothing():
    exit = exit_with(ExitReason.EPT_VIOLATION, qualification=2, guest_physical_address=0x6000)
    reads = exit.processor.events.total(Event.VMREAD)
    text = exit.explain()
    assert exit.processor.events.total(Event.VMREAD) == reads
    assert "48" in text
    assert "EPT violation" in text
    assert "(write)" in text
    assert "0x6000" in text
    assert "0x4000" in text
    assert str(UnhandledExit(exit)) == text
    assert text in repr(exit)


def test_explain_names_events():
    exit = exit_with(
        ExitReason.EXCEPTION_OR_NMI,
        interruption_information=0x8000_0B0E,
        idt_vectoring_information=0x8000_0030,
        qualification=0x7000,
    )
    text = exit.explain()
    assert "exception 14" in text
    assert "during delivery of external interrupt 48" in text
    assert "linear_address 0x7000" in text


def test_explain_a_failed_entry():
    cpu = loaded()
    info = ExitInformation(
        ExitReason.ENTRY_FAILURE_GUEST_STATE, 4, exit_reason_bits=1 << 31, check="some.check"
    )
    text = Exit(cpu, info, cpu.vmread).explain()
    assert "VM entry failed with exit reason 33" in text
    assert "some.check" in text


def test_explain_an_unnamed_event_type():
    exit = exit_with(ExitReason.EXCEPTION_OR_NMI, interruption_information=0x8000_0130)
    assert "type 1 48" in exit.explain()


def test_every_reason_can_be_explained():
    for reason in ExitReason:
        assert str(int(reason)) in exit_with(reason, qualification=1).explain()
