"""Reference streams in traces: how other steps stand between references."""

from __future__ import annotations

import numpy as np
import pytest

from vtx.errors import InputError
from vtx.hypervisor.trace import load_trace
from vtx.machine.program import Cursor, Instruction, Program, Stream

RECORDS = (
    (np.uint64(1) << np.uint64(62))
    | (np.uint64(4) << np.uint64(48))
    | np.arange(0x1000, 0x1014, dtype=np.uint64)
)


def trace_of(folder, text: str):
    (folder / "s.u64").write_bytes(RECORDS.tobytes())
    (folder / "t.yaml").write_text(f"schema: 1\n{text}")
    return load_trace(folder / "t.yaml")


def order(program: Program) -> list[object]:
    """What runs, in order: windows of the stream as (start, stop), steps as text."""
    cursor = Cursor(program)
    done: list[object] = []
    while (operation := cursor.current()) is not None:
        if isinstance(operation, Stream):
            done.append((operation.start, operation.stop))
        else:
            done.append(operation.text)
        cursor.advance()
    return done


def test_a_stream_alone_is_the_whole_program(tmp_path):
    trace = trace_of(tmp_path, "stream: s.u64\n")
    assert order(trace.segments[0].program) == [(0, 20)]
    assert trace.references == 20
    assert trace.header.guest.demand
    assert trace.header.guest.user


def test_interrupts_and_schedule_stand_between_references(tmp_path):
    trace = trace_of(
        tmp_path,
        "stream: {file: s.u64, kind: u64, start: 2, stop: 18}\n"
        "interrupts: {vector: 32, every: 6, first: 4}\n"
        "schedule:\n"
        "  - {at: 0, steps: int 0x80}\n"  # before the stream starts: never
        "  - {at: 2, steps: nop}\n"
        "  - at: 10\n"
        "    every: 3\n"
        "    until: 16\n"
        "    steps: |\n"
        "      repeat 2\n"
        "        int 0x81\n"
        "      end\n",
    )
    tick = "external_interrupt vector=32"
    twice = ["int 0x81"] * 2
    assert order(trace.segments[0].program) == [
        "nop", (2, 4), tick, (4, 10), tick, *twice, (10, 13), *twice, (13, 16), tick, (16, 18),
    ]  # fmt: skip
    assert trace.references == 16


def test_the_listing_says_where_the_stream_runs(tmp_path):
    trace = trace_of(
        tmp_path,
        "stream: s.u64\nschedule:\n  - {at: 5, steps: pause}\n"
        "steps: |\n  int 0x80\n  repeat 2\n    stream 4 6\n    nop\n  end\n  stream 6 8\n",
    )
    rounds = [(4, 5), "pause", (5, 6), "nop"]
    assert order(trace.segments[0].program) == ["int 0x80", *rounds, *rounds, (6, 8)]


def test_steps_between_references_have_addresses_of_their_own(tmp_path):
    trace = trace_of(
        tmp_path,
        "stream: s.u64\nschedule:\n  - {at: 5, steps: int 0x80}\n  - {at: 6, steps: int 0x81}\n"
        "steps: |\n  nop\n  stream\n",
    )
    steps = [s for s in trace.segments[0].program.operations if isinstance(s, Instruction)]
    assert [step.rip for step in steps] == [0x7FFF_F000_0000, 0x7FFF_F000_8000, 0x7FFF_F000_8002]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("stream: no.u64", 2, "No such file"),
        ("stream: 5", 2, "must be a mapping"),
        ("stream: {kind: u64}", 2, "no file"),
        ("stream: {file: s.u64, kind: u32}", 2, "unknown kind 'u32'"),
        ("stream: {file: s.u64, start: 20}", 2, "only 20 references"),
        ("stream: {file: s.u64, stop: 21}", 2, "only 20 references"),
        ("stream: {file: s.u64, start: 5, stop: 5}", 2, "before it starts"),
        ("stream: s.u64\nsteps: nop", 3, "add a line that says stream"),
        ("stream: s.u64\nsteps: stream 0 21", 3, "not 0 to 21"),
        ("stream: s.u64\nsteps: stream 5", 3, "stream 0 250000"),
        ("stream: s.u64\nguest: {map: low}", 3, "on demand"),
        ("stream: s.u64\ninterrupts: {vector: 32}", 3, "no every"),
        ("stream: s.u64\ninterrupts: {vector: 31, every: 1}", 3, "vector is 31"),
        ("stream: s.u64\ninterrupts: {vector: 32, every: 0}", 3, "every is 0"),
        ("stream: s.u64\nschedule:\n  - {at: 1}", 4, "no steps"),
        ("stream: s.u64\nschedule:\n  - {steps: nop}", 4, "no at"),
        ("stream: s.u64\nschedule:\n  - {at: 1, steps: stream}", 4, "cannot stand here"),
        ('stream: "a\\0b.u64"', 2, "name"),
    ],
)
def test_errors_say_where(tmp_path, text, line, says):
    with pytest.raises(InputError) as caught:
        assert trace_of(tmp_path, text).segments
    assert says in str(caught.value)
    assert caught.value.line == line, str(caught.value)


def test_a_recorded_trace_may_be_a_stream(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"I  00401000,3\n L 1fff000000,8\n")
    trace = trace_of(tmp_path, "stream: l.txt\n")
    assert trace.records is not None
    assert trace.records.tolist() == [3 << 48 | 0x401000, 1 << 62 | 8 << 48 | 0x1FFF000000]
    trace = trace_of(tmp_path, "stream: {file: l.txt, kind: lackey}\n")
    assert trace.references == 2
    with pytest.raises(InputError, match="no multiple of 8"):
        assert trace_of(tmp_path, "stream: {file: l.txt, kind: u64}\n").records
