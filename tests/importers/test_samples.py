"""Real posts, counted by hand and by a second reader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vtx.hypervisor.importers.analysis import read_report
from vtx.hypervisor.importers.source import open_source
from vtx.hypervisor.importers.stat_tables import read_stat_report

from . import naive
from .scanning import Scan

DATA = Path(__file__).parent.parent / "data" / "kvm"


@pytest.mark.parametrize("name", ["01", "04", "06"])
@pytest.mark.parametrize("piece", [None, 100, 3000])
def test_every_exit_is_the_naive_readers(name: str, piece: int | None) -> None:
    text = (DATA / f"{name}.txt").read_text()
    expected = naive.exits(text)
    scan = Scan(text, piece)
    got = sorted(scan.exits, key=lambda each: each["line"])
    assert [{key: exit[key] for key in expected[0]} for exit in got] == expected
    assert scan.events["kvm_exit"] == len(expected) == text.count("kvm_exit:")


def test_mail_wrapped_ftrace() -> None:
    """Counted by hand in the post."""
    scan = Scan((DATA / "01.txt").read_text())
    assert Counter(exit["reason"] for exit in scan.exits) == {
        "IO_INSTRUCTION": 6,
        "EXTERNAL_INTERRUPT": 3,
        "PENDING_INTERRUPT": 1,
    }
    assert scan.events == {"kvm_exit": 10, "kvm_entry": 9}
    # 79 lines: 38 are the two halves of 19 events; 11 events of others, each in two lines, one
    # of them with a second half that a comment follows; 10 comments, 7 blank.
    assert scan.counts["read"] == 79
    assert scan.counts["used"] == 38
    assert scan.skipped == {"blank": 7, "comment": 10, "other_event": 24}
    slow = max(scan.exits, key=lambda each: each["duration_ns"] or 0)
    assert (slow["rip"], slow["duration_ns"], slow["line"]) == (0xCE93, 75_000, 27)
    assert {exit["vcpu"] for exit in scan.exits} == {0}


def test_storm_of_ept_violations() -> None:
    report = read_report(str(DATA / "04.txt"))
    assert [(row.reason, row.samples) for row in report.rows] == [("EPT_VIOLATION", 10)]
    assert [(s.samples, s.first.detail, s.line) for s in report.storms] == [
        (5, "gpa 0x16e5b2ff8", 43),
        (4, "gpa 0x2594fe0", 8),
    ]
    assert report.lines.skipped == {"blank": 1, "comment": 1, "other_event": 18}
    assert report.events["kvm_inj_virq"] == 4


def test_trace_cmd_timer_exits() -> None:
    report = read_report(str(DATA / "06.txt"))
    (row,) = report.rows
    assert (row.reason, row.samples, row.times.samples) == ("EXTERNAL_INTERRUPT", 4, 3)
    assert (row.times.least, row.times.most, row.times.total) == (1000, 2000, 4000)
    assert {text: tally.samples for text, tally in row.details} == {
        "vector 0xec": 3,
        "vector 0xfd": 1,
    }


def test_perf_kvm_stat_tables() -> None:
    with open_source(str(DATA / "17_perf_kvm_stat.txt")) as source:
        tables, lines = read_stat_report(source)
    assert [(len(t.rows), t.samples, t.total_samples) for t in tables] == [
        (7, 866, 866),
        (2, 710_763, 787_803),
        (7, 4197, 70_746),
        (7, 27_549, 27_549),
    ]
    assert lines.read == 56 == lines.used + sum(lines.skipped.values())
    wrapped = tables[1].rows[0]
    assert (wrapped.reason, wrapped.samples, wrapped.times.most) == (
        "EXTERNAL_INTERRUPT", 471_831, 65_420.0,
    )  # fmt: skip
    assert wrapped.times.error == pytest.approx(0.0011)
    unknown = [row for row in tables[3].rows if row.reason == "UNKNOWN"]
    assert [row.note for row in unknown] == [
        f"exit code {code}" for code in (131072, 327680, 196608, 262144, 65536)
    ]


def test_totals_of_reports_are_held_against_their_rows() -> None:
    report = read_report(str(DATA / "17_perf_kvm_stat.txt"))
    text = " ".join(report.warnings)
    assert "Table 2: the rows have 710,763 of the 787,803 samples" in text
    assert "Table 1" not in text
    assert report.total.samples == 866 + 710_763 + 4197 + 27_549
