"""``vtx compare``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vtx.commands.base import FAILED, FINE, STOPPED, Command
from vtx.commands.handlers import blame_handlers, load_handlers
from vtx.commands.output import FORMATS, Output, add_output_arguments
from vtx.commands.plotting import Plot, add_plot_argument
from vtx.commands.progress import Progress
from vtx.commands.traces import add_trace_arguments, read_trace
from vtx.errors import InputError

if TYPE_CHECKING:
    from vtx.hypervisor.run import Run
    from vtx.hypervisor.trace import Trace
    from vtx.lab.categories import Counted
    from vtx.lab.compare import Comparison
    from vtx.lab.profile import Profile

__all__ = ["Compare"]


class Compare(Command):
    """Price a trace for several CPU profiles, side by side.

    The trace is run once for each shape of CPU and priced once for each profile. A CPU
    that lacks what the trace needs is shown as 'not supported', one without prices as
    'no data', never as a number.
    """

    name = "compare"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add_trace_arguments(parser)
        parser.add_argument(
            "--profiles",
            metavar="A,B,...",
            default="all",
            help="names or YAML files with commas between (default: all that come with vtx)",
        )
        parser.add_argument(
            "--baseline",
            metavar="P",
            help="profile that the others are compared with (default: the first with figures)",
        )
        recorded = parser.add_argument_group("recorded VM exits")
        recorded.add_argument(
            "--recorded-on", metavar="P", help="profile of the CPU that the trace was recorded on"
        )
        recorded.add_argument(
            "--what-if",
            metavar="CHANGE",
            action="append",
            default=[],
            help="no-exit:REASON[:DETAIL], ept-pages=2M|1G, posted-interrupts=on, "
            "vmcs-shadowing=on or vpid=off; may be given several times",
        )
        add_plot_argument(parser, "the profiles side by side")
        add_output_arguments(parser, (*FORMATS, "html"))

    def run(self, args: argparse.Namespace) -> int:
        """Run the trace, or price the recording, and print the comparison."""
        from vtx.commands.compare_exits import opened
        from vtx.lab.profile import load_profiles

        output, plot = Output(args), Plot(args)
        profiles = load_profiles(args.profiles)
        with opened(args) as compared:
            if compared.recording:
                return compared.run(output, plot, profiles)
        return self._replayed(args, output, plot, profiles, compared.trace)

    def _replayed(
        self,
        args: argparse.Namespace,
        output: Output,
        plot: Plot,
        profiles: list[Profile],
        given: Trace | None,
    ) -> int:
        """Run a trace on every shape."""
        from vtx.hypervisor.replay import replay
        from vtx.lab.compare import compare
        from vtx.lab.report import counted

        trace = read_trace(args.trace) if given is None else given
        vmm = load_handlers(args.handlers)
        runs: dict[str, Run] = {}
        with Progress("running") as progress, blame_handlers(args.handlers):
            position = _Position(progress, len(profiles))

            def run(profile: Profile) -> Counted:
                ran = replay(trace, profile.shape, vmm=vmm, progress=position.within)
                runs[profile.id] = ran
                return ran

            title = f"{trace.name} on {counted(len(profiles), 'CPU profile')}"
            comparison = compare(profiles, run, title=title, progress=position.begin)
        _write(output, comparison, args.baseline)
        plot.write(lambda: _picture(comparison, plot.kind))
        return _verdict(comparison, runs)


class _Position:
    """How far a comparison is: profiles that are done, and how far the current run is."""

    def __init__(self, progress: Progress, profiles: int) -> None:
        self._progress = progress
        self._profiles = profiles
        self._done = 0
        self._name = ""

    def begin(self, name: str, done: int, total: int) -> None:
        """Begin the next profile."""
        self._name, self._done = name, done
        self._progress.update(done, total, name)

    def within(self, steps: int, total: int) -> None:
        """Tell how far the run is."""
        part = steps / total if total else 0.0
        self._progress.update(self._done + part, self._profiles, self._name)


def _picture(comparison: Comparison, kind: str) -> bytes:
    from vtx.report.plots import comparison as draw
    from vtx.report.pricing import bars_of

    return draw(bars_of(comparison), comparison.title, "µs", kind)


def _write(output: Output, comparison: Comparison, wanted: str | None) -> None:
    baseline = wanted
    if baseline is None and comparison.priced:
        baseline = comparison.priced[0].profile.id
    if output.format == "json":
        output.write_json(comparison.as_dict(baseline))
    elif output.format == "csv":
        output.write(comparison.csv(baseline))
    elif output.format == "html":
        from vtx.report.exits_page import comparison_page
        from vtx.report.page import render

        output.write(render(comparison_page(comparison, baseline)))
    else:
        output.write_tables([comparison.table(baseline)])


def _verdict(comparison: Comparison, runs: dict[str, Run]) -> int:
    """Return the exit code, and say on standard error what went wrong where."""
    from vtx.lab.compare import State

    code = FINE
    for name, run in runs.items():
        for result in run.results:
            if not result.holds:
                code = FAILED
                print(f"vtx: {run.file}:{result.line}: {name}: {result}", file=sys.stderr)
    for outcome in comparison.outcomes:
        if outcome.state is State.STOPPED:
            code = STOPPED
            print(f"vtx: {outcome.profile.id}: {outcome.why}", file=sys.stderr)
    if code == FINE and not comparison.priced:
        code = InputError.exit_code
        for outcome in comparison.outcomes:
            print(f"vtx: {outcome.profile.id}: {outcome.why}", file=sys.stderr)
    return code
