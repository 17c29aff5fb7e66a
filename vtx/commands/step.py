"""``vtx step``."""

from __future__ import annotations

import argparse
import sys

from vtx.commands.base import FINE, Command
from vtx.commands.handlers import blame_handlers, load_handlers
from vtx.commands.traces import DEFAULT_PROFILE, add_trace_arguments, read_trace
from vtx.errors import UsageError

__all__ = ["Step"]


class Step(Command):
    """Step through a trace on the terminal, forwards and backwards.

    Shows root or non-root operation, the instruction, registers, VMCS fields that have just
    changed, the exit decoded, the walk, and the costs so far. Keys: n and p go to the next
    frame and the one before, e to the next VM exit, b sets a breakpoint, ? shows all keys.
    Needs textual: pip install 'vtx[step]'.
    """

    name = "step"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add_trace_arguments(parser)
        parser.add_argument(
            "--profile",
            metavar="P",
            help=f"CPU profile, by name or YAML file (default: the trace's, or {DEFAULT_PROFILE})",
        )
        parser.add_argument(
            "--break",
            dest="breakpoints",
            metavar="B",
            action="append",
            default=[],
            help="exit reason, address or 'line N' to run to first; may be repeated",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Record the run and show it."""
        try:
            from vtx.stepper.app import Stepper
        except ImportError:
            raise UsageError("vtx step needs textual: pip install 'vtx[step]'") from None
        from vtx.hypervisor.recording import record
        from vtx.lab.profile import load_profile
        from vtx.stepper.breakpoints import parse_breakpoint

        breakpoints = [parse_breakpoint(text) for text in args.breakpoints]
        trace = read_trace(args.trace)
        named = trace.header.profile or DEFAULT_PROFILE
        profile = load_profile(named if args.profile is None else args.profile)
        if not (sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
            raise UsageError("vtx step needs a terminal; vtx replay prints a run as text")
        vmm = load_handlers(args.handlers)
        with blame_handlers(args.handlers):
            recording = record(trace, profile.shape, vmm=vmm)
        app = Stepper(recording, profile)
        app.breakpoints = breakpoints
        app.run()
        return FINE
