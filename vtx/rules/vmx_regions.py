"""VMCS regions in memory: VMCLEAR, VMPTRLD and VMPTRST.

Between VMPTRLD and VMCLEAR a VMCS is active: the logical processor keeps its data, and the region
in memory may be stale. Several VMCSs can be active at a time; one of them is current.

The numbered comments are the conditions of the instruction reference, in its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Proc2
from vtx.facts.instruction_errors import InstructionError
from vtx.machine.exit_information import ExitInformation
from vtx.machine.vmcs import REGION_BYTES, SHADOW_BIT, Vmcs
from vtx.rules.vmx_conditions import bad_address, region_word, without_vmx_instructions
from vtx.rules.vmx_exits import exit_of
from vtx.rules.vmx_operands import (
    MemoryOperand,
    Operand,
    RegisterOperand,
    is_register,
    read_operand,
    write_memory,
)
from vtx.rules.vmx_outcomes import (
    fail,
    general_protection,
    invalid_opcode,
    succeed,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["NO_VMCS", "activate", "vmclear", "vmptrld", "vmptrst", "write_back"]

#: The current-VMCS pointer when there is no current VMCS.
NO_VMCS = 0xFFFF_FFFF_FFFF_FFFF
#: Revision identifier and abort indicator belong to software and to VMX aborts.
_OWN_DATA = 8


def activate(processor: Processor, address: int) -> Vmcs:
    """Return the data of the VMCS at `address`, which is active on this processor from now on."""
    vmcs = processor.active_vmcss.get(address)
    if vmcs is None:
        vmcs = Vmcs.from_bytes(processor.memory.read(address, REGION_BYTES))
        processor.active_vmcss[address] = vmcs
    return vmcs


def write_back(processor: Processor) -> None:
    """Write the data of all active VMCSs to their regions; none is active or current after it."""
    for address, vmcs in processor.active_vmcss.items():
        _write_region(processor, address, vmcs)
    processor.active_vmcss.clear()
    processor.current_vmcs_pointer = NO_VMCS
    processor.vmcs = None
    processor.root_system = None


def _write_region(processor: Processor, address: int, vmcs: Vmcs) -> None:
    content = vmcs.content(processor.shape.fields)
    processor.memory.write(address + _OWN_DATA, content[_OWN_DATA:])


def vmclear(processor: Processor, operand: Operand) -> ExitInformation | None:
    """VMCLEAR: write a VMCS to its region and set its launch state to clear.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    operand : int, MemoryOperand or RegisterOperand
        Physical address of the region, or the 8 bytes in memory that hold it.

    Returns
    -------
    ExitInformation or None
        The VM exit that it causes in VMX non-root operation; None after success.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    # 1. The operand must be in memory.
    if is_register(operand):
        raise invalid_opcode("VMCLEAR", "with a register operand")
    # 2. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMCLEAR", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 3. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMCLEAR", "in a mode without VMX")
    # 4. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "vmclear", operand)
    # 5. CPL 0.
    if processor.regs.cpl:
        raise general_protection("VMCLEAR", f"at CPL {processor.regs.cpl}")
    # 6. Reading the operand may fault.
    address = read_operand(processor, operand, 8)
    # 7. The address must be aligned and within the physical-address width.
    if bad_address(processor, address):
        raise fail(processor, "VMCLEAR", InstructionError.VMCLEAR_INVALID_PHYSICAL_ADDRESS)
    # 8. It must not be the VMXON pointer.
    if address == processor.vmxon_pointer:
        raise fail(processor, "VMCLEAR", InstructionError.VMCLEAR_WITH_VMXON_POINTER)
    _clear(processor, address)
    succeed(processor)
    return None


def _clear(processor: Processor, address: int) -> None:
    if address + REGION_BYTES <= processor.memory.size_bytes:
        vmcs = activate(processor, address)
        vmcs.launched = False
        _write_region(processor, address, vmcs)
    processor.active_vmcss.pop(address, None)
    if address == processor.current_vmcs_pointer:
        processor.current_vmcs_pointer = NO_VMCS
        processor.vmcs = None
        processor.root_system = None


def vmptrld(processor: Processor, operand: Operand) -> ExitInformation | None:
    """VMPTRLD: make a VMCS active and current (operands, returns, raises: :func:`vmclear`)."""
    # 1. The operand must be in memory.
    if is_register(operand):
        raise invalid_opcode("VMPTRLD", "with a register operand")
    # 2. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMPTRLD", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 3. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMPTRLD", "in a mode without VMX")
    # 4. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "vmptrld", operand)
    # 5. CPL 0.
    if processor.regs.cpl:
        raise general_protection("VMPTRLD", f"at CPL {processor.regs.cpl}")
    # 6. Reading the operand may fault.
    address = read_operand(processor, operand, 8)
    # 7. The address must be aligned and within the physical-address width.
    if bad_address(processor, address):
        raise fail(processor, "VMPTRLD", InstructionError.VMPTRLD_INVALID_PHYSICAL_ADDRESS)
    # 8. It must not be the VMXON pointer.
    if address == processor.vmxon_pointer:
        raise fail(processor, "VMPTRLD", InstructionError.VMPTRLD_WITH_VMXON_POINTER)
    word = region_word(processor, address)
    # 9. The region must have the processor's revision identifier.
    if word & ~SHADOW_BIT != processor.shape.revision_id:
        raise fail(processor, "VMPTRLD", InstructionError.VMPTRLD_INCORRECT_REVISION_ID)
    # 10. A shadow VMCS needs a processor that supports VMCS shadowing.
    if word & SHADOW_BIT and not processor.shape.supports(Proc2.VMCS_SHADOWING):
        raise fail(processor, "VMPTRLD", InstructionError.VMPTRLD_INCORRECT_REVISION_ID)
    processor.vmcs = activate(processor, address)
    processor.current_vmcs_pointer = address
    succeed(processor)
    return None


def vmptrst(
    processor: Processor, destination: MemoryOperand | RegisterOperand | None = None
) -> int | ExitInformation:
    """VMPTRST: store the current-VMCS pointer.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    destination : MemoryOperand or RegisterOperand, optional
        Where it goes; None only returns it.

    Returns
    -------
    int or ExitInformation
        The current-VMCS pointer, all ones if there is none; or the VM exit that the instruction
        causes in VMX non-root operation.

    Raises
    ------
    GuestFault
    """
    # 1. The operand must be in memory.
    if isinstance(destination, RegisterOperand):
        raise invalid_opcode("VMPTRST", "with a register operand")
    # 2. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMPTRST", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 3. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMPTRST", "in a mode without VMX")
    # 4. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "vmptrst", destination or 0)
    # 5. CPL 0.
    if processor.regs.cpl:
        raise general_protection("VMPTRST", f"at CPL {processor.regs.cpl}")
    pointer = processor.current_vmcs_pointer
    # 6. Writing the operand may fault.
    if destination is not None:
        write_memory(processor, destination, pointer, 8)
    succeed(processor)
    return pointer
