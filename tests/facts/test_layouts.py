"""Laws of everything drawn bit by bit: layouts, capability MSRs, EPT entries."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx import sdm
from vtx.facts.ept import ENTRY_FORMATS, LEVELS, MEMORY_TYPE
from vtx.facts.layout import UNNAMED, BitRange, Layout, decode
from vtx.facts.msrs import CAPABILITY_MSRS
from vtx.facts.qualifications import (
    EVENT_INFORMATION,
    FIELD_LAYOUTS,
    GPR,
    GUEST_NON_REGISTER_STATE,
    INSTRUCTION_INFORMATION,
    QUALIFICATIONS,
    field_layout,
)

TABLES = {
    "qualification": (QUALIFICATIONS, 64),
    "instruction information": (INSTRUCTION_INFORMATION, 32),
    "event information": (EVENT_INFORMATION, 32),
    "guest state": (GUEST_NON_REGISTER_STATE, None),
    "field": (FIELD_LAYOUTS, None),
    "ept entry": (ENTRY_FORMATS, 64),
}
LAYOUTS = [layout for table, _ in TABLES.values() for layout in table.values()]
WORDS = [(layout.name, layout.ranges, layout.width) for layout in LAYOUTS] + [
    (info.name, info.ranges, 64) for info in CAPABILITY_MSRS.values()
]
every_word = pytest.mark.parametrize(("name", "ranges", "width"), WORDS, ids=[w[0] for w in WORDS])


def test_how_many_there_are() -> None:
    counts = {name: len(table) for name, (table, _) in TABLES.items()}
    assert counts == {
        "qualification": 28,
        "instruction information": 10,
        "event information": 3,
        "guest state": 4,
        "field": 5,
        "ept entry": 7,
    }


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_keyed_by_name_and_have_one_width(kind: str) -> None:
    table, width = TABLES[kind]
    for name, layout in table.items():
        assert layout.name == name
        assert width is None or layout.width == width


@every_word
def test_ranges_tile_the_word(name: str, ranges: tuple[BitRange, ...], width: int) -> None:
    assert ranges[0].low == 0
    assert ranges[-1].high == width - 1
    assert all(row.low <= row.high for row in ranges)
    assert all(after.low == before.high + 1 for before, after in pairwise(ranges)), name


@every_word
def test_names_occur_once(name: str, ranges: tuple[BitRange, ...], width: int) -> None:
    named = [row.name for row in ranges if row.name not in UNNAMED]
    assert len(named) == len(set(named)), name
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", row.name) and row.meaning for row in ranges)


@every_word
def test_values_fit_their_bits(name: str, ranges: tuple[BitRange, ...], width: int) -> None:
    for row in ranges:
        for value in row.values or {}:
            assert 0 <= value < 1 << (row.high - row.low + 1), (name, row.name)
        if row.values and row.high == row.low:
            assert set(row.values) == {0, 1}, (name, row.name)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_cited_sections_are_in_the_table(layout: Layout) -> None:
    assert layout.title and layout.source
    for title in re.findall(r'SDM, "([^"]+)"', layout.source):
        assert sdm.find_section(title)


@given(st.sampled_from(LAYOUTS), st.integers(0, (1 << 64) - 1))
def test_decoded_parts_put_the_word_together_again(layout: Layout, word: int) -> None:
    word &= (1 << layout.width) - 1
    parts = decode(layout, word)
    assert [part.range for part in parts] == list(layout.ranges)
    assert sum(part.value << part.range.low for part in parts) == word


def test_decode_reads_a_cr_access() -> None:
    """MOV CR3, R8: control register 3, access type 0, register 8."""
    parts = {part.range.name: part for part in decode(QUALIFICATIONS["cr_access"], 0x803)}
    assert (parts["cr"].value, parts["cr"].means) == (3, "CR3")
    assert parts["access"].means == "MOV to CR"
    assert parts["gpr"].means == "R8"
    assert parts["lmsw_source"].means == "LMSW source data; 0 for CLTS and MOV CR"


def test_a_value_outside_an_enumeration_is_not_defined() -> None:
    parts = {part.range.name: part for part in decode(QUALIFICATIONS["cr_access"], 0x1)}
    assert parts["cr"].means == "not defined"


def test_labels_are_those_of_the_manual() -> None:
    layout = QUALIFICATIONS["io_instruction"]
    assert [row.label for row in layout.ranges] == [
        "2:0",
        "3",
        "4",
        "5",
        "6",
        "15:7",
        "31:16",
        "63:32",
    ]
    assert layout.range("port").of(0x03F8_0040) == 0x3F8
    with pytest.raises(KeyError):
        layout.range("pot")


def test_registers_are_numbered_as_in_machine_code() -> None:
    assert list(GPR) == list(range(16))
    assert [GPR[n] for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 15)] == [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R15",
    ]  # fmt: skip


def test_register_operands_have_the_same_place_in_all_layouts() -> None:
    """Index, base and second register stand where the address-generating layouts agree on."""
    places = {
        "scaling": "1:0",
        "reg1": "6:3",
        "address_size": "9:7",
        "mem_reg": "10",
        "segment": "17:15",
        "index_reg": "21:18",
        "index_invalid": "22",
        "base_reg": "26:23",
        "base_invalid": "27",
        "reg2": "31:28",
    }
    for layout in INSTRUCTION_INFORMATION.values():
        for row in layout.ranges:
            assert places.get(row.name, row.label) == row.label, (layout.name, row.name)


def test_field_layouts_are_found_by_key() -> None:
    assert field_layout("eptp") is FIELD_LAYOUTS["eptp"]
    assert field_layout("activity_state") is GUEST_NON_REGISTER_STATE["activity_state"]
    with pytest.raises(KeyError):
        field_layout("io_instruction")


def test_ept_levels_index_nine_bits_each_down_to_the_page() -> None:
    assert [level.number for level in LEVELS] == [5, 4, 3, 2, 1]
    assert all(level.high - level.low == 8 for level in LEVELS)
    assert all(upper.low == lower.high + 1 for upper, lower in pairwise(LEVELS))
    assert [level.page_bytes for level in LEVELS if level.can_be_leaf] == [
        1 << 30,
        2 << 20,
        4 << 10,
    ]


def test_ept_leaf_formats_map_what_their_level_covers() -> None:
    leaves = {"pdpte_1gb": 3, "pde_2mb": 2, "pte": 1}
    for name, number in leaves.items():
        level = next(level for level in LEVELS if level.number == number)
        assert ENTRY_FORMATS[name].range("address").low == level.low
        assert ENTRY_FORMATS[name].range("memory_type").values == MEMORY_TYPE
    for name in set(ENTRY_FORMATS) - set(leaves):
        assert ENTRY_FORMATS[name].range("address").low == 12
    assert not {2, 3, 7} & set(MEMORY_TYPE)
