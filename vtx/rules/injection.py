"""Event injection by VM entry (SDM, "Event Injection" and "Special Features of VM Entry").

Layout of the VM-entry interruption information::

    31     valid
    11     deliver error code
    10:8   type: 0 external interrupt, 2 NMI, 3 hardware exception, 4 software interrupt,
           5 privileged software exception, 6 software exception, 7 other event
    7:0    vector
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Pin
from vtx.facts.fields import Field
from vtx.machine.events import Event as Counted
from vtx.machine.registers import Activity, Interruptibility
from vtx.rules.injected import DELIVER_ERROR_CODE, VALID, EventType

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["inject"]

#: Types with an instruction behind them: the RIP that is pushed is that of the next one.
_WITH_LENGTH = frozenset(
    {
        EventType.SOFTWARE_INTERRUPT,
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        EventType.SOFTWARE_EXCEPTION,
    }
)
#: Injected events after which pending debug exceptions are kept if MOV SS blocks them.
_SOFTWARE = frozenset({EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION})
_MTF_VECTOR = 0
_ASLEEP = frozenset({Activity.SHUTDOWN, Activity.WAIT_FOR_SIPI})


def inject(processor: Processor) -> ExitInformation | None:
    """Deliver the event that the current VMCS injects, at the end of a VM entry.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation, guest state and translation context loaded.

    Returns
    -------
    ExitInformation or None
        The VM exit that the delivery ran into, if any. The injected event itself causes none.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    information = vmcs.values[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
    regs = processor.regs
    if not information & VALID:
        if regs.activity_state in _ASLEEP:
            regs.pending_debug_exceptions = 0
        return None
    kind, vector = information >> 8 & 7, information & 0xFF
    if kind == EventType.OTHER_EVENT and vector == _MTF_VECTOR:
        # Not an event for the IDT: an MTF VM exit is pending right after the entry.
        processor.pending.mtf = True
        return None
    return _deliver(processor, vmcs, information, kind, vector)


def _deliver(
    processor: Processor, vmcs: Vmcs, information: int, kind: int, vector: int
) -> ExitInformation | None:
    from vtx.rules.delivery import Event, deliver

    regs = processor.regs
    mov_ss = regs.interruptibility_state & Interruptibility.MOV_SS
    if not (kind in _SOFTWARE and mov_ss):
        # The debug exceptions that were pending are lost.
        regs.pending_debug_exceptions = 0
    regs.interruptibility_state &= ~(Interruptibility.STI | Interruptibility.MOV_SS)
    regs.activity_state = Activity.ACTIVE
    if kind == EventType.NMI:
        # Virtual-NMI blocking or, without virtual NMIs, blocking of NMIs themselves: in effect
        # before delivery begins, so that an exit during delivery saves it.
        regs.interruptibility_state |= Interruptibility.NMI
        if not vmcs.pin & Pin.VIRTUAL_NMIS:
            processor.nmi_blocked = True
    error_code = (
        vmcs.values[Field.VM_ENTRY_EXCEPTION_ERROR_CODE]
        if information & DELIVER_ERROR_CODE
        else None
    )
    length = vmcs.values[Field.VM_ENTRY_INSTRUCTION_LENGTH] if kind in _WITH_LENGTH else 0
    processor.events.count(Counted.INJECTION)
    return deliver(processor, Event(vector, EventType(kind), error_code, length, injected=True))
