"""Recorded reference streams: their files, and what reads those of other tools.

A record is an unsigned 64-bit number, ``kind << 62 | size << 48 | linear address``: kind 0 is an
instruction fetch, 1 a load, 2 a store, 3 a modify (a load and a store of the same place); size is
in bytes, from 1 to 4096. The files are described in ``docs/streams.md``.
"""

from __future__ import annotations

from vtx.streams.formats import FORMATS, Format
from vtx.streams.record import pack, unpack
from vtx.streams.stream import MAXIMUM_UNPACKED_BYTES, Stream, open_stream
from vtx.streams.summary import Summary
from vtx.streams.writer import write_stream

__all__ = [
    "FORMATS",
    "MAXIMUM_UNPACKED_BYTES",
    "Format",
    "Stream",
    "Summary",
    "open_stream",
    "pack",
    "unpack",
    "write_stream",
]
