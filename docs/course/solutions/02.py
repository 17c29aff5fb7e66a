"""Lesson 02: a VMCS by hand."""

import vtx
from vtx import Msr

launched: set[int] = set()


def split(encoding: int) -> tuple[int, int, int, int]:
    """Return width, area, index and high (1 for the upper half) of a field's encoding."""
    return (encoding >> 13 & 3, encoding >> 10 & 3, encoding >> 1 & 0x1FF, encoding & 1)


def setup(cpu: vtx.Cpu, page: int, fields: dict[int, int]) -> None:
    """Make a VMCS of the page, make it current, and write its fields."""
    cpu.memory.write_u32(page, cpu.shape.msr(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF)
    cpu.vmclear(page)
    cpu.vmptrld(page)
    launched.discard(page)
    for field, value in fields.items():
        cpu.vmwrite(field, value)


def enter(cpu: vtx.Cpu, page: int) -> vtx.Exit:
    """Enter the guest of the VMCS in the page; return its exit."""
    cpu.vmptrld(page)
    if page in launched:
        return cpu.vmresume()
    launched.add(page)
    return cpu.vmlaunch()


def park(cpu: vtx.Cpu, page: int) -> None:
    """Let the VMCS in the page be usable by another processor."""
    cpu.vmclear(page)
    launched.discard(page)
