"""The VMX instructions in the wrong order, then in the right one."""

from collections.abc import Callable

import vtx
from vtx import ExitReason, Field


def show(name: str, instruction: Callable[[], object]) -> None:
    """Execute one instruction and print how it ends."""
    try:
        instruction()
        print(f"{name:32} VMsucceed")
    except vtx.VMfailInvalid:
        print(f"{name:32} VMfailInvalid   CF={cpu.regs.rflags & 1}")
    except vtx.VMfailValid as failure:
        print(f"{name:32} VMfailValid({failure.error:2}) ZF={cpu.regs.rflags >> 6 & 1}")
    except vtx.GuestFault as fault:
        print(f"{name:32} {str(fault).split(':')[0]}")


with vtx.Cpu("skylake_sp") as cpu:
    show("VMPTRST before VMXON", cpu.vmptrst)
    show("VMXON", cpu.vmxon)
    show("VMREAD without a VMCS", lambda: cpu.vmread(Field.GUEST_RIP))
    show("VMPTRLD 0x1008, no VMCS", lambda: cpu.vmptrld(0x1008))

    region = cpu.new_region()
    show("VMCLEAR", lambda: cpu.vmclear(region))
    show("VMPTRLD", lambda: cpu.vmptrld(region))
    show("VMPTRLD 0x1008", lambda: cpu.vmptrld(0x1008))
    show("VMREAD of encoding 0x5000", lambda: cpu.vmread(0x5000))
    show("VMRESUME before VMLAUNCH", cpu.vmresume)

    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    exit = cpu.vmlaunch(vtx.program("vmcall rax=5\nvmcall rax=6\nhlt"))
    show("VMLAUNCH again", cpu.vmlaunch)
    while exit.reason is ExitReason.VMCALL:
        print(f"the guest calls: RAX {cpu.guest.rax}, RIP {exit.rip:#x}")
        cpu.skip(exit)
        exit = cpu.vmresume()
    print(f"the guest exits with {exit.reason.name}")
    show("VMXOFF", cpu.vmxoff)
    show("VMXOFF again", cpu.vmxoff)
