"""Two recordings side by side, with what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_rows import ExitRow, Tally, Times
from vtx.lab.exit_tables import NO_TIME, microseconds
from vtx.lab.table import Column, Table

__all__ = ["compare_tables", "compared"]

_COMPARE_COLUMNS = (
    Column("exit reason"),
    *(Column(text, True) for text in ("samples", "baseline", "change")),
    *(Column(text, True) for text in ("per s", "baseline", "change")),
    *(Column(text, True) for text in ("avg us", "baseline", "change")),
    *(Column(text, True) for text in ("time %", "baseline")),
)


def _key(row: ExitRow) -> str:
    return row.reason if row.number is None else str(row.number)


def _joined(report: ExitReport) -> dict[str, ExitRow]:
    """Return the rows by reason; those of several tables together."""
    rows: dict[str, ExitRow] = {}
    for row in report.rows:
        known = rows.setdefault(_key(row), ExitRow(row.reason, row.number, Tally()))
        times = row.times
        plain = times and Times(
            times.samples, times.total, times.least, times.most, times.mean, times.squares
        )
        known.tally.add(row.samples, plain)
    return rows


def _change(new: float | None, old: float | None) -> str:
    if new is None or old is None:
        return NO_TIME
    if not old:
        return "new" if new else "="
    return f"{new / old - 1:+.1%}" if new != old else "="


def compared(report: ExitReport, baseline: ExitReport) -> list[dict[str, Any]]:
    """Return the reasons of two traces side by side, those that changed most in time first."""
    ours, theirs = _joined(report), _joined(baseline)
    rows = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        pair = [side.get(key) for side in (ours, theirs)]
        first = pair[0] or pair[1]
        assert first is not None
        entry: dict[str, Any] = {"reason": first.reason, "number": first.number}
        for which, row, whole in zip(("trace", "baseline"), pair, (report, baseline), strict=True):
            entry[which] = _side(row, whole)
        rows.append(entry)
    return sorted(rows, key=_moved, reverse=True)


def _moved(entry: Mapping[str, Any]) -> tuple[float, int]:
    ours, theirs = entry["trace"], entry["baseline"]
    time = abs((ours["total_ns"] or 0) - (theirs["total_ns"] or 0))
    return (time, abs(ours["samples"] - theirs["samples"]))


def _side(row: ExitRow | None, whole: ExitReport) -> dict[str, Any]:
    samples = row.samples if row else 0
    times = row.times if row else None
    spent = whole.total.times.total if whole.total.times else 0
    return {
        "samples": samples,
        "per_second": samples * 1e9 / whole.span_ns if whole.span_ns else None,
        "mean_ns": times.mean if times else None,
        "total_ns": times.total if times else None,
        "time_percent": 100 * times.total / spent if times and spent else None,
    }


def compare_tables(report: ExitReport, baseline: ExitReport) -> list[Table]:
    """Return two traces side by side as a table."""
    rows = []
    for entry in compared(report, baseline):
        cells = [entry["reason"]]
        for key, show in (
            ("samples", lambda v: f"{v:,}"),
            ("per_second", lambda v: f"{v:,.1f}"),
            ("mean_ns", microseconds),
        ):
            new, old = entry["trace"][key], entry["baseline"][key]
            cells += [NO_TIME if v is None else show(v) for v in (new, old)]
            cells.append(_change(new, old))
        for which in ("trace", "baseline"):
            share = entry[which]["time_percent"]
            cells.append(NO_TIME if share is None else f"{share:.2f}")
        rows.append(cells)
    remarks = []
    for side in (report, baseline):
        remarks += [
            *(f"{side.name}: {text}" for text in side.warnings),
            f"{side.name}: {side.lines}",
        ]
    return [Table(f"{report.name} against {baseline.name}", _COMPARE_COLUMNS, rows, remarks)]
