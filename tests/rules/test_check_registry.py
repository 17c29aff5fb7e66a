"""Laws of the registry of VM-entry checks."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from vtx import sdm
from vtx.facts.fields import FIELDS, Field, mask
from vtx.facts.instruction_errors import InstructionError
from vtx.rules.check import CHECKS, Check, Kind, Live, Stage
from vtx.rules.declaration import Area, Checks, Consequence
from vtx.rules.entry_msr_load import MSR_LOAD_RULES
from vtx.rules.unreachable import WITHOUT_CHECK

DATA = Path(__file__).parent.parent / "data"
KINDS = {
    "fault": Kind.FAULT,
    "ordinary_exit": Kind.VM_EXIT,
    "vmfail_invalid": Kind.VMFAIL_INVALID,
    "vmfail_valid": Kind.VMFAIL_VALID,
    "exit": Kind.ENTRY_FAILURE,
}
#: Every rule of VM entry in the manual, in its order, with section and outcome.
with (DATA / "entry_checks.csv").open(encoding="utf-8") as file:
    MANUAL = {row["id"]: row for row in csv.DictReader(file)}

every_check = pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))


def test_every_rule_of_the_manual_is_there_in_its_order() -> None:
    assert len(MANUAL) == 398
    assert [name for name in MANUAL if name in CHECKS] == list(CHECKS)
    assert set(MANUAL) == set(CHECKS) | set(WITHOUT_CHECK)
    assert not set(CHECKS) & set(WITHOUT_CHECK)


def test_few_rules_have_no_check() -> None:
    assert len(WITHOUT_CHECK) == 1
    for row in WITHOUT_CHECK.values():
        assert row.rule.endswith(".")
        assert row.reason
        assert row.section in sdm.SECTIONS


@every_check
def test_consequence_is_that_of_the_manual(check: Check) -> None:
    row = MANUAL[check.id]
    expected = Consequence(
        KINDS[row["kind"]],
        error=int(row["error"]) if row["error"] else None,
        reason=int(row["reason"]) if row["reason"] else None,
        qualification=int(row["qualification"]) if row["qualification"] else None,
        vector=row["vector"] or None,
    )
    assert check.consequence == expected
    assert check.consequence.error is None or InstructionError(check.consequence.error)


@every_check
def test_section_is_that_of_the_manual(check: Check) -> None:
    assert check.section in sdm.SECTIONS
    assert check.section.number == MANUAL[check.id]["section"]


@every_check
def test_check_states_what_must_hold(check: Check) -> None:
    assert check.holds.__doc__
    assert check.rule == " ".join(check.holds.__doc__.split())
    assert check.rule.endswith(".")
    assert check.rule[0].isupper() or check.rule[0].isdigit()
    assert check.title
    assert "_" not in re.sub(r"IA32_\w+", "", check.title)
    assert not check.title.endswith(".")


def test_no_two_checks_say_the_same() -> None:
    assert len({check.rule for check in CHECKS.values()}) == len(CHECKS)
    assert len({check.title for check in CHECKS.values()}) == len(CHECKS)


@every_check
def test_reads_are_bits_of_fields(check: Check) -> None:
    for field, bits in check.reads.items():
        assert field in FIELDS
        assert bits
        assert bits & mask(field) == bits
    assert check.fields == tuple(check.reads)


@every_check
def test_only_checks_on_memory_say_when_they_look_at_it(check: Check) -> None:
    assert (check.applies is not None) == (Live.MEMORY in check.live)


def test_stages() -> None:
    by_stage = {stage: [c for c in CHECKS.values() if c.area.stage is stage] for stage in Stage}
    assert [len(by_stage[stage]) for stage in Stage] == [9, 182, 197, 8, 1]
    assert [check for check, _ in MSR_LOAD_RULES] == by_stage[Stage.MSR_LOAD]
    assert all(c.consequence.kind is Kind.VMFAIL_VALID for c in by_stage[Stage.CONTROLS_AND_HOST])
    assert all(c.consequence.reason == 33 for c in by_stage[Stage.GUEST])


@pytest.mark.parametrize(
    ("consequence", "text"),
    [
        (Consequence(Kind.FAULT, vector="#UD"), "#UD"),
        (Consequence(Kind.VM_EXIT), "an ordinary VM exit"),
        (Consequence(Kind.VMFAIL_INVALID), "VMfailInvalid"),
        (Consequence(Kind.VMFAIL_VALID, error=7), "VMfailValid, VM-instruction error 7"),
        (
            Consequence(Kind.ENTRY_FAILURE, reason=33, qualification=4),
            "VM-entry failure, exit reason 33, exit qualification 4",
        ),
        (Consequence(Kind.ENTRY_FAILURE, reason=41), "VM-entry failure, exit reason 41"),
    ],
)
def test_consequence_reads_well(consequence: Consequence, text: str) -> None:
    assert str(consequence) == text


def test_a_check_must_state_its_rule() -> None:
    area = Area(sdm.LOADING_MSRS, Stage.GUEST, Consequence(Kind.VM_EXIT))
    with pytest.raises(AssertionError, match="does not state its rule"):
        Checks()("guest.silent", area, Field.GUEST_RIP)(lambda vmcs, processor: True)


def test_a_check_shows_its_id() -> None:
    assert repr(CHECKS["host.pat"]) == "<Check host.pat>"
