"""The benchmarks by name: what each measures, and the module that brings it.

Every module of this package may declare benchmarks::

    @benchmark("exits", unit="round trips/s")
    def exits(quick: bool) -> Result:
        '''One line that says what is measured.'''
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import NamedTuple

import vtx.bench
from vtx.errors import UsageError

__all__ = ["Benchmark", "Result", "benchmark", "benchmarks", "select"]


class Result(NamedTuple):
    """What one benchmark has measured, in its unit.

    Attributes
    ----------
    value : float
        vtx.
    ceiling : float or None
        What the machine allows at best: the least work that could stand for the same.
    peer : float or None
        What another program reaches with the same work; None if it is not installed.
    peer_name : str or None
        That program.
    """

    value: float
    ceiling: float | None = None
    peer: float | None = None
    peer_name: str | None = None


#: ``run(quick)``: quick asks for a rough figure in about a second.
Run = Callable[[bool], Result]


class Benchmark(NamedTuple):
    """One declared benchmark.

    Attributes
    ----------
    name : str
        Unique; benchmarks of one kind share a prefix.
    unit : str
        Of all its figures.
    group : str
        The module it stands in.
    summary : str
        What is measured: the first line of the function's docstring.
    run : callable
        Takes the figures.
    """

    name: str
    unit: str
    group: str
    summary: str
    run: Run


_DECLARED: dict[str, Benchmark] = {}


def benchmark(name: str, *, unit: str) -> Callable[[Run], Run]:
    """Declare the decorated function as the benchmark `name`.

    Parameters
    ----------
    name : str
        What is typed after ``vtx bench``.
    unit : str
        Of the figures it returns, such as ``"references/s"``.
    """

    def declare(run: Run) -> Run:
        assert name not in _DECLARED, f"two benchmarks are named {name}"
        summary = (run.__doc__ or "").partition("\n")[0]
        group = run.__module__.rpartition(".")[2]
        _DECLARED[name] = Benchmark(name, unit, group, summary, run)
        return run

    return declare


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Return every benchmark by name; importing the modules that declare them."""
    for module in pkgutil.iter_modules(vtx.bench.__path__):
        import_module(f"{vtx.bench.__name__}.{module.name}")
    return dict(_DECLARED)


def select(names: Iterable[str]) -> list[Benchmark]:
    """Return the benchmarks that `names` ask for, each once, in the order of declaration.

    Parameters
    ----------
    names : iterable of str
        Names, groups, or beginnings of names; none asks for all.

    Raises
    ------
    UsageError
        A name asks for nothing.
    """
    known = list(benchmarks().values())
    wanted: set[str] = set()
    for name in names:
        found = {b.name for b in known if b.group == name or b.name.startswith(name)}
        if not found:
            groups = ", ".join(dict.fromkeys(b.group for b in known))
            raise UsageError(f"there is no benchmark {name!r} (groups: {groups}; see --list)")
        wanted |= found
    return [b for b in known if b.name in wanted or not wanted]
