"""Lesson 09: queue interrupts, and deliver them when the guest can take them."""

import vtx
from vtx import ExitReason, Field, Proc1

IF = 1 << 9
STI_OR_MOV_SS = 0b11


def handle(cpu: vtx.Cpu, exit: vtx.Exit, queue: list[int]) -> None:
    """Handle one exit."""
    if exit.reason is ExitReason.EXTERNAL_INTERRUPT:
        queue.append(exit.exception.vector)
    elif exit.reason is ExitReason.CPUID:
        cpu.skip(exit)
    enabled = cpu.guest.rflags & IF
    if queue and enabled and not cpu.guest.interruptibility_state & STI_OR_MOV_SS:
        cpu.inject(queue.pop(0))
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    if queue:
        controls |= Proc1.INTERRUPT_WINDOW_EXITING
    else:
        controls &= ~Proc1.INTERRUPT_WINDOW_EXITING
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls)
