"""The page ``docs/published.md``, written from a run."""

from __future__ import annotations

from pathlib import Path

from tests.published.caches import STREAMS, per_walk, runs
from tests.published.walks import ROWS
from vtx.machine.memory import Memory

__all__ = ["PAGE", "page", "walk_rows"]

PAGE = Path(__file__).parents[2] / "docs" / "published.md"

_HEAD = """# Published figures, simulated

This page is written by `python -m tests.published` from the repository's root, and a test compares
it with a new run. It sets what papers have published about two-dimensional walks beside what vtx
counts. The programs that the papers ran cannot be had, so where a figure depends on a program it is
compared with vtx's own streams, and the last column says what that means.

## References of a walk with nothing cached

Bhargava, Serebrin, Spadini, Manne, "Accelerating Two-Dimensional Page Walks for Virtualized
Systems", ASPLOS 2008, section 1: a walk of *n* guest levels over *m* nested levels makes
*nm* + *n* + *m* references. Rows other than 4 + 4 levels follow from the formula. Each walk here
runs over page tables in memory (`Mmu.walk`), and what it reads is counted.

| guest | nested | published | simulated | difference |
|---|---|---|---|---|
"""

_FLAT = """
A flat nested table of one level (Ahn, Jin, Huh, ISCA 2012, and the row of it) is not an EPT that
VT-x knows, and is not simulated. PAE paging keeps its PDPTEs in registers, which are loaded through
EPT by MOV to CR3; that is no part of the walk.

## What caches leave of a walk

Published averages, over the programs of the papers:

- Bhargava 2008, Figure 8, MiscServer: 4.53 references to memory a walk, derived from the figure,
  with a page walk cache of 24 entries and a nested TLB of 16. Without caches 24.
- Park et al., "Every Walk is a Hit", ASPLOS 2022, abstract: 1.5 accesses a walk native, 4.4
  virtualized, with page-walker caches as processors have them.

Simulated: references per walk over the recorded streams in `traces/` (500,000 references each), and
over 50,000 loads scattered evenly over 1 and 16 GiB, the worst that a program of this size can do.
In brackets the number of walks.

| stream | TLBs and caches | native | 4K+4K | 4K+2M | 2M+2M |
|---|---|---|---|---|---|
"""

_TITLES = {
    "nothing": "Bhargava's TLBs, no caches",
    "walker": "the same, 8 paging-structure entries for each level",
    "nested": "the same, nested TLB of 16 alone",
    "both": "the same, both",
    "skylake_sp": "profile skylake_sp",
}


def walk_rows() -> list[tuple[str, str, int, int | None]]:
    """Guest, nested, published and simulated references of every pair of tables."""
    rows = []
    for row in ROWS:
        with Memory(64 << 30, huge_pages=False) as memory:
            simulated = row.simulate(memory) if row.simulate is not None else None
        rows.append((row.guest, row.nested, row.published, simulated))
    return rows


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for guest, nested, published, simulated in walk_rows():
        difference = "not simulated" if simulated is None else f"{simulated - published:+d}"
        shown = "" if simulated is None else simulated
        parts.append(f"| {guest} | {nested} | {published} | {shown} | {difference} |\n")
    parts.append(_FLAT)
    for stream in STREAMS:
        for name, title in _TITLES.items():
            figures = [_figure(stream, name, pages) for pages in _COLUMNS]
            parts.append(f"| {stream} | {title} | {' | '.join(figures)} |\n")
    parts.append(_compared())
    return "".join(parts)


_COLUMNS = ("native", "4K+4K", "4K+2M", "2M+2M")


def _figure(stream: str, name: str, pages: str) -> str:
    result = runs(stream)[name, pages]
    return f"{per_walk(result):.2f} ({result.walks:,})"


def _range(name: str, pages: str) -> tuple[float, float]:
    """The least and the most references of an average walk, over the streams."""
    figures = [per_walk(runs(stream)[name, pages]) for stream in STREAMS]
    return min(figures), max(figures)


def _compared() -> str:
    rows = [
        ("Park 2022: native", 1.5, _range("skylake_sp", "native"), _WHY_PARK),
        ("Park 2022: virtualized", 4.4, _range("skylake_sp", "4K+4K"), _WHY_PARK_2D),
        ("Bhargava 2008, Figure 8: virtualized", 4.53, _range("both", "4K+4K"), _WHY_FIGURE_8),
        ("Bhargava 2008: without caches", 24.0, _range("nothing", "4K+4K"), _WHY_NOTHING),
    ]
    lines = [
        f"| {what} | {published:.2f} | {low:.2f} to {high:.2f} | {_place(published, low, high)} "
        f"| {why} |\n"
        for what, published, (low, high), why in rows
    ]
    saved = [
        _saved(("nothing", "4K+4K"), ("walker", "4K+4K")),
        _saved(("walker", "4K+4K"), ("both", "4K+4K")),
        _saved(("walker", "4K+2M"), ("both", "4K+2M")),
        _saved(("both", "4K+4K"), ("both", "4K+2M")),
    ]
    return _COMPARED + "".join(lines) + _SAVED.format(*saved)


def _place(published: float, low: float, high: float) -> str:
    if low == high == published:
        return "none"
    if low <= published <= high:
        return "within"
    return f"{low - published:+.2f}" if published < low else f"{high - published:+.2f}"


def _saved(before: tuple[str, str], after: tuple[str, str]) -> str:
    """What the second saves of the references of the first, over the streams."""
    shares = [
        1 - per_walk(runs(stream)[after]) / per_walk(runs(stream)[before]) for stream in STREAMS
    ]
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


_COMPARED = """
| published | figure | these streams | difference | why |
|---|---|---|---|---|
"""
_WHY_PARK = (
    "a walk reads its PTE at the least; how often it reads more depends on how much memory the "
    "program touches: the PDE cache of the profile covers what bfs does"
)
_WHY_PARK_2D = (
    "the PTE, and an EPT walk of the final address that EPT's own caches cut short: the figure "
    "lies between a program that the caches cover and one that defeats them"
)
_WHY_FIGURE_8 = (
    "its page walk cache holds entries of both dimensions, last ones too, in one array of 24; "
    "VT-x's paging-structure caches hold upper levels only, and 8 of each are modelled"
)
_WHY_NOTHING = "the formula holds for every walk"
_SAVED = """
What is saved of the references of a walk, over these streams:

- by paging-structure caches: {0} (Bhargava, section 6: 15 to 38 % of the run time);
- by the nested TLB on top of them: {1} with 4-KByte nested pages, {2} with 2-MByte ones
  (3 to 7 % of the run time). VT-x's caches keep host-physical addresses of the guest's tables, so
  they save what Bhargava's nested TLB is for, and it has only the final addresses left;
- by 2-MByte nested pages with both: {3} (Table 5: 38 to 56 % of the accesses of the page
  walk cache, and fewer TLB misses; here a TLB keeps 4-KByte pieces, as the guest's pages are).

Run times are not compared: they depend on data caches and on a pipeline.
"""
