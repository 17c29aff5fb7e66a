"""Lesson 13: make a guest cheaper. Complete configure(), then: vtx lab run 13 THIS_FILE."""

import vtx
from vtx import Field


def configure(cpu: vtx.Cpu, port: int, msr: int) -> None:
    """Set up a guest whose VMM has to see writes to `port` and to `msr`, and nothing else.

    The VMCS is loaded; its former owner let everything exit. Begin with what costs most: without
    a change, `vtx lab run` lists the exits with their cycles.
    """
    # Ports and MSRs are sets: cpu.exiting.ports, cpu.exiting.msr_reads, cpu.exiting.msr_writes.
    # Controls are bits of fields (vtx.Proc1, vtx.Proc2 name them):
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls)
    # Some costs are no exits of an instruction: pages that EPT does not map yet, and what VM
    # entries and exits make the guest's TLB forget (lesson 12).
