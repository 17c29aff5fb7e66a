"""VMLAUNCH and VMRESUME: from the instruction's own conditions to the guest's first instruction.

The numbered comments are the conditions of the instruction reference, in its order; VMRESUME has
one more than VMLAUNCH, so its numbers stand second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import VMfailValid
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instruction_errors import InstructionError
from vtx.machine.events import GUEST, Event
from vtx.machine.registers import Interruptibility, Rflags
from vtx.machine.vmcs import NO_LINK
from vtx.rules import check as checks
from vtx.rules.injected import VALID
from vtx.rules.injection import inject
from vtx.rules.transitions import entry_failure, load_guest_state
from vtx.rules.transitions_context import leave_root
from vtx.rules.transitions_msrs import load_at_entry
from vtx.rules.transitions_synced import Synced
from vtx.rules.vmx_conditions import without_vmx_instructions
from vtx.rules.vmx_exits import exit_of
from vtx.rules.vmx_hints import NO_VMCS
from vtx.rules.vmx_outcomes import (
    fail_invalid,
    fail_valid,
    general_protection,
    invalid_opcode,
)
from vtx.rules.vmx_regions import activate

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["vmlaunch", "vmresume"]

_MSR_LOAD_COUNT = Field.VM_ENTRY_MSR_LOAD_COUNT
_INJECTED = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_VM_ENTRY = int(Event.VM_ENTRY)
_VMCS_SHADOWING = int(Proc2.VMCS_SHADOWING)
_VM = int(Rflags.VM)
_MOV_SS = int(Interruptibility.MOV_SS)


def vmlaunch(processor: Processor) -> ExitInformation | None:
    """VMLAUNCH: enter the guest of the current VMCS for the first time.

    Returns
    -------
    ExitInformation or None
        None: the guest is about to execute. Otherwise a VM exit: if the processor is in VMX
        non-root operation it is still to be performed (the instruction was executed there, or
        the delivery of the injected event exits); if not, the entry failed (bit 31 of the exit
        reason) and host state has been loaded.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    info = _check_instruction(processor, "VMLAUNCH")
    if info is not None:
        return info
    vmcs = processor.vmcs
    assert vmcs is not None
    _check_clear(processor, vmcs)
    return _enter_guest(processor, "VMLAUNCH", vmcs)


def vmresume(processor: Processor) -> ExitInformation | None:
    """VMRESUME: enter the guest of the current VMCS again (as :func:`vmlaunch`)."""
    vmcs, regs = processor.vmcs, processor.regs
    if (
        regs.system is not processor.root_system
        or regs.rflags & _VM
        or regs.interruptibility_state & _MOV_SS
        or vmcs is None
        or vmcs.shadow
    ):
        info = _check_instruction(processor, "VMRESUME")
        if info is not None:
            return info
        vmcs = processor.vmcs
        assert vmcs is not None
    if not vmcs.launched or vmcs.session != processor.vmx_session:
        _check_launched(processor, vmcs)
    return _enter_guest(processor, "VMRESUME", vmcs)


def _check_instruction(processor: Processor, name: str) -> ExitInformation | None:
    """Make the instruction's own conditions before the launch state; return its VM exit, if any."""
    # 1. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode(name, "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 2. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode(name, "in a mode without VMX")
    # 3. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, name.lower())
    # 4. CPL 0.
    if processor.regs.cpl:
        raise general_protection(name, f"at CPL {processor.regs.cpl}")
    vmcs = processor.vmcs
    # 5. A current VMCS ...
    if vmcs is None:
        raise fail_invalid(processor, name, "there is no current VMCS", NO_VMCS)
    # 6. ... that is no shadow VMCS.
    if vmcs.shadow:
        raise fail_invalid(processor, name, "the current VMCS is a shadow VMCS")
    # 7. No blocking by MOV SS.
    if processor.regs.interruptibility_state & _MOV_SS:
        error = InstructionError.ENTRY_EVENTS_BLOCKED_BY_MOV_SS
        raise fail_valid(processor, name, error, check="basic.mov_ss_blocking")
    return None


def _check_clear(processor: Processor, vmcs: Vmcs) -> None:
    # 8. The launch state must be clear for VMLAUNCH.
    if vmcs.launched:
        error = InstructionError.VMLAUNCH_NON_CLEAR_VMCS
        raise fail_valid(processor, "VMLAUNCH", error, check="basic.vmlaunch_launch_state")


def _check_launched(processor: Processor, vmcs: Vmcs) -> None:
    # 8. The launch state must be launched for VMRESUME, ...
    if not vmcs.launched:
        error = InstructionError.VMRESUME_NON_LAUNCHED_VMCS
        raise fail_valid(processor, "VMRESUME", error, check="basic.vmresume_launch_state")
    # 9. ... since the last VMXON.
    if vmcs.session != processor.vmx_session:
        raise fail_valid(processor, "VMRESUME", InstructionError.VMRESUME_AFTER_VMXOFF)


def _enter_guest(processor: Processor, name: str, vmcs: Vmcs) -> ExitInformation | None:
    """Check, load guest state, inject: the VM entry proper."""
    # 9/10. Controls, 10/11. host state, 11/12. the executive VMCS of a return from SMM (VMfail);
    # 12/13. guest state (a failed entry).
    failure = checks.entry_failure(vmcs, processor)
    if failure is not None:
        if failure.error is not None:
            raise _vmfail(processor, name, failure)
        return _fail_guest_checks(processor, failure)
    nmi_blocked = processor.nmi_blocked
    load_guest_state(processor)
    known = vmcs.synced
    assert type(known) is Synced
    failed = None
    if vmcs.values[_MSR_LOAD_COUNT]:
        failed = _load_msrs(processor, known)
    # 14/15. A machine check during VM entry.
    if failed is None and processor.pending.machine_check:
        processor.pending.machine_check = False
        failed = ExitReason.ENTRY_FAILURE_MACHINE_CHECK, 0, None
    if failed is not None:
        info = entry_failure(processor, *failed)
        processor.nmi_blocked = nmi_blocked
        return info
    if known.fresh or not (known.plain and vmcs.launched):
        _complete_entry(processor, vmcs, known)
    vmcs.dirty.clear()
    events = processor.events
    events.row[_VM_ENTRY] += 1
    exits = None
    if vmcs.values[_INJECTED] & VALID or processor.regs.activity_state:
        exits = inject(processor)
    events.handle(GUEST)
    return exits


def _vmfail(processor: Processor, name: str, failure: checks.Failure) -> VMfailValid:
    assert failure.error is not None
    error = InstructionError(failure.error)
    return fail_valid(processor, name, error, failure.check.rule, failure.check.id)


def _fail_guest_checks(processor: Processor, failure: checks.Failure) -> ExitInformation:
    assert failure.reason is not None
    reason = ExitReason(failure.reason)
    check = failure.check
    return entry_failure(processor, reason, failure.qualification or 0, check.id, check.rule)


def _load_msrs(processor: Processor, known: Synced) -> tuple[ExitReason, int, str | None] | None:
    known.fresh = True
    # 13/14. The VM-entry MSR-load area.
    broken = load_at_entry(processor)
    if broken is None:
        return None
    number, check = broken
    return ExitReason.ENTRY_FAILURE_MSR_LOADING, number, check.id


def _complete_entry(processor: Processor, vmcs: Vmcs, known: Synced) -> None:
    """Do what remains once nothing can fail any more: launch state, shadow VMCS, translation."""
    if not vmcs.launched:
        vmcs.launched = True
        vmcs.session = processor.vmx_session
    if known.proc2 & _VMCS_SHADOWING and vmcs.values[Field.VMCS_LINK_POINTER] != NO_LINK:
        processor.link_vmcs = activate(processor, vmcs.values[Field.VMCS_LINK_POINTER])
    leave_root(processor, known.proc2, fresh=known.fresh)
