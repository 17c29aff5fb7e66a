"""``--plot FILE``: a picture beside the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from vtx.commands.output import Output
from vtx.errors import UsageError

__all__ = ["Plot", "add_plot_argument"]


def add_plot_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--plot``."""
    parser.add_argument(
        "--plot", metavar="FILE", help=f"also write a picture of {what}, as FILE.png or FILE.svg"
    )


class Plot:
    """Where a picture goes; false if none is wanted.

    Parameters
    ----------
    args : Namespace
        With the arguments of the command.

    Raises
    ------
    UsageError
        The name says no known type of picture, the file exists, or matplotlib is not installed;
        found before any work is done.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._name: str | None = args.plot
        self.kind = ""
        if self._name is None:
            return
        from vtx.lab.extras import need
        from vtx.report.plots import SUFFIXES

        self.kind = self._name.rpartition(".")[2].lower()
        if "." not in self._name or self.kind not in SUFFIXES:
            wanted = " or ".join(f".{suffix}" for suffix in SUFFIXES)
            raise UsageError(f"--plot wants a file that ends in {wanted}, not {self._name!r}")
        if args.format in ("html", "perfetto"):
            raise UsageError(f"--plot goes with --format table, json or csv, not {args.format}")
        need("matplotlib", "plot", "a picture")
        self._output = Output(
            argparse.Namespace(format="table", output=self._name, force=args.force)
        )

    def __bool__(self) -> bool:
        return self._name is not None

    def write(self, draw: Callable[[], bytes]) -> None:
        """Draw the picture, if one is wanted, and write it whole or not at all."""
        if self._name is not None:
            self._output.write_bytes(draw())
