"""The VM exit of a VMX instruction that Python executes in VMX non-root operation.

It says what the same line of a listing would say: the operands are put into the form of an
instruction, and the row of :mod:`vtx.rules.exiting` reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64
from vtx.facts.instructions import SEGMENT_REGISTERS
from vtx.machine.program import Instruction
from vtx.machine.registers import GPR_NAMES
from vtx.rules.exiting import report
from vtx.rules.vmx_operands import MemoryOperand, Operand, RegisterOperand

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor

__all__ = ["exit_of"]

#: The registers that hold operands of which only the value is given.
_REGISTERS = {"encoding": 1, "register": 1, "source": 0, "destination": 0}


def exit_of(
    processor: Processor,
    name: str,
    memory: Operand | None = None,
    **registers: Operand | None,
) -> ExitInformation:
    """Return the VM exit that an instruction causes, with all that it reports.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    name : str
        The instruction, as in :mod:`vtx.facts.instructions`.
    memory : Operand, optional
        An operand that is in memory. One of which only the value is given counts as if it had
        displacement 0.
    **registers : Operand or None
        Further operands, in registers or in memory. One of which only the value is given is put
        into a register first: the first operand into RAX, a type or an encoding into RCX.
    """
    operands: dict[str, int] = {}
    for role, operand in registers.items():
        if isinstance(operand, MemoryOperand):
            memory = operand
        else:
            operands[role] = _register(processor, role, operand)
    if memory is not None:
        operands |= _memory(memory)
    return report(processor, Instruction(name, operands))


def _register(processor: Processor, role: str, operand: int | RegisterOperand | None) -> int:
    """Return the number of the register that an operand is in."""
    if isinstance(operand, RegisterOperand):
        return operand.number
    number = _REGISTERS[role]
    if operand is not None:
        setattr(processor.regs, GPR_NAMES[number], operand & MASK64)
    return number


def _memory(operand: Operand) -> dict[str, int]:
    """Return the parts of an operand in memory, as an instruction has them."""
    if not isinstance(operand, MemoryOperand):
        return {"displacement": 0}
    return {
        "displacement": operand.offset & MASK64,
        "segment": SEGMENT_REGISTERS.index(operand.segment),
    }
