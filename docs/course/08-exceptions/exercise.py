"""Lesson 08: exceptions and injection. Complete both functions, then: vtx lab run 08 THIS_FILE."""

import vtx
from vtx import ExitReason

CONTRIBUTORY = {0, 10, 11, 12, 13, 21}
PAGE_FAULT = 14


def setup(cpu: vtx.Cpu) -> None:
    """Let #UD, #GP and page faults by writes exit."""
    # One set, and two fields (vtx.Field) that look at the error code of page faults.
    # Which bit of the error code says "write"?


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Map pages; give exceptions to the guest; lose nothing."""
    if exit.reason is ExitReason.EPT_VIOLATION:
        cpu.ept.map(exit.ept.gpa, size="4K")
        # Was an event being delivered? exit.idt_vectoring
    else:
        event = exit.exception
        # Vector, error code, CR2. And if exit.idt_vectoring was an exception, too?
