"""References per second through the core, and nanoseconds per walk.

Run it as a program: ``python tests/bench/bench_core.py STREAM...``. A stream is a file of packed
64-bit records (``kind << 62 | size << 48 | address``), plain or compressed with xz. It runs as a
64-bit guest under EPT, 4-KiB pages in both dimensions, on the TLBs of Skylake-SP, all pages mapped
beforehand: the first pass walks, the passes after it are the steady state.
"""

from __future__ import annotations

import lzma
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Mmu
from vtx.machine.paging import Ept, FrameAllocator, GuestPageTables
from vtx.machine.shape import Shape, TlbGeometry

PASSES = 15
REFERENCES = 10_000_000
ADDRESS = np.uint64((1 << 48) - 1)
PAGE = np.uint64(12)
GUEST_DATA, HOST_DATA, GUEST_TABLES = 0x4000_0000, 0x8_0000_0000, 0x10_0000


def load(path: Path) -> np.ndarray:
    """Return the records of a stream."""
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    return np.frombuffer(content, dtype="<u8")


def build(memory: Memory, pages: np.ndarray) -> Context:
    """Map every page that the stream touches, and return what it runs under."""
    ept = Ept(memory, FrameAllocator(0x100_0000, 0x1000_0000))
    frames = FrameAllocator(GUEST_TABLES, GUEST_TABLES + 0x400_0000)
    for frame in range(frames.start, frames.stop, 4096):
        ept.map(frame, frame + HOST_DATA)
    tables = GuestPageTables(memory, frames, ept.host_physical)
    for index, page in enumerate(pages.tolist()):
        gpa = GUEST_DATA + index * 4096
        gva = page << 12
        tables.map(gva | (-1 << 48) & (1 << 64) - 1 if gva >> 47 else gva, gpa)
        ept.map(gpa, gpa + HOST_DATA)
    return Context(
        cr0=0x8001_0001, cr3=tables.cr3, cr4=0xA0, efer=0xD00, cpl=3, eptp=ept.eptp, vpid=1
    )


def rate(mmu: Mmu, context: Context, records: np.ndarray) -> float:
    """Run the records once; return references per second."""
    start = time.perf_counter()
    result = mmu.run(context, records)
    seconds = time.perf_counter() - start
    assert result.index == len(records), result
    return len(records) / seconds


def stream(path: Path) -> None:
    """Print the figures of one stream."""
    records = load(path)
    addresses = records & ADDRESS
    last = addresses + (records >> np.uint64(48) & np.uint64(0x3FFF)) - np.uint64(1)
    pages = np.unique(np.concatenate([addresses >> PAGE, last >> PAGE]))
    with Memory() as memory:
        context = build(memory, pages)
        mmu = Mmu(memory, SKYLAKE_SP)
        cold = rate(mmu, context, records)
        first = mmu.counters()
        long = np.tile(records, max(1, REFERENCES // len(records)))
        mmu.reset_counters()
        rates = [rate(mmu, context, long) for _ in range(PASSES)]
    count = len(long) * PASSES
    steady = mmu.counters()
    print(
        f"{path.name}: {len(records)} references, {len(pages)} pages\n"
        f"  first pass {cold / 1e6:8.1f} M/s, {first['walks']} walks\n"
        f"  steady     {statistics.median(rates) / 1e6:8.1f} M/s median, "
        f"{max(rates) / 1e6:.1f} best; per 1000 references: "
        f"{1000 * steady['l1d_misses'] / count:.2f} L1 data misses, "
        f"{1000 * steady['walks'] / count:.2f} walks"
    )


def walks() -> None:
    """Print the time of a full two-dimensional walk of 24 references, nothing cached."""
    bare = Shape("bare", SKYLAKE_SP.msrs, 46, 48, frozenset(), TlbGeometry((), 0, 0, 0, 0, 0))
    with Memory() as memory:
        context = build(memory, np.arange(64, dtype=np.uint64))
        mmu = Mmu(memory, bare)
        gvas = np.arange(200_000, dtype=np.uint64) % np.uint64(64) << PAGE
        times = []
        for _ in range(PASSES):
            start = time.perf_counter()
            mmu.translate_many(context, gvas, Access.LOAD)
            times.append((time.perf_counter() - start) / len(gvas))
    print(f"walk of 24 references, hot: {statistics.median(times) * 1e9:.1f} ns")


SKYLAKE_SP = Shape("skylake_sp", {0x48C: 0x0F01_0673_4141}, 46, 48, frozenset({"page_1g"}))

if __name__ == "__main__":
    walks()
    for argument in sys.argv[1:]:
        stream(Path(argument))
