"""The table of the manual's sections."""

from __future__ import annotations

import re

import pytest

from vtx import sdm

CONSTANTS = {name: value for name, value in vars(sdm).items() if isinstance(value, sdm.Section)}


def derived(title: str) -> str:
    return re.sub(r"[^A-Z0-9]+", "_", title.upper()).strip("_")


def test_every_constant_is_named_for_its_title() -> None:
    """Where two sections share a title, the second has a suffix."""
    assert list(CONSTANTS.values()) == sdm.SECTIONS
    titles = [section.title for section in sdm.SECTIONS]
    for name, section in CONSTANTS.items():
        if titles.count(section.title) == 1 or sdm.find_section(section.title) is section:
            assert name == derived(section.title)
        else:
            assert name.startswith(derived(section.title) + "_")


def test_no_number_occurs_twice() -> None:
    numbers = [section.number for section in sdm.SECTIONS]
    assert len(numbers) == len(set(numbers))


def test_sections_stand_in_the_order_of_the_manual() -> None:
    def key(section: sdm.Section) -> tuple[bool, list[int], str]:
        letters = not section.number[0].isdigit()
        return (
            letters,
            [int(n) for n in re.findall(r"\d+", section.number)] if not letters else [],
            section.number[0] + f"{int(section.number.partition('.')[2] or 0):03}"
            if letters
            else "",
        )

    assert sorted(sdm.SECTIONS, key=key) == sdm.SECTIONS


@pytest.mark.parametrize(
    ("number", "number_2022"),
    [
        ("29.3.1.4", "26.3.1.4"),
        ("33.3", "30.3"),
        ("27.2", "24.2"),
        ("34.15.4.1", "34.15.4.1"),
        ("A.10", "A.10"),
    ],
)
def test_numbers_of_older_editions(number: str, number_2022: str) -> None:
    assert sdm.find_section(number).number_2022 == number_2022


def test_a_section_is_cited_by_title() -> None:
    section = sdm.CHECKS_ON_GUEST_RIP_RFLAGS_AND_SSP
    assert str(section) == 'SDM, "Checks on Guest RIP, RFLAGS, and SSP"'
    assert section.citation == f"{section} (29.3.1.4 in revision 092)"
    assert sdm.find_section("checks on guest rip, rflags, and ssp") is section


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(KeyError, match="Event Injektion"):
        sdm.find_section("Event Injektion")
