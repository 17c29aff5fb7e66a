"""Where results go: standard output or a file, as a table, JSON or CSV."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from vtx.errors import UsageError, VtxError

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

    from vtx.lab.table import Table

__all__ = ["Output", "add_output_arguments"]

FORMATS = ("table", "json", "csv")
#: Texts in a table on a terminal are folded to no less than so many columns.
_FOLDED = 40


def add_output_arguments(parser: argparse.ArgumentParser, formats: Sequence[str] = FORMATS) -> None:
    """Add ``--format``, ``-o`` and ``--force``; the first of `formats` is the default."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        choices=formats,
        default=formats[0],
        help=f"what to print (default: {formats[0]})",
    )
    group.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE instead of standard output"
    )
    group.add_argument("--force", action="store_true", help="let -o overwrite a file")


class Output:
    """Where one command's result goes.

    Parameters
    ----------
    args : Namespace
        With the arguments of :func:`add_output_arguments`.

    Raises
    ------
    UsageError
        The output file exists, or cannot be; found before any work is done.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.format: str = args.format
        self.force: bool = args.force
        from pathlib import Path

        self.path = None if args.output in (None, "-") else Path(args.output)
        if self.format == "html" and self.path is None and _is_terminal():
            raise UsageError("a page of HTML is not for a terminal (-o FILE writes it to a file)")
        if self.force and self.path is None and getattr(args, "plot", None) is None:
            raise UsageError("--force is for -o FILE")
        if self.path is not None:
            self._check(self.path)

    def _check(self, path: Path) -> None:
        if path.is_dir():
            raise UsageError(f"{path} is a directory; -o wants a file")
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent} is no directory to write {path.name} into")
        if path.is_file() and not self.force:
            raise UsageError(f"{path} exists (--force overwrites it)")

    def write_json(self, data: Mapping[str, Any]) -> None:
        """Write a JSON document."""
        import json

        self.write(json.dumps(data, indent=2, allow_nan=False) + "\n")

    def write_tables(self, tables: Sequence[Table]) -> None:
        """Write tables one below the other; on a terminal with some style."""
        if self.path is None and sys.stdout is not None and sys.stdout.isatty():
            _show(tables)
        else:
            self.write("\n\n".join(map(str, tables)) + "\n")

    @contextlib.contextmanager
    def stream(self) -> Iterator[IO[str]]:
        """Open the result for writing piece by piece; it appears whole, or not at all.

        Yields
        ------
        file of text
            A temporary file, which takes the result's place if nothing is raised.
        """
        import shutil
        import tempfile

        if self.path is not None and (self.path.is_file() or not self.path.exists()):
            with self._writing(self.path), self._beside(self.path.resolve()) as file:
                yield file
            return
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            yield file
            file.seek(0)
            if self.path is not None:
                with self._writing(self.path), open(self.path, "w", encoding="utf-8") as target:
                    shutil.copyfileobj(file, target)
            elif sys.stdout is None:
                raise VtxError("standard output is closed")
            else:
                shutil.copyfileobj(file, sys.stdout)

    def write(self, text: str) -> None:
        """Write the result, whole or not at all."""
        if self.path is None:
            if sys.stdout is None:
                raise VtxError("standard output is closed")
            sys.stdout.write(text)
            return
        path = self.path
        with self._writing(path):
            if path.exists() and not path.is_file():
                path.write_text(text, encoding="utf-8")  # a device or a pipe has no old content
                return
            with self._beside(path.resolve()) as file:
                file.write(text)

    def write_bytes(self, data: bytes) -> None:
        """Write a picture to the file, whole or not at all."""
        assert self.path is not None
        with self._writing(self.path):
            if self.path.exists() and not self.path.is_file():
                self.path.write_bytes(data)
                return
            with self._beside(self.path.resolve()) as file:
                file.buffer.write(data)

    @staticmethod
    @contextlib.contextmanager
    def _writing(path: Path) -> Iterator[None]:
        """Say in one sentence why a file cannot be written."""
        try:
            yield
        except FileExistsError:
            raise UsageError(f"{path} exists (--force overwrites it)") from None
        except OSError as error:
            raise VtxError(f"cannot write {path}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def _beside(self, path: Path) -> Iterator[TextIOWrapper]:
        """Write beside `path`, then move into place: readers never see half a file."""
        import tempfile

        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
            if self.force:
                os.replace(name, path)
            else:
                os.link(name, path)  # unlike a rename, fails if the file has come to exist
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _least_width(table: Table) -> int:
    """Return how wide a table is at least if its long texts are folded."""
    cells = zip(*([column.heading for column in table.columns], *table.rows), strict=True)
    return sum(min(max(map(len, column)), _FOLDED) + 1 for column in cells)


def _show(tables: Sequence[Table]) -> None:
    """Print tables on a terminal: bold headings, long text folded to its width."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from vtx.lab.table import printable

    console = Console()
    # A terminal that is too narrow wraps lines; rich would cut figures off.
    console.width = max(console.width, *(_least_width(table) for table in tables))
    for table in tables:
        if table.title:
            console.print(Text(printable(table.title), style="bold"))
        shown = RichTable(box=None, pad_edge=False, header_style="bold")
        for column in table.columns:
            shown.add_column(
                Text(column.heading),
                justify="right" if column.figures else "left",
                no_wrap=column.figures,
                overflow="fold",
            )
        for row in table.rows:
            shown.add_row(*(Text(printable(cell)) for cell in row))
        console.print(shown)
        for remark in table.remarks:
            console.print(Text(printable(remark), style="dim"))
        console.print()
