"""``vtx compare`` on a recording of VM exits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtx.commands.base import FINE
from vtx.commands.output import Output
from vtx.commands.plotting import Plot
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.hypervisor.importers.source import Source
    from vtx.hypervisor.trace import Trace
    from vtx.lab.exit_compare import ExitComparison
    from vtx.lab.profile import Profile

__all__ = ["Compared", "opened"]


class Compared:
    """What ``vtx compare`` was given.

    Parameters
    ----------
    args : Namespace
        The arguments of the command.
    source : Source or None
        The recording, open; None if it is none.
    trace : Trace or None
        The trace to be run, if it came through standard input and is read already.
    """

    def __init__(
        self, args: argparse.Namespace, source: Source | None, trace: Trace | None = None
    ) -> None:
        self._args = args
        self._source = source
        self.trace = trace

    @property
    def recording(self) -> bool:
        """Whether it is a recording of VM exits."""
        return self._source is not None

    def run(self, output: Output, plot: Plot, profiles: list[Profile]) -> int:
        """Price the recording and print the comparison."""
        from vtx.hypervisor.importers.analysis import Views, report_of
        from vtx.lab.exit_compare import compare_exits
        from vtx.lab.profile import load_profile

        args = self._args
        assert self._source is not None
        if args.handlers is not None:
            raise UsageError("--handlers is for traces that are run, not for recordings")
        recorded_on = None if args.recorded_on is None else load_profile(args.recorded_on)
        with Progress("reading") as progress:
            report = report_of(self._source, Views(slowest=0), progress.update)
        comparison = compare_exits(
            report,
            profiles,
            recorded_on=recorded_on,
            baseline=args.baseline,
            options=args.what_if,
        )
        _write(output, comparison)
        plot.write(lambda: _picture(comparison, plot.kind))
        if output.format != "table" or output.path is not None:
            print(f"vtx: {report.name}: {report.lines}", file=sys.stderr)
        return FINE


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Compared]:
    """Look at the beginning of the trace, to tell a recording from a trace to be run."""
    from vtx.hypervisor.importers.source import open_source
    from vtx.hypervisor.importers.stat_tables import is_recording

    if not args.trace:
        yield Compared(args, None)  # the reader of traces says what is wrong
        return
    with open_source(args.trace) as source:
        if is_recording(source.peek()):
            yield Compared(args, source)
            return
        for option, given in (("--recorded-on", args.recorded_on), ("--what-if", args.what_if)):
            if given:
                raise UsageError(
                    f"{option} is for recordings of VM exits; {source.name} is none (its first "
                    "lines have no kvm_exit)"
                )
        trace = _rest(source) if args.trace == "-" else None
    yield Compared(args, None, trace)


def _rest(source: Source) -> Trace:
    """Read a trace from a source whose beginning was looked at."""
    from vtx.commands.traces import MOST_BYTES, parse_bytes

    data, chunk = bytearray(), bytearray(1 << 16)
    while len(data) <= MOST_BYTES and (count := source.readinto(memoryview(chunk))):
        data += chunk[:count]
    return parse_bytes(bytes(data))


def _picture(comparison: ExitComparison, kind: str) -> bytes:
    from vtx.report.plots import comparison as draw
    from vtx.report.pricing import recorded_bars

    name = comparison.recording.report.name
    return draw(recorded_bars(comparison), f"{name} on other CPUs", "ms", kind)


def _write(output: Output, comparison: ExitComparison) -> None:
    if output.format == "json":
        output.write_json(comparison.as_dict())
    elif output.format == "csv":
        import csv
        import io

        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(_csv_rows(comparison))
        output.write(out.getvalue())
    elif output.format == "html":
        from vtx.report.exits_page import recorded_comparison_page
        from vtx.report.page import render

        output.write(render(recorded_comparison_page(comparison)))
    else:
        output.write_tables(comparison.tables())


def _csv_rows(comparison: ExitComparison) -> Iterator[list[object]]:
    """Yield one line for each profile, and one for each change on it."""
    yield [
        *("profile", "what_if", "state", "why", "hardware_ns", "software_ns"),
        *("total_ns", "low_ns", "high_ns", "relative"),
    ]
    for entry in comparison.as_dict()["profiles"]:
        start = [entry["id"], "", entry["state"], entry["why"] or ""]
        if entry["why"]:
            yield [*start, *[""] * 6]
            continue
        total = entry["total_ns"]
        parts = [entry[key]["value"] for key in ("hardware_ns", "software_ns")]
        figures = [total["value"], total["low"], total["high"], entry["relative"]]
        yield [*start, *parts, *figures]
        for change in entry["what_if"]:
            changed = change["total_ns"]
            state = ["not supported" if changed is None else "priced", change.get("why", "")]
            figures = [changed[key] for key in ("value", "low", "high")] if changed else [""] * 3
            yield [
                *(entry["id"], change["option"], *state, "", ""),
                *(*figures, change.get("relative", "")),
            ]
