"""Bit tables out of the layouts of the facts."""

from __future__ import annotations

from vtx.explanation.article import BitTable, Row
from vtx.facts.layout import UNNAMED, DecodedBits, Layout, decode

__all__ = ["described", "layout_table", "upper_first"]


def upper_first(text: str) -> str:
    """Return `text` with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def layout_table(layout: Layout, value: int | None = None, sentence: str = "") -> BitTable:
    """Draw a layout; with a value, show what it holds.

    Ranges without a name of their own are shown only where the value has bits set that should
    not be.
    """
    rows = []
    for part in decode(layout, value or 0):
        if part.range.name not in UNNAMED:
            rows.append(_row(part, value))
        elif part.value:
            wrong = f"{part.range.meaning}, yet set here"
            rows.append(Row(part.range.label, part.range.name, part.value, wrong))
    return BitTable(
        title=layout.title,
        value=value,
        sentence=sentence,
        rows=tuple(rows),
        source=layout.source,
        when=layout.when or "",
        notes=layout.notes,
    )


def _row(part: DecodedBits, value: int | None) -> Row:
    """Make a row of one range: its meaning, or with a value what the value means."""
    if value is None:
        return Row(part.range.label, part.range.name, None, described(part))
    meaning = part.range.meaning
    if part.range.values is not None:
        meaning = f"{part.means} ({meaning})"
    elif part.range.high == part.range.low and not part.value:
        meaning = f"no: {meaning}"
    return Row(part.range.label, part.range.name, part.value, meaning)


def described(part: DecodedBits) -> str:
    """Return the meaning of a range with all values it may have."""
    values = part.range.values
    if values is None:
        return part.range.meaning
    listed = ", ".join(f"{number} {text}" for number, text in values.items())
    return f"{part.range.meaning}: {listed}"
