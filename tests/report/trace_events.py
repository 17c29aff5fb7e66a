"""The rules of the Trace Event Format that a viewer relies on, independent of what writes it.

Source: "Trace Event Format" (the Chromium project's document), object format: a list `traceEvents`
of objects with `name`, `ph`, `pid`, `tid`, `ts` in microseconds; `dur` for complete events (X), a
scope `s` for instants (i), numbers in `args` for counters (C), a `name` or `sort_index` in `args`
for metadata (M); `displayTimeUnit` is "ms" or "ns"; slices of one thread nest perfectly.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from numbers import Number
from typing import Any

_METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}


def check_trace(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Hold a document against the rules; return its events by phase."""
    assert document["displayTimeUnit"] in ("ms", "ns")
    phases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    named: set[tuple[int, int]] = set()
    for event in document["traceEvents"]:
        _check_event(event)
        phases[event["ph"]].append(event)
        if event["ph"] == "M" and event["name"] == "thread_name":
            named.add((event["pid"], event["tid"]))
    for event in phases["X"] + phases["i"]:
        assert (event["pid"], event["tid"]) in named, "a track without a name"
        assert event["tid"] != 0, "thread 0 is the idle task"
    _check_nesting(phases["X"])
    return phases


def _check_event(event: dict[str, Any]) -> None:
    assert isinstance(event["name"], str)
    assert event["name"]
    for key in ("pid", "tid"):
        assert type(event[key]) is int
    assert isinstance(event["ts"], Number)
    assert event["ts"] >= 0
    assert isinstance(event["args"], dict)
    phase = event["ph"]
    if phase == "X":
        assert isinstance(event["dur"], Number)
        assert event["dur"] >= 0
    elif phase == "i":
        assert event["s"] in ("g", "p", "t")
    elif phase == "C":
        assert event["args"]
        assert all(isinstance(value, Number) for value in event["args"].values())
    elif phase == "M":
        assert _METADATA[event["name"]] in event["args"]
    else:
        raise AssertionError(f"phase {phase!r}")


def _check_nesting(slices: list[dict[str, Any]]) -> None:
    tracks: dict[tuple[int, int], list[tuple[Decimal, Decimal]]] = defaultdict(list)
    for event in slices:
        start = Decimal(str(event["ts"]))
        tracks[event["pid"], event["tid"]].append((start, start + Decimal(str(event["dur"]))))
    for spans in tracks.values():
        open_: list[Decimal] = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_ and open_[-1] <= start:
                open_.pop()
            assert not open_ or end <= open_[-1], "slices overlap in part"
            open_.append(end)
