"""Tables for notebooks: plain HTML, everything escaped, no style but what the reader has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

__all__ = ["html_table"]


def html_table(
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    figures: Collection[int] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return rows of text as an HTML table.

    Parameters
    ----------
    caption : str
        What it is; empty for none.
    headings : sequence of str
        One for each column.
    rows : sequence of sequence of str
        One cell for each column.
    figures : collection of int
        Columns that are aligned to the right.
    remarks : sequence of str
        Lines below the table.
    """
    styles = [_style(at in figures) for at in range(len(headings))]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = "".join(
        f'<th scope="col"{style}>{escape(heading)}</th>'
        for style, heading in zip(styles, headings, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{style}>{escape(cell)}</td>" for style, cell in zip(styles, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    below = "".join(f"<p>{escape(remark)}</p>" for remark in remarks)
    return f"<table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>{below}"


def _style(figure: bool) -> str:
    side = "right" if figure else "left"
    return f' style="text-align:{side};white-space:pre"'
