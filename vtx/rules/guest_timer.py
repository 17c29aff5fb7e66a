"""The guest's timer under "APIC-timer virtualization" (SDM, "APIC-Timer Virtualization").

The guest arms it by writing IA32_TSC_DEADLINE. The deadline in the guest's own time stays in the
guest-deadline shadow, that of the logical processor in the guest deadline; both are 0 while the
timer is not armed. When it expires, a virtual interrupt is requested; there is no VM exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.fields import Field
from vtx.rules.execution_apic import request_virtual_interrupt
from vtx.rules.execution_msrs import guest_tsc, host_tsc

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["arm", "expire", "is_virtualized", "steps_left"]

_TSC_FRACTION_BITS = 48
_DEADLINE, _SHADOW = Field.GUEST_DEADLINE, Field.GUEST_DEADLINE_SHADOW


def is_virtualized(processor: Processor) -> bool:
    """Tell whether the guest's IA32_TSC_DEADLINE is virtualized."""
    assert processor.vmcs is not None
    return bool(processor.vmcs.proc3 & Proc3.APIC_TIMER_VIRTUALIZATION)


def arm(processor: Processor, deadline: int) -> None:
    """Arm the timer for a value of the guest's time-stamp counter; 0 disarms it."""
    vmcs = processor.vmcs
    assert vmcs is not None
    vmcs[_SHADOW] = deadline
    vmcs[_DEADLINE] = _own_deadline(processor, deadline) if deadline else 0


def _own_deadline(processor: Processor, deadline: int) -> int:
    """Return the value of the processor's own counter at which the guest's has reached `deadline`.

    A deadline that has passed is now.
    """
    vmcs, now = processor.vmcs, host_tsc(processor)
    assert vmcs is not None
    left = deadline - guest_tsc(processor)
    if left <= 0:
        return max(now, 1)
    if not vmcs.proc1 & Proc1.USE_TSC_OFFSETTING:
        return deadline
    target = deadline - vmcs[Field.TSC_OFFSET] & MASK64
    if vmcs.proc2 & Proc2.USE_TSC_SCALING:
        # Rounded up: the guest does not see its counter before the deadline.
        target = -(-(target << _TSC_FRACTION_BITS) // vmcs[Field.TSC_MULTIPLIER])
    return min(target, MASK64)


def steps_left(processor: Processor) -> int | None:
    """Return after how many steps the timer expires; None if it is not armed."""
    vmcs = processor.vmcs
    assert vmcs is not None
    if not is_virtualized(processor) or not vmcs[_DEADLINE]:
        return None
    return max(vmcs[_DEADLINE] - host_tsc(processor), 0)


def expire(processor: Processor) -> None:
    """If the deadline is reached, request the virtual timer's interrupt and disarm the timer."""
    if steps_left(processor) != 0:
        return
    vmcs = processor.vmcs
    assert vmcs is not None
    vmcs[_DEADLINE] = vmcs[_SHADOW] = 0
    request_virtual_interrupt(processor, vmcs[Field.VIRTUAL_TIMER_VECTOR] & 0xFF)
