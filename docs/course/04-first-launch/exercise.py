"""Lesson 04: the first launch. Complete first_launch(), then: vtx lab run 04 THIS_FILE."""

import vtx
from vtx import Field


def repair_vpid(cpu: vtx.Cpu) -> None:
    """VPID 0 is the host's."""
    cpu.vmwrite(Field.VPID, 1)


REPAIRS = {
    "ctl.exec.vpid_nonzero": repair_vpid,
    # The other eleven. Change the bits that the rule is about, and no others.
    # Helpful: cpu.shape.allowed0("pin"), cpu.ept.eptp
}


def first_launch(cpu: vtx.Cpu, program: object) -> list[str]:
    """Launch the guest, repairing the VMCS until it runs; return the rules that were broken."""
    broken: list[str] = []
    # Refused by VMfailValid? By an exit whose entry_failure is true? Or does the guest run?
    # With which instruction do you try again after exit reason 33?
    cpu.vmlaunch(program)
    return broken
