"""Finding articles by words, where no name fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vtx.facts.controls import GROUPS
from vtx.facts.ept import ENTRY_FORMATS
from vtx.facts.exiting import CHANGED, CONDITIONAL, EVENTS, UNCONDITIONAL
from vtx.facts.exits import EXITS
from vtx.facts.fields import FIELDS
from vtx.facts.instruction_errors import INSTRUCTION_ERRORS
from vtx.facts.msrs import CAPABILITY_MSRS
from vtx.facts.vmx_instructions import VMX_INSTRUCTIONS
from vtx.rules.check import CHECKS

__all__ = ["Hit", "search"]


@dataclass(frozen=True)
class Hit:
    """Something whose article has all the words.

    Attributes
    ----------
    kind, name : str
        What `explain` takes to show it.
    title : str
        What it is, in a line.
    """

    kind: str
    name: str
    title: str


def search(words: str, limit: int = 20) -> list[Hit]:
    """Return what has all `words` in its name, title or first sentence, best first.

    A word matches the beginning of a word, in any case. Names count more than titles, titles more
    than sentences; short names come first among equals.

    Parameters
    ----------
    words : str
        What to look for.
    limit : int
        Length of the list at most.
    """
    wanted = _words(words)
    if not wanted:
        return []
    scored = []
    for hit, in_name, in_title, in_text in _index():
        score = 0
        for word in wanted:
            best = max(
                4 * _matches(word, in_name), 2 * _matches(word, in_title), _matches(word, in_text)
            )
            if not best:
                break
            score += best
        else:
            scored.append((-score, len(in_name), hit.kind, hit.name, hit))
    return [hit for *_, hit in sorted(scored, key=lambda row: row[:4])[:limit]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9#]+", text.lower().replace("_", " ")))


def _matches(word: str, words: tuple[str, ...]) -> int:
    """Return 2 for the whole word, 1 for the beginning of one, 0 for none."""
    if word in words:
        return 2
    return int(len(word) > 2 and any(other.startswith(word) for other in words))


@cache
def _index() -> tuple[tuple[Hit, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...]:
    """Return everything that can be explained, with its words."""
    return tuple(
        (Hit(kind, name, title), _words(name), _words(title), _words(text))
        for kind, name, title, text in _everything()
    )


_Entry = tuple[str, str, str, str]


def _everything() -> Iterator[_Entry]:
    """Yield kind, name, title and a sentence of everything."""
    yield from _vmcs()
    yield from _outcomes()
    yield from _instructions()
    for check in CHECKS.values():
        yield "check", check.id, check.title, check.rule
    for name, layout in ENTRY_FORMATS.items():
        yield "ept", name, layout.title, ""


def _vmcs() -> Iterator[_Entry]:
    for field in FIELDS.values():
        yield "field", field.name, field.sdm_name, field.note or ""
    for group in GROUPS.values():
        for control in group.controls:
            title = f"{control.sdm_name} ({group.title})"
            yield "control", control.key, title, control.meaning
    for msr in CAPABILITY_MSRS.values():
        yield "msr", msr.name, f"reports on {msr.reports}" if msr.reports else "", msr.rule or ""


def _outcomes() -> Iterator[_Entry]:
    for exit in EXITS.values():
        yield "exit", exit.name, exit.sdm_title, exit.meaning
    for error in INSTRUCTION_ERRORS.values():
        yield "error", error.name, error.text, error.when


def _instructions() -> Iterator[_Entry]:
    rows = UNCONDITIONAL | CONDITIONAL | CHANGED
    for row in rows.values():
        yield "instruction", row.name, ", ".join(row.instructions), row.exits_if
    for vmx in VMX_INSTRUCTIONS.values():
        if vmx.name.lower() not in rows:
            yield "instruction", vmx.name.lower(), vmx.name, vmx.operands
    for row in EVENTS.values():
        yield "event", row.name, row.name.replace("_", " "), row.exits_if
