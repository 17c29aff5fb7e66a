"""Instructions that change where the guest goes on: software interrupts, calls, jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64
from vtx.errors import GuestFault
from vtx.machine.registers import Rflags
from vtx.rules.delivery import Event, exception, hand_over
from vtx.rules.execution_context import is_linear_address
from vtx.rules.execution_memory import read
from vtx.rules.exiting_faults import GP, UD
from vtx.rules.exiting_information import operand_address
from vtx.rules.injected import EventType
from vtx.rules.stack import Stack, operand_size

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS", "TRANSFERS"]

_BP, _OF, _DB = 3, 4, 1

# Software interrupts and exceptions.


def software_interrupt(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT n: never asks the exception bitmap."""
    vector = instruction.operands["vector"]
    event = Event(vector, EventType.SOFTWARE_INTERRUPT, None, instruction.length)
    return hand_over(processor, event)


def int3(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT3: #BP as a software exception."""
    event = Event(_BP, EventType.SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def into(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INTO: #OF as a software exception if OF is 1; 64-bit mode does not have it."""
    regs = processor.regs
    if regs.in_64bit_mode:
        raise GuestFault(UD, None, "INTO in 64-bit mode")
    if not regs.rflags & Rflags.OF:
        regs.rip = regs.rip + instruction.length & MASK64
        return None
    event = Event(_OF, EventType.SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def int1(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """INT1: #DB as a privileged software exception."""
    event = Event(_DB, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, None, instruction.length)
    return exception(processor, event)


def undefined(processor: Processor, instruction: Instruction) -> None:
    """UD0, UD1 and UD2."""
    raise GuestFault(UD, None, instruction.name.upper())


# Calls, jumps, the direction flag.


def _check_target(processor: Processor, target: int, what: str) -> None:
    """#GP(0) for an address that is not canonical or beyond the code segment."""
    regs = processor.regs
    if regs.in_64bit_mode:
        if not is_linear_address(processor, target):
            raise GuestFault(GP, 0, f"{what} to an address that is not canonical")
    elif target > regs.cs.limit:
        raise GuestFault(GP, 0, f"{what} to {target:#x}, beyond the code segment")


def call(processor: Processor, instruction: Instruction) -> None:
    """CALL through memory: pushes the return address."""
    regs = processor.regs
    size = 8 if regs.in_64bit_mode else operand_size(regs, instruction.operands)
    raw = read(processor, operand_address(regs, instruction.operands), size)
    target = int.from_bytes(raw, "little")
    _check_target(processor, target, "CALL")
    stack = Stack(processor)
    stack.push(regs.rip + instruction.length & MASK64, size)
    regs.rsp, regs.rip = stack.pointer, target


def jmp(processor: Processor, instruction: Instruction) -> None:
    """JMP to the address of another step."""
    target = instruction.operands["target"]
    _check_target(processor, target, "JMP")
    processor.regs.rip = target


def std(processor: Processor, instruction: Instruction) -> None:
    """STD."""
    processor.regs.rflags |= Rflags.DF


def cld(processor: Processor, instruction: Instruction) -> None:
    """CLD."""
    processor.regs.rflags &= ~Rflags.DF


def fred_return(processor: Processor, instruction: Instruction) -> None:
    """ERETS and ERETU: #UD, as the guest cannot have CR4.FRED set without FRED in the model."""
    raise GuestFault(UD, None, f"{instruction.name} without FRED")


#: What each instruction does when it does not exit.
EFFECTS = {
    "int": software_interrupt,
    "int3": int3,
    "into": into,
    "int1": int1,
    **dict.fromkeys(("ud0", "ud1", "ud2"), undefined),
    **dict.fromkeys(("erets", "eretu"), fred_return),
    "call": call,
    "jmp": jmp,
    "std": std,
    "cld": cld,
}

#: Instructions that load RIP themselves.
TRANSFERS = frozenset({"int", "int3", "into", "int1", "iret", "call", "jmp"})
