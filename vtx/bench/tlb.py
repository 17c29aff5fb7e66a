"""References per second through exact LRU TLBs: where nearly all hit, and where nearly all go on.

The streams are made here, and are the same everywhere: code in a few pages with data in a few more,
and data that hop over more pages than the first level holds. The ceiling is the least loop in C
that sees every record: it compares a record's page with the last used one of its set, and counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtx.bench.registry import Result, benchmark
from vtx.bench.timing import best, seconds
from vtx.tlb import Array, Geometry, Level, Simulation
from vtx.tlb.simulation import least

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["tlb_hits", "tlb_l2"]

_RECORDS, _QUICK_RECORDS = 1 << 20, 1 << 18
_PEER_RECORDS = 1 << 16
_PEER = "pycachesim"
_GEOMETRY = Geometry(
    "64/4 + 1536/12",
    (
        Level("l1i", (Array(64, 4),)),
        Level("l1d", (Array(64, 4),)),
        Level("l2", (Array(1536, 12),)),
    ),
)


def _packed(kinds: Any, pages: Any, offsets: Any) -> NDArray[np.uint64]:
    import numpy as np

    head = kinds.astype(np.uint64) << np.uint64(62) | np.uint64(8 << 48)
    records: NDArray[np.uint64] = head | pages.astype(np.uint64) << np.uint64(12)
    records |= offsets.astype(np.uint64)
    return records


def _hits(count: int) -> NDArray[np.uint64]:
    """70 % fetches that leave their page once in 25, data in 12 pages and rarely elsewhere."""
    import numpy as np

    random = np.random.default_rng(1)
    kinds = np.where(random.random(count) < 0.7, 0, random.integers(1, 3, count))
    runs = np.cumsum(random.random(count) < 0.04)
    code = 0x400 + random.integers(0, 24, count)[runs]
    data = 0x1FFE000 + random.choice(12, count, p=[0.4, 0.2, *[0.04] * 10])
    far = 0x4000 + random.integers(0, 400, count)
    data = np.where(random.random(count) < 0.01, far, data)
    return _packed(kinds, np.where(kinds == 0, code, data), random.integers(0, 4088, count))


def _l2(count: int) -> NDArray[np.uint64]:
    """Return loads from 1,200 pages at random: L1 holds 64, L2 1,536."""
    import numpy as np

    random = np.random.default_rng(2)
    pages = 0x4000 + random.integers(0, 1200, count)
    return _packed(np.ones(count), pages, random.integers(0, 4088, count))


def _peer(records: NDArray[np.uint64]) -> float | None:
    """Return what pycachesim makes of the same addresses; None if it is not installed."""
    try:
        from cachesim import (  # type: ignore[import-untyped,unused-ignore]
            Cache,
            CacheSimulator,
            MainMemory,
        )
    except ImportError:
        return None
    memory = MainMemory()
    l2 = Cache("L2", 128, 12, 4096, "LRU")
    l1 = Cache("L1", 16, 4, 4096, "LRU", store_to=l2, load_from=l2)
    memory.load_to(l2)
    memory.store_from(l2)
    simulator = CacheSimulator(l1, memory)
    addresses = [int(record) & (1 << 48) - 1 for record in records[:_PEER_RECORDS]]
    return len(addresses) / seconds(lambda: simulator.load(addresses, length=1))


def _measure(records: NDArray[np.uint64], quick: bool) -> Result:
    simulation = Simulation(_GEOMETRY)
    rates = best(
        lambda: len(records) / seconds(lambda: simulation.run(records)),
        lambda: len(records) / seconds(lambda: least(records)),
        quick=quick,
    )
    return Result(rates[0], rates[1], _peer(records), _PEER)


@benchmark("tlb-hits", unit="references/s")
def tlb_hits(quick: bool) -> Result:
    """Exact LRU L1 and L2, counts by kind, about 99 % hits in L1."""
    return _measure(_hits(_QUICK_RECORDS if quick else _RECORDS), quick)


@benchmark("tlb-l2", unit="references/s")
def tlb_l2(quick: bool) -> Result:
    """Exact LRU L1 and L2, counts by kind, where nearly all references go to L2."""
    return _measure(_l2(_QUICK_RECORDS if quick else _RECORDS), quick)
