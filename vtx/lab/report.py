"""Ledgers, comparisons and profiles as tables, every estimate marked as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from vtx.lab.compare import Comparison, Outcome
from vtx.lab.ledger import Category, Cell, Ledger, Row
from vtx.lab.profile import Price, Profile, Status
from vtx.lab.table import Column, Table

__all__ = [
    "comparison_table",
    "exit_table",
    "prices_table",
    "profiles_table",
    "shape_table",
    "summary_table",
    "tlb_table",
    "translation_table",
]

ESTIMATE_MARK = "~"
NO_DATA = "no data"
_LEGEND = (
    f"{ESTIMATE_MARK} rests on an estimate at least in part; 'vtx profiles NAME' says on which"
)


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
    missing = ["Not in the total: the guest's own instructions, and the software of exit handlers."]
    missing += [f"Not in the total: {u.count:,} {u.what} ({u.why})." for u in ledger.unpriced]
    return missing


# ---- One run on one CPU -----------------------------------------------------------------------

_EXIT_COLUMNS = (
    Column("exit reason"),
    Column("samples", True),
    Column("samples %", True),
    Column("cycles", True),
    Column("time us", True),
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
    remarks = [_LEGEND, rests_on(ledger), *unpriced_text(ledger)]
    return Table(title, _EXIT_COLUMNS, rows, remarks)


def _exit_cells(ledger: Ledger, row: Row) -> list[str]:
    estimated = _estimated(row.by_status)
    average = "-"
    if row.samples:
        average = cycles_text(Fraction(round(row.cycles / row.samples)), estimated)
    other = [category for category in Category if category not in _SHOWN]
    return [
        row.name,
        f"{row.samples:,}",
        _percent(row.samples, ledger.samples),
        cycles_text(row.cycles, estimated),
        _microseconds(ledger.profile.ns(row.cycles), estimated),
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
    estimated = _estimated(ledger.by_status) if whole else _translation_estimated(ledger)
    return [
        name,
        "-" if samples is None else f"{samples:,}",
        "-" if samples is None else _percent(samples, samples),
        cycles_text(cycles, estimated),
        _microseconds(ledger.profile.ns(cycles), estimated),
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
    columns = (Column("guest translation"), *(Column(h, True) for h in ("count", "each", "cycles")))
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
    remarks = [_LEGEND] if comparison.priced else []
    if base is not None:
        remarks.append(f"relative: time at the nominal clock over that of {base.profile.id}")
    if comparison.priced:
        remarks.append("measured, derived, estimated: what the total rests on")
        remarks.append(
            "Not in the totals: the guest's own instructions, and the software of exit handlers."
        )
    remarks += [f"{o.profile.id}: {o.why}" for o in comparison.outcomes if o.why]
    remarks += _unpriced_anywhere(comparison)
    return Table(comparison.title, _COMPARE_COLUMNS, rows, remarks)


def _unpriced_anywhere(comparison: Comparison) -> list[str]:
    """Return what totals do not hold, each thing once, with the profiles if it is not all."""
    profiles: dict[str, list[str]] = {}
    for outcome in comparison.priced:
        for entry in outcome.ledger.unpriced:
            line = f"{entry.count:,} {entry.what} ({entry.why})"
            profiles.setdefault(line, []).append(outcome.profile.id)
    everywhere = len(comparison.priced)
    return [
        f"Not in the total{'s' if len(ids) == everywhere else ' of ' + ', '.join(ids)}: {line}."
        for line, ids in profiles.items()
    ]


def _outcome_cells(outcome: Outcome, base: Outcome | None) -> list[str]:
    if outcome.why:
        return [outcome.profile.id, "-", outcome.state.value, *["-"] * 8]
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
        relative,
        _rows_text(ledger.rows, _TRANSITIONS),
        _rows_text(ledger.rows, (Category.VMREAD, Category.VMWRITE)),
        _cells_text(ledger.translation, _translation_estimated(ledger)),
        *(f"{ledger.share(status):.0%}" for status in Status),
    ]


# ---- Profiles ---------------------------------------------------------------------------------

_PROFILE_PRICES = ("round_trip", "entry", "exit", "vmread", "vmwrite", "fault_exit_extra")


def profiles_table(profiles: Sequence[Profile]) -> Table:
    """Return one line for each profile: clock, what it can do, what its transitions cost."""
    columns = (
        Column("profile"),
        Column("CPU"),
        Column("GHz", True),
        Column("EPT"),
        Column("VPID"),
        *(Column(name, True) for name in _PROFILE_PRICES),
    )
    rows = [
        [
            profile.id,
            profile.name,
            f"{profile.nominal_ghz:g}",
            "yes" if profile.shape.has_ept else "no",
            "yes" if profile.shape.has_vpid else "no",
            *(price_text(profile.prices[name]) for name in _PROFILE_PRICES),
        ]
        for profile in profiles
    ]
    remarks = (
        f"Prices in cycles; {ESTIMATE_MARK} is an estimate, the others are measured or derived.",
        "'vtx profiles NAME' gives status and source of every figure.",
    )
    return Table("", columns, rows, remarks)


def prices_table(profile: Profile) -> Table:
    """Return the prices of one profile with their provenance."""
    columns = (Column("price"), Column("cycles", True), Column("status"), Column("source"))
    rows = [
        [name, price_text(price), price.status.value if price.status else "-", price.source]
        for name, price in profile.prices.items()
    ]
    return Table("", columns, rows)


def tlb_table(profile: Profile) -> Table:
    """Return the TLB arrays and paging-structure caches of one profile with their provenance."""
    tlb, origin = profile.shape.tlb, profile.provenance["tlb"]
    columns = (
        Column("translation cache"),
        Column("pages"),
        Column("entries", True),
        Column("ways", True),
        Column("status"),
        Column("source"),
    )
    notes = _Footnotes()
    rows = [
        [
            f"L{array.level} {array.kind}",
            ", ".join(array.pages),
            str(array.entries),
            str(array.ways),
            *notes.cells(source),
        ]
        for array, source in zip(tlb.arrays, origin["arrays"], strict=True)
    ]
    caches = notes.cells(origin["paging_structure_caches"])
    for name in ("pml5", "pml4", "pdpt", "pd"):
        rows.append([f"{name} cache", "-", str(getattr(tlb, name)), "-", *caches])
    nested = notes.cells(origin["guest_physical"])
    rows.append(["guest-physical TLB", "-", str(tlb.guest_physical), "-", *nested])
    remarks = (f"Note: {origin['note']}.",) if origin["note"] else ()
    return Table("", columns, rows, (*notes.lines, *remarks))


def shape_table(profile: Profile) -> Table:
    """Return capability MSRs, widths and features of one profile with their provenance."""
    origin = profile.provenance
    columns = (Column("shape"), Column("value"), Column("status"), Column("source"))
    notes = _Footnotes()
    rows = [
        [name, f"{value:#018x}", *notes.cells(origin["capability_msrs"][name])]
        for name, value in profile.msrs_by_name().items()
    ]
    widths = notes.cells(origin["address_widths"])
    rows.append(["MAXPHYADDR", str(profile.shape.maxphyaddr), *widths])
    rows.append(["linear address bits", str(profile.shape.linear_bits), *widths])
    features = notes.cells(origin["features"])
    rows += [[f"feature {name}", "yes", *features] for name in sorted(profile.shape.features)]
    return Table("", columns, rows, notes.lines)


class _Footnotes:
    """Numbers for sources that many rows share, and the lines that spell them out."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cells(self, origin: Mapping[str, str]) -> tuple[str, str]:
        """Return the cells for status and source."""
        number = self._numbers.setdefault(origin["source"], len(self._numbers) + 1)
        return origin["status"], f"[{number}]"

    @property
    def lines(self) -> tuple[str, ...]:
        """The sources, in the order of their numbers."""
        return tuple(f"[{number}] {source}" for source, number in self._numbers.items())
