"""``vtx bench``: what is chosen, how a figure is made of runs, what is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from vtx.bench import registry
from vtx.bench.registry import Benchmark, Result, benchmark, benchmarks, select
from vtx.bench.timing import best
from vtx.cli import main
from vtx.errors import UsageError


def test_names_are_exact_or_groups_or_prefixes() -> None:
    assert [b.name for b in select([])] == list(benchmarks())
    names = [b.name for b in select(["exits"])]
    assert names[0] == "exits"
    assert "exits.rdmsr" in names
    assert "check" not in names
    assert [b.name for b in select(["check", "exits.rd"])] == ["check", "exits.rdmsr"]
    with pytest.raises(UsageError, match="no benchmark 'nonsense'"):
        select(["check", "nonsense"])


def test_every_benchmark_says_what_it_measures() -> None:
    for each in benchmarks().values():
        assert each.summary.endswith("."), each.name
        assert each.unit, each.name


def test_a_name_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_DECLARED", {})

    def run(quick: bool) -> Result:
        """Do nothing."""
        return Result(1.0)

    benchmark("one", unit="s")(run)
    with pytest.raises(AssertionError):
        benchmark("one", unit="s")(run)


def test_a_figure_is_the_best_of_medians_taken_in_turns() -> None:
    order: list[str] = []

    def runs(name: str, figures: Iterator[float]) -> float:
        order.append(name)
        return next(figures)

    # Five rounds of five: medians 3, 4, 5, 6, 7; one lucky 100 is not the figure.
    rates = iter([median + d for median in (3, 4, 5, 6, 7) for d in (-2, -1, 0, 1, 100)])
    other = iter([10.0] * 25)
    value, ceiling = best(lambda: runs("a", rates), lambda: runs("b", other))
    assert (value, ceiling) == (7, 10)
    assert order == ["a", "b"] * 25
    seconds = iter([2.0, 3.0, 9.0])
    assert best(lambda: next(seconds), quick=True, lower_is_better=True) == (3.0,)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `select` find two benchmarks that take no time."""
    two = [
        Benchmark("a", "s", "a", "What a is.", lambda quick: Result(0.5, 0.25)),
        Benchmark("b", "x/s", "b", "What b is.", lambda quick: Result(1234.0, None, 9e5, "peer")),
    ]
    monkeypatch.setattr(registry, "select", lambda names: two)


@pytest.mark.usefixtures("small")
def test_json_has_exactly_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "schema": "vtx.bench/1",
        "results": [
            {"name": "a", "value": 0.5, "unit": "s", "ceiling": 0.25, "peer": None,
             "peer_name": None},
            {"name": "b", "value": 1234.0, "unit": "x/s", "ceiling": None, "peer": 9e5,
             "peer_name": "peer"},
        ],
    }  # fmt: skip
    assert "measured on" in printed.err
    assert "Python" in printed.err


@pytest.mark.usefixtures("small")
def test_text_is_a_table_under_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "logical processors" in lines[0]
    assert [line.split() for line in lines[-2:]] == [
        ["a", "0.5", "0.25", "-", "s"],
        ["b", "1,234", "-", "900,000", "x/s", "peer"],
    ]


@pytest.mark.usefixtures("small")
def test_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["benchmarks"]
    assert [row["name"] for row in rows] == ["a", "b"]
    assert main(["bench", "--list"]) == 0
    assert "What b is." in capsys.readouterr().out


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nonsense"]) == 2
    assert "no benchmark 'nonsense'" in capsys.readouterr().err
    assert main(["bench", "--list", "--quick"]) == 2


def test_an_interrupted_benchmark_ends_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(quick: bool) -> Result:
        raise KeyboardInterrupt

    broken = Benchmark("a", "s", "a", "What a is.", interrupted)
    monkeypatch.setattr(registry, "select", lambda names: [broken])
    assert main(["bench"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "vtx: interrupted\n"


@pytest.mark.parametrize("name", ["exits.io", "exits.ept_violation"])
def test_exits_are_measured(name: str) -> None:
    result = benchmarks()[name].run(True)
    assert result.ceiling is not None
    assert 0 < result.value < result.ceiling
