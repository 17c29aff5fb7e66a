"""``vtx exits``."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from typing import TYPE_CHECKING

from vtx.commands.base import FINE, Command
from vtx.commands.output import FORMATS, Output, add_output_arguments
from vtx.commands.plotting import Plot, add_plot_argument
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vtx.hypervisor.importers.analysis import Tap, Views
    from vtx.lab.exit_report import ExitReport
    from vtx.report.exit_tap import ExitTap

__all__ = ["Exits", "duration_ns", "read_exits"]

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_TABLE_DETAILS, _ALL_DETAILS = 5, 50


class Exits(Command):
    """Show where the VM exits of a recorded trace spend their time.

    TRACE is text of ftrace ('trace', 'trace_pipe'), 'trace-cmd report', 'perf script',
    'perf kvm stat report', 'xenalyze --dump-all' or acrntrace, packed with gzip or xz or not. Mails
    and bug reports will do: quoted and broken lines are put together again. Examples:

    vtx exits trace.txt.gz
    trace-cmd report | vtx exits - --than 1ms
    vtx exits slow.txt --baseline good.txt
    """

    name = "exits"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("trace", metavar="TRACE", help="trace as text; - is standard input")
        parser.add_argument("--per-vcpu", action="store_true", help="also show each vCPU")
        parser.add_argument(
            "--per-slice", metavar="TIME", help="also show slices of time (1s, 100ms, ...)"
        )
        parser.add_argument("--than", metavar="TIME", help="also list exits longer than TIME")
        parser.add_argument(
            "--slowest", metavar="N", default="5", help="slowest exits to list (default: 5)"
        )
        parser.add_argument(
            "--storm",
            metavar="N",
            help="call N equal exits in a row a storm (default: 4 on one page, 32 otherwise)",
        )
        parser.add_argument(
            "--details",
            metavar="N",
            help=f"details below each reason (default: {_TABLE_DETAILS}; json, csv: "
            f"{_ALL_DETAILS}; 0 for none)",
        )
        parser.add_argument(
            "--sort",
            choices=("time", "samples"),
            default="time",
            help="order of the reasons (default: time)",
        )
        parser.add_argument(
            "--baseline", metavar="OTHER", help="show what changed from another trace to this"
        )
        add_plot_argument(parser, "how long exits take and when they come")
        add_output_arguments(parser, (*FORMATS, "html", "perfetto"))

    def run(self, args: argparse.Namespace) -> int:
        """Read the trace and print its exits."""
        output, plot = Output(args), Plot(args)
        details = _number("--details", args.details, 0)
        if details is None:
            short = output.format in ("table", "html")
            details = _TABLE_DETAILS if short else _ALL_DETAILS
        if output.format in ("html", "perfetto"):
            from vtx.commands.report_pages import write_exits, write_perfetto

            write = write_exits if output.format == "html" else write_perfetto
            report = write(output, args, _views(args), details)
            print(f"vtx: {report.name}: {report.lines}", file=sys.stderr)
            return FINE
        taps = _taps(plot)
        if args.baseline is None:
            report = read_exits(args.trace, _views(args), args.sort, taps)
            _write(output, report, details)
        else:
            if args.baseline == args.trace == "-":
                raise UsageError("standard input cannot be both trace and baseline")
            views = _views(args)
            report = read_exits(args.trace, views, args.sort, taps)
            baseline = read_exits(args.baseline, views, args.sort)
            _write_compared(output, report, baseline, details)
        for tap in taps:
            plot.write(functools.partial(_picture, tap, report.name, plot.kind))
        if output.format != "table" or output.path is not None:
            print(f"vtx: {report.name}: {report.lines}", file=sys.stderr)
        return FINE


def _taps(plot: Plot) -> list[ExitTap]:
    """Return what sees the exits for a picture, if one is wanted."""
    if not plot:
        return []
    from vtx.report.exit_tap import ExitTap

    return [ExitTap()]


def _picture(tap: ExitTap, name: str, kind: str) -> bytes:
    from vtx.report.plots import recorded

    if not tap.count:
        raise UsageError(f"{name} has no single exits to draw: it is a report itself")
    return recorded(tap, f"VM exits in {name}", kind)


def _views(args: argparse.Namespace) -> Views:
    from vtx.hypervisor.importers.analysis import Views

    slice_ns = None if args.per_slice is None else duration_ns("--per-slice", args.per_slice)
    if slice_ns == 0:
        raise UsageError("--per-slice wants a time above 0")
    return Views(
        per_vcpu=args.per_vcpu,
        slice_ns=slice_ns,
        than_ns=None if args.than is None else duration_ns("--than", args.than),
        slowest=_number("--slowest", args.slowest, 0) or 0,
        storm=_number("--storm", args.storm, 2),
    )


def duration_ns(option: str, text: str) -> int:
    """Return a time such as ``1ms`` in nanoseconds.

    Raises
    ------
    UsageError
        It is none.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ns|us|µs|ms|s)", text)
    if match is None:
        raise UsageError(f"{option} wants a time such as 1ms, 50us or 2s, not {text!r}")
    return round(float(match[1]) * _UNITS[match[2]])


def _number(option: str, text: str | None, least: int) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise UsageError(f"{option} wants a number from {least} on, not {text!r}")
    return int(text)


def read_exits(name: str, views: Views, sort: str, taps: Sequence[Tap] = ()) -> ExitReport:
    """Read a recording, with a bar of progress, and sort its rows."""
    from vtx.hypervisor.importers.analysis import read_report

    with Progress("reading") as progress:
        report = read_report(name, views, _reporter(progress), taps)
    report.sort(sort)
    return report


def _reporter(progress: Progress) -> Callable[[int, int], None]:
    def update(done: int, total: int) -> None:
        progress.update(done, total)

    return update


def _write(output: Output, report: ExitReport, details: int) -> None:
    from vtx.lab.exit_csv import csv_rows

    if output.format == "json":
        output.write_json(report.as_dict(details))
    elif output.format == "csv":
        output.write(_csv(csv_rows(report, details)))
    else:
        output.write_tables(report.tables(details))


def _write_compared(output: Output, report: ExitReport, baseline: ExitReport, details: int) -> None:
    from vtx.lab.exit_changes import compare_tables, compared

    changes = compared(report, baseline)
    if output.format == "json":
        document = report.as_dict(details)
        document["baseline"] = baseline.as_dict(details)
        document["changes"] = changes
        output.write_json(document)
    elif output.format == "csv":
        sides = ("trace", "baseline")
        keys = list(changes[0]["trace"])
        rows: list[list[object]] = [
            ["reason", "number", *(f"{side}_{key}" for side in sides for key in keys)]
        ]
        rows += [
            [entry["reason"], entry["number"], *(entry[s][key] for s in sides for key in keys)]
            for entry in changes
        ]
        output.write(_csv(rows))
    else:
        output.write_tables(compare_tables(report, baseline))


def _csv(rows: object) -> str:
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    return out.getvalue()
