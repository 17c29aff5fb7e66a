"""``vtx replay`` and ``vtx compare`` on small traces."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vtx
from vtx.commands.traces import DEFAULT_PROFILE
from vtx.facts.exits import ExitReason, kvm_name
from vtx.hypervisor import replay as replaying
from vtx.profiles import names

TRACE = """\
schema: 1
name: seven CPUIDs
steps: |
  repeat 7
    cpuid leaf=1
  end
  hlt
expect:
  exits: {CPUID: 7, HLT: 1}
"""
NO_EPT = TRACE.replace("steps:", "ept: off\nsteps:")
SHUTDOWN = """\
schema: 1
vmcs: {GUEST_IDTR_LIMIT: 0}
steps: |
  int 0x80
"""
FAILING = TRACE.replace("CPUID: 7", "CPUID: 8")
HANDLERS = """\
import vtx

@vtx.on("CPUID")
def cpuid(cpu, exit):
    cpu.regs.rax = 0x16
    cpu.skip(exit)
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.yaml"
    path.write_text(TRACE)
    return path


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vtx", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def stdout(*arguments: object, stdin: str = "") -> str:
    done = run(*arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_command_and_the_library_have_one_default_profile() -> None:
    assert DEFAULT_PROFILE == replaying.DEFAULT_PROFILE


def test_replay_as_a_table(trace: Path) -> None:
    text = stdout("replay", trace)
    lines = text.splitlines()
    title = "seven CPUIDs on skylake_sp (Xeon Gold 6140 (Skylake-SP), 2.3 GHz): "
    assert lines[0].startswith(title)
    assert lines[0].endswith(", halted")
    cpuid = next(line.split() for line in lines if line.startswith("CPUID"))
    assert cpuid[1] == "7"
    assert cpuid[10] == f"{7 * 636:,}"
    assert [line.split()[-1] for line in lines if line.startswith("exits ")] == ["ok", "ok"]
    assert "~ rests on an estimate" in text


def test_replay_as_json_agrees_with_the_library(trace: Path) -> None:
    data = json.loads(stdout("replay", trace, "--profile", "haswell", "--format", "json"))
    ran = vtx.replay(trace, "haswell")
    assert data["schema"] == "vtx.replay/1"
    assert data["trace"] == {"name": "seven CPUIDs", "file": str(trace)}
    assert data["profile"]["id"] == "haswell"
    assert data["outcome"] == ran.outcome == "halted"
    assert data["exits"] == ran.total_exits
    samples = {row["name"]: row["samples"] for row in data["ledger"]["rows"] if row["samples"]}
    assert samples == {kvm_name(ExitReason(reason)): n for reason, n in ran.exits.items()}
    assert data["translation"] == dict(ran.translation)
    assert [entry["holds"] for entry in data["expectations"]] == [True, True]
    rows = sum(row["cycles"] for row in data["ledger"]["rows"])
    translation = sum(cell["cycles"] for cell in data["ledger"]["translation"].values())
    assert rows + translation == data["ledger"]["cycles"]


def test_replay_as_csv_adds_up(trace: Path) -> None:
    text = stdout("replay", trace, "--format", "csv")
    *rows, total = csv.DictReader(io.StringIO(text))
    assert total["exit_reason"] == "total"
    assert sum(float(row["cycles"]) for row in rows) == float(total["cycles"])
    for row in (*rows, total):
        shares = ("measured_cycles", "derived_cycles", "estimated_cycles")
        assert sum(float(row[name]) for name in shares) == float(row["cycles"])


def test_a_profile_without_prices_replays_without_figures(trace: Path) -> None:
    text = stdout("replay", trace, "--profile", "gracemont_n305")
    cpuid = next(line for line in text.splitlines() if line.startswith("CPUID"))
    assert "no data" in cpuid
    assert "no measurement found" in text
    rows = list(
        csv.DictReader(
            io.StringIO(stdout("replay", trace, "--profile", "gracemont_n305", "--format", "csv"))
        )
    )
    assert {row["cycles"] for row in rows} == {""}
    data = json.loads(stdout("replay", trace, "--profile", "gracemont_n305", "--format", "json"))
    assert not data["ledger"]["priced"]


def test_a_cpu_without_ept_refuses(trace: Path) -> None:
    done = run("replay", trace, "--profile", "penryn_core2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "EPT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_trace_on_standard_input() -> None:
    assert "seven CPUIDs" in stdout("replay", "-", stdin=TRACE)
    done = run("replay", "-", stdin="schema: 1\nsteps: |\n  cpuidd\n")
    assert done.returncode == 3
    assert "<stdin>:3" in done.stderr
    assert "did you mean cpuid" in done.stderr


def test_an_expectation_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "trace.yaml"
    path.write_text(FAILING)
    for arguments in (["replay", path], ["compare", path, "--profiles", "haswell"]):
        done = run(*arguments)
        assert done.returncode == 1
        assert f"{path}:9" in done.stderr
        assert "expected 8, got 7" in done.stderr
        assert done.stdout


def test_handlers_of_ones_own(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HANDLERS)
    text = TRACE + "  registers: {rax: 0x16}\n"
    assert "register rax" in stdout("replay", "-", "--handlers", path, stdin=text)
    path.write_text(
        "import vtx\nclass Mine(vtx.Vmm):\n    @vtx.on('CPUID')\n"
        + ("    def mine(self, cpu, exit):\n        cpu.regs.rax = 0x16\n        cpu.skip(exit)\n")
    )
    assert "register rax" in stdout("replay", "-", "--handlers", path, stdin=text)
    assert "haswell" in stdout("compare", trace, "--handlers", path, "--profiles", "haswell")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", ":1: not Python: "),
        ("x = 1\n", "handles no exit reason"),
        ("\nraise ValueError('no')\n", ":2: ValueError: no"),
        ("import vtx\nvtx.on('CPUIDD')\n", "unknown exit reason 'CPUIDD'"),
        (HANDLERS.replace("0x16", "1 // 0"), ":5: ZeroDivisionError"),
        ("import vtx\nclass A(vtx.Vmm): pass\nclass B(vtx.Vmm): pass\n", "2 VMMs"),
        ("\0", "not Python"),
    ],
)
def test_handlers_that_are_wrong(tmp_path: Path, trace: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    done = run("replay", trace, "--handlers", path)
    assert (done.returncode, done.stdout) == (3, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_handlers_that_cannot_be_read(tmp_path: Path, trace: Path) -> None:
    for path, words in ((tmp_path / "none.py", "No such file"), (tmp_path, "directory")):
        done = run("replay", trace, "--handlers", path)
        assert done.returncode == 3
        assert words in done.stderr


def test_compare_shows_every_profile(trace: Path) -> None:
    text = stdout("compare", trace)
    rows = {line.split()[0]: line for line in text.splitlines()[4:23]}
    assert list(rows) == list(names())
    for name in ("prescott_p4_672", "merom_core2", "penryn_core2"):
        assert rows[name].split()[1:4] == ["-", "not", "supported"]
        assert not any(character.isdigit() for character in rows[name].removeprefix(name))
    assert rows["gracemont_n305"].split()[1:4] == ["-", "no", "data"]
    assert rows["nehalem"].split()[6] == "1.00x"
    assert "Penryn" in text or "penryn_core2" in text


def test_compare_in_every_format_with_a_baseline(trace: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("schema: 1\ninherits: skylake_sp\nid: own\n")
    which = ["--profiles", f"haswell,skylake_sp,{own}", "--baseline", "skylake_sp"]
    data = json.loads(stdout("compare", trace, *which, "--format", "json"))
    assert (data["schema"], data["baseline"], data["runs"]) == ("vtx.compare/1", "skylake_sp", 2)
    relative = {entry["id"]: entry["relative_time"] for entry in data["profiles"]}
    assert relative["own"] == relative["skylake_sp"] == 1
    lines = csv.DictReader(io.StringIO(stdout("compare", trace, *which, "--format", "csv")))
    assert {line["profile"]: float(line["relative_time"]) for line in lines} == relative
    assert "1.00x" in stdout("compare", trace, *which)


def test_a_baseline_that_cannot_be(trace: Path) -> None:
    done = run("compare", trace, "--profiles", "haswell,penryn_core2", "--baseline", "penryn_core2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be the baseline" in done.stderr
    done = run("compare", trace, "--profiles", "haswell", "--baseline", "nehalem")
    assert (done.returncode, done.stdout) == (3, "")


def test_without_ept_the_oldest_cpus_have_figures() -> None:
    text = stdout("compare", "-", "--profiles", "prescott_p4_672,skylake_sp", stdin=NO_EPT)
    assert "not supported" not in text
    assert "1.00x" in text


def test_a_run_that_cannot_go_on_is_exit_code_4() -> None:
    # No vector has a gate below this limit of the IDT: delivery ends in shutdown.
    done = run("replay", "-", stdin=SHUTDOWN)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    done = run("compare", "-", "--profiles", "haswell,skylake_sp", stdin=SHUTDOWN)
    assert done.returncode == 4
    assert done.stdout.count("stopped") == 2
