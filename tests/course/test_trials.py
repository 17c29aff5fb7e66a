"""The bench of the lesson on Popek and Goldberg."""

from __future__ import annotations

import pytest

from vtx.course.trials import bench
from vtx.errors import UsageError


def test_popf_changes_what_it_may() -> None:
    assert bench("popf", cpl=0).changed
    assert not bench("popf", cpl=3).changed
    assert not bench("popf", cpl=3).trapped


@pytest.mark.parametrize("instruction", ["sgdt [0x7000]", "str rax", "smsw rax"])
def test_user_mode_instruction_prevention(instruction: str) -> None:
    assert not bench(instruction).trapped
    assert bench(instruction, umip=True).trapped
    assert not bench(instruction, cpl=0, umip=True).trapped


def test_what_is_watched_exits() -> None:
    assert bench("sldt rax", cpl=0, watch=True).exit == "LDTR_TR_ACCESS"
    assert not bench("sldt rax", cpl=0).exit


def test_an_impossible_state_is_refused() -> None:
    with pytest.raises(UsageError, match="no machine can be in this state: VM entry failed"):
        bench("nop", task=3 | 4)
