"""One set of wishes, two CPUs, two control words."""

import vtx
from vtx import ExitReason, Field, Msr, Proc1

WISHES = int(Proc1.HLT_EXITING | Proc1.USE_MSR_BITMAPS | Proc1.UNCONDITIONAL_IO_EXITING)


def capability(cpu: vtx.Cpu) -> int:
    """Return the MSR that reports the primary controls: the TRUE one if there is one."""
    if cpu.shape.msr(Msr.IA32_VMX_BASIC) >> 55 & 1:
        return cpu.shape.msr(Msr.IA32_VMX_TRUE_PROCBASED_CTLS)
    return cpu.shape.msr(Msr.IA32_VMX_PROCBASED_CTLS)


for profile in ("prescott_p4_672", "ice_lake_sp"):
    with vtx.Cpu(profile) as cpu:
        may, must = capability(cpu) >> 32, capability(cpu) & 0xFFFF_FFFF
        word = WISHES & may | must
        print(f"{profile}: must {must:#010x}, may {may:#010x}")
        print(f"  wishes {WISHES:#010x} -> word {word:#010x}")

        cpu.vmxon()
        vmcs = vtx.Vmcs.for_64bit_guest(cpu.shape)
        secondary = vmcs.proc1 & Proc1.ACTIVATE_SECONDARY_CONTROLS
        cpu.load(vmcs.update(primary_processor_based_controls=word | secondary))
        cpu.vmwrite(Field.MSR_BITMAP, cpu.machine.frames.allocate())
        if cpu.shape.has_ept:
            cpu.ept.map(0, size="1G")
        exit = cpu.vmlaunch(vtx.program(f"mov cr3, rax value={cpu.guest.cr3:#x}\nhlt"))
        if exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
            print(f"  the guest's load of CR3 exits, bit 15 of the word is {word >> 15 & 1}")
            cpu.skip(exit)
            exit = cpu.vmresume()
        print(f"  the guest ends with {exit.reason.name}")

        for bad in (WISHES, word | 1 << 0):
            cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, bad)
            try:
                cpu.vmresume()
            except vtx.VMfailValid as failure:
                print(f"  word {bad:#010x}: error {failure.error}, {failure.check}")
