"""Sweeps: plans, results, interruption at any point, bad cells, a Dask cluster."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vtx.errors import InputError, UsageError
from vtx.hypervisor.trace import load_trace
from vtx.sweep import Cell, load_plan, run_cell, sweep
from vtx.sweep import engine as module
from vtx.sweep.journal import Journal

TRACE = """schema: 1
name: {name}
steps: |
  repeat {times}
  cpuid leaf=1
  load {address}
  end
  hlt
"""


def write_traces(folder: Path, count: int = 2, times: int = 20) -> None:
    for number in range(count):
        text = TRACE.format(name=f"t{number}", times=times + number, address="0x700000")
        (folder / f"t{number}.yaml").write_text(text)


def write_plan(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text("schema: 1\n" + text)
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    write_traces(tmp_path)
    return write_plan(
        tmp_path,
        "traces: [t*.yaml]\nprofiles: [skylake_sp, haswell]\noptions: {ept.pages: [4K, 2M]}\n",
    )


def without_time(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_plan_is_a_product(plan: Path) -> None:
    cells = load_plan(plan).cells
    assert len(cells) == 2 * 2 * 2
    assert len({cell.key for cell in cells}) == 8
    assert cells[0].options == (("ept.pages", "4K"),)
    assert cells[0].name == "t0 on skylake_sp, ept.pages=4K"


def test_options_override_keys_of_the_trace(tmp_path: Path) -> None:
    write_traces(tmp_path, 1)
    trace = load_trace(tmp_path / "t0.yaml", {"ept.pages": "2M", "vpid": 7})
    assert trace.header.ept.pages == "2M"
    assert trace.header.vpid == 7
    with pytest.raises(InputError, match="pages"):
        load_trace(tmp_path / "t0.yaml", {"ept.pages": "3M"})
    with pytest.raises(InputError, match="unknown key"):
        load_trace(tmp_path / "t0.yaml", {"epd.pages": "2M"})


def test_a_cell_is_what_replay_and_price_say(tmp_path: Path) -> None:
    from vtx import load_profile, replay
    from vtx.lab.ledger import price

    write_traces(tmp_path, 1)
    row = run_cell(Cell(str(tmp_path / "t0.yaml"), "", "haswell", ()))
    run = replay(tmp_path / "t0.yaml", "haswell")
    ledger = price(run, load_profile("haswell"))
    assert (row["status"], row["exits.cpuid"]) == ("ok", 20)
    assert row["cycles"] == float(ledger.cycles)
    assert row["exits"] == run.total_exits
    parts = [value for key, value in row.items() if key.startswith("cycles.")]
    assert sum(parts) == pytest.approx(row["cycles"])


def test_local_processes_give_what_one_gives(plan: Path, tmp_path: Path) -> None:
    one = sweep(load_plan(plan), tmp_path / "one.csv")
    two = sweep(load_plan(plan), tmp_path / "two.csv", jobs=2)
    assert without_time(one.rows) == without_time(two.rows)
    assert one.count("ok") == 8
    assert not list(tmp_path.glob("*.journal"))


def test_results_in_parquet_and_csv(plan: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    report = sweep(load_plan(plan), tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["cycles"] for row in table] == [row["cycles"] for row in report.rows]
    assert list(table[0])[:3] == ["trace", "profile", "option.ept.pages"]
    sweep(load_plan(plan), tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["exits"]) for row in rows] == [row["exits"] for row in report.rows]


def test_bad_cells_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_traces(tmp_path, 1)
    (tmp_path / "broken.yaml").write_text("schema: 1\nsteps: |\n  cpuidd\n")
    path = write_plan(
        tmp_path,
        "traces: [t0.yaml, broken.yaml]\n"
        "profiles: [haswell, penryn_core2, gracemont_n305, missing.yaml]\n",
    )
    report = sweep(load_plan(path), tmp_path / "out.csv")
    status = {(row["trace"], Path(row["profile"]).stem): row["status"] for row in report.rows}
    assert status["t0", "haswell"] == "ok"
    assert status["t0", "penryn_core2"] == "not supported"
    assert status["t0", "gracemont_n305"] == "no data"
    assert status["t0", "missing"] == "failed"
    assert status["broken", "haswell"] == "failed"
    errors = [row["error"] for row in report.rows if row["trace"] == "broken"]
    assert all("cpuidd" in error for error in errors)


def die_on_haswell(cell: Cell) -> dict[str, Any]:
    if cell.profile == "haswell":
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(cell)


def test_a_process_that_dies_takes_only_its_cell(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_cell", die_on_haswell)
    report = sweep(load_plan(plan), tmp_path / "out.csv", jobs=2)
    assert report.count("ok") == 4
    assert {r["profile"] for r in report.rows if r["status"] == "failed"} == {"haswell"}
    assert all("died" in r["error"] for r in report.rows if r["status"] == "failed")


# ---- Interruption ----


def command(*arguments: object, cwd: Path) -> list[str]:
    return [sys.executable, "-m", "vtx", "sweep", *map(str, arguments)]


def lines(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes()
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()][1:]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path, how: signal.Signals) -> None:
    write_traces(tmp_path, 6, times=300)
    plan = write_plan(tmp_path, "traces: [t*.yaml]\nprofiles: [skylake_sp, haswell, nehalem]\n")
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    child = subprocess.Popen(
        command(plan, "-o", out, "-j", 2, cwd=tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 60
    while time.monotonic() < until and not (journal.exists() and len(lines(journal)) >= 3):
        time.sleep(0.01)
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode == (-9 if how is signal.SIGKILL else 130)
    assert not out.exists()
    finished = {row["key"]: row for row in lines(journal)}
    assert 3 <= len(finished) < 18
    again = subprocess.run(
        command(plan, "-o", out, "-j", 2, cwd=tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert f"18 cells ({len(finished)} finished before): 18 ok" in again.stdout
    assert not journal.exists()
    rest = sweep(load_plan(plan), tmp_path / "whole.csv")
    with open(out, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["cycles"] for row in rows] == [str(row["cycles"]) for row in rest.rows]
    # What was finished is taken over as it was written, its time included: it did not run again.
    seconds = {str(row["seconds"]) for row in finished.values()}
    assert seconds <= {row["seconds"] for row in rows}


def test_half_a_line_is_dropped(plan: Path, tmp_path: Path) -> None:
    whole = sweep(load_plan(plan), tmp_path / "a.csv")
    path = tmp_path / "b.csv.journal"
    with Journal(path) as journal:
        for row in whole.rows[:3]:
            journal.add(row)
    path.write_bytes(path.read_bytes()[:-5])
    report = sweep(load_plan(plan), tmp_path / "b.csv")
    assert report.run == 6
    assert without_time(report.rows) == without_time(whole.rows)


def test_a_changed_trace_is_another_cell(plan: Path, tmp_path: Path) -> None:
    before = {cell.key for cell in load_plan(plan).cells}
    (tmp_path / "t0.yaml").write_text(TRACE.format(name="t0", times=99, address="0x700000"))
    after = {cell.key for cell in load_plan(plan).cells}
    assert len(before & after) == 4


@pytest.mark.parametrize("content", [b"hello\n", b'{"journal": "other"}\n', b'{"a": 1}\n[]\n'])
def test_a_journal_that_is_none(plan: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.csv.journal").write_bytes(content)
    with pytest.raises(InputError, match="no journal"):
        sweep(load_plan(plan), tmp_path / "out.csv")


def test_two_sweeps_do_not_share_a_journal(plan: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "out.csv.journal"), pytest.raises(UsageError, match="another sweep"):
        sweep(load_plan(plan), tmp_path / "out.csv")


# ---- Dask ----

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def test_a_cluster_of_a_scheduler_and_two_workers(plan: Path, tmp_path: Path) -> None:
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    cluster = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert cluster.stdout is not None
    try:
        address = cluster.stdout.readline().strip()
        assert address.startswith("tcp://")
        done = subprocess.run(
            command(plan, "-o", tmp_path / "d.csv", "--scheduler", address, cwd=tmp_path),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "8 cells: 8 ok" in done.stdout
    finally:
        cluster.communicate(timeout=60)
    with open(tmp_path / "d.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    local = sweep(load_plan(plan), tmp_path / "local.csv")
    assert [row["cycles"] for row in rows] == [str(row["cycles"]) for row in local.rows]


def test_a_scheduler_that_is_not_there(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_SECONDS", "1s")
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(UsageError, match="no Dask scheduler"):
            sweep(load_plan(plan), tmp_path / "out.csv", scheduler=address)


# ---- Wrong plans, wrong use ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("traces: [t0.yaml]\n", "names no profiles"),
        ("traces: []\nprofiles: [haswell]\n", "traces is empty"),
        ("traces: [nothing*.yaml]\nprofiles: [haswell]\n", "no file is called"),
        ("traces: [t0.yaml]\nprofiles: [haswell]\noption: {}\n", "options"),
        ("traces: [t0.yaml]\nprofiles: [haswell]\noptions: [vpid]\n", "mapping"),
        ("traces: [t0.yaml]\nprofiles: [haswell]\noptions: {vpid: []}\n", "no value"),
    ],
)
def test_wrong_plans(tmp_path: Path, text: str, says: str) -> None:
    write_traces(tmp_path, 1)
    with pytest.raises(InputError, match=says):
        load_plan(write_plan(tmp_path, text))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan.yaml",), "-o"),
        (("plan.yaml", "-o", "x.txt"), "*.parquet"),
        (("plan.yaml", "-o", "none/x.csv"), "no directory"),
        (("plan.yaml", "-o", "plan.yaml"), "exists"),
        (("plan.yaml", "-o", "x.csv", "-j", "0"), "from 1"),
        (("plan.yaml", "-o", "x.csv", "-j", "2", "--scheduler", "tcp://x"), "cluster"),
    ],
)
def test_wrong_use(plan: Path, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = subprocess.run(
        command(*arguments, cwd=tmp_path), capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_cell_gives_exit_code_1(tmp_path: Path) -> None:
    write_traces(tmp_path, 1)
    plan = write_plan(tmp_path, "traces: [t0.yaml]\nprofiles: [haswell, none.yaml]\n")
    done = subprocess.run(
        command(plan, "-o", "x.csv", cwd=tmp_path),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 1
    assert "t0 on" in done.stderr
    assert "none.yaml" in done.stderr
