"""The formats of recorded references, and how a file is told to be in one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from vtx._core import lib
from vtx.errors import InputError

__all__ = ["FORMATS", "Format", "detect", "entry_bytes_of"]


class Format(NamedTuple):
    """One format.

    Attributes
    ----------
    name : str
        As ``vtx import --from`` takes it.
    title : str
        What writes it.
    number : int
        Of the reader in the C core; -1 for records as they are.
    unit : str
        What its files consist of.
    """

    name: str
    title: str
    number: int
    unit: str


_ALL = (
    Format("u64", "vtx's records, with or without the header of a column file", -1, "records"),
    Format("lackey", "valgrind --tool=lackey --trace-mem=yes", lib.VTX_STREAM_LACKEY, "lines"),
    Format("drmemtrace", "DynamoRIO drmemtrace", lib.VTX_STREAM_DRMEMTRACE, "entries"),
    Format("champsim", "ChampSim input_instr", lib.VTX_STREAM_CHAMPSIM, "instructions"),
    Format("cloudsuite", "ChampSim cloudsuite_instr", lib.VTX_STREAM_CLOUDSUITE, "instructions"),
)
#: Formats by name.
FORMATS: Mapping[str, Format] = {one.name: one for one in _ALL}

_TEXT = re.compile(rb"==\d+==|--\d+--|(?:I | [LSM]) [0-9a-fA-F]+,\d+\r?$", re.MULTILINE)
_RAW_NAMES = (".u64", ".u64.xz", ".u64.gz")
_HEADER, _MARKER, _THREAD, _LATEST = 25, 28, 22, 100
_INSTRUCTION_BYTES = {"champsim": 64, "cloudsuite": 96}
_CANONICAL = 1 << 47
#: So many instructions must look like ones before a file without any mark is taken for ChampSim's.
_LEAST, _LOOKED_AT = 4, 256


def detect(name: str, head: bytes) -> Format:
    """Tell the format of a stream that has no header of vtx.

    Parameters
    ----------
    name : str
        Of the file.
    head : bytes
        Its first bytes, unpacked.

    Raises
    ------
    InputError
        It cannot be told.
    """
    if name.endswith(_RAW_NAMES):
        return FORMATS["u64"]
    if entry_bytes_of(head):
        return FORMATS["drmemtrace"]
    if _TEXT.search(head):
        return FORMATS["lackey"]
    for candidate in ("champsim", "cloudsuite"):
        if _is_champsim(head, _INSTRUCTION_BYTES[candidate]):
            return FORMATS[candidate]
    if not head:
        raise InputError(f"the stream {name} is empty")
    raise InputError(
        f"{name!r} is no kind of stream that shows what it is",
        hint=f"say which: --from {', '.join(FORMATS)}; raw records are in files named *.u64",
    )


def entry_bytes_of(head: bytes) -> int:
    """Return the size of the entries of a drmemtrace file by its header; 0 if there is none.

    The first entry is a header with the version as its address, the second a marker or a thread.
    """
    for size, address_at, address_bytes in ((12, 4, 8), (16, 8, 8), (8, 4, 4)):
        if len(head) < 2 * size or int.from_bytes(head[:2], "little") != _HEADER:
            continue
        version = int.from_bytes(head[address_at : address_at + address_bytes], "little")
        following = int.from_bytes(head[size : size + 2], "little")
        if 0 < version < _LATEST and following in (_MARKER, _THREAD):
            return size
    return 0


def _is_champsim(head: bytes, size: int) -> bool:
    """Tell whether every instruction has 0 or 1 for its two flags, and a user-mode address."""
    starts = range(0, min(len(head), _LOOKED_AT * size) - size + 1, size)
    return len(starts) >= _LEAST and all(
        head[at + 8] <= 1
        and head[at + 9] <= head[at + 8]
        and 0 < int.from_bytes(head[at : at + 8], "little") < _CANONICAL
        for at in starts
    )
