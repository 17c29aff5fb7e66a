"""The TLBs count what a plain model of set-associative true-LRU arrays counts."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.cases import shape_with
from tests.core.spaces import CR0, CR4, EFER
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu, WalkStatus
from vtx.machine.paging import Ept, FrameAllocator, GuestPageTables
from vtx.machine.shape import TlbArray, TlbGeometry

SHIFT = {"4K": 12, "2M": 21, "1G": 30}
#: One region of linear addresses for each page size; every page of it is mapped.
BASE = {"4K": 0x1000_0000, "2M": 0x40_0000_0000, "1G": 0x80_0000_0000}
PAGES = {"4K": 256, "2M": 128, "1G": 16}


class NaiveArray:
    """Sets of an OrderedDict each, least recently used first."""

    def __init__(self, array: TlbArray) -> None:
        self.array = array
        self.sets = [OrderedDict[tuple[str, int], None]() for _ in range(array.sets)]

    def find(self, size: str, page: int) -> bool:
        chosen = self.sets[page % len(self.sets)]
        if (size, page) not in chosen:
            return False
        chosen.move_to_end((size, page))
        return True

    def fill(self, size: str, page: int) -> None:
        chosen = self.sets[page % len(self.sets)]
        if len(chosen) == self.array.ways:
            chosen.popitem(last=False)
        chosen[size, page] = None


class NaiveTlb:
    """Two levels: a first-level hit leaves the second alone; a level that misses is filled."""

    def __init__(self, geometry: TlbGeometry) -> None:
        self.arrays = [NaiveArray(array) for array in geometry.arrays]
        self.counts = {f"{level}{side}_{what}": 0 for level in ("l1", "l2")
                       for side in "id" for what in ("hits", "misses")}  # fmt: skip

    def level(self, level: int, side: str, size: str) -> NaiveArray | None:
        kinds = ("unified", "instruction" if side == "i" else "data")
        for candidate in self.arrays:
            array = candidate.array
            if array.level == level and array.kind in kinds and size in array.pages:
                return candidate
        return None

    def access(self, side: str, size: str, page: int) -> None:
        first, second = self.level(1, side, size), self.level(2, side, size)
        assert first is not None
        assert second is not None
        hit = first.find(size, page)
        self.counts[f"l1{side}_{'hits' if hit else 'misses'}"] += 1
        if hit:
            return
        hit = second.find(size, page)
        self.counts[f"l2{side}_{'hits' if hit else 'misses'}"] += 1
        if not hit:
            second.fill(size, page)
        first.fill(size, page)


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[Memory, Context]]:
    with Memory(64 << 30, huge_pages=False) as memory:
        frames = FrameAllocator(0x10_0000, 0x200_0000)
        tables, ept = GuestPageTables(memory, frames), Ept(memory, frames)
        for size, base in BASE.items():
            for page in range(PAGES[size]):
                tables.map(base + (page << SHIFT[size]), page << SHIFT[size], size, dirty=True)
        for gpa in range(0, 16 << 30, 1 << 30):
            ept.map(gpa, gpa, "1G")
        yield (
            memory,
            Context(cr0=CR0, cr3=tables.cr3, cr4=CR4, efer=EFER, cpl=3, eptp=ept.eptp, vpid=3),
        )


def array(level: int, kind: str, pages: tuple[str, ...]) -> st.SearchStrategy[TlbArray]:
    return st.builds(
        lambda sets, ways: TlbArray(level, kind, pages, sets * ways, ways),
        st.sampled_from([1, 2, 4, 16]),
        st.sampled_from([1, 2, 3, 4, 6, 12]),
    )


geometries = st.builds(
    lambda arrays, unified: TlbGeometry(unified or tuple(arrays), 2, 2, 2, 4, 4),
    st.tuples(
        array(1, "instruction", ("4K",)),
        array(1, "instruction", ("2M", "1G")),
        array(1, "data", ("4K", "1G")),
        array(1, "data", ("2M",)),
        array(2, "unified", ("4K", "2M")),
        array(2, "unified", ("1G",)),
    ),
    st.one_of(
        st.none(),
        st.tuples(array(1, "unified", ("4K", "2M", "1G")), array(2, "unified", ("4K", "2M", "1G"))),
    ),
)


def random_stream(rng: random.Random, length: int) -> tuple[list[int], list[tuple[str, str, int]]]:
    """Make packed records and, for the model, (side, page size, page number) of each lookup."""
    records, lookups = [], []
    here = {"i": ("4K", 0), "d": ("4K", 0)}
    for _ in range(length):
        kind = rng.choice([0, 0, 1, 1, 2, 3])
        side = "d" if kind else "i"
        if rng.random() < 0.4:
            size = rng.choice(["4K", "4K", "2M", "1G"])
            here[side] = (size, rng.randrange(rng.choice([3, 12, PAGES[size]])) % PAGES[size])
        size, page = here[side]
        last = (1 << SHIFT[size]) - 16
        offset = rng.choice([0, 8, 4096 - 16, last, rng.randrange(last)])
        address = BASE[size] + (page << SHIFT[size]) + offset
        length_bytes = rng.choice([1, 4, 8, 16])
        if (address & 0xFFF) + length_bytes > 4096:
            address &= ~0xFFF
        records.append(kind << 62 | length_bytes << 48 | address)
        lookups.append((side, size, address >> SHIFT[size]))
    return records, lookups


@settings(max_examples=150, deadline=None)
@given(geometries, st.integers(0, 1 << 32), st.integers(100, 3000))
def test_hits_and_misses_are_those_of_true_lru(
    machine: tuple[Memory, Context], geometry: TlbGeometry, seed: int, length: int
) -> None:
    memory, context = machine
    rng = random.Random(seed)
    records, lookups = random_stream(rng, length)
    mmu = Mmu(memory, shape_with(tlb=geometry))
    stream = np.array(records, dtype=np.uint64)
    # In windows: where a run is cut must not change what is counted.
    at = 0
    while at < length:
        stop = min(length, at + rng.choice([1, 7, 200, length]))
        result = mmu.run(context, stream, at, stop)
        assert (result.status, result.index) == (WalkStatus.END, stop), result
        at = stop
    naive = NaiveTlb(geometry)
    for lookup in lookups:
        naive.access(*lookup)
    counters = mmu.counters()
    assert {name: counters[name] for name in naive.counts} == naive.counts
    kinds = [sum(record >> 62 == kind for record in records) for kind in range(4)]
    assert [counters[f"references_{k}"] for k in ("fetch", "load", "store", "modify")] == kinds
    assert counters["walks"] == counters["l2i_misses"] + counters["l2d_misses"]


def test_a_level_keeps_a_piece_of_a_page_that_it_has_no_size_for(
    machine: tuple[Memory, Context],
) -> None:
    memory, context = machine
    geometry = TlbGeometry(
        (TlbArray(1, "unified", ("4K",), 4, 4), TlbArray(2, "unified", ("4K", "2M"), 8, 4))
    )
    mmu = Mmu(memory, shape_with(tlb=geometry))
    base = BASE["1G"]
    for gva in (base, base + 0x5000, base + 0x5008, base + 0x20_0000):
        assert mmu.translate(context, gva).hpa == gva - base
    counters = mmu.counters()
    assert (counters["l1d_hits"], counters["l2d_hits"], counters["walks"]) == (1, 1, 2)


def test_two_arrays_for_one_page_size_share_its_pages_out(machine: tuple[Memory, Context]) -> None:
    memory, context = machine
    geometry = TlbGeometry(
        (
            TlbArray(1, "unified", ("4K",), 1, 1),
            TlbArray(2, "unified", ("4K", "2M"), 4, 1),
            TlbArray(2, "unified", ("4K", "1G"), 4, 1),
        )
    )
    mmu = Mmu(memory, shape_with(tlb=geometry))
    for page in [*range(8), *range(8)]:  # eight pages fit the eight entries
        assert mmu.translate(context, BASE["4K"] + page * 4096).ok
    assert (mmu.counters()["l2d_misses"], mmu.counters()["l2d_hits"]) == (8, 8)


def test_without_tlbs_every_reference_walks(machine: tuple[Memory, Context]) -> None:
    memory, context = machine
    mmu = Mmu(memory, shape_with(tlb=TlbGeometry((), 0, 0, 0, 0, 0)))
    records = np.array([1 << 62 | 8 << 48 | BASE["4K"]] * 10, dtype=np.uint64)
    assert mmu.run(context, records).status is WalkStatus.END
    counters = mmu.counters()
    assert counters["walks"] == 10
    assert counters["guest_references_level1"] == 10
    assert counters["ept_references_level3"] == 5 * 10
