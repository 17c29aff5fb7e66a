"""VM entry's loading of guest state, and VM exits (SDM, "VM Entries" and "VM Exits").

The steps of a VM exit, in the manual's order: record information about the exit, save guest
state, store MSRs, load host state, load MSRs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vtx.facts.controls import Exit1, Pin, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.events import Event, ExitRecord
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr0, Cr4, Interruptibility, Rflags
from vtx.rules.transitions_abort import AbortIndicator, VmxAbort, vmx_abort
from vtx.rules.transitions_context import enter_root
from vtx.rules.transitions_msrs import load_at_exit, store_at_exit
from vtx.rules.transitions_state import Synced, load_guest, load_host, save_guest, synced

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["ENTRY_FAILURE", "VmxAbort", "entry_failure", "load_guest_state", "vm_exit"]

#: Bit 31 of the exit reason: the VM entry failed.
ENTRY_FAILURE = 1 << 31
_VALID = 1 << 31
_INTERRUPTION_TYPE = 0x700
_TYPE_NMI = 2 << 8
_IA32E_MODE_GUEST = 1 << 9
_NMI = int(Interruptibility.NMI)
_RF = int(Rflags.RF)
_PDPTES = struct.Struct("<4Q")
_PDPTE_FIELDS = (Field.GUEST_PDPTE0, Field.GUEST_PDPTE1, Field.GUEST_PDPTE2, Field.GUEST_PDPTE3)

#: Exits by an event that the processor finds out during execution, as opposed to an instruction
#: that it was told to stop at: they cost more.
_FAULT_EXITS = frozenset(
    {
        ExitReason.EXCEPTION_OR_NMI,
        ExitReason.EPT_VIOLATION,
        ExitReason.EPT_MISCONFIGURATION,
        ExitReason.PAGE_MODIFICATION_LOG_FULL,
        ExitReason.SPP_RELATED_EVENT,
        ExitReason.APIC_ACCESS,
    }
)


def load_guest_state(processor: Processor) -> None:
    """Load the guest-state area of the current VMCS, and enter VMX non-root operation.

    SDM, "Loading Guest State" and "Special Features of VM Entry". The MSR-load area and event
    injection come after this; so does what translation depends on, which MSRs can change.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    regs = processor.regs
    load_guest(processor, synced(vmcs, processor.shape))
    values = vmcs.values
    regs.rip = values[Field.GUEST_RIP]
    regs.rsp = values[Field.GUEST_RSP]
    regs.rflags = values[Field.GUEST_RFLAGS]
    regs.activity_state = values[Field.GUEST_ACTIVITY_STATE]
    regs.interruptibility_state = values[Field.GUEST_INTERRUPTIBILITY_STATE]
    regs.pending_debug_exceptions = values[Field.GUEST_PENDING_DEBUG_EXCEPTIONS]
    if regs.uses_pae_paging:
        _load_guest_pdptes(processor, vmcs)
    pin = values[Field.PIN_BASED_CONTROLS]
    # With "virtual NMIs" the bit means virtual-NMI blocking, and NMIs themselves are not blocked.
    virtual_nmis = pin & Pin.VIRTUAL_NMIS
    processor.nmi_blocked = not virtual_nmis and bool(regs.interruptibility_state & _NMI)
    processor.monitor_armed = False
    processor.preemption_timer = (
        values[Field.VMX_PREEMPTION_TIMER_VALUE]
        if pin & Pin.ACTIVATE_VMX_PREEMPTION_TIMER
        else None
    )
    processor.non_root = True


def _load_guest_pdptes(processor: Processor, vmcs: Vmcs) -> None:
    """Load the PDPTEs of a guest that uses PAE paging."""
    regs = processor.regs
    if vmcs.proc2 & Proc2.ENABLE_EPT:
        p0, p1, p2, p3 = (vmcs.values[field] for field in _PDPTE_FIELDS)
    else:
        p0, p1, p2, p3 = _PDPTES.unpack(processor.memory.read(regs.cr3 & 0xFFFF_FFE0, 32))
    regs.pdptes = (p0, p1, p2, p3)


def vm_exit(processor: Processor, info: ExitInformation) -> None:
    """Leave VMX non-root operation by a VM exit.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation; RIP is what the guest-state area gets.
    info : ExitInformation
        What the VM-exit information fields get.

    Raises
    ------
    VmxAbort
        The exit could not be completed; the region of the VMCS holds the abort indicator.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    known = vmcs.synced
    assert isinstance(known, Synced)
    values = vmcs.values
    _log_exit(processor, vmcs, info)
    _record_information(vmcs, info)
    _save_guest_state(processor, vmcs, known, info)
    if values[Field.VM_EXIT_MSR_STORE_COUNT]:
        store_at_exit(processor)
    if info.interruption_information & (_VALID | _INTERRUPTION_TYPE) == _VALID | _TYPE_NMI:
        # An NMI that exits blocks further NMIs, but only once the exit is complete.
        processor.nmi_blocked = True
    _load_host_state(processor, known)
    if values[Field.VM_EXIT_MSR_LOAD_COUNT]:
        load_at_exit(processor)


def _log_exit(processor: Processor, vmcs: Vmcs, info: ExitInformation) -> None:
    injected = vmcs.values[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
    reason = info.reason
    processor.events.vm_exit(
        ExitRecord(
            processor.events.exit_count,
            processor.number,
            processor.steps,
            reason,
            info.qualification,
            processor.regs.rip,
            info.guest_physical_address,
            injected if injected & _VALID else 0,
        ),
        fault=reason in _FAULT_EXITS,
    )


def _record_information(vmcs: Vmcs, info: ExitInformation) -> None:
    """Write the VM-exit information fields (SDM, "Recording VM-Exit Information ...")."""
    values = vmcs.values
    values[Field.EXIT_REASON] = info.reason | info.exit_reason_bits
    values[Field.EXIT_QUALIFICATION] = info.qualification
    values[Field.GUEST_LINEAR_ADDRESS] = info.guest_linear_address
    values[Field.GUEST_PHYSICAL_ADDRESS] = info.guest_physical_address
    values[Field.VM_EXIT_INTERRUPTION_INFORMATION] = info.interruption_information
    values[Field.VM_EXIT_INTERRUPTION_ERROR_CODE] = info.interruption_error_code
    values[Field.IDT_VECTORING_INFORMATION] = info.idt_vectoring_information
    values[Field.IDT_VECTORING_ERROR_CODE] = info.idt_vectoring_error_code
    values[Field.VM_EXIT_INSTRUCTION_LENGTH] = info.instruction_length
    values[Field.VM_EXIT_INSTRUCTION_INFORMATION] = info.instruction_information
    injected = values[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
    if injected & _VALID:
        # The event was delivered, or is now in the IDT-vectoring information.
        vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = injected & ~_VALID


def _save_guest_state(
    processor: Processor, vmcs: Vmcs, known: Synced, info: ExitInformation
) -> None:
    """Save what changed since VM entry (SDM, "Saving Guest State")."""
    regs = processor.regs
    values = vmcs.values
    save_guest(processor, known)
    rflags = regs.rflags
    if info.resume_flag is not None:
        rflags = rflags | _RF if info.resume_flag else rflags & ~_RF
    pending = info.pending_debug_exceptions
    if pending is None:
        pending = regs.pending_debug_exceptions
    dirty = vmcs.dirty
    for field, value in (
        (Field.GUEST_RIP, regs.rip),
        (Field.GUEST_RSP, regs.rsp),
        (Field.GUEST_RFLAGS, rflags),
        (Field.GUEST_ACTIVITY_STATE, regs.activity_state),
        (Field.GUEST_INTERRUPTIBILITY_STATE, regs.interruptibility_state),
        (Field.GUEST_PENDING_DEBUG_EXCEPTIONS, pending),
    ):
        if values[field] != value:
            values[field] = value
            dirty.add(field)
    _save_by_control(processor, vmcs)


def _save_by_control(processor: Processor, vmcs: Vmcs) -> None:
    """Save what is saved on some conditions only: timer, PDPTEs, IA-32e mode."""
    regs = processor.regs
    if processor.preemption_timer is not None:
        if vmcs.exit1 & Exit1.SAVE_VMX_PREEMPTION_TIMER_VALUE:
            vmcs[Field.VMX_PREEMPTION_TIMER_VALUE] = processor.preemption_timer
        processor.preemption_timer = None
    in_ia32e_mode = regs.in_ia32e_mode
    if not in_ia32e_mode and regs.uses_pae_paging and vmcs.proc2 & Proc2.ENABLE_EPT:
        for field, entry in zip(_PDPTE_FIELDS, regs.pdptes, strict=True):
            vmcs[field] = entry
    entry_controls = vmcs.values[Field.VM_ENTRY_CONTROLS]
    # Where IA32_VMX_MISC[5] says so, "IA-32e mode guest" follows the guest's mode.
    if bool(entry_controls & _IA32E_MODE_GUEST) is not in_ia32e_mode and processor.shape.misc(5):
        vmcs[Field.VM_ENTRY_CONTROLS] = entry_controls ^ _IA32E_MODE_GUEST


def _load_host_state(processor: Processor, known: Synced) -> None:
    """Load host state, and enter VMX root operation (SDM, "Loading Host State")."""
    vmcs = processor.vmcs
    assert vmcs is not None
    regs = processor.regs
    values = vmcs.values
    if not known.plan.host_64bit:
        _prepare_for_32bit_host(processor, vmcs)
    load_host(processor, known)
    regs.rip = values[Field.HOST_RIP]
    regs.rsp = values[Field.HOST_RSP]
    regs.rflags = 2
    regs.activity_state = 0
    regs.interruptibility_state = 0
    regs.pending_debug_exceptions = 0
    processor.monitor_armed = False
    processor.non_root = False
    enter_root(processor)


def _prepare_for_32bit_host(processor: Processor, vmcs: Vmcs) -> None:
    """Do what only an exit to a VMM outside IA-32e mode needs: mode and PDPTEs.

    Raises
    ------
    VmxAbort
        Indicator 6: the processor was in IA-32e mode; 2: a PDPTE of the host is invalid.
    """
    regs = processor.regs
    if regs.in_ia32e_mode:
        raise vmx_abort(processor, AbortIndicator.LEAVING_IA32E_MODE)
    values = vmcs.values
    if not (values[Field.HOST_CR4] & Cr4.PAE and values[Field.HOST_CR0] & Cr0.PG):
        return
    cr3 = values[Field.HOST_CR3]
    p0, p1, p2, p3 = _PDPTES.unpack(processor.memory.read(cr3 & 0xFFFF_FFE0, 32))
    reserved = 0x1E6 | ~((1 << processor.shape.maxphyaddr) - 1)
    for number, entry in enumerate((p0, p1, p2, p3)):
        if entry & 1 and entry & reserved:
            detail = f"PDPTE{number} is {entry:#x}"
            raise vmx_abort(processor, AbortIndicator.HOST_PDPTES, detail)
    regs.pdptes = (p0, p1, p2, p3)


def entry_failure(
    processor: Processor, reason: ExitReason, qualification: int = 0, check: str | None = None
) -> ExitInformation:
    """Fail a VM entry after its checks on controls and host state (SDM, "VM-Entry Failures ...").

    Exit reason and qualification are recorded, host state and the VM-exit MSR-load area are
    loaded; nothing else of a VM exit happens.

    Returns
    -------
    ExitInformation
        What was recorded.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    info = ExitInformation(reason, qualification, exit_reason_bits=ENTRY_FAILURE, check=check)
    processor.events.handle(reason)
    processor.events.count(Event.ENTRY_FAILURE)
    values = vmcs.values
    values[Field.EXIT_REASON] = reason | ENTRY_FAILURE
    values[Field.EXIT_QUALIFICATION] = qualification
    processor.preemption_timer = None
    _load_host_state(processor, synced(vmcs, processor.shape))
    if values[Field.VM_EXIT_MSR_LOAD_COUNT]:
        load_at_exit(processor)
    return info
