"""The layouts of exit information, for a page that decodes words by itself.

All exits of a page can be looked at, so that the page gets the tables, not the decoded words.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.layout import UNNAMED, Layout
from vtx.facts.qualifications import EVENT_INFORMATION
from vtx.machine.exit_details import exit_layouts

__all__ = ["EVENT", "Layouts", "reason_text"]

EVENT = EVENT_INFORMATION["vm_exit_interruption_information"]
_VALID, _NMI = 1 << 31, 2


def reason_text(number: int | None, name: str) -> dict[str, Any]:
    """Return what a page says about an exit reason."""
    if number is None or number not in ExitReason._value2member_map_:
        return {"name": name, "number": number, "title": name, "meaning": ""}
    info = EXITS[ExitReason(number)]
    return {"name": name, "number": number, "title": info.sdm_title, "meaning": info.meaning}


class Layouts:
    """Layouts by number, each once; number 0 is none."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._layouts: list[dict[str, Any] | None] = [None]

    def number(self, layout: Layout | None) -> int:
        """Return the number of a layout."""
        if layout is None:
            return 0
        if layout.name not in self._numbers:
            self._numbers[layout.name] = len(self._layouts)
            self._layouts.append(_described(layout))
        return self._numbers[layout.name]

    def numbers(self, reason: int | None, event: int) -> tuple[int, int]:
        """Return the layouts of qualification and instruction information of an exit.

        Parameters
        ----------
        reason : int or None
            Basic exit reason.
        event : int
            VM-exit interruption information.
        """
        qualification, instruction = _layouts(reason, event)
        return self.number(qualification), self.number(instruction)

    def described(self) -> list[dict[str, Any] | None]:
        """Return all of them, by number."""
        return self._layouts


@lru_cache(4096)
def _layouts(reason: int | None, event: int) -> tuple[Layout | None, Layout | None]:
    if reason is None or reason not in ExitReason._value2member_map_:
        return None, None
    vector = event & 0xFF if event & _VALID else None
    return exit_layouts(ExitReason(reason), vector, nmi=event >> 8 & 7 == _NMI)


def _described(layout: Layout) -> dict[str, Any]:
    return {
        "title": layout.title,
        "source": layout.source,
        "ranges": [
            {
                "high": row.high,
                "low": row.low,
                "label": row.label,
                "name": row.name,
                "meaning": row.meaning,
                "values": dict(row.values) if row.values else None,
                "named": row.name not in UNNAMED,
            }
            for row in layout.ranges
        ],
    }
