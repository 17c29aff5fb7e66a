"""What a recording of VM exits says: its tables and its JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtx.facts.exits import ExitReason
from vtx.lab.exit_rows import ExitRow, Lines, Tally, Times, VcpuRow
from vtx.lab.exit_tables import (
    SINGLE_COLUMNS,
    exit_table,
    microseconds,
    parts_table,
    single_cells,
    slowest_table,
    storms_table,
)
from vtx.lab.exit_watch import SingleExit, Slow, Storm
from vtx.lab.report import counted
from vtx.lab.table import Table

__all__ = ["SCHEMA", "ExitReport"]

SCHEMA = "vtx.exits/1"


@dataclass
class ExitReport:
    """What a trace, or a report of ``perf kvm stat``, says about VM exits.

    Parameters
    ----------
    name : str
        The file.
    form : str
        ``"trace"``, ``"xenalyze"``, ``"xenalyze summary"`` or ``"perf kvm stat"``.
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

    def _repr_html_(self) -> str:
        """Return the tables as notebooks show them."""
        return "".join(table._repr_html_() for table in self.tables(5))

    def to_pandas(self) -> Any:
        """Return one row for each exit reason, times in nanoseconds, as a pandas.DataFrame.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from vtx.lab.frames import flat, frame

        return frame(flat(row) for row in self.as_dict(0)["rows"])

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
            tables.append(parts_table("vCPU", self.vcpus, self.total))
        if self.slices:
            tables.append(parts_table("from s", [row for _, row in self.slices], self.total))
        if self.than_ns is not None:
            tables.append(self._longer_table())
        if self.slowest:
            tables.append(slowest_table(self.slowest))
        if self.storms:
            tables.append(storms_table(self.storms))
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
            yield exit_table(title, rows, total, details)

    def _longer_table(self) -> Table:
        counts = sum(self.longer_counts.values())
        assert self.than_ns is not None
        by_reason = ", ".join(
            f"{count:,} {reason}"
            for reason, count in sorted(self.longer_counts.items(), key=lambda item: -item[1])
        )
        title = f"{counted(counts, 'exit')} longer than {microseconds(self.than_ns)} us"
        rows = [single_cells(exit) for exit in self.longer[:20]]
        remarks = [by_reason] if by_reason else []
        return Table(title, SINGLE_COLUMNS, rows, remarks)


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
