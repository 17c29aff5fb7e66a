"""The plain two-level model over 50,000 references of each shipped stream, restated over pages."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from vtx.streams import open_stream
from vtx.tlb import Array, Geometry, Level, simulate

TRACES = Path(__file__).parents[2] / "traces"
COUNT = 50_000


@pytest.fixture(scope="module", params=("sqlite", "bfs"))
def records(request):
    stream = open_stream(TRACES / f"{request.param}.u64.xz")
    return next(iter(stream.chunks()))[:COUNT].copy()


def pages_of(records, stream, crossing):
    """Return kinds and pages in the order of their lookups."""
    kinds = (records >> np.uint64(62)).astype(int)
    first = records & np.uint64(2**48 - 1)
    last = first + (records >> np.uint64(48) & np.uint64(0x3FFF)) - np.uint64(1)
    pages = np.stack([first >> np.uint64(12), last >> np.uint64(12)], axis=1)
    used = {"all": kinds >= 0, "data": kinds > 0, "instructions": kinds == 0}[stream]
    twice = (pages[:, 0] != pages[:, 1]) & (crossing == "both")
    looked_up = np.stack([used, used & twice], axis=1)
    return np.repeat(kinds, 2).reshape(-1, 2)[looked_up].tolist(), pages[looked_up].tolist()


def touch(sets, count, ways, page):
    lines = sets.setdefault(page % count, OrderedDict())
    hit = page in lines
    lines[page] = None
    lines.move_to_end(page)
    if len(lines) > ways:
        lines.popitem(last=False)
    return hit


def expected(kinds, pages, sizes, split):
    """Return accesses, misses in the first level and misses in the second, by kind."""
    (entries1, ways1), (entries2, ways2) = sizes
    l1, l2 = ({}, {}), {}
    counts = [[0] * 4, [0] * 4, [0] * 4]
    for kind, page in zip(kinds, pages, strict=True):
        counts[0][kind] += 1
        if touch(l1[split and kind > 0], entries1 // ways1, ways1, page):
            continue
        counts[1][kind] += 1
        if not touch(l2, entries2 // ways2, ways2, page):
            counts[2][kind] += 1
    return counts


@pytest.mark.parametrize("split", (False, True))
@pytest.mark.parametrize("sizes", [((64, 4), (1536, 12)), ((32, 8), (512, 4)), ((12, 3), (48, 48))])
def test_the_plain_two_level_model(records, sizes, split):
    for stream in ("all", "data", "instructions"):
        for crossing in ("first", "both") if stream == "all" else ("both",):
            kinds, pages = pages_of(records, stream, crossing)
            accesses, missed1, missed2 = expected(kinds, pages, sizes, split)
            first = ("l1i", "l1d") if split else ("l1",)
            levels = tuple(Level(name, (Array(*sizes[0]),)) for name in first)
            levels += (Level("l2", (Array(*sizes[1]),)),)
            geometry = Geometry("plain", levels, stream=stream, crossing=crossing)
            (result,) = simulate([geometry], [records])
            assert list(result.accesses) == accesses
            l1 = [result.levels[name].misses for name in first]
            assert [sum(by_kind) for by_kind in zip(*l1, strict=True)] == missed1
            assert list(result.levels["l2"].misses) == list(result.walks_by_kind) == missed2
            assert list(result.levels["l2"].accesses) == missed1
