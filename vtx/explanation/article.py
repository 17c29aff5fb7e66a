"""What an explanation consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vtx.explanation.text import article_lines

__all__ = ["Article", "BitTable", "Explanation", "Row"]


@dataclass(frozen=True)
class Row:
    """One range of bits.

    Attributes
    ----------
    bits : str
        Position as the manual prints it, ``"11:8"``.
    name : str
        Short name.
    value : int or None
        What a given word holds there; None if no word was given.
    meaning : str
        What the bits say, or what this value says.
    """

    bits: str
    name: str
    value: int | None
    meaning: str


@dataclass(frozen=True)
class BitTable:
    """A word drawn bit by bit.

    Attributes
    ----------
    title : str
        What the word is.
    value : int or None
        The word, if one was given.
    sentence : str
        What the given word says, in plain English; empty without a word.
    rows : tuple of Row
        From bit 0 upwards; ranges that carry no information are left out.
    source : str
        Where the layout is described.
    when : str
        When the word has this layout; empty: always.
    notes : tuple of str
        Rules and disagreements.
    """

    title: str
    value: int | None
    sentence: str
    rows: tuple[Row, ...]
    source: str
    when: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Article:
    """What there is to say about one thing.

    Attributes
    ----------
    kind : str
        One of the kinds that `explain` knows, or ``"list"`` for things found by words.
    name : str
        The name that finds it.
    number : int or None
        Encoding, exit reason, mask, error number or MSR address; None for what has no number.
    title, summary : str
        What it is, in a heading and in a sentence.
    facts : mapping of str to str
        Further facts by label, in reading order.
    tables : tuple of BitTable
        Words drawn bit by bit.
    note : str
        What else is worth knowing; may be empty.
    sections : tuple of str
        Where to read on in the manual.
    related : tuple of str
        Names, which `explain` knows, of what belongs to this one.
    """

    kind: str
    name: str
    number: int | None
    title: str
    summary: str
    facts: Mapping[str, str]
    tables: tuple[BitTable, ...] = ()
    note: str = ""
    sections: tuple[str, ...] = ()
    related: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Everything that a query can mean: at least one article."""

    query: str
    articles: tuple[Article, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain dictionaries, tuples, strings and numbers."""
        return asdict(self)

    def text(self) -> str:
        """Return the explanation as a text of lines of at most 88 characters."""
        return "\n\n".join("\n".join(article_lines(article)) for article in self.articles)

    def __str__(self) -> str:
        return self.text()
