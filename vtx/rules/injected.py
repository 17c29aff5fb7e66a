"""The event that a VM entry injects: how the checks look at the interruption information.

Layout (SDM, "VM-Entry Controls for Event Injection")::

    31     valid
    30:14  reserved
    13     nested exception (CPUs with FRED)
    12     reserved
    11     deliver error code
    10:8   type
    7:0    vector
"""

from __future__ import annotations

from enum import IntEnum

from vtx.facts.fields import Field as F
from vtx.facts.members import plain_members
from vtx.machine.vmcs import Vmcs

__all__ = [
    "DELIVER_ERROR_CODE",
    "NESTED_EXCEPTION",
    "VALID",
    "EventType",
    "injected",
    "type_and_vector",
]

VALID = 1 << 31
NESTED_EXCEPTION = 1 << 13
DELIVER_ERROR_CODE = 1 << 11
_INFORMATION = F.VM_ENTRY_INTERRUPTION_INFORMATION


@plain_members
class EventType(IntEnum):
    """Types of event in the interruption-information fields (bits 10:8)."""

    __hash__ = int.__hash__

    EXTERNAL_INTERRUPT = 0
    RESERVED = 1
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6
    OTHER_EVENT = 7


def injected(vmcs: Vmcs) -> int | None:
    """Return the type of the event that the VM entry injects, None if it injects none."""
    information = vmcs[_INFORMATION]
    return information >> 8 & 7 if information & VALID else None


def type_and_vector(vmcs: Vmcs) -> tuple[int, int] | None:
    """Return type and vector of the event that the VM entry injects, None if it injects none."""
    information = vmcs[_INFORMATION]
    return (information >> 8 & 7, information & 0xFF) if information & VALID else None
