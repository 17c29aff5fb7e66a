"""The page ``docs/latencies.md`` and its picture, written from a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import median

from tests.published_latencies.loop import LOOPS, Priced, priced, profiles
from tests.published_latencies.runs import AGESEN_2012, RUNS, Run

__all__ = ["PAGE", "PICTURE", "figures", "page", "picture"]

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PICTURE = DOCS / "latencies.md", DOCS / "latencies.svg"

_HEAD = """# Published latencies, priced

This page and its picture are written by `python -m tests.published_latencies` from the repository's
root, and a test compares them with a new run. It sets what vtx charges for a VM exit and a VM entry
beside what was measured.

![Round trips of the published runs and of the profiles](latencies.svg)

## The loop

[vmlatency](https://github.com/yulyugin/vmlatency) times rounds of: VMWRITE of HOST_RSP, VMRESUME,
CPUID in the guest, VM exit. There are no VMREADs, no secondary controls (so no EPT and no VPID) and
no MSR lists; it divides time-stamp counter ticks by rounds, up to 524,288 of them. The same loop
runs here with the guest of [`traces/09-vmlatency.yaml`](../traces/09-vmlatency.yaml) on the shape
of each profile: {loops} rounds, whose counts the ledger prices. vmlatency leaves RIP at its CPUID;
vtx's guest has a row of them, and moving RIP costs nothing here.

*priced* is round trip and VMWRITE; *low* and *high* are the ledger's bounds. A run is *inside* if
it lies between them. *refill* is what the ledger charges for the guest's own page walks, because
every transition without VPID empties its TLBs. It is not added: in the measurement it is a part of
the figure that cannot be told apart, and so it is in the round trips that come from it.

## What to keep in mind

- Ticks are not cycles. On a part with turbo the core runs faster than the counter, and reads fewer
  ticks for as many cycles: most runs since Nehalem are lower than the core's own cycles.
- Ranges of measured round trips were drawn from the runs that repeated well (see
  [profiles.md](profiles.md)), so that those lie inside says no more than that pricing adds up. What
  tests the figures is the table of the profiles that rest on another source.
- Round trips of `ivy_bridge_ep` and of the Haswells, Broadwells, Skylakes, `cascade_lake_sp` and
  `airmont_n3150` are vmlatency's, with its VMWRITE inside; the loop charges one more, 3 % of them.
- Runs whose loops disagree with each other, or that read about twice their siblings, are shown and
  not counted.

## Profiles that rest on another source than vmlatency

Round trips of Agesen, Mattson, Rugina, Sheldon, "Software Techniques for Avoiding Hardware
Virtualization Exits", USENIX ATC 2012, Table 1, and the median of the vmlatency runs on the same
core that repeated well: two measurements that do not know each other.

| profile | Table 1 | round trip here | priced with VMWRITE | vmlatency, median of | difference |
|---|---|---|---|---|---|
"""


def figures() -> dict[str, Priced]:
    """Return what the loop costs on each profile."""
    return {name: priced(name) for name in profiles()}


def _agesen_rows() -> list[str]:
    rows = []
    for name, cycles in AGESEN_2012.items():
        loop = priced(name)
        ticks = [run.ticks for run in RUNS if run.profile == name and run.repeats]
        middle = median(ticks) if ticks else None
        runs = f"{middle:,.0f} ({len(ticks)})" if middle else "no run"
        off = f"{loop.value / middle - 1:+.0%}" if middle else ""
        rows.append(
            f"| {name} | {cycles:,} | {loop.round_trip:,.0f} | {loop.value:,.0f} | {runs} | {off} |"
        )
    return rows


def _profile_rows() -> list[str]:
    rows = []
    for name, loop in figures().items():
        status = loop.status.value if loop.status else ""
        own = sum(run.profile == name and run.repeats for run in RUNS)
        rows.append(
            f"| {name} | {loop.low:,.0f} | {loop.value:,.0f} | {loop.high:,.0f} | {status} "
            f"| {loop.refill:,.0f} | {own or 'none'} |"
        )
    return rows


def inside(run: Run) -> bool:
    """Whether a run lies within the bounds of its profile."""
    loop = priced(run.profile)
    return loop.low <= run.ticks <= loop.high


def _run_row(run: Run) -> str:
    loop = priced(run.profile)
    off = f"{loop.value / run.ticks - 1:+.0%}"
    verdict = ("inside" if inside(run) else "outside") if run.repeats else f"not counted: {run.why}"
    return (
        f"| {run.cpu} | {run.core} | {run.ticks:,} | {run.profile} | {loop.value:,.0f} | {off} "
        f"| {verdict} |"
    )


def page() -> str:
    """Return the text of the page."""
    counted = [run for run in RUNS if run.repeats]
    near = sum(abs(priced(run.profile).value / run.ticks - 1) <= 0.10 for run in counted)
    lines = [
        _HEAD.format(loops=LOOPS).rstrip("\n"),
        *_agesen_rows(),
        "",
        "## Every profile",
        "",
        "| profile | low | priced | high | round trip is | refill | runs counted |",
        "|---|---|---|---|---|---|---|",
        *_profile_rows(),
        "",
        "For Ice Lake and later no run and no table was found: their figures are estimates, and",
        "nothing here tests them. `gracemont_n305` has no prices.",
        "",
        f"## The {len(RUNS)} runs",
        "",
        f"{len(counted)} repeat well; of these {sum(map(inside, counted))} lie inside, and {near} "
        "within 10 % of the priced",
        "figure. Where a core has no profile of its own (Kaby Lake, Coffee Lake, Skylake-X and the",
        "client parts of Ivy Bridge and Broadwell), that of the same core design is taken.",
        "",
        "| CPU | core | ticks | profile | priced | difference | verdict |",
        "|---|---|---|---|---|---|---|",
        *map(_run_row, RUNS),
    ]
    return "\n".join(lines) + "\n"


def plotted() -> dict[str, list[float]]:
    """Return the figures in the picture, by profile: low, priced, high, then the runs."""
    result = {}
    for name, loop in figures().items():
        runs = [float(run.ticks) for run in RUNS if run.profile == name]
        result[name] = [round(figure, 1) for figure in (loop.low, loop.value, loop.high, *runs)]
    return result


def picture() -> str:
    """Return the picture as SVG; its description holds the figures it shows."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(figures())
    style = {"svg.hashsalt": "latencies", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(8.5, 6.2), layout="constrained")
        for row, name in enumerate(names):
            loop = priced(name)
            colour = {"measured": "#1b6ca8", "derived": "#7a5195", "estimated": "#b0b0b0"}
            tone = colour[loop.status.value if loop.status else "estimated"]
            axes.plot([loop.low, loop.high], [row, row], color=tone, linewidth=7, alpha=0.35)
            axes.plot([loop.value], [row], marker="|", markersize=14, color=tone, linestyle="")
            for repeats, marker in ((True, "o"), (False, "x")):
                ticks = [r.ticks for r in RUNS if r.profile == name and r.repeats is repeats]
                axes.plot(ticks, [row] * len(ticks), marker, color="#d1495b", markersize=4)
            if name in AGESEN_2012:
                axes.plot([AGESEN_2012[name]], [row], "D", color="#2e2e2e", markersize=4)
        axes.set_xscale("log")
        axes.set_xticks([400, 500, 700, 1000, 1500, 2000, 3000, 4000])
        axes.get_xaxis().set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("cycles (vmlatency: time-stamp counter ticks) for one round trip")
        axes.set_title(
            "Bars: the ledger's bounds (blue measured, violet derived, grey estimated)\n"
            "o run of vmlatency   x run that does not repeat   ◆ Agesen 2012, Table 1",
            fontsize=9,
        )
        out = io.StringIO()
        described = {"Date": None, "Description": json.dumps(plotted())}
        figure.savefig(out, format="svg", metadata=described)
        pyplot.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
