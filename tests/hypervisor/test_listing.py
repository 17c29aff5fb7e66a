"""The steps of a trace: lines, loops, and where errors are reported."""

from __future__ import annotations

import pytest

from vtx.errors import InputError
from vtx.hypervisor.trace import parse_trace
from vtx.machine.program import Instruction, Loop, Program


def steps(text: str) -> tuple[object, ...]:
    block = "".join(f"  {line}\n" for line in text.split("\n"))
    return parse_trace(f"schema: 1\nsteps: |\n{block}").listing


def executed(program: Program) -> list[str]:
    from vtx.machine.program import Cursor

    cursor = Cursor(program)
    done = []
    while (step := cursor.current()) is not None:
        assert isinstance(step, Instruction)
        done.append(step.text)
        cursor.advance()
    return done


def fails(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        assert parse_trace(text, "t.yaml").segments
    return caught.value


def test_comments_and_blank_lines_are_no_steps():
    listing = steps("# first\n\ncpuid leaf=1  # why\n  hlt")
    assert [step.text for step in listing if isinstance(step, Instruction)] == [
        "cpuid leaf=1",
        "hlt",
    ]


def test_every_step_knows_its_line():
    trace = parse_trace("schema: 1\n\nsteps: |\n\n  cpuid\n  # x\n  hlt\n")
    assert [step.line for step in trace.listing] == [5, 7]


def test_loops_nest_and_repeat():
    trace = parse_trace(
        "schema: 1\nsteps: |\n"
        "  repeat 2\n    cpuid\n    repeat 3\n      nop\n    end\n  end\n  hlt\n"
    )
    assert executed(trace.program) == [*["cpuid", "nop", "nop", "nop"] * 2, "hlt"]
    assert sum(isinstance(step, Loop) for step in trace.listing) == 2


def test_addresses_follow_each_other_from_the_entry_point():
    program = parse_trace("schema: 1\nguest: {entry: 0x5000}\nsteps: |\n  cpuid\n  hlt\n").program
    assert [step.rip for step in program.operations] == [0x5000, 0x5002]


def test_each_processor_has_code_of_its_own():
    trace = parse_trace(
        "schema: 1\nprocessors: 2\nsteps: |\n  cpuid\n  @1 cpuid\n  @1 nop\n  hlt\n"
    )
    where = [(s.processor, [step.rip for step in s.program.operations]) for s in trace.segments]
    assert where == [(0, [0x200000]), (1, [0x210000, 0x210002]), (0, [0x200002])]


def test_a_loop_over_two_processors_keeps_their_order():
    trace = parse_trace(
        "schema: 1\nprocessors: 2\nsteps: |\n  repeat 2\n    cpuid\n    @1 pause\n  end\n"
    )
    order = [(s.processor, step.text) for s in trace.segments for step in s.program.operations]
    assert order == [(0, "cpuid"), (1, "@1 pause")] * 2


@pytest.mark.parametrize(
    ("listing", "line", "column", "says"),
    [
        ("  cpuidd leaf=1\n", 3, 3, "did you mean cpuid"),
        ("  cpuid\n    repaet 2\n", 4, 5, "did you mean repeat"),
        ("  repeat\n  cpuid\n  end\n", 3, 3, "one number"),
        ("  repeat x\n  cpuid\n  end\n", 3, 3, "not 'x'"),
        ("  repeat 0\n  cpuid\n  end\n", 3, 3, "cannot be 0"),
        ("  repeat 2\n  cpuid\n", 3, None, "no end"),
        ("  cpuid\n  end\n", 4, 3, "no repeat"),
        ("  repeat 2\n  end\n", 4, 3, "empty"),
        ("  # nothing\n", 2, 8, "no steps"),
        ("  cpuid\n  @x cpuid\n", 4, 3, "logical processor"),
        ("  @1 cpuid\n", 3, None, "processors: 2"),
        ("  stream\n", 3, 3, "cannot stand here"),
        ("  mov cr3, rzx value=1\n", 3, 12, "rzx"),
        ("  repeat 9999999\n  cpuid\n  cpuid\n  end\n", 5, 3, "10,000,000 steps"),
    ],
)
def test_errors_name_the_place(listing, line, column, says):
    error = fails(f"schema: 1\nsteps: |\n{listing}")
    assert (error.file, error.line, error.column) == ("t.yaml", line, column), str(error)
    assert says in str(error)


def test_loops_deeper_than_sixteen_are_refused():
    text = "".join("  repeat 1\n" for _ in range(17)) + "  nop\n" + "  end\n" * 17
    assert "loops inside each other" in str(fails(f"schema: 1\nsteps: |\n{text}"))


@pytest.mark.parametrize("form", ["steps: >\n  cpuid\n  hlt\n", 'steps: "cpuid\\nhlt"\n'])
def test_only_a_literal_block_keeps_lines(form):
    assert "literal block" in str(fails(f"schema: 1\n{form}"))


def test_a_single_step_needs_no_block():
    (step,) = parse_trace("schema: 1\nsteps: cpuid leaf=1\n").listing
    assert step.text == "cpuid leaf=1"
    assert fails("schema: 1\nsteps: cpuidd\n").column == 8
