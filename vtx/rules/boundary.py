"""Events at an instruction boundary, in the manual's order of priority.

SDM, "Event Blocking", "Priority Among Concurrent Events", and the notes of each kind of exit in
"Other Causes of VM Exits". Levels, highest first:

====  ===========================================================================================
4     SMI, INIT, start-up IPI
5     pending MTF exit
6     debug exceptions of the instruction before
7     VMX-preemption timer
8     NMI window
9     NMI
10    guest timer, interrupt window, virtual interrupt
11    external interrupt, posted interrupts
====  ===========================================================================================

Exits that belong to the instruction just finished (trap-like ones, level 2) are returned by its
execution, before this is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtx.errors import NotSupported
from vtx.facts.controls import Exit1, Pin, Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Activity, Interruptibility, Rflags
from vtx.rules.delivery import DB, NMI, Event, exception, hand_over, interruption_information
from vtx.rules.execution_apic import (
    acknowledge_virtual_interrupt,
    has_virtual_interrupt,
    post_interrupts,
    ppr_virtualization,
    tpr_below_threshold,
)
from vtx.rules.guest_timer import expire, steps_left
from vtx.rules.injected import EventType

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["after_vm_entry", "at_boundary", "is_quiet", "steps_to_timer", "tick"]

_BLOCKED = Interruptibility.STI | Interruptibility.MOV_SS
_ENABLED_BREAKPOINT, _SINGLE_STEP = 1 << 12, 1 << 14
_DEBUG_CONDITIONS = 0x1_480F
_WATCHED = Proc1.INTERRUPT_WINDOW_EXITING | Proc1.NMI_WINDOW_EXITING | Proc1.MONITOR_TRAP_FLAG
_TPR_SHADOW = int(Proc1.USE_TPR_SHADOW)
_PROC1 = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
_ASLEEP = frozenset({Activity.SHUTDOWN, Activity.WAIT_FOR_SIPI})

#: What a level says: an exit; True if it delivered an event to the guest; None if there is none.
Outcome = ExitInformation | bool | None


def _vmcs(processor: Processor) -> Vmcs:
    vmcs = processor.vmcs
    assert vmcs is not None
    return vmcs


def is_quiet(processor: Processor) -> bool:
    """Tell whether the controls alone rule out events that arise while the guest runs."""
    vmcs = _vmcs(processor)
    proc1 = vmcs.values[_PROC1]
    if processor.preemption_timer is not None or proc1 & _WATCHED:
        return False
    # Without a TPR shadow there are no virtual interrupts.
    return not (proc1 & _TPR_SHADOW and vmcs.proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY)


# The VMX-preemption timer. It counts down when bit X of the TSC changes; X is IA32_VMX_MISC[4:0].


def _timer_shift(processor: Processor) -> int:
    return processor.shape.msr(Msr.IA32_VMX_MISC) & 0x1F


def tick(processor: Processor, steps: int = 1) -> None:
    """Let `steps` steps of guest time pass."""
    before = processor.tsc
    processor.tsc = before + steps
    processor.steps += steps
    timer = processor.preemption_timer
    if timer:
        shift = _timer_shift(processor)
        ticks = (processor.tsc >> shift) - (before >> shift)
        processor.preemption_timer = max(timer - ticks, 0)


def steps_to_timer(processor: Processor) -> int | None:
    """Return after how many steps a timer expires, None if none runs that the guest waits for."""
    ours = _steps_to_preemption(processor)
    if processor.regs.activity_state in _ASLEEP:
        return ours
    guests = steps_left(processor)
    return guests if ours is None else ours if guests is None else min(ours, guests)


def _steps_to_preemption(processor: Processor) -> int | None:
    """Return after how many steps the VMX-preemption timer expires, None if it does not run."""
    timer = processor.preemption_timer
    if timer is None:
        return None
    shift = _timer_shift(processor)
    return ((processor.tsc >> shift) + timer << shift) - processor.tsc if timer else 0


# The levels. Each looks at one kind of event.


def _smi(processor: Processor) -> Outcome:
    """Take an SMI under the default treatment: its handler runs in SMM and returns with RSM.

    SDM, "Default Treatment of SMI Delivery": there is no VM exit, what VMX operation was in is kept
    across SMM, and so is a pending MTF exit. The handler itself is no part of the machine.
    """
    pending = processor.pending
    if pending.smi and processor.dual_monitor_active:
        raise NotSupported("the SMI causes an SMM VM exit, and there is no SMM-transfer monitor")
    if processor.regs.activity_state != Activity.WAIT_FOR_SIPI and not processor.smi_blocked:
        pending.smi = False
    return None


def _init_or_sipi(processor: Processor) -> Outcome:
    pending, activity = processor.pending, processor.regs.activity_state
    vector, pending.sipi = pending.sipi, None
    if activity == Activity.WAIT_FOR_SIPI:
        return None if vector is None else ExitInformation(ExitReason.STARTUP_IPI, vector & 0xFF)
    if pending.init:
        pending.init = False
        return ExitInformation(ExitReason.INIT_SIGNAL)
    return None


def _monitor_trap_flag(processor: Processor) -> Outcome:
    if not processor.pending.mtf or processor.regs.activity_state in _ASLEEP:
        return None
    processor.pending.mtf = False
    return ExitInformation(ExitReason.MONITOR_TRAP_FLAG)


def _debug_trap(processor: Processor) -> Outcome:
    regs = processor.regs
    pending = regs.pending_debug_exceptions
    if not pending & (_ENABLED_BREAKPOINT | _SINGLE_STEP):
        return None
    if regs.interruptibility_state & Interruptibility.MOV_SS:
        return None
    regs.pending_debug_exceptions = 0
    conditions = pending & _DEBUG_CONDITIONS
    event = Event(DB, EventType.HARDWARE_EXCEPTION, qualification=conditions)
    return exception(processor, event) or True


def _timer(processor: Processor) -> Outcome:
    if processor.preemption_timer != 0 or processor.regs.activity_state == Activity.WAIT_FOR_SIPI:
        return None
    return ExitInformation(ExitReason.VMX_PREEMPTION_TIMER_EXPIRED)


def _nmi_window(processor: Processor) -> Outcome:
    regs = processor.regs
    if not _vmcs(processor).proc1 & Proc1.NMI_WINDOW_EXITING:
        return None
    if regs.interruptibility_state & (Interruptibility.NMI | _BLOCKED):
        return None
    if regs.activity_state == Activity.WAIT_FOR_SIPI:
        return None
    return ExitInformation(ExitReason.NMI_WINDOW)


def _nmi(processor: Processor) -> Outcome:
    """Let an NMI exit, or deliver it; STI and MOV-SS blocking do not hold up the exit."""
    regs, pin = processor.regs, _vmcs(processor).pin
    if not processor.pending.nmi or regs.activity_state == Activity.WAIT_FOR_SIPI:
        return None
    if not pin & Pin.VIRTUAL_NMIS and processor.nmi_blocked:
        return None
    event = Event(NMI, EventType.NMI)
    if pin & Pin.NMI_EXITING:
        processor.pending.nmi = False
        return ExitInformation(
            ExitReason.EXCEPTION_OR_NMI, interruption_information=interruption_information(event)
        )
    if regs.interruptibility_state & Interruptibility.MOV_SS:
        return None
    processor.pending.nmi = False
    return hand_over(processor, event) or True


def _interrupts_enabled(processor: Processor) -> bool:
    regs = processor.regs
    return bool(regs.rflags & Rflags.IF) and not regs.interruptibility_state & _BLOCKED


def _guest_timer(processor: Processor) -> Outcome:
    """Let the guest's timer request its virtual interrupt, which the next level may deliver."""
    if processor.regs.activity_state not in _ASLEEP:
        expire(processor)
    return None


def _interrupt_window(processor: Processor) -> Outcome:
    if processor.regs.activity_state in _ASLEEP or not _interrupts_enabled(processor):
        return None
    if _vmcs(processor).proc1 & Proc1.INTERRUPT_WINDOW_EXITING:
        return ExitInformation(ExitReason.INTERRUPT_WINDOW)
    if not has_virtual_interrupt(processor):
        return None
    vector = acknowledge_virtual_interrupt(processor)
    return hand_over(processor, Event(vector, EventType.EXTERNAL_INTERRUPT)) or True


def _external_interrupt(processor: Processor) -> Outcome:
    """Let an interrupt exit whatever IF and blocking say, or deliver it if they allow it."""
    interrupts, vmcs = processor.pending.interrupts, _vmcs(processor)
    if not interrupts or processor.regs.activity_state in _ASLEEP:
        return None
    pin = vmcs.pin
    if not pin & Pin.EXTERNAL_INTERRUPT_EXITING:
        if not _interrupts_enabled(processor):
            return None
        event = Event(interrupts.popleft(), EventType.EXTERNAL_INTERRUPT)
        return hand_over(processor, event) or True
    posted = bool(pin & Pin.PROCESS_POSTED_INTERRUPTS)
    if posted and interrupts[0] == vmcs[Field.POSTED_INTERRUPT_NOTIFICATION_VECTOR]:
        interrupts.popleft()
        post_interrupts(processor)
        # What was posted may be delivered now, and further interrupts may wait.
        return _interrupt_window(processor) or _external_interrupt(processor)
    if not posted and not vmcs.exit1 & Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT:
        return ExitInformation(ExitReason.EXTERNAL_INTERRUPT)
    event = Event(interrupts.popleft(), EventType.EXTERNAL_INTERRUPT)
    return ExitInformation(
        ExitReason.EXTERNAL_INTERRUPT, interruption_information=interruption_information(event)
    )


#: From the highest priority to the lowest.
LEVELS: tuple[Callable[[Processor], Outcome], ...] = (
    _smi,
    _init_or_sipi,
    _monitor_trap_flag,
    _debug_trap,
    _timer,
    _nmi_window,
    _nmi,
    _guest_timer,
    _interrupt_window,
    _external_interrupt,
)


def at_boundary(processor: Processor) -> ExitInformation | None:
    """Take the events that wait, before the next instruction.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation; RIP references the next instruction.

    Returns
    -------
    ExitInformation or None
        The VM exit; None: the guest goes on, in the handler of the last event that was delivered
        (then `processor.delivered` names it).
    """
    for level in LEVELS:
        outcome = level(processor)
        if isinstance(outcome, ExitInformation):
            return outcome
        if outcome:
            # One event is delivered at a boundary; what else waits comes at the next one, which
            # is before the handler's first instruction.
            return None
    return None


def after_vm_entry(processor: Processor) -> ExitInformation | None:
    """Do what VM entry does between event injection and the first instruction.

    SDM, "VM Exits Induced by the TPR Threshold", "Monitor Trap Flag" and "VM Entries and Virtual
    Interrupts": the TPR threshold, MTF after an injection, PPR virtualization.
    """
    vmcs = _vmcs(processor)
    proc1 = vmcs.values[_PROC1]
    if processor.delivered is not None and proc1 & Proc1.MONITOR_TRAP_FLAG:
        processor.pending.mtf = True
    if not proc1 & _TPR_SHADOW:
        return None
    proc2 = vmcs.proc2
    if proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY:
        ppr_virtualization(processor)
    elif (
        proc2 & Proc2.VIRTUALIZE_APIC_ACCESSES
        # The exit wakes a processor from HLT, but not from shutdown or wait-for-SIPI.
        and processor.regs.activity_state not in _ASLEEP
        and tpr_below_threshold(processor)
    ):
        return ExitInformation(ExitReason.TPR_BELOW_THRESHOLD)
    return None
