"""Counts over a span that is not known before: bins that grow together as it gets longer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LATENCY_STEPS", "Bins", "latency_bin", "latency_edge"]

_MOST = 512
#: Bins of durations for each doubling.
LATENCY_STEPS = 4


class Bins:
    """How often each kind was seen in each stretch of a span, in at most 1024 stretches.

    Attributes
    ----------
    shift : int
        A stretch is ``1 << shift`` long.
    counts : dict of (int, int) to list of [int, float]
        Samples and their weight by kind and stretch.
    """

    def __init__(self) -> None:
        self.shift = 0
        self._origin: int | None = None
        self.counts: dict[tuple[int, int], list[float]] = {}

    @property
    def origin(self) -> int:
        """Where the first stretch begins."""
        return self._origin or 0

    def add(self, kind: int, at: int, weight: float = 0.0) -> None:
        """Count one sample at a place."""
        self._take([(kind, at)], [(1, weight)])

    def add_many(self, kinds: NDArray[Any], at: NDArray[Any], weights: NDArray[Any]) -> None:
        """Count many: arrays of one length, at least 1."""
        import numpy as np

        if self._origin is None:
            self._origin = int(at.min())
        offsets = at.astype(np.int64) - self._origin
        self._widen(int(offsets.min()), int(offsets.max()))
        keys = (offsets >> self.shift) * (1 << 16) + kinds.astype(np.int64)
        different, index = np.unique(keys, return_inverse=True)
        samples = np.bincount(index)
        sums = np.bincount(index, weights)
        for key, count, weight in zip(
            different.tolist(), samples.tolist(), sums.tolist(), strict=True
        ):
            self._count(key & 0xFFFF, key >> 16, count, weight)

    def _take(
        self, places: Iterable[tuple[int, int]], amounts: Iterable[tuple[int, float]]
    ) -> None:
        for (kind, at), (count, weight) in zip(places, amounts, strict=True):
            if self._origin is None:
                self._origin = at
            offset = at - self._origin
            self._widen(offset, offset)
            self._count(kind, offset >> self.shift, count, weight)

    def _count(self, kind: int, stretch: int, count: int, weight: float) -> None:
        entry = self.counts.setdefault((kind, stretch), [0, 0.0])
        entry[0] += count
        entry[1] += weight

    def _widen(self, least: int, most: int) -> None:
        """Merge stretches until these offsets are in range."""
        while most >> self.shift >= _MOST or least >> self.shift < -_MOST:
            self.shift += 1
            merged: dict[tuple[int, int], list[float]] = {}
            for (kind, stretch), (count, weight) in self.counts.items():
                entry = merged.setdefault((kind, stretch >> 1), [0, 0.0])
                entry[0] += count
                entry[1] += weight
            self.counts = merged

    def series(self) -> tuple[list[int], dict[int, list[list[float]]]]:
        """Return where the stretches begin, and for each kind samples and weight in each."""
        if not self.counts:
            return [], {}
        stretches = [stretch for _, stretch in self.counts]
        first, last = min(stretches), max(stretches)
        starts = [self.origin + (stretch << self.shift) for stretch in range(first, last + 1)]
        found: dict[int, list[list[float]]] = {}
        for (kind, stretch), entry in self.counts.items():
            if kind not in found:
                found[kind] = [[0.0, 0.0] for _ in starts]
            found[kind][stretch - first] = entry
        return starts, found


def latency_bin(duration: float) -> int:
    """Return the bin of a duration; 0 and less are in one bin below all others."""
    from math import floor, log2

    return floor(log2(duration) * LATENCY_STEPS) if duration >= 1 else -1


def latency_edge(number: int) -> float:
    """Return the lower end of a bin."""
    return 0.0 if number < 0 else float(2 ** (number / LATENCY_STEPS))
