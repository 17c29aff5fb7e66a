"""Sub-page permissions, paging-write control, guest-paging verification, HLAT."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.core.cases import SMALL, shape_with
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Dimension, Mmu, StepKind, WalkStatus

ROOT, GUEST, SPP, HLAT = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
GVA, PAGE = 0x7F00_1234_5000, 0x50_0000
PW, VGP, SUB_PAGE = 1 << 58, 1 << 57, 1 << 61


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(1 << 30, huge_pages=False) as memory:
        yield memory


def chain(memory: Memory, table: int, address: int, link: int, leaf: int) -> None:
    """Four tables, one after the other, for one address."""
    for level in (4, 3, 2, 1):
        slot = table + 8 * (address >> (3 + 9 * level) & 511)
        memory.write_u64(slot, leaf if level == 1 else (table + 0x1000) | link)
        table += 0x1000


def identity_ept(memory: Memory, leaf_bits: dict[int, int] | None = None) -> int:
    """4-KByte EPT pages for the first 8 MiB; `leaf_bits` replaces rights and flags of some."""
    memory.write_u64(ROOT, ROOT + 0x1007)
    memory.write_u64(ROOT + 0x1000, ROOT + 0x2007)
    for directory in range(4):
        memory.write_u64(ROOT + 0x2000 + 8 * directory, ROOT + 0x3007 + 0x1000 * directory)
    pages = range(0, 0x80_0000, 4096)
    leaves = [page | (leaf_bits or {}).get(page, 7) | 6 << 3 for page in pages]
    memory.write(ROOT + 0x3000, struct.pack("<2048Q", *leaves))
    return ROOT | 3 << 3 | 6


def context(eptp: int, **more: object) -> Context:
    fields = {"cr0": 0x8001_0001, "cr3": GUEST, "cr4": 0x20, "efer": 0xD00, "cpl": 3}
    return Context(**fields, eptp=eptp, **more)  # type: ignore[arg-type]


class TestSubPagePermissions:
    """SDM, "Sub-Page Write Permissions"."""

    def prepare(self, memory: Memory, vector: int) -> tuple[Mmu, Context]:
        eptp = identity_ept(memory, {PAGE: 5 | SUB_PAGE})
        chain(memory, GUEST, GVA, 0x27, PAGE | 0x67)
        chain(memory, SPP, PAGE, 1, vector)
        return Mmu(memory, shape_with(tlb=SMALL)), context(eptp, sub_page_table=SPP)

    def test_the_even_bits_of_the_vector_allow_128_bytes_each(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 1 << 2 * 3)
        for part in range(32):
            for _ in range(2):
                walk = mmu.translate(under, GVA + 128 * part + 5, Access.STORE)
                assert walk.ok == (part == 3), part
                if not walk.ok:
                    assert walk.status is WalkStatus.EPT_VIOLATION
                    assert walk.qualification & 0x1FF == 0x1AA
        assert mmu.translate(under, GVA, Access.LOAD).ok

    def test_the_table_is_read_last_and_only_for_writes(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 1)
        walk = mmu.walk(under, GVA, Access.STORE)
        spp = [step for step in walk.steps if step.dimension is Dimension.SPP]
        assert [step.level for step in spp] == [4, 3, 2, 1] and walk.steps[-4:] == spp
        assert walk.references == 28
        assert mmu.walk(under, GVA, Access.LOAD).references == 24

    def test_a_link_without_its_valid_bit_is_a_miss(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 1)
        memory.write_u64(SPP + 0x1000, SPP + 0x2000)
        walk = mmu.translate(under, GVA, Access.STORE)
        assert walk.status is WalkStatus.SPP_MISS
        assert (walk.gpa, walk.gva) == (PAGE, GVA)

    @pytest.mark.parametrize("bit", [1, 7, 11, 45, 63])
    def test_a_reserved_bit_is_a_misconfiguration(self, memory: Memory, bit: int) -> None:
        mmu, under = self.prepare(memory, 1)
        memory.write_u64(SPP + 0x1000, (SPP + 0x2000) | 1 | 1 << bit)
        status = mmu.translate(under, GVA, Access.STORE).status
        assert status is WalkStatus.SPP_MISCONFIGURATION

    def test_an_odd_bit_of_the_vector_is_a_misconfiguration(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 1 | 1 << 33)
        status = mmu.translate(under, GVA, Access.STORE).status
        assert status is WalkStatus.SPP_MISCONFIGURATION

    def test_without_the_control_bit_61_is_ignored(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, (1 << 64) // 3)
        under.sub_page_table = None
        assert mmu.translate(under, GVA, Access.STORE).status is WalkStatus.EPT_VIOLATION


class TestPagingWrite:
    """SDM, "EPT Paging-Write Control" and "Guest-Paging Verification"."""

    TABLES = tuple(GUEST + 0x1000 * i for i in range(4))

    def prepare(self, memory: Memory, table_bits: int, page_bits: int = 7) -> tuple[Mmu, Context]:
        bits = dict.fromkeys(self.TABLES, table_bits) | {PAGE: page_bits}
        eptp = identity_ept(memory, bits)
        chain(memory, GUEST, GVA, 0x7, PAGE | 0x7)  # no flag is set yet
        return Mmu(memory, shape_with(tlb=SMALL)), context(eptp)

    def test_bit_58_lets_paging_write_where_software_may_not(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 5 | PW)
        walk = mmu.translate(under, GVA, Access.STORE)
        assert walk.status is WalkStatus.EPT_VIOLATION and walk.qualification & 3 == 3
        under.paging_write = True
        walk = mmu.walk(under, GVA, Access.STORE)
        assert walk.ok
        writes = [s for s in walk.steps if s.kind is StepKind.WRITE]
        assert [s.level for s in writes] == [4, 3, 2, 1]

    def test_bit_58_of_a_leaf_that_is_not_readable_is_a_misconfiguration(
        self, memory: Memory
    ) -> None:
        mmu, under = self.prepare(memory, 7, 4 | PW)
        assert mmu.translate(under, GVA, Access.FETCH).ok
        under.paging_write = True
        mmu.invept(2)
        status = mmu.translate(under, GVA, Access.FETCH).status
        assert status is WalkStatus.EPT_MISCONFIGURATION

    @pytest.mark.parametrize("unmarked", [None, 0, 3])
    def test_verification_wants_bit_58_for_every_guest_entry(
        self, memory: Memory, unmarked: int | None
    ) -> None:
        mmu, under = self.prepare(memory, 7 | PW, 7 | VGP)
        if unmarked is not None:
            page = self.TABLES[unmarked] >> 12
            memory.write_u64(ROOT + 0x3000 + 8 * page, page << 12 | 0x37)
        assert mmu.translate(under, GVA, Access.LOAD).ok
        under.verify_guest_paging = True
        mmu.invept(2)
        walk = mmu.translate(under, GVA, Access.LOAD)
        assert walk.ok == (unmarked is None)
        if not walk.ok:
            assert walk.status is WalkStatus.EPT_VIOLATION
            assert walk.qualification >> 15 & 1 and walk.qualification & 0x181 == 0x181


class TestHlat:
    """SDM, "Hypervisor-Managed Linear-Address Translation"."""

    HIGH = 0xFFFF_8000_0000_0000 | GVA

    def prepare(self, memory: Memory, leaf: int) -> tuple[Mmu, Context]:
        eptp = identity_ept(memory)
        for gva in (GVA, self.HIGH):
            chain(memory, GUEST, gva, 0x27, PAGE | 0x67)
            chain(memory, HLAT, gva, 0x27, leaf)
        return Mmu(memory, shape_with(tlb=SMALL)), context(eptp, hlat_pointer=HLAT)

    def test_its_tables_come_first(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, PAGE + 0x1000 | 0x67)
        assert mmu.translate(under, GVA, Access.LOAD).hpa == PAGE + 0x1000
        under.hlat_pointer = None
        mmu.flush_vpid(0)
        assert mmu.translate(under, GVA, Access.LOAD).hpa == PAGE

    def test_only_for_addresses_with_the_prefix(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, PAGE + 0x1000 | 0x67)
        under.hlat_prefix_size = 17
        assert mmu.translate(under, GVA, Access.LOAD).hpa == PAGE
        assert mmu.translate(under, self.HIGH, Access.LOAD).hpa == PAGE + 0x1000

    def test_bit_11_restarts_with_ordinary_paging(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, PAGE + 0x1000 | 0x67 | 1 << 11)
        walk = mmu.walk(under, GVA, Access.LOAD)
        assert walk.hpa == PAGE and walk.references == 44

    def test_its_faults_say_so(self, memory: Memory) -> None:
        mmu, under = self.prepare(memory, 0)
        walk = mmu.translate(under, GVA, Access.LOAD)
        assert walk.status is WalkStatus.PAGE_FAULT and walk.error_code == 4 | 1 << 7
