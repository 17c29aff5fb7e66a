"""Lesson 10: demand mapping, and dirty tracking by write protection."""

import vtx

PAGE = 0x1000
SINGLE_CONTEXT = 1


def handle(cpu: vtx.Cpu, exit: vtx.Exit, dirty: set[int]) -> None:
    """Map a page when it is touched; make it writable when it is written."""
    page = exit.ept.gpa & ~(PAGE - 1)
    if cpu.ept.lookup(page) is None:
        cpu.ept.map(page, size="4K", write=False)
    if exit.ept.write:
        cpu.ept.protect(page, write=True)
        dirty.add(page)


def clean(cpu: vtx.Cpu, dirty: set[int]) -> None:
    """Begin a new round."""
    for page in dirty:
        cpu.ept.protect(page, write=False)
    dirty.clear()
    cpu.invept(SINGLE_CONTEXT, cpu.ept.eptp)
