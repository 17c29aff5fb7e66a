"""Recorded exits as tables, with the columns of ``perf kvm stat``."""

from __future__ import annotations

from collections.abc import Sequence

from vtx.lab.exit_rows import PERCENTILES, ExitRow, Tally, VcpuRow
from vtx.lab.exit_watch import SingleExit, Slow, Storm
from vtx.lab.report import counted
from vtx.lab.table import Column, Table

__all__ = [
    "NO_TIME",
    "SINGLE_COLUMNS",
    "exit_table",
    "microseconds",
    "parts_table",
    "single_cells",
    "slowest_table",
    "storms_table",
]

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
NO_TIME = "-"


def microseconds(ns: float) -> str:
    """Return nanoseconds as microseconds, for a cell."""
    return f"{ns / 1000:,.2f}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else NO_TIME


def _tally_cells(name: str, tally: Tally, whole: Tally) -> list[str]:
    cells = [name, f"{tally.samples:,}", _percent(tally.samples, whole.samples)]
    times = tally.times
    if times is None:
        return [*cells, *[NO_TIME] * (len(_EXIT_COLUMNS) - len(cells))]
    assert whole.times is not None
    error = times.error
    return [
        *cells,
        _percent(times.total, whole.times.total),
        *map(microseconds, (times.least, times.most, times.mean)),
        NO_TIME if error is None else f"{error:.2%}",
        *(
            microseconds(times.percentiles[p]) if p in times.percentiles else NO_TIME
            for p in PERCENTILES
        ),
    ]


def exit_table(title: str, rows: Sequence[ExitRow], whole: Tally, details: int) -> Table:
    """Return the rows of reasons, with their details below them."""
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
            f"Handling took {microseconds(whole.times.total)} us in all; +- is the standard "
            "error of the mean."
        )
        unknown = whole.samples - whole.times.samples
        if unknown:
            verb = "counts as a sample" if unknown == 1 else "count as samples"
            remarks.append(f"{counted(unknown, 'exit')} {verb}, but the duration is unknown.")
    return Table(title, _EXIT_COLUMNS, lines, remarks)


def parts_table(what: str, parts: Sequence[VcpuRow], whole: Tally) -> Table:
    """Return one row for each vCPU or slice of time."""
    columns = (Column(what), *_EXIT_COLUMNS[1:], Column("most time in"))
    rows = []
    for part in parts:
        most = ", ".join(list(part.reasons)[:3])
        rows.append([*_tally_cells(part.label, part.tally, whole), most])
    return Table("", columns, rows)


SINGLE_COLUMNS = (
    Column("line", True),
    Column("time s", True),
    Column("us", True),
    Column("exit reason"),
    Column("detail"),
    Column("rip"),
    Column("vCPU"),
)


def single_cells(exit: SingleExit, indent: str = "") -> list[str]:
    """Return the cells of one exit."""
    detail = [exit.detail, exit.level, exit.userspace]
    thread = f" thread {exit.thread}" if exit.thread else ""
    return [
        f"{exit.line:,}",
        NO_TIME if exit.time_ns is None else f"{exit.time_ns / 1e9:.6f}",
        NO_TIME if exit.duration_ns is None else microseconds(exit.duration_ns),
        indent + exit.reason,
        ", ".join(filter(None, detail)),
        NO_TIME if exit.rip is None else f"{exit.rip:#x}",
        f"{'?' if exit.vcpu is None else exit.vcpu}{thread}",
    ]


def slowest_table(slowest: Sequence[Slow]) -> Table:
    """Return the slowest exits among their neighbours."""
    rows = []
    for slow in slowest:
        rows += [single_cells(exit, "  ") for exit in slow.before]
        rows.append(single_cells(slow.exit, "> "))
        rows += [single_cells(exit, "  ") for exit in slow.after]
    remarks = ["> the slowest exits, among those of the same vCPU; HLT is left out."]
    return Table("Slowest exits", SINGLE_COLUMNS, rows, remarks)


def storms_table(storms: Sequence[Storm]) -> Table:
    """Return the longest storms."""
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
        cells = single_cells(storm.first)
        rows.append([f"{storm.samples:,}", f"{storm.line:,}", *cells[3:]])
    remarks = ["The same exit at the same instruction again and again."]
    if len(storms) > len(rows):
        remarks.append(f"Left out: {len(storms) - len(rows):,} shorter.")
    return Table("Storms", columns, rows, remarks)
