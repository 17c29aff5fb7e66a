"""The builders write what the walker reads, and refuse what they would have to guess."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.cases import BARE, shape_with
from tests.core.spaces import make_guest
from vtx.errors import InputError, UnknownName
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Mmu, WalkStatus
from vtx.machine.paging import Ept, FrameAllocator, GuestPageTables

GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(8 << 30, huge_pages=False) as memory:
        yield memory


@pytest.fixture
def ept(memory: Memory) -> Ept:
    return Ept(memory, FrameAllocator(0x10_0000, 0x20_0000))


@pytest.fixture
def tables(memory: Memory) -> GuestPageTables:
    return GuestPageTables(memory, FrameAllocator(0x20_0000, 0x30_0000))


# ---- Frames ----


def test_frames_are_aligned_and_come_back() -> None:
    frames = FrameAllocator(0x1100, 0x60_0000)
    assert frames.allocate() == 0x2000
    assert frames.allocate("2M") == 0x20_0000
    assert frames.allocate() % 0x1000 == 0  # from the gap before the large frame
    assert frames.used == 0x20_2000
    frames.free(0x2000)
    assert frames.used == 0x20_1000
    assert frames.allocate() == 0x2000


def test_frames_run_out_with_a_sentence() -> None:
    frames = FrameAllocator(0, 0x2000)
    assert {frames.allocate(), frames.allocate()} == {0, 0x1000}
    with pytest.raises(InputError, match="no 4K frame is left between 0x0 and 0x2000"):
        frames.allocate()
    with pytest.raises(InputError, match="no 1G frame"):
        frames.allocate("1G")


@pytest.mark.parametrize("frame", [0x2000, 0x3000, 0x1001, 0x1_0000])
def test_only_frames_that_were_handed_out_come_back(frame: int) -> None:
    frames = FrameAllocator(0x1000, 0x8000)
    frames.allocate()
    frames.allocate()
    frames.free(0x2000)
    with pytest.raises(InputError, match="handed out"):
        frames.free(frame)


def test_an_empty_range_has_no_frames() -> None:
    with pytest.raises(InputError, match="empty"):
        FrameAllocator(0x2000, 0x2000)


# ---- EPT ----


def test_eptp_names_the_root_and_the_walk(memory: Memory) -> None:
    frames = FrameAllocator(0x10_0000, 0x20_0000)
    assert Ept(memory, frames).eptp == 0x10_001E
    assert Ept(memory, frames, levels=5, accessed_dirty=True).eptp == 0x10_1066
    with pytest.raises(InputError, match="4 or 5 levels"):
        Ept(memory, frames, levels=3)


@given(
    st.dictionaries(st.integers(0, (1 << 36) - 1), st.integers(0, (1 << 28) - 1), max_size=30),
    st.integers(0, (1 << 36) - 1),
)
def test_what_is_mapped_is_found(pages: dict[int, int], other: int) -> None:
    with Memory(8 << 30, huge_pages=False) as memory:
        ept = Ept(memory, FrameAllocator(0, 0x100_0000))
        for page, frame in pages.items():
            ept.map(page << 12, frame << 12)
        for page, frame in pages.items():
            mapping = ept.lookup(page << 12 | 0x123)
            assert mapping
            assert (mapping.hpa, mapping.size) == (frame << 12 | 0x123, "4K")
        assert (ept.lookup(other << 12) is not None) == (other in pages)


def test_leaves_hold_what_was_asked_for(ept: Ept, memory: Memory) -> None:
    ept.map(0, 0x20_0000, "2M", write=False, execute=False, memory_type=0, ignore_pat=True)
    assert memory.read_u64(ept.entry_address(0)) == 0x20_0000 | 0x80 | 0x40 | 1
    ept.map(GIB, GIB, "1G", suppress_ve=True, user_execute=False)
    mapping = ept.lookup(GIB + 5)
    assert mapping
    assert mapping.entry == GIB | 1 << 63 | 0x80 | 6 << 3 | 7
    assert (mapping.hpa, mapping.size, mapping.memory_type) == (GIB + 5, "1G", 6)
    assert (mapping.readable, mapping.writable, mapping.executable) == (True, True, True)
    assert (mapping.accessed, mapping.dirty) == (False, False)


def test_rights_change_and_pages_go(ept: Ept) -> None:
    ept.map(0x1000, 0x5000)
    ept.protect(0x1FFF, write=False)
    mapping = ept.lookup(0x1000)
    assert mapping and mapping.readable and not mapping.writable and mapping.executable
    ept.protect(0x1000, write=True, read=False, user_execute=False)
    mapping = ept.lookup(0x1000)
    assert mapping and mapping.entry & 0x407 == 0b110
    assert ept.host_physical(0x1234) == 0x5234
    ept.unmap(0x1000)
    assert ept.lookup(0x1000) is None
    for use in (ept.unmap, ept.protect, ept.entry_address, ept.host_physical):
        with pytest.raises(InputError, match=r"guest-physical address 0x1000 is not mapped"):
            use(0x1000)  # type: ignore[operator]


def test_a_page_can_be_mapped_anew_but_not_split(ept: Ept) -> None:
    ept.map(0x20_0000, 0x40_0000, "2M")
    ept.map(0x20_0000, 0x60_0000, "2M")
    assert ept.host_physical(0x20_0000) == 0x60_0000
    with pytest.raises(InputError, match="0x201000 lies in a 2M page, which is not split"):
        ept.map(0x20_1000, 0x1000)
    with pytest.raises(InputError, match="0x0 is mapped by smaller pages than 1G"):
        ept.map(0, GIB, "1G")
    ept.unmap(0x20_0000)
    ept.map(0x20_1000, 0x1000)
    assert ept.host_physical(0x20_1000) == 0x1000


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda e: e.map(0x1001, 0), "0x1001 is not aligned to a 4K page"),
        (lambda e: e.map(0, 0x1000, "2M"), "host-physical address 0x1000 is not aligned to a 2M"),
        (lambda e: e.map(1 << 48, 0), "does not fit the 48 bits"),
        (lambda e: e.map(-4096, 0), "does not fit"),
        (lambda e: e.map(0, 0, memory_type=8), "3 bits"),
    ],
)
def test_impossible_mappings_are_refused(
    ept: Ept, use: Callable[[Ept], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        use(ept)


def test_an_unknown_page_size_gets_a_hint(ept: Ept) -> None:
    with pytest.raises(UnknownName, match="page size '4k'") as caught:
        ept.map(0, 0, "4k")
    assert caught.value.suggestions == ["4K"]


# ---- Guest page tables ----


def test_guest_leaves_hold_what_was_asked_for(tables: GuestPageTables, memory: Memory) -> None:
    tables.map(
        0x7000, 0x9000, write=False, user=False, execute=False, is_global=True, protection_key=5
    )
    assert memory.read_u64(tables.entry_address(0x7000)) == 1 << 63 | 5 << 59 | 0x100 | 0x9000 | 1
    tables.map(0x20_0000, 0x40_0000, "2M", accessed=True, dirty=True)
    mapping = tables.lookup(0x20_0042)
    assert mapping
    assert (mapping.gpa, mapping.size, mapping.entry) == (0x40_0042, "2M", 0x40_00E7)
    assert (mapping.writable, mapping.user, mapping.executable) == (True, True, True)
    assert (mapping.accessed, mapping.dirty) == (True, True)


def test_the_upper_half_is_mapped_by_canonical_addresses(tables: GuestPageTables) -> None:
    top = 0xFFFF_FFFF_FFFF_F000
    tables.map(top, 0x3000)
    mapping = tables.lookup(top + 8)
    assert mapping
    assert (mapping.gva, mapping.gpa) == (top + 8, 0x3008)
    tables.protect(top, execute=False, user=False, write=False)
    mapping = tables.lookup(top)
    assert mapping and not (mapping.executable or mapping.user or mapping.writable)
    tables.protect(top, execute=True)
    mapping = tables.lookup(top)
    assert mapping and mapping.executable
    tables.unmap(top)
    assert tables.lookup(top) is None


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda t: t.map(1 << 48, 0), "0x1000000000000 is not canonical for 48 bits"),
        (lambda t: t.lookup(1 << 63), "not canonical"),
        (lambda t: t.map(0, 1 << 52), "not that of a 4K page"),
        (lambda t: t.map(0, 0x1000, "1G"), "not that of a 1G page"),
        (lambda t: t.map(0x5000, 0, "2M"), "linear address 0x5000 is not aligned"),
        (lambda t: t.map(0, 0, protection_key=16), "protection key 16"),
        (lambda t: t.unmap(0x5000), "linear address 0x5000 is not mapped"),
    ],
)
def test_impossible_guest_mappings_are_refused(
    tables: GuestPageTables, use: Callable[[GuestPageTables], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        use(tables)


def test_the_walker_agrees_with_the_builders(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    for index, size in enumerate(("4K", "2M", "1G")):
        gva = (index + 1) << 39
        guest.tables.map(gva, (index + 1) * GIB, size)
        guest.ept.map((index + 1) * GIB, (index + 4) * GIB, size)
        walk = guest.mmu.walk(guest.context(), gva | 0xABC)
        assert walk.ok
        assert walk.hpa == guest.ept.host_physical(guest.tables.lookup(gva | 0xABC).gpa)  # type: ignore[union-attr]
        assert walk.guest_shift == walk.ept_shift == walk.page_shift == (12, 21, 30)[index]
    fetch = guest.mmu.walk(guest.context(), 1 << 39, Access.FETCH)
    guest.ept.protect(GIB, execute=False)
    assert fetch.ok
    assert guest.mmu.walk(guest.context(), 1 << 39, Access.FETCH).status is WalkStatus.EPT_VIOLATION


def test_five_level_tables_reach_57_bits(memory: Memory) -> None:
    tables = GuestPageTables(memory, FrameAllocator(0x20_0000, 0x30_0000), levels=5)
    high = 0xFF00_0000_0000_0000
    tables.map(high, 0x7000)
    mmu = Mmu(memory, shape_with(tlb=BARE))
    from vtx.machine.mmu import Context

    context = Context(cr0=0x8001_0001, cr3=tables.cr3, cr4=0x20 | 1 << 12, efer=0xD00)
    assert mmu.walk(context, high | 5).hpa == 0x7005
