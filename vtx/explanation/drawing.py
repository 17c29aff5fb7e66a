"""A word drawn as the manual draws it: boxes with the bit positions above them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vtx.explanation.article import Row

__all__ = ["drawing"]

_LONGEST_NAME = 18
_MARGIN = 2


class _Box(NamedTuple):
    high: int
    low: int
    lines: tuple[str, ...]
    """Position, name and, for a word with a value, the value."""

    @property
    def width(self) -> int:
        return max(map(len, self.lines)) + 2


def drawing(rows: Sequence[Row], width: int) -> Iterator[str]:
    """Draw a word from its highest named bit down to bit 0.

    Parameters
    ----------
    rows : sequence of Row
        The ranges that have names, in any order; what lies between them is drawn as ``-``.
    width : int
        Characters that a line may have; a wider drawing goes on below.
    """
    line: list[_Box] = []
    used = _MARGIN + 1
    for box in _boxes(rows):
        if line and used + box.width + 1 > width:
            yield from _drawn(line)
            line, used = [], _MARGIN + 1
        line.append(box)
        used += box.width + 1
    if line:
        yield from _drawn(line)


def _boxes(rows: Sequence[Row]) -> Iterator[_Box]:
    """Yield the boxes from the highest bit downwards, gaps included."""
    spans = sorted((_span(row.bits), row) for row in rows if _is_span(row.bits))
    next_high = None
    valued = any(row.value is not None for row in rows)
    for (high, low), row in reversed(spans):
        if next_high is not None and high < next_high:
            yield _gap(next_high, high + 1, valued)
        name = row.name
        if len(name) > _LONGEST_NAME:
            name = name[: _LONGEST_NAME - 1] + "…"
        value = (_shown(row.value or 0),) if valued else ()
        yield _Box(high, low, (row.bits, name, *value))
        next_high = low - 1
    if next_high is not None and next_high >= 0:
        yield _gap(next_high, 0, valued)


def _is_span(text: str) -> bool:
    return all(part.isdecimal() for part in text.split(":"))


def _span(text: str) -> tuple[int, int]:
    high, _, low = text.partition(":")
    return int(high), int(low or high)


def _gap(high: int, low: int, valued: bool) -> _Box:
    label = str(high) if high == low else f"{high}:{low}"
    return _Box(high, low, (label, "-", "") if valued else (label, "-"))


def _shown(value: int) -> str:
    return str(value) if value < 10 else f"{value:#x}"


def _drawn(line: list[_Box]) -> Iterator[str]:
    """Yield one line of boxes: positions, edge, names, values, edge."""
    margin = " " * _MARGIN
    edge = margin + "+" + "+".join("-" * box.width for box in line) + "+"
    positions = " ".join(f"{box.lines[0]:^{box.width}}" for box in line)
    yield f"{margin} {positions}".rstrip()
    yield edge
    for index in range(1, len(line[0].lines)):
        yield margin + "|" + "|".join(f"{box.lines[index]:^{box.width}}" for box in line) + "|"
    yield edge
