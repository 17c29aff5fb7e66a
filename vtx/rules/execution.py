"""What an instruction does to the guest when it does not cause a VM exit.

One table from names to functions, each in the module of its group. :func:`execute` also moves RIP
past the instruction, unless that is what the instruction is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64
from vtx.errors import NotSupported
from vtx.machine.exit_information import ExitInformation
from vtx.rules import (
    execution_data,
    execution_flags,
    execution_flow,
    execution_msrs,
    execution_registers,
    execution_return,
    execution_system,
    execution_vmx,
)
from vtx.rules.execution_apic import apic_write

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS", "execute"]

Effect = Callable[["Processor", "Instruction"], ExitInformation | None]

EFFECTS: dict[str, Effect] = {
    **execution_registers.EFFECTS,
    **execution_msrs.EFFECTS,
    **execution_data.EFFECTS,
    **execution_system.EFFECTS,
    **execution_flow.EFFECTS,
    **execution_flags.EFFECTS,
    **execution_return.EFFECTS,
    **execution_vmx.EFFECTS,
}
_TRANSFERS = execution_flow.TRANSFERS


def execute(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """Execute an instruction of which :func:`vtx.rules.exiting.decide` says that it does not exit.

    Returns
    -------
    ExitInformation or None
        A VM exit that the instruction's effect leads to: trap-like (RIP is past it), in the middle
        of a list, or due to the delivery of the exception that it raised.

    Raises
    ------
    GuestFault
        It faults; registers and memory are as before.
    ExitTaken
        An access to memory exits.
    NotSupported
        The model has no such state (enclaves).
    """
    name = instruction.name
    effect = EFFECTS.get(name)
    if effect is None:
        raise NotSupported(f"{name} has no effect that the machine could model without a VM exit")
    exits = effect(processor, instruction)
    written = processor.apic_write
    if written is not None:
        processor.apic_write = None
        exits = apic_write(processor, written)
    if name not in _TRANSFERS and (exits is None or exits.trap):
        regs = processor.regs
        rip = regs.rip + instruction.length
        if rip > MASK32:
            rip &= MASK64 if regs.in_64bit_mode else MASK32
        regs.rip = rip
    return exits
