"""Streams of vtx's own records: the files they come in."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest

from vtx.errors import InputError
from vtx.streams import open_stream, stream

RECORDS = (
    (np.uint64(1) << np.uint64(62))
    | (np.uint64(4) << np.uint64(48))
    | np.arange(0x1000, 0x1014, dtype=np.uint64)
)


def fails(path) -> str:
    with pytest.raises(InputError) as caught:
        open_stream(path).array()
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
    records = open_stream(path).array()
    assert records.dtype == np.uint64
    assert records.flags.c_contiguous
    assert not records.flags.writeable
    assert (records == RECORDS).all()
    assert open_stream(path).is_mapped == (suffix in (".u64", ".npy"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("s.u64", b"", "empty"),
        ("s.u64", b"1234567", "7 bytes are no multiple of 8"),
        ("s.u64.xz", lzma.compress(b""), "empty"),
        ("s.u64.xz", lzma.compress(bytes(9)), "9 bytes"),
        ("s.u64.xz", b"not xz at all", "13 bytes are no multiple of 8"),
        ("s.u64.xz", lzma.compress(RECORDS.tobytes())[:-20], "damaged"),
        ("s.u64.gz", b"\x1f\x8bot gzip", "is damaged"),
        ("s.u64.gz", gzip.compress(RECORDS.tobytes(), mtime=0)[:-9], "damaged"),
        ("s.npy", b"\x93NUMPY", "not a readable array"),
        ("s.npy", b"garbage!", "no kind of stream"),
        ("s.npy", b"", "empty"),
        ("s.txt", b"12345678", "files named *.u64"),
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
    monkeypatch.setattr(stream, "MAXIMUM_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "bomb.u64.xz"
    path.write_bytes(lzma.compress(RECORDS.tobytes() * (1 << 16)))
    assert "unpacks to more than" in fails(path)


def test_no_reference_touches_more_than_a_page(tmp_path):
    path = tmp_path / "s.u64"
    records = RECORDS.copy()
    records[7] = 2 << 62 | 4096 << 48 | 0x1FF8
    path.write_bytes(records.tobytes())
    assert len(open_stream(path).array()) == 20
    records[7] = 2 << 62 | 4097 << 48 | 0x1FF8
    path.write_bytes(records.tobytes())
    assert "record 7 of the stream" in fails(path)
    assert "touches 4097 bytes, more than 4096" in fails(path)
