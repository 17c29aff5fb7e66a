"""Results as pandas data frames (extra ``pandas``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vtx.lab.extras import need

__all__ = ["flat", "frame"]


def frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """Return rows as a data frame.

    Parameters
    ----------
    rows : iterable of mapping
        Values by column.
    columns : sequence of str, optional
        The columns, where there may be no rows.

    Raises
    ------
    UsageError
        pandas is not installed.
    """
    pandas = need("pandas", "pandas", "a data frame")
    return pandas.DataFrame(list(rows), columns=columns)


def flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return one row of what JSON nests: names with a point between; lists are left out."""
    row: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            row.update(flat(value, f"{prefix}{key}."))
        elif not isinstance(value, list):
            row[f"{prefix}{key}"] = value
    return row
