"""The ledger: every event priced once, sums exact, nothing unknown shown as a number."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vtx
from vtx.facts.exits import ExitReason
from vtx.lab.categories import Category
from vtx.lab.ledger import price, reason_name
from vtx.lab.profile import Price, Profile, Status, load_profile, load_profiles
from vtx.machine.events import GUEST, Event, EventLog, ExitRecord

PROFILES = load_profiles()
PRICED = [profile for profile in PROFILES if profile.has_prices]
SKYLAKE = load_profile("skylake_sp")


@dataclass
class Run:
    events: EventLog = field(default_factory=EventLog)
    translation: dict[str, int] = field(default_factory=dict)


def cpuid_loop(times: int, reads: int = 2) -> Run:
    """What a CPUID loop counts: entry, then exits that the VMM reads, writes RIP and resumes."""
    run = Run()
    run.events.count(Event.VM_ENTRY)
    for number in range(times):
        record = ExitRecord(number, 0, number, ExitReason.CPUID, 0, 0, 0, 0)
        run.events.vm_exit(record, fault=False)
        run.events.count(Event.VMREAD, reads)
        run.events.count(Event.VMWRITE)
        run.events.count(Event.VM_ENTRY)
    run.events.handle(GUEST)
    return run


def test_a_cpuid_loop_by_hand() -> None:
    ledger = price(cpuid_loop(10), SKYLAKE)
    cpuid, setup = ledger.rows
    assert (cpuid.name, cpuid.samples) == ("CPUID", 10)
    assert cpuid.cycles == 10 * (254 + 2 * 21 + 18 + 382)
    assert (setup.name, setup.samples, setup.cycles) == ("(set-up)", 0, 382)
    assert ledger.cycles == cpuid.cycles + setup.cycles
    assert ledger.ns == ledger.cycles / Fraction("2.3")
    assert ledger.by_category[Category.VMREAD] == 420


def test_an_exit_and_an_entry_rest_on_the_measured_round_trip() -> None:
    ledger = price(cpuid_loop(10, reads=0), SKYLAKE)
    cpuid = ledger.rows[0]
    assert cpuid.by_status[Status.MEASURED] == 6360
    assert cpuid.by_status[Status.ESTIMATED] == 180
    # The first entry has no exit of its own: half of a pair is an estimate.
    assert ledger.by_status[Status.ESTIMATED] == 180 + 382
    assert ledger.share(Status.MEASURED) == pytest.approx(6360 / 6922)


def test_faults_and_translation_by_hand() -> None:
    run = Run(
        translation={
            "l2i_hits": 3,
            "l2d_hits": 4,
            "walks": 5,
            "walks_stopped": 1,
            "guest_references_level4": 20,
            "ept_references_level1": 50,
        }
    )
    record = ExitRecord(0, 0, 0, ExitReason.EPT_VIOLATION, 0, 0, 0, 0)
    run.events.vm_exit(record, fault=True)
    ledger = price(run, SKYLAKE)
    assert ledger.rows[0].cycles == 254 + 64
    assert ledger.translation_cycles == 7 * 9 + 6 * 7 + 70 * 21
    assert ledger.cycles == 318 + 1575


def test_what_has_no_price_is_named_and_not_counted() -> None:
    run = cpuid_loop(1)
    for event in (Event.INJECTION, Event.INVALIDATION, Event.VMX_INSTRUCTION, Event.DELIVERY):
        run.events.count(event, 7)
    before, after = price(cpuid_loop(1), SKYLAKE), price(run, SKYLAKE)
    assert before.cycles == after.cycles
    assert {entry.what for entry in before.unpriced} == {"software of exit handlers"}
    assert {entry.what: entry.count for entry in after.unpriced} == {
        "software of exit handlers": 1,
        "event injections": 7,
        "INVEPTs and INVVPIDs": 7,
        "other VMX instructions": 7,
        "events delivered through the guest's IDT": 7,
    }


def test_a_tlb_hit_without_a_figure_is_named() -> None:
    ledger = price(Run(translation={"l2d_hits": 9}), load_profile("airmont_n3150"))
    assert ledger.cycles == 0
    assert [(entry.what, entry.count) for entry in ledger.unpriced] == [
        ("second-level TLB hits", 9)
    ]


def test_a_profile_without_prices_gives_no_figure() -> None:
    ledger = price(cpuid_loop(3), load_profile("gracemont_n305"))
    assert not ledger.priced
    data = ledger.as_dict()
    assert (data["priced"], data["why"]) == (False, "no measurement found")
    assert "cycles" not in data
    assert [row["cycles"] for row in data["rows"]] == [None, None]


def test_rows_are_sorted_by_cost_and_set_up_comes_last() -> None:
    run = cpuid_loop(1)
    for number in range(5):
        run.events.vm_exit(ExitRecord(number, 0, 0, ExitReason.HLT, 0, 0, 0, 0), fault=False)
    assert [row.name for row in price(run, SKYLAKE).rows] == ["HLT", "CPUID", "(set-up)"]


def test_names_of_reasons() -> None:
    assert reason_name(ExitReason.WRMSR) == "MSR_WRITE"
    assert reason_name(GUEST) == "(set-up)"
    assert reason_name(12345) == "(12345)"


COUNT = st.integers(0, 10**9)
COUNTS = st.dictionaries(
    st.sampled_from([GUEST, *map(int, ExitReason)]),
    st.lists(COUNT, min_size=len(Event), max_size=len(Event)),
    max_size=6,
)
COUNTERS = st.dictionaries(
    st.sampled_from(
        [
            "l2i_hits",
            "l2d_hits",
            "walks",
            "walks_stopped",
            "guest_references_level4",
            "guest_references_level1",
            "ept_references_level5",
        ]
    ),
    COUNT,
)


@given(counts=COUNTS, translation=COUNTERS, profile=st.sampled_from(PRICED), odd=st.booleans())
def test_all_ways_of_adding_up_agree(
    counts: dict[int, list[int]], translation: dict[str, int], profile: Profile, odd: bool
) -> None:
    if odd:  # figures that binary fractions cannot hold
        prices = {
            name: Price(name, entry.cycles and entry.cycles / 10, entry.status, entry.source)
            for name, entry in profile.prices.items()
        }
        prices["injection"] = Price("injection", Fraction(1, 3), Status.DERIVED, "")
        profile = Profile(profile.id, profile.name, "", profile.nominal_ghz, profile.shape, prices)
    run = Run(translation=translation)
    run.events.counts.update(counts)
    ledger = price(run, profile)
    assert sum(ledger.by_category.values()) == ledger.cycles
    assert sum(ledger.by_status.values()) == ledger.cycles
    assert sum(row.cycles for row in ledger.rows) + ledger.translation_cycles == ledger.cycles
    for row in ledger.rows:
        assert sum(cell.cycles for cell in row.cells) == row.cycles
        assert sum(row.by_status.values()) == row.cycles
        pair = (Category.EXIT, Category.ENTRY)
        rest = [category for category in Category if category not in pair]
        halves = (row.founded(pair), row.founded(rest))
        assert sum(sum(half.values()) for half in halves) == row.cycles
    if ledger.cycles:
        assert sum(ledger.share(status) for status in Status) == pytest.approx(1)
    kinds = (Event.VM_EXIT, Event.ENTRY_FAILURE)
    exits = sum(row[kind] for row in run.events.counts.values() for kind in kinds)
    assert ledger.samples == exits


@given(counts=COUNTS, translation=COUNTERS)
def test_twice_the_counts_cost_twice_as_much(
    counts: dict[int, list[int]], translation: dict[str, int]
) -> None:
    once, twice = Run(translation=translation), Run()
    once.events.counts.update(counts)
    twice.events.counts.update({reason: [2 * n for n in row] for reason, row in counts.items()})
    twice.translation.update({name: 2 * n for name, n in translation.items()})
    assert 2 * price(once, SKYLAKE).cycles == price(twice, SKYLAKE).cycles


BY_CACHE = {
    "walks": 2,
    "guest_references_level1": 10,
    "ept_references_level1": 20,
    "guest_walk_l1": 6,
    "guest_walk_memory": 3,
    "ept_walk_l2": 5,
    "ept_walk_l3": 15,
}


def test_references_cost_what_held_the_entry() -> None:
    ledger = price(Run(translation=BY_CACHE), SKYLAKE)
    cells = {cell.category: cell for cell in ledger.translation}
    assert cells[Category.GUEST_REFERENCES].count == 1
    assert cells[Category.EPT_REFERENCES].count == 0
    guest = 6 * 4 + 3 * 248 + 1 * 21
    assert ledger.cycles == 2 * 7 + guest + 5 * 21 + 15 * 75
    assert cells[Category.EPT_L3].cycles == 15 * 75
    assert ledger.by_status[Status.DERIVED] == 6 * 4 + 3 * 248 + 5 * 21 + 15 * 75


def test_a_cpu_without_a_price_for_a_level_has_one_price_for_all() -> None:
    ledger = price(Run(translation=BY_CACHE), load_profile("merom_core2"))
    assert load_profile("merom_core2").prices["walk.l3"].cycles is None
    cells = {cell.category: cell for cell in ledger.translation}
    assert cells[Category.EPT_REFERENCES].cycles == 20 * 17
    assert cells[Category.GUEST_L1].cycles == 6 * 3
    assert Category.EPT_L2 not in cells


def test_a_run_with_data_caches_is_priced_by_level(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    caches = "".join(
        f"    - {{size: {size}, ways: 8, status: estimated, source: a test}}\n"
        for size in ("32K", "1M", "16M")
    )
    text = f"schema: 1\ninherits: skylake_sp\nid: own\nshape:\n  data_caches:\n{caches}"
    own.write_text(text)
    run = vtx.replay(Path(__file__).parents[2] / "traces" / "02-ept-violation.yaml", str(own))
    ledger = price(run, load_profile(str(own)))
    cells = {cell.category: cell for cell in ledger.translation}
    assert cells[Category.EPT_MEMORY].count > 0
    assert cells[Category.GUEST_REFERENCES].count == 0
    counted = sum(run.translation[f"ept_references_level{level}"] for level in range(1, 6))
    assert sum(cell.count for c, cell in cells.items() if c.name.startswith("EPT_")) == counted
