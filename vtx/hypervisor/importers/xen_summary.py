"""Rows of ``xenalyze --summary``: how often each VM exit came, and its mean in cycles."""

from __future__ import annotations

import re

from vtx.errors import InputError
from vtx.hypervisor.importers.source import Source
from vtx.lab.exit_reasons import reason_number
from vtx.lab.exit_rows import ExitRow, Lines, Tally

__all__ = ["is_xen_summary", "read_xen_summary"]

_MOST_BYTES = 16 << 20
_ROW = re.compile(
    r"(?P<name>[A-Za-z_][\w()-]*)\s+(?P<samples>\d+)\s+\d+\.\d+[s%]\s+\d+\.\d+%\s+"
    r"(?P<cycles>\d+)\s+cyc(?:\s*\{.*)?"
)
_MARK = re.compile(rb"\d+\.\d+[s%]\s+\d+\.\d+%\s+\d+\s+cyc\b")


def is_xen_summary(head: bytes) -> bool:
    """Whether a file that starts so is such a summary."""
    return _MARK.search(head) is not None


def read_xen_summary(source: Source) -> tuple[list[ExitRow], Lines]:
    """Add up the rows of every vCPU by exit reason.

    The summary has rows for other things too (run states, devices, vectors); only those that are
    named as an exit reason count. Its times are cycles of a clock that it does not name, so no row
    gets a time; the mean is kept as a note.

    Raises
    ------
    InputError
        No row is a VM exit, or it is longer than any summary.
    """
    data = bytearray()
    chunk = bytearray(1 << 16)
    while count := source.readinto(memoryview(chunk)):
        data += chunk[:count]
        if len(data) > _MOST_BYTES:
            raise InputError("this summary is longer than any summary", file=source.name)
    lines = data.decode("utf-8", "replace").splitlines()
    found: dict[str, tuple[int, int]] = {}
    used, skipped = 0, dict[str, int]()
    for line in lines:
        row = _ROW.fullmatch(line.strip(" \t>"))
        if row is None or reason_number(row["name"]) is None:
            why = "other_event" if row else "no_event" if line.strip() else "blank"
            skipped[why] = skipped.get(why, 0) + 1
            continue
        samples, cycles = found.get(row["name"], (0, 0))
        new = int(row["samples"])
        found[row["name"]] = samples + new, cycles + new * int(row["cycles"])
        used += 1
    if not found:
        raise InputError("no row of this summary is a VM exit", file=source.name)
    rows = [
        ExitRow(
            name,
            reason_number(name),
            Tally(samples, None),
            note=f"mean {cycles // max(samples, 1):,} cycles",
        )
        for name, (samples, cycles) in found.items()
    ]
    return rows, Lines(len(lines), used, skipped)
