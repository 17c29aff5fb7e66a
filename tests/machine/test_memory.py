"""Physical memory: sparse, exact at its edges, safe to close."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import AddressError, InputError, NotSupported
from vtx.machine.memory import Memory

SIZE = 1 << 20


def test_untouched_memory_reads_zero_and_costs_nothing() -> None:
    with Memory(64 << 30) as memory:
        assert memory.read(0x3_0000_0000, 4096) == bytes(4096)
        assert memory.resident_bytes <= 2 << 20


def test_sixty_four_gibibytes_are_addressed_to_the_last_byte() -> None:
    with Memory(64 << 30, huge_pages=False) as memory:
        last = (64 << 30) - 8
        memory.write_u64(last, 0x1122_3344_5566_7788)
        assert memory.read_u64(last) == 0x1122_3344_5566_7788
        assert memory.read_u8((64 << 30) - 1) == 0x11
        assert 0 < memory.resident_bytes <= 64 << 10


def test_a_tebibyte_can_be_addressed() -> None:
    with Memory(1 << 40, huge_pages=False) as memory:
        memory.write_u32((1 << 40) - 4, 7)
        assert memory.read_u32((1 << 40) - 4) == 7


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_numbers_are_little_endian_and_masked_to_their_width(width: int) -> None:
    with Memory(SIZE) as memory:
        getattr(memory, f"write_u{8 * width}")(64, 0xFEDC_BA98_7654_3210_FF)
        expected = (0xFEDC_BA98_7654_3210_FF & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        assert memory.read(64, 9) == expected + bytes(9 - width)
        assert getattr(memory, f"read_u{8 * width}")(64) == int.from_bytes(expected, "little")


@given(st.integers(-16, 2 * SIZE), st.integers(0, 64))
def test_every_access_is_checked_against_the_end(address: int, length: int) -> None:
    with Memory(SIZE) as memory:
        if address < 0:
            with pytest.raises(InputError):
                memory.read(address, length)
        elif address + length > SIZE:
            with pytest.raises(AddressError) as caught:
                memory.write(address, bytes(length))
            assert caught.value.address >= SIZE
        else:
            memory.write(address, b"\xa5" * length)
            assert memory.read(address, length) == b"\xa5" * length


def test_a_write_that_reaches_beyond_the_end_writes_nothing() -> None:
    with Memory(SIZE) as memory:
        with pytest.raises(AddressError, match="beyond the 0x100000 bytes of memory"):
            memory.write(SIZE - 4, b"\xff" * 8)
        assert memory.read(SIZE - 4, 4) == bytes(4)


def test_clear_makes_all_memory_read_zero_again() -> None:
    with Memory(SIZE) as memory:
        memory.write(0, b"\xff" * SIZE)
        memory.clear()
        assert memory.resident_bytes == 0
        assert memory.read(0, SIZE) == bytes(SIZE)


def test_a_view_shares_memory_and_outlives_close() -> None:
    memory = Memory(SIZE)
    view = memory.view(0x1000, 16)
    view[:4] = b"abcd"
    assert memory.read(0x1000, 4) == b"abcd"
    memory.close()
    gc.collect()
    assert bytes(view[:4]) == b"abcd"


def test_a_closed_memory_says_so() -> None:
    memory = Memory(SIZE)
    memory.close()
    memory.close()
    for use in (lambda: memory.read(0, 1), lambda: memory.resident_bytes, lambda: memory.handle):
        with pytest.raises(NotSupported, match="closed"):
            use()


@pytest.mark.parametrize("size", [0, -4096, 100, 1 << 60])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="impossible"):
        Memory(size)
