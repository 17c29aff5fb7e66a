"""Which entry goes: true LRU, tree-PLRU and random replacement, each beside a plain model of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vtx.bench.tables import guest_over_ept
from vtx.errors import InputError
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Mmu, Source
from vtx.machine.shape import Shape, TlbArray, TlbGeometry

PAGES = 64
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(1 << 38, huge_pages=False) as memory:
        yield memory


@pytest.fixture(scope="module")
def context(memory: Memory) -> Context:
    return guest_over_ept(memory, np.arange(PAGES, dtype=np.uint64))


class Lru:
    """The ways from least to most recently used."""

    def __init__(self, ways: int) -> None:
        self.order = list(range(ways))

    def touch(self, way: int) -> None:
        self.order.remove(way)
        self.order.append(way)

    def victim(self) -> int:
        return self.order[0]


class TreePlru:
    """A bit for every inner node of a tree over the ways, pointing to the half to be replaced."""

    def __init__(self, ways: int) -> None:
        self.ways = ways
        self.right = dict.fromkeys(range(1, ways), False)

    def touch(self, way: int) -> None:
        node = way + self.ways
        while node > 1:
            self.right[node // 2] = node % 2 == 0
            node //= 2

    def victim(self) -> int:
        node = 1
        while node < self.ways:
            node = 2 * node + self.right[node]
        return node - self.ways


class Random:
    """xorshift64."""

    def __init__(self, ways: int, seed: int) -> None:
        self.ways, self.state = ways, seed | 1 << 63

    def touch(self, way: int) -> None:
        pass

    def victim(self) -> int:
        self.state ^= self.state << 13 & MASK
        self.state ^= self.state >> 7
        self.state ^= self.state << 17 & MASK
        return (self.state >> 32) % self.ways


def hits(policy: Lru | TreePlru | Random, ways: int, pages: list[int]) -> list[bool]:
    content: list[int | None] = [None] * ways
    outcome = []
    for page in pages:
        outcome.append(page in content)
        if page in content:
            way = content.index(page)
        else:
            way = content.index(None) if None in content else policy.victim()
            content[way] = page
        policy.touch(way)
    return outcome


def shape(level: int, ways: int, replacement: str, seed: int) -> Shape:
    arrays = [TlbArray(level, "unified", ("4K",), ways, ways, replacement, seed)]
    return Shape(
        "test",
        {0x48C: 0x0F01_0673_4141},
        46,
        48,
        frozenset(),
        TlbGeometry((*arrays,), 0, 0, 0, 0, 0),
    )


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(
    ("replacement", "ways"),
    [("lru", 1), ("lru", 4), ("lru", 12), ("lru", 16), ("lru", 24)]
    + [("tree_plru", ways) for ways in (1, 2, 8, 32)]
    + [("random", 3), ("random", 8)],
)
def test_the_entry_that_goes_is_the_models(
    memory: Memory, context: Context, level: int, replacement: str, ways: int
) -> None:
    rng = np.random.default_rng(ways)
    pages = rng.integers(0, min(PAGES, ways + ways // 2 + 2), 600).tolist()
    policy = {"lru": Lru(ways), "tree_plru": TreePlru(ways), "random": Random(ways, 77)}[
        replacement
    ]
    expected = hits(policy, ways, pages)
    mmu = Mmu(memory, shape(level, ways, replacement, 77))
    found = [
        mmu.translate(context, page << 12, Access.LOAD).source is not Source.WALK for page in pages
    ]
    assert found == expected
    # The run loop, which passes hits without a lookup, comes to the same counts.
    mmu = Mmu(memory, shape(level, ways, replacement, 77))
    records = np.array([1 << 62 | 8 << 48 | page << 12 for page in pages], dtype=np.uint64)
    mmu.run(context, records)
    assert mmu.counters()["walks"] == expected.count(False)


def test_impossible_replacement_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean"):
        TlbArray(1, "data", ("4K",), 8, 4, "tree-plru")
    with pytest.raises(InputError, match="tree-PLRU of 12 ways is impossible"):
        TlbArray(1, "data", ("4K",), 12, 12, "tree_plru")
    with pytest.raises(InputError, match="32 bits"):
        TlbArray(1, "data", ("4K",), 8, 4, "random", 1 << 32)
