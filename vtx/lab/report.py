"""Ledgers and comparisons as tables, every estimate marked as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from vtx.lab.categories import SOFTWARE, Category
from vtx.lab.compare import Comparison, Outcome
from vtx.lab.ledger import Cell, Ledger, Row, share
from vtx.lab.profile import Price, Status
from vtx.lab.table import Column, Table

__all__ = [
    "comparison_table",
    "exit_table",
    "summary_table",
    "translation_table",
]

ESTIMATE_MARK = "~"
NO_DATA = "no data"
_LEGEND = (
    f"{ESTIMATE_MARK} rests on an estimate at least in part; 'vtx profiles NAME' says on which"
)


_BOUNDS = (
    "low, high: time us within the ranges of the prices' sources, or else what their provenance "
    "allows"
)
_SHARES = "m/d/e: shares of the cycles that rest on measured, derived and estimated prices"


def counted(count: int, what: str) -> str:
    """Return a number of things: ``1 exit``, ``2 exits``."""
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{count:,} {what if count == 1 else plural}"


def cycles_text(cycles: Fraction, estimated: bool = False) -> str:
    """Return cycles with thousands separated, and the mark of an estimate."""
    figure = f"{cycles.numerator:,}" if cycles.denominator == 1 else f"{float(cycles):,.1f}"
    return (ESTIMATE_MARK if estimated else "") + figure


def price_text(price: Price) -> str:
    """Return a price for a cell of a table."""
    if price.cycles is None:
        return NO_DATA
    return cycles_text(price.cycles, price.status is Status.ESTIMATED)


def _microseconds(ns: Fraction, estimated: bool) -> str:
    return (ESTIMATE_MARK if estimated else "") + f"{float(ns) / 1000:,.2f}"


def _percent(part: Fraction | int, whole: Fraction | int) -> str:
    return f"{float(part / whole):.2%}" if whole else "-"


def _estimated(by_status: dict[Status, Fraction]) -> bool:
    return bool(by_status[Status.ESTIMATED])


def rests_on(ledger: Ledger) -> str:
    """Return what the total rests on, as a sentence."""
    shares = ", ".join(f"{ledger.share(status):.0%} {status.value}" for status in Status)
    return f"The total rests on prices that are {shares}."


def unpriced_text(ledger: Ledger) -> list[str]:
    """Return what the total does not hold, one sentence a line."""
    missing = [f"Not in the total: {text}." for text in software_text(ledger)]
    missing += [
        f"Not in the total: {u.count:,} {u.what} ({u.why})."
        for u in ledger.unpriced
        if u.what not in SOFTWARE
    ]
    return missing


def software_text(ledger: Ledger) -> list[str]:
    """Return whose software the total does not hold, as one text; nothing if all is priced."""
    without = ledger.unpriced_software
    guest, handlers = "the guest's own instructions", "the software of exit handlers"
    texts = {"guest_instruction": guest, "handler": handlers}
    found = [text for name, text in texts.items() if name in without]
    return [", and ".join(found)] if found else []


def shares_text(by_status: Mapping[Status, Fraction]) -> str:
    """Return the percentages that rest on measured, derived and estimated prices: 64/0/36."""
    if not any(by_status.values()):
        return "-"
    return "/".join(f"{share(by_status, status):.0%}".removesuffix("%") for status in Status)


def _bound_cells(ledger: Ledger, bounds: tuple[Fraction, Fraction]) -> list[str]:
    return [_microseconds(ledger.profile.ns(cycles), False) for cycles in bounds]


# ---- One run on one CPU -----------------------------------------------------------------------

_EXIT_COLUMNS = (
    Column("exit reason"),
    Column("samples", True),
    Column("samples %", True),
    Column("cycles", True),
    Column("time us", True),
    Column("low", True),
    Column("high", True),
    Column("m/d/e %", True),
    Column("time %", True),
    Column("avg cycles", True),
    Column("transitions", True),
    Column("VMREAD", True),
    Column("VMWRITE", True),
    Column("other", True),
)
_TRANSITIONS = (Category.EXIT, Category.FAULT, Category.ENTRY)
_SHOWN = (*_TRANSITIONS, Category.VMREAD, Category.VMWRITE)


def exit_table(ledger: Ledger, title: str) -> Table:
    """Return the exits of a run by reason, dearest first, as ``perf kvm stat`` would."""
    if not ledger.priced:
        return _counts_table(ledger, title)
    rows = [_exit_cells(ledger, row) for row in ledger.rows]
    rows.append(_whole_cells(ledger, "(guest translation)", ledger.translation_cycles, None))
    rows.append(_whole_cells(ledger, "total", ledger.cycles, ledger.samples))
    remarks = [_LEGEND, _BOUNDS, _SHARES, rests_on(ledger), *unpriced_text(ledger)]
    return Table(title, _EXIT_COLUMNS, rows, remarks)


def _exit_cells(ledger: Ledger, row: Row) -> list[str]:
    estimated = _estimated(row.by_status)
    average = "-"
    if row.samples:
        average = cycles_text(Fraction(round(row.cycles / row.samples)), estimated)
    software = () if not ledger.unpriced_software else SOFTWARE
    other = [category for category in Category if category not in (*_SHOWN, *software)]
    return [
        row.name,
        f"{row.samples:,}",
        _percent(row.samples, ledger.samples),
        cycles_text(row.cycles, estimated),
        _microseconds(ledger.profile.ns(row.cycles), estimated),
        *_bound_cells(ledger, row.bounds),
        shares_text(row.by_status),
        _percent(row.cycles, ledger.cycles),
        average,
        _rows_text([row], _TRANSITIONS),
        _rows_text([row], (Category.VMREAD,)),
        _rows_text([row], (Category.VMWRITE,)),
        _rows_text([row], other),
    ]


def _rows_text(rows: Sequence[Row], categories: Sequence[Category]) -> str:
    """Return the cycles of some categories of some rows, marked if any of them is an estimate."""
    cells = [cell for row in rows for cell in row.cells if cell.category in categories]
    estimated = any(_estimated(row.founded(categories)) for row in rows)
    return _cells_text(cells, estimated)


def _cells_text(cells: Sequence[Cell], estimated: bool) -> str:
    happened = [cell for cell in cells if cell.count]
    if not happened:
        return "-"
    if all(cell.unpriced for cell in happened):
        return NO_DATA
    return cycles_text(sum((cell.cycles for cell in happened), Fraction(0)), estimated)


def _translation_estimated(ledger: Ledger) -> bool:
    return _estimated(ledger.translation_by_status)


def _whole_cells(ledger: Ledger, name: str, cycles: Fraction, samples: int | None) -> list[str]:
    whole = samples is not None
    by_status = ledger.by_status if whole else ledger.translation_by_status
    bounds = ledger.bounds if whole else ledger.translation_bounds
    estimated = _estimated(by_status)
    return [
        name,
        "-" if samples is None else f"{samples:,}",
        "-" if samples is None else _percent(samples, samples),
        cycles_text(cycles, estimated),
        _microseconds(ledger.profile.ns(cycles), estimated),
        *_bound_cells(ledger, bounds),
        shares_text(by_status),
        _percent(cycles, ledger.cycles),
        *["-"] * 5,
    ]


def _counts_table(ledger: Ledger, title: str) -> Table:
    """Return the exits of a run on a CPU for which no prices are known: counts alone."""
    columns = (*_EXIT_COLUMNS[:3], Column("cycles", True), Column("VMREADs", True))
    rows = []
    for row in ledger.rows:
        reads = next(cell.count for cell in row.cells if cell.category is Category.VMREAD)
        share = _percent(row.samples, ledger.samples)
        rows.append([row.name, f"{row.samples:,}", share, NO_DATA, f"{reads:,}"])
    why = ledger.profile.prices["round_trip"].source
    remarks = [f"{ledger.profile.id} has no prices: {why}. Nothing is priced."]
    return Table(title, columns, rows, remarks)


_TLBS = (
    ("l1i", "first level, instructions"),
    ("l1d", "first level, data"),
    ("l2i", "second level, instructions"),
    ("l2d", "second level, data"),
)
_TRANSLATION_EVENTS = (
    ("walks", "page walk", " completed"),
    ("walks_stopped", "", "stopped by an event"),
    ("page_faults", "page fault", ""),
    ("ept_violations", "EPT violation", ""),
    ("invalidated", "TLB entry", " invalidated"),
)


def translation_table(ledger: Ledger) -> Table:
    """Return what the guest's translations cost."""
    headings = ("count", "each", "cycles", "low", "high")
    columns = (Column("guest translation"), *(Column(h, True) for h in headings))
    rows = [
        [
            cell.category.value,
            f"{cell.count:,}",
            price_text(cell.price),
            NO_DATA
            if cell.unpriced
            else cycles_text(
                cell.cycles, bool(cell.count) and cell.price.status is Status.ESTIMATED
            ),
            *(NO_DATA if cell.unpriced else cycles_text(bound) for bound in cell.bounds),
        ]
        for cell in ledger.translation
    ]
    return Table("", columns, rows)


def summary_table(translation: Mapping[str, int]) -> Table:
    """Return how the guest's references were translated: hits and misses of each TLB level."""
    columns = (Column("TLB"), Column("lookups", True), Column("hits", True), Column("hit %", True))
    rows = []
    for key, name in _TLBS:
        hits, misses = translation.get(f"{key}_hits", 0), translation.get(f"{key}_misses", 0)
        lookups = hits + misses
        if lookups:
            rows.append([name, f"{lookups:,}", f"{hits:,}", _percent(hits, lookups)])
    counts = [
        (counted(translation.get(key, 0), what) if what else f"{translation.get(key, 0):,} ") + rest
        for key, what, rest in _TRANSLATION_EVENTS
    ]
    return Table("", columns, rows, [", ".join(counts)])


# ---- One run on many CPUs ---------------------------------------------------------------------

_COMPARE_COLUMNS = (
    Column("profile"),
    Column("exits", True),
    Column("cycles", True),
    Column("time us", True),
    Column("low", True),
    Column("high", True),
    Column("relative", True),
    Column("transitions", True),
    Column("VMREAD+VMWRITE", True),
    Column("translation", True),
    Column("measured", True),
    Column("derived", True),
    Column("estimated", True),
)


def comparison_table(comparison: Comparison, baseline: str | None = None) -> Table:
    """Return what a run costs on each CPU, against the time on `baseline` if one is given."""
    base = comparison.baseline(baseline)
    rows = [_outcome_cells(outcome, base) for outcome in comparison.outcomes]
    remarks = [_LEGEND, _BOUNDS] if comparison.priced else []
    if base is not None:
        remarks.append(f"relative: time at the nominal clock over that of {base.profile.id}")
    if comparison.priced:
        remarks.append("measured, derived, estimated: what the total rests on")
        missing = {o.profile.id: software_text(o.ledger) for o in comparison.priced}
        remarks += _missing_anywhere(missing)
    remarks += [f"{o.profile.id}: {o.why}" for o in comparison.outcomes if o.why]
    remarks += _unpriced_anywhere(comparison)
    return Table(comparison.title, _COMPARE_COLUMNS, rows, remarks)


def _unpriced_anywhere(comparison: Comparison) -> list[str]:
    """Return what totals do not hold, each thing once, with the profiles if it is not all."""
    return _missing_anywhere(
        {
            outcome.profile.id: [
                f"{entry.count:,} {entry.what} ({entry.why})"
                for entry in outcome.ledger.unpriced
                if entry.what not in SOFTWARE
            ]
            for outcome in comparison.priced
        }
    )


def _missing_anywhere(missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what is missing in the totals of profiles, each thing once."""
    profiles: dict[str, list[str]] = {}
    for name, lines in missing.items():
        for line in lines:
            profiles.setdefault(line, []).append(name)
    everywhere = len(missing)
    return [
        f"Not in the total{'s' if len(ids) == everywhere else ' of ' + ', '.join(ids)}: {line}."
        for line, ids in profiles.items()
    ]


def _outcome_cells(outcome: Outcome, base: Outcome | None) -> list[str]:
    if outcome.why:
        return [outcome.profile.id, "-", outcome.state.value, *["-"] * 10]
    ledger = outcome.ledger
    estimated = _estimated(ledger.by_status)
    relative = "-"
    if base is not None and base.ledger.ns:
        relative = f"{float(ledger.ns / base.ledger.ns):.2f}x"
    return [
        outcome.profile.id,
        f"{ledger.samples:,}",
        cycles_text(ledger.cycles, estimated),
        _microseconds(ledger.ns, estimated),
        *_bound_cells(ledger, ledger.bounds),
        relative,
        _rows_text(ledger.rows, _TRANSITIONS),
        _rows_text(ledger.rows, (Category.VMREAD, Category.VMWRITE)),
        _cells_text(ledger.translation, _translation_estimated(ledger)),
        *(f"{ledger.share(status):.0%}" for status in Status),
    ]
