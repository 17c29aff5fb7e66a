"""Optional libraries, asked for when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from vtx.errors import UsageError

__all__ = ["need"]


def need(module: str, extra: str, what: str) -> Any:
    """Import an optional library.

    Parameters
    ----------
    module : str
        Its name.
    extra : str
        The extra of this package that installs it.
    what : str
        What it is needed for, as the beginning of a sentence.

    Raises
    ------
    UsageError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UsageError(
            f"{what} needs the package {module.partition('.')[0]}, which is not installed "
            f"(pip install 'vtx[{extra}]')"
        ) from None
