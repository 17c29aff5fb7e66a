"""A second reader of traces, in Python and slow: unwrap, match, pair."""

from __future__ import annotations

import re
from typing import Any

_STAMP = re.compile(r"(\d+)\.(\d{6,9}):")
_EVENT = re.compile(r"(?:^|[\s:])(kvm_\w+):(?:\s|$)")
_THREAD = re.compile(r"(?:-|\s|/)(\d+)\s+(?:\(.*?\)\s+)?(?:\S+\s+)?\[\d+\]")
_STARTS = re.compile(r"\[\d+\]\s.*?\d+\.\d+:|^\S*\s*kvm_\w+:")
_EXIT = re.compile(
    r"reason:? (UNKNOWN \(-?\d+\)|\S+)(?: FAILED_VMENTRY)? ?(?:rip:? (?:0x)?([0-9a-f]+))?"
)


def unwrapped(text: str) -> list[str]:
    """Join lines that a mail program broke."""
    lines: list[str] = []
    for raw in text.split("\n"):
        line = re.sub(r"^(\s*>)+", "", raw.replace("\u00a0", " ")).strip()
        if not line or line.startswith("#"):
            continue
        bare = re.match(r"(kvm:)?kvm_\w+:", line)
        open_end = lines and re.search(r"\d\.\d{6,}:$", lines[-1])
        if (re.search(r"\[\d+\]", line) and not bare) or (bare and not open_end) or not lines:
            lines.append(line)
        else:
            lines[-1] += " " + line
    return lines


def exits(text: str) -> list[dict[str, Any]]:
    """Return reason, rip, time and duration of every exit, in the order of the exits."""
    found: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    for line in unwrapped(text):
        event = _EVENT.search(line)
        if event is None:
            continue
        stamp, thread = _STAMP.search(line), _THREAD.search(line)
        time = None
        if stamp:
            time = int(stamp[1]) * 10**9 + int(stamp[2].ljust(9, "0"))
        tid = thread[1] if thread else ""
        if event[1] == "kvm_exit":
            said = _EXIT.search(line, event.end())
            if said is None:
                continue
            rip = int(said[2], 16) if said[2] else None
            entry = {"reason": said[1], "rip": rip, "time_ns": time, "duration_ns": None}
            found.append(entry)
            waiting[tid] = entry
        elif event[1] == "kvm_entry" and tid in waiting:
            entry = waiting.pop(tid)
            if time is not None and entry["time_ns"] is not None and time >= entry["time_ns"]:
                entry["duration_ns"] = time - entry["time_ns"]
    return found
