"""Laws of the table of VMCS fields, over every row."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import UnknownName
from vtx.facts.controls import CONTROL_CLASSES
from vtx.facts.fields import (
    FIELDS,
    Area,
    Field,
    FieldInfo,
    Width,
    encode,
    find_encoding,
    find_field,
    mask,
    split,
)
from vtx.facts.lookup import canonical
from vtx.facts.qualifications import field_layout

from .samples import ENCODINGS, HOLES, REQUIREMENTS

every_field = pytest.mark.parametrize("info", FIELDS.values(), ids=lambda info: info.name)


def test_there_are_206_fields_and_no_encoding_occurs_twice() -> None:
    assert len(FIELDS) == len(Field) == len(Field.__members__) == 206


def test_rows_stand_in_the_order_of_the_appendix() -> None:
    assert list(FIELDS) == sorted(FIELDS)


@every_field
def test_encoding_agrees_with_area_width_and_index(info: FieldInfo) -> None:
    assert int(info.field) == encode(info.area, info.width, info.index)
    assert split(info.field) == (info.area, info.width, info.index, 0)
    assert info.field & ~0x6FFE == 0, "bits 0, 12 and 31:15 are 0"


@every_field
def test_name_is_that_of_the_member(info: FieldInfo) -> None:
    assert info.field is Field[info.name.upper()]
    assert FIELDS[info.field] is info


@every_field
def test_name_tells_the_area(info: FieldInfo) -> None:
    if info.name.startswith("host_"):
        assert info.area is Area.HOST
    if info.area is Area.HOST:
        assert info.name.startswith("host_")
    if re.search(r"_selector$|_limit$|_access_rights$", info.name):
        assert info.area in (Area.GUEST, Area.HOST)
        assert info.width is (Width.W16 if info.name.endswith("selector") else Width.W32)
    if re.search(r"_(cr0|cr3|cr4|rip|rsp|base)$", info.name):
        assert info.width is Width.NATURAL


@every_field
def test_mask_covers_the_width(info: FieldInfo) -> None:
    assert mask(info.field) == (1 << info.width.bits) - 1


@every_field
def test_what_it_requires_resolves(info: FieldInfo) -> None:
    for term in (info.requires or "").split("|") if info.requires else []:
        kind, _, rest = term.strip().partition(":")
        if rest:
            assert (kind, rest) == ("cpu", "fred") or (
                kind == "cap" and re.fullmatch(r"misc\.cr3_target_count > [0-3]", rest)
            )
        else:
            group, _, name = kind.partition(".")
            assert name.upper() in CONTROL_CLASSES[group].__members__


@every_field
def test_layout_exists_and_has_the_width_of_the_field(info: FieldInfo) -> None:
    if info.layout is not None:
        assert field_layout(info.layout).width == info.width.bits


def test_no_two_fields_share_a_name() -> None:
    names = [name for info in FIELDS.values() for name in (info.name, *info.also)]
    assert len(names) == len(set(names))
    assert all(name == canonical(name) for name in names)


def test_manual_names_are_unique_and_find_their_field() -> None:
    for info in FIELDS.values():
        assert find_field(info.sdm_name) is info


@pytest.mark.parametrize(("name", "encoding"), ENCODINGS.items())
def test_encodings_from_other_sources(name: str, encoding: int) -> None:
    assert find_field(name).field == encoding
    assert find_field(encoding).name == name


@pytest.mark.parametrize(("name", "terms"), REQUIREMENTS.items())
def test_requirements_from_the_footnotes_of_the_appendix(name: str, terms: set[str]) -> None:
    requires = find_field(name).requires
    assert {term.strip() for term in (requires or "").split("|")} - {""} == terms


def test_a_cpu_without_any_option_has_111_fields() -> None:
    assert sum(info.requires is None for info in FIELDS.values()) == 111


@pytest.mark.parametrize("encoding", HOLES)
def test_holes_are_no_fields(encoding: int) -> None:
    with pytest.raises(UnknownName, match="VMCS field"):
        find_field(encoding)


@pytest.mark.parametrize(
    "what", ["guest_rip", "GUEST_RIP", "Guest RIP", "guest-rip", "0x681E", "681eh"]
)
def test_a_field_is_found_however_it_is_written(what: str) -> None:
    assert find_field(what).field is Field.GUEST_RIP


@pytest.mark.parametrize(
    ("alias", "field"),
    [
        ("eptp", Field.EPT_POINTER),
        ("exiting_event_identification", Field.VM_EXIT_INTERRUPTION_INFORMATION),
        ("hlatp", Field.HLAT_POINTER),
    ],
)
def test_other_names_in_use_are_known(alias: str, field: Field) -> None:
    assert find_field(alias).field is field


def test_the_high_half_is_the_encoding_plus_one() -> None:
    assert find_encoding("tsc_offset_high") == find_encoding(0x2011) == 0x2011
    assert find_encoding("tsc_offset") == 0x2010
    assert find_field("tsc_offset_high").field is Field.TSC_OFFSET


@pytest.mark.parametrize("what", ["guest_rip_high", 0x681F, 0x4001, "vpid_high"])
def test_only_64_bit_fields_have_a_high_half(what: str | int) -> None:
    with pytest.raises(UnknownName):
        find_encoding(what)


@pytest.mark.parametrize("what", ["", "guest_rip2", 0x1681E, -1, 1 << 64, "0x", "high", "_high"])
def test_what_is_no_field_is_refused(what: str | int) -> None:
    with pytest.raises(UnknownName):
        find_field(what)


def test_a_misspelt_name_gets_suggestions() -> None:
    with pytest.raises(UnknownName, match="did you mean guest_rip") as caught:
        find_field("gest_rip")
    assert caught.value.exit_code == 3


@given(
    st.sampled_from(Area),
    st.sampled_from(Width),
    st.integers(0, 511),
    st.integers(0, 1),
)
def test_split_undoes_encode(area: Area, width: Width, index: int, high: int) -> None:
    encoding = encode(area, width, index, high)
    assert encoding < 1 << 15
    assert split(encoding) == (area, width, index, high)
