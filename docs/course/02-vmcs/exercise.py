"""Lesson 02: a VMCS by hand. Complete the functions, then: vtx lab run 02 THIS_FILE."""

import vtx


def split(encoding: int) -> tuple[int, int, int, int]:
    """Return width, area, index and high (1 for the upper half) of a field's encoding."""
    # The drawing in the lesson says which bits each has.
    return (0, 0, 0, encoding & 1)


def setup(cpu: vtx.Cpu, page: int, fields: dict[int, int]) -> None:
    """Make a VMCS of the page, make it current, and write its fields."""
    # What must stand in the page's first four bytes? It differs from CPU to CPU.
    # Two instructions come before the first VMWRITE.


def enter(cpu: vtx.Cpu, page: int) -> vtx.Exit:
    """Enter the guest of the VMCS in the page; return its exit."""
    # Is it current? Was it launched? The processor does not tell: keep a note, per VMCS.
    return cpu.vmlaunch()


def park(cpu: vtx.Cpu, page: int) -> None:
    """Let the VMCS in the page be usable by another processor."""
    # Which instruction? And what happens to your note?
