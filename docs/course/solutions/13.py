"""Lesson 13: exits only for what the VMM has to see."""

import vtx
from vtx import Field, Proc1, Proc2

UNNEEDED = (
    Proc1.RDTSC_EXITING
    | Proc1.CR3_LOAD_EXITING
    | Proc1.CR3_STORE_EXITING
    | Proc1.INVLPG_EXITING
    | Proc1.MOV_DR_EXITING
    | Proc1.PAUSE_EXITING
)


def configure(cpu: vtx.Cpu, port: int, msr: int) -> None:
    """Let two things exit, keep the TLB, and map all memory at once."""
    cpu.exiting.ports = {port}
    cpu.exiting.msr_reads = set()
    cpu.exiting.msr_writes = {msr}
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls & ~UNNEEDED)
    secondary = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, secondary | Proc2.ENABLE_VPID)
    cpu.vmwrite(Field.VPID, 1)
    cpu.ept.map(0, size="1G")
