"""The exits of a page as packed columns: of a replay, or of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtx.facts.fields import FIELDS, Field
from vtx.lab.ledger import reason_name
from vtx.report.columns import choices, numbers, words
from vtx.report.decoding import EVENT, Layouts, reason_text
from vtx.report.page import ExitList
from vtx.report.recorder import DEAREST, FIRST, KEPT, Change, Recorded, Recorder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["column", "replayed_exits", "word"]


def column(
    key: str,
    title: str,
    width: str,
    packed: dict[str, Any],
    *,
    figures: bool = False,
    digits: int = 0,
) -> dict[str, Any]:
    """Return a column: its name, its width in a grid of CSS, and its values."""
    return {
        "key": key,
        "title": title,
        "width": width,
        "figures": figures,
        "digits": digits,
        **packed,
    }


def word(
    column_key: str, title: str, layouts: Sequence[int] | NDArray[Any], *, skip_zero: bool = True
) -> dict[str, Any]:
    """Return which layout the words of a column have in each row."""
    packed = choices((), layouts)
    packed.pop("values")
    return {"column": column_key, "title": title, "skipZero": skip_zero, "layouts": packed}


def replayed_exits(recorder: Recorder, costs: Sequence[float | None]) -> ExitList:
    """Return the exits of a replay.

    Parameters
    ----------
    recorder : Recorder
        What was seen.
    costs : sequence of float or None
        Cycles of each exit that was kept; None without prices.
    """
    exits = recorder.exits
    layouts = Layouts()
    pairs = [layouts.numbers(one.reason, one.interruption_information) for one in exits]
    event = layouts.number(EVENT)
    different = list(dict.fromkeys(one.reason for one in exits))
    names = [reason_name(reason) for reason in different]
    places = {reason: at for at, reason in enumerate(different)}
    data = {
        "count": len(exits),
        "columns": _columns(exits, costs, names, [places[one.reason] for one in exits]),
        "shown": ["number", "step", "cycles", "reason", "qualification", "gpa", "rip", "processor"],
        "orders": [
            {"key": "", "title": "as they came"},
            {"key": "cycles", "title": "dearest first"},
        ],
        "addresses": ["rip", "gpa", "qualification"],
        "words": [
            word("qualification", "Exit qualification", [q for q, _ in pairs], skip_zero=False),
            word("instruction", "VM-exit instruction information", [i for _, i in pairs]),
            word("event", "VM-exit interruption information", [event] * len(exits)),
        ],
        "reasons": [
            reason_text(reason, name) for reason, name in zip(different, names, strict=True)
        ],
        "layouts": layouts.described(),
        "changes": _changes(recorder.changes, len(exits)),
    }
    return ExitList(_which(recorder.count, len(exits)), data)


def _which(count: int, kept: int) -> str:
    if count == kept:
        return f"All {count:,} exits of the run."
    return f"The first {kept:,} of {count:,} exits (a page lists at most {KEPT:,})."


def _columns(
    exits: Sequence[Recorded], costs: Sequence[float | None], names: Sequence[str], index: list[int]
) -> list[dict[str, Any]]:
    import numpy as np

    def of(name: str) -> NDArray[Any]:
        return np.array([getattr(one, name) for one in exits], np.uint64)

    physical = of("guest_physical_address")
    return [
        column("number", "exit", "4rem", numbers(range(1, len(exits) + 1)), figures=True),
        column("step", "guest step", "5rem", numbers(of("step")), figures=True),
        column("cycles", "cycles", "4.5rem", numbers(costs), figures=True),
        column("reason", "reason", "minmax(8rem,2fr)", choices(names, index)),
        column("qualification", "qualification", "minmax(5.5rem,1fr)", words(of("qualification"))),
        column("gpa", "guest-physical", "minmax(5.5rem,1fr)", words(physical, physical != 0)),
        column("rip", "RIP", "minmax(5.5rem,1fr)", words(of("rip"))),
        column("processor", "CPU", "2.5rem", numbers(of("processor")), figures=True),
        column("instruction", "instruction information", "", words(of("instruction_information"))),
        column("event", "interruption information", "", words(of("interruption_information"))),
    ]


def _changes(changes: Mapping[int, Sequence[Change]], count: int) -> dict[str, Any]:
    """Return the differences by row, with the names of the fields that occur."""
    shown = {row: found for row, found in changes.items() if row < count}
    fields = sorted({change.field for found in shown.values() for change in found})
    places = {field: at for at, field in enumerate(fields)}
    return {
        "note": f"Differences are kept for the first {FIRST:,} exits and the {DEAREST} dearest of "
        "the others; this exit is none of them.",
        "fields": [FIELDS[Field(field)].name.upper() for field in fields],
        "rows": {
            row: [[places[c.field], int(c.by_handler), hex(c.before), hex(c.after)] for c in found]
            for row, found in sorted(shown.items())
        },
    }
