"""The core's walk equals a plain second implementation: outcome, references, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.cases import BARE, MEMORY_BYTES, Case, random_case
from tests.core.naive import NaiveResult
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Dimension, Source, StepKind, Walk, WalkStatus


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(MEMORY_BYTES, huge_pages=False) as memory:
        yield memory


def assert_same(walk: Walk, expected: NaiveResult) -> None:
    assert walk.status == expected.status, (walk, expected)
    if expected.status is WalkStatus.OK:
        assert walk.hpa == expected.hpa
        # A TLB keeps no guest-physical address.
        assert walk.gpa == expected.gpa or walk.source in (Source.L1, Source.L2)
    elif expected.status is WalkStatus.PAGE_FAULT:
        assert walk.error_code == expected.error_code, (walk, expected)
    elif expected.status is WalkStatus.EPT_VIOLATION:
        assert walk.gpa == expected.gpa
        assert walk.qualification == expected.qualification, (walk, hex(expected.qualification))
    elif expected.status in (WalkStatus.EPT_MISCONFIGURATION, WalkStatus.PML_FULL):
        assert walk.gpa == expected.gpa


def compare(memory: Memory, case: Case, gva: int, access: int) -> Walk:
    case.load(memory)
    words = dict(case.space.words)
    context, model_context = case.context(), case.context()
    naive = case.naive(words, model_context)
    expected = naive.walk(gva, access)
    try:
        walk = case.mmu(memory, BARE).walk(context, gva, access)
        assert_same(walk, expected)
        reads = [(s.address, s.value) for s in walk.steps if s.kind is StepKind.READ]
        assert reads == expected.reads
        assert [s.value for s in walk.steps if s.dimension is Dimension.LOG] == expected.logged
        assert context.pml_index == naive.pml_index
        for address, value in words.items():
            assert memory.read_u64(address) == value, f"{address:#x}"
    finally:
        for address in words:
            memory.write_u64(address, 0)
    return walk


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 1 << 48), st.sampled_from([0, 1, 2, 3]))
def test_a_walk_is_what_the_plain_model_says(memory: Memory, seed: int, access: int) -> None:
    case = random_case(seed)
    compare(memory, case, case.gvas[0], access)


def test_the_random_cases_reach_every_outcome(memory: Memory) -> None:
    seen: dict[WalkStatus, int] = {}
    for seed in range(1500):
        case = random_case(seed)
        walk = compare(memory, case, case.gvas[0], seed % 4)
        seen[walk.status] = seen.get(walk.status, 0) + 1
    for status in (
        WalkStatus.OK,
        WalkStatus.PAGE_FAULT,
        WalkStatus.NON_CANONICAL,
        WalkStatus.EPT_VIOLATION,
        WalkStatus.EPT_MISCONFIGURATION,
        WalkStatus.PML_FULL,
        WalkStatus.BEYOND_MEMORY,
    ):
        assert seen.get(status, 0) >= 5, seen
    assert seen[WalkStatus.OK] >= 150, seen


def test_the_context_is_not_changed_but_for_the_log_index(memory: Memory) -> None:
    case = random_case(3)
    context = case.context()
    before = repr(context)
    compare(memory, case, case.gvas[0], Access.LOAD)
    assert repr(context) == before
    assert isinstance(context, Context)
