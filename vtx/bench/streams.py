"""References per second from files: a column file read, and the text of lackey parsed."""

from __future__ import annotations

import mmap
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtx.bench.registry import Result, benchmark
from vtx.bench.timing import best, seconds
from vtx.streams import open_stream, pack, write_stream
from vtx.streams.column import HEADER_BYTES

__all__ = ["import_lackey", "stream_read"]

_RECORDS, _QUICK_RECORDS = 1 << 24, 1 << 22
_LINES, _QUICK_LINES = 1 << 20, 1 << 18
#: So many records stay in a second-level cache between the check and their use.
_CHUNK = 1 << 15


def _rate(work: Callable[[], object], count: int) -> Callable[[], float]:
    return lambda: count / seconds(work)


@benchmark("stream-read", unit="references/s")
def stream_read(quick: bool) -> Result:
    """Read a column file: map it, check and add up all records. Ceiling: add up a mapped array."""
    count = _QUICK_RECORDS if quick else _RECORDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.vtxs"
        piece = pack(1, 8, np.arange(1 << 20) * 64)
        write_stream(path, (piece for _ in range(count >> 20)))
        total = int(piece.sum()) * (count >> 20) & (1 << 64) - 1

        def read() -> None:
            added = sum(int(chunk.sum()) for chunk in open_stream(path).chunks(_CHUNK))
            assert added & (1 << 64) - 1 == total

        def add_up() -> None:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            assert int(np.frombuffer(mapping, "<u8", offset=HEADER_BYTES).sum()) == total

        value, ceiling = best(_rate(read, count), _rate(add_up, count), quick=quick)
    return Result(value, ceiling)


@benchmark("import-lackey", unit="lines/s")
def import_lackey(quick: bool) -> Result:
    """Parse lackey's text. Ceiling: find the ends of its lines; peer: the same with Python's re."""
    count = _QUICK_LINES if quick else _LINES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lackey.txt"
        four = "I  0401ab70,3\n L 1fff000778,8\nI  0401ab73,5\n S 1fff00{:04x},8\n"
        path.write_text("".join(four.format(number & 0xFFFF) for number in range(count // 4)))
        line = re.compile(rb"^(I | L| S| M) ([0-9a-f]+),(\d+)$", re.MULTILINE)

        def parse() -> None:
            assert sum(map(len, open_stream(path).chunks(1 << 16))) == count

        def find() -> None:
            assert path.read_bytes().count(b"\n") == count

        def with_re() -> None:
            text = path.read_bytes()
            found = [(m[1], int(m[2], 16), int(m[3])) for m in line.finditer(text)]
            assert len(found) == count

        value, ceiling, peer = best(
            _rate(parse, count), _rate(find, count), _rate(with_re, count), quick=quick
        )
    return Result(value, ceiling, peer, "Python re")
