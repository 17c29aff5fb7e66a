"""What a field, an exit reason, a control, an error or a capability MSR is, told from the tables.

`explain` finds everything that a name or number can mean and returns it as an `Explanation`:
data for a program (`Explanation.as_dict`) and a text for a reader (`Explanation.text`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from vtx.errors import UnknownName, UsageError, VtxError
from vtx.explanation.article import Article, BitTable, Explanation, Row
from vtx.explanation.controls import control_articles
from vtx.explanation.exits import exit_articles
from vtx.explanation.fields import field_articles
from vtx.explanation.others import error_articles, msr_articles

__all__ = ["KINDS", "Article", "BitTable", "Explanation", "Row", "explain"]

_Finder = Callable[[str], list[Article]]

#: Who knows the things of each kind, in the order in which they are explained.
_FINDERS: Final[Mapping[str, _Finder]] = {
    "field": field_articles,
    "exit": exit_articles,
    "control": control_articles,
    "error": error_articles,
    "msr": msr_articles,
}
#: Kinds of things that can be explained.
KINDS: Final = tuple(_FINDERS)

_LEADING_KIND: Final = re.compile(
    rf"(?P<kind>exit reason|reason|{'|'.join(KINDS)})\s+(?P<rest>\S.*)", re.IGNORECASE | re.DOTALL
)


def explain(
    query: str | int, kind: str | None = None, qualification: int | None = None
) -> Explanation:
    """Explain a VMCS field, exit reason, control, VM-instruction error or capability MSR.

    Parameters
    ----------
    query : str or int
        A name (the manual's, this project's or KVM's; any case) or a number, which is explained
        as everything it fits. A leading word chooses a kind: ``"error 7"``, ``"exit 48"``.
    kind : str, optional
        One of `KINDS`: explain only this kind.
    qualification : int, optional
        An exit qualification to decode bit by bit; the query is an exit reason then.

    Raises
    ------
    UnknownName
        Nothing has this name or number; the nearest names are given.
    UsageError
        A qualification was given for something that is not an exit reason, or is none.
    """
    text = f"{query:#x}" if isinstance(query, int) else query.strip()
    if kind is not None and kind not in _FINDERS:
        raise UnknownName("kind of thing to explain", kind, KINDS)
    try:
        return Explanation(text, tuple(_find(text, kind, qualification)))
    except UnknownName:
        # "exit reason" is a field, "exit reason 48" is not: a leading kind is the second guess.
        leading = _LEADING_KIND.fullmatch(text)
        if kind is not None or leading is None:
            raise
        word = leading["kind"].lower().removesuffix("reason").strip() or "exit"
        return Explanation(text, tuple(_find(leading["rest"], word, qualification)))


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
    for finder in _FINDERS.values():
        try:
            articles += finder(what)
        except UnknownName as unknown:
            suggestions += unknown.suggestions
    if not articles:
        raise UnknownName("name or number", what, dict.fromkeys(suggestions))
    return articles
