"""The samples agree, and what is changed in them is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.verify.corpora import FORMATS, Case, cases, first, path, write
from vtx.hypervisor.verify import Verification, verify
from vtx.hypervisor.verify.deviations import DEVIATIONS


@pytest.fixture(scope="module")
def results() -> dict[str, Verification]:
    return {form: verify(path(form)) for form in FORMATS}


@pytest.mark.parametrize("form", FORMATS)
def test_the_sample_agrees(form: str, results: dict[str, Verification]) -> None:
    result = results[form]
    assert result.differ == []
    assert result.other == []
    assert result.skipped == {}
    assert result.cases == len(cases(form)) == result.agree + result.sdm_side


def test_most_deviations_decide_a_case(results: dict[str, Verification]) -> None:
    seen = {name for result in results.values() for name in result.deviations}
    assert seen <= set(DEVIATIONS)
    assert len(seen) >= 15


@pytest.mark.parametrize("form", FORMATS)
def test_a_tag_is_needed_where_a_deviation_decides(form: str, tmp_path: Path) -> None:
    tagged = [case for case in cases(form) if "deviation" in case]
    with_tags = verify(write(tmp_path / "tagged", form, tagged))
    for case in tagged:
        del case["deviation"]
        case["verdict"].pop("bochs_says", None)
    without = verify(write(tmp_path / "untagged", form, tagged))
    assert with_tags.sdm_side > 0
    assert not without.explained
    assert len(without.differ) + without.sdm_side == with_tags.sdm_side


def _verdict(**changes: object) -> Callable[[Case], None]:
    return lambda case: case["verdict"].update(changes)


def _post(field: str, value: int) -> Callable[[Case], None]:
    return lambda case: case["verdict"]["post"].update({field: value})


def _host(name: str, value: object) -> Callable[[Case], None]:
    return lambda case: case["verdict"]["host"].update({name: value})


def _exits(case: Case) -> bool:
    return case["verdict"]["kind"] == "vmexit" and "deviation" not in case


def _walks(kind: str) -> Callable[[Case], bool]:
    return lambda case: case["verdict"]["kind"] == kind and "deviation" not in case


def _ends(outcome: str) -> Callable[[Case], bool]:
    return lambda case: case["verdict"]["outcome"] == outcome and "deviation" not in case


PLANTED: list[tuple[str, Callable[[Case], bool], Callable[[Case], None]]] = [
    ("entry", _exits, _verdict(kind="entry_failure")),
    ("entry", _exits, _verdict(exit_reason=12)),
    ("entry", _exits, _verdict(qualification=1)),
    ("entry", _exits, _post("681e", 0x1234)),
    ("entry", _exits, _post("4816", 0xC09B)),
    ("entry", _exits, _host("cr4", 0x2000)),
    ("entry", _exits, _host("fs", [1, 16, 0xC093, 5, 0xFFFF_FFFF])),
    ("entry", _exits, _verdict(vmwrite_failed=["681e"])),
    ("entry", lambda case: case["verdict"].get("error") == 7, _verdict(error=8)),
    ("entry", lambda case: case["verdict"]["kind"] == "idle", _verdict(activity="mwait")),
    ("entry", lambda case: case["verdict"]["kind"] == "vmabort", _verdict(abort_code=3)),
    ("walk", _walks("ok"), _verdict(hpa=0)),
    ("walk", _walks("ok"), _verdict(changed=[[0, 8, 1]])),
    ("walk", _walks("ok"), lambda case: case["verdict"]["walk"].reverse()),
    ("walk", _walks("pf"), _verdict(ec=0x80)),
    ("walk", _walks("ept_violation"), _verdict(gpa=1)),
    ("walk", _walks("ept_violation"), _verdict(qual=0)),
    ("walk", _walks("ept_misconfig"), _verdict(gpa=1)),
    ("insn", _exits, _verdict(exit_reason=99)),
    ("insn", _exits, _verdict(exit_qualification=99)),
    ("insn", _exits, _verdict(exit_instr_len=9)),
    ("insn", _exits, _verdict(exit_instr_info=99)),
    ("insn", _exits, _verdict(guest_rflags=0x40)),
    ("insn", _exits, _verdict(gpr={"rbx": 1})),
    ("root", _ends("ok"), _verdict(outcome="vmfail_invalid")),
    ("root", _ends("ok"), _verdict(regs={"rdx": 7})),
    ("root", _ends("exception"), _verdict(vector=3)),
    ("root", _ends("vmfail_valid"), _verdict(error=1)),
    ("root", _ends("vmfail_valid"), _verdict(rflags=1)),
]


@pytest.mark.parametrize(("form", "wanted", "change"), PLANTED)
def test_a_planted_difference_is_found(
    form: str, wanted: Callable[[Case], bool], change: Callable[[Case], None], tmp_path: Path
) -> None:
    case = first(form, wanted)
    assert verify(write(tmp_path / "sound", form, [case])).agree == 1
    change(case)
    result = verify(write(tmp_path / "planted", form, [case]))
    assert [name for name, _, _ in result.differ] == [case["id"]]
    ((_, ours, theirs),) = result.differ
    assert ours != theirs
    assert not result.explained


def test_a_tagged_case_is_on_the_other_side_where_the_manual_is_not_ours(tmp_path: Path) -> None:
    case = first("walk", lambda case: case.get("deviation") == ["ept_large_bit12"])
    case["verdict"] |= {"kind": "ept_misconfig", "gpa": 1}
    case["deviation"] = ["walk_qualification_bit0"]
    result = verify(write(tmp_path / "other", "walk", [case]))
    assert (result.other, result.differ, result.sdm_side) == ([case["id"]], [], 0)
