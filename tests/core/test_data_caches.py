"""The data caches that walks go through, beside a plain model of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_replacement import Lru, Random, TreePlru
from vtx.bench.tables import SKYLAKE_SP, UNCACHED, guest_over_ept
from vtx.errors import InputError
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Dimension, Hit, Mmu, StepKind
from vtx.machine.shape import DataCache, Shape

PAGES = 1 << 12
NAMES = {1: "l1", 2: "l2", 3: "l3", 4: "memory"}


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(1 << 38, huge_pages=False) as memory:
        yield memory


@pytest.fixture(scope="module")
def context(memory: Memory) -> Context:
    numbers = np.random.default_rng(3).integers(0, 1 << 30, PAGES, dtype=np.uint64)
    return guest_over_ept(memory, np.unique(numbers))


def pages() -> np.ndarray:
    return np.unique(np.random.default_rng(3).integers(0, 1 << 30, PAGES, dtype=np.uint64))


class NaiveLevel:
    """One level: a dictionary of sets, each a list of ways."""

    def __init__(self, cache: DataCache) -> None:
        self.cache = cache
        self.sets = cache.size_bytes // 64 // cache.ways
        self.lines: dict[int, list[int | None]] = {}
        self.order: dict[int, Lru | TreePlru] = {}
        self.random = Random(cache.ways, cache.seed)

    def use(self, line: int) -> bool:
        number, ways = line % self.sets, self.cache.ways
        lines = self.lines.setdefault(number, [None] * ways)
        kind = TreePlru if self.cache.replacement == "tree_plru" else Lru
        order = self.order.setdefault(number, kind(ways))
        hit = line in lines
        if hit:
            way = lines.index(line)
        elif None in lines:
            way = lines.index(None)
        elif self.cache.replacement == "random":
            way = self.random.victim()
        else:
            way = order.victim()
        lines[way] = line
        order.touch(way)
        return hit


class Naive:
    def __init__(self, caches: tuple[DataCache, ...]) -> None:
        self.levels = [NaiveLevel(cache) for cache in caches]

    def find(self, address: int) -> int:
        for number, level in enumerate(self.levels, 1):
            if level.use(address // 64):
                return number
        return 4


def caches_of(ways: int, sets: int, replacement: str, factor: int) -> tuple[DataCache, ...]:
    return tuple(
        DataCache(64 * ways * sets * factor**level, ways, replacement, seed=level)
        for level in range(3)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 8, 12]),
    st.sampled_from([1, 2, 5, 8]),
    st.sampled_from(["lru", "tree_plru", "random"]),
    st.integers(1, 5),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 1 << 20),
)
def test_every_reference_hits_where_the_plain_model_says(
    memory: Memory, context: Context, ways: int, sets: int, replacement: str, factor: int,
    levels: int, cached: bool, seed: int,
) -> None:  # fmt: skip
    if replacement == "tree_plru" and ways & (ways - 1):
        ways = 4
    caches = caches_of(ways, sets, replacement, factor)[:levels]
    shape = replace(SKYLAKE_SP if cached else UNCACHED, data_caches=caches)
    mmu, naive = Mmu(memory, shape), Naive(caches)
    rng, known = random.Random(seed), pages()
    expected: Counter[str] = Counter()
    for _ in range(40):
        walk = mmu.translate(context, int(known[rng.randrange(40)]) << 12, record=True)
        assert walk.ok
        for step in walk.steps:
            if not levels or step.kind is not StepKind.READ:
                assert step.hit is Hit.UNKNOWN
                continue
            assert step.hit == naive.find(step.address), step
            expected[f"{step.dimension.name.lower()}_walk_{NAMES[step.hit]}"] += 1
    counters = mmu.counters()
    for dimension in ("guest", "ept"):
        for name in NAMES.values():
            key = f"{dimension}_walk_{name}"
            assert counters[key] == expected[key], key


@pytest.mark.parametrize("shape", [SKYLAKE_SP, UNCACHED], ids=["cached", "uncached"])
def test_runs_and_arrays_count_as_single_translations_do(
    memory: Memory, context: Context, shape: Shape
) -> None:
    caches = (DataCache(32 << 10, 8), DataCache(256 << 10, 16, "tree_plru"))
    shape = replace(shape, data_caches=caches)
    known = pages()
    picks = np.random.default_rng(5).integers(0, len(known), 3000)
    gvas = known[picks] << np.uint64(12)
    one, many, loop = Mmu(memory, shape), Mmu(memory, shape), Mmu(memory, shape)
    for gva in gvas.tolist():
        one.translate(context, gva, Access.LOAD)
    many.translate_many(context, gvas, Access.LOAD)
    loop.run(context, gvas | np.uint64(1 << 62 | 8 << 48))
    counters = one.counters()
    assert counters == many.counters() == loop.counters()
    for dimension in ("guest", "ept"):
        hits = sum(counters[f"{dimension}_walk_{name}"] for name in NAMES.values())
        levels = (counters[f"{dimension}_references_level{level}"] for level in range(1, 6))
        assert hits == sum(levels) > 0
    assert counters["guest_walk_l1"] and counters["guest_walk_l2"]
    assert counters["guest_walk_l3"] == 0, "there is no third level"
    assert counters["guest_walk_memory"]


def test_data_caches_change_no_translation(memory: Memory, context: Context) -> None:
    plain = Mmu(memory, SKYLAKE_SP)
    modelled = Mmu(memory, replace(SKYLAKE_SP, data_caches=(DataCache(32 << 10, 8),)))
    gvas = np.random.default_rng(6).choice(pages(), 2000) << np.uint64(12)
    for mmu in (plain, modelled):
        assert not mmu.translate_many(context, gvas).status.any()
    others = [
        {k: v for k, v in mmu.counters().items() if "_walk_" not in k} for mmu in (plain, modelled)
    ]
    assert others[0] == others[1]
    assert all(v == 0 for k, v in plain.counters().items() if "_walk_" in k)
    left, right = plain.walk_many(context, gvas), modelled.walk_many(context, gvas)
    assert (left.hpa == right.hpa).all()


def test_a_walk_from_the_roots_leaves_the_caches_alone(memory: Memory, context: Context) -> None:
    mmu = Mmu(memory, replace(UNCACHED, data_caches=(DataCache(32 << 10, 8),)))
    gva = int(pages()[0]) << 12
    before = mmu.counters()
    assert all(step.hit is Hit.UNKNOWN for step in mmu.walk(context, gva).steps)
    assert mmu.counters() == before
    walk = mmu.translate(context, gva, record=True)
    assert walk.steps[0].hit is Hit.MEMORY
    assert {step.dimension for step in walk.steps} == {Dimension.GUEST, Dimension.EPT}


@pytest.mark.parametrize(
    ("size", "ways", "policy", "what"),
    [
        (0, 8, "lru", "cannot have 8 ways"),
        (1000, 1, "lru", "1000 bytes"),
        (32 << 10, 0, "lru", "cannot have 0 ways"),
        (64 * 12, 12, "tree_plru", "tree-PLRU of 12 ways"),
        (2 << 30, 8, "lru", "2147483648 bytes"),
        (4096, 8, "fifo", "fifo"),
    ],
)
def test_impossible_caches_get_a_sentence(size: int, ways: int, policy: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        DataCache(size, ways, policy)


def test_a_profile_may_ask_for_data_caches(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    head = "schema: 1\ninherits: skylake_sp\nshape:\n  data_caches:\n"
    level = "    - {size: %s, ways: %s, status: estimated, source: what if}\n"
    file.write_text(head + level % ("32K", 8) + level % ("1M", 16) + level % (25952256, 11))
    shape = Shape.of(str(file))
    assert shape.data_caches == (
        DataCache(32 << 10, 8), DataCache(1 << 20, 16), DataCache(25952256, 11),
    )  # fmt: skip
    assert Shape.of("skylake_sp").data_caches == ()
    for size, ways in (("32Q", 8), ("4G", 8), (100, 8), (0, 8), ("32K", 0)):
        file.write_text(head + level % (size, ways))
        with pytest.raises(InputError, match=r"mine\.yaml:5"):
            Shape.of(str(file))
    file.write_text(head + 4 * level % (*("32K", 8) * 4,))
    with pytest.raises(InputError, match="4 data caches"):
        Shape.of(str(file))
