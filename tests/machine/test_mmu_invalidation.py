"""What each invalidation removes, and what it leaves: a missing invalidation can be observed.

Every test warms translations, changes the tables under them, and looks which addresses still go to
the old page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.core.spaces import CR4, PCIDE, Guest, make_guest
from vtx.errors import InputError
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Dimension, Mmu, Source, WalkStatus

LOCAL, GLOBAL = 0x10_0000_0000, 0x10_0000_1000
OLD, NEW = 0x1_0000_0000, 0x1_1000_0000


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(64 << 30, huge_pages=False) as memory:
        yield memory


class Warm:
    """A local and a global page, cached under several VPIDs and PCIDs, then moved in the tables."""

    def __init__(self, memory: Memory) -> None:
        self.guest: Guest = make_guest(memory)
        self.mmu: Mmu = self.guest.mmu
        self.guest.map(LOCAL, 0x40_0000, OLD)
        self.guest.map(GLOBAL, 0x40_1000, OLD + 0x1000, is_global=True)
        self.contexts: dict[tuple[int, int], Context] = {
            (vpid, pcid): self.guest.context(
                vpid=vpid, cr4=CR4 | PCIDE, cr3=self.guest.tables.cr3 | pcid
            )
            for vpid, pcid in ((0, 0), (1, 0), (1, 7), (2, 0))
        }
        for context in self.contexts.values():
            for gva in (LOCAL, GLOBAL):
                assert self.mmu.translate(context, gva).hpa == OLD + (gva - LOCAL)
        # The guest moves the pages, the VMM knows where to.
        self.guest.map(LOCAL, 0x48_0000, NEW)
        self.guest.map(GLOBAL, 0x48_1000, NEW + 0x1000, is_global=True)

    def stale(self) -> set[tuple[int, int, str]]:
        """VPID, PCID and page of the translations that still show the old tables."""
        return {
            (vpid, pcid, name)
            for (vpid, pcid), context in self.contexts.items()
            for name, gva in (("local", LOCAL), ("global", GLOBAL))
            if self.mmu.translate(context, gva).hpa < NEW
        }


EVERYTHING = {
    (vpid, pcid, page)
    for vpid, pcid in ((0, 0), (1, 0), (1, 7), (2, 0))
    for page in ("local", "global")
}


def test_without_an_invalidation_old_translations_stay(memory: Memory) -> None:
    assert Warm(memory).stale() == EVERYTHING


def of_vpid(*vpids: int) -> set[tuple[int, int, str]]:
    return {key for key in EVERYTHING if key[0] in vpids}


MATRIX: list[tuple[str, Callable[[Warm], None], set[tuple[int, int, str]]]] = [
    (
        "INVLPG local",
        lambda w: w.mmu.invlpg(w.contexts[1, 7], LOCAL | 0xFFF),
        {(1, 7, "local")},
    ),
    (
        "INVLPG global",
        lambda w: w.mmu.invlpg(w.contexts[1, 7], GLOBAL),
        {(1, 0, "global"), (1, 7, "global")},
    ),
    (
        "INVPCID address",
        lambda w: w.mmu.invpcid(w.contexts[1, 0], 0, 7, LOCAL),
        {(1, 7, "local")},
    ),
    (
        "INVPCID address, global page",
        lambda w: w.mmu.invpcid(w.contexts[1, 0], 0, 7, GLOBAL),
        set(),
    ),
    ("INVPCID PCID", lambda w: w.mmu.invpcid(w.contexts[1, 0], 1, 7), {(1, 7, "local")}),
    ("INVPCID all", lambda w: w.mmu.invpcid(w.contexts[1, 0], 2), of_vpid(1)),
    (
        "INVPCID all but global",
        lambda w: w.mmu.invpcid(w.contexts[1, 0], 3),
        {(1, 0, "local"), (1, 7, "local")},
    ),
    ("MOV CR3", lambda w: w.mmu.mov_to_cr3(w.contexts[1, 0], 0x1007), {(1, 7, "local")}),
    ("MOV CR3, no flush", lambda w: w.mmu.mov_to_cr3(w.contexts[1, 0], 1 << 63 | 7), set()),
    (
        "MOV CR4, PGE cleared",
        lambda w: w.mmu.mov_to_cr4(w.contexts[1, 0], (CR4 & ~0x80) | PCIDE),
        of_vpid(1),
    ),
    ("MOV CR4, PCIDE cleared", lambda w: w.mmu.mov_to_cr4(w.contexts[1, 0], CR4), of_vpid(1)),
    (
        "MOV CR4, SMEP set",
        lambda w: w.mmu.mov_to_cr4(w.contexts[1, 0], CR4 | PCIDE | 1 << 20),
        of_vpid(1),
    ),
    (
        "MOV CR4, SMEP kept",
        lambda w: w.mmu.mov_to_cr4(w.contexts[1, 0], CR4 | PCIDE | 1 << 21),
        set(),
    ),
    ("MOV CR0, PG cleared", lambda w: w.mmu.mov_to_cr0(w.contexts[2, 0], 1), of_vpid(2)),
    ("MOV CR0, TS", lambda w: w.mmu.mov_to_cr0(w.contexts[2, 0], 0x8001_0009), set()),
    ("VM entry without VPID", lambda w: w.mmu.flush_vpid(0), of_vpid(0)),
    (
        "INVVPID address",
        lambda w: w.mmu.invvpid(0, 1, LOCAL),
        {(1, 0, "local"), (1, 7, "local")},
    ),
    (
        "INVVPID address, global page",
        lambda w: w.mmu.invvpid(0, 1, GLOBAL),
        {(1, 0, "global"), (1, 7, "global")},
    ),
    ("INVVPID single", lambda w: w.mmu.invvpid(1, 1), of_vpid(1)),
    ("INVVPID all", lambda w: w.mmu.invvpid(2), of_vpid(1, 2)),
    (
        "INVVPID single, retaining globals",
        lambda w: w.mmu.invvpid(3, 1),
        {(1, 0, "local"), (1, 7, "local")},
    ),
    ("INVEPT single", lambda w: w.mmu.invept(1, w.guest.ept.eptp), EVERYTHING),
    ("INVEPT single, other bits", lambda w: w.mmu.invept(1, w.guest.ept.eptp ^ 0x40), EVERYTHING),
    ("INVEPT single, another", lambda w: w.mmu.invept(1, w.guest.ept.eptp + 0x1000), set()),
    ("INVEPT all", lambda w: w.mmu.invept(2), EVERYTHING),
    ("reset", lambda w: w.mmu.flush_all(), EVERYTHING),
]


@pytest.mark.parametrize(("name", "invalidate", "gone"), MATRIX, ids=[row[0] for row in MATRIX])
def test_an_invalidation_removes_what_the_manual_says(
    memory: Memory,
    name: str,
    invalidate: Callable[[Warm], None],
    gone: set[tuple[int, int, str]],
) -> None:
    warm = Warm(memory)
    before = warm.mmu.generation
    invalidate(warm)
    # A global translation that one PCID has walked anew serves all PCIDs of its VPID.
    assert warm.stale() == EVERYTHING - gone
    if gone:
        assert warm.mmu.generation > before


def test_linear_mappings_are_not_invepts_business(memory: Memory) -> None:
    guest = make_guest(memory)
    from vtx.machine.paging import FrameAllocator, GuestPageTables

    tables = GuestPageTables(memory, FrameAllocator(0x500_0000, 0x600_0000))
    tables.map(LOCAL, 0x70_0000)
    native = guest.context(eptp=None, cr3=tables.cr3)
    assert guest.mmu.translate(native, LOCAL).ok
    guest.mmu.invept(2)
    assert guest.mmu.translate(native, LOCAL).source is Source.L1
    guest.mmu.invvpid(1, 1)
    assert guest.mmu.translate(native, LOCAL).source is Source.WALK


def test_guest_physical_mappings_are_not_invvpids_business(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.ept.map(0x40_0000, OLD)
    real = guest.context(cr0=0x21, cr4=0, efer=0)
    assert guest.mmu.translate(real, 0x40_0000).ok
    guest.mmu.invvpid(2)
    guest.mmu.invlpg(real, 0x40_0000)
    assert guest.mmu.translate(real, 0x40_0000).source is Source.L1
    guest.mmu.invept(1, guest.ept.eptp)
    assert guest.mmu.translate(real, 0x40_0000).source is Source.WALK


def test_a_changed_ept_needs_invept(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(LOCAL, 0x40_0000, OLD)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).hpa == OLD
    guest.ept.map(0x40_0000, NEW)
    guest.mmu.invvpid(2)  # combined mappings go, the nested TLB stays
    assert guest.mmu.translate(context, LOCAL).hpa == OLD
    guest.mmu.invept(2)
    assert guest.mmu.translate(context, LOCAL).hpa == NEW


def test_invlpg_removes_every_piece_of_a_large_page(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.tables.map(0x4000_0000, 0x4000_0000, "2M")
    for page in range(512):  # EPT maps it by 4-KByte pages, so the TLB holds pieces
        guest.ept.map(0x4000_0000 + page * 4096, OLD + page * 4096)
    context = guest.context()
    assert all(guest.mmu.translate(context, 0x4000_0000 + p * 4096).ok for p in range(8))
    guest.mmu.invlpg(context, 0x4000_0000 + 300 * 4096)
    sources = {guest.mmu.translate(context, 0x4000_0000 + p * 4096).source for p in range(8)}
    assert sources == {Source.WALK}


def test_invlpg_forgets_the_paging_structures_of_the_pcid(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(LOCAL, 0x40_0000, OLD)
    guest.map(LOCAL + 0x2000, 0x40_2000, OLD + 0x2000)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).ok
    # The page directory entry now leads to another table: the old one is cached.
    table = guest.tables._new_table()
    memory.write_u64(guest.ept.host_physical(table) + 8 * 2, 0x40_5000 | 7)
    guest.ept.map(0x40_5000, NEW)
    steps = guest.mmu.walk(context, LOCAL).steps
    pde = next(s for s in steps if (s.dimension, s.level, s.kind) == (1, 2, 0))
    memory.write_u64(pde.address, table | 7)
    assert guest.mmu.translate(context, LOCAL + 0x2000).hpa == OLD + 0x2000
    guest.mmu.invlpg(context, LOCAL + 0x2000)
    assert guest.mmu.translate(context, LOCAL + 0x2000).hpa == NEW


def test_a_cached_table_remembers_that_ept_does_not_let_it_be_written(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(LOCAL, 0x40_0000, OLD, accessed=True)
    guest.map(LOCAL + 0x1000, 0x40_1000, OLD + 0x1000)
    context = guest.context()
    for step in guest.mmu.walk(context, LOCAL).steps:  # sets the accessed flags above the leaf
        if step.dimension is Dimension.GUEST:
            guest.ept.protect(step.gpa, write=False)
    assert guest.mmu.translate(context, LOCAL).ok
    walk = guest.mmu.translate(context, LOCAL + 0x1000)
    assert guest.mmu.counters()["guest_cache_hits_level2"] == 1
    assert (walk.status, walk.qualification) == (WalkStatus.EPT_VIOLATION, 0b1010_1011)


# ---- What faults invalidate ----


def test_a_page_fault_forgets_the_address_so_that_a_retry_sees_the_tables(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(LOCAL, 0x40_0000, OLD, write=False)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).ok
    assert guest.mmu.translate(context, LOCAL, Access.STORE).status is WalkStatus.PAGE_FAULT
    assert guest.mmu.translate(context, LOCAL).source is Source.WALK


def test_an_ept_violation_forgets_what_translated_the_address(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.tables.map(LOCAL, 0x40_0000)
    guest.ept.map(0x40_0000, OLD, write=False)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).ok
    assert guest.mmu.translate(context, LOCAL, Access.STORE).status is WalkStatus.EPT_VIOLATION
    guest.ept.map(0x40_0000, NEW)
    assert guest.mmu.translate(context, LOCAL, Access.STORE).hpa == NEW  # no INVEPT needed


def test_an_ept_violation_forgets_the_guest_physical_address_too(memory: Memory) -> None:
    guest = make_guest(memory)
    alias = LOCAL + 0x5000
    guest.tables.map(LOCAL, 0x40_0000)
    guest.tables.map(alias, 0x40_0000)
    guest.ept.map(0x40_0000, OLD, write=False)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).ok
    assert guest.mmu.translate(context, LOCAL, Access.STORE).status is WalkStatus.EPT_VIOLATION
    guest.ept.map(0x40_0000, NEW)
    assert guest.mmu.translate(context, alias).hpa == NEW


def test_a_write_to_a_clean_cached_page_sets_the_dirty_flag(memory: Memory) -> None:
    guest = make_guest(memory, accessed_dirty=True)
    guest.map(LOCAL, 0x40_0000, OLD)
    context = guest.context()
    assert guest.mmu.translate(context, LOCAL).ok
    assert guest.mmu.translate(context, LOCAL, Access.STORE).ok
    leaf, page = guest.tables.lookup(LOCAL), guest.ept.lookup(0x40_0000)
    assert leaf and leaf.dirty
    assert page and page.dirty
    counters = guest.mmu.counters()
    assert (counters["rewalks"], counters["l1d_hits"], counters["l1d_misses"]) == (1, 1, 1)
    assert guest.mmu.translate(context, LOCAL, Access.STORE).source is Source.L1


def test_rights_are_judged_anew_under_each_context(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(LOCAL, 0x40_0000, OLD, write=False, user=True, execute=True, protection_key=3)
    user, kernel = guest.context(), guest.context(cpl=0)
    assert guest.mmu.translate(user, LOCAL).ok
    assert guest.mmu.translate(kernel, LOCAL, Access.FETCH).ok
    kernel.cr4 |= 1 << 20  # SMEP
    assert guest.mmu.translate(kernel, LOCAL, Access.FETCH).error_code == 0x11
    kernel.cr4 |= 1 << 21  # SMAP
    assert guest.mmu.translate(kernel, LOCAL).error_code == 1
    kernel.rflags |= 1 << 18  # AC
    assert guest.mmu.translate(kernel, LOCAL).ok
    assert guest.mmu.translate(kernel, LOCAL, Access.IMPLICIT_LOAD).error_code == 1
    assert guest.mmu.translate(kernel, LOCAL, Access.STORE).error_code == 3
    kernel.cr0 &= ~(1 << 16)  # WP
    assert guest.mmu.translate(kernel, LOCAL, Access.STORE).ok
    user.cr4 |= 1 << 22  # PKE
    assert guest.mmu.translate(user, LOCAL).ok
    user.pkru = 1 << 6  # access disable for key 3
    assert guest.mmu.translate(user, LOCAL).error_code == 0x25


# ---- Wrong use ----


@pytest.mark.parametrize(
    "use",
    [
        lambda m, c: m.invept(0),
        lambda m, c: m.invept(3),
        lambda m, c: m.invvpid(4),
        lambda m, c: m.invpcid(c, 4),
    ],
)
def test_a_type_that_does_not_exist_is_an_error(
    memory: Memory, use: Callable[[Mmu, Context], None]
) -> None:
    guest = make_guest(memory)
    with pytest.raises(InputError, match="types"):
        use(guest.mmu, guest.context())


def test_a_copy_of_a_context_is_one_of_its_own() -> None:
    context = Context(cr3=0x5000, vpid=1, eptp=0x201E, pdptes=(1, 2, 3, 4))
    twin = context.copy()
    twin.vpid = 2
    assert (twin.cr3, twin.eptp, twin.pdptes) == (0x5000, 0x201E, (1, 2, 3, 4))
    assert (context.vpid, twin.vpid) == (1, 2)
