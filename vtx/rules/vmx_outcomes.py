"""How VMX instructions end (SDM, "Conventions" of the VMX instruction reference).

VMsucceed, VMfailInvalid and VMfailValid differ in the status flags; the last also writes the
VM-instruction error field. Failures are returned, for the caller to raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import GuestFault, VMfail, VMfailInvalid, VMfailValid
from vtx.facts.fields import Field
from vtx.facts.instruction_errors import INSTRUCTION_ERRORS, InstructionError
from vtx.machine.events import Event
from vtx.rules.vmx_hints import HINTS

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = [
    "fail",
    "fail_invalid",
    "fail_valid",
    "general_protection",
    "invalid_opcode",
    "succeed",
]

#: CF, PF, AF, ZF, SF, OF: what every VMX instruction leaves defined.
STATUS_FLAGS = 0x8D5
_CF, _ZF = 1 << 0, 1 << 6


def succeed(processor: Processor, event: Event = Event.VMX_INSTRUCTION) -> None:
    """VMsucceed: clear the status flags; count the instruction as `event`."""
    processor.regs.rflags &= ~STATUS_FLAGS
    processor.events.count(event)


def fail_invalid(
    processor: Processor, instruction: str, why: str, hint: str | None = None
) -> VMfailInvalid:
    """VMfailInvalid: CF is 1, the other status flags 0."""
    processor.regs.rflags = processor.regs.rflags & ~STATUS_FLAGS | _CF
    processor.events.count(Event.VMFAIL)
    return VMfailInvalid(instruction, why, hint)


def fail_valid(
    processor: Processor,
    instruction: str,
    error: InstructionError,
    why: str | None = None,
    check: str | None = None,
) -> VMfailValid:
    """VMfailValid: ZF is 1, the other status flags 0, and the error field holds the number.

    The error goes to the current VMCS, in VMX non-root operation with VMCS shadowing, too.
    """
    processor.regs.rflags = processor.regs.rflags & ~STATUS_FLAGS | _ZF
    assert processor.vmcs is not None
    processor.vmcs.values[Field.VM_INSTRUCTION_ERROR] = int(error)
    processor.events.count(Event.VMFAIL)
    text = why or INSTRUCTION_ERRORS[error].text
    return VMfailValid(instruction, error, text, check, HINTS.get(error))


def fail(
    processor: Processor, instruction: str, error: InstructionError, why: str | None = None
) -> VMfail:
    """VMfail: VMfailValid if there is a current VMCS, else VMfailInvalid."""
    if processor.vmcs is None:
        hint = HINTS.get(error)
        text = why or INSTRUCTION_ERRORS[error].text
        return fail_invalid(processor, instruction, text, hint)
    return fail_valid(processor, instruction, error, why)


def invalid_opcode(instruction: str, why: str) -> GuestFault:
    """#UD."""
    return GuestFault(6, None, f"{instruction} {why}")


def general_protection(instruction: str, why: str) -> GuestFault:
    """#GP(0)."""
    return GuestFault(13, 0, f"{instruction} {why}")
