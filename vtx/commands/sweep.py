"""``vtx sweep``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vtx.commands.base import FAILED, FINE, Command
from vtx.commands.progress import Progress
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.sweep import Report

__all__ = ["Sweep"]


class Sweep(Command):
    """Run traces x profiles x options from a plan, over processes or a Dask cluster.

    PLAN is a YAML file:

    schema: 1
    traces: [traces/*.yaml]
    profiles: [skylake_sp, ice_lake_sp]
    options: {ept.pages: [4K, 2M], vpid: [on, off]}

    Each finished cell is kept at once: a sweep that was interrupted or killed goes on where
    it was when the same command is given again. Cells that fail are reported, and the rest
    goes on; the exit code is 1 then.
    """

    name = "sweep"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("plan", metavar="PLAN", help="YAML file")
        parser.add_argument(
            "-o", "--output", metavar="FILE", required=True, help="*.parquet or *.csv"
        )
        parser.add_argument("--force", action="store_true", help="let -o overwrite a file")
        parser.add_argument(
            "-j", "--jobs", type=int, metavar="N", help="local processes (default: one a core)"
        )
        parser.add_argument(
            "--scheduler", metavar="ADDRESS", help="Dask scheduler, tcp://host:8786"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Run the sweep and say what became of it."""
        from pathlib import Path

        from vtx.sweep import load_plan, sweep

        path = Path(args.output)
        if path.exists() and not args.force:
            raise UsageError(f"{path} exists (--force overwrites it)")
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no directory to write {path.name} into")
        if args.jobs is not None and args.jobs < 1:
            raise UsageError("--jobs wants a number from 1")
        if args.jobs is not None and args.scheduler is not None:
            raise UsageError("--jobs is for local processes, --scheduler for a cluster")
        plan = load_plan(args.plan)
        jobs = args.jobs or os.cpu_count() or 1
        with Progress("sweeping") as progress:
            report = sweep(
                plan,
                path,
                jobs=min(jobs, len(plan.cells)),
                scheduler=args.scheduler,
                progress=progress.update,
            )
        _say(report, path.name)
        return FAILED if report.count("failed") else FINE


def _say(report: Report, name: str) -> None:
    for row in report.rows:
        if row["status"] == "failed":
            options = "".join(
                f", {key.removeprefix('option.')}={value}"
                for key, value in row.items()
                if key.startswith("option.")
            )
            print(
                f"vtx: {row['trace']} on {row['profile']}{options}: {row['error']}", file=sys.stderr
            )
    parts = [
        f"{report.count(status)} {status}"
        for status in ("ok", "no data", "not supported", "failed")
        if report.count(status)
    ]
    before = len(report.rows) - report.run
    kept = f" ({before} finished before)" if before else ""
    print(f"{name}: {len(report.rows)} cells{kept}: {', '.join(parts)}")
