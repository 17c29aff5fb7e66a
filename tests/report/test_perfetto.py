"""``--format perfetto`` against the published format, and against what was run or recorded."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import vtx
from tests.report.pages import EVIL
from tests.report.test_exits_page import recording
from tests.report.trace_events import check_trace
from vtx import cli
from vtx.lab.ledger import price, reason_name
from vtx.lab.profile import load_profile

TRACES = Path(__file__).parents[2] / "traces"
DATA = Path(__file__).parents[1] / "data" / "kvm"
PARTS = {"exit transition", "handling", "entry transition"}


def written(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    out = tmp_path / "trace.json"
    words = [*map(str, arguments), "--format", "perfetto", "-o", str(out)]
    assert cli.main(words) == 0
    document: dict[str, Any] = json.loads(out.read_text(), parse_float=Decimal)
    return document


@pytest.mark.parametrize("name", ["02-ept-violation", "03-cr-msr-io", "04-two-processors"])
def test_exits_of_a_replay(tmp_path: Path, name: str) -> None:
    document = written(tmp_path, "replay", TRACES / f"{name}.yaml", "--profile", "haswell")
    phases = check_trace(document)
    run = vtx.replay(TRACES / f"{name}.yaml", "haswell")
    slices = [event for event in phases["X"] if event["name"] not in PARTS]
    assert [event["name"] for event in slices] == [
        reason_name(one.reason) for one in run.events.exits
    ]
    assert [event["args"]["qualification"] for event in slices] == [
        hex(one.qualification) for one in run.events.exits
    ]
    assert [event["tid"] for event in slices] == [one.processor + 1 for one in run.events.exits]
    assert sum(event["args"]["exits"] for event in phases["C"]) == len(slices)
    ledger = price(run, load_profile("haswell"))
    costs = sum(float(ledger.profile.ns(row.cycles)) for row in ledger.rows if row.samples)
    assert float(sum(event["dur"] for event in slices)) * 1000 == pytest.approx(costs, rel=0.01)


def test_exits_of_a_recording(tmp_path: Path) -> None:
    made = recording(tmp_path / "trace.txt", 500)
    phases = check_trace(written(tmp_path, "exits", tmp_path / "trace.txt"))
    assert [(e["name"], e["ts"], e["dur"]) for e in phases["X"]] == [
        (reason, at, duration) for reason, at, duration in made
    ]
    assert sum(event["args"]["exits"] for event in phases["C"]) == 500
    assert {e["args"]["rip"] for e in phases["X"]} == {"0xffffffff81000010"}
    names = [e["args"]["name"] for e in phases["M"] if e["name"] == "thread_name"]
    assert names == ["vCPU 0 (thread 900)"]


@pytest.mark.parametrize("name", ["01.txt", "04.txt", "06.txt"])
def test_real_traces(tmp_path: Path, name: str) -> None:
    document = written(tmp_path, "exits", DATA / name)
    phases = check_trace(document)
    out = tmp_path / "exits.json"
    assert cli.main(["exits", str(DATA / name), "--format", "json", "-o", str(out)]) == 0
    rows = {row["reason"]: row["samples"] for row in json.loads(out.read_text())["rows"]}
    assert document["otherData"]["exits_without_time"] == 0
    assert Counter(event["name"] for event in phases["X"] + phases["i"]) == rows


def test_a_clock_that_steps_back_makes_no_slices_that_overlap(tmp_path: Path) -> None:
    lines = []
    for start, end in ((100, 900), (500, 1200), (1300, 1400)):
        head = " CPU 0/KVM-900    [000] d..2. 1.{:06d}: "
        lines.append(head.format(start) + "kvm_exit: reason CPUID rip 0x10 info 0 0")
        lines.append(head.format(end) + "kvm_entry: vcpu 0")
    (tmp_path / "trace.txt").write_text("\n".join(lines) + "\n")
    phases = check_trace(written(tmp_path, "exits", tmp_path / "trace.txt"))
    assert len(phases["X"]) == 2
    assert [float(event["args"]["duration_us"]) for event in phases["i"]] == [700.0]


def test_nothing_is_written_without_times_or_prices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("kvm_exit: reason CPUID rip 0x10 info 0 0\nkvm_entry: vcpu 0\n")
    out = tmp_path / "out.json"
    words = ["--format", "perfetto", "-o", str(out)]
    assert cli.main(["exits", str(trace), *words]) == 3
    assert "no exit has a time stamp" in capsys.readouterr().err
    profile = next(name for name in vtx.profiles.names() if not load_profile(name).has_prices)
    assert cli.main(["replay", str(TRACES / "01-cpuid.yaml"), "--profile", profile, *words]) == 3
    assert "has no prices" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trace.txt"]


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtx.report.perfetto import RecordedTrace

    def interrupted(self: RecordedTrace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RecordedTrace, "close", interrupted)
    out = tmp_path / "out.json"
    words = ["exits", str(DATA / "01.txt"), "--format", "perfetto", "-o", str(out)]
    assert cli.main(words) == 130
    assert list(tmp_path.iterdir()) == []


def test_strings_are_strings(tmp_path: Path) -> None:
    evil = EVIL.replace("'", "''")
    trace = tmp_path / "trace.yaml"
    trace.write_text(f"schema: 1\nname: '{evil}'\nsteps: |\n  cpuid leaf=1\n  hlt\n")
    document = written(tmp_path, "replay", trace)
    assert document["otherData"]["trace"] == EVIL


def test_memory_does_not_grow_with_the_exits(tmp_path: Path) -> None:
    peaks = []
    for count in (200, 3000):
        trace = tmp_path / f"{count}.yaml"
        trace.write_text(f"schema: 1\nsteps: |\n  repeat {count}\n    cpuid leaf=1\n  end\n")
        out = tmp_path / f"{count}.json"
        words = ["replay", str(trace), "--format", "perfetto", "-o", str(out)]
        tracemalloc.start()
        try:
            assert cli.main(words) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # The machine's own log keeps a record of each of the latest exits; the output is 2 MB long.
    assert peaks[1] - peaks[0] < 1_000_000
