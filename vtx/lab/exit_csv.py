"""Recorded exits as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_rows import PERCENTILES, Tally

__all__ = ["csv_rows"]

_TIME_FIELDS = ("samples", "total", "min", "max", "mean", "stddev", "relative_error")
CSV_HEAD = (
    "view", "part", "reason", "detail", "samples",
    *(f"timed_{key}" if key == "samples" else f"{key}_ns" if key != "relative_error" else key
      for key in _TIME_FIELDS),
    *(f"p{p}_ns" for p in PERCENTILES),
)  # fmt: skip


def _csv_row(view: str, part: str, reason: str, detail: str, tally: Tally) -> list[object]:
    figures = tally.times.as_dict() if tally.times else {}
    keys = (*_TIME_FIELDS, *(f"p{p}" for p in PERCENTILES))
    cells = ["" if figures.get(key) is None else figures[key] for key in keys]
    return [view, part, reason, detail, tally.samples, *cells]


def csv_rows(report: ExitReport, details: int) -> Iterator[Sequence[object]]:
    """Yield the heading and one row for each reason, detail, vCPU and slice."""
    yield CSV_HEAD
    for row in report.rows:
        part = str(row.table) if row.table > 1 else ""
        yield _csv_row("reason", part, row.reason, row.note, row.tally)
        for level, tally in row.levels.items():
            yield _csv_row("level", part, row.reason, level, tally)
        for text, tally in row.details[:details]:
            yield _csv_row("detail", part, row.reason, text, tally)
    slices = [row for _, row in report.slices]
    for view, parts in (("vcpu", report.vcpus), ("slice", slices)):
        for whole in parts:
            yield _csv_row(view, whole.label, "", "", whole.tally)
            for reason, tally in whole.reasons.items():
                yield _csv_row(view, whole.label, reason, "", tally)
    yield _csv_row("total", "", "", "", report.total)
