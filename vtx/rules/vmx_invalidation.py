"""INVEPT and INVVPID.

The numbered comments are the conditions of the instruction reference, in its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64, is_canonical
from vtx.facts.instruction_errors import InstructionError
from vtx.machine.events import Event
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4
from vtx.rules.execution_eptp import eptp_is_valid
from vtx.rules.vmx_conditions import without_vmx_instructions
from vtx.rules.vmx_exits import exit_of
from vtx.rules.vmx_operands import Operand, RegisterOperand, is_register, mode_mask, read_operand
from vtx.rules.vmx_outcomes import (
    fail,
    general_protection,
    invalid_opcode,
    succeed,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["invept", "invvpid"]

# Bits of IA32_VMX_EPT_VPID_CAP.
_CAP_INVEPT, _CAP_INVVPID = 20, 32
_CAP_INVEPT_TYPES = {1: 25, 2: 26}
_CAP_INVVPID_TYPES = {0: 40, 1: 41, 2: 42, 3: 43}
_SINGLE_EPTP = 1
_ONE_ADDRESS, _ALL_VPIDS = 0, 2
_DESCRIPTOR_BYTES = 16
_BAD_OPERAND = InstructionError.INVALID_OPERAND_TO_INVEPT_INVVPID


def invept(
    processor: Processor, kind: int | RegisterOperand, descriptor: Operand
) -> ExitInformation | None:
    """INVEPT: invalidate mappings derived from EPT.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    kind : int or RegisterOperand
        INVEPT type: 1 single-context, 2 global.
    descriptor : int, MemoryOperand or RegisterOperand
        The descriptor of 16 bytes: bits 63:0 EPT pointer, 127:64 reserved.

    Returns
    -------
    ExitInformation or None
        The VM exit that it causes in VMX non-root operation; None after success.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    shape = processor.shape
    # 1. The descriptor must be in memory.
    if is_register(descriptor):
        raise invalid_opcode("INVEPT", "with a register operand")
    # 2. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("INVEPT", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 3. A CPU that has it.
    if not (shape.has_ept and shape.ept_vpid_cap(_CAP_INVEPT)):
        raise invalid_opcode("INVEPT", f"does not exist on {shape.name}")
    # 4. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("INVEPT", "in a mode without VMX")
    # 5. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "invept", descriptor, register=kind)
    # 6. CPL 0.
    if processor.regs.cpl:
        raise general_protection("INVEPT", f"at CPL {processor.regs.cpl}")
    kind = read_operand(processor, kind, 8) & mode_mask(processor)
    # 7. A type that the CPU supports.
    if not _supports(processor, _CAP_INVEPT_TYPES, kind):
        raise fail(processor, "INVEPT", _BAD_OPERAND, f"type {kind:#x} is not supported")
    # 8. Reading the descriptor may fault.
    eptp = read_operand(processor, descriptor, _DESCRIPTOR_BYTES) & MASK64
    # 9. An EPT pointer that VM entry would accept.
    if kind == _SINGLE_EPTP and not eptp_is_valid(processor, eptp):
        raise fail(processor, "INVEPT", _BAD_OPERAND, f"EPTP {eptp:#x} would fail VM entry")
    processor.mmu.invept(kind, eptp)
    succeed(processor, Event.INVALIDATION)
    return None


def _supports(processor: Processor, types: dict[int, int], kind: int) -> bool:
    position = types.get(kind)
    return position is not None and processor.shape.ept_vpid_cap(position)


def invvpid(
    processor: Processor, kind: int | RegisterOperand, descriptor: Operand
) -> ExitInformation | None:
    """INVVPID: invalidate mappings tagged with a VPID.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    kind : int or RegisterOperand
        INVVPID type: 0 individual address, 1 single-context, 2 all contexts, 3 single-context
        retaining globals.
    descriptor : int, MemoryOperand or RegisterOperand
        The descriptor of 16 bytes: bits 15:0 VPID, 63:16 reserved, 127:64 linear address.

    Returns and raises as :func:`invept`.
    """
    shape = processor.shape
    # 1. The descriptor must be in memory.
    if is_register(descriptor):
        raise invalid_opcode("INVVPID", "with a register operand")
    # 2. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("INVVPID", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 3. A CPU that has it.
    if not (shape.has_vpid and shape.ept_vpid_cap(_CAP_INVVPID)):
        raise invalid_opcode("INVVPID", f"does not exist on {shape.name}")
    # 4. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("INVVPID", "in a mode without VMX")
    # 5. In VMX non-root operation it exits.
    if processor.non_root:
        return exit_of(processor, "invvpid", descriptor, register=kind)
    # 6. CPL 0.
    if processor.regs.cpl:
        raise general_protection("INVVPID", f"at CPL {processor.regs.cpl}")
    kind = read_operand(processor, kind, 8) & mode_mask(processor)
    # 7. A type that the CPU supports.
    if not _supports(processor, _CAP_INVVPID_TYPES, kind):
        raise fail(processor, "INVVPID", _BAD_OPERAND, f"type {kind:#x} is not supported")
    # 8. Reading the descriptor may fault.
    value = read_operand(processor, descriptor, _DESCRIPTOR_BYTES)
    vpid, linear = value & 0xFFFF, value >> 64
    _check_descriptor(processor, kind, value)
    processor.mmu.invvpid(kind, vpid, linear)
    succeed(processor, Event.INVALIDATION)
    return None


def _check_descriptor(processor: Processor, kind: int, value: int) -> None:
    vpid, linear = value & 0xFFFF, value >> 64
    # 9. Bits 63:16 of the descriptor are reserved.
    if value & MASK64 & ~0xFFFF:
        raise fail(processor, "INVVPID", _BAD_OPERAND, "descriptor bits 63:16 are not 0")
    # 10. VPID 0 belongs to VMX root operation.
    if kind != _ALL_VPIDS and not vpid:
        raise fail(processor, "INVVPID", _BAD_OPERAND, "VPID 0")
    # 11. A canonical linear address, where there is one.
    width = 57 if processor.regs.cr4 & Cr4.LA57 else 48
    if kind == _ONE_ADDRESS and not is_canonical(linear, width):
        raise fail(processor, "INVVPID", _BAD_OPERAND, f"{linear:#x} is not canonical")
