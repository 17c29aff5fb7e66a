"""What is known of recorded VM exits: lines, durations, tallies and the rows of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PERCENTILES", "ExitRow", "Lines", "Tally", "Times", "VcpuRow"]

PERCENTILES = (50, 90, 99)


def _words(key: str, count: int) -> str:
    """Return why lines were skipped, in words; what is a noun gets its plural."""
    plural = "s" if count != 1 and key in ("comment", "other_event", "lost_events_note") else ""
    return key.replace("_", " ") + plural


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
        text = f"{self.read:,} {'line' if self.read == 1 else 'lines'} read, {self.used:,} used"
        if self.skipped:
            why = ", ".join(f"{n:,} {_words(key, n)}" for key, n in self.skipped.items())
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
    within : float
        How far a percentile may be from the duration of its rank, relative; 0 if exact.
    """

    samples: int
    total: float
    least: float
    most: float
    mean: float
    squares: float = 0.0
    percentiles: Mapping[int, int] = field(default_factory=dict)
    within: float = 0.0

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

    def copy(self) -> Times:
        """Return the same durations, to be added to; without percentiles, which do not add."""
        return Times(self.samples, self.total, self.least, self.most, self.mean, self.squares)

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
            **({"percentiles_within": self.within} if self.within else {}),
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
            self.times = times.copy()
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
