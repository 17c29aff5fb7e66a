"""Entries of DynamoRIO and instructions of ChampSim, as independent writers lay them out."""

from __future__ import annotations

import gzip
import io
import lzma
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import InputError, UsageError
from vtx.streams import FORMATS, open_stream

from .writers import (
    FETCH,
    LOAD,
    STORE,
    TYPES,
    Ref,
    bundle,
    cloudsuite,
    entry,
    foot,
    head,
    instruction,
)

WIDTHS = (8, 12, 16)


def read(path, **options):
    stream = open_stream(path, **options)
    records = [int(record) for chunk in stream.chunks(64) for record in chunk]
    summary = stream.summary
    assert summary.read == summary.used + sum(summary.skipped.values())
    assert summary.references == len(records)
    return records, summary


def written(path, *parts: bytes):
    path.write_bytes(b"".join(parts))
    return path


BODY = [
    ("INSTR", 4, 0x401000),
    ("READ", 8, 0x7FFF0010),
    ("INSTR_TAKEN_JUMP", 2, 0x401004),
    ("INSTR_DIRECT_CALL", 5, 0x401100),
    ("WRITE", 16, 0x7FFF0020),
    ("INSTR_SYSENTER", 2, 0x401200),
]
BODY_REFS = [
    Ref(FETCH, 4, 0x401000),
    Ref(LOAD, 8, 0x7FFF0010),
    Ref(FETCH, 2, 0x401004),
    Ref(FETCH, 5, 0x401100),
    Ref(STORE, 16, 0x7FFF0020),
    Ref(FETCH, 2, 0x401200),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_trace_of_one_thread(tmp_path, width):
    body = b"".join(entry(*one, width=width) for one in BODY)
    path = written(tmp_path / "t", head(width=width), body, foot(width=width))
    records, summary = read(path)
    assert open_stream(path).format is FORMATS["drmemtrace"]
    assert records == [ref.record for ref in BODY_REFS]
    assert summary.skipped == {"marker": 2, "identity": 3, "frame": 2}
    assert summary.threads == 1


def test_every_type_of_entry(tmp_path):
    """Each type gives what trace_entry.h says of it: a fetch, a load, a store, or nothing."""
    fetched = {
        "INSTR", "INSTR_DIRECT_JUMP", "INSTR_INDIRECT_JUMP", "INSTR_CONDITIONAL_JUMP",
        "INSTR_DIRECT_CALL", "INSTR_INDIRECT_CALL", "INSTR_RETURN", "INSTR_SYSENTER",
        "INSTR_MAYBE_FETCH", "INSTR_TAKEN_JUMP", "INSTR_UNTAKEN_JUMP",
    }  # fmt: skip
    for name in TYPES:
        if name == "INSTR_BUNDLE":
            continue
        path = written(tmp_path / "t", head(), entry("INSTR", 1, 0x10), entry(name, 4, 0x5000))
        records, summary = read(path)
        kind = FETCH if name in fetched else {"READ": LOAD, "WRITE": STORE}.get(name)
        expected = [] if kind is None else [Ref(kind, 4, 0x5000).record]
        assert records[1:] == expected, name
        assert (summary.used == 2) == bool(expected)
        for word, key in (("PREFETCH", "prefetch"), ("FLUSH", "flush"), ("NO_FETCH", "no_fetch")):
            if word in name:
                assert summary.skipped[key] == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_bundles_follow_the_last_instruction(tmp_path, width):
    path = written(
        tmp_path / "t", head(width=width), entry("INSTR", 3, 0x400000, width=width),
        bundle(2, 7, 1, width=width), entry("READ", 8, 0x10, width=width), bundle(5, width=width),
    )  # fmt: skip
    assert read(path)[0] == [
        Ref(FETCH, 3, 0x400000).record,
        Ref(FETCH, 2, 0x400003).record,
        Ref(FETCH, 7, 0x400005).record,
        Ref(FETCH, 1, 0x40000C).record,
        Ref(LOAD, 8, 0x10).record,
        Ref(FETCH, 5, 0x40000D).record,
    ]


def test_a_string_instruction_is_fetched_once(tmp_path):
    again = entry("INSTR_MAYBE_FETCH", 2, 0x400000) + entry("READ", 8, 0x10)
    path = written(tmp_path / "t", head(), again * 3, entry("INSTR_NO_FETCH", 2, 0x400000))
    records, summary = read(path)
    assert [record >> 62 for record in records] == [FETCH, LOAD, LOAD, LOAD]
    assert summary.skipped["no_fetch"] == 3


def test_large_references_are_split_and_wild_ones_dropped(tmp_path):
    path = written(
        tmp_path / "t", head(), entry("WRITE", 10_000, 0x1000), entry("READ", 8, 1 << 47),
        entry("READ", 8, (1 << 47) - 4), entry("READ", 0, 0x10), entry("INSTR", 0, 0x10),
        entry("READ", 4, (1 << 64) - 4), entry(77, 4, 4),
    )  # fmt: skip
    records, summary = read(path)
    assert records == [
        Ref(STORE, 4096, 0x1000).record,
        Ref(STORE, 4096, 0x2000).record,
        Ref(STORE, 1808, 0x3000).record,
        Ref(LOAD, 4, -4).record,
    ]
    assert (summary.split, summary.dropped) == (1, 2)
    for key, number in {"non_canonical": 2, "empty": 2, "other": 1}.items():
        assert summary.skipped[key] == number


def test_threads_and_processes_are_told_apart(tmp_path):
    def work(number: int) -> bytes:
        return entry("READ", 4, number)

    path = written(
        tmp_path / "t", entry("HEADER", 0, 5), entry("THREAD", 0, 1), entry("PID", 0, 10), work(1),
        entry("THREAD", 0, 2), entry("PID", 0, 20), work(2), work(3), entry("THREAD", 0, 1),
        work(4), entry("THREAD", 0, 3), entry("PID", 0, 10), work(5),
    )  # fmt: skip
    for options, expected in (
        ({}, [1, 2, 3, 4, 5]),
        ({"tid": 2}, [2, 3]),
        ({"pid": 10}, [1, 4, 5]),
        ({"pid": 10, "tid": 1}, [1, 4]),
    ):
        records, summary = read(path, **options)
        assert records == [Ref(LOAD, 4, number).record for number in expected]
        assert summary.skipped.get("filtered", 0) == 5 - len(expected)
        assert summary.threads == 3
    with pytest.raises(InputError, match="of other threads"):
        read(path, tid=99)


def test_a_zip_archive_of_chunks(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number, (type_, size, address) in enumerate(BODY):
            file.writestr(f"chunk.{number:04}", head() + entry(type_, size, address))
    path = written(tmp_path / "t.zip", archive.getvalue())
    assert read(path)[0] == [ref.record for ref in BODY_REFS]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_packed_traces(tmp_path, pack):
    body = b"".join(entry(*one) for one in BODY)
    path = written(tmp_path / "t", pack(head() + body))
    assert read(path)[0] == [ref.record for ref in BODY_REFS]
    path = written(tmp_path / "c", pack(instruction(0x400000, (0x10,), (0x20,)) * 10))
    assert read(path)[0] == [
        Ref(FETCH, 1, 0x400000).record, Ref(LOAD, 1, 0x10).record, Ref(STORE, 1, 0x20).record,
    ] * 10  # fmt: skip


def test_entries_that_dynamorio_does_not_write(tmp_path):
    path = written(tmp_path / "t", head(), entry("READ", 4, 8), entry(999, 4, 8))
    with pytest.raises(InputError, match="entry 7 of the stream"):
        read(path)
    records, summary = read(path, skip_malformed=True)
    assert len(records) == 1
    assert summary.skipped["malformed"] == 1
    assert summary.first_malformed == 7
    path = written(tmp_path / "t", head(), entry("READ", 4, 8), bundle(*range(1, 9)), entry(17, 9))
    with pytest.raises(InputError, match="entry 8 of the stream"):
        read(path)


@pytest.mark.parametrize(("write", "name"), [(instruction, "champsim"), (cloudsuite, "cloudsuite")])
def test_champsim(tmp_path, write, name):
    path = written(
        tmp_path / "t", write(0x400000), write(0x400004, (0x10, 0x20)),
        write(0x400008, (), (0x30,)), write(0x40000C, (1, 2, 3, 4), (5, 6)),
    )  # fmt: skip
    expected = [
        (FETCH, 0x400000), (FETCH, 0x400004), (LOAD, 0x10), (LOAD, 0x20), (FETCH, 0x400008),
        (STORE, 0x30), (FETCH, 0x40000C), (LOAD, 1), (LOAD, 2), (LOAD, 3), (LOAD, 4), (STORE, 5),
        (STORE, 6),
    ]  # fmt: skip
    records, summary = read(path)
    assert open_stream(path).format.name == name
    assert records == [Ref(kind, 1, address).record for kind, address in expected]
    assert (summary.read, summary.used) == (4, 4)


def test_champsim_cut_and_wild(tmp_path):
    path = written(tmp_path / "t", instruction(1 << 50, (1 << 60, 5)) * 2, instruction(1 << 60))
    records, summary = read(path, format="champsim")
    assert records == [Ref(LOAD, 1, 5).record] * 2
    assert summary.dropped == 5
    assert summary.skipped == {"non_canonical": 1}
    path = written(tmp_path / "t", instruction(5) * 3, b"12345")
    assert read(path, format="champsim")[1].skipped == {"cut": 1}


def test_only_drmemtrace_names_threads(tmp_path):
    path = written(tmp_path / "t", instruction(5) * 5)
    with pytest.raises(UsageError, match="no process and no thread"):
        open_stream(path, tid=5)


@given(
    st.sampled_from(sorted(FORMATS)),
    st.binary(max_size=3000),
    st.sampled_from([b"", head(), head(width=8), head(width=16), instruction(5) * 5]),
)
def test_random_bytes_never_crash(tmp_path_factory, name, noise, before):
    path = tmp_path_factory.mktemp("r") / "t"
    path.write_bytes(before + noise)
    for options in ({}, {"skip_malformed": True}, {"format": name, "skip_malformed": True}):
        try:
            records, summary = read(path, **options)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert records or summary.skipped


@given(st.binary(max_size=300), st.sampled_from([gzip.compress, lzma.compress]))
def test_damaged_archives_never_crash(tmp_path_factory, noise, pack):
    packed = bytearray(pack(head() + b"".join(entry(*one) for one in BODY) + noise))
    path = tmp_path_factory.mktemp("r") / "t"
    at = len(noise) * 7 % len(packed)
    packed[at] ^= 0x55
    path.write_bytes(packed)
    try:
        read(path, skip_malformed=True)
    except InputError as error:
        assert "\n" not in str(error)
