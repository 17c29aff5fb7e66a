"""Walks: their references in order, their numbers, and the rules that corpora cannot reach."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.cases import BARE
from tests.core.spaces import CR4, make_guest
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Dimension, StepKind, WalkStatus

VA = 0x7F12_3456_7000
LA57 = 1 << 12


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(64 << 30, huge_pages=False) as memory:
        yield memory


@pytest.mark.parametrize(
    ("guest_size", "ept_size", "references"),
    [("4K", "4K", 24), ("4K", "2M", 19), ("2M", "2M", 15), ("2M", "1G", 11), ("1G", "1G", 8)],
)
def test_a_walk_makes_g_plus_1_times_h_plus_1_minus_1_references(
    memory: Memory, guest_size: str, ept_size: str, references: int
) -> None:
    # All EPT pages have one size: guest tables live in a page of the size under test.
    guest = make_guest(memory, BARE, table_size=ept_size)
    guest.tables.map(VA & -(1 << 30), 2 << 30, guest_size)
    guest.ept.map(2 << 30, 4 << 30, ept_size)
    walk = guest.mmu.walk(guest.context(), VA & -(1 << 30) | 0x123)
    assert walk.ok
    assert walk.hpa == (4 << 30) + 0x123
    assert walk.references == references
    g = {"4K": 4, "2M": 3, "1G": 2}[guest_size]
    h = {"4K": 4, "2M": 3, "1G": 2}[ept_size]
    assert references == (g + 1) * (h + 1) - 1


def test_five_levels_over_five_levels_make_35_references(memory: Memory) -> None:
    guest = make_guest(memory, BARE, ept_levels=5, guest_levels=5)
    guest.map(0x12_3456_7000, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(cr4=CR4 | LA57), 0x12_3456_7000)
    assert (walk.status, walk.references) == (WalkStatus.OK, 35)


def test_the_references_come_in_the_manuals_order(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA)
    reads = [step for step in walk.steps if step.kind is StepKind.READ]
    expected = []
    for guest_level in (4, 3, 2, 1):
        expected += [(Dimension.EPT, level, guest_level) for level in (4, 3, 2, 1)]
        expected += [(Dimension.GUEST, guest_level, guest_level)]
    expected += [(Dimension.EPT, level, 0) for level in (4, 3, 2, 1)]
    assert [(s.dimension, s.level, s.guest_level) for s in reads] == expected
    for step in reads:
        assert memory.read_u64(step.address) & ~0x60 == step.value & ~0x60
    guest_steps = [step for step in reads if step.dimension is Dimension.GUEST]
    assert guest_steps[0].gpa == guest.tables.cr3 | (VA >> 39 & 511) << 3
    assert all(step.address == step.gpa + (1 << 30) for step in guest_steps)


def test_without_paging_a_linear_address_is_a_guest_physical_address(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.ept.map(0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(cr0=0x21, cr4=0, efer=0), 0x40_0ABC)
    assert (walk.hpa, walk.references, walk.guest_shift) == (0x80_0ABC, 4, 0)


def test_without_paging_and_ept_nothing_is_read(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    context = guest.context(cr0=0x21, cr4=0, efer=0, eptp=None)
    walk = guest.mmu.translate(context, 0x1234, record=True)
    assert (walk.status, walk.hpa, walk.steps) == (WalkStatus.OK, 0x1234, [])
    beyond = guest.mmu.translate(guest.context(cr0=0x21, cr4=0, efer=0, eptp=None), 0xFFFF_FFFF)
    assert beyond.ok  # 64 GiB of memory hold every 32-bit address


def test_native_paging_reads_one_entry_a_level(memory: Memory) -> None:
    from vtx.machine.paging import FrameAllocator, GuestPageTables

    guest = make_guest(memory, BARE)
    tables = GuestPageTables(memory, FrameAllocator(0x500_0000, 0x600_0000))
    tables.map(VA, 0x70_0000)
    walk = guest.mmu.walk(guest.context(eptp=None, cr3=tables.cr3), VA)
    assert (walk.hpa, walk.references, walk.ept_shift) == (0x70_0000, 4, 0)


# ---- Accessed and dirty flags ----


def test_a_read_sets_accessed_and_a_write_dirty(memory: Memory) -> None:
    guest = make_guest(memory, BARE, accessed_dirty=True)
    guest.map(VA, 0x40_0000, 0x80_0000)
    context = guest.context()
    assert guest.mmu.walk(context, VA).ok
    leaf, page = guest.tables.lookup(VA), guest.ept.lookup(0x40_0000)
    assert leaf and leaf.accessed and not leaf.dirty
    assert page and page.accessed and not page.dirty
    assert guest.mmu.walk(context, VA, Access.STORE).ok
    leaf, page = guest.tables.lookup(VA), guest.ept.lookup(0x40_0000)
    assert leaf and leaf.dirty
    assert page and page.dirty
    # Guest entries are written by the processor: with the flags on, EPT counts that as a write.
    root = guest.ept.lookup(guest.tables.cr3)
    assert root and root.dirty


def test_without_ept_flags_ept_entries_are_never_written(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA, Access.STORE)
    writes = [s for s in walk.steps if s.kind is StepKind.WRITE]
    assert {s.dimension for s in writes} == {Dimension.GUEST}
    assert [s.level for s in writes] == [4, 3, 2, 1]


@pytest.mark.parametrize("access", list(Access)[:4])
def test_a_guest_flag_that_ept_does_not_let_be_written_is_a_violation(
    memory: Memory, access: Access
) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    leaf_gpa = guest.tables.entry_address(VA) - (1 << 30)
    guest.ept.protect(leaf_gpa, write=False)
    walk = guest.mmu.walk(guest.context(), VA, access)
    assert walk.status is WalkStatus.EPT_VIOLATION
    # Read and write; the entry's page can be read and executed; linear address valid, bit 8 clear.
    assert (walk.qualification, walk.gpa, walk.translated) == (0b1010_1011, leaf_gpa, False)


def test_flags_already_set_need_no_write(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    assert guest.mmu.walk(guest.context(), VA, Access.STORE).ok
    for step in guest.mmu.walk(guest.context(), VA).steps:
        if step.dimension is Dimension.GUEST:
            guest.ept.protect(step.gpa, write=False)
    assert guest.mmu.walk(guest.context(), VA, Access.STORE).ok


def test_with_ept_flags_every_guest_entry_must_be_writable(memory: Memory) -> None:
    guest = make_guest(memory, BARE, accessed_dirty=True)
    guest.map(VA, 0x40_0000, 0x80_0000)
    guest.ept.protect(guest.tables.cr3, write=False)
    walk = guest.mmu.walk(guest.context(), VA)
    assert walk.status is WalkStatus.EPT_VIOLATION
    assert walk.qualification == 0b1010_1011
    assert walk.gpa == guest.tables.cr3 | (VA >> 39 & 511) << 3


# ---- EPT details ----


def test_bit_12_of_a_large_ept_page_is_reserved(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.tables.map(VA & -(1 << 21), 2 << 30, "2M")
    guest.ept.map(2 << 30, 4 << 30, "2M")
    place = guest.ept.entry_address(2 << 30)
    memory.write_u64(place, memory.read_u64(place) | 1 << 12)
    walk = guest.mmu.walk(guest.context(), VA)
    assert (walk.status, walk.gpa) == (
        WalkStatus.EPT_MISCONFIGURATION,
        (2 << 30) + (VA & 0x1F_FFFF),
    )


def test_suppress_ve_can_be_read_from_the_last_entry(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.tables.map(VA, 0x40_0000)
    guest.ept.map(0x40_0000, 0x80_0000, read=False, write=False, execute=False, suppress_ve=True)
    walk = guest.mmu.walk(guest.context(), VA)
    assert walk.status is WalkStatus.EPT_VIOLATION
    assert walk.ept_entry >> 63 == 1
    assert walk.ept_level == 1


def test_mode_based_execute_looks_at_the_right_of_the_linear_address(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.tables.map(VA, 0x40_0000, user=True)
    guest.tables.map(VA + 0x1000, 0x40_1000, user=False)
    for page in (0, 0x1000):
        guest.ept.map(0x40_0000 + page, 0x80_0000 + page, execute=False, user_execute=True)
    user, kernel = guest.context(), guest.context(cpl=0)
    assert guest.mmu.walk(user, VA, Access.FETCH).status is WalkStatus.EPT_VIOLATION
    for context in (user, kernel):
        context.mode_based_execute = True
    assert guest.mmu.walk(user, VA, Access.FETCH).ok
    walk = guest.mmu.walk(kernel, VA + 0x1000, Access.FETCH)
    assert walk.status is WalkStatus.EPT_VIOLATION
    assert walk.qualification & 0b111_1111 == 0b101_1100  # fetch; R, W, user-execute


def test_a_guest_physical_address_alone_has_no_linear_address(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    walk = guest.mmu.translate_guest_physical(guest.context(), 0x40_0000, record=True)
    assert (walk.status, walk.qualification) == (WalkStatus.EPT_VIOLATION, 1)
    guest.ept.map(0x40_0000, 0x80_0000)
    walk = guest.mmu.translate_guest_physical(guest.context(), 0x40_0008, record=True)
    assert (walk.hpa, walk.references) == (0x80_0008, 4)
    assert guest.mmu.translate_guest_physical(guest.context(eptp=None), 0x42).hpa == 0x42


def test_tables_beyond_memory_are_told_by_address() -> None:
    with Memory(1 << 31, huge_pages=False) as memory:
        guest = make_guest(memory, BARE)
        guest.tables.map(VA, 0x40_0000)
        guest.ept.map(0x40_0000, 1 << 35)
        walk = guest.mmu.walk(guest.context(), VA | 0x10)
        assert (walk.status, walk.fault_address) == (WalkStatus.BEYOND_MEMORY, 1 << 35 | 0x10)
        walk = guest.mmu.walk(guest.context(eptp=1 << 36 | 0x1E), VA)
        assert walk.status is WalkStatus.BEYOND_MEMORY


def test_a_large_page_that_memory_ends_in_is_cached_as_far_as_memory_goes() -> None:
    end = (1 << 31) + 0x3000
    with Memory(end, huge_pages=False) as memory:
        guest = make_guest(memory)
        guest.tables.map(VA & -(1 << 21), 0x4000_0000, "2M")
        guest.ept.map(0x4000_0000, 1 << 31, "2M")
        context = guest.context()
        for _ in range(2):
            walk = guest.mmu.translate(context, (VA & -(1 << 21)) + 0x2FF8)
            assert (walk.hpa, walk.page_shift) == (end - 8, 12)
            walk = guest.mmu.translate(context, (VA & -(1 << 21)) + 0x3000)
            assert (walk.status, walk.fault_address) == (WalkStatus.BEYOND_MEMORY, end)


# ---- Page-modification logging ----


def test_dirty_pages_are_logged_downwards_until_the_log_is_full(memory: Memory) -> None:
    guest = make_guest(memory, BARE, accessed_dirty=True)
    for page in range(0, 0x4000, 0x1000):
        guest.map(VA + page, 0x40_0000 + page, 0x80_0000 + page)
    context = guest.context()
    assert guest.mmu.walk(context, VA + 0x3000, Access.STORE).ok  # the tables are dirty now
    context.pml_address, context.pml_index = 0x90_0000, 1
    for page in (0, 0x1000):
        assert guest.mmu.walk(context, VA + page + 0x123, Access.STORE).ok
    assert memory.read_u64(0x90_0008) == 0x40_0000
    assert memory.read_u64(0x90_0000) == 0x40_1000
    assert context.pml_index == 0xFFFF
    # A dirty page is not logged again; a clean one is not touched while the log is full.
    assert guest.mmu.walk(context, VA, Access.STORE).ok
    walk = guest.mmu.walk(context, VA + 0x2123, Access.STORE)
    assert (walk.status, walk.gpa) == (WalkStatus.PML_FULL, 0x40_2123)
    page = guest.ept.lookup(0x40_2000)
    assert page and not page.dirty and not page.accessed


# ---- What a walk says in words ----


def test_a_walk_explains_itself(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    assert guest.mmu.walk(guest.context(), VA).explain() == "load at 0x7f1234567000: #PF(0x4)"
    guest.tables.map(VA, 0x40_0000)
    text = guest.mmu.walk(guest.context(), VA, Access.STORE).explain()
    assert text == (
        "store at 0x7f1234567000: EPT violation at guest-physical address 0x400000, "
        "qualification 0x782"
    )
    guest.ept.map(0x40_0000, 0x80_0000)
    assert "host-physical address 0x800000" in repr(guest.mmu.walk(guest.context(), VA))
    bad = guest.mmu.walk(guest.context(), 1 << 50)
    assert bad.explain() == "load at 0x4000000000000: non canonical"
