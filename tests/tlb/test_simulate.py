"""Counts against a second implementation, on drawn geometries and streams."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tlb import cases
from tests.tlb.naive import Naive
from vtx.errors import InputError
from vtx.tlb import Array, Geometry, Level, PageSizes, Simulation, simulate


def same(geometry, records):
    naive = Naive(geometry)
    naive.run(records)
    (result,) = simulate([geometry], [records])
    for vectors in (0, 256):
        other = Simulation(geometry, vectors=vectors)
        other.run(records)
        assert other.result() == result
    assert {name: list(c.hits) for name, c in result.levels.items()} == naive.hits
    assert {name: list(c.misses) for name, c in result.levels.items()} == naive.misses
    assert list(result.walks_by_kind) == naive.walks
    assert result.crossings == naive.crossings
    first = [level.name for level in geometry.levels if level.number == 1]
    used = sum(sum(result.levels[name].accesses) for name in first)
    assert sum(result.accesses) == used


@settings(max_examples=100, deadline=None)
@given(cases.geometries(), st.integers(0, 1000))
def test_any_geometry_counts_as_the_naive_one(geometry, seed):
    same(geometry, cases.stream(seed, 1000))


PLAIN = Geometry(
    "plain",
    (
        Level("l1i", (Array(64, 8),)),
        Level("l1d", (Array(64, 4),)),
        Level("l2", (Array(1536, 12),)),
    ),
)


@pytest.mark.parametrize("l1", [(64, 4), (64, 8), (16, 16), (1, 1), (48, 3), (32, 32)])
@pytest.mark.parametrize("l2", [(1536, 12), (512, 4), (1024, 8), (1536, 6), (20, 5)])
def test_usual_geometries(l1, l2):
    levels = (
        Level("l1i", (Array(64, 8),)),
        Level("l1d", (Array(*l1),)),
        Level("l2", (Array(*l2),)),
    )
    same(Geometry("usual", levels), cases.stream(3, 6000, spread=16 << 20))


def records_of(pages, kind=1, size=8):
    return np.array([kind << 62 | size << 48 | page << 12 for page in pages], dtype=np.uint64)


def test_the_highest_page_is_no_empty_way():
    top = (1 << 36) - 1
    data = Geometry("top", (Level("l1d", (Array(64, 4, ("4K",)),)),), stream="data")
    pages = [top, top - 16, top, 15, 31, 47, 63, top, top - 16, top]
    same(data, records_of(pages))
    (result,) = simulate([data], [records_of([top, 3, top])])
    assert result.levels["l1d"].misses == (0, 2, 0, 0)


@pytest.mark.parametrize("names", [("l1", "l2"), ("l1i", "l1d", "l2"), ("l1d", "l2d")])
@pytest.mark.parametrize("sets", [1, 4, 8, 16, 64])
@pytest.mark.parametrize("reach", [1, 8])
def test_tags_widen_amid_a_lean_stream(names, sets, reach):
    """The last 16 pages have the one short tag that means none, also when only crossed into."""
    levels = tuple(
        Level(name, (Array(128 * 12, 12) if "2" in name else Array(sets * 4, 4),)) for name in names
    )
    random = np.random.default_rng(sets)
    near = random.integers(0, 300, 9000)
    near[6000:] = random.integers(0, 8, 3000)
    top = (1 << 36) - 17 - random.integers(0, 40, 9000)
    pages = np.where(random.random(9000) < 0.2, top, near)
    records = records_of(pages.tolist()) | random.integers(0, 4, 9000).astype(
        np.uint64
    ) << np.uint64(62)
    records[4000:] |= np.uint64(0xFFC if reach > 4 else 0)
    records[8000:] += np.uint64(16 << 12)
    stream = "data" if names == ("l1d", "l2d") else "all"
    same(Geometry("top", levels, stream=stream), records)


def test_dense_and_sparse_stretches_take_turns():
    """Where few references are passed another loop takes over, and then the first one again."""
    random = np.random.default_rng(7)
    parts = [random.integers(0, spread, 3000) for spread in (6, 4000, 12, 4000, 3, 1000, 40, 9)]
    kinds = random.integers(0, 4, 24000).astype(np.uint64) << np.uint64(62)
    records = records_of(np.concatenate(parts).tolist(), kind=0) | kinds
    for stream in ("all", "data", "instructions"):
        for levels in (
            PLAIN.levels,
            (Level("l1", (Array(64, 4),)), Level("l2", (Array(1536, 12),))),
        ):
            same(Geometry("turns", levels, stream=stream), records)


def test_pieces_and_chunks_do_not_matter():
    records = cases.stream(5, 9000, spread=64 << 20)
    (whole,) = simulate([PLAIN], [records])
    for cut in (1, 2047, 2048, 2049, 5000):
        assert simulate([PLAIN], [records[:cut], records[cut:]]) == [whole]
    simulation = Simulation(PLAIN)
    for start in range(0, 9000, 700):
        simulation.run(records[start : start + 700])
    assert simulation.result() == whole


def test_threads_and_company_do_not_matter():
    records = cases.stream(6, 20000, spread=64 << 20)
    geometries = [PLAIN.virtualized(how) for how in ("native", "4K+4K", "2M+4K", "2M", "1G+1G")]
    alone = [simulate([geometry], [records])[0] for geometry in geometries]
    for threads in (1, 2, 3, 16):
        parts = [records[:7000], records[7000:]]
        assert simulate(geometries, parts, threads=threads) == alone


def test_modify_crossing_and_sides_are_options():
    crossing = np.array([3 << 62 | 8 << 48 | 0x1FFC], dtype=np.uint64)
    one = Geometry("one", (Level("l1", (Array(16, 4),)),))
    assert simulate([one], [crossing])[0].accesses == (0, 0, 0, 2)
    from dataclasses import replace

    twice = replace(one, modify="twice", crossing="first")
    (result,) = simulate([twice], [crossing])
    assert (result.accesses, result.levels["l1"].misses) == ((0, 0, 0, 2), (0, 0, 0, 1))
    large = replace(one, pages=PageSizes.of("2M"))
    assert simulate([large], [crossing])[0].crossings == 0
    none = replace(one, stream="instructions")
    assert simulate([none], [crossing])[0].accesses == (0, 0, 0, 0)


def test_records_of_another_type_are_refused():
    with pytest.raises(InputError, match="uint64"):
        simulate([PLAIN], [np.zeros(4, dtype=np.uint32)])
    with pytest.raises(InputError, match="contiguous"):
        simulate([PLAIN], [np.zeros(8, dtype=np.uint64)[::2]])
    with pytest.raises(InputError, match="thread"):
        simulate([PLAIN], [], threads=0)


def test_cycles_are_sums_of_costs():
    from vtx.tlb.geometry import Cost

    geometry = Geometry(
        "priced",
        PLAIN.levels,
        costs={"l2": Cost(9), "walk": Cost(7), "reference": Cost(21)},
    )
    (result,) = simulate([geometry], [cases.stream(1, 4000)])
    hits = sum(result.levels["l2"].hits)
    assert result.cycles == 9 * hits + 7 * result.walks + 21 * result.references
    assert result.references == 4 * result.walks
    assert simulate([PLAIN], [cases.stream(1)])[0].cycles is None
    unknown = Geometry("unknown", PLAIN.levels, costs={"l2": Cost(9), "walk": Cost(None)})
    assert simulate([unknown], [cases.stream(1)])[0].cycles is None
