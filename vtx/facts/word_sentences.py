"""What a word of the VMCS says, in plain English: events, blocking, access rights, EPTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vtx.bits import bit, bits
from vtx.errors import EXCEPTIONS
from vtx.facts.layout import UNNAMED, decode
from vtx.facts.qualifications import (
    ACTIVITY_STATE,
    EVENT_INFORMATION,
    ORIGINAL_EVENT_TYPE,
    field_layout,
)
from vtx.facts.sentences import listed

__all__ = ["word_sentence"]

_EXCEPTION_TYPES: Final = frozenset({3, 5, 6})
_PRESENT, _UNUSABLE = 7, 16


def word_sentence(layout: str, value: int) -> str:
    """Say what a word of this layout holds.

    Parameters
    ----------
    layout : str
        Name of a layout that a VMCS field has.
    value : int
        The word.
    """
    if layout in EVENT_INFORMATION:
        return _event(value)
    sentence = _SENTENCES.get(layout)
    return _flags(layout, value) if sentence is None else sentence(value)


def _event(value: int) -> str:
    if not bit(value, 31):
        return "Not valid (bit 31 is 0): the rest of the word means nothing."
    vector, kind = bits(value, 7, 0), bits(value, 10, 8)
    name = ORIGINAL_EVENT_TYPE.get(kind, "an event of a reserved type")
    mnemonic = EXCEPTIONS.get(vector) if kind in _EXCEPTION_TYPES else None
    which = f"vector {vector}" + (f" ({mnemonic})" if mnemonic else "")
    code = "with an error code" if bit(value, 11) else "without an error code"
    return f"{name[:1].upper()}{name[1:]}, {which}, {code}."


def _activity(value: int) -> str:
    return f"The logical processor is in state {ACTIVITY_STATE.get(value, 'not defined')}."


def _access_rights(value: int) -> str:
    if bit(value, _UNUSABLE):
        return "The segment is unusable: an access through it faults."
    if not bit(value, _PRESENT):
        return "The segment is not present."
    kind, dpl = bits(value, 3, 0), bits(value, 6, 5)
    if not bit(value, 4):
        what = f"a system segment of type {kind}"
    elif kind & 8:
        size = "64-bit" if bit(value, 13) else "32-bit" if bit(value, 14) else "16-bit"
        what = f"a {size} {'conforming ' if kind & 4 else ''}code segment"
    else:
        what = f"a {'writable' if kind & 2 else 'read-only'} data segment"
        what += ", expand-down" if kind & 4 else ""
    return f"It is {what} with DPL {dpl}."


def _eptp(value: int) -> str:
    levels = bits(value, 5, 3) + 1
    flags = "with" if bit(value, 6) else "without"
    return (
        f"A {levels}-level EPT whose root is at {value & 0xF_FFFF_FFFF_F000:#x}, {flags} accessed "
        "and dirty flags."
    )


def _flags(layout: str, value: int) -> str:
    """Name what is set."""
    named = [
        part.range.name.replace("_", " ")
        if part.range.high == part.range.low
        else f"{part.range.name.replace('_', ' ')} {part.value:#x}"
        for part in decode(field_layout(layout), value)
        if part.value and part.range.name not in UNNAMED
    ]
    return f"Set: {listed(named)}." if named else "Nothing is set."


_SENTENCES: Final[Mapping[str, Callable[[int], str]]] = {
    "activity_state": _activity,
    "access_rights": _access_rights,
    "eptp": _eptp,
}
