"""What was read, what of it became references, and why the rest did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vtx.streams.record import KINDS

__all__ = ["SKIPPED", "Summary"]

#: Keys of the reasons for skipping, in the order of the C core, and what they say.
SKIPPED: Mapping[str, str] = {
    "blank": "blank",
    "message": "messages of valgrind",
    "other": "not references (lines of the traced program, unknown entries)",
    "malformed": "malformed",
    "non_canonical": "at addresses that are not canonical in 48 bits",
    "empty": "of 0 bytes",
    "prefetch": "prefetches",
    "flush": "cache flushes",
    "no_fetch": "further iterations of string instructions, not fetched again",
    "marker": "markers",
    "encoding": "instruction encodings",
    "identity": "names of threads and processes",
    "frame": "headers and footers",
    "filtered": "of other threads or processes",
    "cut": "cut off at the end of the file",
}


@dataclass
class Summary:
    """Counts of one reading; complete when the stream has been read to its end.

    Parameters
    ----------
    unit : str
        What the file consists of: lines, entries, instructions or records.
    read, used : int
        Units; ``used + sum(skipped.values()) == read``.
    skipped : dict of str to int
        Units that gave no reference, by the keys of :data:`SKIPPED`; those above 0.
    kinds : list of 4 int
        References by kind of access; 0 while nobody has counted them, as of raw records that are
        memory-mapped.
    dropped : int
        Single addresses that are not canonical.
    split : int
        References of more than 4096 bytes, which became several.
    threads : int
        Threads that the trace names.
    first_malformed : int
        Number of the first malformed unit, from 1; 0 if there is none.
    """

    unit: str
    read: int = 0
    used: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    kinds: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    dropped: int = 0
    split: int = 0
    threads: int = 0
    first_malformed: int = 0

    @property
    def references(self) -> int:
        """Number of references."""
        return sum(self.kinds)

    def add(self, other: Summary) -> None:
        """Add the counts of another file."""
        self.read += other.read
        self.used += other.used
        for key, number in other.skipped.items():
            self.skipped[key] = self.skipped.get(key, 0) + number
        self.kinds = [mine + its for mine, its in zip(self.kinds, other.kinds, strict=True)]
        self.dropped += other.dropped
        self.split += other.split
        self.threads += other.threads
        self.first_malformed = self.first_malformed or other.first_malformed

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for a JSON document."""
        return {
            "unit": self.unit,
            "read": self.read,
            "used": self.used,
            "skipped": dict(self.skipped),
            "references": dict(zip(KINDS, self.kinds, strict=True)),
            "dropped_addresses": self.dropped,
            "split_references": self.split,
            "threads": self.threads,
            "first_malformed": self.first_malformed or None,
        }

    def __str__(self) -> str:
        text = f"{self.read:,} {self.unit} read, {self.used:,} used"
        reasons = [f"{number:,} {SKIPPED[key]}" for key, number in self.skipped.items()]
        return f"{text}; skipped: {'; '.join(reasons)}" if reasons else text
