"""Task switches: none happens in VMX non-root operation, but every attempt is tested first.

SDM, "Treatment of Task Switches": gate and its privilege, selector of the new TSS, its descriptor;
only what passes them all exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import bit
from vtx.errors import GuestFault
from vtx.facts.exits import ExitReason
from vtx.machine.exit_information import ExitInformation
from vtx.rules.execution_memory import read_u16, read_u64
from vtx.rules.exiting_faults import GP, NP, TS

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["BY_CALL", "BY_GATE", "BY_IRET", "BY_JMP", "by_instruction", "by_iret", "check_task"]

#: Bits 31:30 of the exit qualification: what asked for the switch.
BY_CALL, BY_IRET, BY_JMP, BY_GATE = 0, 1, 2, 3
_AVAILABLE, _BUSY, _TASK_GATE = 1, 3, 5
_LIMIT_16, _LIMIT_32 = 0x2B, 0x67


def check_task(processor: Processor, selector: int, source: int, external: int = 0) -> int:
    """Test selector and descriptor of the new task's TSS; return the exit qualification.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation, outside IA-32e mode.
    selector : int
        Of the new TSS.
    source : int
        :data:`BY_CALL` ... :data:`BY_GATE`.
    external : int
        EXT bit of error codes.

    Raises
    ------
    GuestFault
        #GP, #TS or #NP with the selector.
    """
    regs = processor.regs
    vector = TS if source == BY_IRET else GP
    error = selector & ~3 & 0xFFFF | external
    if selector & 4 or not selector & ~3 or (selector | 7) > regs.gdtr.limit:
        raise GuestFault(vector, error, f"selector {selector:#x} names no TSS")
    descriptor = read_u64(processor, regs.gdtr.base + (selector & ~7), supervisor=True)
    if descriptor >> 40 & 0x17 != (_BUSY if source == BY_IRET else _AVAILABLE):
        raise GuestFault(vector, error, f"selector {selector:#x} names no usable TSS")
    if not bit(descriptor, 47):
        raise GuestFault(NP, error, f"the TSS {selector:#x} is not present")
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    if bit(descriptor, 55):
        limit = limit << 12 | 0xFFF
    if limit < (_LIMIT_32 if bit(descriptor, 43) else _LIMIT_16):
        raise GuestFault(TS, error, f"the TSS {selector:#x} is too short")
    return selector & 0xFFFF | source << 30


def by_iret(processor: Processor) -> int:
    """Test the task that the link field of the current TSS names; return the qualification."""
    link = read_u16(processor, processor.regs.tr.base, supervisor=True)
    return check_task(processor, link, BY_IRET)


def by_instruction(
    processor: Processor, selector: int, source: int, length: int
) -> ExitInformation:
    """Return the VM exit of a far CALL or JMP to a TSS or task gate, or of an IRET with NT.

    Raises
    ------
    GuestFault
        #GP, #TS or #NP of the tests that come before.
    """
    regs = processor.regs
    if regs.in_ia32e_mode or not regs.in_protected_mode:
        raise GuestFault(GP, selector & ~3, "there is no task switching in this mode")
    if source in (BY_CALL, BY_JMP):
        selector = _privileged_target(processor, selector)
    qualification = check_task(processor, selector, source)
    return ExitInformation(ExitReason.TASK_SWITCH, qualification, length)


def _privileged_target(processor: Processor, selector: int) -> int:
    """Test the privilege of a CALL or JMP; return the TSS's selector, a task gate's if it is one.

    A task gate's own DPL is tested, and the TSS's descriptor is not.
    """
    regs, error = processor.regs, selector & ~3
    table = regs.ldtr if selector & 4 else regs.gdtr
    if not error or (selector | 7) > table.limit or (selector & 4 and not regs.ldtr.usable):
        raise GuestFault(GP, error, f"selector {selector:#x} names no task")
    descriptor = read_u64(processor, table.base + (selector & ~7), supervisor=True)
    kind, dpl = descriptor >> 40 & 0x1F, descriptor >> 45 & 3
    if kind not in (_AVAILABLE, _AVAILABLE | 8, _TASK_GATE) or dpl < max(regs.cpl, selector & 3):
        raise GuestFault(GP, error, f"selector {selector:#x} names no task for CPL {regs.cpl}")
    if kind != _TASK_GATE:
        return selector
    if not bit(descriptor, 47):
        raise GuestFault(NP, error, f"the task gate {selector:#x} is not present")
    return descriptor >> 16 & 0xFFFF
