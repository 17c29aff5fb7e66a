"""The charts of reports, as Plotly's JSON has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vtx.lab.profile import Status
from vtx.report.bins import LATENCY_STEPS, Bins, latency_edge
from vtx.report.page import Figure, chart_text

__all__ = ["COLOURS", "Bar", "Part", "comparison", "distribution", "flame", "over_time"]

#: Colours that can be told apart on light and dark, by people with any colour vision.
COLOURS = (
    "#4c8fd6", "#e69f00", "#2fa37c", "#d4638f", "#8f7be0", "#c8643c", "#56b4e9", "#a3a33a",
)  # fmt: skip
OTHERS = "#8c959f"
#: How well founded a figure is, from solid to hatched.
_SHADES: Mapping[Status, tuple[str, str]] = {
    Status.MEASURED: ("#2f7ed8", ""),
    Status.DERIVED: ("#7fb2e8", "/"),
    Status.ESTIMATED: ("#c3d4e6", "x"),
}
_MARGIN = {"l": 62, "r": 16, "t": 32, "b": 48}
_LEGEND = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "traceorder": "normal"}


class Part(NamedTuple):
    """A part of a flame-like breakdown: where it hangs, what it is called, how large it is."""

    id: str
    parent: str
    label: str
    value: float
    reason: str
    note: str = ""


class Bar(NamedTuple):
    """One CPU of a comparison; `parts` add up to `value`."""

    name: str
    parts: Mapping[str, float]
    value: float
    low: float
    high: float


def _ranked(weights: Mapping[int, float]) -> dict[int, str]:
    """Return a colour for each kind: the heaviest get one of their own."""
    ranked = sorted(weights, key=lambda kind: -weights[kind])
    return {kind: COLOURS[at] if at < len(COLOURS) else OTHERS for at, kind in enumerate(ranked)}


def over_time(bins: Bins, names: Mapping[int, str], unit: str, scale: float) -> Figure | None:
    """Return how many exits of each reason there were in each stretch of time or steps."""
    starts, series = bins.series()
    if not starts:
        return None
    weights = {kind: sum(entry[0] for entry in entries) for kind, entries in series.items()}
    colours, width = _ranked(weights), (1 << bins.shift) / scale
    data: list[dict[str, Any]] = []
    others = [0.0] * len(starts)
    places = [(start - starts[0]) / scale for start in starts]
    for kind in colours:
        counts = [entry[0] for entry in series[kind]]
        if colours[kind] == OTHERS:
            others = [a + b for a, b in zip(others, counts, strict=True)]
        else:
            data.append(_bars(names[kind], places, counts, width, colours[kind]))
    if any(others):
        data.append(_bars("others", places, others, width, OTHERS))
    layout = {
        "barmode": "stack",
        "bargap": 0,
        "margin": _MARGIN,
        "legend": _LEGEND,
        "xaxis": {"title": {"text": unit}},
        "yaxis": {"title": {"text": "exits"}, "rangemode": "tozero"},
    }
    note = f"Each bar is {width:,.6g} {unit.rpartition(' ')[2]} wide; all exits are counted."
    return Figure("Exits over time", note, data, layout, wide=True)


def _bars(
    name: str, places: list[float], counts: list[float], width: float, colour: str
) -> dict[str, Any]:
    kept = [(place, count) for place, count in zip(places, counts, strict=True) if count]
    return {
        "type": "bar",
        "name": chart_text(name),
        "x": [place for place, _ in kept],
        "y": [count for _, count in kept],
        "customdata": [name] * len(kept),
        "width": width,
        "offset": 0,
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": "%{y:,} exits from %{x:,}<extra>%{fullData.name}</extra>",
    }


def flame(parts: Sequence[Part], unit: str, note: str) -> Figure | None:
    """Return where the cost goes: everything, below it the reasons, below them their parts."""
    whole = sum(part.value for part in parts if not part.parent)
    if not whole:
        return None
    reasons = [part.reason for part in parts if not part.parent]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(reasons)}
    data = {
        "type": "icicle",
        "branchvalues": "total",
        "tiling": {"orientation": "v"},
        "leaf": {"opacity": 1},
        "ids": ["all", *(part.id for part in parts)],
        "labels": ["all exits", *(chart_text(part.label) for part in parts)],
        "parents": ["", *(part.parent or "all" for part in parts)],
        "values": [whole, *(part.value for part in parts)],
        "customdata": [None, *(part.reason for part in parts)],
        "hovertext": ["", *(chart_text(part.note) for part in parts)],
        "marker": {"colors": [OTHERS, *(colours[part.reason] for part in parts)]},
        "insidetextfont": {"color": "#10151a"},
        "outsidetextfont": {"color": "#10151a"},
        "texttemplate": "%{label}<br>%{percentRoot:.1%}",
        "hovertemplate": f"%{{label}}<br>%{{value:,.6~g}} {unit}, %{{percentRoot:.2%}}"
        "<br>%{hovertext}<extra></extra>",
        "pathbar": {"visible": False},
    }
    layout = {"margin": {"l": 4, "r": 4, "t": 32, "b": 4}}
    return Figure("Where it goes", note, [data], layout, wide=True)


def distribution(
    counts: Mapping[tuple[int, int], int], names: Mapping[int, str], unit: str, note: str
) -> Figure | None:
    """Return how long exits of each reason took.

    Parameters
    ----------
    counts : mapping of (int, int) to int
        How many exits by kind and :func:`~vtx.report.bins.latency_bin`.
    names : mapping of int to str
        Names of the kinds.
    unit, note : str
        Of the durations; for the reader.
    """
    if not counts:
        return None
    weights: dict[int, float] = {}
    for (kind, _), count in counts.items():
        weights[kind] = weights.get(kind, 0) + count
    numbers = [number for _, number in counts]
    first, last = min(numbers), max(numbers)
    edges = [latency_edge(number) for number in range(first, last + 1)]
    middle = [edge * 2 ** (0.5 / LATENCY_STEPS) if edge else 0.7 for edge in edges]
    data = []
    for kind, colour in _ranked(weights).items():
        if colour == OTHERS:
            continue
        heights = [counts.get((kind, number), 0) for number in range(first, last + 1)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hvh", "width": 2, "color": colour},
                "fill": "tozeroy",
                "fillcolor": colour + "30",
                "name": chart_text(names[kind]),
                "x": [0.5, *middle, middle[-1] * 2]
                if first < 0
                else [
                    middle[0] / 2 ** (1 / LATENCY_STEPS),
                    *middle,
                    middle[-1] * 2 ** (1 / LATENCY_STEPS),
                ],
                "y": [0, *heights, 0],
                "hovertemplate": f"%{{y:,}} exits of about %{{x:,.3~s}} {unit}"
                "<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        "margin": _MARGIN,
        "legend": _LEGEND,
        "xaxis": {"type": "log", "title": {"text": f"{unit} of one exit"}, "exponentformat": "SI"},
        "yaxis": {"title": {"text": "exits"}, "rangemode": "tozero"},
    }
    return Figure("How long an exit takes", note, data, layout, wide=True)


def comparison(bars: Sequence[Bar], unit: str, note: str) -> Figure | None:
    """Return one bar for each CPU, shaded by how well founded its parts are."""
    if not bars:
        return None
    shades = {status.value: shade for status, shade in _SHADES.items()}
    kinds = list(dict.fromkeys(kind for bar in bars for kind in bar.parts))
    names = [chart_text(bar.name) for bar in bars]
    data: list[dict[str, Any]] = []
    for kind in kinds:
        colour, pattern = shades.get(kind, ("#b8a06a", ""))
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": names,
                "x": [bar.parts.get(kind, 0.0) for bar in bars],
                "marker": {
                    "color": colour,
                    "pattern": {
                        "shape": pattern,
                        "solidity": 0.25,
                        "size": 6,
                        "bgcolor": colour,
                        "fgcolor": "#35506b",
                    },
                },
                "hovertemplate": f"%{{y}}: %{{x:,.5~g}} {unit} {kind}<extra></extra>",
            }
        )
    data.append(_bounds(bars, names, unit))
    layout = {
        "barmode": "stack",
        "margin": _MARGIN | {"l": 130},
        "legend": _LEGEND | {"y": -0.12},
        "height": max(260, 26 * len(bars) + 120),
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True},
    }
    return Figure("On other CPUs", note, data, layout, wide=True)


def _bounds(bars: Sequence[Bar], names: list[str], unit: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "low to high",
        "y": names,
        "x": [bar.value for bar in bars],
        "marker": {"size": 1, "color": OTHERS},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, bar.high - bar.value) for bar in bars],
            "arrayminus": [max(0.0, bar.value - bar.low) for bar in bars],
        },
        "customdata": [[bar.low, bar.high] for bar in bars],
        "hovertemplate": f"%{{y}}: %{{x:,.5~g}} {unit}<extra></extra>",
    }
