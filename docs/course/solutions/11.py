"""Lesson 11: a walk in two dimensions."""

from collections.abc import Callable

ADDRESS = 0x000F_FFFF_FFFF_F000
PAGE_SIZE = 1 << 7


def walk_ept(read: Callable[[int], int], eptp: int, gpa: int) -> int:
    """Return the host-physical address of a guest-physical one."""
    table = eptp & ADDRESS
    for level in (4, 3, 2, 1):
        shift = 3 + 9 * level
        entry = read(table + 8 * (gpa >> shift & 511))
        if level == 1 or entry & PAGE_SIZE:
            offset = (1 << shift) - 1
            return entry & ADDRESS & ~offset | gpa & offset
        table = entry & ADDRESS
    raise AssertionError


def walk(read: Callable[[int], int], eptp: int, cr3: int, gva: int) -> int:
    """Return the host-physical address of a linear one."""
    table = cr3 & ADDRESS
    for level in (4, 3, 2, 1):
        shift = 3 + 9 * level
        entry = read(walk_ept(read, eptp, table + 8 * (gva >> shift & 511)))
        if level == 1 or entry & PAGE_SIZE:
            offset = (1 << shift) - 1
            return walk_ept(read, eptp, entry & ADDRESS & ~offset | gva & offset)
        table = entry & ADDRESS
    raise AssertionError
