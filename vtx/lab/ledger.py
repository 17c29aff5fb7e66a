"""What a run cost on a CPU: counts of events times prices, per exit reason and category.

The ledger holds what the CPU's virtualization hardware takes. For guest execution and the software
of exit handlers no profile of vtx has a price: they are counted and named, and are in the total
only under a profile that prices them. All sums are exact, so the categories of a row add up to the
row, and the rows and the guest's translation to the total; bounds are sums in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vtx.facts.exits import ExitReason, kvm_name
from vtx.lab.categories import (
    DIVIDED,
    EVENTS,
    NEVER_PRICED,
    TRANSLATION,
    Category,
    Counted,
)
from vtx.lab.profile import Price, Profile, Status, plain_number
from vtx.machine.events import GUEST, Event

#: Cycles, low and high.
Span = tuple[Fraction, Fraction]
#: Prices and how often each was paid: what a sum rests on.
Foundations = Iterable[tuple[Price, int]]

__all__ = [
    "Category",
    "Cell",
    "Counted",
    "Ledger",
    "Row",
    "Unpriced",
    "price",
    "reason_name",
    "share",
]


def reason_name(reason: int) -> str:
    """Return what the tables call an exit reason: the name that KVM and perf print."""
    if reason == GUEST:
        return "(set-up)"
    try:
        return kvm_name(ExitReason(reason))
    except ValueError:
        return f"({reason})"


@dataclass(frozen=True)
class Cell:
    """Events of one category.

    Parameters
    ----------
    category : Category
        Which.
    count : int
        How many.
    price : Price
        Of one; if it has no figure and the count is not 0, the events are not priced.
    """

    category: Category
    count: int
    price: Price

    @property
    def cycles(self) -> Fraction:
        """Cycles of all of them; 0 where there is no figure (see :attr:`unpriced`)."""
        return Fraction(0) if self.price.cycles is None else self.count * self.price.cycles

    @property
    def bounds(self) -> Span:
        """Low and high of :attr:`cycles`."""
        return _bounds([(self.price, self.count)])

    @property
    def unpriced(self) -> bool:
        """Whether events happened for which there is no figure."""
        return self.count > 0 and not self.price.known

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.unpriced:
            return {"count": self.count, "cycles": None, "status": None}
        figures = _figures(self.cycles, self.bounds)
        return {"count": self.count, **figures, "status": self.price.status}


@dataclass(frozen=True)
class Row:
    """One exit reason (or, as :data:`~vtx.machine.events.GUEST`, what happened outside exits).

    Parameters
    ----------
    reason : int
        Basic exit reason.
    samples : int
        VM exits with this reason, failed VM entries among them.
    cells : tuple of Cell
        What happened from each exit to the entry that ended its handling.
    round_trip : Price
        Of an exit and an entry together.
    """

    reason: int
    samples: int
    cells: tuple[Cell, ...]
    round_trip: Price

    @property
    def name(self) -> str:
        """Name of the reason as KVM and perf print it."""
        return reason_name(self.reason)

    @property
    def cycles(self) -> Fraction:
        """Cycles of all categories."""
        return sum((cell.cycles for cell in self.cells), Fraction(0))

    @property
    def by_status(self) -> dict[Status, Fraction]:
        """Cycles by how well they are founded; they add up to :attr:`cycles`."""
        return self.founded(Category)

    @property
    def bounds(self) -> Span:
        """Low and high of :attr:`cycles`."""
        return _bounds(self.foundations(Category))

    def founded(self, categories: Iterable[Category]) -> dict[Status, Fraction]:
        """Return the cycles of some categories by how well they are founded."""
        return _by_status(self.foundations(categories))

    def foundations(self, categories: Iterable[Category]) -> list[tuple[Price, int]]:
        """Return the prices that some categories rest on, and how often each was paid.

        An exit and an entry together rest on the round trip, which is often measured where its
        split into exit and entry is an estimate.
        """
        wanted = set(categories)
        cells = {cell.category: cell for cell in self.cells if cell.category in wanted}
        pair = [cells[c].count for c in (Category.EXIT, Category.ENTRY) if c in cells]
        pairs = min(pair) if len(pair) == 2 else 0
        founded = [(self.round_trip, pairs)]
        for category, cell in cells.items():
            paired = pairs if category in (Category.EXIT, Category.ENTRY) else 0
            founded.append((cell.price, cell.count - paired))
        return founded

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `cycles` leaves out what has no figure."""
        return {
            "reason": None if self.reason == GUEST else self.reason,
            "name": self.name,
            "samples": self.samples,
            **self._figures(),
            "categories": {cell.category.key: cell.as_dict() for cell in self.cells if cell.count},
        }

    def _figures(self) -> dict[str, Any]:
        if not self.round_trip.known:
            return {"cycles": None}
        rests_on = {status.value: share(self.by_status, status) for status in Status}
        return {**_figures(self.cycles, self.bounds), "rests_on": rests_on}


def share(by_status: Mapping[Status, Fraction], status: Status) -> float:
    """Return the part of cycles that rests on `status`, from 0 to 1; 0 if there are none."""
    total = sum(by_status.values(), Fraction(0))
    return float(by_status[status] / total) if total else 0.0


def _figures(cycles: Fraction, bounds: Span) -> dict[str, Any]:
    low, high = map(plain_number, bounds)
    return {"cycles": plain_number(cycles), "cycles_low": low, "cycles_high": high}


def _bounds(founded: Foundations) -> Span:
    low = high = Fraction(0)
    for price_, count in founded:
        least, most = price_.bounds
        low += count * least
        high += count * most
    return low, high


def _by_status(founded: Foundations) -> dict[Status, Fraction]:
    result = dict.fromkeys(Status, Fraction(0))
    for price_, count in founded:
        if price_.cycles is not None and price_.status is not None:
            result[price_.status] += count * price_.cycles
    return result


@dataclass(frozen=True)
class Unpriced:
    """Events that the total does not hold."""

    what: str
    count: int
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"what": self.what, "count": self.count, "why": self.why}


@dataclass(frozen=True)
class Ledger:
    """The costs of a run on one CPU.

    Parameters
    ----------
    profile : Profile
        Whose prices.
    rows : tuple of Row
        One for each exit reason that occurred, dearest first, and last what happened outside
        exits.
    translation : tuple of Cell
        The guest's own translations: TLB hits at the second level, and page walks.
    unpriced : tuple of Unpriced
        What happened and is not in the total.
    """

    profile: Profile
    rows: tuple[Row, ...]
    translation: tuple[Cell, ...]
    unpriced: tuple[Unpriced, ...]

    @property
    def priced(self) -> bool:
        """Whether the profile has prices at all; if not, no total is shown."""
        return self.profile.has_prices

    @property
    def unpriced_software(self) -> list[str]:
        """Names of the prices of software that the profile does not have."""
        return [n for n in ("guest_instruction", "handler") if not self.profile.prices[n].known]

    @property
    def samples(self) -> int:
        """VM exits in all."""
        return sum(row.samples for row in self.rows)

    @property
    def translation_cycles(self) -> Fraction:
        """Cycles of the guest's translations."""
        return sum((cell.cycles for cell in self.translation), Fraction(0))

    @property
    def translation_by_status(self) -> dict[Status, Fraction]:
        """Cycles of the guest's translations by how well they are founded."""
        return _by_status((cell.price, cell.count) for cell in self.translation)

    @property
    def translation_bounds(self) -> Span:
        """Low and high of :attr:`translation_cycles`."""
        return _bounds((cell.price, cell.count) for cell in self.translation)

    @property
    def bounds(self) -> Span:
        """Low and high of :attr:`cycles`."""
        spans = [self.translation_bounds, *(row.bounds for row in self.rows)]
        return sum((low for low, _ in spans), Fraction(0)), sum((s[1] for s in spans), Fraction(0))

    @property
    def ns_bounds(self) -> Span:
        """Low and high of :attr:`ns`."""
        low, high = self.bounds
        return self.profile.ns(low), self.profile.ns(high)

    @property
    def cycles(self) -> Fraction:
        """Cycles in all."""
        return sum((row.cycles for row in self.rows), self.translation_cycles)

    @property
    def ns(self) -> Fraction:
        """Nanoseconds in all, at the nominal clock."""
        return self.profile.ns(self.cycles)

    @property
    def by_category(self) -> dict[Category, Fraction]:
        """Cycles by category, over all reasons; they add up to :attr:`cycles`."""
        result = dict.fromkeys(Category, Fraction(0))
        for cell in self._cells():
            result[cell.category] += cell.cycles
        return result

    @property
    def by_status(self) -> dict[Status, Fraction]:
        """Cycles by how well they are founded; they add up to :attr:`cycles`."""
        result = self.translation_by_status
        for row in self.rows:
            for status, cycles in row.by_status.items():
                result[status] += cycles
        return result

    def share(self, status: Status) -> float:
        """Return the part of the total that rests on `status`, from 0 to 1."""
        return share(self.by_status, status)

    def unpriced_categories(self) -> set[Category]:
        """Return the categories of which something happened that has no price."""
        return {cell.category for cell in self._cells() if cell.unpriced}

    def _cells(self) -> Iterator[Cell]:
        yield from self.translation
        for row in self.rows:
            yield from row.cells

    def _repr_html_(self) -> str:
        """Return the tables as notebooks show them."""
        from vtx.lab.report import exit_table, translation_table

        title = f"VM exits on {self.profile.id}"
        return exit_table(self, title)._repr_html_() + translation_table(self)._repr_html_()

    def to_pandas(self) -> Any:
        """Return one row for each exit reason, in cycles, as a pandas.DataFrame.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from vtx.lab.frames import flat, frame

        return frame(flat(row.as_dict()) for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; figures are None where the profile has no prices."""
        if not self.priced:
            why = self.profile.prices["round_trip"].source
            return {"priced": False, "why": why, "rows": [row.as_dict() for row in self.rows]}
        missing = self.unpriced_categories()
        low, high = self.ns_bounds
        rows = [{**row.as_dict(), "ns": float(self.profile.ns(row.cycles))} for row in self.rows]
        return {
            "priced": True,
            **_figures(self.cycles, self.bounds),
            "ns": float(self.ns),
            "ns_low": float(low),
            "ns_high": float(high),
            "rests_on": {status.value: self.share(status) for status in Status},
            "by_category": {
                category.key: None if category in missing else plain_number(cycles)
                for category, cycles in self.by_category.items()
            },
            "rows": rows,
            "translation": {cell.category.key: cell.as_dict() for cell in self.translation},
            "unpriced": [entry.as_dict() for entry in self.unpriced],
        }


def price(run: Counted, profile: Profile) -> Ledger:
    """Price what a run counted with the figures of a profile.

    Parameters
    ----------
    run : Counted
        Counts of events and of translations.
    profile : Profile
        Whose prices; the run must come from a machine of the same shape for the result to mean
        anything (:func:`vtx.lab.compare.compare` sees to that).
    """
    rows = [_row(reason, counts, profile) for reason, counts in run.events.counts.items()]
    rows = [row for row in rows if row.samples or any(cell.count for cell in row.cells)]
    rows.sort(key=lambda row: (row.reason == GUEST, -row.cycles, -row.samples, row.reason))
    translation = tuple(_translation(run.translation, profile))
    return Ledger(profile, tuple(rows), translation, tuple(_unpriced(run, rows, translation)))


def _translation(counters: Mapping[str, int], profile: Profile) -> Iterator[Cell]:
    """Yield what the guest's translations cost; references by cache level where that is known."""
    for category, names, key in TRANSLATION:
        count = sum(counters.get(name, 0) for name in names)
        cells = [
            Cell(part, counters.get(name, 0), profile.prices[price_name])
            for part, name, price_name in DIVIDED.get(category, ())
            if counters.get(name, 0)
        ]
        if any(cell.unpriced for cell in cells):
            cells = []  # one price for all of them, as without caches
        yield Cell(category, count - sum(cell.count for cell in cells), profile.prices[key])
        yield from cells


def _row(reason: int, counts: Sequence[int], profile: Profile) -> Row:
    cells = tuple(
        Cell(category, counts[event], profile.prices[key]) for category, event, key in EVENTS
    )
    samples = counts[Event.VM_EXIT] + counts[Event.ENTRY_FAILURE]
    return Row(reason, samples, cells, profile.prices["round_trip"])


def _unpriced(
    run: Counted, rows: Iterable[Row], translation: tuple[Cell, ...]
) -> Iterator[Unpriced]:
    counts: dict[Category, int] = {}
    prices: dict[Category, Price] = {}
    for cell in (*translation, *(cell for row in rows for cell in row.cells)):
        if cell.unpriced:
            counts[cell.category] = counts.get(cell.category, 0) + cell.count
            prices[cell.category] = cell.price
    for category, count in counts.items():
        yield Unpriced(category.value, count, prices[category].source)
    for event, what in NEVER_PRICED:
        count = sum(row[event] for row in run.events.counts.values())
        if count:
            yield Unpriced(what, count, "no published figure is known")
