"""A table as plain text: the same characters wherever it is printed, wide or narrow.

Nothing is cut and nothing depends on the terminal, so that output can be piped, compared and
pasted. A command may show the same table with colour on a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Column", "Table", "printable"]


def printable(text: str) -> str:
    """Return `text` without control characters: names may come from files of other people."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


@dataclass(frozen=True)
class Column:
    """One column: its heading, and whether its cells are figures (right-aligned)."""

    heading: str
    figures: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under headings, with a title above and remarks below.

    Parameters
    ----------
    title : str
        One line.
    columns : sequence of Column
        From left to right.
    rows : sequence of sequence of str
        One cell for each column.
    remarks : sequence of str
        Lines that explain the figures.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()

    def __str__(self) -> str:
        """Return the table as plain text, without a final newline."""
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        from vtx.machine.html_table import html_table

        return html_table(
            printable(self.title),
            [column.heading for column in self.columns],
            [[printable(cell) for cell in row] for row in self.rows],
            figures=[at for at, column in enumerate(self.columns) if column.figures],
            remarks=[printable(remark) for remark in self.remarks],
        )

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        head = [column.heading for column in self.columns]
        rows = [[printable(cell) for cell in row] for row in self.rows]
        widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
        body = [self._line(head, widths), "  ".join("-" * width for width in widths)]
        body += [self._line(row, widths) for row in rows]
        title = [printable(self.title), ""] if self.title else []
        remarks = ["", *map(printable, self.remarks)] if self.remarks else []
        return [*title, *body, *remarks]

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = (
            cell.rjust(width) if column.figures else cell.ljust(width)
            for cell, width, column in zip(cells, widths, self.columns, strict=True)
        )
        return "  ".join(padded).rstrip()
