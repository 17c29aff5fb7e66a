"""What anything of VMX is, told from the tables: fields, exits, controls, checks, instructions.

`explain` finds everything that a name, a number or some words can mean and returns it as an
`Explanation`: data for a program (`Explanation.as_dict`) and a text for a reader
(`Explanation.text`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from vtx.errors import UnknownName, UsageError, VtxError
from vtx.explanation.article import Article, BitTable, Explanation, Row
from vtx.explanation.controls import control_articles
from vtx.explanation.ept_entries import ept_entry_articles
from vtx.explanation.exits import exit_articles
from vtx.explanation.fields import field_articles
from vtx.explanation.instructions import event_articles, instruction_articles
from vtx.explanation.others import error_articles, msr_articles
from vtx.facts.lookup import as_number

__all__ = ["KINDS", "Article", "BitTable", "Explanation", "Row", "explain"]

_Finder = Callable[[str], list[Article]]


def _check_articles(what: str) -> list[Article]:
    """Find checks; their registry is imported only when it is asked."""
    from vtx.explanation.checks import check_articles

    return check_articles(what)


#: Who knows the things of each kind, in the order in which they are explained.
_FINDERS: Final[Mapping[str, _Finder]] = {
    "field": field_articles,
    "exit": exit_articles,
    "control": control_articles,
    "error": error_articles,
    "msr": msr_articles,
    "instruction": instruction_articles,
    "event": event_articles,
    "check": _check_articles,
    "ept": ept_entry_articles,
}
#: Kinds of things that can be explained.
KINDS: Final = tuple(_FINDERS)
#: Kinds whose things are words that can be decoded.
_DECODERS: Final[Mapping[str, Callable[[str, int], list[Article]]]] = {
    "field": field_articles,
    "ept": ept_entry_articles,
}

#: How many things found by words are listed.
_MOST: Final = 20

_LEADING_KIND: Final = re.compile(
    rf"(?P<kind>exit reason|reason|vmcs field|{'|'.join(KINDS)})\s+(?P<rest>\S.*)",
    re.IGNORECASE | re.DOTALL,
)
_TRAILING_VALUE: Final = re.compile(
    r"(?P<what>\S.*?)[\s=:]+(?P<value>0x[0-9a-f_]+|\d+)", re.IGNORECASE | re.DOTALL
)


def explain(
    query: str | int,
    kind: str | None = None,
    qualification: int | None = None,
    value: int | None = None,
) -> Explanation:
    """Explain a field, exit reason, control, error, MSR, instruction, event, check or EPT entry.

    Parameters
    ----------
    query : str or int
        A name (the manual's, this project's or KVM's; any case) or a number, which is explained
        as everything it fits. A leading word chooses a kind: ``"error 7"``, ``"exit 48"``. A
        trailing number is decoded bit by bit: ``"guest_cs_access_rights 0xa09b"``. Words that
        name nothing are searched for.
    kind : str, optional
        One of `KINDS`: explain only this kind.
    qualification : int, optional
        An exit qualification to decode bit by bit; the query is an exit reason then.
    value : int, optional
        What a field or EPT entry holds, to decode bit by bit; the query names the field then.

    Raises
    ------
    UnknownName
        Nothing has this name, number or words; the nearest names are given.
    UsageError
        A qualification was given for something that is not an exit reason, or is none.
    """
    text = f"{query:#x}" if isinstance(query, int) else query.strip()
    if kind is not None and kind not in _FINDERS:
        raise UnknownName("kind of thing to explain", kind, KINDS)
    if value is not None:
        return Explanation(text, tuple(_decoded(text, kind, _word(value))))
    try:
        return Explanation(text, tuple(_find(text, kind, qualification)))
    except UnknownName as unknown:
        articles = [] if kind is not None else _second_guess(text, qualification)
        if not articles:
            raise unknown from None
        return Explanation(text, tuple(articles))


def _second_guess(text: str, qualification: int | None) -> list[Article]:
    """Understand a query that is no name: a leading kind, a trailing value, words."""
    leading = _LEADING_KIND.fullmatch(text)
    if leading is not None:
        # "exit reason" is a field, "exit reason 48" is not: a leading kind is the second guess.
        word = leading["kind"].lower().removesuffix("reason").removeprefix("vmcs").strip() or "exit"
        try:
            return _find(leading["rest"], word, qualification)
        except UnknownName:
            if as_number(leading["rest"]) is not None or qualification is not None:
                raise
    if qualification is not None:
        return []
    trailing = _TRAILING_VALUE.fullmatch(text)
    if trailing is not None:
        try:
            return _decoded(trailing["what"], None, _word(int(trailing["value"], 0)))
        except (UnknownName, ValueError):
            pass
    articles = _found_by_words(text)
    if not articles and leading is not None:
        _find(leading["rest"], word, None)
    return articles


def _word(value: int) -> int:
    if value < 0 or value >> 64:
        raise UsageError(f"a word of the VMCS or of EPT has 64 bits at most; {value:#x} has more")
    return value


def _decoded(what: str, kind: str | None, value: int) -> list[Article]:
    """Decode a value of the field or EPT entry called `what`."""
    leading = _LEADING_KIND.fullmatch(what)
    if kind is None and leading is not None and leading["kind"].lower() in _DECODERS:
        kind, what = leading["kind"].lower(), leading["rest"]
    elif kind is None and what.strip().lower() in ("ept", "epte"):
        kind, what = "ept", "entry"
    if kind is not None and kind not in _DECODERS:
        raise UsageError(f"a value belongs to a field or an EPT entry, not to kind {kind!r}")
    if kind is not None:
        return _DECODERS[kind](what, value)
    try:
        return field_articles(what, value)
    except UnknownName:
        from vtx.explanation.search import search

        names = [hit.name for hit in search(what) if hit.kind == "field"]
        decodable = [name for name in names if _has_layout(name)]
        if not 0 < len(decodable) <= 4:
            raise
        return [article for name in decodable for article in field_articles(name, value)]


def _has_layout(name: str) -> bool:
    """Tell whether the bits of a field have names."""
    return len(field_articles(name)[0].tables) > 1


def _found_by_words(text: str) -> list[Article]:
    """Return what has all the words: its article if there is one, otherwise a list."""
    from vtx.explanation.search import search

    if not any(len(word) > 2 for word in re.findall(r"[A-Za-z]+", text)):
        return []
    hits = search(text, _MOST + 1)
    if len(hits) == 1:
        return _FINDERS[hits[0].kind](hits[0].name)
    if not hits:
        return []
    return [
        Article(
            kind="list",
            name=text,
            number=None,
            title=f"{len(hits)} things about {text}"
            if len(hits) <= _MOST
            else f"Things about {text}",
            summary="Each has an article of its own: ask for it by the words on the left.",
            facts={f"{hit.kind} {hit.name}": hit.title for hit in hits[:_MOST]},
            note="More than these have the words: add another word." if len(hits) > _MOST else "",
        )
    ]


def _without_qualification(what: str, unknown: UnknownName) -> VtxError:
    """Return the error for a qualification of something that is no exit reason."""
    for kind, finder in _FINDERS.items():
        try:
            article = finder(what)[0]
        except UnknownName:
            continue
        if kind != "exit":
            return UsageError(
                f"{article.name} ({article.kind}) has no qualification: only an exit reason has one"
            )
    return unknown


def _find(what: str, kind: str | None, qualification: int | None) -> list[Article]:
    """Return what is known of `what`: of one kind, or of all."""
    if qualification is not None:
        if kind not in (None, "exit"):
            raise UsageError(f"a qualification belongs to an exit reason, not to kind {kind!r}")
        if qualification < 0 or qualification >> 64:
            raise UsageError(f"an exit qualification has 64 bits; {qualification:#x} does not fit")
        try:
            return exit_articles(what, qualification)
        except UnknownName as unknown:
            raise _without_qualification(what, unknown) from None
    if kind is not None:
        return _FINDERS[kind](what)
    articles: list[Article] = []
    suggestions: list[str] = []
    for word, finder in _FINDERS.items():
        if word == "check" and articles and "." not in what:
            continue  # the ending of a check's id is often the name of a control, which is meant
        try:
            articles += finder(what)
        except UnknownName as unknown:
            suggestions += unknown.suggestions
    if not articles:
        raise UnknownName("name or number", what, dict.fromkeys(suggestions))
    return articles
