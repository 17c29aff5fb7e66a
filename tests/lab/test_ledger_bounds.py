"""Bounds of the ledger: from the ranges of the sources, else from the provenance; sums exact."""

from dataclasses import dataclass, field, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.facts.exits import ExitReason
from vtx.lab.bounds import price_ns
from vtx.lab.categories import EVENTS, Category
from vtx.lab.ledger import Ledger, price
from vtx.lab.profile import UNCERTAINTY, Price, Profile, Status, load_profile, load_profiles
from vtx.machine.events import GUEST, Event, EventLog

SKYLAKE = load_profile("skylake_sp")


@dataclass
class Run:
    events: EventLog = field(default_factory=EventLog)
    translation: dict[str, int] = field(default_factory=dict)


def run_of(translation: dict[str, int] | None = None, **counts: int) -> Run:
    run = Run(translation=translation or {})
    row = [0] * len(Event)
    for name, count in counts.items():
        row[Event[name]] = count
    run.events.counts[int(ExitReason.CPUID)] = row
    return run


def test_a_range_of_the_source_counts_and_else_the_status() -> None:
    assert SKYLAKE.prices["round_trip"].bounds == (512, 636)
    assert SKYLAKE.prices["stlb_hit"].bounds == (Fraction(81, 10), Fraction(99, 10))
    assert SKYLAKE.prices["vmread"].bounds == (Fraction(21, 2), Fraction(63, 2))
    assert SKYLAKE.prices["injection"].bounds == (0, 0)
    derived = load_profile("merom_core2").prices["exit"]
    assert derived.bounds == (642 * Fraction(3, 4), 642 * Fraction(5, 4))


def test_bounds_of_a_run_by_hand() -> None:
    run = run_of({"l2d_hits": 10}, VM_EXIT=3, VM_ENTRY=3, VMREAD=2)
    ledger = price(run, SKYLAKE)
    assert ledger.rows[0].bounds == (3 * 512 + 2 * Fraction(21, 2), 3 * 636 + 2 * Fraction(63, 2))
    assert ledger.translation_bounds == (81, 99)
    assert ledger.bounds == (1536 + 21 + 81, 1908 + 63 + 99)
    assert ledger.ns_bounds[0] == 1638 / Fraction("2.3")
    data = ledger.as_dict()
    assert (data["cycles_low"], data["cycles"], data["cycles_high"]) == (1638, 2040, 2070)
    row = data["rows"][0]
    assert (row["cycles_low"], row["cycles_high"]) == (1557, 1971)
    assert row["rests_on"]["measured"] == pytest.approx(1908 / 1950)
    assert row["ns"] == pytest.approx(1950 / 2.3)


COUNTS = st.lists(st.integers(0, 10**9), min_size=len(Event), max_size=len(Event))


@given(counts=COUNTS, hits=st.integers(0, 10**9), profile=st.sampled_from(load_profiles()))
def test_bounds_add_up_and_hold_the_sum(counts: list[int], hits: int, profile: Profile) -> None:
    run = Run(translation={"walks": hits, "ept_references_level1": hits})
    run.events.counts[int(ExitReason.CPUID)] = counts
    run.events.counts[GUEST] = counts[::-1]
    ledger: Ledger = price(run, profile)
    for end in (0, 1):
        parts = sum(row.bounds[end] for row in ledger.rows) + ledger.translation_bounds[end]
        assert parts == ledger.bounds[end]
    if profile.has_prices:
        assert ledger.bounds[0] <= ledger.cycles <= ledger.bounds[1]
    for row in ledger.rows:
        pair = (Category.EXIT, Category.ENTRY)
        single = [cell.bounds for cell in row.cells if cell.category not in pair]
        paired = price(_only(row.reason, run, pair), profile)
        low = sum(bounds[0] for bounds in single) + paired.bounds[0]
        assert low == row.bounds[0]


def _only(reason: int, run: Run, wanted: tuple[Category, ...]) -> Run:
    """The same counts with nothing but exits and entries; handlers have no price."""
    row = [0] * len(Event)
    for category, event, _ in EVENTS:
        if category in wanted:
            row[event] = run.events.counts[reason][event]
    only = Run()
    only.events.counts[reason] = row
    return only


def test_a_profile_of_ones_own_prices_software() -> None:
    run = run_of(VM_EXIT=2, VM_ENTRY=2, GUEST_INSTRUCTION=5, DELIVERY=1)
    prices = dict(SKYLAKE.prices)
    for name, cycles in (("handler", 900), ("guest_instruction", 1), ("delivery", 80)):
        prices[name] = Price(name, Fraction(cycles), Status.MEASURED, "a test")
    ledger = price(run, replace(SKYLAKE, prices=prices))
    assert ledger.cycles == 2 * 636 + 2 * 900 + 5 + 80
    assert ledger.by_category[Category.HANDLER] == 1800
    assert ledger.unpriced_software == []
    plain = price(run, SKYLAKE)
    assert plain.cycles == 2 * 636
    assert plain.as_dict()["by_category"]["handler"] is None
    assert {entry.what: entry.count for entry in plain.unpriced} == {
        "guest instructions that did not exit": 5,
        "software of exit handlers": 2,
        "events delivered through the guest's IDT": 1,
    }


def test_recorded_exits_use_the_same_bounds() -> None:
    bounds = price_ns(SKYLAKE, "round_trip")
    assert bounds is not None
    assert (bounds.low, bounds.high) == pytest.approx((512 / 2.3, 636 / 2.3))
    assert UNCERTAINTY[Status.ESTIMATED] == Fraction(1, 2)
