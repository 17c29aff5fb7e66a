"""Single values of a trace's header, each checked, each error at its place in the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vtx.errors import EXCEPTIONS as MNEMONICS
from vtx.errors import InputError
from vtx.profiles.document import Item

__all__ = ["EXCEPTIONS", "at", "flag", "number_of", "size_of", "text_of"]

_MAX64 = (1 << 64) - 1
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: Vectors by the manual's names of exceptions.
EXCEPTIONS = {name: vector for vector, name in MNEMONICS.items() if name.startswith("#")}
T = TypeVar("T")


def at(item: Item, work: Callable[[], T]) -> T:
    """Run `work`; an InputError without a place gets that of `item`."""
    try:
        return work()
    except InputError as error:
        raise error.at(item.file, item.line, item.column) from None


def number_of(item: Item, what: str, low: int = 0, high: int = _MAX64) -> int:
    """Return an integer from `low` to `high`, both included."""
    return item.integer(what, low, high)


def flag(item: Item, what: str) -> bool:
    """Return a truth value."""
    if not isinstance(item.value, bool):
        raise item.error(f"{what} must be on or off")
    return item.value


def size_of(item: Item, what: str) -> int:
    """Return a number of bytes: a number, or text such as ``64M``."""
    if isinstance(item.value, str) and item.value[-1:].upper() in _UNITS:
        digits = item.value[:-1].strip()
        if digits.isdecimal() and len(digits) < 16:
            return int(digits) * _UNITS[item.value[-1].upper()]
    if isinstance(item.value, int) and not isinstance(item.value, bool):
        return number_of(item, what)
    raise item.error(f"{what} must be a size", hint="write 64M or 1G")


def text_of(item: Item | None, what: str) -> str:
    """Return text, empty if the key is missing."""
    return "" if item is None else item.text(what)
