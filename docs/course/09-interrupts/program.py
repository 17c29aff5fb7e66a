"""Interrupts, NMIs and a timer: when they exit, and when the guest can get them."""

from collections import deque

import vtx
from vtx import ExitReason, Field, Pin, Proc1

#: Guest RFLAGS.IF, and blocking by STI and by MOV SS in the interruptibility state.
IF, STI_OR_MOV_SS, BLOCKED_BY_NMI = 1 << 9, 0b11, 1 << 3


def switch(cpu: vtx.Cpu, field: Field, control: int, on: bool) -> None:
    """Turn a control on or off."""
    word = cpu.vmread(field)
    cpu.vmwrite(field, word | control if on else word & ~control)


def start() -> vtx.Cpu:
    """Return a processor with a guest in all of its memory."""
    cpu = vtx.Cpu("skylake_sp")
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    return cpu


def show(exit: vtx.Exit, does: str) -> None:
    """Print one exit and what the VMM does about it."""
    print(f"  {exit.rip:#18x} {exit.reason.name:<28} {does}".rstrip())


def interrupts() -> None:
    """Two interrupts while the guest has RFLAGS.IF = 0."""
    print("Interrupts")
    queue: deque[int] = deque()
    with start() as cpu:
        guest = """
            cli
            external_interrupt vector=0x41
            nop
            external_interrupt vector=0x42
            nop
            sti
            nop
            nop
            hlt
        """
        exit = cpu.vmlaunch(vtx.program(guest))
        while exit.reason is not ExitReason.HLT:
            does = "the window is open"
            if exit.reason is ExitReason.EXTERNAL_INTERRUPT:
                queue.append(exit.exception.vector)
                does = f"{queue[-1]:#x} is queued"
            blocked = cpu.guest.interruptibility_state & STI_OR_MOV_SS
            if queue and cpu.guest.rflags & IF and not blocked:
                does += f", {queue[0]:#x} is injected"
                cpu.inject(queue.popleft())
            window = bool(queue)
            switch(
                cpu,
                Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
                Proc1.INTERRUPT_WINDOW_EXITING,
                window,
            )
            show(exit, f"{does}; interrupt-window exiting {'on' if window else 'off'}")
            exit = cpu.vmresume()
        show(exit, "")


def nmis() -> None:
    """A second NMI before the guest's handler of the first has begun."""
    print("NMIs")
    waiting, second = False, True
    with start() as cpu:
        exit = cpu.vmlaunch(vtx.program("nmi\nnop\nhlt", handlers={2: "nop\niret"}))
        while exit.reason is not ExitReason.HLT:
            if exit.reason is ExitReason.EXCEPTION_OR_NMI:
                waiting = True
            does = "blocked by NMI, it waits"
            if not cpu.guest.interruptibility_state & BLOCKED_BY_NMI:
                does, waiting = "it is injected", False
                cpu.inject("NMI")
            switch(cpu, Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.NMI_WINDOW_EXITING, waiting)
            show(exit, f"{does}; NMI-window exiting {'on' if waiting else 'off'}")
            cpu.pending.nmi, second = second, False
            exit = cpu.vmresume()
        show(exit, "")


def timer() -> None:
    """A guest that never exits by itself."""
    print("VMX-preemption timer")
    with start() as cpu:
        switch(cpu, Field.PIN_BASED_CONTROLS, Pin.ACTIVATE_VMX_PREEMPTION_TIMER, True)
        cpu.vmwrite(Field.VMX_PREEMPTION_TIMER_VALUE, 2)
        shift = cpu.shape.msr(vtx.Msr.IA32_VMX_MISC) & 0x1F
        print(f"  it counts down by 1 when bit {shift} of the time-stamp counter changes")
        exit = cpu.vmlaunch(vtx.program("repeat 600\nnop\nend\nhlt"))
        while exit.reason is ExitReason.VMX_PREEMPTION_TIMER_EXPIRED:
            show(exit, f"after {cpu.steps} steps of the guest; set to 2 again")
            cpu.vmwrite(Field.VMX_PREEMPTION_TIMER_VALUE, 2)
            exit = cpu.vmresume()
        show(exit, f"after {cpu.steps} steps")


interrupts()
nmis()
timer()
