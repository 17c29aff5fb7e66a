"""Walks in words and as pictures: every reference has its cell, and an end its rule."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from tests.core.cases import BARE, SMALL
from tests.core.spaces import CR4, make_guest
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, WalkStatus
from vtx.machine.walk import StepKind, Walk
from vtx.machine.walk_html import HEADINGS, rows_of, walk_html
from vtx.machine.walk_rules import ending, entry_flags, entry_name, failing_step
from vtx.machine.walk_svg import walk_svg

VA = 0x7F12_3456_7000
LA57 = 1 << 12
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(64 << 30, huge_pages=False) as memory:
        yield memory


def cells(walk: Walk) -> list[tuple[float, float, str, str]]:
    """The cells of a picture: place, class and text."""
    root = ET.fromstring(walk_svg(walk))
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext(f"{SVG}title")
    found = []
    for group in root.findall(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        title = group.findtext(f"{SVG}title")
        assert rect is not None
        assert title
        place = float(rect.get("x", "")), float(rect.get("y", ""))
        found.append((*place, group.get("class", ""), title))
    assert len({cell[:2] for cell in found}) == len(found)  # none covers another
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    assert all(x < width and y < height for x, y, *_ in found)
    return found


@pytest.mark.parametrize(
    ("guest_size", "ept_size", "grid"),
    [("4K", "4K", (5, 5)), ("4K", "2M", (5, 4)), ("2M", "2M", (4, 4)), ("1G", "1G", (3, 3))],
)
def test_the_grid(memory: Memory, guest_size: str, ept_size: str, grid: tuple[int, int]) -> None:
    guest = make_guest(memory, BARE, table_size=ept_size)
    guest.tables.map(VA & -(1 << 30), 2 << 30, guest_size)
    guest.ept.map(2 << 30, 4 << 30, ept_size)
    walk = guest.mmu.walk(guest.context(), VA & -(1 << 30) | 0x123)
    drawn = cells(walk)
    rows, columns = grid
    assert len(drawn) == walk.references == rows * columns - 1
    assert len({y for _, y, *_ in drawn}) == rows
    assert len({x for x, *_ in drawn}) == columns
    assert not any("bad" in kind for *_, kind, _ in drawn)
    assert walk._repr_html_() == walk_svg(walk)
    # Every reference stands in the picture with its number, address and value, in order.
    reads = [step for step in walk.steps if step.kind is StepKind.READ]
    for number, (step, cell) in enumerate(zip(reads, drawn, strict=True), 1):
        assert cell[3].startswith(f"{number}  {entry_name(step)} at {step.address:#x}: ")
        assert f"{step.value:#x}" in cell[3]


def test_five_levels(memory: Memory) -> None:
    guest = make_guest(memory, BARE, ept_levels=5, guest_levels=5)
    guest.map(0x12_3456_7000, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(cr4=CR4 | LA57), 0x12_3456_7000)
    assert len(cells(walk)) == 35


def test_faults_end_where_they_are(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA + 0x1000)
    assert walk.status is WalkStatus.PAGE_FAULT
    *before, last = cells(walk)
    assert "bad" in last[2]
    assert not any("bad" in kind for *_, kind, _ in before)
    assert "not present" in last[3]
    end = ending(walk)
    assert "an entry is not present" in end.what
    assert "it ended at the PTE" in end.what
    assert end.source == 'SDM, "Page-Fault Exceptions"'

    guest.ept.unmap(0x40_0000)
    walk = guest.mmu.walk(guest.context(), VA, Access.STORE)
    assert walk.status is WalkStatus.EPT_VIOLATION
    failed = failing_step(walk)
    assert failed is not None
    assert entry_name(failed) == "EPT PTE"
    end = ending(walk)
    assert "write of the address that the linear address translates to" in end.what
    assert "allow nothing" in end.what
    assert "bad" in cells(walk)[-1][2]

    walk = guest.mmu.walk(guest.context(), 1 << 50)
    assert cells(walk) == []
    assert "canonical" in ending(walk).rule


def test_a_violation_on_a_guest_entry_names_it(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA)
    tables = [step for step in walk.steps if step.dimension.name == "GUEST"]
    guest.ept.unmap(tables[1].gpa & -4096)
    walk = guest.mmu.walk(guest.context(), VA)
    assert "a guest paging-structure entry" in ending(walk).what


def test_what_a_cache_answers_is_no_reference(memory: Memory) -> None:
    guest = make_guest(memory, SMALL)
    guest.map(VA, 0x40_0000, 0x80_0000)
    guest.map(VA + 0x1000, 0x40_1000, 0x80_1000)
    context = guest.context()
    guest.mmu.translate(context, VA)
    walk = guest.mmu.translate(context, VA + 0x1000, record=True)
    assert not all(step.kind is StepKind.READ for step in walk.steps)
    drawn = cells(walk)
    assert any("cached" in kind for *_, kind, _ in drawn)
    assert sum(bool(re.match(r"\d", title)) for *_, title in drawn) == walk.references < 24
    again = guest.mmu.translate(context, VA, record=True)
    assert "from a first-level TLB" in ending(again).what


def test_words(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA)
    rows = rows_of(walk)
    assert [len(row) for row in rows] == [len(HEADINGS)] * len(walk.steps)
    assert [row[0] for row in rows if row[0]] == [str(n + 1) for n in range(24)]
    first = walk.steps[0]
    assert (rows[0][1], rows[0][2], rows[0][3]) == ("ept", "guest L4", "EPT PML4E")
    assert {"R", "W", "X"} <= set(entry_flags(first).split())
    assert "WB" in entry_flags(walk.steps[3])
    assert rows[-1][2] == "address"
    assert guest.mmu.translate(guest.context(), VA)._repr_html_() is None


def test_the_page(memory: Memory) -> None:
    guest = make_guest(memory, BARE)
    guest.map(VA, 0x40_0000, 0x80_0000)
    walk = guest.mmu.walk(guest.context(), VA + 0x1000)
    page = walk_html(walk, "<a trace>")
    assert "&lt;a trace&gt;" in page
    assert "<a trace>" not in page
    assert page.count("<tr") == len(walk.steps) + 1
    assert page.count("class=bad") == 1
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # self-contained
    assert "prefers-color-scheme:dark" in page
