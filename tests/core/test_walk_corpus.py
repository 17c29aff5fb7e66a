"""Walks that another emulator made: outcome, every read in order, every flag that was set.

The cases cover no paging, 32-bit, PAE and 4-level paging over 4-level EPT with large pages, spoilt
entries, accessed and dirty flags and mode-based execute control. They come from Bochs; where it
departs from the SDM the case was corrected or left out.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.cases import SMALL, shape_with
from vtx.machine.memory import Memory
from vtx.machine.mmu import Access, Context, Mmu, StepKind, Walk, WalkStatus
from vtx.machine.shape import Shape

CORPUS = Path(__file__).parents[1] / "data" / "walks.jsonl.xz"
LINES = lzma.decompress(CORPUS.read_bytes()).decode().splitlines()
HEADER, CASES = json.loads(LINES[0]), [json.loads(line) for line in LINES[1:]]
ACCESSES = {"x": Access.FETCH, "r": Access.LOAD, "w": Access.STORE, "m": Access.MODIFY}
OUTCOMES = {
    "ok": WalkStatus.OK,
    "pf": WalkStatus.PAGE_FAULT,
    "exception": WalkStatus.NON_CANONICAL,
    "ept_violation": WalkStatus.EPT_VIOLATION,
    "ept_misconfig": WalkStatus.EPT_MISCONFIGURATION,
}


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    with Memory(1 << 40, huge_pages=False) as memory:
        yield memory


def shape() -> Shape:
    return shape_with(HEADER["ept_vpid_cap"], HEADER["maxphyaddr"], SMALL)


def context_of(case: dict[str, Any]) -> Context:
    registers = dict(case["registers"])
    ac, mbe = registers.pop("ac"), registers.pop("mbe")
    return Context(rflags=2 | ac << 18, mode_based_execute=bool(mbe), **registers)


def load(memory: Memory, case: dict[str, Any]) -> None:
    for address, size, value in case["memory"]:
        memory.write(address, value.to_bytes(size, "little"))


def clear(memory: Memory, case: dict[str, Any]) -> None:
    for address, size, _ in case["memory"]:
        memory.write(address, bytes(size))


def assert_outcome(memory: Memory, case: dict[str, Any], walk: Walk) -> None:
    assert walk.status == OUTCOMES[case["outcome"]], walk
    for name in ("hpa", "error_code", "qualification", "gpa"):
        if name in case:
            assert getattr(walk, name) == case[name], (name, walk)
    changed = [
        [address, int.from_bytes(memory.read(address, size), "little")]
        for address, size, value in case["memory"]
        if memory.read(address, size) != value.to_bytes(size, "little")
    ]
    assert changed == sorted(case["changed"])


@pytest.mark.parametrize("mode", ["nopaging", "32bit", "pae", "4level"])
def test_walks_end_as_in_the_corpus(memory: Memory, mode: str) -> None:
    cases = [case for case in CASES if case["mode"] == mode]
    assert len(cases) >= 60
    for case in cases:
        load(memory, case)
        walk = Mmu(memory, shape()).walk(context_of(case), case["gva"], ACCESSES[case["access"]])
        assert_outcome(memory, case, walk)
        reads = [step.address for step in walk.steps if step.kind is StepKind.READ]
        assert reads == case["reads"]
        clear(memory, case)


def test_translations_through_the_tlb_end_alike_the_first_and_the_second_time(
    memory: Memory,
) -> None:
    for case in CASES:
        load(memory, case)
        mmu, context = Mmu(memory, shape()), context_of(case)
        for _ in range(2):
            walk = mmu.translate(context, case["gva"], ACCESSES[case["access"]])
            if walk.gpa is None:
                case = case | {"gpa": None}  # a TLB keeps none
            assert_outcome(memory, case, walk)
        clear(memory, case)
