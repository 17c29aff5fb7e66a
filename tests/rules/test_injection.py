"""Event injection by VM entry: what is delivered, with what frame, and what becomes of blocking."""

from __future__ import annotations

import pytest

from tests.cpu import states
from vtx.cpu import Cpu
from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.events import Event
from vtx.machine.registers import Activity, Interruptibility
from vtx.rules import vmx_entry
from vtx.rules.injected import EventType
from vtx.rules.transitions import vm_exit

VALID = 1 << 31
RIP = 0x20_0000


def entered(information: int, **fields: int) -> Cpu:
    """Return a processor right after a VM entry that injected an event."""
    cpu = states.loaded(
        vm_entry_interruption_information=information | VALID, guest_rip=RIP, **fields
    )
    assert vmx_entry.vmlaunch(cpu) is None
    return cpu


def handler(cpu: Cpu, vector: int) -> int:
    """Return where the guest's gate of a vector points."""
    assert cpu.machine.guest is not None
    return cpu.machine.guest.handler_address(vector)


def frame(cpu: Cpu) -> list[int]:
    """Return what was pushed: from the top of the stack on, six quadwords."""
    walk = cpu.mmu.translate(cpu.context, cpu.regs.rsp)
    return [cpu.memory.read_u64(walk.hpa + 8 * number) for number in range(6)]


@pytest.mark.parametrize(
    ("kind", "vector", "length", "rip"),
    [
        (EventType.EXTERNAL_INTERRUPT, 0x30, 0, RIP),
        (EventType.NMI, 2, 0, RIP),
        (EventType.HARDWARE_EXCEPTION, 6, 0, RIP),
        (EventType.SOFTWARE_INTERRUPT, 0x80, 2, RIP + 2),
        (EventType.PRIVILEGED_SOFTWARE_EXCEPTION, 1, 1, RIP + 1),
        (EventType.SOFTWARE_EXCEPTION, 3, 1, RIP + 1),
    ],
)
def test_event_reaches_its_handler(kind: EventType, vector: int, length: int, rip: int):
    cpu = entered(kind << 8 | vector, vm_entry_instruction_length=length)
    assert cpu.regs.rip == handler(cpu, vector)
    assert frame(cpu)[:3] == [rip, 0x08, 0x202]
    assert cpu.delivered == (vector, None)
    assert cpu.events.total(Event.INJECTION) == 1
    assert cpu.events.total(Event.DELIVERY) == 0


def test_length_is_ignored_for_events_without_an_instruction():
    cpu = entered(EventType.EXTERNAL_INTERRUPT << 8 | 0x30, vm_entry_instruction_length=5)
    assert frame(cpu)[0] == RIP


def test_error_code_is_pushed():
    information = EventType.HARDWARE_EXCEPTION << 8 | 13 | 1 << 11
    cpu = entered(information, vm_entry_exception_error_code=0x1238)
    assert frame(cpu)[:2] == [0x1238, RIP]
    assert cpu.delivered == (13, 0x1238)


def test_rflags_are_pushed_as_in_the_field():
    cpu = entered(EventType.HARDWARE_EXCEPTION << 8 | 6, guest_rflags=0x1_0202)
    assert frame(cpu)[2] == 0x1_0202


def test_debug_registers_do_not_change():
    cpu = entered(EventType.HARDWARE_EXCEPTION << 8 | 1, guest_dr7=0x400)
    assert (cpu.regs.dr6, cpu.regs.dr7) == (0xFFFF_0FF0, 0x400)


def test_cr2_does_not_change():
    cpu = states.loaded(
        vm_entry_interruption_information=VALID | 3 << 8 | 14 | 1 << 11,
        vm_entry_exception_error_code=2,
    )
    cpu.regs.cr2 = 0x1234
    assert vmx_entry.vmlaunch(cpu) is None
    assert cpu.regs.cr2 == 0x1234


def test_the_event_itself_does_not_exit():
    cpu = entered(EventType.HARDWARE_EXCEPTION << 8 | 6, exception_bitmap=1 << 6)
    assert cpu.regs.rip == handler(cpu, 6)


def test_nothing_is_injected_without_the_valid_bit():
    cpu = states.loaded(vm_entry_interruption_information=0x30, guest_rip=RIP)
    assert vmx_entry.vmlaunch(cpu) is None
    assert cpu.regs.rip == RIP
    assert cpu.events.total(Event.INJECTION) == 0


# ---- Blocking and activity -------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [Interruptibility.STI, Interruptibility.MOV_SS])
def test_a_vectored_event_ends_blocking(blocking: Interruptibility):
    cpu = entered(EventType.HARDWARE_EXCEPTION << 8 | 6, guest_interruptibility_state=blocking)
    assert cpu.regs.interruptibility_state == 0


def test_a_vectored_event_wakes_the_guest():
    cpu = entered(EventType.EXTERNAL_INTERRUPT << 8 | 0x30, guest_activity_state=Activity.HLT)
    assert cpu.regs.activity_state == Activity.ACTIVE


@pytest.mark.parametrize("virtual", [True, False])
def test_an_injected_nmi_blocks_nmis(virtual: bool):
    cpu = states.loaded(vm_entry_interruption_information=VALID | EventType.NMI << 8 | 2)
    assert cpu.vmcs is not None
    cpu.vmcs[Field.PIN_BASED_CONTROLS] |= Pin.NMI_EXITING | Pin.VIRTUAL_NMIS
    if not virtual:
        cpu.vmcs[Field.PIN_BASED_CONTROLS] ^= Pin.VIRTUAL_NMIS
    assert vmx_entry.vmlaunch(cpu) is None
    assert cpu.regs.interruptibility_state == Interruptibility.NMI
    assert cpu.nmi_blocked is not virtual


def test_nmi_blocking_is_in_effect_before_an_exit_during_delivery():
    cpu = states.loaded(vm_entry_interruption_information=VALID | EventType.NMI << 8 | 2)
    assert cpu.vmcs is not None
    cpu.vmcs[Field.PIN_BASED_CONTROLS] |= Pin.NMI_EXITING | Pin.VIRTUAL_NMIS
    cpu.ept.unmap(0)
    info = vmx_entry.vmlaunch(cpu)
    assert info is not None
    assert info.reason is ExitReason.EPT_VIOLATION
    assert info.idt_vectoring_information == VALID | 2 << 8 | 2
    assert cpu.non_root
    vm_exit(cpu, info)
    assert cpu.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == Interruptibility.NMI
    assert not cpu.nmi_blocked


@pytest.mark.parametrize(
    ("kind", "vector", "blocking", "kept"),
    [
        (EventType.EXTERNAL_INTERRUPT, 0x30, 0, False),
        (EventType.HARDWARE_EXCEPTION, 6, 0, False),
        (EventType.HARDWARE_EXCEPTION, 6, Interruptibility.MOV_SS, False),
        (EventType.PRIVILEGED_SOFTWARE_EXCEPTION, 1, Interruptibility.MOV_SS, False),
        (EventType.SOFTWARE_INTERRUPT, 0x80, 0, False),
        (EventType.SOFTWARE_INTERRUPT, 0x80, Interruptibility.MOV_SS, True),
        (EventType.SOFTWARE_EXCEPTION, 3, Interruptibility.MOV_SS, True),
    ],
)
def test_pending_debug_exceptions(kind: EventType, vector: int, blocking: int, kept: bool):
    cpu = entered(
        kind << 8 | vector,
        vm_entry_instruction_length=2,
        guest_interruptibility_state=blocking,
        guest_pending_debug_exceptions=0x1001,
    )
    assert bool(cpu.regs.pending_debug_exceptions) is kept


def test_pending_debug_exceptions_without_an_event():
    cpu = states.loaded(guest_pending_debug_exceptions=0x1001)
    assert vmx_entry.vmlaunch(cpu) is None
    assert cpu.regs.pending_debug_exceptions == 0x1001


@pytest.mark.parametrize("activity", [Activity.SHUTDOWN, Activity.WAIT_FOR_SIPI])
def test_pending_debug_exceptions_are_lost_asleep(activity: Activity):
    cpu = states.loaded(guest_pending_debug_exceptions=0x1001, guest_activity_state=activity)
    assert vmx_entry.vmlaunch(cpu) is None
    assert cpu.regs.pending_debug_exceptions == 0
    assert cpu.regs.activity_state == activity


def test_pending_mtf_exit():
    cpu = entered(EventType.OTHER_EVENT << 8)
    assert cpu.pending.mtf
    assert cpu.regs.rip == RIP
    cpu.non_root = False


# ---- Trouble during delivery -----------------------------------------------------------------


def test_ept_violation_during_injection():
    information = VALID | 3 << 8 | 14 | 1 << 11
    cpu = states.loaded(
        vm_entry_interruption_information=information, vm_entry_exception_error_code=6
    )
    cpu.ept.unmap(0)
    exit = cpu.vmlaunch(states.program("nop"))
    assert exit.reason is ExitReason.EPT_VIOLATION
    event = exit.idt_vectoring
    assert event is not None
    assert (event.vector, event.type, event.error_code) == (14, 3, 6)
    assert cpu.vmread(Field.VM_ENTRY_INTERRUPTION_INFORMATION) == information & ~VALID


def test_a_fault_during_injection_that_exits():
    # The gate of vector 30H lies beyond the limit of the IDT: #GP with EXT set.
    cpu = states.loaded(
        vm_entry_interruption_information=VALID | 0x30,
        guest_idtr_limit=0xFF,
        exception_bitmap=1 << 13,
    )
    exit = cpu.vmlaunch(states.program("nop"))
    assert exit.reason is ExitReason.EXCEPTION_OR_NMI
    assert (exit.exception.vector, exit.exception.error_code) == (13, 0x30 * 8 + 2 + 1)
    assert exit.idt_vectoring_information == VALID | 0x30
    assert exit.rip == cpu.vmread(Field.GUEST_RIP)


def test_triple_fault_during_injection():
    cpu = states.loaded(
        vm_entry_interruption_information=VALID | 3 << 8 | 8 | 1 << 11, guest_idtr_limit=0
    )
    exit = cpu.vmlaunch(states.program("nop"))
    assert exit.reason is ExitReason.TRIPLE_FAULT
    assert exit.idt_vectoring is None
