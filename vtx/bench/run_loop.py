"""References per second through the run loop: TLBs, walks under EPT, counts.

A recorded program runs as a 64-bit guest with 4-KByte pages in both dimensions, on the TLBs of
Skylake-SP, all pages mapped. The ceiling is one look at a direct-mapped array for each reference.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from vtx._core import ffi, lib
from vtx.bench.registry import Result, benchmark
from vtx.bench.tables import SKYLAKE_SP, guest_over_ept
from vtx.bench.timing import best, seconds
from vtx.errors import NotSupported
from vtx.machine.memory import Memory
from vtx.machine.mmu import Mmu

__all__ = ["run_bfs", "run_sqlite"]

_TRACES = Path(__file__).resolve().parents[2] / "traces"
_MEMORY_BYTES = 1 << 38


def _measure(name: str, quick: bool) -> Result:
    import numpy as np

    path = _TRACES / name
    if not path.exists():
        raise NotSupported(f"this benchmark needs {name}, which is in the project's traces/ only")
    records = np.frombuffer(lzma.decompress(path.read_bytes()), dtype="<u8")
    address = records & np.uint64((1 << 48) - 1)
    last = address + (records >> np.uint64(48) & np.uint64(0x3FFF)) - np.uint64(1)
    pages = np.unique(np.concatenate([address, last]) >> np.uint64(12))
    count = len(records)
    pointer = ffi.from_buffer("uint64_t[]", records)
    with Memory(_MEMORY_BYTES) as memory:
        context = guest_over_ept(memory, pages)
        mmu = Mmu(memory, SKYLAKE_SP)
        assert mmu.run(context, records).index == count
        value, ceiling = best(
            lambda: count / seconds(lambda: mmu.run(context, records)),
            lambda: count / seconds(lambda: lib.vtx_ceiling_run(pointer, count)),
            quick=quick,
        )
    return Result(value, ceiling)


@benchmark("run-sqlite", unit="references/s")
def run_sqlite(quick: bool) -> Result:
    """Full translation under EPT of a program whose pages are mostly in the first-level TLBs."""
    return _measure("sqlite.u64.xz", quick)


@benchmark("run-bfs", unit="references/s")
def run_bfs(quick: bool) -> Result:
    """Full translation under EPT of a program with 123 walks in 1000 references."""
    return _measure("bfs.u64.xz", quick)
