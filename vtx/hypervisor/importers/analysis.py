"""A recorded trace, or a report of ``perf kvm stat``, read to its end into one `ExitReport`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vtx.errors import UsageError
from vtx.hypervisor.importers.exits import ExitReader
from vtx.hypervisor.importers.source import Source, open_source
from vtx.hypervisor.importers.stat_tables import StatTable, is_stat_report, read_stat_report
from vtx.hypervisor.importers.xen_summary import is_xen_summary, read_xen_summary
from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_rows import Tally
from vtx.lab.exit_watch import ExitWatch
from vtx.lab.exits import ExitStatistics
from vtx.lab.report import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Tap", "Views", "read_report", "report_of"]


class Tap(Protocol):
    """Sees every exit of a trace on its way to the report."""

    def add(self, records: NDArray[Any], names: Sequence[str], *, xen: bool = False) -> None:
        """See a batch: arrays of :func:`vtx.machine.exit_scanner.exit_dtype`, used again later."""


@dataclass(frozen=True)
class Views:
    """What to gather beside the table of reasons.

    Parameters
    ----------
    per_vcpu : bool
        A row for each vCPU.
    slice_ns : int, optional
        A row for each slice of time of this length.
    than_ns : int, optional
        The exits that took longer.
    slowest : int
        So many of the slowest exits.
    storm : int, optional
        So many repetitions make a storm.
    """

    per_vcpu: bool = False
    slice_ns: int | None = None
    than_ns: int | None = None
    slowest: int = 5
    storm: int | None = None


def read_report(
    name: str,
    views: Views | None = None,
    progress: Callable[[int, int], None] | None = None,
    taps: Sequence[Tap] = (),
) -> ExitReport:
    """Read a trace or a report.

    Parameters
    ----------
    name : str
        File name; ``-`` is standard input. Packed with gzip or xz, or not.
    views : Views, optional
        What to gather beside the table.
    progress : callable, optional
        Called with bytes done and bytes in all.
    taps : sequence of Tap
        What else sees the exits; a report has no single ones.

    Raises
    ------
    InputError
        It cannot be read, there is no VM exit in it, or it is of an AMD host.
    UsageError
        A report has no single exits, so no view of them can be had.
    """
    with open_source(name) as source:
        return report_of(source, views or Views(), progress, taps)


def report_of(
    source: Source,
    views: Views,
    progress: Callable[[int, int], None] | None = None,
    taps: Sequence[Tap] = (),
) -> ExitReport:
    """Read a source that is open; otherwise as :func:`read_report`."""
    summary = is_xen_summary(source.peek())
    if summary or is_stat_report(source.peek()):
        if views.per_vcpu or views.slice_ns or views.than_ns is not None:
            raise UsageError(
                f"{source.name} is a report of {'xenalyze' if summary else 'perf kvm stat'}: "
                "it has no single exits to look at"
            )
        if summary:
            return _xen_summary(source)
        return _stat_report(source)
    return _trace_report(source, views, progress, taps)


def _trace_report(
    source: Source,
    views: Views,
    progress: Callable[[int, int], None] | None,
    taps: Sequence[Tap],
) -> ExitReport:
    reader = ExitReader(source, progress)
    statistics = ExitStatistics(views.slice_ns, per_vcpu=views.per_vcpu)
    watch = ExitWatch(views.slowest, views.than_ns, views.storm)
    for batch in reader.batches():
        statistics.add(batch, reader.names, xen=reader.xen)
        watch.add(batch, reader.names)
        for tap in taps:
            tap.add(batch, reader.names, xen=reader.xen)
    events = reader.scanner.events()
    return ExitReport(
        name=source.name,
        form="xenalyze" if "vmexit" in events else "trace",
        rows=statistics.rows(),
        total=statistics.total(),
        lines=reader.lines(),
        events=events,
        warnings=_warnings(reader),
        first_ns=statistics.first_ns,
        last_ns=statistics.last_ns,
        vcpus=statistics.vcpus() if views.per_vcpu else (),
        slices=list(statistics.slices()) if views.slice_ns else (),
        slowest=watch.slowest,
        than_ns=views.than_ns,
        longer=watch.longer,
        longer_counts=watch.longer_counts,
        storms=watch.storms(),
        flags=statistics.flags,
        below=statistics.below,
    )


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _warnings(reader: ExitReader) -> list[str]:
    counts = reader.scanner.counts()
    found = []
    lost, backwards, bare = counts["lost_events"], counts["backwards"], counts["bare"]
    if lost:
        found.append(f"The tracer lost {counted(lost, 'event')}: exits are missing.")
    if backwards:
        found.append(
            f"The clock went backwards between exit and entry: {counted(backwards, 'exit')} "
            f"{_have(backwards)} no duration."
        )
    if counts["ticks"]:
        found.append(
            f"{counted(counts['ticks'], 'stamp')} in ticks of a clock without unit: no time is "
            "taken from them."
        )
    elif counts["untimed"]:
        untimed = counts["untimed"]
        found.append(f"{counted(untimed, 'exit')} {_have(untimed)} no time stamp.")
    if bare:
        found.append(f"{counted(bare, 'exit')} without a thread: vCPUs go by number or processor.")
    if counts["joined"]:
        found.append(f"{counted(counts['joined'], 'line')} joined to the line before.")
    if 0 < counts["fraction_digits"] < 9:
        unit = {3: "1 ms", 6: "1 us"}.get(counts["fraction_digits"])
        found.append(f"Stamps have {unit or 'a'} resolution; shorter times read 0.")
    return found


def _xen_summary(source: Source) -> ExitReport:
    rows, lines = read_xen_summary(source)
    report = ExitReport(
        name=source.name,
        form="xenalyze summary",
        rows=rows,
        total=Tally(),
        lines=lines,
        warnings=["A summary of xenalyze has counts, and cycles of an unknown clock: no times."],
    )
    for row in rows:
        report.total.add(row.samples, None)
    return report


def _stat_report(source: Source) -> ExitReport:
    tables, lines = read_stat_report(source)
    report = ExitReport(
        name=source.name,
        form="perf kvm stat",
        rows=[row for table in tables for row in table.rows],
        total=Tally(),
        lines=lines,
        warnings=["A report has counts, extremes and means only: no percentiles."],
    )
    for whole in report.table_totals().values():
        report.total.add(whole.samples, whole.times)
    for number, table in enumerate(tables, start=1):
        report.warnings += _sums(table, number if len(tables) > 1 else None)
    return report


def _sums(table: StatTable, number: int | None) -> list[str]:
    """Hold a table against the total that is printed below it."""
    where = "The rows" if number is None else f"Table {number}: the rows"
    if table.total_samples is None:
        return [f"{where} have no total below them: some may be missing."]
    if table.total_samples != table.samples:
        return [
            f"{where} have {table.samples:,} of the {table.total_samples:,} samples that the "
            "report states: the others are missing."
        ]
    return []
