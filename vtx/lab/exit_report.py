"""A trace of VM exits as tables, JSON and CSV, with the columns of ``perf kvm stat``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtx.facts.exits import ExitReason
from vtx.lab.exit_rows import PERCENTILES, ExitRow, Lines, Tally, Times, VcpuRow
from vtx.lab.exit_watch import SingleExit, Slow, Storm
from vtx.lab.report import counted
from vtx.lab.table import Column, Table

__all__ = ["SCHEMA", "ExitReport", "compare_tables", "csv_rows"]

SCHEMA = "vtx.exits/1"


@dataclass
class ExitReport:
    """What a trace, or a report of ``perf kvm stat``, says about VM exits.

    Parameters
    ----------
    name : str
        The file.
    form : str
        ``"trace"``, ``"xenalyze"`` or ``"perf kvm stat"``.
    rows : list of ExitRow
        By reason, in order.
    total : Tally
        All of them.
    lines : Lines
        What became of the lines.
    events : mapping of str to int
        Events used, by kind.
    warnings : list of str
        What the reader should know about the figures, one sentence each.
    first_ns, last_ns : int, optional
        Stamps of the first and the last exit.
    vcpus, slices, slowest, longer, longer_counts, storms
        The views that were asked for.
    than_ns : int, optional
        What `longer` are longer than.
    flags : int
        What is known of at least one exit: bits of :class:`vtx.machine.exit_scanner.ExitFlag`.
    below : callable, optional
        Tells of the exits of a reason how many took less than some nanoseconds, and how long
        together; None for a report, which has no single exits.
    """

    name: str
    form: str
    rows: list[ExitRow]
    total: Tally
    lines: Lines
    events: Mapping[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    first_ns: int | None = None
    last_ns: int | None = None
    vcpus: Sequence[VcpuRow] = ()
    slices: Sequence[tuple[int, VcpuRow]] = ()
    slowest: Sequence[Slow] = ()
    than_ns: int | None = None
    longer: Sequence[SingleExit] = ()
    longer_counts: Mapping[str, int] = field(default_factory=dict)
    storms: Sequence[Storm] = ()
    flags: int = 0
    below: Callable[[str, int], tuple[int, int]] | None = None

    @property
    def span_ns(self) -> int | None:
        """From the first to the last exit."""
        if self.first_ns is None or self.last_ns is None:
            return None
        return self.last_ns - self.first_ns

    def sort(self, by: str) -> None:
        """Order the rows by ``"time"`` or ``"samples"``, each table of a report by itself."""

        def weight(row: ExitRow) -> tuple[int, float, float]:
            time = row.times.total if row.times else 0.0
            first, second = (time, row.samples) if by == "time" else (row.samples, time)
            return (row.table, -first, -second)

        self.rows.sort(key=weight)

    def table_totals(self) -> dict[int, Tally]:
        """Return the sum of each table's rows."""
        totals: dict[int, Tally] = {}
        for row in self.rows:
            whole = totals.setdefault(row.table, Tally())
            times = row.times
            plain = times and Times(
                times.samples, times.total, times.least, times.most, times.mean, times.squares
            )
            whole.add(row.samples, plain)
        return totals

    # ---- JSON -----------------------------------------------------------------------------------

    def as_dict(self, details: int) -> dict[str, Any]:
        """Return the document that JSON shows, with so many details below each row."""
        totals = self.table_totals()
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "trace": {
                "file": self.name,
                "form": self.form,
                "first_ns": self.first_ns,
                "last_ns": self.last_ns,
            },
            "samples": self.total.samples,
            "time_ns": _times_dict(self.total.times),
            "rows": [_row_dict(row, totals[row.table], details) for row in self.rows],
            "lines": {
                "read": self.lines.read,
                "used": self.lines.used,
                "skipped": dict(self.lines.skipped),
            },
            "events": dict(self.events),
            "warnings": self.warnings,
            "storms": [
                {**_single_dict(storm.first), "line": storm.line, "samples": storm.samples}
                for storm in self.storms[:100]
            ],
            "slowest": [
                {
                    **_single_dict(slow.exit),
                    "before": [_single_dict(exit) for exit in slow.before],
                    "after": [_single_dict(exit) for exit in slow.after],
                }
                for slow in self.slowest
            ],
        }
        document.update(self._views())
        return document

    def _views(self) -> Iterator[tuple[str, Any]]:
        if self.vcpus:
            yield "vcpus", [_part_dict(row) for row in self.vcpus]
        if self.slices:
            yield "slices", [{"start_ns": at, **_part_dict(row)} for at, row in self.slices]
        if self.than_ns is not None:
            yield (
                "longer",
                {
                    "than_ns": self.than_ns,
                    "samples": sum(self.longer_counts.values()),
                    "reasons": dict(self.longer_counts),
                    "longest": [_single_dict(exit) for exit in self.longer],
                },
            )

    # ---- Tables ---------------------------------------------------------------------------------

    def tables(self, details: int) -> list[Table]:
        """Return what a terminal shows."""
        tables = list(self._exit_tables(details))
        if self.vcpus:
            tables.append(_parts_table("vCPU", self.vcpus, self.total))
        if self.slices:
            tables.append(_parts_table("from s", [row for _, row in self.slices], self.total))
        if self.than_ns is not None:
            tables.append(self._longer_table())
        if self.slowest:
            tables.append(_slowest_table(self.slowest))
        if self.storms:
            tables.append(_storms_table(self.storms))
        last = tables[-1]
        closing = [*last.remarks, *self.warnings, f"{self.name}: {self.lines}"]
        tables[-1] = Table(last.title, last.columns, last.rows, closing)
        return tables

    def _exit_tables(self, details: int) -> Iterator[Table]:
        totals = self.table_totals()
        for number, whole in sorted(totals.items()):
            rows = [row for row in self.rows if row.table == number]
            title = f"VM exits in {self.name}"
            if len(totals) > 1:
                title += f", table {number} of {len(totals)}"
            elif self.span_ns:
                title += f" ({self.span_ns / 1e9:,.6f} s)"
            total = self.total if len(totals) == 1 else whole
            yield _exit_table(title, rows, total, details)

    def _longer_table(self) -> Table:
        counts = sum(self.longer_counts.values())
        assert self.than_ns is not None
        by_reason = ", ".join(
            f"{count:,} {reason}"
            for reason, count in sorted(self.longer_counts.items(), key=lambda item: -item[1])
        )
        title = f"{counted(counts, 'exit')} longer than {_microseconds(self.than_ns)} us"
        rows = [_single_cells(exit) for exit in self.longer[:20]]
        remarks = [by_reason] if by_reason else []
        return Table(title, _SINGLE_COLUMNS, rows, remarks)


# ---- Dictionaries ------------------------------------------------------------------------------


def _times_dict(times: Times | None) -> dict[str, Any] | None:
    return None if times is None else times.as_dict()


def _row_dict(row: ExitRow, whole: Tally, details: int) -> dict[str, Any]:
    spent = whole.times.total if whole.times else 0
    entry: dict[str, Any] = {
        "reason": row.reason,
        "number": row.number,
        "name": None if row.number is None else ExitReason(row.number).name,
        "samples": row.samples,
        "samples_percent": 100 * row.samples / whole.samples,
        "time_percent": 100 * row.times.total / spent if row.times and spent else None,
        "time_ns": _times_dict(row.times),
    }
    if row.note:
        entry["note"] = row.note
    if row.levels:
        entry["levels"] = [{"level": k, **_tally_dict(t)} for k, t in row.levels.items()]
    if row.details:
        entry["details"] = [{"detail": k, **_tally_dict(t)} for k, t in row.details[:details]]
        entry["details_left_out"] = max(0, len(row.details) - details)
    if row.table > 1:
        entry["table"] = row.table
    return entry


def _tally_dict(tally: Tally) -> dict[str, Any]:
    return {"samples": tally.samples, "time_ns": _times_dict(tally.times)}


def _part_dict(part: VcpuRow) -> dict[str, Any]:
    return {
        "label": part.label,
        **_tally_dict(part.tally),
        "rows": [{"reason": k, **_tally_dict(t)} for k, t in part.reasons.items()],
    }


def _single_dict(exit: SingleExit) -> dict[str, Any]:
    return {
        "line": exit.line,
        "reason": exit.reason,
        "detail": exit.detail or None,
        "time_ns": exit.time_ns,
        "duration_ns": exit.duration_ns,
        "rip": None if exit.rip is None else f"{exit.rip:#x}",
        "vcpu": exit.vcpu,
        "thread": exit.thread,
        "level": exit.level or None,
        "userspace": exit.userspace or None,
    }


# ---- Tables -------------------------------------------------------------------------------------

_EXIT_COLUMNS = (
    Column("exit reason"),
    Column("samples", True),
    Column("samples %", True),
    Column("time %", True),
    Column("min us", True),
    Column("max us", True),
    Column("avg us", True),
    Column("+-", True),
    *(Column(f"p{p} us", True) for p in PERCENTILES),
)
_NO_TIME = "-"


def _microseconds(ns: float) -> str:
    return f"{ns / 1000:,.2f}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else _NO_TIME


def _tally_cells(name: str, tally: Tally, whole: Tally) -> list[str]:
    cells = [name, f"{tally.samples:,}", _percent(tally.samples, whole.samples)]
    times = tally.times
    if times is None:
        return [*cells, *[_NO_TIME] * (len(_EXIT_COLUMNS) - len(cells))]
    assert whole.times is not None
    error = times.error
    return [
        *cells,
        _percent(times.total, whole.times.total),
        *map(_microseconds, (times.least, times.most, times.mean)),
        _NO_TIME if error is None else f"{error:.2%}",
        *(
            _microseconds(times.percentiles[p]) if p in times.percentiles else _NO_TIME
            for p in PERCENTILES
        ),
    ]


def _exit_table(title: str, rows: Sequence[ExitRow], whole: Tally, details: int) -> Table:
    lines = []
    for row in rows:
        name = f"{row.reason} ({row.note})" if row.note else row.reason
        lines.append(_tally_cells(name, row.tally, whole))
        parts = [*row.levels.items(), *row.details[:details]] if details else []
        lines += [_tally_cells(f"  {text}", tally, whole) for text, tally in parts]
        left = len(row.details) - details
        if details and left > 0:
            rest = sum(tally.samples for _, tally in row.details[details:])
            lines.append([f"  {left:,} more", f"{rest:,}", *[""] * (len(_EXIT_COLUMNS) - 2)])
    lines.append(_tally_cells("total", whole, whole))
    remarks = []
    if whole.times is None:
        remarks.append("No durations: the trace has no stamps, or no entry behind an exit.")
    else:
        remarks.append(
            f"Handling took {_microseconds(whole.times.total)} us in all; +- is the standard "
            "error of the mean."
        )
        unknown = whole.samples - whole.times.samples
        if unknown:
            verb = "counts as a sample" if unknown == 1 else "count as samples"
            remarks.append(f"{counted(unknown, 'exit')} {verb}, but the duration is unknown.")
    return Table(title, _EXIT_COLUMNS, lines, remarks)


def _parts_table(what: str, parts: Sequence[VcpuRow], whole: Tally) -> Table:
    columns = (Column(what), *_EXIT_COLUMNS[1:], Column("most time in"))
    rows = []
    for part in parts:
        most = ", ".join(list(part.reasons)[:3])
        rows.append([*_tally_cells(part.label, part.tally, whole), most])
    return Table("", columns, rows)


_SINGLE_COLUMNS = (
    Column("line", True),
    Column("time s", True),
    Column("us", True),
    Column("exit reason"),
    Column("detail"),
    Column("rip"),
    Column("vCPU"),
)


def _single_cells(exit: SingleExit, indent: str = "") -> list[str]:
    detail = [exit.detail, exit.level, exit.userspace]
    thread = f" thread {exit.thread}" if exit.thread else ""
    return [
        f"{exit.line:,}",
        _NO_TIME if exit.time_ns is None else f"{exit.time_ns / 1e9:.6f}",
        _NO_TIME if exit.duration_ns is None else _microseconds(exit.duration_ns),
        indent + exit.reason,
        ", ".join(filter(None, detail)),
        _NO_TIME if exit.rip is None else f"{exit.rip:#x}",
        f"{'?' if exit.vcpu is None else exit.vcpu}{thread}",
    ]


def _slowest_table(slowest: Sequence[Slow]) -> Table:
    rows = []
    for slow in slowest:
        rows += [_single_cells(exit, "  ") for exit in slow.before]
        rows.append(_single_cells(slow.exit, "> "))
        rows += [_single_cells(exit, "  ") for exit in slow.after]
    remarks = ["> the slowest exits, among those of the same vCPU; HLT is left out."]
    return Table("Slowest exits", _SINGLE_COLUMNS, rows, remarks)


def _storms_table(storms: Sequence[Storm]) -> Table:
    columns = (
        Column("in a row", True),
        Column("from line", True),
        Column("exit reason"),
        Column("detail"),
        Column("rip"),
        Column("vCPU"),
    )
    rows = []
    for storm in storms[:10]:
        cells = _single_cells(storm.first)
        rows.append([f"{storm.samples:,}", f"{storm.line:,}", *cells[3:]])
    remarks = ["The same exit at the same instruction again and again."]
    if len(storms) > len(rows):
        remarks.append(f"Left out: {len(storms) - len(rows):,} shorter.")
    return Table("Storms", columns, rows, remarks)


# ---- Two traces --------------------------------------------------------------------------------

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
        return _NO_TIME
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
            ("mean_ns", _microseconds),
        ):
            new, old = entry["trace"][key], entry["baseline"][key]
            cells += [_NO_TIME if v is None else show(v) for v in (new, old)]
            cells.append(_change(new, old))
        for which in ("trace", "baseline"):
            share = entry[which]["time_percent"]
            cells.append(_NO_TIME if share is None else f"{share:.2f}")
        rows.append(cells)
    remarks = []
    for side in (report, baseline):
        remarks += [
            *(f"{side.name}: {text}" for text in side.warnings),
            f"{side.name}: {side.lines}",
        ]
    return [Table(f"{report.name} against {baseline.name}", _COMPARE_COLUMNS, rows, remarks)]


# ---- CSV ---------------------------------------------------------------------------------------

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
