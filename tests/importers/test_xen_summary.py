"""Rows of xenalyze --summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtx.cli import main
from vtx.hypervisor.importers.stat_tables import is_recording

SUMMARY = """\
-- v0 --
 Runstates:
   running:    5000  1.20s 12.00% 575812 cyc { 1000| 5000|20000}
 Exit reasons:
 EXTERNAL_INTERRUPT      30  0.23s  4.56%  1200 cyc { 1000| 1100|20000}
   vector                30  0.23s  4.56%  1200 cyc { 1000| 1100|20000}
 CPUID                   10  0.01s  0.10%   900 cyc {  800|  900| 1000}

-- v1 --
 CPUID                   30  0.01s  0.10%  1300 cyc {  800|  900| 1000}
"""


def test_rows_add_up_over_vcpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "summary.txt"
    file.write_text(SUMMARY)
    assert main(["exits", str(file), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["reason"]: row for row in found["rows"]}
    assert {name: row["samples"] for name, row in rows.items()} == {
        "EXTERNAL_INTERRUPT": 30,
        "CPUID": 40,
    }
    assert (rows["CPUID"]["time_ns"], rows["CPUID"]["note"]) == (None, "mean 1,200 cycles")
    lines = found["lines"]
    assert (lines["read"], lines["used"], lines["read"] - sum(lines["skipped"].values())) == (
        10,
        3,
        3,
    )


def test_no_single_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "summary.txt"
    file.write_text(SUMMARY)
    assert main(["exits", str(file), "--per-vcpu"]) == 2
    assert "report of xenalyze" in capsys.readouterr().err


@pytest.mark.parametrize(
    "head",
    [
        SUMMARY,
        "CPU0 0x10 100 vmexit [exit reason = 0x00000030, rIP = 0x1000]\n",
        "1 (+ 5)  VMEXIT   vcpu = 0x00000001  pid = 0x2 [ exitcode = 0x30, rip = 0x1000 ]\n",
    ],
)
def test_recognised_as_recordings(head: str) -> None:
    assert is_recording(head.encode())
    assert not is_recording(b"schema: 1\n" + head.encode())
