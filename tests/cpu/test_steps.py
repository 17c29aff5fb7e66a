"""Every ordered condition of every VMX instruction."""

from __future__ import annotations

import pytest

from tests.cpu.states import outcome
from tests.cpu.steps import CASES, COUNTS, Case, by_step


def test_every_condition_has_a_case():
    wanted = {(name, step) for name, count in COUNTS.items() for step in range(1, count + 1)}
    assert set(by_step()) == wanted
    assert len(wanted) == 132


def test_cases_have_distinct_ids():
    ids = [case.id for case in CASES]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_step(case: Case):
    cpu = case.prepare()
    assert outcome(cpu, case.act) == case.ends
