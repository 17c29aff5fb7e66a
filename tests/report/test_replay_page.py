"""``vtx replay --format html``: what the page holds, and what it never runs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import vtx
from tests.report.pages import EVIL, Page, check_self_contained
from vtx import cli
from vtx.facts.exits import ExitReason
from vtx.facts.qualifications import qualification_layout
from vtx.lab.ledger import price
from vtx.lab.profile import load_profile
from vtx.machine.events import Event
from vtx.report import recorder as recording
from vtx.report.pricing import exit_cycles, ledger_bounds
from vtx.report.recorder import Recorder
from vtx.report.replay_page import recorder_for

TRACES = Path(__file__).parents[2] / "traces"


def page_of(trace: Path, tmp_path: Path, *options: str) -> Page:
    out = tmp_path / "page.html"
    assert cli.main(["replay", str(trace), "--format", "html", "-o", str(out), *options]) == 0
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(TRACES / "03-cr-msr-io.yaml", tmp_path_factory.mktemp("page"))


def test_page_is_self_contained(page: Page) -> None:
    check_self_contained(page)
    assert any("Plotly" in code or "plotly" in code for code in page.code)


def test_every_exit_is_there_as_the_run_had_it(page: Page) -> None:
    run = vtx.replay(TRACES / "03-cr-msr-io.yaml", "skylake_sp")
    exits = run.events.exits
    assert page.data["exits"]["count"] == len(exits)
    assert page.column("qualification") == [hex(one.qualification) for one in exits]
    assert page.column("rip") == [hex(one.guest_rip) for one in exits]
    assert page.column("step") == [one.step for one in exits]
    names = [page.data["exits"]["reasons"][i]["number"] for i in range(len(run.exits))]
    assert set(names) == {one.reason for one in exits}
    layouts = page.data["exits"]["layouts"]
    word = page.data["exits"]["words"][0]
    from tests.report.pages import unpacked

    for one, number in zip(exits, unpacked(word["layouts"]), strict=True):
        layout = qualification_layout(ExitReason(one.reason))
        assert (layouts[number] or {}).get("title") == (layout.title if layout else None)


def test_costs_of_the_exits_add_up_to_the_ledger() -> None:
    profile = load_profile("skylake_sp")
    for name in ("02-ept-violation.yaml", "03-cr-msr-io.yaml", "04-two-processors.yaml"):
        recorder = recorder_for(profile)
        run = vtx.replay(TRACES / name, profile, observer=recorder)
        ledger = price(run, profile)
        costs: Counter[int] = Counter()
        samples: Counter[int] = Counter()
        for (reason, number), count in recorder.tallies.items():
            cost = exit_cycles(profile, reason, recorder.vectors[number])
            costs[reason] += count * cost  # type: ignore[assignment]
            samples[reason] += count
        for row in ledger.rows:
            if row.reason in samples:
                assert samples[row.reason] == row.samples
                assert costs[row.reason] == pytest.approx(float(row.cycles))


def test_watching_changes_nothing() -> None:
    trace = TRACES / "03-cr-msr-io.yaml"
    plain = vtx.replay(trace, "haswell")
    watched = vtx.replay(trace, "haswell", observer=recorder_for(load_profile("haswell")))
    assert watched.events.counts == plain.events.counts
    assert watched.events.exits == plain.events.exits
    assert watched.translation == plain.translation
    assert watched.vmcs == plain.vmcs


def test_differences_of_the_vmcs_are_those_of_exit_and_handler(page: Page) -> None:
    changes = page.data["exits"]["changes"]
    fields = changes["fields"]
    rip = fields.index("GUEST_RIP")
    assert set(changes["rows"]) == {str(row) for row in range(page.data["exits"]["count"])}
    rips, resumed = page.column("rip"), None
    for row in range(page.data["exits"]["count"]):
        for field, by_handler, before, after in changes["rows"][str(row)]:
            if field == rip:
                assert (before if by_handler else after) == rips[row]
                assert by_handler or before == resumed
                resumed = after
    assert resumed is not None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recording, "KEPT", 30)
    monkeypatch.setattr(recording, "FIRST", 5)
    monkeypatch.setattr(recording, "DEAREST", 3)
    trace = tmp_path / "many.yaml"
    trace.write_text(
        "schema: 1\nsteps: |\n  repeat 40\n    cpuid leaf=1\n    rdmsr msr=0x1b\n  end\n"
    )

    def cost(reason: int, counts: object) -> float:
        return float(reason == ExitReason.RDMSR)

    recorder = Recorder(cost)
    count = vtx.replay(trace, observer=recorder).total_exits
    assert recorder.count == count >= 80
    assert len(recorder.exits) == 30
    assert sum(recorder.tallies.values()) == count
    assert sum(count for count, _ in recorder.over_time.counts.values()) == count
    kept = sorted(recorder.changes)
    assert kept[:5] == [0, 1, 2, 3, 4]
    assert len(kept) == 8
    reasons = {recorder.exits[row].reason for row in kept[5:]}
    assert reasons == {int(ExitReason.RDMSR)}


def test_every_string_of_a_trace_is_escaped(tmp_path: Path) -> None:
    evil = EVIL.replace("'", "''")
    trace = tmp_path / "<img src=x onerror=evil>.yaml"
    letters = "".join(f"  out dx, al port=0x3f8 value={ord(c):#x}\n" for c in EVIL)
    trace.write_text(
        f"schema: 1\nname: '{evil}'\ndescription: '{evil}'\nsource: '{evil}'\n"
        f"steps: |\n{letters}  hlt\nexpect:\n  console: '{evil}'\n"
    )
    profile = tmp_path / "evil.yaml"
    profile.write_text(f"schema: 1\ninherits: skylake_sp\nid: evil\nname: '{evil}'\n")
    page = page_of(trace, tmp_path, "--profile", str(profile))
    check_self_contained(page)
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["script"] == 4
    assert "img" not in tags
    assert page.text.count(EVIL) >= 4  # title, heading, description, source, console
    for figure in page.data["figures"]:
        assert "<script" not in str(figure)


def test_bounds_follow_the_provenance() -> None:
    profile = load_profile("skylake_sp")
    run = vtx.replay(TRACES / "01-cpuid.yaml", profile)
    low, value, high = ledger_bounds(price(run, profile))
    assert low < value < high
    assert value == pytest.approx(float(price(run, profile).ns))


def test_missing_extra_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    out = tmp_path / "page.html"
    trace = str(TRACES / "01-cpuid.yaml")
    assert cli.main(["replay", trace, "--format", "html", "-o", str(out)]) == 2
    assert "needs the package jinja2" in capsys.readouterr().err
    assert not out.exists()


def test_a_page_is_not_for_a_terminal() -> None:
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vtx", "replay", str(TRACES / "01-cpuid.yaml"), "--format=html"],
            stdout=terminal,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(terminal)
        os.close(main)
    assert done.returncode == 2
    assert "-o FILE" in done.stderr


def test_events_of_an_exit_are_its_own() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    recorder = Recorder(lambda reason, counts: 0.0, lambda n, one, c: seen.append((n, tuple(c))))
    vtx.replay(TRACES / "01-cpuid.yaml", observer=recorder)
    assert [number for number, _ in seen] == list(range(len(seen)))
    assert all(counts[Event.VM_EXIT] == 1 for _, counts in seen)
    assert all(counts[Event.VM_ENTRY] == 1 for _, counts in seen[:-1])
