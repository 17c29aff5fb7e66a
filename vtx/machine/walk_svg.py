"""The two-dimensional walk as a picture: a grid with a row for each guest entry.

A row is one guest paging-structure entry (or, last, the address itself) whose guest-physical
address EPT translates from left to right before the entry is read in the right-most column; a walk
of g guest levels and h EPT levels has (g+1)(h+1)-1 cells.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from vtx.machine.walk import Dimension, Step, StepKind, Walk
from vtx.machine.walk_rules import ending, entry_flags, entry_name, failing_step

__all__ = ["walk_svg"]

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 142, 58, 8
_LEFT, _TOP, _BOTTOM = 96, 64, 62
_STYLE = """
.vtx-walk{--ink:#1b1f24;--soft:#57606a;--line:#8c959f;--ept:#ddf4ff;--guest:#fff8c5;
--cached:#eaeef2;--bad:#ffebe9;--badline:#cf222e;
font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){.vtx-walk{--ink:#e6edf3;--soft:#9da7b3;--line:#6e7681;
--ept:#0c2d4d;--guest:#3b2f0b;--cached:#21262d;--bad:#4d1418;--badline:#ff7b72}}
.vtx-walk text{fill:var(--ink)}.vtx-walk .soft{fill:var(--soft)}
.vtx-walk .title{font-size:14px;font-weight:600}
.vtx-walk rect{stroke:var(--line);rx:5px}
.vtx-walk .ept rect{fill:var(--ept)}.vtx-walk .guest rect{fill:var(--guest)}
.vtx-walk .cached rect{fill:var(--cached);stroke-dasharray:4 3}
.vtx-walk .bad rect{fill:var(--bad);stroke:var(--badline);stroke-width:2.5px}
"""


class _Cell(NamedTuple):
    row: int
    column: int
    step: Step
    number: int  # of the reference, from 1; 0 for what a cache answered
    writes: int


def walk_svg(walk: Walk) -> str:
    """Draw a recorded walk.

    Parameters
    ----------
    walk : Walk
        Made with ``record=True``.

    Returns
    -------
    str
        A self-contained SVG element that follows the reader's light or dark colours; every cell
        has its address, value and flags as a title.
    """
    guest_levels, ept_levels = _levels(walk)
    cells = _cells(walk, guest_levels, ept_levels)
    columns = len(ept_levels) + bool(guest_levels)
    rows = len(guest_levels) + 1
    width = _LEFT + max(columns, 4) * (_CELL_WIDTH + _GAP) + _GAP
    height = _TOP + rows * (_CELL_HEIGHT + _GAP) + _BOTTOM
    end = ending(walk)
    title = f"Walk of linear address {walk.gva:#x}: {_counted(walk)}"
    failed = failing_step(walk)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="vtx-walk" role="img" '
        f'aria-label="{escape(title)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(end.what)}. {escape(end.rule)} ({escape(end.source)}).</desc>",
        f"<style>{_STYLE}</style>",
        _text(12, 22, title, "title"),
        *_headings(guest_levels, ept_levels),
        *(_draw(cell, failed) for cell in cells),
        *_footer(end.what, f"{end.rule} ({end.source})", height, width),
        "</svg>",
    ]
    return "\n".join(parts)


def _counted(walk: Walk) -> str:
    number = walk.references
    return f"{number} reference{'s' * (number != 1)}"


def _levels(walk: Walk) -> tuple[list[int], list[int]]:
    """Return the guest levels and the EPT levels that the walk came to, from the root down."""
    guest = {step.level for step in walk.steps if step.dimension is Dimension.GUEST}
    guest |= {step.guest_level for step in walk.steps if step.dimension is Dimension.EPT}
    ept = {step.level for step in walk.steps if step.dimension is Dimension.EPT}
    return sorted(guest - {0}, reverse=True), sorted(ept, reverse=True)


def _cells(walk: Walk, guest_levels: list[int], ept_levels: list[int]) -> list[_Cell]:
    """Place every step; what the walk wrote goes to the cell of the entry that it read."""
    cells: dict[tuple[int, int], _Cell] = {}
    number = 0
    for step in walk.steps:
        if step.dimension is Dimension.LOG:
            continue
        ept = step.dimension is Dimension.EPT
        level = step.guest_level if ept else step.level
        row = guest_levels.index(level) if level else len(guest_levels)
        column = ept_levels.index(step.level) if ept else len(ept_levels)
        known = cells.get((row, column))
        if step.kind is StepKind.WRITE:
            if known is not None:
                cells[row, column] = known._replace(writes=known.writes + 1)
            continue
        number += step.kind is StepKind.READ
        order = number if step.kind is StepKind.READ else 0
        cells[row, column] = _Cell(row, column, step, order, 0)
    return list(cells.values())


def _at(row: int, column: int) -> tuple[int, int]:
    return _LEFT + column * (_CELL_WIDTH + _GAP), _TOP + row * (_CELL_HEIGHT + _GAP)


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{attribute}>{escape(text)}</text>'


def _headings(guest_levels: list[int], ept_levels: list[int]) -> list[str]:
    names = [f"EPT level {level}" if level else "nested TLB" for level in ept_levels]
    names += ["guest entry"] * bool(guest_levels)
    parts = [_text(_at(0, at)[0] + 4, _TOP - 10, name, "soft") for at, name in enumerate(names)]
    rows = [f"guest L{level}" for level in guest_levels]
    rows += ["address"] if ept_levels else []
    return parts + [_text(12, _at(at, 0)[1] + 34, name, "soft") for at, name in enumerate(rows)]


def _draw(cell: _Cell, failed: Step | None) -> str:
    step = cell.step
    x, y = _at(cell.row, cell.column)
    kind = "ept" if step.dimension is Dimension.EPT else "guest"
    if step.kind is StepKind.CACHED:
        kind = "cached"
    if step == failed:
        kind += " bad"
    name, flags = entry_name(step), entry_flags(step)
    head = f"{cell.number}  {name}" if cell.number else f"{name} (cached)"
    where = f"at {step.address:#x}" if cell.number else "no reference"
    written = f"; written {cell.writes} x (A, D)" if cell.writes else ""
    title = f"{head} {where}: {step.value:#x} {flags}{written}; guest-physical {step.gpa:#x}"
    lines = [head, where, f"{flags}{' +A/D' if cell.writes else ''}" or f"{step.value:#x}"]
    texts = "".join(_text(x + 7, y + 17 + 16 * at, line) for at, line in enumerate(lines))
    return (
        f'<g class="{kind}"><title>{escape(title)}</title>'
        f'<rect x="{x}" y="{y}" width="{_CELL_WIDTH}" height="{_CELL_HEIGHT}"/>{texts}</g>'
    )


def _footer(what: str, rule: str, height: int, width: int) -> list[str]:
    from textwrap import wrap

    lines = wrap(f"{what}. {rule}.", max(40, width // 8))[:3]
    return [_text(12, height - _BOTTOM + 16 + 16 * at, line) for at, line in enumerate(lines)]
