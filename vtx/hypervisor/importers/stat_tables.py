"""Tables that ``perf kvm stat report`` printed: counts, means and errors, but no single exit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vtx.errors import InputError
from vtx.hypervisor.importers.source import Source
from vtx.lab.exit_reasons import is_amd, reason_number
from vtx.lab.exit_rows import ExitRow, Lines, Tally, Times

__all__ = ["StatTable", "is_recording", "is_stat_report", "read_stat_report"]

_MOST_BYTES = 16 << 20
_ROW = re.compile(
    r"(?P<name>[A-Za-z_][\w ()]*?)\s+(?P<samples>\d+)\s+(?P<share>\d+\.\d+)%\s+"
    r"(?P<time>\d+\.\d+)%\s+(?P<min>\d+\.\d+)us\s+(?P<max>\d+\.\d+)us\s+(?P<avg>\d+\.\d+)us"
    r"\s*\(\s*\+-\s*(?P<error>\d+\.\d+|-?nan)%\s*\)"
)
_START = re.compile(r"[A-Za-z_][\w ()]*?\s+\d+\s+\d+\.\d+%")
_TITLE = re.compile(r"Analyze events for (.*?)[:,]?\s*$")
_TOTAL = re.compile(r"Total Samples:\s*(\d+),\s*Total events handled time:\s*(\d+\.\d+)us")
_UNKNOWN = re.compile(r"unknown kvm exit code:\s*(\d+)")
_HEADER = re.compile(r"(VM-EXIT\b.*|Time\s+Avg time|Avg time|Time%?\s.*Avg time)\s*$")
_MARK = re.compile(rb"\(\s*\+-\s*[\d.]+%\s*\)|VM-EXIT\s+Samples")
_TRACED = re.compile(rb"kvm_(exit|entry): |\] ?[\d. ]*\S* d\d+v\d+ vm(exit|entry)")
#: A trace to be run is YAML that begins with the version of its layout.
_RUNNABLE = re.compile(rb"^schema:\s*\d", re.MULTILINE)
_RECORDED = re.compile(
    rb"\bkvm_(exit|entry|nested_vmexit):|\bd\d+v\d+ vm(exit|entry)\b"
    rb"|\bvmexit \[|\bVMEXIT +vcpu =|\d% +\d+ cyc\b"
)
_QUOTING = re.compile(r"^(?:\s*>)+")
_WRAPS = 3


@dataclass
class StatTable:
    """One table.

    Parameters
    ----------
    title : str
        What was analysed.
    rows : list of ExitRow
        In the order of the report.
    total_samples, total_ns : int, float or None
        What the report says below the table.
    """

    title: str = ""
    rows: list[ExitRow] = field(default_factory=list)
    total_samples: int | None = None
    total_ns: float | None = None

    @property
    def samples(self) -> int:
        """Samples of the rows that are there."""
        return sum(row.samples for row in self.rows)


def is_stat_report(head: bytes) -> bool:
    """Whether a file that starts so is a report of ``perf kvm stat`` and no trace."""
    return _MARK.search(head) is not None and _TRACED.search(head) is None


def is_recording(head: bytes) -> bool:
    """Whether a file that starts so is a recording of VM exits, and no trace to be run."""
    return _RUNNABLE.search(head) is None and (
        is_stat_report(head) or _RECORDED.search(head) is not None
    )


class _Reader:
    """Reads a report line by line; a line that a mailer broke is put together again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables = [StatTable()]
        self.used = 0
        self.skipped: dict[str, int] = {}
        self._note = ""

    @property
    def table(self) -> StatTable:
        return self.tables[-1]

    def _open(self) -> StatTable:
        """Begin a table, if the last one has rows or a total."""
        if self.table.rows or self.table.total_samples is not None:
            self.tables.append(StatTable())
        return self.table

    def read(self, lines: list[str]) -> None:
        """Read all lines."""
        at = 0
        while at < len(lines):
            at += self._one(lines, at)

    def _one(self, lines: list[str], at: int) -> int:
        """Read what starts at a line, and return how many lines it took."""
        line = lines[at]
        if not line:
            return self._skip("blank")
        row = _ROW.fullmatch(line)
        if row:
            return self._row(row, at, 1)
        if _START.match(line):
            for count in range(2, _WRAPS + 1):
                row = _ROW.fullmatch(" ".join(lines[at : at + count]))
                if row and all(lines[at : at + count]):
                    return self._row(row, at, count)
            return self._skip("cut_or_unreadable")
        return self._frame(lines, at)

    def _frame(self, lines: list[str], at: int) -> int:
        """Read a title, a heading, a total or a note; anything else is skipped."""
        line = lines[at]
        for count in (1, 2):
            total = _TOTAL.search(" ".join(lines[at : at + count]))
            if total and line.startswith("Total Samples"):
                if self.table.total_samples is not None:
                    self._open()
                self.table.total_samples = int(total[1])
                self.table.total_ns = float(total[2]) * 1000
                return self._use(count)
        title, unknown = _TITLE.search(line), _UNKNOWN.search(line)
        if title:
            self._open().title = title[1]
        elif unknown:
            self._note = f"exit code {unknown[1]}"
        elif _HEADER.match(line):
            if line.startswith("VM-EXIT"):
                self._open()
        else:
            return self._skip("comment" if line.startswith("#") else "no_event")
        return self._use(1)

    def _row(self, row: re.Match[str], at: int, count: int) -> int:
        name, samples = row["name"], int(row["samples"])
        if is_amd(name):
            raise InputError(
                f"this report is of an AMD host: {name!r} is an exit of AMD-V",
                file=self.name,
                line=at + 1,
                hint="vtx models Intel VT-x",
            )
        if self.table.total_samples is not None:
            self.tables.append(StatTable())
        mean = float(row["avg"]) * 1000
        # The error is the deviation over the root of the samples over the mean.
        error = 0.0 if "nan" in row["error"] else float(row["error"]) / 100
        squares = (error * mean) ** 2 * samples * (samples - 1)
        low, high = float(row["min"]) * 1000, float(row["max"]) * 1000
        times = Times(samples, samples * mean, low, high, mean, squares)
        note, self._note = self._note if name == "UNKNOWN" else "", ""
        self.table.rows.append(
            ExitRow(
                name,
                reason_number(name),
                Tally(samples, times if samples else None),
                note=note,
                table=len(self.tables),
            )
        )
        return self._use(count)

    def _use(self, count: int) -> int:
        self.used += count
        return count

    def _skip(self, why: str) -> int:
        self.skipped[why] = self.skipped.get(why, 0) + 1
        return 1


def read_stat_report(source: Source) -> tuple[list[StatTable], Lines]:
    """Read every table of a report.

    Raises
    ------
    InputError
        There is no row in it, it is too long, or it is of an AMD host.
    """
    data = bytearray()
    chunk = bytearray(1 << 16)
    while count := source.readinto(memoryview(chunk)):
        data += chunk[:count]
        if len(data) > _MOST_BYTES:
            raise InputError("this report is longer than any report", file=source.name)
    text = data.decode("utf-8", "replace").replace("\u00a0", " ")
    lines = [_QUOTING.sub("", line).strip() for line in text.split("\n")]
    if not lines[-1]:
        lines.pop()
    reader = _Reader(source.name)
    reader.read(lines)
    tables = [table for table in reader.tables if table.rows]
    if not tables:
        raise InputError("no row of this report can be read", file=source.name)
    for number, table in enumerate(tables, start=1):
        for row in table.rows:
            row.table = number
    return tables, Lines(len(lines), reader.used, reader.skipped)
