"""Nanoseconds of a two-dimensional walk: 24 references, nothing cached.

The ceiling is plain C that follows the same tables and checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from vtx._core import ffi, lib
from vtx.bench.registry import Result, benchmark
from vtx.bench.tables import UNCACHED, guest_over_ept
from vtx.bench.timing import best, seconds
from vtx.machine.memory import Memory
from vtx.machine.mmu import Mmu

__all__ = ["walk_batch", "walk_cold", "walk_hot"]

_MEMORY_BYTES = 1 << 38
_HOT_PAGES = 64
#: 16 bytes of tables a page: 256 MiB of them, or 32.
_COLD_PAGES, _QUICK_COLD_PAGES = 1 << 24, 1 << 21
_WALKS = 1 << 16
#: Walks in one call: their results fit into the host's second-level cache.
_CALL = 1 << 11


def _measure(pages: int, quick: bool, *, side_by_side: bool) -> Result:
    import numpy as np

    with Memory(_MEMORY_BYTES) as memory:
        context = guest_over_ept(memory, np.arange(pages, dtype=np.uint64))
        mmu = Mmu(memory, UNCACHED)
        picks = np.random.default_rng(1).integers(0, pages, _WALKS, dtype=np.uint64)
        gvas = picks << np.uint64(12)
        pointer = ffi.from_buffer("uint64_t[]", gvas)
        plain: Callable[..., int] = (
            lib.vtx_ceiling_walks_side_by_side if side_by_side else lib.vtx_ceiling_walks
        )
        assert not mmu.walk_many(context, gvas).status.any()

        parts = [gvas[i : i + _CALL] for i in range(0, _WALKS, _CALL)]

        def walk_all() -> None:
            for part in parts:
                mmu.walk_many(context, part, side_by_side=side_by_side)

        def walk() -> float:
            return seconds(walk_all)

        def ceiling() -> float:
            eptp = context.eptp
            return seconds(lambda: plain(memory.handle, context.cr3, eptp, _WALKS, pointer))

        times = best(walk, ceiling, quick=quick, lower_is_better=True)
    value, least = (time / _WALKS * 1e9 for time in times)
    return Result(value, least)


@benchmark("walk-hot", unit="ns/walk")
def walk_hot(quick: bool) -> Result:
    """Walk: 24 references whose tables are in the host's first-level cache."""
    return _measure(_HOT_PAGES, quick, side_by_side=True)


@benchmark("walk-cold", unit="ns/walk")
def walk_cold(quick: bool) -> Result:
    """Walk: 24 references into 256 MiB of tables, one after the other (quick: 32 MiB)."""
    return _measure(_QUICK_COLD_PAGES if quick else _COLD_PAGES, quick, side_by_side=False)


@benchmark("walk-batch", unit="ns/walk")
def walk_batch(quick: bool) -> Result:
    """Walk: 24 references into 256 MiB of tables, walks side by side (quick: 32 MiB)."""
    return _measure(_QUICK_COLD_PAGES if quick else _COLD_PAGES, quick, side_by_side=True)
