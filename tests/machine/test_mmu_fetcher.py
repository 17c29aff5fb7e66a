"""A fetch that the first-level TLB translates, and one that it does not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.core.spaces import make_guest
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access

CODE, DATA = 0x10_0000_0000, 0x10_0000_1000


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(64 << 30, huge_pages=False) as memory:
        yield memory


def test_a_hit_counts_as_locate_counts_it_and_a_miss_does_nothing(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(CODE, 0x40_0000, 0x1_0000_0000)
    mmu, context = guest.mmu, guest.context()
    fetch = mmu.fetcher(context, CODE)
    beside = mmu.fetcher(context, CODE + 8)
    counts = [dict(mmu.counters())]
    assert fetch() == 0
    assert mmu.fetcher(context, 1 << 47)() == 0  # not canonical
    assert dict(mmu.counters()) == counts[0]
    mmu.locate(context, CODE, Access.FETCH)
    counts.append(dict(mmu.counters()))
    mmu.locate(context, CODE + 8, Access.FETCH)
    counts.append(dict(mmu.counters()))
    assert beside() == 1
    counts.append(dict(mmu.counters()))
    hits = [{key: after[key] - before[key] for key in after} for before, after in pairwise(counts)]
    assert hits[2] == hits[1] != hits[0]
    context.vpid = 5  # what is cached belongs to another VPID
    assert fetch() == 0
    context.vpid = 1
    assert fetch() == 1
    mmu.flush_vpid(1)
    assert fetch() == 0


def test_a_page_that_is_not_executable_is_no_hit(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(DATA, 0x40_1000, 0x1_0000_1000, execute=False)
    context = guest.context()
    for access in (Access.LOAD, Access.FETCH):
        guest.mmu.locate(context, DATA, access)
    start = guest.mmu.counters()
    assert guest.mmu.fetcher(context, DATA)() == 0
    assert guest.mmu.counters() == start
