"""How names and numbers may be written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.facts.lookup import as_number, canonical


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("48", 48),
        ("0x30", 0x30),
        ("0X30", 0x30),
        ("30H", 0x30),
        ("0C0000080h", 0xC000_0080),
        ("0xC000_0080", 0xC000_0080),
        (" 7 ", 7),
        ("010", 10),
        ("0b11", 3),
        ("-1", -1),
        (True, 1),
    ],
)
def test_numbers(text: str | int, number: int) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize("text", ["", "cpuid", "h", "ch", "0x", "0xg", "12g", "4 8", "²", "ept"])
def test_names_are_no_numbers(text: str) -> None:
    assert as_number(text) is None


@given(st.integers(-(1 << 70), 1 << 70))
def test_every_integer_is_read_as_python_writes_it(number: int) -> None:
    assert as_number(number) == as_number(str(number)) == as_number(hex(number)) == number


@given(st.text(max_size=30))
def test_no_text_upsets_it(text: str) -> None:
    assert as_number(text) is None or isinstance(as_number(text), int)
    assert canonical(canonical(text)) == canonical(text)


def test_canonical_names() -> None:
    assert (
        canonical(" Guest-RIP ") == canonical("guest rip") == canonical("GUEST_RIP") == "guest_rip"
    )
    assert canonical("I/O instruction") == "i_o_instruction"
