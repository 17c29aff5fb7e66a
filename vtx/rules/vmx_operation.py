"""Entering and leaving VMX operation: VMXON and VMXOFF, and VMCALL in VMX root operation.

The numbered comments are the conditions of the instruction reference, in its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import NotSupported
from vtx.facts.instruction_errors import InstructionError
from vtx.facts.msrs import Msr
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4
from vtx.rules.limits import physical_width
from vtx.rules.physical import read_u32
from vtx.rules.vmx_conditions import region_word, without_vmx_instructions
from vtx.rules.vmx_exits import exit_of
from vtx.rules.vmx_operands import Operand, is_register, read_operand
from vtx.rules.vmx_outcomes import (
    fail,
    fail_invalid,
    fail_valid,
    general_protection,
    invalid_opcode,
    succeed,
)
from vtx.rules.vmx_regions import NO_VMCS, write_back

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["vmcall", "vmxoff", "vmxon"]

_FEATURE_LOCK, _FEATURE_INSIDE_SMX, _FEATURE_OUTSIDE_SMX = 1 << 0, 1 << 1, 1 << 2
_BASIC_DUAL_MONITOR = 1 << 49
_SMM_MONITOR_VALID = 1 << 0
_SMM_MONITOR_UNBLOCK_SMI = 1 << 2
_MSEG_BASE = 0xFFFF_F000
_MSEG_FEATURES_OFFSET = 4
_MSEG_FEATURES_RESERVED = 0xFFFF_FFFE
_TRACE_EN = 1 << 0


def vmxon(processor: Processor, operand: Operand) -> ExitInformation | None:
    """VMXON: enter VMX operation.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    operand : int, MemoryOperand or RegisterOperand
        Physical address of the VMXON region, or the 8 bytes in memory that hold it.

    Returns
    -------
    ExitInformation or None
        The VM exit that it causes in VMX non-root operation; None after success.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    regs = processor.regs
    # 1. The operand must be in memory.
    if is_register(operand):
        raise invalid_opcode("VMXON", "with a register operand")
    # 2. Protected mode or 64-bit mode, and CR4.VMXE.
    if without_vmx_instructions(processor) or not regs.cr4 & Cr4.VMXE:
        raise invalid_opcode("VMXON", "in a mode without VMX, or with CR4.VMXE 0")
    # 3. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "vmxon", operand)
    if processor.in_vmx:
        # 4. In VMX root operation, CPL must be 0 ...
        if regs.cpl:
            raise general_protection("VMXON", f"at CPL {regs.cpl}")
        # 5. ... and it fails there without looking at its operand.
        raise fail(processor, "VMXON", InstructionError.VMXON_IN_VMX_ROOT_OPERATION)
    _check_processor_allows_vmxon(processor)
    # 12. Reading the operand may fault.
    pointer = read_operand(processor, operand, 8)
    # 13. The pointer must be aligned to 4 KBytes ...
    if pointer & 0xFFF:
        raise fail_invalid(processor, "VMXON", f"pointer {pointer:#x} is not aligned")
    # 14. ... and within the physical-address width.
    if pointer >> physical_width(processor.shape):
        raise fail_invalid(processor, "VMXON", f"pointer {pointer:#x} is too wide")
    # 15. The region must begin with the revision identifier, bit 31 clear.
    if region_word(processor, pointer) != processor.shape.revision_id:
        raise fail_invalid(processor, "VMXON", "the region has another revision identifier")
    _enter_vmx_operation(processor, pointer)
    succeed(processor)
    return None


def _check_processor_allows_vmxon(processor: Processor) -> None:
    """Raise #GP(0) where privilege, A20M, CR0, CR4 or firmware forbid VMXON: steps 6 to 11."""
    regs = processor.regs
    # 6. CPL 0.
    if regs.cpl:
        raise general_protection("VMXON", f"at CPL {regs.cpl}")
    # 7. Not in A20M mode.
    if processor.a20m:
        raise general_protection("VMXON", "in A20M mode")
    # 8. CR0 and CR4 must hold the bits that VMX operation fixes.
    for value, fixed0, fixed1 in (
        (regs.cr0, Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1),
        (regs.cr4, Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1),
    ):
        must, may = processor.shape.msr(fixed0), processor.shape.msr(fixed1)
        if must & ~value or value & ~may:
            raise general_protection(
                "VMXON", f"with CR0 or CR4 = {value:#x}, against {fixed0.name}"
            )
    control = regs.read_msr(Msr.IA32_FEATURE_CONTROL)
    # 9. IA32_FEATURE_CONTROL must be locked.
    if not control & _FEATURE_LOCK:
        raise general_protection("VMXON", "with IA32_FEATURE_CONTROL unlocked")
    # 10. In SMX operation, bit 1 must allow it.
    if processor.in_smx and not control & _FEATURE_INSIDE_SMX:
        raise general_protection("VMXON", "disabled in SMX operation")
    # 11. Outside SMX operation, bit 2 must allow it.
    if not processor.in_smx and not control & _FEATURE_OUTSIDE_SMX:
        raise general_protection("VMXON", "disabled outside SMX operation")


def _enter_vmx_operation(processor: Processor, pointer: int) -> None:
    processor.in_vmx = True
    processor.non_root = False
    processor.vmxon_pointer = pointer
    processor.vmx_session += 1
    processor.current_vmcs_pointer = NO_VMCS
    processor.vmcs = None
    processor.init_blocked = True
    processor.a20m_blocked = True
    processor.monitor_armed = False
    trace = processor.regs.msrs.get(Msr.IA32_RTIT_CTL, 0)
    if trace & _TRACE_EN and not processor.shape.misc(14):
        # The CPU does not allow Intel Processor Trace in VMX operation.
        processor.regs.msrs[Msr.IA32_RTIT_CTL] = trace & ~_TRACE_EN


def vmxoff(processor: Processor) -> ExitInformation | None:
    """VMXOFF: leave VMX operation (returns and raises as :func:`vmxon`)."""
    regs = processor.regs
    # 1. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMXOFF", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 2. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMXOFF", "in a mode without VMX")
    # 3. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "vmxoff")
    # 4. CPL 0.
    if regs.cpl:
        raise general_protection("VMXOFF", f"at CPL {regs.cpl}")
    # 5. Not in SEAM root operation.
    if processor.in_seam:
        raise general_protection("VMXOFF", "in SEAM root operation")
    # 6. Not under the dual-monitor treatment.
    if processor.dual_monitor_active:
        raise fail(processor, "VMXOFF", InstructionError.VMXOFF_UNDER_DUAL_MONITOR)
    # Active VMCSs might be lost on another CPU; this one keeps them in memory.
    write_back(processor)
    processor.in_vmx = False
    processor.vmxon_pointer = NO_VMCS
    processor.init_blocked = False
    if not regs.msrs.get(Msr.IA32_SMM_MONITOR_CTL, 0) & _SMM_MONITOR_UNBLOCK_SMI:
        processor.smi_blocked = False
    if not processor.in_smx:
        processor.a20m_blocked = False
    processor.monitor_armed = False
    succeed(processor)
    return None


def vmcall(processor: Processor) -> ExitInformation | None:
    """VMCALL: call the VMM from a guest; in VMX root operation, activate the SMM monitor.

    Returns and raises as :func:`vmxon`.

    Raises
    ------
    NotSupported
        The instruction would succeed in VMX root operation: what follows happens in
        system-management mode under an SMM-transfer monitor, which the machine does not have.
    """
    regs = processor.regs
    # 1. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMCALL", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 2. In VMX non-root operation it exits, in any mode and at any CPL.
    if processor.non_root:
        return exit_of(processor, "vmcall")
    # 3. Neither virtual-8086 nor compatibility mode.
    if regs.in_virtual_8086_mode or regs.in_compatibility_mode:
        raise invalid_opcode("VMCALL", "in virtual-8086 or compatibility mode")
    # 4. CPL 0.
    if regs.cpl:
        raise general_protection("VMCALL", f"at CPL {regs.cpl}")
    # 5. Not in SEAM root operation.
    if processor.in_seam:
        raise general_protection("VMCALL", "in SEAM root operation")
    monitor = regs.msrs.get(Msr.IA32_SMM_MONITOR_CTL, 0)
    has_dual_monitor = processor.shape.msr(Msr.IA32_VMX_BASIC) & _BASIC_DUAL_MONITOR
    # 6. Not in SMM, and an SMM monitor must be there to be called.
    if processor.smm or not has_dual_monitor or not monitor & _SMM_MONITOR_VALID:
        raise fail(processor, "VMCALL", InstructionError.VMCALL_IN_VMX_ROOT_OPERATION)
    # 7. Under the dual-monitor treatment it causes an SMM VM exit.
    if processor.dual_monitor_active:
        raise NotSupported("VMCALL causes an SMM VM exit, and there is no SMM-transfer monitor")
    _check_activation(processor, monitor & _MSEG_BASE)
    raise NotSupported("VMCALL activates the dual-monitor treatment, which is not modelled")


def _check_activation(processor: Processor, mseg: int) -> None:
    """Raise VMfail where the dual-monitor treatment cannot be activated: steps 8 to 12."""
    from vtx.rules import areas
    from vtx.rules.check import CHECKS

    vmcs = processor.vmcs
    # 8. A current VMCS.
    if vmcs is None:
        raise fail_invalid(processor, "VMCALL", "there is no current VMCS")
    # 9. Its launch state must be clear.
    if vmcs.launched:
        raise fail_valid(processor, "VMCALL", InstructionError.VMCALL_NON_CLEAR_VMCS)
    # 10. Its VM-exit controls must be valid.
    for check in CHECKS.values():
        if check.area is areas.EXIT_CONTROLS and not check.holds(vmcs, processor):
            error = InstructionError.VMCALL_INVALID_EXIT_CONTROLS
            raise fail_valid(processor, "VMCALL", error, check.rule, check.id)
    # 11. The MSEG header must have the revision identifier that the CPU reports.
    if read_u32(processor, mseg) != processor.shape.msr(Msr.IA32_VMX_MISC) >> 32:
        raise fail_valid(processor, "VMCALL", InstructionError.VMCALL_INCORRECT_MSEG_REVISION_ID)
    # 12. Its SMM-monitor features must be ones that exist (only bit 0 is defined).
    if read_u32(processor, mseg + _MSEG_FEATURES_OFFSET) & _MSEG_FEATURES_RESERVED:
        error = InstructionError.VMCALL_INVALID_SMM_MONITOR_FEATURES
        raise fail_valid(processor, "VMCALL", error)
