"""Comparison: one run for each shape, refusals named, and the same figures in every format."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vtx.errors import EmulationStopped, InputError, NotSupported, UnknownName
from vtx.lab.compare import Comparison, State, compare
from vtx.lab.profile import Profile
from vtx.machine.events import Event, EventLog
from vtx.profiles import names

MINE = "schema: 1\ninherits: skylake_sp\nid: mine\nname: Mine\nprices:\n" + (
    "  vmread: {cycles: 100, status: measured, source: s}\n"
)


@dataclass
class Run:
    events: EventLog = field(default_factory=EventLog)
    translation: dict[str, int] = field(default_factory=dict)


class Runner:
    """Stands for the hypervisor: counts ten reads, and wants EPT."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def __call__(self, profile: Profile) -> Run:
        self.ran.append(profile.id)
        if not profile.shape.has_ept:
            raise NotSupported(f"{profile.id} does not support EPT, which the trace needs")
        run = Run()
        run.events.count(Event.VMREAD, 10)
        return run


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def everything() -> Comparison:
    return compare(names(), Runner(), title="a trace")


def test_profiles_of_one_shape_share_a_run(mine: str) -> None:
    runner = Runner()
    comparison = compare(["skylake_sp", "haswell", mine], runner)
    assert runner.ran == ["skylake_sp", "haswell"]
    assert comparison.runs == 2
    skylake, _, own = comparison.outcomes
    assert skylake.counted is own.counted
    assert (skylake.ledger.cycles, own.ledger.cycles) == (210, 1000)


def test_a_cpu_without_ept_is_not_supported_and_has_no_figure() -> None:
    states = {outcome.profile.id: outcome for outcome in everything().outcomes}
    for name in ("prescott_p4_672", "merom_core2", "penryn_core2"):
        outcome = states[name]
        assert outcome.state is State.NOT_SUPPORTED
        assert outcome.why == f"{name} does not support EPT, which the trace needs"
        with pytest.raises(InputError, match="not supported"):
            outcome.ledger  # noqa: B018
        line = next(line for line in str(everything()).splitlines() if line.startswith(name))
        assert line.split() == [name, "-", "not", "supported", *["-"] * 10]


def test_a_cpu_without_prices_is_shown_as_no_data() -> None:
    outcome = everything().outcomes[-1]
    assert (outcome.profile.id, outcome.state) == ("gracemont_n305", State.NO_DATA)
    assert "no measurement found" in str(everything())


def test_a_run_that_stops_is_told_and_the_rest_goes_on() -> None:
    def run(profile: Profile) -> Run:
        if profile.id == "haswell":
            raise EmulationStopped("VMX abort 1")
        return Run()

    first, second = compare(["haswell", "skylake_sp"], run).outcomes
    assert (first.state, first.why) == (State.STOPPED, "VMX abort 1")
    assert second.state is State.PRICED


def test_a_trace_that_is_wrong_is_wrong_everywhere() -> None:
    def run(profile: Profile) -> Run:
        raise InputError("unknown instruction 'cpuidd'", file="t.yaml", line=3)

    with pytest.raises(InputError, match="cpuidd"):
        compare(["haswell"], run)


def test_relative_to_a_baseline() -> None:
    comparison = compare(["haswell", "skylake_sp"], Runner())
    rows = {row[0]: row for row in comparison.table(baseline="haswell").rows}
    # 190 cycles at 4.0 GHz against 210 at 2.3 GHz
    assert rows["haswell"][6] == "1.00x"
    assert rows["skylake_sp"][6] == f"{210 / 2.3 / (190 / 4.0):.2f}x"
    assert {row[6] for row in comparison.table().rows} == {"-"}


def test_a_baseline_must_have_figures() -> None:
    with pytest.raises(InputError, match="cannot be the baseline"):
        everything().table(baseline="penryn_core2")
    with pytest.raises(UnknownName, match="did you mean haswell"):
        everything().table(baseline="haswel")


def test_json_and_csv_say_the_same_as_the_ledger() -> None:
    comparison = everything()
    data = json.loads(json.dumps(comparison.as_dict("haswell")))
    assert data["schema"] == "vtx.compare/1"
    lines = list(csv.DictReader(io.StringIO(comparison.csv("haswell"))))
    for outcome, entry, line in zip(comparison.outcomes, data["profiles"], lines, strict=True):
        assert entry["id"] == line["profile"] == outcome.profile.id
        assert entry["state"] == line["state"] == outcome.state.value
        if outcome.state is State.PRICED:
            ledger = outcome.ledger
            assert entry["cycles"] == float(line["cycles"]) == ledger.cycles
            assert sum(entry["by_category"].values()) == ledger.cycles
            assert sum(entry["rests_on"].values()) == pytest.approx(1)
        else:
            assert "cycles" not in entry
            assert line["cycles"] == line["vmread_cycles"] == ""


def test_what_no_cpu_prices_is_said_once() -> None:
    def run(profile: Profile) -> Run:
        result = Run(translation={"l2d_hits": 3})
        result.events.count(Event.DELIVERY, 7)
        return result

    text = str(compare(["haswell", "airmont_n3150"], run))
    assert text.count("7 events delivered through the guest's IDT") == 1
    assert "Not in the total of airmont_n3150: 3 second-level TLB hits" in text


def test_progress_is_told_each_profile() -> None:
    told: list[tuple[str, int, int]] = []
    compare(["haswell", "skylake_sp"], Runner(), progress=lambda *what: told.append(what))
    assert told == [("haswell", 0, 2), ("skylake_sp", 1, 2)]


def test_names_with_control_characters_cannot_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(MINE.replace("id: mine", r'id: "a\e[31mb"'))
    assert "\x1b" not in str(compare([str(path)], Runner()).table())
