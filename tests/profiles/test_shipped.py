"""The profiles that come with vtx: complete, consistent, and equal to what was published."""

from fractions import Fraction
from statistics import median

import pytest

from vtx.facts.msrs import CAPABILITY_MSRS, Msr
from vtx.lab.profile import Profile, Status, load_profile, load_profiles
from vtx.machine.shape import Shape
from vtx.profiles import load_raw, names
from vtx.profiles.schema import PRICES, SHAPE_STATUSES, WALK_PRICES

# Published figures, cycles, transcribed from the publications and not from the profiles.
AGESEN_2012_TABLE_1 = {  # hardware round trip, "Software Techniques for Avoiding ... Exits"
    "prescott_p4_672": 3963,
    "merom_core2": 1579,
    "penryn_core2": 1266,
    "nehalem": 1009,
    "westmere": 761,
    "sandy_bridge": 784,
}
VMLATENCY_MEDIANS = {  # round trip in TSC ticks
    "ivy_bridge_ep": 716,  # Xeon E5-2697 v2
    "haswell_ep": 470,  # Xeon E5-2680 v3
    "broadwell_ep": 450,  # Xeon E5-2680 v4
    "skylake_client": 632,  # Core i7-6700K
    "skylake_sp": 636,  # Xeon Gold 6140
    "cascade_lake_sp": 518,  # Xeon Gold 6252N
    "airmont_n3150": 1114,  # Celeron N3150
}
VMLATENCY_HASWELL = (597, 457, 573, 543, 565, 597)  # the six runs that repeated well
ADAMS_AGESEN_2006_TABLE_1 = {  # entry, page-fault exit, VMCB read, VMCB write
    "prescott_p4_672": (2409, 1931, 178, 171),
    "merom_core2": (937, 1186, 52, 44),
}
TMA_STLB_HIT = {  # Mem_STLB_Hit_Cost
    "sandy_bridge": 7,
    "ivy_bridge_ep": 7,
    "haswell": 8,
    "haswell_ep": 8,
    "broadwell_ep": 8,
    "skylake_client": 9,
    "skylake_sp": 9,
    "cascade_lake_sp": 9,
    "ice_lake_sp": 7,
    "sapphire_rapids": 7,
    "emerald_rapids": 7,
    "granite_rapids": 7,
}
L2_CYCLES = {  # measured load latency of the second-level cache
    "prescott_p4_672": 31,
    "merom_core2": 17,
    "penryn_core2": 18,
    "nehalem": 10,
    "westmere": 10,
    "sandy_bridge": 12,
    "ivy_bridge_ep": 12,
    "haswell": 12,
    "haswell_ep": 12,
    "broadwell_ep": 12,
    "skylake_client": 12,
    "skylake_sp": 21,
    "cascade_lake_sp": 21,
    "airmont_n3150": 29,
}
L2_NANOSECONDS = {  # Intel TMA metrics
    "ice_lake_sp": 4.0,
    "sapphire_rapids": 4.4,
    "emerald_rapids": 4.4,
    "granite_rapids": 4.4,
}
NO_EPT = {"prescott_p4_672", "merom_core2", "penryn_core2"}
NO_PRICES = {"gracemont_n305"}

ALL_PRICES = (*PRICES, *(f"walk.{name}" for name in WALK_PRICES))
PROFILES = {profile.id: profile for profile in load_profiles()}
PRICED = {name: profile for name, profile in PROFILES.items() if name not in NO_PRICES}
each = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
each_priced = pytest.mark.parametrize("profile", PRICED.values(), ids=PRICED)


def cycles(profile: Profile, name: str) -> Fraction:
    value = profile.prices[name].cycles
    assert value is not None
    return value


def test_there_are_nineteen_and_their_ids_are_their_names() -> None:
    assert len(names()) == 19
    assert list(PROFILES) == list(names())


@each
def test_every_price_has_a_status_and_a_source_or_says_why_there_is_none(profile: Profile) -> None:
    for name in ALL_PRICES:
        price = profile.prices[name]
        assert price.source
        assert (price.cycles is None) == (price.status is None)
        assert price.status is None or price.status in Status


@each
def test_every_part_of_the_shape_has_a_status_and_a_source(profile: Profile) -> None:
    origin = profile.provenance
    tlb = origin["tlb"]
    parts = [
        *origin["capability_msrs"].values(),
        origin["address_widths"],
        origin["features"],
        origin["nominal_ghz"],
        *tlb["arrays"],
        tlb["paging_structure_caches"],
        tlb["guest_physical"],
    ]
    for part in parts:
        assert part["status"] in SHAPE_STATUSES
        assert part["source"]


@each_priced
def test_entry_and_exit_make_the_round_trip(profile: Profile) -> None:
    assert cycles(profile, "entry") + cycles(profile, "exit") == cycles(profile, "round_trip")


@pytest.mark.parametrize("name", AGESEN_2012_TABLE_1)
def test_round_trips_of_agesen_2012(name: str) -> None:
    price = PROFILES[name].prices["round_trip"]
    assert (price.cycles, price.status) == (AGESEN_2012_TABLE_1[name], Status.MEASURED)
    assert "ATC 2012" in price.source


@pytest.mark.parametrize("name", VMLATENCY_MEDIANS)
def test_round_trips_of_vmlatency(name: str) -> None:
    price = PROFILES[name].prices["round_trip"]
    assert (price.cycles, price.status) == (VMLATENCY_MEDIANS[name], Status.MEASURED)
    assert "vmlatency" in price.source


def test_haswell_is_the_median_of_its_runs() -> None:
    price = PROFILES["haswell"].prices["round_trip"]
    assert (price.cycles, price.status) == (median(VMLATENCY_HASWELL), Status.DERIVED)


@pytest.mark.parametrize("name", ADAMS_AGESEN_2006_TABLE_1)
def test_one_way_figures_of_adams_and_agesen_2006(name: str) -> None:
    entry, fault_exit, read, write = ADAMS_AGESEN_2006_TABLE_1[name]
    profile = PROFILES[name]
    for key, value in (("entry", entry), ("vmread", read), ("vmwrite", write)):
        price = profile.prices[key]
        assert (price.cycles, price.status) == (value, Status.MEASURED)
    assert cycles(profile, "exit") + cycles(profile, "fault_exit_extra") == fault_exit
    assert profile.prices["fault_exit_extra"].status is Status.DERIVED


def test_no_other_transition_is_called_measured() -> None:
    measured = {
        (name, key)
        for name, profile in PROFILES.items()
        for key in ALL_PRICES
        if profile.prices[key].status is Status.MEASURED
    }
    expected = {(name, "round_trip") for name in (*AGESEN_2012_TABLE_1, *VMLATENCY_MEDIANS)}
    for name in ADAMS_AGESEN_2006_TABLE_1:
        expected |= {(name, key) for key in ("entry", "vmread", "vmwrite")}
    expected |= {(name, "stlb_hit") for name in TMA_STLB_HIT}
    expected |= {("broadwell_ep", "walk.fixed")}
    assert measured == expected


@each_priced
def test_estimates_follow_the_rule_they_state(profile: Profile) -> None:
    round_trip = cycles(profile, "round_trip")
    shares = {"entry": 0.60, "vmread": 52 / 1579, "vmwrite": 44 / 1579, "fault_exit_extra": 0.10}
    for name, share in shares.items():
        if profile.prices[name].status is Status.ESTIMATED:
            assert abs(cycles(profile, name) - share * float(round_trip)) <= 1


@pytest.mark.parametrize(("name", "ratio"), [("ice_lake_sp", 9000), ("emerald_rapids", 7900)])
def test_round_trips_scaled_from_nested_measurements(name: str, ratio: int) -> None:
    price = PROFILES[name].prices["round_trip"]
    assert price.status is Status.ESTIMATED
    assert abs(float(cycles(PROFILES[name], "round_trip")) - 636 * ratio / 6850) <= 1


@pytest.mark.parametrize("name", ["sapphire_rapids", "granite_rapids"])
def test_round_trips_taken_from_the_sibling(name: str) -> None:
    price = PROFILES[name].prices["round_trip"]
    assert (price.cycles, price.status) == (733, Status.ESTIMATED)


@each_priced
def test_a_walk_reference_costs_the_second_level_cache(profile: Profile) -> None:
    price = profile.prices["walk.reference"]
    assert price.status is Status.ESTIMATED
    if profile.id in L2_CYCLES:
        assert price.cycles == L2_CYCLES[profile.id]
    else:
        expected = L2_NANOSECONDS[profile.id] * profile.nominal_ghz
        assert abs(float(cycles(profile, "walk.reference")) - expected) <= 0.5
    assert profile.prices["walk.fixed"].cycles == 7


def test_one_reference_of_a_walk_comes_near_the_measured_miss_of_prescott() -> None:
    profile = PROFILES["prescott_p4_672"]
    walk = cycles(profile, "walk.fixed") + cycles(profile, "walk.reference")
    assert abs(walk - 37) <= 1


@each_priced
def test_second_level_tlb_hits(profile: Profile) -> None:
    price = profile.prices["stlb_hit"]
    if profile.id in TMA_STLB_HIT:
        assert (price.cycles, price.status) == (TMA_STLB_HIT[profile.id], Status.MEASURED)
    elif profile.id in ("nehalem", "westmere"):
        assert (price.cycles, price.status) == (7, Status.ESTIMATED)
    else:
        assert price.cycles is None


def test_gracemont_has_no_figure_at_all() -> None:
    profile = PROFILES["gracemont_n305"]
    assert not profile.has_prices
    assert all(not price.known for price in profile.prices.values())


@each
def test_ept_and_vpid(profile: Profile) -> None:
    assert profile.shape.has_ept == profile.shape.has_vpid == (profile.id not in NO_EPT)


def test_raw_capability_msrs_are_those_of_the_dumps() -> None:
    # One line of each of three dumps, read from the dumps.
    skylake = PROFILES["skylake_sp"].shape
    assert skylake.msr(Msr.IA32_VMX_BASIC) == 0x00DA_0400_0000_0004
    assert skylake.msr(Msr.IA32_VMX_PROCBASED_CTLS2) == 0x025F_7FFF_0000_0000
    assert skylake.msr(Msr.IA32_VMX_EPT_VPID_CAP) == 0x0000_0F01_0673_4141
    assert skylake.msr(Msr.IA32_VMX_TRUE_EXIT_CTLS) == 0x01FF_FFFF_0003_6DFB
    assert PROFILES["nehalem"].shape.msr(Msr.IA32_VMX_EPT_VPID_CAP) == 0x0000_0F01_0611_4141
    assert PROFILES["merom_core2"].shape.msr(Msr.IA32_VMX_MISC) == 0x0004_03C0


@each
def test_msrs_that_no_dump_holds_are_estimates(profile: Profile) -> None:
    origin = profile.provenance["capability_msrs"]
    unknown = {"IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_EXIT_CTLS2"}
    for name, part in origin.items():
        if name in unknown or profile.id == "prescott_p4_672":
            assert part["status"] == "estimated"
        elif name != "IA32_VMX_VMFUNC":
            assert part["status"] == "reported"
        assert Msr[name] in CAPABILITY_MSRS


@each
def test_the_shape_is_the_one_the_machine_loads(profile: Profile) -> None:
    assert Shape.of(profile.id) == profile.shape
    caches = profile.shape.tlb
    assert (caches.pml5 > 0) == (profile.shape.linear_bits == 57)
    assert (caches.guest_physical > 0) == profile.shape.has_ept
    assert {array.level for array in caches.arrays} <= {1, 2}


def test_profiles_are_not_shared_between_callers() -> None:
    first = load_raw("haswell")
    first["prices"]["exit"]["cycles"] = 0
    assert load_raw("haswell")["prices"]["exit"]["cycles"] == 228


def test_all_of_a_profile_comes_back_as_plain_values() -> None:
    data = load_profile("skylake_sp").as_dict()
    assert data["prices"]["round_trip"]["cycles"] == 636
    assert data["shape"]["capability_msrs"]["IA32_VMX_VMFUNC"]["value"] == 1
    assert data["shape"]["tlb"]["arrays"][5]["ways"] == 12
