"""The run loop: where it stops, what it counts, what it refuses; and translation of arrays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.core.cases import shape_with
from tests.core.spaces import Guest, make_guest
from vtx.errors import InputError, NotSupported
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Mmu, Source, WalkStatus
from vtx.machine.shape import TlbArray, TlbGeometry

VA = 0x5555_0000_0000
PAGE = 4096


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(64 << 30, huge_pages=False) as memory:
        yield memory


@pytest.fixture
def guest(memory: Memory) -> Guest:
    """Eight pages in the guest's tables; EPT maps the first four."""
    guest = make_guest(memory)
    for page in range(8):
        guest.tables.map(VA + page * PAGE, 0x40_0000 + page * PAGE)
    for page in range(4):
        guest.ept.map(0x40_0000 + page * PAGE, 0x80_0000 + page * PAGE)
    return guest


def record(kind: Access, address: int, size: int = 8) -> int:
    return kind << 62 | size << 48 | address & 0xFFFF_FFFF_FFFF


def instruction(operand: int) -> int:
    return operand


def stream(*records: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(records, dtype=np.uint64)


LOAD, STORE, FETCH, MODIFY = Access.LOAD, Access.STORE, Access.FETCH, Access.MODIFY


def test_a_run_ends_at_its_window(guest: Guest) -> None:
    records = stream(*[record(LOAD, VA)] * 10)
    context = guest.context()
    result = guest.mmu.run(context, records, 2, 5)
    assert (result.status, result.index, result.walk) == (WalkStatus.END, 5, None)
    assert guest.mmu.counters()["references_load"] == 3
    assert guest.mmu.run(context, records, 5).index == 10
    assert guest.mmu.run(context, records, 10).status is WalkStatus.END


def test_instructions_return_or_pass_by_their_disposition(guest: Guest) -> None:
    records = stream(
        record(FETCH, VA, 2), instruction(0), record(FETCH, VA, 3), instruction(1), instruction(7)
    )
    dispositions = np.array([1, 0], dtype=np.uint8)
    context = guest.context()
    result = guest.mmu.run(context, records, 0, None, dispositions)
    assert (result.status, result.index, result.operand) == (WalkStatus.INSTRUCTION, 3, 1)
    result = guest.mmu.run(context, records, 4, None, dispositions)
    assert (result.status, result.index, result.operand) == (WalkStatus.BAD_RECORD, 4, 7)
    counters = guest.mmu.counters()
    assert (counters["instructions"], counters["references_fetch"]) == (1, 2)
    # Dispositions are read anew each time: what exits may change between runs.
    dispositions[1] = 1
    assert guest.mmu.run(context, records, 3, 4, dispositions).status is WalkStatus.END
    assert guest.mmu.run(context, records, 3).status is WalkStatus.BAD_RECORD


def test_demand_mapping_goes_on_where_it_stopped(guest: Guest) -> None:
    records = stream(record(FETCH, VA, 4), record(STORE, VA + 5 * PAGE), record(LOAD, VA))
    context = guest.context()
    result = guest.mmu.run(context, records)
    walk = result.walk
    assert walk
    assert (result.status, result.index) == (WalkStatus.EPT_VIOLATION, 1)
    assert (walk.gva, walk.gpa, walk.access) == (VA + 5 * PAGE, 0x40_5000, Access.STORE)
    assert walk.qualification == 0x182 | 0x600
    counters = guest.mmu.counters()
    # The reference that stopped has walked, but counts only once it completes.
    assert (counters["references_store"], counters["l1d_misses"]) == (0, 0)
    assert (counters["walks_stopped"], counters["ept_violations"]) == (1, 1)
    guest.ept.map(0x40_5000, 0x90_0000)
    assert guest.mmu.run(context, records, result.index).status is WalkStatus.END
    counters = guest.mmu.counters()
    assert (counters["references_store"], counters["references_load"]) == (1, 1)
    assert (counters["l1d_misses"], counters["l2d_hits"], counters["walks"]) == (2, 1, 2)


@pytest.mark.parametrize(
    ("gva", "access", "status"),
    [
        (VA + 9 * PAGE, LOAD, WalkStatus.PAGE_FAULT),
        (VA + 6 * PAGE, FETCH, WalkStatus.EPT_VIOLATION),
    ],
)
def test_a_fault_stops_the_run(guest: Guest, gva: int, access: Access, status: WalkStatus) -> None:
    result = guest.mmu.run(guest.context(), stream(record(LOAD, VA), record(access, gva, 4)))
    assert result.walk
    assert (result.status, result.index, result.walk.gva) == (status, 1, gva)


def test_the_other_outcomes_stop_the_run(guest: Guest) -> None:
    records = stream(record(STORE, VA))
    context = guest.context(cr3=63 << 30, eptp=None)
    assert guest.mmu.run(context, records).status is WalkStatus.PAGE_FAULT  # untouched: zeros
    guest.ept.protect(0x40_0000, read=False)
    result = guest.mmu.run(guest.context(), records)
    assert result.status is WalkStatus.EPT_MISCONFIGURATION
    guest.ept.protect(0x40_0000, read=True)
    context = guest.context(eptp=guest.ept.eptp | 0x40, pml_address=0x99_0000, pml_index=0xFFFF)
    assert guest.mmu.run(context, records).status is WalkStatus.PML_FULL
    beyond = guest.mmu.run(guest.context(cr0=0x21, cr4=0, efer=0, eptp=1 << 38 | 0x1E), records)
    assert beyond.status is WalkStatus.BEYOND_MEMORY
    # The upper half is reached by sign extension of bit 47.
    high = guest.mmu.run(guest.context(), stream(record(LOAD, 0xFFFF_8000_0000_0000)))
    assert high.walk
    assert high.walk.gva == 0xFFFF_8000_0000_0000


def test_in_five_level_paging_addresses_are_sign_extended_from_bit_47(memory: Memory) -> None:
    guest = make_guest(memory, guest_levels=5)
    result = guest.mmu.run(guest.context(cr4=0xA0 | 1 << 12), stream(record(LOAD, 1 << 47 | 0x123)))
    assert result.walk
    assert result.walk.gva == 0xFFFF_8000_0000_0123


def test_a_reference_that_crosses_a_page_translates_both(guest: Guest) -> None:
    records = stream(record(LOAD, VA + PAGE - 4, 8), record(STORE, VA + 4 * PAGE - 4, 8))
    context = guest.context()
    result = guest.mmu.run(context, records)
    assert result.walk
    assert (result.index, result.walk.gva) == (1, VA + 4 * PAGE)  # the second page stopped it
    counters = guest.mmu.counters()
    assert (counters["references_load"], counters["page_crossings"]) == (1, 1)
    assert counters["l1d_misses"] == 3  # two of the load, the first of the store
    guest.ept.map(0x40_4000, 0x90_0000)
    assert guest.mmu.run(context, records, 1).status is WalkStatus.END
    counters = guest.mmu.counters()
    # The first page was looked up again when the store ran again.
    assert (counters["references_store"], counters["l1d_hits"]) == (1, 1)
    assert counters["page_crossings"] == 2


def test_crossings_may_count_their_first_page_only(guest: Guest) -> None:
    records = stream(record(LOAD, VA + 4 * PAGE - 4, 8))
    result = guest.mmu.run(guest.context(), records, first_page_only=True)
    assert result.status is WalkStatus.END
    assert guest.mmu.counters()["page_crossings"] == 0


def test_the_last_byte_of_a_page_does_not_cross(guest: Guest) -> None:
    records = stream(*[record(LOAD, VA + 4 * PAGE - 8, 8)] * 3, record(LOAD, VA + 4 * PAGE - 1, 0))
    assert guest.mmu.run(guest.context(), records).status is WalkStatus.END
    assert guest.mmu.counters()["references_load"] == 4


def test_a_store_to_the_last_page_of_the_side_still_asks_for_the_right(guest: Guest) -> None:
    guest.tables.protect(VA, write=False)
    records = stream(record(LOAD, VA), record(LOAD, VA), record(STORE, VA), record(LOAD, VA))
    result = guest.mmu.run(guest.context(), records)
    assert (result.status, result.index) == (WalkStatus.PAGE_FAULT, 2)
    for before in (FETCH, LOAD):
        for access in (STORE, MODIFY):
            records = stream(record(before, VA, 4), record(before, VA, 4), record(access, VA))
            result = guest.mmu.run(guest.context(), records)
            assert (result.status, result.index) == (WalkStatus.PAGE_FAULT, 2)


def test_the_last_page_is_forgotten_with_the_context_and_invalidations(guest: Guest) -> None:
    records = stream(record(LOAD, VA), record(LOAD, VA))
    context = guest.context()
    guest.mmu.run(context, records)
    guest.ept.map(0x40_0000, 0xA0_0000)
    guest.mmu.invept(2)
    before = guest.mmu.counters()["walks"]
    guest.mmu.run(context, records)
    assert guest.mmu.counters()["walks"] == before + 1
    context.vpid = 9
    guest.mmu.run(context, records)
    assert guest.mmu.counters()["walks"] == before + 2
    guest.mmu.translate(context, VA + PAGE)
    guest.mmu.run(context, records)
    assert guest.mmu.counters()["l1d_misses"] == 4


# ---- Arrays ----


def test_translate_many_is_translate_many_times(guest: Guest) -> None:
    gvas = np.array([VA + 8, VA + 5 * PAGE, VA, 1 << 60, VA + 20 * PAGE], dtype=np.uint64)
    accesses = np.array([1, 0, 2, 1, 1], dtype=np.uint8)
    many = guest.mmu.translate_many(guest.context(), gvas, accesses)
    assert len(many) == 5
    other = make_guest(Memory(64 << 30, huge_pages=False))
    for page in range(8):
        other.tables.map(VA + page * PAGE, 0x40_0000 + page * PAGE)
    for page in range(4):
        other.ept.map(0x40_0000 + page * PAGE, 0x80_0000 + page * PAGE)
    for index in range(5):
        walk = other.mmu.translate(other.context(), int(gvas[index]), int(accesses[index]))
        assert many.status[index] == walk.status
        assert many.hpa[index] == walk.hpa
        assert many.gpa[index] == (walk.gpa or 0)
        assert many.qualification[index] == walk.qualification
        assert many.error_code[index] == walk.error_code
        assert many.page_shift[index] == walk.page_shift
        assert many.source[index] == walk.source
    assert guest.mmu.translate_many(guest.context(), gvas[:0]).hpa.shape == (0,)
    loads = guest.mmu.translate_many(guest.context(), gvas[:1], Access.LOAD)
    assert loads.source[0] == Source.L1


BAD_ARRAYS: list[tuple[Any, str]] = [
    (np.zeros(4, dtype=np.uint32), "uint64, not uint32"),
    (np.zeros(4, dtype=np.int64), "uint64, not int64"),
    (np.zeros(4, dtype=np.float64), "uint64, not float64"),
    (np.zeros(4, dtype=">u8"), "uint64"),
    (np.zeros((2, 2), dtype=np.uint64), "one-dimensional"),
    (np.zeros(8, dtype=np.uint64)[::2], "contiguous"),
    ([1, 2, 3], "must be an array, not list"),
    (b"12345678", "uint64"),
]


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS)
def test_an_array_of_the_wrong_kind_is_refused(guest: Guest, array: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        guest.mmu.run(guest.context(), array)
    with pytest.raises(InputError, match=message):
        guest.mmu.translate_many(guest.context(), array)


def test_dispositions_and_accesses_are_checked_too(guest: Guest) -> None:
    gvas = stream(VA, VA)
    with pytest.raises(InputError, match="dispositions must have elements of type uint8"):
        guest.mmu.run(guest.context(), gvas, 0, 0, np.zeros(2, dtype=np.uint64))
    with pytest.raises(InputError, match="2 gvas need 2 accesses, not 3"):
        guest.mmu.translate_many(guest.context(), gvas, np.zeros(3, dtype=np.uint8))


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 3), (2, 1), (3, None)])
def test_a_window_outside_the_stream_is_refused(guest: Guest, start: int, stop: int | None) -> None:
    with pytest.raises(InputError, match="are not in a stream of 2"):
        guest.mmu.run(guest.context(), stream(0, 0), start, stop)


def test_a_read_only_memory_map_is_a_stream(guest: Guest, tmp_path: Any) -> None:
    path = tmp_path / "stream.u64"
    stream(*[record(LOAD, VA)] * 5).tofile(path)
    mapped = np.memmap(path, dtype="<u8", mode="r")
    assert guest.mmu.run(guest.context(), mapped).index == 5


def test_a_plain_buffer_of_64_bit_numbers_is_a_stream(guest: Guest) -> None:
    import array

    assert guest.mmu.run(guest.context(), array.array("Q", [record(LOAD, VA)])).index == 1


# ---- Contexts and shapes ----


def test_a_context_says_what_does_not_fit() -> None:
    context = Context(eptp=None, cr3=0x1000)
    assert context.eptp is None
    context.eptp = 0x5E
    assert context.eptp == 0x5E
    assert "cr3=0x1000" in repr(context)
    with pytest.raises(InputError, match="vpid: 0x10000 does not fit"):
        context.vpid = 0x10000
    with pytest.raises(InputError, match="four PDPTE"):
        context.pdptes = [1, 2]
    with pytest.raises(AttributeError):
        context.cr5 = 1  # type: ignore[attr-defined]
    assert (context.mode_based_execute, context.pml_address) == (False, None)


def test_an_impossible_shape_gets_a_sentence(memory: Memory) -> None:
    for changes, message in (
        ({"maxphyaddr": 60}, "MAXPHYADDR"),
        ({"tlb": TlbGeometry((), pd=1 << 20)}, "65536"),
        ({"tlb": TlbGeometry((TlbArray(1, "data", ("4K",), 4, 4),) * 17)}, "at most 16"),
        ({"tlb": TlbGeometry((TlbArray(1, "data", (), 4, 4),))}, "4K, 2M or 1G"),
    ):
        with pytest.raises(InputError, match=message):
            Mmu(memory, shape_with(**changes))  # type: ignore[arg-type]


def test_a_closed_memory_gives_no_mmu_but_keeps_those_it_has(memory: Memory) -> None:
    guest = make_guest(memory)
    guest.map(VA, 0x40_0000, 0x80_0000)
    context = guest.context()
    memory.close()
    assert guest.mmu.translate(context, VA).ok
    with pytest.raises(NotSupported, match="closed"):
        Mmu(memory, shape_with())


def test_counters_are_named_and_reset(guest: Guest) -> None:
    guest.mmu.translate(guest.context(), VA)
    counters = guest.mmu.counters()
    assert counters["references_load"] == 1
    assert counters["guest_references_level4"] == 1
    assert counters["fills_4k"] == 1
    assert all(isinstance(value, int) for value in counters.values())
    guest.mmu.reset_counters()
    assert not any(guest.mmu.counters().values())
    assert guest.mmu.translate(guest.context(), VA).source is Source.L1


def test_mmus_of_one_memory_run_on_several_threads(guest: Guest) -> None:
    """Same counts as alone, and the flags that both set end up set."""
    records = stream(*[record(STORE, VA + page % 4 * PAGE) for page in range(20000)])
    mmus = [Mmu(guest.memory, shape_with(tlb=TlbGeometry((), 0, 0, 0, 0, 0))) for _ in range(4)]
    context = guest.context()
    contexts = [guest.context() for _ in mmus]
    results: list[WalkStatus] = []

    def work(mmu: Mmu, context: Context) -> None:
        results.append(mmu.run(context, records).status)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(mmus, contexts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [WalkStatus.END] * 4
    assert all(mmu.counters()["walks"] == 20000 for mmu in mmus)
    assert guest.mmu.run(context, records).status is WalkStatus.END
