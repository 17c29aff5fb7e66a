"""VMREAD and VMWRITE, in VMX root operation and, with VMCS shadowing, in non-root operation.

The numbered comments are the conditions of the instruction reference, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtx.bits import MASK32
from vtx.errors import UsageError, VtxError
from vtx.facts.controls import Proc2
from vtx.facts.fields import ACCESS_HIGH, FIELDS, Field, Width, mask
from vtx.facts.instruction_errors import InstructionError
from vtx.machine.events import Event
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import GPR_NAMES, Rflags
from vtx.machine.vmcs import NO_LINK, Vmcs
from vtx.rules.physical import read_u8
from vtx.rules.vmx_conditions import without_vmx_instructions
from vtx.rules.vmx_hints import NO_VMCS
from vtx.rules.vmx_operands import (
    MemoryOperand,
    Operand,
    RegisterOperand,
    mode_mask,
    read_operand,
    write_memory,
)
from vtx.rules.vmx_outcomes import (
    STATUS_FLAGS,
    fail_invalid,
    fail_valid,
    general_protection,
    invalid_opcode,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.shape import Shape

__all__ = ["exits", "field_reader", "field_writer", "vmread", "vmwrite"]

_VMREAD, _VMWRITE = int(Event.VMREAD), int(Event.VMWRITE)
_FLAGS = ~STATUS_FLAGS
_VM = int(Rflags.VM)
#: RFLAGS after a VM exit.
_CLEAR = int(Rflags.RESERVED_1)
#: Encodings that access the high half of a 64-bit field, with that field.
_HIGH: dict[int, Field] = {
    field | ACCESS_HIGH: field for field, info in FIELDS.items() if info.width is Width.W64
}
_MASKS: dict[int, int] = {field: mask(field) for field in FIELDS}
_BITMAP_ENCODINGS = 1 << 15


def exits(processor: Processor, encoding: int, bitmap: Field) -> bool:
    """Tell whether VMREAD or VMWRITE exits in VMX non-root operation, for all VMCS shadowing."""
    assert processor.vmcs is not None
    # 3. Without VMCS shadowing it does.
    if not processor.vmcs.proc2 & Proc2.VMCS_SHADOWING:
        return True
    # 4. With an encoding beyond 15 bits it does.
    if encoding >= _BITMAP_ENCODINGS:
        return True
    # 5. With its bit set in the bitmap it does.
    byte = read_u8(processor, processor.vmcs[bitmap] + (encoding >> 3))
    return bool(byte >> (encoding & 7) & 1)


def _exit(processor: Processor, name: str, **operands: Operand | None) -> ExitInformation:
    """Return the VM exit of VMREAD or VMWRITE."""
    # The tables of what exits ask this module whether it does.
    from vtx.rules.vmx_exits import exit_of

    return exit_of(processor, name, **operands)


def _target(processor: Processor) -> Vmcs | None:
    """Return the VMCS that is accessed: the current one, in non-root operation the linked one."""
    if not processor.non_root:
        return processor.vmcs
    assert processor.vmcs is not None
    return None if processor.vmcs[Field.VMCS_LINK_POINTER] == NO_LINK else processor.link_vmcs


def _is_supported(shape: Shape, encoding: int) -> bool:
    return encoding in shape.fields or _HIGH.get(encoding) in shape.fields


def vmread(
    processor: Processor,
    encoding: int,
    destination: MemoryOperand | RegisterOperand | None = None,
) -> int | ExitInformation:
    """VMREAD: read a field.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    encoding : int
        The field, or the encoding of its high half (bit 0 set).
    destination : MemoryOperand or RegisterOperand, optional
        Where the value goes; None only returns it.

    Returns
    -------
    int or ExitInformation
        The value, of 64 bits in 64-bit mode and 32 bits otherwise; or the VM exit that the
        instruction causes in VMX non-root operation.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    regs = processor.regs
    flags = regs.rflags
    if regs.system is processor.root_system and not flags & _VM and encoding in processor.fields:
        # Conditions 1 to 8 are known to be met.
        value = processor.vmcs.values[encoding]  # type: ignore[union-attr]
        if destination is not None:
            _store(processor, destination, value)
        regs.rflags = flags & _FLAGS
        processor.events.row[_VMREAD] += 1
        return value
    return _vmread(processor, encoding, destination)


def field_reader(processor: Processor) -> Callable[[int], int | ExitInformation]:
    """Return VMREAD to no operand on one processor, for those who read many fields.

    Parameters
    ----------
    processor : Processor
        Who executes it.

    Returns
    -------
    callable
        ``read(encoding)`` is ``vmread(processor, encoding)``.
    """
    fields = processor.fields

    def read(encoding: int) -> int | ExitInformation:
        regs = processor.regs
        if regs.system is processor.root_system and regs.rflags == _CLEAR and encoding in fields:
            # Conditions 1 to 8 are known to be met, and the status flags are clear already.
            processor.events.row[_VMREAD] += 1
            return processor.vmcs.values[encoding]  # type: ignore[union-attr]
        return vmread(processor, encoding)

    return read


def _vmread(
    processor: Processor, encoding: int, destination: MemoryOperand | RegisterOperand | None
) -> int | ExitInformation:
    """VMREAD step by step."""
    regs = processor.regs
    # 1. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMREAD", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 2. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMREAD", "in a mode without VMX")
    if not regs.in_64bit_mode:
        encoding &= MASK32
    if processor.non_root and exits(processor, encoding, Field.VMREAD_BITMAP_ADDRESS):
        return _exit(processor, "vmread", encoding=encoding, destination=destination)
    # 6. CPL 0.
    if regs.cpl:
        raise general_protection("VMREAD", f"at CPL {regs.cpl}")
    vmcs = _target(processor)
    # 7. A VMCS to read.
    if vmcs is None:
        raise fail_invalid(processor, "VMREAD", "there is no VMCS to read", NO_VMCS)
    value = _read_field(processor, vmcs, encoding) & mode_mask(processor)
    # 9. Writing a memory operand may fault.
    if destination is not None:
        _store(processor, destination, value)
    regs.rflags &= _FLAGS
    if not processor.non_root:
        processor.events.count(Event.VMREAD)
    return value


def _unsupported(processor: Processor, name: str, encoding: object) -> VtxError:
    """Return what to raise for an encoding that names no field of this CPU."""
    if not isinstance(encoding, int):
        return UsageError(f"{name} takes a member of vtx.Field or its encoding, not {encoding!r}")
    why = f"no field of this CPU has encoding {encoding:#x}"
    return fail_valid(processor, name, InstructionError.UNSUPPORTED_VMCS_COMPONENT, why)


def _read_field(processor: Processor, vmcs: Vmcs, encoding: int) -> int:
    # 8. A field that the CPU has.
    if not _is_supported(processor.shape, encoding):
        raise _unsupported(processor, "VMREAD", encoding)
    return vmcs.values[_HIGH[encoding]] >> 32 if encoding & 1 else vmcs.values[encoding]


def _store(processor: Processor, destination: MemoryOperand | RegisterOperand, value: int) -> None:
    if isinstance(destination, RegisterOperand):
        setattr(processor.regs, GPR_NAMES[destination.number], value)
    else:
        write_memory(processor, destination, value, 8 if processor.regs.in_64bit_mode else 4)


def vmwrite(processor: Processor, encoding: int, source: Operand) -> ExitInformation | None:
    """VMWRITE: write a field.

    Parameters
    ----------
    processor : Processor
        Who executes it.
    encoding : int
        The field, or the encoding of its high half (bit 0 set).
    source : int, MemoryOperand or RegisterOperand
        The value, or where it is; bits beyond the field's width are ignored.

    Returns
    -------
    ExitInformation or None
        The VM exit that it causes in VMX non-root operation; None after success.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    """
    regs = processor.regs
    flags = regs.rflags
    if (
        regs.system is processor.root_system
        and not flags & _VM
        and encoding in processor.writable_fields
        and source.__class__ is int
    ):
        # Conditions 1 to 10 are known to be met.
        vmcs = processor.vmcs
        vmcs.values[encoding] = source & _MASKS[encoding]  # type: ignore[union-attr]
        vmcs.dirty.add(encoding)  # type: ignore[union-attr]
        regs.rflags = flags & _FLAGS
        processor.events.row[_VMWRITE] += 1
        return None
    return _vmwrite(processor, encoding, source)


def field_writer(processor: Processor) -> Callable[[int, Operand], ExitInformation | None]:
    """Return VMWRITE on one processor: ``write(encoding, source)`` is :func:`vmwrite`."""
    writable = processor.writable_fields

    def write(encoding: int, source: Operand) -> ExitInformation | None:
        regs = processor.regs
        if (
            regs.system is processor.root_system
            and regs.rflags == _CLEAR
            and encoding in writable
            and source.__class__ is int
        ):
            # Conditions 1 to 10 are known to be met, and the status flags are clear already.
            vmcs = processor.vmcs
            vmcs.values[encoding] = source & _MASKS[encoding]  # type: ignore[union-attr]
            vmcs.dirty.add(encoding)  # type: ignore[union-attr]
            processor.events.row[_VMWRITE] += 1
            return None
        return vmwrite(processor, encoding, source)

    return write


def _vmwrite(processor: Processor, encoding: int, source: Operand) -> ExitInformation | None:
    """VMWRITE step by step."""
    regs = processor.regs
    # 1. VMX operation.
    if not processor.in_vmx:
        raise invalid_opcode("VMWRITE", "outside VMX operation: execute VMXON first, cpu.vmxon()")
    # 2. Protected mode or 64-bit mode.
    if without_vmx_instructions(processor):
        raise invalid_opcode("VMWRITE", "in a mode without VMX")
    if not regs.in_64bit_mode:
        encoding &= MASK32
    if processor.non_root and exits(processor, encoding, Field.VMWRITE_BITMAP_ADDRESS):
        return _exit(processor, "vmwrite", encoding=encoding, source=source)
    # 6. CPL 0.
    if regs.cpl:
        raise general_protection("VMWRITE", f"at CPL {regs.cpl}")
    vmcs = _target(processor)
    # 7. A VMCS to write.
    if vmcs is None:
        raise fail_invalid(processor, "VMWRITE", "there is no VMCS to write", NO_VMCS)
    # 8. Reading a memory operand may fault.
    value = read_operand(processor, source, 8 if regs.in_64bit_mode else 4)
    _write_field(processor, vmcs, encoding, value & mode_mask(processor))
    regs.rflags &= _FLAGS
    if not processor.non_root:
        processor.events.count(Event.VMWRITE)
    return None


def _write_field(processor: Processor, vmcs: Vmcs, encoding: int, value: int) -> None:
    shape = processor.shape
    # 9. A field that the CPU has.
    if not _is_supported(shape, encoding):
        raise _unsupported(processor, "VMWRITE", encoding)
    field = _HIGH.get(encoding, encoding)
    # 10. Not a read-only field, unless the CPU allows writing those (IA32_VMX_MISC[29]).
    if field not in shape.writable_fields:
        raise fail_valid(processor, "VMWRITE", InstructionError.VMWRITE_READ_ONLY_COMPONENT)
    if encoding & ACCESS_HIGH:
        value = (value & MASK32) << 32 | vmcs.values[field] & MASK32
    vmcs[field] = value
