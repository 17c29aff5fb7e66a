"""A VMCS by hand: the page, the encodings, the halves of a field, two guests in turn."""

import vtx
from vtx import Field, Msr

WIDTHS = ("16-bit", "64-bit", "32-bit", "natural")
AREAS = ("control", "read-only", "guest", "host")

with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    page = cpu.machine.frames.allocate()
    try:
        cpu.vmptrld(page)
    except vtx.VMfailInvalid as failure:
        print(f"an empty page: {failure}")
    cpu.memory.write_u32(page, cpu.shape.msr(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF)
    cpu.vmclear(page)
    cpu.vmptrld(page)
    print(f"with identifier: current VMCS at {cpu.vmptrst():#x}")

    for field in (Field.VPID, Field.TSC_OFFSET, Field.EXIT_REASON, Field.GUEST_RIP):
        width, area, index = field >> 13 & 3, field >> 10 & 3, field >> 1 & 0x1FF
        print(f"{field.name:12} {int(field):#06x}: {WIDTHS[width]}, {AREAS[area]}, index {index}")

    cpu.vmwrite(Field.TSC_OFFSET, 0x1111_1111)
    cpu.vmwrite(Field.TSC_OFFSET | 1, 0x2222_2222)
    print(f"TSC offset: {cpu.vmread(Field.TSC_OFFSET):#x}")

    cpu.ept.map(0, size="1G")
    guests = [cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape)) for _ in range(2)]
    cpu.set_program(vtx.program("cpuid\ncpuid\nhlt"))
    for turn, number in enumerate((0, 1, 1, 0)):
        cpu.vmptrld(guests[number])
        first = turn < 2
        exit = cpu.vmlaunch() if first else cpu.vmresume()
        how = "VMLAUNCH" if first else "VMRESUME"
        print(f"guest {number}: {how}, exit {exit.reason.name} at RIP {exit.rip:#x}")
        cpu.skip(exit)
