"""Tallies of exits: exact while they are small, bounded in memory and in error beyond."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.lab.exit_rows import PERCENTILES
from vtx.lab.exits import ExitStatistics
from vtx.machine.exit_scanner import ExitFlag, exit_dtype
from vtx.machine.exit_tally import ExitTally, TallyTable

ROWS, SUBJECTS = np.array([28, 12], np.uint16), np.array([3, 0], np.uint8)


def records(durations: list[int], registers: list[int] | None = None) -> np.ndarray:
    made = np.zeros(len(durations), exit_dtype())
    made["duration_ns"] = durations
    made["flags"] = ExitFlag.DURATION | ExitFlag.INFO1
    made["info1"] = registers if registers is not None else 0
    return made


def nearest_rank(durations: list[int], percent: int) -> int:
    return sorted(durations)[max(1, math.ceil(len(durations) * percent / 100)) - 1]


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.sampled_from([0, 3, 4])), min_size=1))
def test_rows_and_details_have_exact_percentiles(exits: list[tuple[int, int]]) -> None:
    statistics = ExitStatistics()
    statistics.add(records([d for d, _ in exits], [r for _, r in exits]), ["CR_ACCESS", "HLT"])
    (row,) = statistics.rows()
    assert row.times is not None
    assert row.times.percentiles == {p: nearest_rank([d for d, _ in exits], p) for p in PERCENTILES}
    details = dict(row.details)
    for register in {r for _, r in exits}:
        mine = [d for d, r in exits if r == register]
        times = details[f"mov to cr{register}"].times
        assert times is not None and times.within == 0
        assert times.percentiles == {p: nearest_rank(mine, p) for p in PERCENTILES}
        assert (times.total, times.least, times.most) == (sum(mine), min(mine), max(mine))
        assert times.mean == pytest.approx(sum(mine) / len(mine))
        if len(mine) > 1:
            assert times.deviation == pytest.approx(np.std(mine, ddof=1), abs=1e-3)


def test_many_durations_are_kept_within_the_stated_error() -> None:
    durations = (np.random.default_rng(3).lognormal(14, 2, 200_000) + 1).astype(np.int64) * 7919
    tally = ExitTally()
    for part in np.array_split(durations, 10):
        tally.add(records(part.tolist()), ROWS, SUBJECTS)
    for table, least in ((TallyTable.ROWS, 1e-7), (TallyTable.DETAILS, 1e-5)):
        values, within = tally.percentiles(table, [0], PERCENTILES)
        assert least < within < 0.02
        for percent, value in values.items():
            exact = nearest_rank(durations.tolist(), percent)
            assert abs(value - exact) <= within * exact
    (row,) = tally.entries(TallyTable.ROWS)
    assert row.total == durations.sum()


def test_details_beyond_the_limit_are_others() -> None:
    made = records([1] * 70_000)
    made["reason"] = 0
    made["detail_kind"] = 4
    made["detail"] = np.arange(70_000)
    statistics = ExitStatistics()
    statistics.add(made, ["MSR_WRITE"])
    (row,) = statistics.rows()
    assert dict(row.details)["others"].samples == 70_000 - (1 << 16)
    assert sum(tally.samples for _, tally in row.details) == 70_000


def test_no_row_for_a_reason() -> None:
    made = records([1])
    made["reason"] = 2
    with pytest.raises(ValueError, match="reason 2"):
        ExitTally().add(made, ROWS, SUBJECTS)
