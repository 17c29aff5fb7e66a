"""What caches leave of a walk: references per walk over recorded streams."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vtx.streams import open_stream, pack
from vtx.tlb import Array, Geometry, Level, Result, profile_geometry, simulate

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STREAMS", "opteron", "per_walk", "runs"]

TRACES = Path(__file__).parents[2] / "traces"
RECORDED = ("sqlite", "bfs")
#: Loads all over so many GiB, for what recorded streams are too small for.
SCATTERED = {"scattered over 1 GiB": 1, "scattered over 16 GiB": 16}
STREAMS = (*RECORDED, *SCATTERED)
_LOADS = 50_000
PAGES = ("native", "4K+4K", "4K+2M", "2M+2M")


def opteron(caches: dict[str, int], nested: int) -> Geometry:
    """The TLBs of Bhargava's Table 2, with the paging-structure caches given."""
    return Geometry(
        "opteron",
        (
            Level("l1i", (Array(32, 32, ("4K",)), Array(16, 16, ("2M",)))),
            Level("l1d", (Array(64, 64, ("4K", "2M", "1G")),)),
            Level("l2", (Array(512, 4, ("4K",)), Array(128, 1, ("2M",)))),
        ),
        caches={**caches, "guest_physical": nested},
    )


@cache
def runs(stream: str) -> dict[tuple[str, str], Result]:
    """Every geometry, native and virtualized, over one stream: by (geometry, pages)."""
    whole = {"pml4": 8, "pdpt": 8, "pd": 8}
    named = {
        "skylake_sp": profile_geometry("skylake_sp"),
        "nothing": opteron({}, 0),
        "walker": opteron(whole, 0),
        "nested": opteron({}, 16),
        "both": opteron(whole, 16),
    }
    keys = [(name, pages) for name in named for pages in PAGES]
    geometries = [
        named[name] if pages == "native" else named[name].virtualized(pages) for name, pages in keys
    ]
    return dict(zip(keys, simulate(geometries, _chunks(stream), threads=2), strict=True))


def _chunks(stream: str) -> list[NDArray[np.uint64]]:
    if stream in RECORDED:
        return list(open_stream(TRACES / f"{stream}.u64.xz").chunks())
    # Multiples of an odd constant are spread evenly, and alike with every version of NumPy.
    spread = np.arange(_LOADS, dtype=np.uint64) * np.uint64(0x9E37_79B9_7F4A_7C15)
    pages = (spread >> np.uint64(24)) % np.uint64(SCATTERED[stream] << 18)
    return [pack(1, 8, pages << np.uint64(12))]


def per_walk(result: Result) -> float:
    """References of an average walk."""
    return result.references / result.walks if result.walks else 0.0
