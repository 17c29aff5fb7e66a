"""The exits of a recording, as a list to go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vtx.lab.exit_details import record_detail
from vtx.lab.exit_reasons import reason_number
from vtx.machine.exit_scanner import ExitFlag
from vtx.report.columns import choices, numbers, words
from vtx.report.decoding import EVENT, Layouts, reason_text
from vtx.report.exit_lists import column, word
from vtx.report.exit_tap import FIRST_KEPT, SLOWEST_KEPT, ExitTap
from vtx.report.page import ExitList

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["recorded_exits"]


def recorded_exits(tap: ExitTap) -> ExitList | None:
    """Return the exits that were kept of a recording; None if there is none."""
    records = tap.kept()
    if not len(records):
        return None
    reasons = [reason_number(name) for name in tap.names]
    layouts = Layouts()
    data = {
        "count": len(records),
        "columns": [*_columns(records, tap, reasons), *_rare_columns(records, tap)],
        "shown": ["line", "time", "duration", "reason", "detail", "rip", "vcpu"],
        "orders": [
            {"key": "", "title": "as they came"},
            {"key": "duration", "title": "slowest first"},
        ],
        "addresses": ["rip", "qualification", "detail"],
        "words": _words(records, reasons, layouts),
        "reasons": [
            reason_text(number, name) for number, name in zip(reasons, tap.names, strict=True)
        ],
        "layouts": layouts.described(),
        "changes": None,
    }
    return ExitList(_which(tap.count, len(records)), data)


def _which(count: int, kept: int) -> str:
    if count == kept:
        return f"All {count:,} exits of the trace, those of all vCPUs in one list."
    return (
        f"{kept:,} of {count:,} exits: the first {FIRST_KEPT:,} and the slowest {SLOWEST_KEPT:,} "
        "of the others. Charts and tables count all."
    )


def _flagged(records: NDArray[Any], name: str, flag: ExitFlag, scale: float) -> NDArray[Any]:
    """Return a column as floats, NaN where it is not known."""
    import numpy as np

    known = records["flags"] & flag != 0
    return np.where(known, records[name].astype(np.float64) / scale, np.nan)


def _columns(
    records: NDArray[Any], tap: ExitTap, reasons: Sequence[int | None]
) -> list[dict[str, Any]]:
    flags, index = records["flags"], records["reason"]
    details = [
        record_detail(record, reasons[reason])
        for record, reason in zip(records, index.tolist(), strict=True)
    ]
    time = _flagged(records, "time_ns", ExitFlag.TIME, 1e9)
    duration = _flagged(records, "duration_ns", ExitFlag.DURATION, 1e3)
    line = records["line"]
    return [
        column("line", "line", "4rem", numbers(line), figures=True),
        column("time", "time s", "7rem", numbers(time), figures=True, digits=6),
        column("duration", "µs", "5rem", numbers(duration), figures=True, digits=2),
        column("reason", "reason", "minmax(10rem,2fr)", choices(tap.names, index)),
        column("detail", "detail", "minmax(8rem,2fr)", _texts(details)),
        column(
            "rip", "RIP", "minmax(10.5rem,1fr)", words(records["rip"], flags & ExitFlag.RIP != 0)
        ),
        column("vcpu", "vCPU", "2.5rem", _texts(_labels(records, lambda v, t: _vcpu(v)))),
    ]


def _rare_columns(records: NDArray[Any], tap: ExitTap) -> list[dict[str, Any]]:
    """Return what only the view of one exit shows."""
    flags = records["flags"]
    info1 = words(records["info1"], flags & ExitFlag.INFO1 != 0)
    event = words(records["intr_info"], flags & ExitFlag.INTR_INFO != 0)
    error = words(records["error_code"], flags & ExitFlag.ERROR_CODE != 0)
    levels = ["", "L2 (nested guest)"]
    user = ["", *tap.names]
    vector = [""] + [f"vector {number:#x}" for number in range(256)]
    import numpy as np

    injected = np.where(flags & ExitFlag.INJECTED != 0, records["vector"].astype(np.int64) + 1, 0)
    what = "domain" if tap.xen else "thread"
    return [
        column("qualification", "info1 (exit qualification)", "", info1),
        column("event", "intr_info", "", event),
        column("error", "error code", "", error),
        column("thread", what, "", _texts(_labels(records, lambda v, t: str(t or "")))),
        column("level", "level", "", choices(levels, (flags & ExitFlag.L2 != 0) * 1)),
        column("userspace", "on to user space", "", choices(user, records["userspace"])),
        column("injected", "injected before entry", "", choices(vector, injected & 0x1FF)),
    ]


def _vcpu(number: int) -> str:
    return "?" if number < 0 else str(number)


def _labels(records: NDArray[Any], label: Callable[[int, int], str]) -> list[str]:
    pairs = zip(records["vcpu"].tolist(), records["tid"].tolist(), strict=True)
    return [label(vcpu, thread) for vcpu, thread in pairs]


def _texts(texts: Sequence[str]) -> dict[str, Any]:
    places: dict[str, int] = {}
    index = [places.setdefault(text, len(places)) for text in texts]
    return choices(list(places), index)


def _words(
    records: NDArray[Any], reasons: Sequence[int | None], layouts: Layouts
) -> list[dict[str, Any]]:
    events = records["intr_info"].tolist()
    pairs = [
        layouts.numbers(reasons[reason], event)
        for reason, event in zip(records["reason"].tolist(), events, strict=True)
    ]
    event = layouts.number(EVENT)
    return [
        word("qualification", "Exit qualification", [q for q, _ in pairs], skip_zero=False),
        word("event", "VM-exit interruption information", [event] * len(records)),
    ]
