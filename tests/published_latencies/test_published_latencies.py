"""Published round trips lie where the ledger says, and ``docs/latencies.md`` shows it."""

from __future__ import annotations

import html
import json
import re

import pytest

from tests.published_latencies.loop import priced, profiles
from tests.published_latencies.page import PAGE, PICTURE, inside, page, picture, plotted
from tests.published_latencies.runs import AGESEN_2012, RUNS, Run

REPEATED = [run for run in RUNS if run.repeats]


def test_all_runs_are_there() -> None:
    assert len(RUNS) == len({run.cpu for run in RUNS}) == 53
    assert len(REPEATED) == 35
    assert all(run.why for run in RUNS if not run.repeats)


@pytest.mark.parametrize("profile", profiles())
def test_the_loop_is_a_round_trip_and_a_vmwrite(profile: str) -> None:
    prices, loop = profiles()[profile].prices, priced(profile)
    assert loop.round_trip == prices["round_trip"].cycles
    assert loop.vmwrite == prices["vmwrite"].cycles
    assert loop.value == loop.round_trip + loop.vmwrite
    assert loop.low < loop.value < loop.high


@pytest.mark.parametrize("run", REPEATED, ids=lambda run: run.cpu)
def test_a_run_that_repeats_lies_within_the_bounds(run: Run) -> None:
    assert inside(run), (run, priced(run.profile))


@pytest.mark.parametrize("profile", AGESEN_2012)
def test_the_ledger_charges_what_agesen_measured(profile: str) -> None:
    assert priced(profile).round_trip == AGESEN_2012[profile]


@pytest.mark.parametrize("run", REPEATED, ids=lambda run: run.cpu)
def test_two_sources_agree_within_a_fifth(run: Run) -> None:
    """Table 1 of 2012 against vmlatency, on the cores that both have measured."""
    if run.profile in AGESEN_2012:
        assert priced(run.profile).value == pytest.approx(run.ticks, rel=0.2)


def test_the_page_is_up_to_date() -> None:
    """Write it with ``python -m tests.published_latencies``."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_picture_shows_these_figures() -> None:
    for svg in (PICTURE.read_text(encoding="utf-8"), picture()):
        described = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
        assert described is not None
        assert json.loads(html.unescape(described[1])) == plotted()
        assert all(f">{name}</text>" in svg for name in profiles())
        # One marker for each run at least.
        assert svg.count("<use ") >= len(RUNS)
