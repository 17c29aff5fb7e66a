"""Lesson 09: queue interrupts, deliver them. Complete handle(), then: vtx lab run 09 THIS_FILE."""

import vtx
from vtx import ExitReason, Field, Proc1

IF = 1 << 9  # in the guest's RFLAGS
STI_OR_MOV_SS = 0b11  # in the interruptibility state


def handle(cpu: vtx.Cpu, exit: vtx.Exit, queue: list[int]) -> None:
    """Handle one exit. `queue` is yours: vectors that the guest has not got yet, oldest first."""
    if exit.reason is ExitReason.EXTERNAL_INTERRUPT:
        # 1. The interrupt was acknowledged on exit: exit.exception.vector. Where does it go?
        pass
    elif exit.reason is ExitReason.CPUID:
        cpu.skip(exit)
    # 2. Can the guest take an interrupt now? Look at cpu.guest.rflags and at
    #    cpu.guest.interruptibility_state. If it can: cpu.inject(vector), one for each VM entry.
    # 3. Does something still wait? Then the VMM has to learn when the guest can take it:
    #    interrupt-window exiting in the primary processor-based controls. If not, turn it off.
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls & ~Proc1.INTERRUPT_WINDOW_EXITING)
