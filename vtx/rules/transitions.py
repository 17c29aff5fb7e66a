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
from vtx.machine.events import Event
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr0, Cr4, Interruptibility, Rflags
from vtx.rules.transitions_abort import AbortIndicator, VmxAbort, vmx_abort
from vtx.rules.transitions_context import enter_root
from vtx.rules.transitions_guest import load_guest, save_guest
from vtx.rules.transitions_host import load_host
from vtx.rules.transitions_msrs import load_at_exit, store_at_exit
from vtx.rules.transitions_synced import Synced, exchange_for_guest, exchange_for_host, synced

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = [
    "ENTRY_FAILURE",
    "VmxAbort",
    "entry_failure",
    "load_guest_state",
    "record_information",
    "vm_exit",
]

#: Bit 31 of the exit reason: the VM entry failed.
ENTRY_FAILURE = 1 << 31
_VALID = 1 << 31
_TYPE_NMI = 2 << 8
_HARDWARE_EXCEPTION, _HARDWARE_DB = _VALID | 3 << 8, _VALID | 3 << 8 | 1
_TYPE_MASK, _EVENT_MASK = _VALID | 0x700, _VALID | 0x7FF
_NMI_EVENT = _VALID | 0x700
_IA32E_MODE_GUEST = 1 << 9
_NMI = int(Interruptibility.NMI)
_RF = int(Rflags.RF)
_VIRTUAL_NMIS = int(Pin.VIRTUAL_NMIS)
_PREEMPTION_TIMER = int(Pin.ACTIVATE_VMX_PREEMPTION_TIMER)
_PDPTES = struct.Struct("<4Q")
_PDPTE_FIELDS = (
    Field.GUEST_PDPTE0,
    Field.GUEST_PDPTE1,
    Field.GUEST_PDPTE2,
    Field.GUEST_PDPTE3,
)

# The fields that every transition touches, under names that need no look-up in a class.
_GUEST_RIP, _GUEST_RSP, _GUEST_RFLAGS = Field.GUEST_RIP, Field.GUEST_RSP, Field.GUEST_RFLAGS
_ACTIVITY = Field.GUEST_ACTIVITY_STATE
_INTERRUPTIBILITY = Field.GUEST_INTERRUPTIBILITY_STATE
_PENDING_DEBUG = Field.GUEST_PENDING_DEBUG_EXCEPTIONS
_PIN = Field.PIN_BASED_CONTROLS
_TIMER_VALUE = Field.VMX_PREEMPTION_TIMER_VALUE
_HOST_RIP, _HOST_RSP = Field.HOST_RIP, Field.HOST_RSP
_STORE_COUNT, _LOAD_COUNT = Field.VM_EXIT_MSR_STORE_COUNT, Field.VM_EXIT_MSR_LOAD_COUNT
_INJECTED = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_EXIT_REASON, _QUALIFICATION = Field.EXIT_REASON, Field.EXIT_QUALIFICATION
_LINEAR, _PHYSICAL = Field.GUEST_LINEAR_ADDRESS, Field.GUEST_PHYSICAL_ADDRESS
_INTERRUPTION = Field.VM_EXIT_INTERRUPTION_INFORMATION
_INTERRUPTION_CODE = Field.VM_EXIT_INTERRUPTION_ERROR_CODE
_VECTORING = Field.IDT_VECTORING_INFORMATION
_VECTORING_CODE = Field.IDT_VECTORING_ERROR_CODE
_LENGTH = Field.VM_EXIT_INSTRUCTION_LENGTH
_INFORMATION = Field.VM_EXIT_INSTRUCTION_INFORMATION
_EXCEPTION_OR_NMI = ExitReason.EXCEPTION_OR_NMI

#: Exits by an event that the processor finds out during execution, as opposed to an instruction
#: that it was told to stop at: they cost more. Of EXCEPTION_OR_NMI only the faults count.
#: Exits that save pending debug exceptions (SDM, "Saving Non-Register State").
_KEEPS_PENDING = frozenset(
    {
        ExitReason.INIT_SIGNAL,
        ExitReason.IO_SMI,
        ExitReason.OTHER_SMI,
        ExitReason.MONITOR_TRAP_FLAG,
        ExitReason.TPR_BELOW_THRESHOLD,
        ExitReason.VIRTUALIZED_EOI,
        ExitReason.APIC_WRITE,
    }
)
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
    if not exchange_for_guest(processor, vmcs):
        load_guest(processor, synced(processor))
    regs = processor.regs
    values = vmcs.values
    regs.rip = values[_GUEST_RIP]
    regs.rsp = values[_GUEST_RSP]
    regs.rflags = values[_GUEST_RFLAGS]
    regs.activity_state = values[_ACTIVITY]
    blocking = regs.interruptibility_state = values[_INTERRUPTIBILITY]
    regs.pending_debug_exceptions = values[_PENDING_DEBUG]
    pin = values[_PIN]
    # With "virtual NMIs" the bit means virtual-NMI blocking, and NMIs themselves are not blocked.
    processor.nmi_blocked = bool(blocking & _NMI) and not pin & _VIRTUAL_NMIS
    processor.preemption_timer = values[_TIMER_VALUE] if pin & _PREEMPTION_TIMER else None
    processor.monitor_armed = False
    processor.non_root = True
    known = vmcs.synced
    assert type(known) is Synced
    if not known.plan.ia32e_guest and regs.uses_pae_paging:
        _load_guest_pdptes(processor, vmcs)


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
    assert type(known) is Synced
    values = vmcs.values
    _log_exit(processor, values, info)
    record_information(vmcs, info)
    _save_volatile_state(processor, vmcs, info)
    if processor.preemption_timer is not None:
        _stop_preemption_timer(processor, vmcs)
    stores = values[_STORE_COUNT]
    if stores or not exchange_for_host(processor, known):
        save_guest(processor, known)
        _save_by_mode(processor, vmcs)
        if stores:
            store_at_exit(processor)
        _load_host_registers(processor, known)
    if info.interruption_information & _NMI_EVENT == _VALID | _TYPE_NMI:
        # An NMI that exits blocks further NMIs, but only once the exit is complete.
        processor.nmi_blocked = True
    _enter_root_operation(processor, known)
    if values[_LOAD_COUNT]:
        load_at_exit(processor)


def _log_exit(processor: Processor, values: dict[int, int], info: ExitInformation) -> None:
    injected = values[_INJECTED]
    events = processor.events
    reason = info.reason
    rip = info.guest_rip = processor.regs.rip
    record = (
        events.exit_count,
        processor.number,
        processor.steps,
        reason,
        info.qualification,
        rip,
        info.guest_physical_address,
        injected if injected & _VALID else 0,
    )
    fault = reason in _FAULT_EXITS
    if fault and reason == _EXCEPTION_OR_NMI:
        fault = _is_fault(info.interruption_information)
    events.vm_exit(record, fault=fault)


def _is_fault(information: int) -> bool:
    """Tell a fault from what came or was asked for: NMI, INT1, INT3, INTO, and #DB."""
    exception = information & _TYPE_MASK == _HARDWARE_EXCEPTION
    return exception and information & _EVENT_MASK != _HARDWARE_DB


def record_information(vmcs: Vmcs, info: ExitInformation) -> None:
    """Write the VM-exit information fields (SDM, "Recording VM-Exit Information ...")."""
    values = vmcs.values
    values[_EXIT_REASON] = info.reason | info.exit_reason_bits
    values[_QUALIFICATION] = info.qualification
    values[_LINEAR] = info.guest_linear_address
    values[_PHYSICAL] = info.guest_physical_address
    values[_INTERRUPTION] = info.interruption_information
    values[_INTERRUPTION_CODE] = info.interruption_error_code
    values[_VECTORING] = info.idt_vectoring_information
    values[_VECTORING_CODE] = info.idt_vectoring_error_code
    values[_LENGTH] = info.instruction_length
    values[_INFORMATION] = info.instruction_information
    injected = values[_INJECTED]
    if injected & _VALID:
        # The event was delivered, or is now in the IDT-vectoring information.
        vmcs[_INJECTED] = injected & ~_VALID


def _save_volatile_state(processor: Processor, vmcs: Vmcs, info: ExitInformation) -> None:
    """Save what changes from exit to exit: RIP, RSP, RFLAGS, non-register state."""
    regs = processor.regs
    values = vmcs.values
    changed = vmcs.dirty.add
    if values[_GUEST_RIP] != regs.rip:
        values[_GUEST_RIP] = regs.rip
        changed(_GUEST_RIP)
    if values[_GUEST_RSP] != regs.rsp:
        values[_GUEST_RSP] = regs.rsp
        changed(_GUEST_RSP)
    rflags = regs.rflags
    if info.resume_flag is not None:
        rflags = rflags & ~_RF | (_RF if info.resume_flag else 0)
    if values[_GUEST_RFLAGS] != rflags:
        values[_GUEST_RFLAGS] = rflags
        changed(_GUEST_RFLAGS)
    if values[_ACTIVITY] != regs.activity_state:
        values[_ACTIVITY] = regs.activity_state
        changed(_ACTIVITY)
    if values[_INTERRUPTIBILITY] != regs.interruptibility_state:
        values[_INTERRUPTIBILITY] = regs.interruptibility_state
        changed(_INTERRUPTIBILITY)
    pending = info.pending_debug_exceptions
    if pending is None:
        pending = regs.pending_debug_exceptions
        if (
            pending
            and info.reason not in _KEEPS_PENDING
            and not (regs.interruptibility_state & Interruptibility.MOV_SS)
        ):
            # What led to no debug exception at a boundary is gone once an instruction executes.
            pending = 0
    if values[_PENDING_DEBUG] != pending:
        values[_PENDING_DEBUG] = pending
        changed(_PENDING_DEBUG)


def _stop_preemption_timer(processor: Processor, vmcs: Vmcs) -> None:
    if vmcs.exit1 & Exit1.SAVE_VMX_PREEMPTION_TIMER_VALUE:
        assert processor.preemption_timer is not None
        vmcs[_TIMER_VALUE] = processor.preemption_timer
    processor.preemption_timer = None


def _save_by_mode(processor: Processor, vmcs: Vmcs) -> None:
    """Save what depends on the guest's mode: its PDPTEs, and "IA-32e mode guest"."""
    regs = processor.regs
    in_ia32e_mode = regs.in_ia32e_mode
    if not in_ia32e_mode and regs.uses_pae_paging and vmcs.proc2 & Proc2.ENABLE_EPT:
        for field, entry in zip(_PDPTE_FIELDS, regs.pdptes, strict=True):
            vmcs[field] = entry
    entry_controls = vmcs.values[Field.VM_ENTRY_CONTROLS]
    # Where IA32_VMX_MISC[5] says so, "IA-32e mode guest" follows the guest's mode.
    if bool(entry_controls & _IA32E_MODE_GUEST) is not in_ia32e_mode and processor.shape.misc(5):
        vmcs[Field.VM_ENTRY_CONTROLS] = entry_controls ^ _IA32E_MODE_GUEST


def _load_host_registers(processor: Processor, known: Synced) -> None:
    """Load what of the host state comes from a table (SDM, "Loading Host State")."""
    if not known.plan.host_64bit:
        assert processor.vmcs is not None
        _prepare_for_32bit_host(processor, processor.vmcs)
    load_host(processor, known)


def _enter_root_operation(processor: Processor, known: Synced) -> None:
    """Load the rest of the host state, and enter VMX root operation."""
    vmcs = processor.vmcs
    assert vmcs is not None
    regs = processor.regs
    values = vmcs.values
    regs.rip = values[_HOST_RIP]
    regs.rsp = values[_HOST_RSP]
    regs.rflags = 2
    regs.activity_state = 0
    regs.interruptibility_state = 0
    regs.pending_debug_exceptions = 0
    processor.monitor_armed = False
    processor.non_root = False
    # CPL 0 in 64-bit mode, with CR0.PE 1: what VMX instructions ask for.
    processor.root_system = regs.system if known.plan.host_64bit else None
    if not known.plain:
        enter_root(processor, known.proc2)


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
    processor: Processor,
    reason: ExitReason,
    qualification: int = 0,
    check: str | None = None,
    rule: str = "",
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
    info = ExitInformation(
        reason, qualification, exit_reason_bits=ENTRY_FAILURE, check=check, rule=rule
    )
    processor.events.handle(reason)
    processor.events.count(Event.ENTRY_FAILURE)
    values = vmcs.values
    values[Field.EXIT_REASON] = reason | ENTRY_FAILURE
    values[Field.EXIT_QUALIFICATION] = qualification
    processor.preemption_timer = None
    processor.context_vmcs = None
    known = synced(processor)
    _load_host_registers(processor, known)
    _enter_root_operation(processor, known)
    if values[Field.VM_EXIT_MSR_LOAD_COUNT]:
        load_at_exit(processor)
    return info
