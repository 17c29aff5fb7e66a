"""VMX instructions that the guest executes without an exit, and SENDUIPI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import GuestFault, VMfail
from vtx.facts.fields import Field
from vtx.machine.encoding import has_memory_operand
from vtx.machine.vmcs import NO_LINK
from vtx.rules import vmx_fields
from vtx.rules.execution_memory import read, write
from vtx.rules.execution_registers import put
from vtx.rules.exiting_faults import GP
from vtx.rules.exiting_information import operand_address, register
from vtx.rules.user_ipi import senduipi
from vtx.rules.vmx_functions import invoke

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS"]


def vmread(processor: Processor, instruction: Instruction) -> None:
    """VMREAD of the VMCS that the link pointer references."""
    regs, operands = processor.regs, instruction.operands
    flags = regs.rflags
    try:
        value = vmx_fields.vmread(processor, register(regs, operands["encoding"]))
    except VMfail:
        return
    assert isinstance(value, int)
    if not has_memory_operand(operands):
        put(processor, instruction, value)
        return
    size = 8 if regs.in_64bit_mode else 4
    done, regs.rflags = regs.rflags, flags
    write(processor, operand_address(regs, operands), value.to_bytes(size, "little"))
    regs.rflags = done


def vmwrite(processor: Processor, instruction: Instruction) -> None:
    """VMWRITE to the VMCS that the link pointer references."""
    regs, operands = processor.regs, instruction.operands
    if regs.cpl:
        raise GuestFault(GP, 0, "VMWRITE at CPL > 0")
    assert processor.vmcs is not None
    linked = processor.vmcs[Field.VMCS_LINK_POINTER] != NO_LINK
    if not has_memory_operand(operands):
        source = register(regs, operands["source"])
    elif linked:
        # A source in memory is read after the pointer check and before the field checks.
        size = 8 if regs.in_64bit_mode else 4
        source = int.from_bytes(read(processor, operand_address(regs, operands), size), "little")
    else:
        source = 0
    try:
        vmx_fields.vmwrite(processor, register(regs, operands["encoding"]), source)
    except VMfail:
        return


def vmfunc(processor: Processor, instruction: Instruction) -> None:
    """VMFUNC (SDM, "VM Functions")."""
    invoke(processor)


#: What each instruction does when it does not exit.
EFFECTS = {"vmread": vmread, "vmwrite": vmwrite, "vmfunc": vmfunc, "senduipi": senduipi}
