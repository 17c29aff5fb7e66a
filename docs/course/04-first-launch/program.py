"""Three faults, three refusals, three repairs."""

import vtx
from vtx import Field


def repair(check: str | None) -> None:
    """Mend the field that a rule is about."""
    if check == "ctl.exec.vpid_nonzero":
        cpu.vmwrite(Field.VPID, 1)
    elif check == "host.tr.selector_rpl_ti":
        cpu.vmwrite(Field.HOST_TR_SELECTOR, cpu.vmread(Field.HOST_TR_SELECTOR) & ~7)
    elif check == "guest.rflags.reserved_1":
        cpu.guest.rflags |= 1 << 1


with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    vmcs = vtx.Vmcs.for_64bit_guest(cpu.shape)
    cpu.load(vmcs.update(vpid=0, host_tr_selector=0x1B, guest_rflags=0x200))
    cpu.ept.map(0, size="1G")
    program = vtx.program("cpuid\nhlt")
    while True:
        try:
            exit = cpu.vmlaunch(program)
        except vtx.VMfailValid as failure:
            print(f"VMfailValid({failure.error}): {failure.check}")
            print(f"  {failure.why}")
            repair(failure.check)
            continue
        if not exit.entry_failure:
            break
        print(f"exit reason {exit.read(Field.EXIT_REASON):#x}: {exit.check}")
        print(f"  {exit.information.rule}")
        repair(exit.check)
    print(f"the guest runs: {exit.reason.name} at RIP {exit.rip:#x}")
