"""Pictures by matplotlib: what a replay costs, CPUs side by side, how long recorded exits take."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtx.lab.extras import need
from vtx.lab.ledger import Ledger
from vtx.lab.profile import Status
from vtx.report.bins import latency_edge
from vtx.report.figures import COLOURS, Bar
from vtx.report.pricing import flame_of

if TYPE_CHECKING:
    from vtx.report.exit_tap import ExitTap

__all__ = ["SUFFIXES", "breakdown", "comparison", "recorded"]

#: Names of files that a picture can be written to.
SUFFIXES = ("png", "svg")
_SHADES: Mapping[str, tuple[str, str]] = {
    Status.MEASURED.value: ("#2f7ed8", ""),
    Status.DERIVED.value: ("#7fb2e8", "//"),
    Status.ESTIMATED.value: ("#c3d4e6", "xx"),
}
_OTHERS = "#8c959f"
_MOST = 12


def _figure(height: float) -> Any:
    """Return an empty figure, without the state of pyplot."""
    module = need("matplotlib.figure", "plot", "a picture")
    return module.Figure(figsize=(9.6, height), layout="constrained")


def _plain(text: str) -> str:
    """Return text that matplotlib takes as it is: no formula, no name that it leaves out."""
    text = text.replace("\\", "\\\\").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _saved(figure: Any, kind: str) -> bytes:
    """Return the picture, the same bytes for the same figures."""
    matplotlib = need("matplotlib", "plot", "a picture")
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vtx", "svg.fonttype": "none"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": "vtx"}
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def breakdown(ledger: Ledger, title: str, kind: str) -> bytes:
    """Return where a run's cycles go: a bar for each exit reason, in parts by category.

    Parameters
    ----------
    ledger : Ledger
        The costs.
    title : str
        What was run.
    kind : str
        One of :data:`SUFFIXES`.
    """
    parts = flame_of(ledger)
    rows = [part for part in parts if not part.parent]
    figure = _figure(1.8 + 0.4 * len(rows))
    axes = figure.subplots()
    places = {part.id: at for at, part in enumerate(rows)}
    left = dict.fromkeys(places, 0.0)
    colours: dict[str, str] = {}
    for part in parts:
        if not part.parent:
            continue
        colour = colours.setdefault(part.label, COLOURS[len(colours) % len(COLOURS)])
        hatch = "" if len(colours) <= len(COLOURS) or part.label in list(colours)[:8] else "//"
        axes.barh(
            places[part.parent],
            part.value,
            left=left[part.parent],
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=None if _seen(axes, part.label) else _plain(part.label),
        )
        left[part.parent] += part.value
    axes.set_yticks(range(len(rows)), [_plain(part.label) for part in rows])
    _finish(figure, axes, title, "cycles")
    return _saved(figure, kind)


def _seen(axes: Any, label: str) -> bool:
    return _plain(label) in axes.get_legend_handles_labels()[1]


def _finish(figure: Any, axes: Any, title: str, unit: str) -> None:
    """Put title, unit and legend to horizontal bars, the first bar at the top."""
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(_plain(title), loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)


def comparison(bars: Sequence[Bar], title: str, unit: str, kind: str) -> bytes:
    """Return CPUs side by side, shaded by provenance, with low and high bounds.

    Parameters
    ----------
    bars : sequence of Bar
        One for each CPU.
    title, unit : str
        What was priced, and in which unit.
    kind : str
        One of :data:`SUFFIXES`.
    """
    figure = _figure(1.8 + 0.32 * len(bars))
    axes = figure.subplots()
    places = range(len(bars))
    left = [0.0] * len(bars)
    for name in dict.fromkeys(key for bar in bars for key in bar.parts):
        widths = [bar.parts.get(name, 0.0) for bar in bars]
        colour, hatch = _SHADES.get(name, ("#b8a06a", ""))
        axes.barh(
            places, widths, left=left, color=colour, hatch=hatch, edgecolor="#35506b",
            linewidth=0.4, label=_plain(name),
        )  # fmt: skip
        left = [at + width for at, width in zip(left, widths, strict=True)]
    spans = [
        [max(0.0, bar.value - bar.low) for bar in bars],
        [max(0.0, bar.high - bar.value) for bar in bars],
    ]
    axes.errorbar(
        [bar.value for bar in bars], places, xerr=spans, fmt="none", ecolor="black",
        elinewidth=1, capsize=3, label="low to high",
    )  # fmt: skip
    axes.set_yticks(places, [_plain(bar.name) for bar in bars])
    _finish(figure, axes, title, unit)
    return _saved(figure, kind)


def recorded(tap: ExitTap, title: str, kind: str) -> bytes:
    """Return how long the exits of each reason took, and how many there were over time.

    Parameters
    ----------
    tap : ExitTap
        What was seen of the exits.
    title : str
        Of the recording.
    kind : str
        One of :data:`SUFFIXES`.
    """
    figure = _figure(7.0)
    above, below = figure.subplots(2)
    weights: dict[int, int] = {}
    for (reason, _), count in tap.latencies.items():
        weights[reason] = weights.get(reason, 0) + count
    starts, series = tap.over_time.series()
    for reason, entries in series.items():
        weights.setdefault(reason, 0)
        weights[reason] = max(weights[reason], int(sum(entry[0] for entry in entries)))
    ranked = sorted(weights, key=lambda reason: -weights[reason])
    colours = {r: COLOURS[at] if at < len(COLOURS) else _OTHERS for at, r in enumerate(ranked)}
    for reason in ranked[:_MOST]:
        numbers = sorted(number for kind_, number in tap.latencies if kind_ == reason)
        if numbers:
            span = range(numbers[0], numbers[-1] + 1)
            edges = [max(latency_edge(n), 0.5) / 1e3 for n in [*span, span[-1] + 1]]
            counts = [tap.latencies.get((reason, number), 0) for number in span]
            above.stairs(counts, edges, color=colours[reason], label=_plain(tap.names[reason]))
    above.set_xscale("log")
    above.set_xlabel("µs of one exit")
    _draw_time(below, starts, series, ranked, colours)
    for axes in (above, below):
        axes.set_ylabel("exits")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    above.set_title(_plain(title), loc="left", fontsize=11)
    if above.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return _saved(figure, kind)


def _draw_time(
    axes: Any,
    starts: Sequence[int],
    series: Mapping[int, Sequence[Sequence[float]]],
    ranked: Sequence[int],
    colours: Mapping[int, str],
) -> None:
    """Stack the exits of each stretch of time, the most frequent reason at the bottom."""
    if not starts:
        axes.text(0.5, 0.5, "no time stamps", ha="center", transform=axes.transAxes)
        return
    seconds = [(start - starts[0]) / 1e9 for start in starts]
    shown = [reason for reason in ranked if reason in series]
    heights = [[entry[0] for entry in series[reason]] for reason in shown]
    axes.stackplot(seconds, heights, colors=[colours[r] for r in shown], step="post", lw=0)
    axes.set_xlabel("seconds since the first exit")
