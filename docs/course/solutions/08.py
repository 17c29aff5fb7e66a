"""Lesson 08: exceptions and injection."""

import vtx
from vtx import ExitReason, Field

CONTRIBUTORY = {0, 10, 11, 12, 13, 21}
PAGE_FAULT = 14
WRITE = 1 << 1
HARDWARE_EXCEPTION = 3


def setup(cpu: vtx.Cpu) -> None:
    """Let #UD, #GP and page faults by writes exit."""
    cpu.exiting.exceptions = {"#UD", "#GP", "#PF"}
    cpu.vmwrite(Field.PAGE_FAULT_ERROR_CODE_MASK, WRITE)
    cpu.vmwrite(Field.PAGE_FAULT_ERROR_CODE_MATCH, WRITE)


def is_double_fault(first: int, second: int) -> bool:
    """Tell whether the second exception, met while the first is delivered, makes #DF."""
    if first == PAGE_FAULT:
        return second == PAGE_FAULT or second in CONTRIBUTORY
    return first in CONTRIBUTORY and second in CONTRIBUTORY


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Map pages; give exceptions to the guest; lose nothing."""
    first = exit.idt_vectoring
    if exit.reason is ExitReason.EPT_VIOLATION:
        cpu.ept.map(exit.ept.gpa, size="4K")
        if first is not None:
            cpu.inject(
                first.vector,
                type=first.type,
                error_code=first.error_code,
                instruction_length=exit.instruction_length,
            )
        return
    event = exit.exception
    is_exception = first is not None and first.type == HARDWARE_EXCEPTION
    if first is not None and is_exception and is_double_fault(first.vector, event.vector):
        cpu.inject("#DF")
        return
    if event.address is not None:
        cpu.guest.cr2 = event.address
    cpu.inject(event.vector, error_code=event.error_code)
