"""Writers of the formats of other tools, from their documentation alone.

They know nothing of vtx.streams: records that it reads are compared with what went in here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FETCH, LOAD, STORE, MODIFY = range(4)


class Ref(NamedTuple):
    """One reference."""

    kind: int
    size: int
    address: int

    @property
    def record(self) -> int:
        """As formats.md of the project's own records has it."""
        return self.kind << 62 | self.size << 48 | self.address & (1 << 48) - 1


def lackey(refs: list[Ref]) -> bytes:
    """What ``valgrind --tool=lackey --trace-mem=yes`` prints."""
    heads = ("I ", " L", " S", " M")
    lines = [f"{heads[r.kind]} {r.address & (1 << 64) - 1:08x},{r.size}\n" for r in refs]
    return "".join(lines).encode()


_NAMES = """
READ WRITE PREFETCH PREFETCHT0 PREFETCHT1 PREFETCHT2 PREFETCHNTA PREFETCH_READ
PREFETCH_WRITE PREFETCH_INSTR INSTR INSTR_DIRECT_JUMP INSTR_INDIRECT_JUMP
INSTR_CONDITIONAL_JUMP INSTR_DIRECT_CALL INSTR_INDIRECT_CALL INSTR_RETURN INSTR_BUNDLE
INSTR_FLUSH INSTR_FLUSH_END DATA_FLUSH DATA_FLUSH_END THREAD THREAD_EXIT PID HEADER FOOTER
HARDWARE_PREFETCH MARKER INSTR_NO_FETCH INSTR_MAYBE_FETCH INSTR_SYSENTER
PREFETCH_READ_L1_NT PREFETCH_READ_L2_NT PREFETCH_READ_L3_NT PREFETCH_INSTR_L1
PREFETCH_INSTR_L1_NT PREFETCH_INSTR_L2 PREFETCH_INSTR_L2_NT PREFETCH_INSTR_L3
PREFETCH_INSTR_L3_NT PREFETCH_WRITE_L1 PREFETCH_WRITE_L1_NT PREFETCH_WRITE_L2
PREFETCH_WRITE_L2_NT PREFETCH_WRITE_L3 PREFETCH_WRITE_L3_NT ENCODING INSTR_TAKEN_JUMP
INSTR_UNTAKEN_JUMP
"""
#: trace_type_t of DynamoRIO's trace_entry.h, by the names there.
TYPES = {name: number for number, name in enumerate(_NAMES.split())}
MARKER_VERSION, MARKER_FILETYPE = 12, 9
_ENTRIES = {8: "<HHI", 12: "<HHQ", 16: "<HHxxxxQ"}


def entry(type_: str | int, size: int = 0, address: int = 0, *, width: int = 12) -> bytes:
    """One trace_entry_t: packed with addresses of 64 or 32 bits, or with a compiler's padding."""
    number = type_ if isinstance(type_, int) else TYPES[type_]
    return struct.pack(_ENTRIES[width], number, size, address)


def bundle(*lengths: int, width: int = 12) -> bytes:
    """An INSTR_BUNDLE: lengths of instructions that follow the last one."""
    data = bytes(lengths).ljust(4 if width == 8 else 8, b"\0")
    return entry("INSTR_BUNDLE", len(lengths), int.from_bytes(data, "little"), width=width)


def head(tid: int = 100, pid: int = 10, *, width: int = 12) -> bytes:
    """What an offline trace of one thread begins with."""
    parts = [
        ("HEADER", 0, 5),
        ("MARKER", MARKER_VERSION, 5),
        ("MARKER", MARKER_FILETYPE, 0x240),
        ("THREAD", 0, tid),
        ("PID", 0, pid),
    ]
    return b"".join(entry(*part, width=width) for part in parts)


def foot(tid: int = 100, *, width: int = 12) -> bytes:
    """What it ends with."""
    return entry("THREAD_EXIT", 0, tid, width=width) + entry("FOOTER", width=width)


def instruction(ip: int, loads: tuple[int, ...] = (), stores: tuple[int, ...] = ()) -> bytes:
    """One input_instr of ChampSim: 64 bytes."""
    sources = (*loads, 0, 0, 0, 0)[:4]
    destinations = (*stores, 0, 0)[:2]
    return struct.pack("<QBB2B4B2Q4Q", ip, 1, 0, 1, 2, 3, 4, 5, 6, *destinations, *sources)


def cloudsuite(ip: int, loads: tuple[int, ...] = (), stores: tuple[int, ...] = ()) -> bytes:
    """One cloudsuite_instr of ChampSim: 96 bytes with the compiler's padding."""
    sources = (*loads, 0, 0, 0, 0)[:4]
    destinations = (*stores, 0, 0, 0, 0)[:4]
    registers = (1, 2, 3, 4, 5, 6, 7, 8)
    return struct.pack("<QBB8B6x4Q4Q2B6x", ip, 0, 0, *registers, *destinations, *sources, 7, 7)
