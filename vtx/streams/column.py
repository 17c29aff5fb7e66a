r"""The column file: a header of 64 bytes, then the records.

======  =====  ==================================================================
offset  bytes  content (little-endian)
======  =====  ==================================================================
0       8      magic: 89 56 54 58 52 45 46 0A (``\x89VTXREF\n``)
8       4      01020304 hexadecimal: the byte order
12      4      version: 1
16      4      offset of the first record: 64
20      4      bytes of a record: 8
24      8      number of records
32      4 x 8  number of fetches, loads, stores, modifies
======  =====  ==================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vtx.errors import InputError
from vtx.streams.record import RECORD_BYTES

__all__ = ["HEADER_BYTES", "MAGIC", "VERSION", "Header", "is_column", "read_header"]

MAGIC = b"\x89VTXREF\n"
VERSION = 1
HEADER_BYTES = 64
_ORDER = 0x01020304
_LAYOUT = struct.Struct("<8sIIIIQ4Q")


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a column file says.

    Attributes
    ----------
    count : int
        Number of records.
    kinds : tuple of 4 int
        Of them fetches, loads, stores and modifies.
    """

    count: int
    kinds: tuple[int, int, int, int]

    def to_bytes(self) -> bytes:
        """Return the header as it stands in a file."""
        return _LAYOUT.pack(
            MAGIC, _ORDER, VERSION, HEADER_BYTES, RECORD_BYTES, self.count, *self.kinds
        )


def is_column(head: bytes) -> bool:
    """Tell whether a file begins as a column file does."""
    return head.startswith(MAGIC)


def read_header(head: bytes, name: str) -> Header:
    """Read the header of a column file.

    Raises
    ------
    InputError
        It is cut off, of another version, or contradicts itself.
    """
    if len(head) < HEADER_BYTES:
        raise InputError(f"the stream {name} is truncated: its header has {len(head)} bytes")
    _, order, version, offset, record, count, *kinds = _LAYOUT.unpack_from(head)
    if order != _ORDER:
        raise InputError(f"the stream {name} is damaged: its byte order is {order:#010x}")
    if version != VERSION:
        raise InputError(
            f"the stream {name} is of version {version}, and this vtx reads version {VERSION}"
        )
    if offset != HEADER_BYTES or record != RECORD_BYTES or sum(kinds) != count:
        raise InputError(f"the stream {name} is damaged: its header contradicts itself")
    fetches, loads, stores, modifies = kinds
    return Header(count, (fetches, loads, stores, modifies))
