"""Caches of both dimensions against a plain model of what they may keep, under any invalidations.

The model says of every translation whether it shows the tables as they are or as they were: after
the right invalidation it must be new, and where that is missing it must be old. One word of the
tables changes, of one of four kinds: a guest PTE or PDE, an EPT PTE or PDE.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.spaces import CR4, PCIDE, Guest, make_guest
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context
from vtx.machine.paging import Ept, FrameAllocator
from vtx.machine.shape import TlbArray, TlbGeometry

#: Everything fits: nothing goes but by invalidation.
ROOMY = TlbGeometry((TlbArray(1, "unified", ("4K",), 256, 256),), 64, 64, 64, 64, 256)
BASE, DATA, OLD, NEW, HOST = 0x10_0000_0000, 0x40_0000, 0x1_0000_0000, 0x1_1000_0000, 1 << 30
PAGES = ("local", "other", "global")
VPIDS, PCIDS, EPTS = (0, 1, 2), (0, 7), (0, 1)
PGE, PG, KEEP = 1 << 7, 1 << 31, 1 << 63
CHANGES = ("guest pte", "guest pde", "ept pte", "ept pde")
Key = tuple[int, int, int]


class Model:
    """What each cache shows: True the new tables, False the old ones."""

    def __init__(self, change: str) -> None:
        self.change = change
        self.now = False
        self.tlb: dict[tuple[int, int | None, int, str], bool] = {}
        self.tables: dict[Key, bool] = {}  # guest PDEs
        self.nested: dict[tuple[int, str], bool] = {}
        self.ept_tables: dict[int, bool] = {}  # EPT PDEs

    def access(self, vpid: int, pcid: int, ept: int, page: str) -> bool:
        key = (vpid, None if page == "global" else pcid, ept, page)
        if key not in self.tlb:
            self.tlb[key] = self.walk((vpid, pcid, ept), page)
        return self.tlb[key]

    def walk(self, key: Key, page: str) -> bool:
        table = self.tables.setdefault(key, self.now)
        place = (key[2], page)
        if place not in self.nested:
            ept_table = self.ept_tables.setdefault(key[2], self.now)
            self.nested[place] = ept_table if self.change == "ept pde" else self.now
        return {"guest pte": self.now, "guest pde": table}.get(self.change, self.nested[place])

    def linear(self, vpids: tuple[int, ...], pcids: tuple[int, ...], *, globals_: bool,
               page: str | None = None, tables: bool = True) -> None:  # fmt: skip
        """Remove linear and combined mappings; `tables`: whatever the page, here all are near."""
        for vpid, pcid, ept, name in list(self.tlb):
            ours = globals_ if pcid is None else pcid in pcids
            if vpid in vpids and ours and page in (None, name):
                del self.tlb[vpid, pcid, ept, name]
        for vpid, pcid, ept in list(self.tables):
            if tables and vpid in vpids and pcid in pcids:
                del self.tables[vpid, pcid, ept]

    def invept(self, epts: tuple[int, ...]) -> None:
        self.tlb = {key: new for key, new in self.tlb.items() if key[2] not in epts}
        self.tables = {key: new for key, new in self.tables.items() if key[2] not in epts}
        self.nested = {key: new for key, new in self.nested.items() if key[0] not in epts}
        self.ept_tables = {key: new for key, new in self.ept_tables.items() if key not in epts}


class Pair:
    """The core and the model."""

    def __init__(self, memory: Memory, change: str) -> None:
        self.guest: Guest = make_guest(memory, ROOMY)
        self.memory, self.mmu, self.model = memory, self.guest.mmu, Model(change)
        second = Ept(memory, FrameAllocator(0x200_0000, 0x300_0000))
        for gpa in range(0, 0x20_0000, 0x1000):
            second.map(gpa, gpa + HOST)
        self.epts = (self.guest.ept, second)
        for number, page in enumerate(PAGES):
            at = number << 12
            self.guest.tables.map(BASE + at, DATA + at, "4K", is_global=page == "global")
            for ept in self.epts:
                ept.map(DATA + at, OLD + at)
                ept.map(DATA + (NEW - OLD) + at, NEW + at)

    def context(self, vpid: int, pcid: int, ept: int) -> Context:
        cr3 = self.guest.tables.cr3 | pcid
        return self.guest.context(vpid=vpid, cr4=CR4 | PCIDE, cr3=cr3, eptp=self.epts[ept].eptp)

    def access(self, vpid: int, pcid: int, ept: int, page: str) -> None:
        gva = BASE + (PAGES.index(page) << 12)
        walk = self.mmu.translate(self.context(vpid, pcid, ept), gva)
        expected = self.model.access(vpid, pcid, ept, page)
        assert (walk.hpa >= NEW) == expected, (vpid, pcid, ept, page)

    def everything(self) -> None:
        for access in product(VPIDS, PCIDS, EPTS, PAGES):
            self.access(*access)

    def _table(self, root: int, address: int, host: int) -> int:
        """Host-physical address of the PDE for an address."""
        for shift in (39, 30):
            entry = self.memory.read_u64(root + host + (address >> shift & 511) * 8)
            root = entry & 0xF_FFFF_FFFF_F000
        return root + host + (address >> 21 & 511) * 8

    def _move(self, root: int, address: int, host: int, spare: int, *, table: bool) -> None:
        """Let the leaves for three pages lead to the new ones, in place or in a copied table."""
        at = self._table(root, address, host)
        entry = self.memory.read_u64(at)
        old = entry & 0xF_FFFF_FFFF_F000
        new = spare if table else old
        first = address >> 12 & 511
        for number in range(first, first + len(PAGES)):
            leaf = self.memory.read_u64(old + host + 8 * number)
            self.memory.write_u64(new + host + 8 * number, leaf + (NEW - OLD))
        self.memory.write_u64(at, entry - old + new)

    def change(self) -> None:
        """Change the tables; no invalidation."""
        self.model.now = True
        kind, table = self.model.change[:3], self.model.change.endswith("pde")
        if kind == "gue":
            self._move(self.guest.tables.cr3, BASE, HOST, 0x1F_F000, table=table)
            return
        for number, ept in enumerate(self.epts):
            spare = 0x300_0000 + 0x1000 * number
            self._move(ept.eptp & ~0xFFF, DATA, 0, spare, table=table)

    def invalidate(self, kind: str, vpid: int, pcid: int, ept: int, page: str, type_: int) -> None:
        context, gva = self.context(vpid, pcid, ept), BASE + (PAGES.index(page) << 12)
        model, mine = self.model, (vpid,)
        match kind, type_:
            case "invept", _:
                self.mmu.invept(1 + type_ % 2, self.epts[ept].eptp)
                model.invept(EPTS if type_ % 2 else (ept,))
            case "invvpid", _:
                self.mmu.invvpid(type_, vpid, gva)
                model.linear(
                    (1, 2) if type_ == 2 else mine, PCIDS, globals_=type_ != 3,
                    page=page if type_ == 0 else None,
                )  # fmt: skip
            case "invpcid", _:
                self.mmu.invpcid(context, type_, pcid, gva)
                model.linear(
                    mine, PCIDS if type_ > 1 else (pcid,), globals_=type_ == 2,
                    page=page if type_ == 0 else None,
                )  # fmt: skip
            case "invlpg", _:
                self.mmu.invlpg(context, gva)
                model.linear(mine, (pcid,), globals_=True, page=page)
            case "register", 0:
                self.mmu.mov_to_cr3(context, context.cr3)
                model.linear(mine, (pcid,), globals_=False)
            case "register", 1:
                self.mmu.mov_to_cr3(context, context.cr3 | KEEP)
            case "register", 2:
                self.mmu.mov_to_cr4(context, context.cr4 ^ PGE)
                model.linear(mine, PCIDS, globals_=True)
            case "register", _:
                self.mmu.mov_to_cr0(context, context.cr0 & ~PG)
                model.linear(mine, PCIDS, globals_=True)
            case _:  # VM entry or VM exit without VPIDs
                self.mmu.flush_vpid(0)
                model.linear((0,), PCIDS, globals_=True)


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(16 << 30, huge_pages=False) as memory:
        yield memory


accesses = st.tuples(*map(st.sampled_from, (VPIDS, PCIDS, EPTS, PAGES)))
invalidations = st.tuples(
    st.sampled_from(["invept", "invvpid", "invpcid", "invlpg", "register", "transition"]),
    *map(st.sampled_from, (VPIDS, PCIDS, EPTS, PAGES)),
    st.integers(0, 3),
)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(CHANGES),
    st.lists(accesses, max_size=36),
    st.lists(invalidations, max_size=4),
    st.lists(st.one_of(accesses, invalidations), max_size=12),
)
def test_what_is_old_and_what_is_new_after_any_invalidations(
    memory: Memory, change: str, warm: list[tuple[int, int, int, str]],
    early: list[tuple[str, int, int, int, str, int]], late: list[tuple],
) -> None:  # fmt: skip
    memory.clear()
    pair = Pair(memory, change)
    for access in warm:
        pair.access(*access)
    for invalidation in early:
        pair.invalidate(*invalidation)
    pair.change()
    for operation in late:
        if len(operation) == 4:
            pair.access(*operation)
        else:
            pair.invalidate(*operation)
    pair.everything()


@pytest.mark.parametrize("change", CHANGES)
def test_without_an_invalidation_all_is_old_and_after_the_widest_all_is_new(
    memory: Memory, change: str
) -> None:
    memory.clear()
    pair = Pair(memory, change)
    pair.everything()
    pair.change()
    pair.everything()
    assert not any(pair.model.tlb.values())
    pair.invalidate("invept", 0, 0, 0, "local", 1)
    pair.everything()
    assert all(pair.model.tlb.values())
