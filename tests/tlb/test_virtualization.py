"""Walks counted without tables: against the papers' formula, and the MMU's over real tables."""

import numpy as np
import pytest

from tests.tlb import cases
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu
from vtx.machine.paging import Ept, FrameAllocator, GuestPageTables
from vtx.machine.shape import Shape
from vtx.tlb import Array, Geometry, Level, PageSizes, profile_geometry, simulate

SIZES = {"4K": 1 << 12, "2M": 1 << 21, "1G": 1 << 30}
GIB = 1 << 30


@pytest.mark.parametrize("guest_levels", [4, 5])
@pytest.mark.parametrize("ept_levels", [0, 4, 5])
@pytest.mark.parametrize("guest", SIZES)
@pytest.mark.parametrize("ept", SIZES)
def test_a_walk_makes_as_many_references_as_the_formula(guest_levels, ept_levels, guest, ept):
    geometry = Geometry(
        "bare",
        (Level("l1", (Array(1, 1),)),),
        pages=PageSizes.of(guest),
        ept=PageSizes.of(ept) if ept_levels else None,
        paging_levels=guest_levels,
        ept_levels=ept_levels or 4,
    )
    (result,) = simulate([geometry], [np.array([1 << 62 | 8 << 48 | 0x12345678], np.uint64)])
    g = guest_levels - list(SIZES).index(guest)
    h = ept_levels - list(SIZES).index(ept) if ept_levels else 0
    assert (result.walks, result.references) == (1, (g + 1) * (h + 1) - 1)


def mapped_as_walked(records, guest, ept, tables):
    """Real tables, laid out in the order in which walks first use them; and their context."""
    memory = Memory(16 * GIB, huge_pages=False)
    nested = None
    if ept:
        nested = Ept(memory, FrameAllocator(8 * GIB, 9 * GIB))
        for page in range(0, 6 * GIB, SIZES["1G"] if ept == "1G" else SIZES["2M"]):
            if ept != "4K":
                nested.map(page, page, ept)
    pages = GuestPageTables(memory, FrameAllocator(tables, tables + GIB))
    seen = set()
    for record in records:
        page = int(record) % (1 << 48) & -SIZES[guest]
        if page not in seen:
            seen.add(page)
            pages.map(page, page, guest)
            if ept == "4K":
                for part in {int(r) % (1 << 48) & -4096 for r in records} if len(seen) == 1 else ():
                    nested.map(part, part)
    if ept == "4K":
        for frame in range(tables, tables + pages.frames.used, 4096):
            nested.map(frame, frame)
    context = Context(
        cr0=0x80010033, cr3=pages.cr3, cr4=0x20, efer=0xD00, eptp=nested.eptp if ept else None
    )
    return memory, context


@pytest.mark.parametrize("profile", ["skylake_sp", "haswell"])
@pytest.mark.parametrize(
    "how", ["native", "2M", "4K+4K", "4K+2M", "2M+2M", "2M+4K", "4K+1G", "1G+2M"]
)
def test_the_mmu_counts_the_same_over_real_tables(profile, how, monkeypatch):
    tables = 5 * GIB
    monkeypatch.setattr("vtx.tlb.simulation.TABLE_BASE", tables)
    guest, _, ept = how.replace("native", "4K").partition("+")
    records = cases.stream(11, 4000, spread=4 * GIB)
    within = np.uint64(0xFFF) - np.uint64(0x3F)  # none crosses a page: the MMU means 4 KBytes
    records &= ~(records & within) | np.uint64(0xFFFF_FFFF_FFFF_F000)
    records &= np.uint64((1 << 63) - 1)  # nor writes: a dirty flag that is not set is a walk there
    memory, context = mapped_as_walked(records, guest, ept, tables)
    mmu = Mmu(memory, Shape.of(profile))
    mmu.run(context, records)
    counters = mmu.counters()
    (result,) = simulate([profile_geometry(profile).virtualized(how)], [records])
    levels = result.levels
    assert sum(levels["l1i"].misses) == counters["l1i_misses"]
    assert sum(levels["l1d"].misses) == counters["l1d_misses"]
    assert sum(levels["l2"].hits) == counters["l2i_hits"] + counters["l2d_hits"]
    assert result.walks == counters["walks"]
    assert counters["rewalks"] == 0
    for level in range(1, 5):
        assert result.guest_references[level] == counters[f"guest_references_level{level}"]
        if ept:
            assert result.ept_references[level] == counters[f"ept_references_level{level}"]
    assert result.cache_hits.get("nested", 0) == counters["nested_hits"]
