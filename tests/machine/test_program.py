"""Programs: addresses of steps, loops, streams, and where a cursor stands."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vtx.machine.assembly import parse_instruction
from vtx.machine.program import Cursor, Instruction, Loop, Operation, Program, Stream, place


def walk(program: Program) -> list[object]:
    """Return the names of the steps (or the streams) in the order in which they run."""
    cursor, order = Cursor(program), []
    while (operation := cursor.current()) is not None:
        order.append(operation.name if isinstance(operation, Instruction) else operation)
        cursor.advance()
    return order


def test_steps_stand_one_after_the_other() -> None:
    lines = ["cpuid", "mov cr3, rax", "nmi", "hlt", "nop rip=0x9000", "nop"]
    steps = place(map(parse_instruction, lines), 0x1000)
    assert [s.rip for s in steps] == [0x1000, 0x1002, 0x1005, 0x1005, 0x9000, 0x9001]
    assert steps[0].end == 0x1002
    program = Program(steps)
    assert program.steps_at == {0x1000: 0, 0x1002: 1, 0x1005: 3, 0x9000: 4, 0x9001: 5}


def test_a_loop_runs_its_body_as_often_as_it_says() -> None:
    a, b, c = map(parse_instruction, ("cpuid", "nop", "hlt"))
    assert walk(Program((a, b, Loop(1, 3), c))) == ["cpuid", "nop", "nop", "nop", "hlt"]
    nested = Program((a, b, Loop(1, 2), Loop(0, 2), c))
    assert walk(nested) == ["cpuid", "nop", "nop"] * 2 + ["hlt"]


def test_loops_that_end_together_and_at_the_end() -> None:
    a = parse_instruction("nop")
    assert walk(Program((a, Loop(0, 2), Loop(0, 3)))) == ["nop"] * 6
    assert walk(Program(())) == []


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_nested_loops_multiply(counts: list[int]) -> None:
    body: list[Operation] = [parse_instruction("nop")]
    total = 1
    for count in counts:
        body.append(Loop(0, count))
        total *= count
    assert len(walk(Program(tuple(body)))) == total


def test_a_stream_begins_at_its_first_record_each_time() -> None:
    records = np.arange(10, dtype=np.uint64)
    stream = Stream(records, 4, 8)
    cursor = Cursor(Program((stream, Loop(0, 2))))
    assert cursor.record == 4
    cursor.record = 8
    cursor.advance()
    assert cursor.record == 4
    cursor.advance()
    assert cursor.current() is None


def test_going_elsewhere_forgets_loops_and_register_values() -> None:
    steps = tuple(map(parse_instruction, ("cpuid", "nop", "hlt")))
    cursor = Cursor(Program((*steps[:2], Loop(0, 5), steps[2])))
    cursor.advance()
    cursor.advance()
    assert cursor.iterations == {2: 1}
    cursor.reached = True
    cursor.go_to(3)
    assert cursor.current() is steps[2]
    assert cursor.iterations == {}
    assert not cursor.reached
