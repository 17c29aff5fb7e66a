"""The rows of a sweep as a file: Parquet, or CSV."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vtx.errors import UsageError, VtxError

__all__ = ["SUFFIXES", "columns", "require_writer", "write_results"]

SUFFIXES = (".parquet", ".csv")
_FIRST = ("trace", "profile")


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return every column that a row has: what was run first, then the rest in order."""
    found = dict.fromkeys(name for row in rows for name in row if name != "key")
    options = [name for name in found if name.startswith("option.")]
    rest = [name for name in found if name not in _FIRST and not name.startswith("option.")]
    return [*_FIRST, *options, *rest]


def require_writer(path: Path) -> None:
    """Find out before any work whether the file can be written.

    Raises
    ------
    UsageError
        Its suffix means nothing, or Parquet's library is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: results are written to *{' or *'.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            import_module("pyarrow.parquet")
        except ImportError:
            raise UsageError(
                "Parquet needs pyarrow: pip install 'vtx[sweep]', or name a .csv file"
            ) from None


def write_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows; the file is there whole or not at all.

    Raises
    ------
    VtxError
        It cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        if path.suffix == ".parquet":
            _write_parquet(name, rows)
        else:
            _write_csv(name, rows)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except OSError as error:
        raise VtxError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _write_parquet(name: str, rows: Sequence[dict[str, Any]]) -> None:
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    table = {column: [row.get(column) for row in rows] for column in columns(rows)}
    parquet.write_table(arrow.table(table), name)


def _write_csv(name: str, rows: Sequence[dict[str, Any]]) -> None:
    import csv

    with open(name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns(rows), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
