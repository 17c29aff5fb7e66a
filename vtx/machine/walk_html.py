"""A walk as rows of text, and as a page of HTML with its picture."""

from __future__ import annotations

from html import escape

from vtx.machine.walk import Dimension, Hit, StepKind, Walk
from vtx.machine.walk_rules import ending, entry_flags, entry_name, failing_step
from vtx.machine.walk_svg import walk_svg

__all__ = ["HEADINGS", "rows_of", "walk_html"]

HEADINGS = ("#", "dimension", "for", "entry", "address", "value", "flags", "from")
_HITS = {Hit.UNKNOWN: "memory", Hit.L1: "L1", Hit.L2: "L2", Hit.L3: "L3", Hit.MEMORY: "memory"}
_FROM = {StepKind.WRITE: "memory, written", StepKind.CACHED: "cache"}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:80rem}}
table{{border-collapse:collapse;font:13px ui-monospace,Menlo,Consolas,monospace}}
th,td{{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #8884}}
td.n{{text-align:right}}
tr.bad{{outline:2px solid #cf222e}}
svg{{max-width:100%;height:auto}}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{what}. <em>{rule}</em> ({source}).</p>
{svg}
<table>
<caption>Every reference in order</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</body>
</html>
"""


def rows_of(walk: Walk) -> list[list[str]]:
    """Return a row of text for each step of a recorded walk, under :data:`HEADINGS`."""
    rows, number = [], 0
    for step in walk.steps:
        number += step.kind is StepKind.READ
        order = str(number) if step.kind is StepKind.READ else ""
        served = ""
        if step.dimension is Dimension.EPT:
            served = f"guest L{step.guest_level}" if step.guest_level else "address"
        rows.append(
            [
                order,
                step.dimension.name.lower(),
                served,
                entry_name(step),
                f"{step.address:#x}" if step.kind is not StepKind.CACHED else "",
                f"{step.value:#x}",
                entry_flags(step),
                _HITS[step.hit] if step.kind is StepKind.READ else _FROM[step.kind],
            ]
        )
    return rows


def walk_html(walk: Walk, title: str) -> str:
    """Return a page with the picture and the table of a recorded walk.

    Parameters
    ----------
    walk : Walk
        Made with ``record=True``.
    title : str
        Where it was made.
    """
    end = ending(walk)
    failed = failing_step(walk)
    body = []
    for step, row in zip(walk.steps, rows_of(walk), strict=True):
        cells = "".join(
            f"<td{' class=n' if at in (0, 4, 5) else ''}>{escape(cell)}</td>"
            for at, cell in enumerate(row)
        )
        body.append(f"<tr{' class=bad' if step == failed else ''}>{cells}</tr>")
    return _PAGE.format(
        title=escape(f"{title}: walk of linear address {walk.gva:#x}"),
        what=escape(end.what),
        rule=escape(end.rule),
        source=escape(end.source),
        svg=walk_svg(walk),
        head="".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS),
        body="\n".join(body),
    )
