"""What a simulated TLB is: its levels, how it takes a stream, the sizes of pages, and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vtx.errors import InputError, UnknownName

__all__ = [
    "MOST_ENTRIES",
    "MOST_WAYS",
    "PAGES",
    "Array",
    "Cost",
    "Geometry",
    "Level",
    "PageSizes",
    "Range",
]

#: Page sizes, smallest first.
PAGES = ("4K", "2M", "1G")
REPLACEMENTS = ("lru", "tree-plru", "random")
INDEXES = ("modulo", "xor")
STREAMS = ("all", "data", "instructions")
CROSSINGS = ("both", "first")
MODIFIES = ("once", "twice")
MOST_ENTRIES = 1 << 24
MOST_WAYS = 4096


@dataclass(frozen=True)
class Array:
    """One array of TLB entries.

    Parameters
    ----------
    entries, ways : int
        Entries in all, and per set; ``ways == entries`` is fully associative.
    pages : tuple of str
        Page sizes it holds.
    replacement : str
        ``"lru"`` (true LRU), ``"tree-plru"`` or ``"random"``.
    index : str
        ``"modulo"``: the set is the page number modulo the number of sets; ``"xor"``: the low bits
        of the page number, exclusive-or the bits above them.
    seed : int
        Of random replacement.

    Raises
    ------
    InputError
        No TLB can be like that.
    """

    entries: int
    ways: int
    pages: tuple[str, ...] = PAGES
    replacement: str = "lru"
    index: str = "modulo"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.entries <= MOST_ENTRIES:
            raise InputError(f"a TLB of {self.entries} entries: it can have 1 to {MOST_ENTRIES}")
        if not 1 <= self.ways <= MOST_WAYS:
            raise InputError(f"a TLB of {self.ways} ways: a set can have 1 to {MOST_WAYS}")
        if self.entries % self.ways:
            raise InputError(
                f"{self.entries} entries cannot be divided into sets of {self.ways} ways"
            )
        for page in self.pages:
            if page not in PAGES:
                raise UnknownName("page size", page, PAGES)
        if self.replacement not in REPLACEMENTS:
            raise UnknownName("replacement", self.replacement, REPLACEMENTS)
        if self.index not in INDEXES:
            raise UnknownName("index", self.index, INDEXES)
        if self.index == "xor" and self.sets & (self.sets - 1):
            raise InputError(
                f"{self.sets} sets cannot be indexed by xor, which needs a power of two",
                hint="the index modulo takes any number of sets",
            )
        if self.replacement == "tree-plru" and self.ways & (self.ways - 1):
            raise InputError(
                f"{self.ways} ways cannot be replaced by tree-plru, which needs a power of two",
                hint="lru and random take any number of ways",
            )

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.entries // self.ways


@dataclass(frozen=True)
class Level:
    """The arrays that count together.

    Parameters
    ----------
    name : str
        ``"l1"``, ``"l1i"``, ``"l1d"``, ``"l2"`` and so on: the level, and whom it serves.
    arrays : tuple of Array
        Each for other page sizes.
    """

    name: str
    arrays: tuple[Array, ...]

    @property
    def number(self) -> int:
        """1 for the first level."""
        return int(self.name[1])

    @property
    def sides(self) -> int:
        """1 for instruction fetches, 2 for data, 3 for both."""
        return {"": 3, "i": 1, "d": 2}[self.name[2:]]


@dataclass(frozen=True)
class Range:
    """Addresses `start` to `stop` - 1 lie in pages of `size`."""

    start: int
    stop: int
    size: str


@dataclass(frozen=True)
class PageSizes:
    """Which sizes pages have.

    Parameters
    ----------
    instruction, data : str
        Pages that instructions are fetched from, and pages of data.
    ranges : tuple of Range
        In ascending order, apart from each other; they come before the other two.
    """

    instruction: str = "4K"
    data: str = "4K"
    ranges: tuple[Range, ...] = ()

    @classmethod
    def of(cls, size: str) -> PageSizes:
        """Return one size for all."""
        if size not in PAGES:
            raise UnknownName("page size", size, PAGES)
        return cls(size, size)


@dataclass(frozen=True)
class Cost:
    """Cycles of one event, and where the figure comes from."""

    cycles: float | None
    status: str = "declared"
    source: str = "the geometry's file"


@dataclass(frozen=True)
class Geometry:
    """A TLB, how it takes a stream, and what its events cost.

    Parameters
    ----------
    name : str
        What results call it.
    levels : tuple of Level
        In order of their numbers.
    stream : str
        Which references are used: ``"all"``, ``"data"`` or ``"instructions"``.
    crossing : str
        A reference that crosses a page looks up ``"both"`` pages, or the ``"first"`` one only.
    modify : str
        A modify is looked up ``"once"``, or ``"twice"`` as a load and a store.
    pages : PageSizes
        Of the guest, or of the system without virtualization.
    ept : PageSizes or None
        Of EPT; None without virtualization.
    paging_levels, ept_levels : int
        4 or 5.
    caches : mapping of str to int
        Entries of the paging-structure caches ``pml5``, ``pml4``, ``pdpt`` and ``pd`` (those of the
        EPT dimension have as many), and of ``guest_physical``, the TLB for guest-physical mappings.
    costs : mapping of str to Cost
        By name of a level (of a hit there), ``"walk"`` and ``"reference"``; none at all if cycles
        are not to be counted.
    """

    name: str
    levels: tuple[Level, ...]
    stream: str = "all"
    crossing: str = "both"
    modify: str = "once"
    pages: PageSizes = PageSizes()
    ept: PageSizes | None = None
    paging_levels: int = 4
    ept_levels: int = 4
    caches: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def virtualization(self) -> str:
        """``"native"``, or guest and EPT pages as papers write them: ``"4K+2M"``."""
        return "native" if self.ept is None else f"{_name(self.pages)}+{_name(self.ept)}"

    def virtualized(self, how: str) -> Geometry:
        """Return this geometry for one column of the table that papers print.

        Parameters
        ----------
        how : str
            ``"native"``; ``"2M"``: native with pages of this size; ``"4K+2M"``: guest pages of the
            first size over EPT pages of the second.

        Raises
        ------
        UnknownName
            One of the sizes is none.
        """
        if how == "native":
            return replace(self, ept=None)
        guest, plus, ept = how.partition("+")
        sizes = PageSizes.of(guest.strip())
        return replace(self, pages=sizes, ept=PageSizes.of(ept.strip()) if plus else None)


def _name(pages: PageSizes) -> str:
    if pages.ranges or pages.instruction != pages.data:
        return "mixed"
    return pages.data
