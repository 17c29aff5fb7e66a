"""VM-instruction error numbers (SDM, "VM Instruction Error Numbers").

VMfailValid writes the number to the VM-instruction error field; VMfailInvalid writes none. The
numbers 14, 21 and 27 are not used. VM exits and failed VM entries (exit reasons 33, 34 and 41)
do not change the field.
"""

from enum import IntEnum
from typing import NamedTuple

from vtx.errors import UnknownName
from vtx.facts.lookup import as_number, canonical
from vtx.facts.members import plain_members

__all__ = [
    "INSTRUCTION_ERRORS",
    "InstructionError",
    "InstructionErrorInfo",
    "find_instruction_error",
]


#: What a row says beside its number: the columns of `InstructionErrorInfo` from `text` on.
_Row = tuple[str, str, tuple[str, ...], str | None]

_rows: list[_Row] = []


def _error(
    number: int, text: str, when: str, instructions: tuple[str, ...], *, note: str | None = None
) -> int:
    """Keep one row, and give its number to the enum."""
    _rows.append((text, when, instructions, note))
    return number


@plain_members
class InstructionError(IntEnum):
    """VM-instruction error numbers."""

    __hash__ = int.__hash__

    VMCALL_IN_VMX_ROOT_OPERATION = _error(
        1,
        "VMCALL executed in VMX root operation",
        "in SMM, or dual-monitor treatment unsupported, or IA32_SMM_MONITOR_CTL valid bit clear",
        ("VMCALL",),
    )
    VMCLEAR_INVALID_PHYSICAL_ADDRESS = _error(
        2,
        "VMCLEAR with an invalid physical address",
        "operand not 4-KByte aligned or beyond the physical-address width",
        ("VMCLEAR",),
    )
    VMCLEAR_WITH_VMXON_POINTER = _error(
        3, "VMCLEAR with the VMXON pointer", "operand equals the VMXON pointer", ("VMCLEAR",)
    )
    VMLAUNCH_NON_CLEAR_VMCS = _error(
        4, "VMLAUNCH with a VMCS that is not clear", "launch state is launched", ("VMLAUNCH",)
    )
    VMRESUME_NON_LAUNCHED_VMCS = _error(
        5, "VMRESUME with a VMCS that is not launched", "launch state is clear", ("VMRESUME",)
    )
    VMRESUME_AFTER_VMXOFF = _error(
        6,
        "VMRESUME after VMXOFF",
        "VMXOFF and VMXON happened between VMLAUNCH and VMRESUME",
        ("VMRESUME",),
        note="older text: corrupted VMCS; optional, Bochs never produces it",
    )
    ENTRY_INVALID_CONTROL_FIELDS = _error(
        7,
        "VM entry with invalid control fields",
        "any check of execution, exit or entry controls failed",
        ("VMLAUNCH", "VMRESUME"),
        note="order against 8 is free; not used for the executive-VMCS case (25)",
    )
    ENTRY_INVALID_HOST_STATE_FIELDS = _error(
        8,
        "VM entry with invalid host-state fields",
        "any host-state or address-space-size check failed",
        ("VMLAUNCH", "VMRESUME"),
        note="order against 7 is free",
    )
    VMPTRLD_INVALID_PHYSICAL_ADDRESS = _error(
        9,
        "VMPTRLD with an invalid physical address",
        "operand not 4-KByte aligned or beyond the physical-address width",
        ("VMPTRLD",),
    )
    VMPTRLD_WITH_VMXON_POINTER = _error(
        10, "VMPTRLD with the VMXON pointer", "operand equals the VMXON pointer", ("VMPTRLD",)
    )
    VMPTRLD_INCORRECT_REVISION_ID = _error(
        11,
        "VMPTRLD with an incorrect VMCS revision identifier",
        "bits 30:0 differ, or bit 31 set without VMCS-shadowing support",
        ("VMPTRLD",),
    )
    UNSUPPORTED_VMCS_COMPONENT = _error(
        12,
        "access to an unsupported VMCS component",
        "encoding names no field of this CPU (upper bits set count too)",
        ("VMREAD", "VMWRITE"),
    )
    VMWRITE_READ_ONLY_COMPONENT = _error(
        13,
        "VMWRITE to a read-only component",
        "VM-exit information field and IA32_VMX_MISC[29]=0",
        ("VMWRITE",),
    )
    VMXON_IN_VMX_ROOT_OPERATION = _error(
        15, "VMXON executed in VMX root operation", "already in root operation", ("VMXON",)
    )
    ENTRY_INVALID_EXECUTIVE_VMCS_POINTER = _error(
        16,
        "VM entry with invalid executive-VMCS pointer",
        "VM entry returning from SMM (dual-monitor)",
        ("VMLAUNCH", "VMRESUME"),
    )
    ENTRY_NON_LAUNCHED_EXECUTIVE_VMCS = _error(
        17,
        "VM entry with a non-launched executive VMCS",
        "VM entry returning from SMM (dual-monitor)",
        ("VMLAUNCH", "VMRESUME"),
    )
    ENTRY_EXECUTIVE_VMCS_POINTER_NOT_VMXON_POINTER = _error(
        18,
        "executive-VMCS pointer is not the VMXON pointer",
        "trying to deactivate the dual-monitor treatment",
        ("VMLAUNCH", "VMRESUME"),
    )
    VMCALL_NON_CLEAR_VMCS = _error(
        19,
        "VMCALL with a VMCS that is not clear",
        "trying to activate the dual-monitor treatment",
        ("VMCALL",),
    )
    VMCALL_INVALID_EXIT_CONTROLS = _error(
        20,
        "VMCALL with invalid VM-exit control fields",
        "trying to activate the dual-monitor treatment",
        ("VMCALL",),
    )
    VMCALL_INCORRECT_MSEG_REVISION_ID = _error(
        22,
        "VMCALL with an incorrect MSEG revision identifier",
        "trying to activate the dual-monitor treatment",
        ("VMCALL",),
    )
    VMXOFF_UNDER_DUAL_MONITOR = _error(
        23,
        "VMXOFF under the dual-monitor treatment",
        "dual-monitor treatment of SMIs and SMM is active",
        ("VMXOFF",),
    )
    VMCALL_INVALID_SMM_MONITOR_FEATURES = _error(
        24,
        "VMCALL with invalid SMM-monitor features",
        "trying to activate the dual-monitor treatment",
        ("VMCALL",),
    )
    ENTRY_INVALID_CONTROLS_IN_EXECUTIVE_VMCS = _error(
        25,
        "invalid VM-execution controls in the executive VMCS",
        "VM entry returning from SMM",
        ("VMLAUNCH", "VMRESUME"),
        note="used instead of 7 for a VM entry returning from SMM",
    )
    ENTRY_EVENTS_BLOCKED_BY_MOV_SS = _error(
        26,
        "VM entry with events blocked by MOV SS",
        "MOV-SS blocking in effect",
        ("VMLAUNCH", "VMRESUME"),
    )
    INVALID_OPERAND_TO_INVEPT_INVVPID = _error(
        28,
        "invalid operand to INVEPT/INVVPID",
        "unsupported type or bad descriptor",
        ("INVEPT", "INVVPID"),
    )


class InstructionErrorInfo(NamedTuple):
    """One VM-instruction error.

    Attributes
    ----------
    error : InstructionError
        The error; its value is the number.
    text : str
        What went wrong.
    when : str
        The condition in more detail.
    instructions : tuple of str
        The instructions that report it.
    note : str or None
        What else is worth knowing.
    """

    error: InstructionError
    text: str
    when: str
    instructions: tuple[str, ...]
    note: str | None

    @property
    def name(self) -> str:
        """The error's name in lower case."""
        return self.error._name_.lower()


#: Every error with its row, by number.
INSTRUCTION_ERRORS: dict[InstructionError, InstructionErrorInfo] = {
    error: InstructionErrorInfo(error, *row)
    for error, row in zip(InstructionError, _rows, strict=True)
}


def find_instruction_error(what: str | int) -> InstructionErrorInfo:
    """Return the row of a VM-instruction error by number, name or text.

    Raises
    ------
    UnknownName
        There is no such error; the nearest names are given.
    """
    number = as_number(what)
    if number is not None:
        if number in INSTRUCTION_ERRORS:
            return INSTRUCTION_ERRORS[InstructionError(number)]
        raise UnknownName("VM-instruction error", what)
    name = canonical(str(what))
    names = {info.name: info for info in INSTRUCTION_ERRORS.values()}
    for info in INSTRUCTION_ERRORS.values():
        names.setdefault(canonical(info.text), info)
    if name not in names:
        raise UnknownName("VM-instruction error", what, names)
    return names[name]
