"""Exceptions and interrupts 0 to 31 by vector and mnemonic.

Source: SDM, "Exception and Interrupt Reference".
"""

from __future__ import annotations

from typing import Final

from vtx.errors import EXCEPTIONS, UnknownName

__all__ = ["EXCEPTIONS", "exception_name", "find_exception"]

_VECTORS: Final = {name.lstrip("#").lower(): vector for vector, name in EXCEPTIONS.items()}


def exception_name(vector: int) -> str:
    """Return the mnemonic of a vector, ``"vector 32"`` where it has none."""
    return EXCEPTIONS.get(vector, f"vector {vector}")


def find_exception(name: str) -> int:
    """Return the vector of an exception called `name`: ``"#GP"``, ``"gp"`` or ``"NMI"``.

    Raises
    ------
    UnknownName
        There is no such exception.
    """
    key = name.strip().lstrip("#").split("(")[0].lower()
    if key not in _VECTORS:
        raise UnknownName("exception", name, EXCEPTIONS.values())
    return _VECTORS[key]
