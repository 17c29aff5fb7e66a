"""With every cache at work, translation equals a walk without any, after the right invalidations.

Random programs access pages under several VPIDs and PCIDs, change entries at every level of both
dimensions, and invalidate as the manual asks for that change. The plain model has no caches at all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.cases import MEMORY_BYTES, SMALL, Case, random_case
from tests.core.test_walk_against_naive import assert_same
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu

PCIDE, PGE = 1 << 17, 1 << 7


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(MEMORY_BYTES, huge_pages=False) as memory:
        yield memory


class Machine:
    """The core and the plain model, side by side over the same tables."""

    def __init__(self, memory: Memory, case: Case, rng: random.Random) -> None:
        self.memory = memory
        self.case = case
        self.rng = rng
        self.words = dict(case.space.words)
        case.load(memory)
        self.mmu: Mmu = case.mmu(memory, SMALL)
        self.contexts = [self.context(vpid, pcid) for vpid, pcid in ((1, 0), (1, 5), (2, 5))]

    def context(self, vpid: int, pcid: int) -> Context:
        context = self.case.context()
        context.vpid = vpid
        context.pml_address = None
        if context.cr0 >> 31:
            context.cr4 |= PCIDE
            context.cr3 |= pcid
        return context

    def access(self, which: int, page: int, offset: int, access: int) -> None:
        context = self.contexts[which % len(self.contexts)]
        gva = self.case.gvas[page % len(self.case.gvas)] ^ offset
        expected = self.case.naive(self.words, context).walk(gva, access)
        assert_same(self.mmu.translate(context, gva, access), expected)
        for address, value in self.words.items():
            assert self.memory.read_u64(address) == value, f"{address:#x}"

    def change(self, which: int, bit: int, way: int) -> None:
        """Change a bit of an entry, and invalidate what that asks for."""
        kind, address = self.case.space.entries[which % len(self.case.space.entries)]
        value = self.words[address] ^ 1 << bit
        self.words[address] = value
        self.memory.write_u64(address, value)
        if kind == "ept":
            self.invalidate_ept(way)
        else:
            self.invalidate_guest(way)

    def invalidate_ept(self, way: int) -> None:
        eptp = self.contexts[0].eptp or 0
        if way % 2:
            self.mmu.invept(1, eptp)
        else:
            self.mmu.invept(2)

    def invalidate_guest(self, way: int) -> None:
        """Any way that covers both VPIDs, both PCIDs and global translations."""
        match way % 5:
            case 0:
                self.mmu.invvpid(2)
            case 1:
                self.mmu.invvpid(1, 1)
                self.mmu.invvpid(1, 2)
            case 2:
                for context in self.contexts:
                    self.mmu.invpcid(context, 2)
            case 3:
                for context in self.contexts:
                    self.mmu.mov_to_cr4(context, context.cr4 ^ PGE)
            case 4:
                for context in self.contexts:
                    self.mmu.mov_to_cr3(context, context.cr3)
                    for gva in self.case.gvas:  # what MOV to CR3 leaves: global translations
                        self.mmu.invlpg(context, gva)

    def close(self) -> None:
        for address in self.words:
            self.memory.write_u64(address, 0)


operations = st.one_of(
    st.tuples(
        st.just("access"),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([0, 0, 8, 0x1000, 0x20_0000]),
        st.sampled_from([0, 1, 1, 2, 3]),
    ),
    st.tuples(
        st.just("change"),
        st.integers(0, 200),
        st.sampled_from([0, 1, 1, 2, 2, 12, 13, 21, 63]),
        st.integers(0, 9),
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(operations, min_size=8, max_size=60))
def test_caches_never_show_after_the_right_invalidation(
    memory: Memory, seed: int, program: list[tuple[str, int, int, int, int]]
) -> None:
    case = random_case(seed, pages=4)
    machine = Machine(memory, case, random.Random(seed))
    try:
        for operation in program:
            if operation[0] == "access":
                machine.access(*operation[1:])
            elif case.space.entries:
                machine.change(*operation[1:4])
    finally:
        machine.close()


def test_the_programs_do_hit_every_cache(memory: Memory) -> None:
    totals: dict[str, int] = {}
    rng = random.Random(1)
    for seed in range(300):
        machine = Machine(memory, random_case(seed, pages=4), rng)
        for _ in range(30):
            machine.access(rng.randrange(3), rng.randrange(4), rng.choice([0, 8, 0x1000]), 1)
        for name, value in machine.mmu.counters().items():
            totals[name] = totals.get(name, 0) + value
        machine.close()
    for name in ("l1d_hits", "l2d_hits", "nested_hits", "guest_cache_hits_level2",
                 "guest_cache_hits_level3", "guest_cache_hits_level4", "guest_cache_hits_level5",
                 "ept_cache_hits_level2", "ept_cache_hits_level3", "ept_cache_hits_level4",
                 "ept_cache_hits_level5"):  # fmt: skip
        assert totals[name] > 0, (name, totals)
