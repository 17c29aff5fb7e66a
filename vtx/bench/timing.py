"""How a figure is taken, so that a busy machine does not make it.

A figure is the best of five medians, each of five short runs. What is compared is measured in
turns: a run of vtx, one of its ceiling, one of the peer, and again. Time is processor time, which
other programs on the machine do not use up.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

__all__ = ["best", "seconds"]

_MEDIANS, _RUNS = 5, 5
_QUICK_MEDIANS, _QUICK_RUNS = 1, 3


def best(
    *runs: Callable[[], float], quick: bool = False, lower_is_better: bool = False
) -> tuple[float, ...]:
    """Return the best of five medians of every run, measured in turns.

    Parameters
    ----------
    *runs : callable
        Each makes one short measurement and returns its figure.
    quick : bool
        One median of three instead.
    lower_is_better : bool
        The figures are seconds, not rates.
    """
    medians, count = (_QUICK_MEDIANS, _QUICK_RUNS) if quick else (_MEDIANS, _RUNS)
    choose = min if lower_is_better else max
    columns = []
    for _ in range(medians):
        rows = [[run() for run in runs] for _ in range(count)]
        columns.append([statistics.median(figures) for figures in zip(*rows, strict=True)])
    return tuple(choose(figures) for figures in zip(*columns, strict=True))


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time that `work` takes, in seconds, without garbage collection."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.process_time()
        work()
        return time.process_time() - start
    finally:
        if collecting:
            gc.enable()
