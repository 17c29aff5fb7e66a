"""What a report keeps of recorded exits while they are read, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtx.machine.exit_scanner import ExitFlag
from vtx.report.bins import LATENCY_STEPS, Bins

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FIRST_KEPT", "SLOWEST_KEPT", "ExitTap"]

#: Exits that are kept one by one: the first, and the slowest of the others.
FIRST_KEPT, SLOWEST_KEPT = 80_000, 20_000


class ExitTap:
    """Sees all exits of a recording (see :class:`vtx.hypervisor.importers.analysis.Tap`).

    Attributes
    ----------
    count : int
        All exits.
    names : list of str
        Reasons by the column ``reason``.
    over_time : Bins
        Exits with a stamp by reason, over nanoseconds.
    latencies : dict of (int, int) to int
        How many exits by reason and :func:`~vtx.report.bins.latency_bin` of their nanoseconds.
    xen : bool
        The column ``tid`` holds domains.
    """

    def __init__(self) -> None:
        self.count = 0
        self.names: list[str] = []
        self.over_time = Bins()
        self.latencies: dict[tuple[int, int], int] = {}
        self.xen = False
        self._first: list[NDArray[Any]] = []
        self._kept = 0
        self._slow: list[NDArray[Any]] = []
        self._waiting = 0

    def add(self, records: NDArray[Any], names: Sequence[str], *, xen: bool = False) -> None:
        """See a batch of exits."""
        import numpy as np

        self.names, self.xen = list(names), xen
        self.count += len(records)
        flags = records["flags"]
        stamped = records[flags & ExitFlag.TIME != 0]
        if len(stamped):
            self.over_time.add_many(
                stamped["reason"], stamped["time_ns"], stamped["duration_ns"].astype(np.float64)
            )
        timed = records[flags & ExitFlag.DURATION != 0]
        if len(timed):
            self._add_latencies(timed["reason"], timed["duration_ns"])
        self._keep(records)

    def _add_latencies(self, reasons: NDArray[Any], durations: NDArray[Any]) -> None:
        import numpy as np

        # As vtx.report.bins.latency_bin does it; below 1 ns is one bin.
        number = np.floor(np.log2(np.maximum(durations, 1).astype(np.float64)) * LATENCY_STEPS)
        number = np.where(durations == 0, -1, number).astype(np.int64)
        different, counts = np.unique(
            (reasons.astype(np.int64) << 32) + number + 1, return_counts=True
        )
        for key, count in zip(different.tolist(), counts.tolist(), strict=True):
            place = key >> 32, (key & 0xFFFF_FFFF) - 1
            self.latencies[place] = self.latencies.get(place, 0) + count

    def _keep(self, records: NDArray[Any]) -> None:
        room = FIRST_KEPT - self._kept
        if room > 0:
            self._first.append(records[:room].copy())
            self._kept += len(self._first[-1])
            records = records[room:]
        if not len(records):
            return
        self._slow.append(records.copy())
        self._waiting += len(records)
        if self._waiting > 4 * SLOWEST_KEPT:
            self._thin()

    def _thin(self) -> None:
        """Keep only the slowest of the later exits."""
        import numpy as np

        waiting = np.concatenate(self._slow)
        if len(waiting) > SLOWEST_KEPT:
            durations = np.where(
                waiting["flags"] & ExitFlag.DURATION != 0, waiting["duration_ns"], 0
            )
            best = np.argpartition(durations, -SLOWEST_KEPT)[-SLOWEST_KEPT:]
            waiting = waiting[best]
        self._slow, self._waiting = [waiting], len(waiting)

    def kept(self) -> NDArray[Any]:
        """Return the exits that were kept, by their lines."""
        import numpy as np

        from vtx.machine.exit_scanner import exit_dtype

        if self._slow:
            self._thin()
        parts = [*self._first, *self._slow]
        whole = np.concatenate(parts) if parts else np.empty(0, exit_dtype())
        return whole[np.argsort(whole["line"], kind="stable")]
