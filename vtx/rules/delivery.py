"""Events delivered to the guest, and the VM exits that come instead.

An exception first asks the exception bitmap (:func:`exception`); an event that does not exit goes
through the guest's IDT (:func:`deliver`) with every access it needs: gate, descriptor, TSS, stack.
A fault on the way may exit, with the original event in the IDT-vectoring information, or become a
second event, a double fault, or a triple fault (SDM, "Exceptions and Non-Maskable Interrupts" in
the list of other causes of VM exits; "Information About VM Exits During Event Delivery";
"Interrupt 8 - Double Fault Exception").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx.errors import GuestFault
from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.events import Event as Counted
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Activity, Cr0, Interruptibility, Rflags
from vtx.rules.delivery_idt import through_idt
from vtx.rules.execution_memory import ExitTaken
from vtx.rules.injected import EventType

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = [
    "Event",
    "deliver",
    "exception",
    "fault_event",
    "hand_over",
    "interruption_information",
    "makes_double_fault",
]

VALID = 1 << 31
ERROR_CODE_VALID = 1 << 11

DB, NMI, BP, DF, PF, MC = 1, 2, 3, 8, 14, 18
#: Exceptions that push an error code (SDM, "Exceptions and Interrupts").
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
_CONTRIBUTORY = frozenset({0, 10, 11, 12, 13, 21})
_PAGE_FAULTS = frozenset({14, 20})
_SOFTWARE = frozenset(
    {
        EventType.SOFTWARE_INTERRUPT,
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        EventType.SOFTWARE_EXCEPTION,
    }
)
#: Debug conditions: breakpoints 3:0, access to a debug register (13), single step (14).
_DR6_CONDITIONS, _ACCESS_DETECTED = 0x600F, 1 << 13
#: Last-branch recording and single-step on branches, in IA32_DEBUGCTL.
_LBR_AND_BTF = 3
_NMI_UNBLOCKING = 1 << 12
_BLOCKING = Interruptibility.STI | Interruptibility.MOV_SS


class Event(NamedTuple):
    """An event on its way to the guest.

    Parameters
    ----------
    vector : int
        0 to 255.
    type : EventType
        As in the interruption-information fields.
    error_code : int or None
        What it pushes, if anything.
    instruction_length : int
        Of the instruction that raised a software interrupt or exception: the frame holds the
        address after it.
    fault : bool
        A fault, or a double fault that came of one: the RFLAGS image that is pushed has RF = 1.
    qualification : int
        What an exit due to it reports: the address of a page fault, the conditions of a #DB.
    unblocked_nmis : bool
        A fault of an IRET that had removed the blocking of NMIs.
    injected : bool
        VM entry delivers it.
    """

    vector: int
    type: EventType
    error_code: int | None = None
    instruction_length: int = 0
    fault: bool = False
    qualification: int = 0
    unblocked_nmis: bool = False
    injected: bool = False

    @property
    def is_software(self) -> bool:
        """Raised by INT n, INT1, INT3 or INTO."""
        return self.type in _SOFTWARE

    @property
    def external(self) -> int:
        """The EXT bit of the error code of a fault that its delivery meets."""
        return int(self.type not in (EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION))


def fault_event(fault: GuestFault) -> Event:
    """Return the event that a fault of the guest's instruction is."""
    code = fault.error_code
    if code is None and fault.vector in WITH_ERROR_CODE:
        code = 0
    return Event(
        fault.vector,
        EventType.HARDWARE_EXCEPTION,
        code,
        fault=fault.vector != DB or bool((fault.address or 0) & _ACCESS_DETECTED),
        qualification=fault.address or 0,
    )


def interruption_information(event: Event) -> int:
    """Return the event in the format of the interruption-information fields."""
    code = ERROR_CODE_VALID if event.error_code is not None else 0
    return VALID | code | event.type << 8 | event.vector


def _exits(processor: Processor, event: Event) -> bool:
    """Ask the exception bitmap; for a page fault the error code's mask and match as well."""
    vmcs = processor.vmcs
    assert vmcs is not None
    selected = bool(vmcs[Field.EXCEPTION_BITMAP] >> event.vector & 1)
    if event.vector != PF:
        return selected
    masked = (event.error_code or 0) & vmcs[Field.PAGE_FAULT_ERROR_CODE_MASK]
    return (masked == vmcs[Field.PAGE_FAULT_ERROR_CODE_MATCH]) == selected


def _direct_exit(processor: Processor, event: Event) -> ExitInformation:
    """Return the VM exit that an exception causes itself; CR2 and DR6 are not updated."""
    information = interruption_information(event)
    if event.unblocked_nmis and event.vector != DF:
        information |= _NMI_UNBLOCKING
    return ExitInformation(
        ExitReason.EXCEPTION_OR_NMI,
        event.qualification if event.vector in (DB, PF) else 0,
        event.instruction_length if event.is_software else 0,
        interruption_information=information,
        interruption_error_code=event.error_code or 0,
        resume_flag=_resume_flag(processor, event),
    )


def _resume_flag(processor: Processor, event: Event) -> int:
    """Return RF of the RFLAGS image that delivery of `event` would push."""
    return 1 if event.fault else int(bool(processor.regs.rflags & Rflags.RF))


def exception(processor: Processor, event: Event) -> ExitInformation | None:
    """Let the guest have an exception, unless the exception bitmap gives it to the VMM.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation; RIP references the instruction (for a trap the next one).
    event : Event
        An exception: hardware, software, or that of INT1.

    Returns
    -------
    ExitInformation or None
        The VM exit that it ends in; None: the guest is at the first instruction of its handler.
    """
    event = _without_error_code(processor, event)
    if _exits(processor, event):
        return _direct_exit(processor, event)
    return hand_over(processor, event)


def _without_error_code(processor: Processor, event: Event) -> Event:
    """Return the exception as the mode has it: real-address mode knows no error codes."""
    if event.error_code is None or processor.regs.cr0 & Cr0.PE:
        return event
    return event._replace(error_code=None)


def hand_over(processor: Processor, event: Event) -> ExitInformation | None:
    """Deliver an event of the guest's own, and count that it needed no VMM."""
    exits = deliver(processor, event)
    if exits is None:
        processor.events.count(Counted.DELIVERY)
    return exits


def deliver(processor: Processor, event: Event) -> ExitInformation | None:
    """Deliver an event through the guest's IDT; it does not cause an exit by itself.

    For events that VM entry injects; and, through :func:`hand_over`, interrupts and NMIs that do
    not exit and exceptions that the exception bitmap leaves to the guest.

    Returns
    -------
    ExitInformation or None
        The VM exit that delivery ended in; None: the guest is at its handler's first instruction,
        and `processor.delivered` says which event took it there.

    """
    _report(processor, event)
    try:
        through_idt(processor, event, rf=_resume_flag(processor, event))
    except GuestFault as fault:
        return _fault_in_delivery(processor, event, fault_event(fault))
    except ExitTaken as taken:
        return _during_delivery(processor, taken.information, event)
    _delivered(processor, event)
    return None


def _report(processor: Processor, event: Event) -> None:
    """Update CR2 and DR6: that comes before delivery, so an exit during delivery finds it done.

    An injected event has no conditions of its own to report.
    """
    if event.vector == PF and event.type == EventType.HARDWARE_EXCEPTION and event.fault:
        processor.regs.cr2 = event.qualification
    elif event.vector == DB and event.type == EventType.HARDWARE_EXCEPTION:
        _update_debug_registers(processor, event.qualification)


def _delivered(processor: Processor, event: Event) -> None:
    """Update what delivery changes beside the frame and the registers it loads."""
    regs = processor.regs
    if event.type == EventType.NMI:
        block_nmis(processor)
    regs.interruptibility_state &= ~_BLOCKING
    regs.activity_state = Activity.ACTIVE
    processor.delivered = (event.vector, event.error_code)


def _update_debug_registers(processor: Processor, conditions: int) -> None:
    """Report the conditions of a debug exception in DR6; detecting an access clears DR7.GD.

    Single-stepping on branches and the recording of branches end.
    """
    regs = processor.regs
    control = regs.msrs.get(Msr.IA32_DEBUGCTL, 0)
    if control & _LBR_AND_BTF:
        regs.msrs[Msr.IA32_DEBUGCTL] = control & ~_LBR_AND_BTF
    regs.dr6 |= conditions & _DR6_CONDITIONS
    if conditions & _ACCESS_DETECTED:
        regs.dr7 &= ~_ACCESS_DETECTED


def block_nmis(processor: Processor) -> None:
    """Begin blocking by NMI: virtual-NMI blocking under "virtual NMIs", else the real one."""
    vmcs = processor.vmcs
    assert vmcs is not None
    processor.regs.interruptibility_state |= Interruptibility.NMI
    if not vmcs.pin & Pin.VIRTUAL_NMIS:
        processor.nmi_blocked = True


def _during_delivery(
    processor: Processor, information: ExitInformation, event: Event
) -> ExitInformation:
    """Add to an exit the event whose delivery it interrupted."""
    information.idt_vectoring_information = interruption_information(event)
    information.idt_vectoring_error_code = event.error_code or 0
    if event.is_software:
        information.instruction_length = event.instruction_length
    if information.reason != ExitReason.EXCEPTION_OR_NMI:
        # An exception that exits brings the RF of its own RFLAGS image.
        information.resume_flag = _resume_flag(processor, event)
    return information


def _fault_in_delivery(processor: Processor, event: Event, nested: Event) -> ExitInformation | None:
    """Handle a fault that delivery of `event` met (SDM, table "Conditions for Generating #DF")."""
    nested = _without_error_code(processor, nested)
    if _exits(processor, nested):
        return _during_delivery(processor, _direct_exit(processor, nested), event)
    if event.vector == DF and event.type == EventType.HARDWARE_EXCEPTION:
        # What began as a fault has set RF by now.
        return ExitInformation(ExitReason.TRIPLE_FAULT, resume_flag=1)
    if not makes_double_fault(event, nested):
        return deliver(processor, nested)
    _report(processor, nested)
    # An exit that the double fault causes itself does not report the original event.
    return exception(processor, Event(DF, EventType.HARDWARE_EXCEPTION, 0, fault=True))


def makes_double_fault(event: Event, nested: Event) -> bool:
    """Tell whether two events cannot be handled one after the other.

    SDM, table "Conditions for Generating a Double Fault".

    Parameters
    ----------
    event : Event
        What was being delivered.
    nested : Event
        The exception that its delivery met.

    Returns
    -------
    bool
        They become #DF.
    """
    if event.type != EventType.HARDWARE_EXCEPTION:
        return False
    if event.vector in _PAGE_FAULTS:
        return nested.vector in _PAGE_FAULTS or nested.vector in _CONTRIBUTORY
    return event.vector in _CONTRIBUTORY and nested.vector in _CONTRIBUTORY
