"""A small guest for tests of the MMU: page tables over EPT, and contexts to run it under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.core.cases import shape_with
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu
from vtx.machine.paging import Ept, FrameAllocator, GuestPageTables
from vtx.machine.shape import TlbGeometry

#: PG, WP, PE; PAE and PGE; LME, LMA, NXE.
CR0, CR4, EFER = 0x8001_0001, 0xA0, 0xD00
PCIDE = 1 << 17
GUEST_TABLES = 0x10_0000


@dataclass
class Guest:
    """Guest tables in a guest-physical range that EPT maps, and the MMU to walk them."""

    memory: Memory
    ept: Ept
    tables: GuestPageTables
    mmu: Mmu

    def map(self, gva: int, gpa: int, hpa: int, size: str = "4K", **rights: Any) -> None:
        self.tables.map(gva, gpa, size, **rights)
        self.ept.map(gpa, hpa, size)

    def context(self, **changes: Any) -> Context:
        registers: dict[str, Any] = {
            "cr0": CR0, "cr3": self.tables.cr3, "cr4": CR4, "efer": EFER, "cpl": 3,
            "eptp": self.ept.eptp, "vpid": 1,
        }  # fmt: skip
        return Context(**registers | changes)


def make_guest(
    memory: Memory,
    tlb: TlbGeometry | None = None,
    *,
    accessed_dirty: bool = False,
    table_size: str = "4K",
    ept_levels: int = 4,
    guest_levels: int = 4,
) -> Guest:
    """Make a guest whose tables lie at guest-physical 1 MiB, host-physical 1 GiB above that."""
    ept = Ept(
        memory,
        FrameAllocator(0x100_0000, 0x200_0000),
        levels=ept_levels,
        accessed_dirty=accessed_dirty,
    )
    for gpa in range(0, 0x20_0000, {"4K": 0x1000, "2M": 0x20_0000, "1G": 1 << 30}[table_size]):
        ept.map(gpa, gpa + (1 << 30), table_size)
    tables = GuestPageTables(
        memory,
        FrameAllocator(GUEST_TABLES, 0x20_0000),
        ept.host_physical,
        levels=guest_levels,
    )
    shape = shape_with(tlb=tlb if tlb is not None else TlbGeometry())
    return Guest(memory, ept, tables, Mmu(memory, shape))
