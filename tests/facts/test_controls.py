"""Laws of the tables of VMX controls, over every row."""

from __future__ import annotations

import re
from enum import IntEnum

import pytest

from vtx.errors import UnknownName
from vtx.facts.controls import (
    CONTROL_CLASSES,
    GROUPS,
    ControlGroup,
    ControlInfo,
    Entry,
    Exit1,
    Pin,
    Proc1,
    Proc2,
    control_info,
    find_control,
    find_controls,
)
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS
from vtx.facts.msrs import CAPABILITY_MSRS, Msr

from .samples import CONTROL_BITS

ALL = [info for group in GROUPS.values() for info in group.controls]
every_control = pytest.mark.parametrize("info", ALL, ids=lambda info: info.key)
every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.key)

_REFERENCE = re.compile(r"\b(pin|proc1|proc2|proc3|exit1|exit2|entry|vmfunc)\.([a-z0-9_]+)")


def test_there_are_109_controls_in_eight_groups() -> None:
    assert len(ALL) == 109
    assert list(GROUPS) == ["pin", "proc1", "proc2", "proc3", "exit1", "exit2", "entry", "vmfunc"]
    assert [len(group.controls) for group in GROUPS.values()] == [5, 22, 31, 11, 18, 4, 17, 1]


@every_control
def test_value_is_the_mask_of_the_bit(info: ControlInfo) -> None:
    assert int(info.control) == 1 << info.bit
    assert info.bit < GROUPS[info.group].width
    assert info.control is CONTROL_CLASSES[info.group][info.name.upper()]
    assert control_info(info.control) is info


@every_control
def test_default1_agrees_with_the_mask_of_the_group(info: ControlInfo) -> None:
    assert info.default1 == bool(GROUPS[info.group].default1_mask & info.control)


@every_control
def test_what_it_depends_on_resolves(info: ControlInfo) -> None:
    references = _REFERENCE.findall(info.depends or "")
    assert bool(references) == bool(info.depends)
    for group, name in references:
        assert find_control(f"{group}.{name}").group == group


@every_control
def test_meaning_is_one_short_clause(info: ControlInfo) -> None:
    assert 1 <= len(info.meaning.split()) <= 12
    assert not info.meaning.endswith(".")


@every_group
def test_no_bit_occurs_twice(group: ControlGroup) -> None:
    bits = [info.bit for info in group.controls]
    assert bits == sorted(set(bits))
    assert len(group.members) == len(group.members.__members__) == len(bits)


@every_group
def test_field_has_the_width_of_the_group(group: ControlGroup) -> None:
    assert FIELDS[group.field].width.bits == group.width


@every_group
def test_capability_msrs_exist_and_report_on_the_field(group: ControlGroup) -> None:
    for name in (group.capability_msr, group.true_capability_msr):
        if name is not None:
            assert CAPABILITY_MSRS[Msr[name]].reports == group.field._name_.lower()


@every_group
def test_the_activating_control_exists(group: ControlGroup) -> None:
    always_active = {"pin", "proc1", "exit1", "entry"}
    assert (group.activated_by is None) == (group.key in always_active)
    if group.activated_by:
        assert find_control(group.activated_by).key == group.activated_by


def test_default1_masks() -> None:
    """As SDM appendix A.2 gives them, and as the first processors reported them."""
    masks = {key: group.default1_mask for key, group in GROUPS.items() if group.default1_mask}
    assert masks == {"pin": 0x16, "proc1": 0x0401_E172, "exit1": 0x3_6DFF, "entry": 0x11FF}


@pytest.mark.parametrize(("key", "bit"), CONTROL_BITS.items())
def test_bits_from_other_sources(key: str, bit: int) -> None:
    assert find_control(key).bit == bit


def test_members_are_masks_and_hash_as_ints() -> None:
    assert Proc2.ENABLE_EPT == 2
    assert 0x82 & Proc2.ENABLE_EPT
    assert not 0x80 & Proc2.ENABLE_EPT
    assert hash(Proc1.HLT_EXITING) == hash(0x80)
    assert {Pin.NMI_EXITING: "x"}[Pin(8)] == "x"


@pytest.mark.parametrize(
    "what", ["enable_ept", "Enable EPT", "proc2.enable_ept", "PROC2.Enable-EPT"]
)
def test_a_control_is_found_however_it_is_written(what: str) -> None:
    assert find_control(what).control is Proc2.ENABLE_EPT


def test_a_name_that_several_groups_have() -> None:
    keys = [info.key for info in find_controls("conceal_vmx_from_pt")]
    assert keys == [
        "proc2.conceal_vmx_from_pt",
        "exit1.conceal_vmx_from_pt",
        "entry.conceal_vmx_from_pt",
    ]
    assert find_control("exit1.conceal_vmx_from_pt").control is Exit1.CONCEAL_VMX_FROM_PT
    assert find_control("entry.load_ia32_pat").control is Entry.LOAD_IA32_PAT


@pytest.mark.parametrize("what", ["enable_etp", "proc2.enable_etp"])
def test_a_misspelt_name_gets_suggestions(what: str) -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*enable_ept"):
        find_control(what)


@pytest.mark.parametrize("what", ["", "proc2.", "proc9.enable_ept", "exit2.enable_ept"])
def test_what_is_no_control_is_refused(what: str) -> None:
    with pytest.raises(UnknownName):
        find_control(what)


def test_control_info_refuses_other_enumerations() -> None:
    class Other(IntEnum):
        ENABLE_EPT = 2

    for member in (Other.ENABLE_EPT, ExitReason.HLT):
        with pytest.raises(UnknownName):
            control_info(member)
