"""Checks of VM entries that return from SMM (SDM, "VM Entries that Return from SMM").

They are made by a VM entry that an SMM-transfer monitor executes: the logical processor is in SMM
under the dual-monitor treatment, and "entry to SMM" is 0. The current VMCS is then the SMM-transfer
VMCS; the VMCS of the guest that the SMI interrupted is the *executive VMCS*, and its VM-execution
controls are the ones that will act. If its pointer is the VMXON pointer, the entry returns to VMX
root operation, where no controls act at all.
"""

from __future__ import annotations

from vtx import sdm
from vtx.errors import AddressError
from vtx.facts.controls import Entry
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Area as FieldArea
from vtx.facts.fields import Field as F
from vtx.facts.instruction_errors import InstructionError
from vtx.machine.processor import Processor
from vtx.machine.registers import Activity
from vtx.machine.vmcs import REGION_BYTES, Vmcs
from vtx.rules import areas, entry_controls_ept, entry_controls_execution
from vtx.rules.declaration import Area, Checks, Live, Stage, only
from vtx.rules.entry_controls_families import PHYSICAL_WIDTH
from vtx.rules.injected import VALID, EventType, type_and_vector
from vtx.rules.limits import physical_width
from vtx.rules.physical import read_u32

__all__ = ["guest_as_returned_to", "returns_from_smm"]

check = Checks()

_POINTER = areas.smm(
    sdm.CHECKS_ON_THE_EXECUTIVE_VMCS_POINTER_FIELD,
    InstructionError.ENTRY_INVALID_EXECUTIVE_VMCS_POINTER,
)
_LAUNCHED = areas.smm(
    sdm.CHECKS_ON_THE_EXECUTIVE_VMCS_POINTER_FIELD,
    InstructionError.ENTRY_NON_LAUNCHED_EXECUTIVE_VMCS,
)
_DEACTIVATE = areas.smm(
    sdm.CHECKS_ON_THE_EXECUTIVE_VMCS_POINTER_FIELD,
    InstructionError.ENTRY_EXECUTIVE_VMCS_POINTER_NOT_VMXON_POINTER,
)
_EXECUTION = areas.smm(
    sdm.CHECKS_ON_VM_EXECUTION_CONTROL_FIELDS,
    InstructionError.ENTRY_INVALID_CONTROLS_IN_EXECUTIVE_VMCS,
)
_ENTRY = areas.smm(
    sdm.CHECKS_ON_VM_ENTRY_CONTROL_FIELDS, InstructionError.ENTRY_INVALID_CONTROL_FIELDS
)
_GUEST = Area(sdm.CHECKS_ON_THE_GUEST_STATE_AREA, Stage.GUEST, areas.NON_REGISTER_STATE.consequence)

_ABOVE_32 = 0xFFFF_FFFF_0000_0000
_PENDING_MTF = (EventType.OTHER_EVENT, 0)
_EXIT_AND_ENTRY_CONTROLS = frozenset(
    {
        F.VM_EXIT_CONTROLS,
        F.SECONDARY_VM_EXIT_CONTROLS,
        F.VM_EXIT_MSR_STORE_ADDRESS,
        F.VM_EXIT_MSR_STORE_COUNT,
        F.VM_EXIT_MSR_LOAD_ADDRESS,
        F.VM_EXIT_MSR_LOAD_COUNT,
        F.VM_ENTRY_CONTROLS,
        F.VM_ENTRY_MSR_LOAD_ADDRESS,
        F.VM_ENTRY_MSR_LOAD_COUNT,
        F.VM_ENTRY_INTERRUPTION_INFORMATION,
        F.VM_ENTRY_EXCEPTION_ERROR_CODE,
        F.VM_ENTRY_INSTRUCTION_LENGTH,
        F.INJECTED_EVENT_DATA,
        F.EXECUTIVE_VMCS_POINTER,
    }
)
#: The fields that are VM-execution controls.
_EXECUTION_CONTROLS = tuple(
    field
    for field, info in FIELDS.items()
    if info.area is FieldArea.CONTROL and field not in _EXIT_AND_ENTRY_CONTROLS
)
#: What the checks on VM-execution controls read of VM-exit and VM-entry controls.
_CONTROLS_BESIDE = (F.VM_EXIT_CONTROLS, F.VM_ENTRY_CONTROLS)
_SMM = (Live.SMM,)


def returns_from_smm(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether VM entry with this VMCS would return from SMM."""
    return processor.smm and processor.dual_monitor_active and not vmcs.entry & Entry.ENTRY_TO_SMM


def _returns_to_root(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether it would return to VMX root operation."""
    return (
        returns_from_smm(vmcs, processor)
        and vmcs[F.EXECUTIVE_VMCS_POINTER] == processor.vmxon_pointer
    )


def _returns_to_guest(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether it would return to a guest whose executive VMCS can be read."""
    pointer = vmcs[F.EXECUTIVE_VMCS_POINTER]
    return (
        returns_from_smm(vmcs, processor)
        and pointer != processor.vmxon_pointer
        and not pointer & 0xFFF
        and not pointer >> physical_width(processor.shape)
    )


def _executive(vmcs: Vmcs, processor: Processor) -> Vmcs:
    """Return the executive VMCS: an active one, or the content of its region."""
    pointer = vmcs[F.EXECUTIVE_VMCS_POINTER]
    active = processor.active_vmcss.get(pointer)
    if active is not None:
        return active
    try:
        return Vmcs.from_bytes(processor.memory.read(pointer, REGION_BYTES))
    except AddressError:
        return Vmcs.from_bytes(b"\xff" * REGION_BYTES)


def guest_as_returned_to(vmcs: Vmcs, processor: Processor) -> Vmcs:
    """Return the VMCS by which the guest-state checks of a return from SMM judge.

    It has the VM-execution controls of the executive VMCS; all of them 0 for a return to VMX root
    operation.
    """
    controls: Vmcs | dict[int, int] = dict.fromkeys(_EXECUTION_CONTROLS, 0)
    if _returns_to_guest(vmcs, processor):
        controls = _executive(vmcs, processor)
    merged = vmcs.copy()
    for field in _EXECUTION_CONTROLS:
        merged[field] = controls[field]
    return merged


@check(
    "smm.executive_vmcs_pointer.align",
    _POINTER,
    Entry.ENTRY_TO_SMM,
    only(F.EXECUTIVE_VMCS_POINTER, 0xFFF),
    live=_SMM,
)
def executive_vmcs_pointer_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM, bits 11:0 of the executive-VMCS pointer are 0."""
    return not returns_from_smm(vmcs, processor) or not vmcs[F.EXECUTIVE_VMCS_POINTER] & 0xFFF


@check(
    "smm.executive_vmcs_pointer.width",
    _POINTER,
    Entry.ENTRY_TO_SMM,
    only(F.EXECUTIVE_VMCS_POINTER, _ABOVE_32),
    live=_SMM,
    capability=PHYSICAL_WIDTH,
)
def executive_vmcs_pointer_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM, the executive-VMCS pointer sets no bit beyond the physical-address
    width."""
    if not returns_from_smm(vmcs, processor):
        return True
    return not vmcs[F.EXECUTIVE_VMCS_POINTER] >> physical_width(processor.shape)


@check(
    "smm.executive_vmcs_pointer.revision",
    _POINTER,
    Entry.ENTRY_TO_SMM,
    F.EXECUTIVE_VMCS_POINTER,
    applies=returns_from_smm,
    live=(Live.SMM, Live.MEMORY),
    capability=("IA32_VMX_BASIC[30:0]",),
)
def executive_region_has_the_revision_identifier(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM, the 4 bytes that the executive-VMCS pointer references are the CPU's
    VMCS revision identifier."""
    if not returns_from_smm(vmcs, processor):
        return True
    pointer = vmcs[F.EXECUTIVE_VMCS_POINTER]
    if pointer & 0xFFF or pointer >> physical_width(processor.shape):
        return True
    return read_u32(processor, pointer) == processor.shape.revision_id


@check(
    "smm.executive_vmcs_launched",
    _LAUNCHED,
    Entry.ENTRY_TO_SMM,
    Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT,
    F.EXECUTIVE_VMCS_POINTER,
    applies=_returns_to_guest,
    live=(Live.SMM, Live.VMXON_POINTER, Live.MEMORY),
)
def executive_vmcs_is_launched(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM to a guest that keeps the dual-monitor treatment, the launch state of
    the executive VMCS is launched."""
    if not _returns_to_guest(vmcs, processor):
        return True
    if vmcs.entry & Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT:
        return True
    return _executive(vmcs, processor).launched


@check(
    "smm.deactivate_needs_vmxon_pointer",
    _DEACTIVATE,
    Entry.ENTRY_TO_SMM,
    Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT,
    F.EXECUTIVE_VMCS_POINTER,
    live=(Live.SMM, Live.VMXON_POINTER),
)
def dual_monitor_treatment_ends_with_a_return_to_root(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM with "deactivate dual-monitor treatment" 1, the executive-VMCS pointer
    is the VMXON pointer."""
    return (
        not returns_from_smm(vmcs, processor)
        or not vmcs.entry & Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT
        or _returns_to_root(vmcs, processor)
    )


@check(
    "smm.executive_exec_controls",
    _EXECUTION,
    Entry.ENTRY_TO_SMM,
    *_CONTROLS_BESIDE,
    F.EXECUTIVE_VMCS_POINTER,
    applies=_returns_to_guest,
    live=(Live.SMM, Live.VMXON_POINTER, Live.MEMORY),
    capability=("all that the checks on VM-execution controls depend on",),
)
def executive_controls_pass_the_checks(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM to a guest, the VM-execution controls of the executive VMCS pass all
    checks on VM-execution control fields."""
    if not _returns_to_guest(vmcs, processor):
        return True
    executive = _executive(vmcs, processor).copy()
    for field in _CONTROLS_BESIDE:
        executive[field] = vmcs[field]
    declared = (*entry_controls_execution.check.declared, *entry_controls_ept.check.declared)
    return all(rule.holds(executive, processor) for rule in declared)


@check(
    "smm.no_mtf_injection_to_root",
    _ENTRY,
    Entry.ENTRY_TO_SMM,
    F.EXECUTIVE_VMCS_POINTER,
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | 0x7FF),
    live=(Live.SMM, Live.VMXON_POINTER),
)
def no_mtf_exit_is_injected_into_root_operation(vmcs: Vmcs, processor: Processor) -> bool:
    """A return from SMM to VMX root operation does not inject a pending MTF VM exit."""
    return type_and_vector(vmcs) != _PENDING_MTF or not _returns_to_root(vmcs, processor)


@check(
    "smm.activity_root",
    _GUEST,
    Entry.ENTRY_TO_SMM,
    F.EXECUTIVE_VMCS_POINTER,
    F.GUEST_ACTIVITY_STATE,
    live=(Live.SMM, Live.VMXON_POINTER),
)
def root_operation_does_not_wait_for_sipi(vmcs: Vmcs, processor: Processor) -> bool:
    """For a return from SMM to VMX root operation, the activity state is not wait-for-SIPI."""
    return vmcs[F.GUEST_ACTIVITY_STATE] != Activity.WAIT_FOR_SIPI or not _returns_to_root(
        vmcs, processor
    )
