"""Column files: their layout byte for byte, and that they appear whole or not at all."""

from __future__ import annotations

import gzip
import os
import struct
import sys

import numpy as np
import pytest

from vtx.errors import InputError, UsageError
from vtx.streams import open_stream, pack, unpack, write_stream

RECORDS = pack(np.arange(1000) % 4, np.arange(1000) % 64 + 1, np.arange(1000) * 0x1234567)


def column(records=RECORDS, **changes) -> bytes:
    """A column file as docs/streams.md describes it."""
    kinds = np.bincount(records >> np.uint64(62), minlength=4).tolist()
    parts = {
        "magic": b"\x89VTXREF\n", "order": 0x01020304, "version": 1, "offset": 64, "record": 8,
        "count": len(records), "kinds": kinds, **changes,
    }  # fmt: skip
    *head, kinds = parts.values()
    return struct.pack("<8sIIIIQ4Q", *head, *kinds) + records.astype("<u8").tobytes()


def fails(path) -> str:
    with pytest.raises(InputError) as caught:
        open_stream(path).array()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_layout(tmp_path):
    path = tmp_path / "s.vtxs"
    header = write_stream(path, [RECORDS[:300], RECORDS[300:]])
    assert path.read_bytes() == column()
    assert (header.count, header.kinds) == (1000, (250, 250, 250, 250))
    stream = open_stream(path)
    assert stream.is_mapped
    assert stream.count == 1000
    assert "1,000 records" in repr(stream)
    assert (np.concatenate(list(stream.chunks(64))) == RECORDS).all()
    assert stream.summary.kinds == [250] * 4
    assert all(0 < len(chunk) <= 64 for chunk in stream.chunks(64))
    assert not any(chunk.flags.writeable for chunk in stream)


def test_packed_columns_are_read_in_pieces(tmp_path):
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(column()))
    stream = open_stream(path)
    assert not stream.is_mapped
    assert stream.count == 1000
    for _ in range(2):
        assert (np.concatenate(list(stream.chunks(64))) == RECORDS).all()
    path.write_bytes(gzip.compress(column()[:-8]))
    assert "999 records of 1000" in fails(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (column()[:40], "its header has 40 bytes"),
        (column()[:-1], "no multiple of 8"),
        (column()[:-8], "999 records, and its header says 1000"),
        (column() + bytes(8), "1001 records, and its header says 1000"),
        (column(version=2), "version 2"),
        (column(order=0x04030201), "byte order"),
        (column(offset=128), "contradicts itself"),
        (column(record=12), "contradicts itself"),
        (column(kinds=[1, 2, 3, 4]), "contradicts itself"),
        (column(RECORDS[:0]), "empty"),
        (column(np.array([0, 1 << 50], dtype=np.uint64)), "record 0"),
    ],
)
def test_damaged_columns(tmp_path, content, says):
    path = tmp_path / "s.vtxs"
    path.write_bytes(content)
    assert says in fails(path)


def interrupted():
    yield RECORDS
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [None, b"old"])
def test_nothing_half_written_remains(tmp_path, before):
    path = tmp_path / "s.vtxs"
    if before:
        path.write_bytes(before)
    with pytest.raises(KeyboardInterrupt):
        write_stream(path, interrupted(), replace=True)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([before] if before else [])
    with pytest.raises(InputError, match="record 1000"):
        write_stream(path, [RECORDS, np.zeros(1, np.uint64)], replace=True)
    assert len(list(tmp_path.iterdir())) == bool(before)


def test_no_file_is_overwritten_unasked(tmp_path):
    path = tmp_path / "s.vtxs"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="--force"):
        write_stream(path, [RECORDS])
    assert path.read_bytes() == b"old"

    def chunks():
        path.write_bytes(b"meanwhile")
        yield RECORDS

    path.unlink()
    with pytest.raises(UsageError, match="--force"):
        write_stream(path, chunks())
    assert path.read_bytes() == b"meanwhile"
    write_stream(path, [RECORDS], replace=True)
    assert path.read_bytes() == column()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_is_read_once(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    if os.fork() == 0:
        path.write_bytes(column())
        os._exit(0)
    stream = open_stream(path)
    os.wait()
    assert stream.count == 1000
    assert (stream.array() == RECORDS).all()
    with pytest.raises(InputError, match="only once"):
        stream.array()


def test_standard_input_may_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="closed"):
        open_stream("-")


def test_pack_and_unpack():
    addresses = np.array([0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000], dtype=np.uint64)
    columns = unpack(pack([0, 1, 3], [1, 64, 4096], addresses))
    assert columns.kinds.tolist() == [0, 1, 3]
    assert columns.sizes.tolist() == [1, 64, 4096]
    assert (columns.addresses == addresses).all()
    assert pack(2, 8, 0x1000).tolist() == [2 << 62 | 8 << 48 | 0x1000]
    for kind, size in ((4, 1), (-1, 1), (0, 0), (0, 4097)):
        with pytest.raises(InputError):
            pack(kind, size, 0)


@pytest.mark.parametrize("where", [0, 1, 1023, 1024, 1500, 2047])
@pytest.mark.parametrize("bad", [0, 5, 1 << 62 | 4097 << 48, 3 << 62 | 0x3FFF << 48])
def test_every_record_is_looked_at(tmp_path, where, bad):
    records = pack(np.arange(2048) % 4, np.arange(2048) % 4096 + 1, 0x5000)
    path = tmp_path / "s.u64"
    records.tofile(path)
    open_stream(path).array()
    records[where] = bad
    records.tofile(path)
    assert f"record {where} of the stream" in fails(path)


def test_chunks_are_not_too_small(tmp_path):
    path = tmp_path / "s.u64"
    RECORDS.tofile(path)
    with pytest.raises(UsageError, match="at least 64"):
        open_stream(path).chunks(63)
