"""``vtx exits`` and ``vtx compare`` as pages of HTML."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.report.pages import EVIL, Page, check_self_contained, unpacked
from vtx import cli
from vtx.facts.qualifications import EVENT_INFORMATION
from vtx.report import exit_tap
from vtx.report.bins import Bins, latency_bin, latency_edge

DATA = Path(__file__).parents[1] / "data" / "kvm"
TRACES = Path(__file__).parents[2] / "traces"
REASONS = ("EPT_VIOLATION", "MSR_WRITE", "IO_INSTRUCTION", "HLT", "EXCEPTION_NMI", "UNKNOWN (77)")


def recording(path: Path, count: int, seed: int = 1) -> list[tuple[str, int, int]]:
    """Write a trace of so many exits; return reason, stamp and duration of each in microseconds."""
    chance, now, made, lines = random.Random(seed), 10**9, [], []
    for _ in range(count):
        now += chance.randrange(1, 300)
        reason, duration = chance.choice(REASONS), chance.randrange(1, 2000)
        made.append((reason, now, duration))
        info = "0x80000b0e" if reason == "EXCEPTION_NMI" else "0x00000000"
        head = f" CPU 0/KVM-900    [000] d..2. {now // 10**6}.{now % 10**6:06d}: "
        lines.append(
            f"{head}kvm_exit: vcpu 0 reason {reason} rip 0xffffffff81000010 info1 "
            f"0x0000000000000182 info2 0x0000000000000000 intr_info {info} error_code 0x00000000"
        )
        now += duration
        head = f" CPU 0/KVM-900    [000] d..2. {now // 10**6}.{now % 10**6:06d}: "
        lines.append(f"{head}kvm_entry: vcpu 0, rip 0xffffffff81000010")
    path.write_text("\n".join(lines) + "\n")
    return made


def page_of(tmp_path: Path, *arguments: object) -> Page:
    out = tmp_path / "page.html"
    words = [*map(str, arguments), "--format", "html", "-o", str(out), "--force"]
    out.touch()
    assert cli.main(words) == 0
    return Page(out.read_text(encoding="utf-8"))


def test_all_exits_of_a_recording_can_be_looked_at(tmp_path: Path) -> None:
    made = recording(tmp_path / "trace.txt", 300)
    page = page_of(tmp_path, "exits", tmp_path / "trace.txt")
    check_self_contained(page)
    assert page.column("reason") == [reason for reason, _, _ in made]
    assert page.column("duration") == [float(duration) for _, _, duration in made]
    assert page.column("time") == pytest.approx([at / 1e6 for _, at, _ in made])
    assert page.column("line") == [1.0 + 2 * at for at in range(300)]
    assert set(page.column("rip")) == {"0xffffffff81000010"}
    layouts = page.data["exits"]["layouts"]
    word = next(w for w in page.data["exits"]["words"] if w["column"] == "event")
    title = EVENT_INFORMATION["vm_exit_interruption_information"].title
    assert {layouts[number]["title"] for number in unpacked(word["layouts"])} == {title}


def test_charts_count_all_exits_and_the_list_keeps_the_first_and_the_slowest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_tap, "FIRST_KEPT", 50)
    monkeypatch.setattr(exit_tap, "SLOWEST_KEPT", 10)
    made = recording(tmp_path / "trace.txt", 400)
    page = page_of(tmp_path, "exits", tmp_path / "trace.txt")
    later = sorted(made[50:], key=lambda one: -one[2])[:10]
    assert page.column("duration")[:50] == [float(duration) for _, _, duration in made[:50]]
    kept = Counter(page.column("duration")[50:])
    assert kept == Counter(float(duration) for _, _, duration in later)
    assert "60 of 400 exits" in page.text
    over_time, flame, distribution = page.data["figures"]
    assert sum(sum(trace["y"]) for trace in over_time["data"]) == 400
    assert sum(sum(trace["y"]) for trace in distribution["data"]) == 400
    busy = sum(duration for reason, _, duration in made if reason != "HLT")
    assert flame["data"][0]["values"][0] == pytest.approx(busy)


@pytest.mark.parametrize("name", ["01.txt", "04.txt", "06.txt", "17_perf_kvm_stat.txt"])
def test_pages_of_real_traces(tmp_path: Path, name: str) -> None:
    page = page_of(tmp_path, "exits", DATA / name, "--baseline", DATA / "01.txt")
    check_self_contained(page)
    json.dumps(page.data, allow_nan=False)
    if "stat" in name:
        assert page.data["exits"] is None
    else:
        assert page.data["exits"]["count"] > 0


def test_strings_of_a_recording_are_escaped(tmp_path: Path) -> None:
    made = tmp_path / "<img src=x onerror=evil>.txt"
    recording(made, 20)
    evil = EVIL.replace("\n", " ")
    text = made.read_text().replace("CPU 0/KVM", "<script>").replace("UNKNOWN (77)", evil)
    made.write_text(text + f"reason {evil} kvm_exit: {evil}\n")
    page = page_of(tmp_path, "exits", made)
    check_self_contained(page)
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["script"] == 4
    assert "img" not in tags


def test_page_of_a_comparison(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, "compare", TRACES / "01-cpuid.yaml", "--profiles", "haswell,skylake_sp"
    )
    check_self_contained(page)
    (figure,) = page.data["figures"]
    parts = {trace["name"]: trace for trace in figure["data"]}
    assert list(parts) == ["measured", "derived", "estimated", "low to high"]
    out = tmp_path / "c.json"
    words = ["compare", str(TRACES / "01-cpuid.yaml"), "--profiles", "haswell,skylake_sp"]
    assert cli.main([*words, "--format", "json", "-o", str(out)]) == 0
    for at, profile in enumerate(json.loads(out.read_text())["profiles"]):
        for status, share in profile["rests_on"].items():
            assert parts[status]["x"][at] * 1000 == pytest.approx(share * profile["ns"])
        assert parts["low to high"]["x"][at] * 1000 == pytest.approx(profile["ns"])


def test_page_of_a_recording_on_other_cpus(tmp_path: Path) -> None:
    page = page_of(tmp_path, "compare", DATA / "01.txt", "--what-if", "vpid=off")
    check_self_contained(page)
    assert page.data["figures"]
    assert "What if vpid=off" in page.text


def test_bins_lose_nothing_when_the_span_grows() -> None:
    bins, chance = Bins(), random.Random(3)
    places = [chance.randrange(1 << chance.randrange(1, 40)) for _ in range(2000)]
    for at in places:
        bins.add(at % 3, at, 2.0)
    starts, series = bins.series()
    assert len(starts) <= 1025
    assert sum(entry[0] for entries in series.values() for entry in entries) == 2000
    assert sum(entry[1] for entries in series.values() for entry in entries) == 4000.0
    counted: Counter[tuple[int, int]] = Counter(
        (at % 3, (at - bins.origin) >> bins.shift) for at in places
    )
    assert {key: entry[0] for key, entry in bins.counts.items()} == dict(counted)


def test_latency_bins_hold_their_durations() -> None:
    for duration in (1, 2, 3, 999, 1000, 12345678):
        number = latency_bin(duration)
        assert latency_edge(number) <= duration * 1.000001
        assert duration < latency_edge(number + 1) * 1.000001
    assert latency_bin(0) == -1
    assert latency_edge(-1) == 0
