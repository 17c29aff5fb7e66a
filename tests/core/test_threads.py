"""Several translation units over one memory, on several threads: the same as one after the other.

The units share the memory for reading only: flags are set beforehand, so that no walk writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.core.cases import SMALL, shape_with
from vtx.bench.tables import SKYLAKE_SP, guest_over_ept
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu, WalkStatus
from vtx.machine.shape import Shape

PAGES = 3000
SHAPES = [SKYLAKE_SP, shape_with(maxphyaddr=46, tlb=SMALL)] * 3


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(1 << 38, huge_pages=False) as memory:
        yield memory


@pytest.fixture(scope="module")
def context(memory: Memory) -> Context:
    return guest_over_ept(memory, np.arange(PAGES, dtype=np.uint64))


def stream(seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    rng = np.random.default_rng(seed)
    pages = (rng.pareto(0.6, 40_000) * 5).astype(np.uint64) % np.uint64(PAGES)
    kinds = rng.integers(0, 4, len(pages), dtype=np.uint64)
    return kinds << np.uint64(62) | np.uint64(8 << 48) | pages << np.uint64(12)


def simulate(memory: Memory, context: Context, shape: Shape, seed: int) -> dict[str, int]:
    mmu = Mmu(memory, shape)
    records = stream(seed)
    for start in range(0, len(records), 1000):  # many calls, so that threads really alternate
        result = mmu.run(context, records, start, start + 1000)
        assert result.status is WalkStatus.END
        assert mmu.walk_many(context, records[start : start + 64] & np.uint64(0xFFFFFFF)).hpa.all()
    return mmu.counters()


def test_threads_count_what_one_thread_counts(memory: Memory, context: Context) -> None:
    jobs = [(memory, context, shape, seed) for seed, shape in enumerate(SHAPES)]
    alone = [simulate(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: simulate(*job), jobs))
    assert together == alone
    assert all(counters["walks"] > 1000 for counters in alone)


def test_walks_on_threads_do_not_change_the_memory_they_share(
    memory: Memory, context: Context
) -> None:
    tables = range(0x100_0000, 0x110_0000, 0x1000)
    before = [memory.read(address, 4096) for address in tables]
    simulate(memory, context, SHAPES[1], 1)
    assert [memory.read(address, 4096) for address in tables] == before
