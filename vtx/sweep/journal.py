"""Finished cells on disk, one line each, so that a sweep that was killed goes on where it was.

A line is written whole or, if the process dies in the middle of it, is left without its end and
dropped when the journal is read again; that cell is run anew. Nothing else is ever lost, and no
cell runs twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vtx.errors import InputError, UsageError, VtxError

__all__ = ["Journal"]

_FORMAT = "vtx.sweep-journal/1"


class Journal:
    """The journal of one result file.

    Parameters
    ----------
    path : Path
        Of the journal itself.

    Attributes
    ----------
    rows : dict of str to dict
        Rows of finished cells by the cell's key.

    Raises
    ------
    InputError
        The file is no journal.
    UsageError
        Another sweep is writing it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise VtxError(f"cannot write {path}: {error.strerror}") from None
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another sweep is writing {self.path}") from None

    def _read(self) -> None:
        """Take over what is there; cut off a line that was never finished."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file.fileno(), whole)
        lines = content[:whole].splitlines()
        if not lines:
            self._append({"journal": _FORMAT})
            return
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number == 1:
                    if row["journal"] != _FORMAT:
                        raise KeyError
                else:
                    self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    "this is no journal of a sweep",
                    file=str(self.path),
                    line=number,
                    hint="delete it to begin anew",
                ) from None

    def keep(self, keys: Collection[str]) -> None:
        """Forget rows of cells that the plan no longer has."""
        self.rows = {key: row for key, row in self.rows.items() if key in keys}

    def add(self, row: dict[str, Any]) -> None:
        """Write a finished cell; when this returns, it survives the process."""
        self._append(row)
        self.rows[row["key"]] = row

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file.fileno(), line)
            if written != len(line):
                raise OSError(None, "no space left")
            os.fsync(self._file.fileno())
        except OSError as error:
            raise VtxError(f"cannot write {self.path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
