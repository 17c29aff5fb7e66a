"""Lesson 10: map on demand, know who was written. Then: vtx lab run 10 THIS_FILE."""

import vtx

PAGE = 0x1000


def handle(cpu: vtx.Cpu, exit: vtx.Exit, dirty: set[int]) -> None:
    """Handle an EPT violation. `dirty` holds guest-physical addresses of pages, as 0x801000."""
    page = exit.ept.gpa & ~(PAGE - 1)
    # 1. If EPT does not map the page yet (cpu.ept.lookup(page) is None), map 4K of it. With which
    #    rights, if the guest only reads, so that you notice its first write?
    # 2. If the guest writes (exit.ept.write), the page is dirty from now on, and may be written.
    cpu.ept.map(page, size="4K")


def clean(cpu: vtx.Cpu, dirty: set[int]) -> None:
    """Begin a new round: no page is dirty, and the next write to any page is noticed."""
    # 3. Which pages can be written without an EPT violation? cpu.ept.protect(page, write=False)
    # 4. Who else remembers that they were writable?
    dirty.clear()
