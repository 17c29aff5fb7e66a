"""An article laid out as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vtx.explanation.drawing import drawing

if TYPE_CHECKING:
    from vtx.explanation.article import Article, BitTable, Row

__all__ = ["article_lines"]

_LINE = 88
#: A word with more named ranges than this is listed, not drawn.
_MOST_DRAWN = 20


def article_lines(article: Article) -> Iterator[str]:
    """Lay out one article, line by line."""
    title = _paragraph(article.title)
    yield from title
    yield "=" * max(len(line) for line in title)
    yield from _paragraph(article.summary)
    if article.facts:
        yield ""
    width = max((len(label) for label in article.facts), default=0)
    for label, fact in article.facts.items():
        yield from _paragraph(fact, f"{label:<{width}}  ")
    for table in article.tables:
        yield ""
        yield from _table_lines(table)
    if article.note:
        yield ""
        yield from _paragraph(article.note, "Note: ")
    if article.sections or article.related:
        yield ""
    if article.sections:
        yield from _paragraph("; ".join(article.sections), "Read on: ")
    if article.related:
        yield from _paragraph(", ".join(article.related), "See also: ")


def _table_lines(table: BitTable) -> Iterator[str]:
    """Lay out one word: heading, sentence, bits, rules, source."""
    with_values = table.value is not None
    yield from _paragraph(f"{table.title}: {table.value:#x}" if with_values else table.title)
    if table.sentence:
        yield from _paragraph(table.sentence, "  ")
    if table.when:
        yield from _paragraph(f"Layout when: {table.when}", "  ")
    if 1 < len(table.rows) <= _MOST_DRAWN:
        yield from drawing(table.rows, _LINE)
    positions = max((len(row.bits) for row in table.rows), default=0)
    names = max((len(row.name) for row in table.rows), default=0)
    values = max((len(_shown(row)) for row in table.rows), default=0) if with_values else 0
    for row in table.rows:
        lead = f"  {row.bits:>{positions}}  {row.name:<{names}}  "
        if with_values:
            lead += f"{_shown(row):>{values}}  "
        yield from _paragraph(row.meaning, lead)
    for note in table.notes:
        yield from _paragraph(note, "  - ")
    yield from _paragraph(f"({table.source})", "  ")


def _shown(row: Row) -> str:
    """Return a row's value as text, a one-digit value without base."""
    value = row.value or 0
    return str(value) if value < 10 else f"{value:#x}"


def _paragraph(text: str, lead: str = "") -> list[str]:
    """Fold `text` behind `lead`, with the following lines under the text's first word."""
    lines = textwrap.wrap(
        text,
        _LINE,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_on_hyphens=False,
    )
    return lines or [lead.rstrip()]
