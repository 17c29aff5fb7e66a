"""The areas of VM-entry checks: sections of the manual, each with the consequence of a failure.

The consequences stand here once and nowhere else. Within one section of the manual the
consequence can differ by rule (exit qualifications 2, 3 and 4); such rules have areas of their own.
"""

from __future__ import annotations

from vtx import sdm
from vtx.facts.exits import ExitReason
from vtx.facts.instruction_errors import InstructionError
from vtx.rules.declaration import Area, Consequence, Kind, Stage

__all__ = [
    "DESCRIPTOR_TABLES",
    "ENTRY_CONTROLS",
    "EXECUTION_CONTROLS",
    "EXIT_CONTROLS",
    "GUEST_REGISTERS",
    "HOST_ADDRESS_SPACE",
    "HOST_REGISTERS",
    "HOST_SEGMENTS",
    "LINK_POINTER",
    "MACHINE_CHECK",
    "MSR_LOAD",
    "NMI_AND_STI",
    "NON_REGISTER_STATE",
    "PDPTES",
    "RIP_RFLAGS_SSP",
    "SEGMENTS",
    "basic",
    "smm",
]


def _vmfail(error: int) -> Consequence:
    return Consequence(Kind.VMFAIL_VALID, error=error)


def _entry_failure(reason: int, qualification: int | None = None) -> Consequence:
    return Consequence(Kind.ENTRY_FAILURE, reason=reason, qualification=qualification)


_CONTROLS = _vmfail(InstructionError.ENTRY_INVALID_CONTROL_FIELDS)
_HOST = _vmfail(InstructionError.ENTRY_INVALID_HOST_STATE_FIELDS)
_GUEST = _entry_failure(ExitReason.ENTRY_FAILURE_GUEST_STATE, 0)
_STAGE_2 = Stage.CONTROLS_AND_HOST

EXECUTION_CONTROLS = Area(sdm.VM_EXECUTION_CONTROL_FIELDS, _STAGE_2, _CONTROLS)
EXIT_CONTROLS = Area(sdm.VM_EXIT_CONTROL_FIELDS, _STAGE_2, _CONTROLS)
ENTRY_CONTROLS = Area(sdm.VM_ENTRY_CONTROL_FIELDS, _STAGE_2, _CONTROLS)

HOST_REGISTERS = Area(sdm.CHECKS_ON_HOST_CONTROL_REGISTERS_MSRS_AND_SSP, _STAGE_2, _HOST)
HOST_SEGMENTS = Area(sdm.CHECKS_ON_HOST_SEGMENT_AND_DESCRIPTOR_TABLE_REGISTERS, _STAGE_2, _HOST)
HOST_ADDRESS_SPACE = Area(sdm.CHECKS_RELATED_TO_ADDRESS_SPACE_SIZE, _STAGE_2, _HOST)

GUEST_REGISTERS = Area(
    sdm.CHECKS_ON_GUEST_CONTROL_REGISTERS_DEBUG_REGISTERS_AND_MSRS, Stage.GUEST, _GUEST
)
SEGMENTS = Area(sdm.CHECKS_ON_GUEST_SEGMENT_REGISTERS, Stage.GUEST, _GUEST)
DESCRIPTOR_TABLES = Area(sdm.CHECKS_ON_GUEST_DESCRIPTOR_TABLE_REGISTERS, Stage.GUEST, _GUEST)
RIP_RFLAGS_SSP = Area(sdm.CHECKS_ON_GUEST_RIP_RFLAGS_AND_SSP, Stage.GUEST, _GUEST)
NON_REGISTER_STATE = Area(sdm.CHECKS_ON_GUEST_NON_REGISTER_STATE, Stage.GUEST, _GUEST)
NMI_AND_STI = Area(
    sdm.CHECKS_ON_GUEST_NON_REGISTER_STATE,
    Stage.GUEST,
    _entry_failure(ExitReason.ENTRY_FAILURE_GUEST_STATE, 3),
)
LINK_POINTER = Area(
    sdm.CHECKS_ON_GUEST_NON_REGISTER_STATE,
    Stage.GUEST,
    _entry_failure(ExitReason.ENTRY_FAILURE_GUEST_STATE, 4),
)
PDPTES = Area(
    sdm.CHECKS_ON_GUEST_PAGE_DIRECTORY_POINTER_TABLE_ENTRIES,
    Stage.GUEST,
    _entry_failure(ExitReason.ENTRY_FAILURE_GUEST_STATE, 2),
)

#: The exit qualification is the number of the failing entry, counted from 1.
MSR_LOAD = Area(
    sdm.LOADING_MSRS, Stage.MSR_LOAD, _entry_failure(ExitReason.ENTRY_FAILURE_MSR_LOADING)
)
MACHINE_CHECK = Area(
    sdm.MACHINE_CHECK_EVENTS_DURING_VM_ENTRY,
    Stage.EVENT,
    _entry_failure(ExitReason.ENTRY_FAILURE_MACHINE_CHECK),
)


def basic(consequence: Consequence) -> Area:
    """Return the area of a check that VMLAUNCH and VMRESUME make themselves."""
    return Area(sdm.BASIC_VM_ENTRY_CHECKS, Stage.INSTRUCTION, consequence)


def smm(section: sdm.Section, error: int) -> Area:
    """Return the area of a control check of VM entries that return from SMM."""
    return Area(section, _STAGE_2, _vmfail(error))
