"""Pages of EPT made larger and smaller in place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vtx.errors import InputError
from vtx.machine.memory import Memory
from vtx.machine.paging import Ept, FrameAllocator

LARGE, GIB = 2 << 20, 1 << 30


@pytest.fixture
def ept() -> Iterator[Ept]:
    with Memory(4 * GIB) as memory:
        yield Ept(memory, FrameAllocator(0x10_0000, 0x80_0000))


def test_a_split_page_translates_as_before(ept: Ept) -> None:
    ept.map(LARGE, GIB + LARGE, "2M", write=False, memory_type=0)
    ept.split(LARGE + 0x5123)
    for gpa in (LARGE, LARGE + 0x5123, 2 * LARGE - 1):
        mapping = ept.lookup(gpa)
        assert mapping is not None
        assert (mapping.hpa, mapping.size) == (GIB + gpa, "4K")
        assert (mapping.readable, mapping.writable, mapping.memory_type) == (True, False, 0)
        assert not mapping.entry >> 7 & 1


def test_a_gigabyte_is_split_into_large_pages(ept: Ept) -> None:
    ept.map(0, GIB, "1G")
    ept.split(0)
    mapping = ept.lookup(5 * LARGE + 7)
    assert mapping is not None
    assert (mapping.hpa, mapping.size) == (GIB + 5 * LARGE + 7, "2M")


def test_merged_pages_are_one_and_the_table_is_free(ept: Ept) -> None:
    ept.map(LARGE + 0x3000, GIB + LARGE + 0x3000)
    ept.map(LARGE + 0x9000, GIB + LARGE + 0x9000)
    ept.memory.write_u64(ept.entry_address(LARGE + 0x9000), GIB + LARGE + 0x9000 | 0x737)
    used = ept.frames.used
    ept.merge(LARGE + 0x9000)
    mapping = ept.lookup(LARGE)
    assert mapping is not None
    assert (mapping.hpa, mapping.size, mapping.accessed, mapping.dirty) == (
        GIB + LARGE,
        "2M",
        True,
        True,
    )
    assert ept.frames.used == used - 4096


def test_split_and_merge_are_inverse(ept: Ept) -> None:
    ept.map(0, GIB, "1G")
    before = ept.lookup(0)
    ept.split(0)
    ept.split(0)
    ept.merge(0)
    ept.merge(0)
    assert ept.lookup(0) == before


def test_what_cannot_be_merged(ept: Ept) -> None:
    ept.map(0, GIB)
    ept.map(0x1000, GIB + 0x1000, write=False)
    with pytest.raises(InputError, match="0x1000 has another place or other rights"):
        ept.merge(0)
    ept.map(LARGE, GIB + 0x1000)
    with pytest.raises(InputError, match="lies at another place"):
        ept.merge(LARGE)
    with pytest.raises(InputError, match="not mapped"):
        ept.merge(GIB)
    with pytest.raises(InputError, match="none smaller"):
        ept.split(0)
    ept.map(GIB, GIB, "1G")
    with pytest.raises(InputError, match="in a 1G page"):
        ept.merge(GIB)
