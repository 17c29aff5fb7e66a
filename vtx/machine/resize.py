"""Pages of EPT made larger or smaller in place: a table for a page, a page for a table.

Both leave every translation as it was; what caches hold of the old structures is for software to
invalidate (SDM, "Operations that Invalidate Cached Mappings", "Guidelines for Use of the INVEPT
Instruction").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import InputError
from vtx.machine.tables import ADDRESS, PAGE_NAMES

if TYPE_CHECKING:
    from vtx.machine.paging import Ept

__all__ = ["merge", "split"]

_ENTRIES = 512
_PAGE_SIZE = 1 << 7
#: Accessed and dirty flags: a large page has them if one of its pages had.
_FLAGS = 1 << 8 | 1 << 9


def _span(level: int) -> int:
    """Return how much memory an entry of a level covers."""
    return 1 << 3 + 9 * level


def split(ept: Ept, gpa: int) -> None:
    """Replace the large page that maps `gpa` by a table of 512 pages of the next smaller size."""
    place = ept._mapped(gpa)
    if place.level == 1:
        raise InputError(f"guest-physical address {gpa:#x} is in a 4K page: there is none smaller")
    table, below = ept._new_table(), _span(place.level - 1)
    leaf = place.entry if place.level > 2 else place.entry & ~_PAGE_SIZE
    for index in range(_ENTRIES):
        ept.memory.write_u64(table + 8 * index, leaf + index * below)
    ept.memory.write_u64(place.address, table | ept._table_bits)


def merge(ept: Ept, gpa: int) -> None:
    """Replace the table whose pages lie around `gpa` by one page of the next larger size."""
    place = ept._mapped(gpa)
    if place.level > 2:
        raise InputError(f"guest-physical address {gpa:#x} is in a {PAGE_NAMES[place.level]} page")
    span, above = _span(place.level), _span(place.level + 1)
    table = place.address & ~0xFFF
    entries = [ept.memory.read_u64(table + 8 * index) for index in range(_ENTRIES)]
    first = (place.entry & ~_FLAGS) - (gpa % above // span) * span
    size = PAGE_NAMES[place.level + 1]
    if (first & ADDRESS) % above:
        raise InputError(
            f"guest-physical address {gpa:#x} lies at another place of its {size} page than its "
            "memory does of the host's"
        )
    flags = 0
    for index, entry in enumerate(entries):
        if not entry & ept._present_bits:
            continue
        if entry & ~_FLAGS != first + index * span:
            raise InputError(
                f"the page at {gpa - gpa % above + index * span:#x} has another place or other "
                f"rights than the one at {gpa - gpa % span:#x}; one {size} page cannot map both"
            )
        flags |= entry & _FLAGS
    parent = ept._parent(gpa, place.level)
    ept.memory.write_u64(parent, first | flags | _PAGE_SIZE)
    ept.frames.free(table)
