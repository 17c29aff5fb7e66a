"""Recorded exits as a page of HTML, and as a trace for Perfetto."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vtx.commands.output import Output
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.hypervisor.importers.analysis import Views
    from vtx.lab.exit_report import ExitReport

__all__ = ["write_exits", "write_perfetto"]


def write_exits(output: Output, args: argparse.Namespace, views: Views, details: int) -> ExitReport:
    """Read a recording, write its page, and return what it says."""
    from vtx.commands.exits import read_exits
    from vtx.lab.exit_changes import compare_tables
    from vtx.report.exit_tap import ExitTap
    from vtx.report.exits_page import exits_page
    from vtx.report.page import render

    if args.baseline is not None and args.baseline == args.trace == "-":
        raise UsageError("standard input cannot be both trace and baseline")
    tap = ExitTap()
    report = read_exits(args.trace, views, args.sort, [tap])
    tables = report.tables(details)
    if args.baseline is not None:
        tables = [*compare_tables(report, read_exits(args.baseline, views, args.sort)), *tables]
    output.write(render(exits_page(report, tap, tables)))
    return report


def write_perfetto(
    output: Output, args: argparse.Namespace, views: Views, details: int
) -> ExitReport:
    """Read a recording, write its exits as a trace over time, and return what it says."""
    from vtx.commands.exits import read_exits
    from vtx.report.perfetto import RecordedTrace

    if args.baseline is not None:
        raise UsageError("--format perfetto writes one recording; --baseline is for the others")
    with output.stream() as file:
        trace = RecordedTrace(file, args.trace)
        report = read_exits(args.trace, views, args.sort, [trace])
        trace.close()
    return report
