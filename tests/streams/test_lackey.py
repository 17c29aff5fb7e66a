"""The text of valgrind's lackey, a real trace and every way in which a line can be odd."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import InputError
from vtx.streams import open_stream

from .writers import FETCH, LOAD, MODIFY, STORE, Ref, lackey

TRUE = Path(__file__).parents[1] / "data" / "streams" / "true.lackey.txt.xz"
LINE = re.compile(r"(I | L| S| M) ([0-9a-f]+),([0-9]+)")
KINDS = {"I ": FETCH, " L": LOAD, " S": STORE, " M": MODIFY}


def naive(text: str) -> list[int]:
    """The references of a trace, by Python's re."""
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            found.append(Ref(KINDS[match[1]], int(match[3]), int(match[2], 16)).record)
    return found


def read(path, **options) -> tuple[list[int], dict[str, int]]:
    stream = open_stream(path, format="lackey", **options)
    records = [int(record) for chunk in stream.chunks(64) for record in chunk]
    summary = stream.summary
    assert summary.read == summary.used + sum(summary.skipped.values())
    assert summary.references == len(records)
    return records, summary.skipped


def test_a_real_trace():
    text = lzma.decompress(TRUE.read_bytes()).decode()
    stream = open_stream(TRUE)
    assert stream.format.name == "lackey"
    assert stream.count is None
    records = np.concatenate(list(stream.chunks(5000)))
    assert records.tolist() == naive(text)
    assert len(records) == 167_440
    assert stream.summary.kinds == [127_771, 27_899, 10_266, 1_504]
    assert stream.summary.skipped == {"message": 24}
    assert stream.summary.read == text.count("\n")
    assert (stream.array() == records).all()


refs = st.builds(
    Ref,
    st.sampled_from([FETCH, LOAD, STORE, MODIFY]),
    st.integers(1, 4096) | st.integers(1, 15),
    st.integers(0, (1 << 47) - 1) | st.integers(-(1 << 47), -1) | st.integers(0, 1 << 36),
)


@given(st.lists(refs, min_size=1, max_size=60), st.integers(1, 40))
def test_what_was_written_is_read(tmp_path_factory, written, each):
    path = tmp_path_factory.mktemp("l") / "t"
    path.write_bytes(lackey(written) * each)
    records, skipped = read(path)
    assert records == [ref.record for ref in written] * each
    assert not skipped


GOOD = b"I  0401ab70,3\n"
FILL = GOOD * 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "blank"),
        (b"==123== Command: /bin/true", "message"),
        (b"--123-- valgrind -v says", "message"),
        (b"hello, world", "other"),
        (b"I 0401ab70,3", "other"),
        (b" l 0401ab70,3", "other"),
        (b" X 0401ab70,3", "other"),
        (b"IL 0401ab70,3", "other"),
        (b"I L0401ab70,3", "other"),
        (b"  I  0401ab70,3", "other"),
        (b"SB 0401ab70", "other"),
        (b"x" * 3_000_000, "other"),
        (b" L 0401ab70,3" + b"0" * 5000, "malformed"),
        (b" L 0401ab70,3 ", "malformed"),
        (b" L 0401ab70", "malformed"),
        (b" L 0401ab70,", "malformed"),
        (b" L ,8", "malformed"),
        (b" L 0401ag70,8", "malformed"),
        (b" L 0401ab7`,8", "malformed"),
        (b" L 0401ab7@,8", "malformed"),
        (b" L 0401ab7G,8", "malformed"),
        (b" L 0401ab7/,8", "malformed"),
        (b" L 0401ab7:,8", "malformed"),
        (b" L \xb0401ab70,8", "malformed"),
        (b" L 1fff0401ag70,8", "malformed"),
        (b" L xfff0401ab70,8", "malformed"),
        (b" L 0x401ab70,8", "malformed"),
        (b" S 0401ab70,0", "malformed"),
        (b"I  0401ab70,0", "malformed"),
        (b" S 0401ab70,4097", "malformed"),
        (b" S 0401ab70,00008", "malformed"),
        (b" S 0401ab70,-8", "malformed"),
        (b" S 00000000401ab70000,8", "malformed"),
        (b" S 0000800000000000,8", "non_canonical"),
        (b" S 123456789abcdef,8", "non_canonical"),
    ],
)
def test_lines_that_give_no_reference(tmp_path, line, why):
    path = tmp_path / "t"
    for behind in (b"\n", b"\r\n"):
        path.write_bytes(FILL + line + behind + FILL)
        records, skipped = read(path, skip_malformed=True)
        assert skipped == {why: 1}
        assert records == naive(FILL.decode()) * 2
    if why != "malformed":
        assert read(path)[1] == {why: 1}
        return
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:5: ")


@pytest.mark.parametrize(
    ("line", "ref"),
    [
        (b" L 0,1", Ref(LOAD, 1, 0)),
        (b" M 1FFEFFD0AB,4096", Ref(MODIFY, 4096, 0x1FFEFFD0AB)),
        (b" S ffffffffff600400,16", Ref(STORE, 16, 0xFFFFFFFFFF600400)),
        (b" S 7fffffffffff,8", Ref(STORE, 8, 0x7FFFFFFFFFFF)),
        (b"I  00000000004001ab,07", Ref(FETCH, 7, 0x4001AB)),
    ],
)
def test_lines_that_lackey_would_hardly_print(tmp_path, line, ref):
    path = tmp_path / "t"
    for before in (b"", FILL):
        for behind in (b"", b"\n", b"\r\n", b"\n" + FILL):
            path.write_bytes(before + line + behind)
            records, skipped = read(path)
            assert not skipped
            assert ref.record in records


def test_a_line_that_ends_with_the_file(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(FILL + b" L 04")
    records, skipped = read(path)
    assert skipped == {"cut": 1}
    assert len(records) == 4


def test_a_file_without_a_reference_is_no_trace(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"==1== nothing\n")
    with pytest.raises(InputError, match="no reference"):
        read(path)


@given(st.binary(max_size=400), st.integers(1, 3))
def test_random_text(tmp_path_factory, noise, where):
    """Nothing crashes, nothing is lost, and what is a reference to re is one here.

    The noise comes second: at the beginning of a file it could be the mark of a packed one.
    """
    text = FILL * where + noise.replace(b"\0", b" L 4,4\n") + b"\n" + FILL
    path = tmp_path_factory.mktemp("r") / "t"
    path.write_bytes(text)
    records, skipped = read(path, skip_malformed=True)
    lines = text.decode("latin-1").split("\n")[:-1]
    matches = [LINE.fullmatch(line.removesuffix("\r")) for line in lines]
    assert len(records) >= sum(m is not None and m[3] == "4" for m in matches)
    assert len(records) + sum(skipped.values()) == len(lines)
