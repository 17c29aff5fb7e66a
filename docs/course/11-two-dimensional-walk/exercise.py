"""Lesson 11: walk in two dimensions. Complete walk(), then: vtx lab run 11 THIS_FILE."""

from collections.abc import Callable

ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51:12 of an entry
PAGE_SIZE = 1 << 7  # in an entry of level 2 or 3: it maps a page, and names no table


def walk_ept(read: Callable[[int], int], eptp: int, gpa: int) -> int:
    """Return the host-physical address of `gpa`. `read(address)` reads an entry of 8 bytes."""
    table = eptp & ADDRESS
    for level in (4, 3, 2, 1):
        # 1. The entry of this level is number (gpa >> (3 + 9 * level)) & 511 of the table.
        # 2. At level 1, or with PAGE_SIZE, it maps a page: which bits come from the entry,
        #    which from gpa? (A page of level n has 3 + 9 * n bits of offset.)
        shift = 3 + 9 * level
    return gpa


def walk(read: Callable[[int], int], eptp: int, cr3: int, gva: int) -> int:
    """Return the host-physical address of the linear address `gva`."""
    # 3. The guest's tables are the same thing again, but their addresses are guest-physical.
    #    What must happen before each entry can be read? And at the end?
    return walk_ept(read, eptp, gva)
