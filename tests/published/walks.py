"""The references of one walk with nothing cached, for the pairs of page tables in papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.core.cases import BARE, shape_with
from tests.core.spaces import CR0, CR4, EFER, Guest, make_guest
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Mmu
from vtx.machine.paging import FrameAllocator, GuestPageTables

__all__ = ["ROWS", "Row"]

_VA = 0x7F12_0000_0000
_GPA, _HPA = 2 << 30, 4 << 30
_LA57, _PSE, _PAE = 1 << 12, 1 << 4, 1 << 5
#: 32-bit address and tables of guests that are not in IA-32e mode.
_LOW_VA, _TABLE, _NEXT = 0x40_1000, 0x10_0000, 0x10_1000
_PROTECTED = 0x1_0001
_PAGED = CR0 & 0xFFFF_FFFF
_PRESENT = 7


class Row(NamedTuple):
    """One pair of tables: the published number, and what makes the walk (None: VT-x cannot)."""

    guest: str
    nested: str
    published: int
    simulate: Callable[[Memory], int] | None


def _read(mmu: Mmu, context: Context, address: int) -> int:
    walk = mmu.walk(context, address, Access.LOAD)
    assert walk.ok, walk
    return walk.references


def _native(levels: int) -> Callable[[Memory], int]:
    def run(memory: Memory) -> int:
        frames = FrameAllocator(_TABLE, 0x20_0000)
        tables = GuestPageTables(memory, frames, lambda gpa: gpa, levels=levels)
        tables.map(_VA, _GPA, "4K")
        cr4 = CR4 | (_LA57 if levels == 5 else 0)
        context = Context(cr0=CR0, cr3=tables.cr3, cr4=cr4, efer=EFER, cpl=3)
        return _read(Mmu(memory, shape_with(tlb=BARE)), context, _VA)

    return run


def _nested(guest: str, ept: str, *levels: int) -> Callable[[Memory], int]:
    guest_levels, ept_levels = levels or (4, 4)

    def run(memory: Memory) -> int:
        made = make_guest(
            memory, BARE, table_size=ept, guest_levels=guest_levels, ept_levels=ept_levels
        )
        made.tables.map(_VA, _GPA, guest)
        made.ept.map(_GPA, _HPA, ept)
        cr4 = CR4 | (_LA57 if guest_levels == 5 else 0)
        return _read(made.mmu, made.context(cr4=cr4), _VA)

    return run


def _legacy(entries: dict[int, int], size: int, **registers: Any) -> Callable[[Memory], int]:
    """A guest outside IA-32e mode whose entries stand at guest-physical addresses."""

    def run(memory: Memory) -> int:
        made: Guest = make_guest(memory, BARE)
        made.ept.map(_LOW_VA, _HPA, "4K")
        write = memory.write_u32 if size == 4 else memory.write_u64
        for gpa, value in entries.items():
            write(made.ept.host_physical(gpa), value)
        context = made.context(**{"cr3": _TABLE, "efer": 0, "cr4": 0, "cr0": _PAGED, **registers})
        return _read(made.mmu, context, _LOW_VA)

    return run


_FOUR_BYTE = {_TABLE + 4 * 1: _NEXT | _PRESENT, _NEXT + 4 * 1: _LOW_VA | _PRESENT}
_LARGE = {_TABLE + 4 * 1: 0x40_0000 | 0x80 | _PRESENT}
_PAE_ENTRIES = {_TABLE + 8 * 2: _NEXT | _PRESENT, _NEXT + 8 * 1: _LOW_VA | _PRESENT}

ROWS = (
    Row("4-level, 4K", "none (native)", 4, _native(4)),
    Row("5-level, 4K", "none (native)", 5, _native(5)),
    Row("4-level, 4K", "4-level, 4K", 24, _nested("4K", "4K")),
    Row("4-level, 4K", "4-level, 2M", 19, _nested("4K", "2M")),
    Row("4-level, 4K", "4-level, 1G", 14, _nested("4K", "1G")),
    Row("4-level, 2M", "4-level, 4K", 19, _nested("2M", "4K")),
    Row("4-level, 2M", "4-level, 2M", 15, _nested("2M", "2M")),
    Row("4-level, 2M", "4-level, 1G", 11, _nested("2M", "1G")),
    Row("4-level, 1G", "4-level, 1G", 8, _nested("1G", "1G")),
    Row("5-level, 4K", "4-level, 4K", 29, _nested("4K", "4K", 5, 4)),
    Row("4-level, 4K", "5-level, 4K", 29, _nested("4K", "4K", 4, 5)),
    Row("5-level, 4K", "5-level, 4K", 35, _nested("4K", "4K", 5, 5)),
    Row("5-level, 2M", "5-level, 2M", 24, _nested("2M", "2M", 5, 5)),
    Row("32-bit 2-level, 4K", "4-level, 4K", 14, _legacy(_FOUR_BYTE, 4)),
    Row("32-bit, 4M page", "4-level, 4K", 9, _legacy(_LARGE, 4, cr4=_PSE)),
    Row(
        "PAE, 4K (PDPTEs in registers)",
        "4-level, 4K",
        14,
        _legacy(_PAE_ENTRIES, 8, cr4=_PAE, pdptes=(_TABLE | 1, 0, 0, 0)),
    ),
    Row("paging off", "4-level, 4K", 4, _legacy({}, 8, cr0=_PROTECTED)),
    Row("4-level, 4K", "flat table of one level", 9, None),
)
