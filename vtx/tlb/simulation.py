"""Running geometries over a stream: several in one pass, on one thread or more.

The work is done in C (``csrc/tlbsim*.c``). A :class:`Simulation` is one geometry with what it
holds; distinct ones run on distinct threads, because C runs without Python's lock, and nothing that
one of them counts depends on another, so the results are those of one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtx._core import ffi, lib
from vtx.errors import InputError, NotSupported
from vtx.tlb.geometry import PAGES, Geometry, PageSizes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["KINDS", "LevelCounts", "Result", "Simulation", "simulate"]

#: Kinds of references, in the order of their numbers.
KINDS = ("fetch", "load", "store", "modify")
#: Guest-physical address from which a guest's tables are laid out: away from its data, which lie
#: at their linear addresses (Linux leaves this hole to hypervisors).
TABLE_BASE = 1 << 47
_REPLACEMENTS = {"lru": 0, "tree-plru": 1, "random": 2}
_INDEXES = {"modulo": 0, "xor": 1}
_STREAMS = {"all": 3, "data": 2, "instructions": 1}
_FIRST_PAGE, _MODIFY_TWICE = 4, 8
_CACHE_LEVELS = {"pd": 2, "pdpt": 3, "pml4": 4, "pml5": 5}


@dataclass(frozen=True)
class LevelCounts:
    """What one level counted, by kind of reference (`KINDS`).

    ``accesses = hits + misses`` for each kind.
    """

    hits: tuple[int, ...]
    misses: tuple[int, ...]

    @property
    def accesses(self) -> tuple[int, ...]:
        """Lookups, by kind."""
        return tuple(h + m for h, m in zip(self.hits, self.misses, strict=True))


@dataclass(frozen=True)
class Result:
    """What one geometry counted over a stream.

    Attributes
    ----------
    geometry : Geometry
        The geometry.
    virtualization : str
        ``"native"``, or guest and EPT pages: ``"4K+2M"``.
    records : tuple of int
        References in the stream by kind, used or not.
    accesses : tuple of int
        Lookups in the first level, by kind.
    crossings : int
        References used that cross a page.
    levels : dict of str to LevelCounts
        By name, in order.
    walks_by_kind : tuple of int
        Accesses that missed every level, by kind.
    guest_references, ept_references : dict of int to int
        Entries that walks read, by level of the entry; native walks' are the guest's.
    cache_hits : dict of str to int
        Walks cut short by paging-structure caches (``"guest_2"``, ``"ept_3"`` ..., by level of the
        entry that was cached), and ``"nested"``: EPT walks saved by the TLB for guest-physical
        mappings.
    """

    geometry: Geometry
    virtualization: str
    records: tuple[int, ...]
    accesses: tuple[int, ...]
    crossings: int
    levels: dict[str, LevelCounts]
    walks_by_kind: tuple[int, ...]
    guest_references: dict[int, int]
    ept_references: dict[int, int]
    cache_hits: dict[str, int]

    @property
    def walks(self) -> int:
        """Walks: accesses that missed every level."""
        return sum(self.walks_by_kind)

    @property
    def references(self) -> int:
        """Entries of paging structures that walks read."""
        return sum(self.guest_references.values()) + sum(self.ept_references.values())

    @property
    def cycles_by(self) -> dict[str, float | None]:
        """Cycles by event; None where there is no figure. Empty if the geometry has no costs."""
        events = {name: sum(counts.hits) for name, counts in self.levels.items()}
        events |= {"walk": self.walks, "reference": self.references}
        by: dict[str, float | None] = {}
        for name, count in events.items():
            if name in self.geometry.costs:
                cycles = self.geometry.costs[name].cycles
                by[name] = None if cycles is None else cycles * count
        return by

    @property
    def cycles(self) -> float | None:
        """Cycles of all events; None without costs, or if one of them is unknown."""
        figures = self.cycles_by.values()
        known = [figure for figure in figures if figure is not None]
        return sum(known) if known and len(known) == len(figures) else None


class Simulation:
    """One geometry, empty at first, and what it has counted.

    Parameters
    ----------
    geometry : Geometry
        What to simulate.
    vectors : int
        Use the processor's vector instructions of up to so many bits, of those of 512 and of 256
        that it has. What is counted does not depend on it.

    Raises
    ------
    InputError
        The geometry is impossible.
    NotSupported
        There is not enough memory for it.
    """

    def __init__(self, geometry: Geometry, *, vectors: int = 512) -> None:
        structure = _structure(geometry)
        structure.flags |= lib.VTX_SIM_PORTABLE if vectors < 256 else 0
        structure.flags |= lib.VTX_SIM_NARROW if vectors < 512 else 0
        error = lib.vtx_sim_error(structure)
        if error != ffi.NULL:
            raise InputError(f"{geometry.name}: {ffi.string(error).decode()}")
        handle = lib.vtx_sim_new(structure)
        if handle == ffi.NULL:
            raise NotSupported(f"there is not enough memory for the TLBs of {geometry.name}")
        self.geometry = geometry
        self._handle: Any = ffi.gc(handle, lib.vtx_sim_free)

    def run(self, records: NDArray[np.uint64]) -> None:
        """Let the geometry see records: ``kind << 62 | size << 48 | address``, in order."""
        _run([self], records)

    def result(self) -> Result:
        """Return what has been counted so far."""
        counts = ffi.new("vtx_sim_counts *")
        lib.vtx_sim_counted(self._handle, counts)
        geometry = self.geometry
        slots = {
            level.name: LevelCounts(tuple(slot.hits), tuple(slot.misses))
            for level, slot in zip(geometry.levels, counts.slots, strict=False)
        }
        ept = geometry.ept is not None
        cache_hits = {f"guest_{n}": counts.guest_cache_hits[n] for n in range(2, 6)}
        if ept:
            cache_hits |= {f"ept_{n}": counts.ept_cache_hits[n] for n in range(2, 6)}
            cache_hits["nested"] = counts.nested_hits
        return Result(
            geometry,
            geometry.virtualization,
            tuple(counts.records),
            tuple(counts.accesses),
            counts.crossings,
            slots,
            tuple(counts.walks),
            _by_level(counts.guest_references, geometry.paging_levels),
            _by_level(counts.ept_references, geometry.ept_levels if ept else 0),
            cache_hits,
        )


def _by_level(counts: Any, levels: int) -> dict[int, int]:
    return {level: counts[level] for level in range(levels, 0, -1)}


def _pages(sizes: PageSizes) -> dict[str, Any]:
    return {
        "size": [PAGES.index(sizes.instruction), PAGES.index(sizes.data)],
        "range_count": len(sizes.ranges),
        "ranges": [
            {"start": r.start, "stop": r.stop, "size": PAGES.index(r.size)} for r in sizes.ranges
        ],
    }


def _structure(geometry: Geometry) -> Any:
    """Return the geometry as C has it."""
    arrays = [
        {
            "level": level.number,
            "slot": slot,
            "sides": level.sides,
            "pages": sum(1 << PAGES.index(page) for page in array.pages),
            "sets": array.sets,
            "ways": array.ways,
            "replacement": _REPLACEMENTS[array.replacement],
            "index": _INDEXES[array.index],
            "seed": array.seed,
        }
        for slot, level in enumerate(geometry.levels)
        for array in level.arrays
    ]
    if len(arrays) > lib.VTX_SIM_ARRAYS or len(geometry.levels) > lib.VTX_SIM_SLOTS:
        raise InputError(f"{geometry.name}: {len(arrays)} arrays are more than can be simulated")
    flags = _STREAMS[geometry.stream]
    flags |= _FIRST_PAGE if geometry.crossing == "first" else 0
    flags |= _MODIFY_TWICE if geometry.modify == "twice" else 0
    caches = [0] * 6
    for name, level in _CACHE_LEVELS.items():
        caches[level] = geometry.caches.get(name, 0)
    return ffi.new(
        "vtx_sim_geometry *",
        {
            "flags": flags,
            "array_count": len(arrays),
            "arrays": arrays,
            "guest": _pages(geometry.pages),
            "ept": _pages(geometry.ept or PageSizes()),
            "guest_levels": geometry.paging_levels,
            "ept_levels": 0 if geometry.ept is None else geometry.ept_levels,
            "guest_cache": caches,
            "ept_cache": caches,
            "nested": geometry.caches.get("guest_physical", 0),
            "table_base": TABLE_BASE,
        },
    )


def _run(simulations: Sequence[Simulation], records: NDArray[np.uint64]) -> None:
    import numpy as np

    if records.dtype != np.dtype("<u8") or records.ndim != 1 or not records.flags.c_contiguous:
        raise InputError(
            "records must be a contiguous one-dimensional array of uint64",
            hint="numpy.ascontiguousarray makes one",
        )
    handles = ffi.new("vtx_sim *[]", [simulation._handle for simulation in simulations])
    pointer = ffi.from_buffer("uint64_t[]", records)
    if not lib.vtx_sim_run(handles, len(simulations), pointer, len(records)):
        raise NotSupported("there is not enough memory for the layout of the guest's tables")


def least(records: NDArray[np.uint64]) -> int:
    """Return how many records leave the page last used of their set: a ceiling for benchmarks."""
    kinds = ffi.new("uint64_t[4]")
    count: int = lib.vtx_sim_least(ffi.from_buffer("uint64_t[]", records), len(records), kinds)
    return count


def simulate(
    geometries: Sequence[Geometry],
    chunks: Iterable[NDArray[np.uint64]],
    *,
    threads: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """Run geometries over a stream, in one pass over it.

    Parameters
    ----------
    geometries : sequence of Geometry
        Each starts empty.
    chunks : iterable of ndarray of uint64, shape (n,)
        The stream's records in order: :meth:`vtx.streams.Stream.chunks`, or arrays in a list.
    threads : int
        At most so many threads share the geometries; what is counted does not depend on it.
    progress : callable, optional
        Called with the number of records done.

    Returns
    -------
    list of Result
        In the order of `geometries`.
    """
    simulations = [Simulation(geometry) for geometry in geometries]
    if threads < 1:
        raise InputError(f"there must be at least one thread, not {threads}")
    count = min(threads, len(simulations))
    shares = [simulations[first::count] for first in range(count)]
    done = 0
    with ThreadPoolExecutor(max_workers=max(count - 1, 1)) as pool:
        for chunk in chunks:
            others = [pool.submit(_run, share, chunk) for share in shares[1:]]
            _run(shares[0], chunk)
            for other in others:
                other.result()
            done += len(chunk)
            if progress is not None:
                progress(done)
    return [simulation.result() for simulation in simulations]
