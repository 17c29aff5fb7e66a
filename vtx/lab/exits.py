"""Statistics of recorded VM exits, gathered batch by batch.

What is kept grows with the number of different reasons, details, vCPUs and durations, not with the
number of exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtx.errors import UsageError
from vtx.lab.exit_details import LEVEL_BIT, ROW_SHIFT, detail_keys, detail_text
from vtx.lab.exit_reasons import reason_number
from vtx.machine.exit_scanner import ExitFlag

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PERCENTILES", "ExitRow", "ExitStatistics", "Lines", "Times", "VcpuRow"]

PERCENTILES = (50, 90, 99)
_MOST_DETAILS = 1 << 16
_MOST_SLICES = 100_000
_FIRST_UNKNOWN = 0x800
#: Distinct durations are merged when so many have been gathered.
_MERGE_AT = 1 << 18


@dataclass(frozen=True)
class Lines:
    """What became of the lines of a trace.

    Parameters
    ----------
    read : int
        All lines.
    used : int
        Lines of events that count here.
    skipped : mapping of str to int
        The others, by reason; ``read == used + sum(skipped.values())``.
    """

    read: int
    used: int
    skipped: Mapping[str, int]

    def __str__(self) -> str:
        """Return the closing line of a report."""
        text = f"{self.read:,} lines read, {self.used:,} used"
        if self.skipped:
            why = ", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in self.skipped.items())
            text += f", {sum(self.skipped.values()):,} skipped ({why})"
        return text


@dataclass
class Times:
    """Durations of some exits, in nanoseconds.

    Parameters
    ----------
    samples : int
        Exits whose duration is known.
    total, least, most : int or float
        Their sum, the shortest and the longest.
    mean : float
        Their arithmetic mean.
    squares : float
        Sum of squared distances from the mean.
    percentiles : mapping of int to int
        Durations that so many percent of the exits do not exceed (nearest rank).
    """

    samples: int
    total: float
    least: float
    most: float
    mean: float
    squares: float = 0.0
    percentiles: Mapping[int, int] = field(default_factory=dict)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; None for fewer than two exits."""
        if self.samples < 2:
            return None
        return math.sqrt(self.squares / (self.samples - 1))

    @property
    def error(self) -> float | None:
        """Standard error of the mean over the mean: the ± of ``perf kvm stat``."""
        deviation = self.deviation
        if deviation is None or not self.mean:
            return None
        return deviation / math.sqrt(self.samples) / self.mean

    def add(self, other: Times) -> None:
        """Take in the durations of other exits (percentiles do not merge)."""
        samples = self.samples + other.samples
        distance = other.mean - self.mean
        self.squares += other.squares + distance**2 * self.samples * other.samples / samples
        self.mean += distance * other.samples / samples
        self.samples = samples
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON shows."""
        return {
            "samples": self.samples,
            "total": self.total,
            "min": self.least,
            "max": self.most,
            "mean": self.mean,
            "stddev": self.deviation,
            "relative_error": self.error,
            **{f"p{p}": self.percentiles.get(p) for p in PERCENTILES},
        }


@dataclass
class Tally:
    """How many exits, and how long those took whose duration is known."""

    samples: int = 0
    times: Times | None = None

    def add(self, samples: int, times: Times | None) -> None:
        """Take in other exits."""
        self.samples += samples
        if times is None:
            return
        if self.times is None:
            self.times = times
        else:
            self.times.add(times)


@dataclass
class ExitRow:
    """One exit reason.

    Parameters
    ----------
    reason : str
        As the trace prints it.
    number : int or None
        The manual's number, if it has one.
    tally : Tally
        All exits of this reason.
    details : sequence of (str, Tally)
        The same exits by what they were about, most time first.
    levels : mapping of str to Tally
        The same exits by nesting level, ``"L1"`` and ``"L2"``; empty without nested guests.
    note : str
        What a report said about this row alone.
    table : int
        Which table of a report with several, from 1.
    """

    reason: str
    number: int | None
    tally: Tally
    details: Sequence[tuple[str, Tally]] = ()
    levels: Mapping[str, Tally] = field(default_factory=dict)
    note: str = ""
    table: int = 1

    @property
    def samples(self) -> int:
        """How many exits."""
        return self.tally.samples

    @property
    def times(self) -> Times | None:
        """Their durations; None if no duration is known."""
        return self.tally.times


@dataclass(frozen=True)
class VcpuRow:
    """The exits of one vCPU, or of one slice of time."""

    label: str
    tally: Tally
    reasons: Mapping[str, Tally]


class _Durations:
    """Different durations and how often each occurred: exact percentiles in little memory."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._pending = 0

    def add(self, durations: NDArray[np.int64]) -> None:
        import numpy as np

        values, counts = np.unique(durations, return_counts=True)
        self._parts.append((values, counts))
        self._pending += len(values)
        if len(self._parts) > 1 and self._pending > max(_MERGE_AT, 2 * len(self._parts[0][0])):
            self._merge()

    def take(self, other: _Durations) -> None:
        """Take in all that another has gathered."""
        if other._parts:
            self._parts.append(other._merge())

    def _merge(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        import numpy as np

        if len(self._parts) > 1:
            values = np.concatenate([part[0] for part in self._parts])
            counts = np.concatenate([part[1] for part in self._parts])
            merged, where = np.unique(values, return_inverse=True)
            sums = np.zeros(len(merged), np.int64)
            np.add.at(sums, where, counts)
            self._parts = [(merged, sums)]
            self._pending = len(merged)
        return self._parts[0]

    def percentiles(self) -> dict[int, int]:
        """Return the nearest-rank percentiles: each is a duration that occurred."""
        import numpy as np

        if not self._parts:
            return {}
        values, counts = self._merge()
        below = np.cumsum(counts)
        ranks = [max(1, -(-int(below[-1]) * p // 100)) for p in PERCENTILES]
        return {
            p: int(values[np.searchsorted(below, rank)])
            for p, rank in zip(PERCENTILES, ranks, strict=True)
        }


class _Tallies:
    """Tallies by key; keys are numbers of 64 bits."""

    def __init__(self, most: int | None = None) -> None:
        self.by_key: dict[int, Tally] = {}
        self._most = most

    def add_sorted(
        self, keys: NDArray[np.uint64], durations: NDArray[np.int64], other: int = -1
    ) -> None:
        """Add exits sorted by key; a duration below 0 is unknown.

        A new key beyond the limit goes to the key ``key | other``, which stands for all others.
        """
        import numpy as np

        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        ends = np.append(starts[1:], len(keys))
        timed = durations >= 0
        known = np.add.reduceat(timed.astype(np.int64), starts)
        spent = np.where(timed, durations, 0)
        totals = np.add.reduceat(spent, starts)
        means = totals / np.maximum(known, 1)
        away = np.where(timed, durations - np.repeat(means, ends - starts), 0.0)
        squares = np.add.reduceat(away * away, starts)
        most = np.maximum.reduceat(spent, starts)
        least = np.minimum.reduceat(np.where(timed, durations, np.iinfo(np.int64).max), starts)
        columns = (keys[starts], ends - starts, known, totals, least, most, means, squares)
        for key, samples, n, total, low, high, mean, square in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            times = Times(n, total, low, high, mean, square) if n else None
            tally = self.by_key.get(key)
            if tally is None:
                tally = self._new(key, other)
            tally.add(samples, times)

    def _new(self, key: int, other: int) -> Tally:
        if self._most is not None and len(self.by_key) >= self._most:
            key = key | other if other > 0 else key
        return self.by_key.setdefault(key, Tally())


class ExitStatistics:
    """What a trace of VM exits comes to.

    Parameters
    ----------
    slice_ns : int, optional
        Also gather slices of time of this length.
    per_vcpu : bool
        Also gather vCPUs.
    """

    def __init__(self, slice_ns: int | None = None, *, per_vcpu: bool = True) -> None:
        self.slice_ns = slice_ns
        self.per_vcpu = per_vcpu
        self.samples = 0
        self.flags = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self._groups: list[int] = []
        self._labels: dict[int, str] = {}
        self._details = _Tallies(_MOST_DETAILS)
        self._durations: dict[int, _Durations] = {}
        self._vcpus: dict[int, _Tallies] = {}
        self._vcpu_names: dict[int, str] = {}
        self._slices = _Tallies()

    def add(self, records: NDArray[Any], names: Sequence[str], *, xen: bool = False) -> None:
        """Take in a batch of exits.

        Parameters
        ----------
        records : ndarray of exit_dtype, shape (n,), n >= 1
            The exits.
        names : sequence of str
            Reasons by the column ``reason``.
        xen : bool
            The column ``tid`` holds domains.
        """
        import numpy as np

        self.samples += len(records)
        groups = self._grouped(records["reason"], names)
        flags = records["flags"]
        self.flags |= int(np.bitwise_or.reduce(flags))
        timed = flags & ExitFlag.DURATION != 0
        durations = np.where(timed, records["duration_ns"], np.uint64(0)).astype(np.int64)
        durations[~timed] = -1
        keys = detail_keys(records, groups)
        order = np.argsort(keys, kind="stable")
        keys, ordered = keys[order], durations[order]
        self._details.add_sorted(keys, ordered, other=((1 << ROW_SHIFT) - 1) & ~LEVEL_BIT)
        self._add_durations(keys, ordered)
        if self.per_vcpu:
            self._add_vcpus(records, groups, durations, xen)
        self._add_times(records, groups, durations)

    def _grouped(self, reasons: NDArray[np.uint16], names: Sequence[str]) -> NDArray[np.uint64]:
        """Return the row of each exit: its reason's number, whatever its name is."""
        import numpy as np

        for index in range(len(self._groups), len(names)):
            number = reason_number(names[index])
            group = _FIRST_UNKNOWN + index % _FIRST_UNKNOWN if number is None else number
            self._groups.append(group)
        present = np.bincount(reasons)
        for index in np.flatnonzero(present).tolist():
            self._labels.setdefault(self._groups[index], names[index])
        groups: NDArray[np.uint64] = np.asarray(self._groups, np.uint64)[reasons]
        return groups

    def _add_durations(self, keys: NDArray[np.uint64], durations: NDArray[np.int64]) -> None:
        import numpy as np

        rows = (keys >> np.uint64(ROW_SHIFT)).astype(np.int64)
        starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
        ends = np.append(starts[1:], len(rows))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            part = durations[start:end]
            part = part[part >= 0]
            if len(part):
                self._durations.setdefault(int(rows[start]), _Durations()).add(part)

    def _add_vcpus(
        self,
        records: NDArray[Any],
        groups: NDArray[np.uint64],
        durations: NDArray[np.int64],
        xen: bool,
    ) -> None:
        import numpy as np

        who = records["tid"].astype(np.uint64) << np.uint64(32)
        # A thread is one vCPU; the number matters where no thread is known, and for domains.
        apart = xen | (records["tid"] == 0)
        who |= np.where(apart, records["vcpu"].astype(np.uint32).astype(np.uint64), np.uint64(0))
        order = np.argsort(who, kind="stable")
        ordered = who[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(who)], strict=True):
            mine = order[start:end]
            key = int(ordered[start])
            by_reason = np.argsort(groups[mine], kind="stable")
            tallies = self._vcpus.setdefault(key, _Tallies())
            tallies.add_sorted(groups[mine][by_reason], durations[mine][by_reason])
            last = records[mine[-1]]
            self._vcpu_names[key] = _vcpu_name(int(last["tid"]), int(last["vcpu"]), xen)

    def _add_times(
        self, records: NDArray[Any], groups: NDArray[np.uint64], durations: NDArray[np.int64]
    ) -> None:
        import numpy as np

        stamped = records["flags"] & ExitFlag.TIME != 0
        times = records["time_ns"][stamped]
        if not len(times):
            return
        low, high = int(times.min()), int(times.max())
        self.first_ns = low if self.first_ns is None else min(self.first_ns, low)
        self.last_ns = high if self.last_ns is None else max(self.last_ns, high)
        if self.slice_ns is None:
            return
        if (self.last_ns - self.first_ns) // self.slice_ns > _MOST_SLICES:
            raise UsageError(f"--per-slice would make more than {_MOST_SLICES:,} slices")
        keys = (times // np.uint64(self.slice_ns)) << np.uint64(12) | groups[stamped]
        order = np.argsort(keys, kind="stable")
        self._slices.add_sorted(keys[order], durations[stamped][order])

    # ---- What came of it ----------------------------------------------------------------------

    @property
    def nested(self) -> bool:
        """Whether a nested guest ran."""
        return bool(self.flags & ExitFlag.L2)

    def label(self, group: int) -> str:
        """Return the reason of a row as the trace printed it first."""
        return self._labels[group]

    def rows(self) -> list[ExitRow]:
        """Return one row for each reason: most time first, then most samples."""
        details: dict[int, dict[int, Tally]] = {}
        for key, tally in self._details.by_key.items():
            details.setdefault(key >> ROW_SHIFT, {})[key & ((1 << ROW_SHIFT) - 1)] = tally
        rows = [self._row(group, parts) for group, parts in details.items()]
        return sorted(rows, key=lambda row: _weight(row.tally), reverse=True)

    def _row(self, group: int, parts: Mapping[int, Tally]) -> ExitRow:
        whole = _sum(parts.values())
        if whole.times is not None:
            whole.times.percentiles = self._durations[group].percentiles()
        named: dict[str, Tally] = {}
        levels: dict[str, Tally] = {}
        number = group if group < _FIRST_UNKNOWN else None
        for part, tally in parts.items():
            level = "L2" if part & LEVEL_BIT else "L1"
            text = detail_text(number, part & ~LEVEL_BIT)
            if self.nested:
                _merge(levels, level, tally)
                text = f"{text}, {level}" if text else ""
            if text:
                _merge(named, text, tally)
        ordered = sorted(named.items(), key=lambda item: _weight(item[1]), reverse=True)
        return ExitRow(self._labels[group], number, whole, ordered, levels)

    def total(self) -> Tally:
        """Return all exits together."""
        whole = _sum(self._details.by_key.values())
        if whole.times is not None:
            every = _Durations()
            for durations in self._durations.values():
                every.take(durations)
            whole.times.percentiles = every.percentiles()
        return whole

    def vcpus(self) -> list[VcpuRow]:
        """Return one row for each vCPU, by its name."""
        rows = [
            self._part(self._vcpu_names[key], tallies.by_key)
            for key, tallies in self._vcpus.items()
        ]
        return sorted(rows, key=lambda row: [_natural(word) for word in row.label.split()])

    def slices(self) -> Iterator[tuple[int, VcpuRow]]:
        """Yield the slices of time in which an exit began, with their starts in nanoseconds."""
        assert self.slice_ns is not None
        by_slice: dict[int, dict[int, Tally]] = {}
        for key, tally in self._slices.by_key.items():
            by_slice.setdefault(key >> 12, {})[key & 0xFFF] = tally
        for number in sorted(by_slice):
            start = number * self.slice_ns
            yield start, self._part(f"{start / 1e9:.6f}", by_slice[number])

    def _part(self, label: str, groups: Mapping[int, Tally]) -> VcpuRow:
        ordered = sorted(groups.items(), key=lambda item: _weight(item[1]), reverse=True)
        reasons = {self._labels[group]: tally for group, tally in ordered}
        return VcpuRow(label, _sum(groups.values()), reasons)


def _natural(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdecimal() else (-1, word)


def _vcpu_name(tid: int, vcpu: int, xen: bool) -> str:
    if xen:
        return f"d{tid} v{vcpu}"
    number = f"vcpu {vcpu}" if vcpu >= 0 else "vcpu ?"
    return f"{number} thread {tid}" if tid else number


def _weight(tally: Tally) -> tuple[float, int]:
    return (tally.times.total if tally.times else 0.0, tally.samples)


def _copy(times: Times | None) -> Times | None:
    if times is None:
        return None
    return Times(times.samples, times.total, times.least, times.most, times.mean, times.squares)


def _sum(tallies: Any) -> Tally:
    whole = Tally()
    for tally in tallies:
        whole.add(tally.samples, _copy(tally.times))
    return whole


def _merge(into: dict[str, Tally], key: str, tally: Tally) -> None:
    into.setdefault(key, Tally()).add(tally.samples, _copy(tally.times))
