"""Reference streams: the files they come in, and how other steps stand between references."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest

from vtx.errors import InputError
from vtx.hypervisor import streams
from vtx.hypervisor.streams import open_stream
from vtx.hypervisor.trace import load_trace
from vtx.machine.program import Cursor, Instruction, Program, Stream

RECORDS = (
    (np.uint64(1) << np.uint64(62))
    | (np.uint64(4) << np.uint64(48))
    | np.arange(0x1000, 0x1014, dtype=np.uint64)
)


def fails(path) -> str:
    with pytest.raises(InputError) as caught:
        open_stream(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".u64", ".npy", ".u64.xz", ".u64.gz"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, suffix):
    path = tmp_path / f"s{suffix}"
    if suffix == ".npy":
        np.save(path, RECORDS)
    else:
        pack = {".u64": bytes, ".u64.xz": lzma.compress, ".u64.gz": gzip.compress}[suffix]
        path.write_bytes(pack(RECORDS.tobytes()))
    records = open_stream(path)
    assert records.dtype == np.uint64
    assert records.flags.c_contiguous
    assert not records.flags.writeable
    assert (records == RECORDS).all()
    assert isinstance(records, np.memmap) == (suffix in (".u64", ".npy"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("s.u64", b"", "empty"),
        ("s.u64", b"1234567", "7 bytes are no multiple of 8"),
        ("s.u64.xz", lzma.compress(b""), "empty"),
        ("s.u64.xz", lzma.compress(bytes(9)), "9 bytes"),
        ("s.u64.xz", b"not xz at all", "damaged"),
        ("s.u64.xz", lzma.compress(RECORDS.tobytes())[:-20], "damaged"),
        ("s.u64.gz", b"not gzip", "Not a gzipped file"),
        ("s.u64.gz", gzip.compress(RECORDS.tobytes())[:-9], "damaged"),
        ("s.npy", b"\x93NUMPY", "not a readable array"),
        ("s.npy", b"garbage!", "not a readable array"),
        ("s.npy", b"", "damaged"),
        ("s.txt", b"12345678", "ends in .u64, .npy"),
        ("s.u64", bytes(16), "record 0"),
        ("s.u64", RECORDS.tobytes() + bytes([1] + [0] * 7), "record 20"),
    ],
)
def test_files_that_are_no_streams(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    assert says in fails(path)


def test_missing_files_and_directories(tmp_path):
    assert "No such file" in fails(tmp_path / "no.u64")
    for name in ("d.u64", "d.npy", "d.u64.xz"):
        (tmp_path / name).mkdir()
        assert "directory" in fails(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, dtype=np.uint32),
        np.zeros(4, dtype=np.int64),
        np.zeros(4, dtype=np.float64),
        np.zeros(4, dtype=">u8"),
        np.zeros((2, 2), dtype=np.uint64),
        np.zeros((), dtype=np.uint64),
        np.zeros(0, dtype=np.uint64),
        np.array([object()], dtype=object),
    ],
)
def test_arrays_of_another_type(tmp_path, array):
    np.save(tmp_path / "s.npy", array, allow_pickle=True)
    assert fails(tmp_path / "s.npy")


def test_a_small_file_cannot_claim_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAXIMUM_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "bomb.u64.xz"
    path.write_bytes(lzma.compress(bytes(8 << 20)))
    assert "unpacks to more than" in fails(path)


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


def test_no_reference_touches_more_than_a_page(tmp_path):
    path = tmp_path / "s.u64"
    records = RECORDS.copy()
    records[7] = 2 << 62 | 4096 << 48 | 0x1FF8
    path.write_bytes(records.tobytes())
    assert len(open_stream(path)) == 20
    records[7] = 2 << 62 | 4097 << 48 | 0x1FF8
    path.write_bytes(records.tobytes())
    assert "record 7 of the stream" in fails(path)
    assert "touches 4097 bytes, more than 4096" in fails(path)
