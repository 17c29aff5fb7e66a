"""CR0.TS is the VMM's, the guest believes it has it; an MSR that is not what it seems."""

import vtx
from vtx import ExitReason, Field, Proc1

TS = 1 << 3
GUEST = """
    mov rbx, cr0
    mov cr0, rcx value=0x8005003b   # sets TS
    mov rbx, cr0
    mov cr0, rcx value=0x8005003b   # again: what the shadow says already
    clts
    mov rbx, cr0
    rdmsr msr=IA32_SYSENTER_EIP
    rdmsr msr=IA32_SYSENTER_ESP
    rdtsc
    hlt
"""


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Keep TS 0, show the guest what it wrote; answer the MSR."""
    if exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
        shadow = 0 if exit.cr.access == "clts" else cpu.guest[exit.cr.register]
        cpu.vmwrite(Field.CR0_READ_SHADOW, shadow & TS)
        text = f"{exit.cr.access} CR{exit.cr.number}"
        print(f"{text}: shadow TS {shadow >> 3 & 1}, real TS {cpu.guest.cr0 >> 3 & 1}")
    elif exit.reason is ExitReason.RDMSR:
        cpu.guest.rax, cpu.guest.rdx = 0x1234, 0
        print(f"RDMSR {exit.msr.index:#x}: the VMM answers 0x1234")
    cpu.skip(exit)


with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    cpu.vmwrite(Field.CR0_GUEST_HOST_MASK, TS)
    cpu.vmwrite(Field.CR0_READ_SHADOW, 0)
    cpu.exiting.msr_reads.add("IA32_SYSENTER_EIP")
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls | Proc1.USE_TSC_OFFSETTING)
    cpu.vmwrite(Field.TSC_OFFSET, 1 << 40)
    exit = cpu.vmlaunch(vtx.program(GUEST))
    while exit.reason is not ExitReason.HLT:
        handle(cpu, exit)
        exit = cpu.vmresume()
    print(f"the guest read CR0 as {cpu.guest.rbx:#x} in the end")
    print(f"the guest's clock is past 2^40: {cpu.guest.rdx >= 1 << 8}")
    print(f"{cpu.events.exit_count} exits")
