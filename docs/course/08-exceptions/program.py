"""Deliveries that are interrupted, and what a VMM does about it."""

import vtx
from vtx import ExitReason, Field, Pin

GUEST = vtx.program(
    """
    external_interrupt vector=50
    ud2
    store 0x700000001000 value=1 rsp=0x700000002000
    hlt
    """,
    handlers={50: "nop\niret", "#UD": "modify [rsp] value=2\niret", "#DF": "hlt\niret"},
)


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Map pages, reinject what was interrupted, combine page faults into #DF."""
    first = exit.idt_vectoring
    during = f" during delivery of vector {first.vector}" if first else ""
    if exit.reason is ExitReason.EPT_VIOLATION:
        print(f"EPT violation at {exit.ept.gpa:#x}{during}")
        cpu.ept.map(exit.ept.gpa, size="4K")
        if first:
            print(f"  inject vector {first.vector} again")
            cpu.inject(first.vector, type=first.type, error_code=first.error_code)
        return
    event = exit.exception
    print(f"exception {event.vector}, error code {event.error_code}, RIP {exit.rip:#x}{during}")
    if event.vector == 14 and first and first.vector == 14:
        print("  inject #DF")
        cpu.inject("#DF")
        return
    if event.address is not None:
        cpu.guest.cr2 = event.address
    print(f"  inject vector {event.vector}")
    cpu.inject(event.vector, error_code=event.error_code)


with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    for gpa in range(0, 1 << 23, 1 << 12):
        if gpa != 0x111000:  # where the stack is
            cpu.ept.map(gpa, size="4K")
    pin = cpu.vmread(Field.PIN_BASED_CONTROLS)
    cpu.vmwrite(Field.PIN_BASED_CONTROLS, pin & ~Pin.EXTERNAL_INTERRUPT_EXITING)
    cpu.exiting.exceptions |= {"#UD", "#PF"}
    exit = cpu.vmlaunch(GUEST)
    while exit.reason is not ExitReason.HLT:
        handle(cpu, exit)
        exit = cpu.vmresume()
    print(f"the guest halts at {exit.rip:#x}, CR2 {cpu.guest.cr2:#x}")
