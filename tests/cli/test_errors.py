"""What goes wrong ends in one sentence, the right exit code, and nothing half-written."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vtx.cli
from vtx.commands.profiles import Profiles

COMMAND = [sys.executable, "-m", "vtx"]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, **options
    )


def complaint(code: int, *arguments: str) -> str:
    """Run, expect an exit code, nothing on standard output and one sentence beside it."""
    done = run(*arguments)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("vtx: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["replai"], "invalid choice: 'replai'"),
        (["profiles", "a", "b"], "unrecognized arguments: b"),
        (["profiles", "--formt", "json"], "unrecognized arguments"),
        (["profiles", "--format", "xml"], "invalid choice: 'xml'"),
        (["profiles", "--force"], "--force is for -o FILE"),
        (["explain"], "required: QUERY"),
        (["explain", "48", "--qualification", "much"], "number of 64 bits"),
        (["explain", "48", "--qualification", "-1"], "number of 64 bits"),
        (["explain", "48", "--qualification", "0x10000000000000000"], "number of 64 bits"),
        (["replay"], "required: TRACE"),
        (["compare"], "required: TRACE"),
    ],
)
def test_usage(arguments: list[str], words: str) -> None:
    assert words in complaint(2, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profiles", "haswel"], "did you mean haswell"),
        (["profiles", "missing.yaml"], "No such file"),
        (["explain", "GUEST_RIPP"], "did you mean"),
        (["explain", "GUEST_RIP", "GUEST_RIPP"], "unknown"),
        (["replay", "missing.yaml"], "missing.yaml"),
        (["compare", "missing.yaml", "--profiles", "haswell"], "missing.yaml"),
        (["compare", "missing.yaml", "--profiles", "haswell,nehalm"], "did you mean nehalem"),
        (["compare", "missing.yaml", "--profiles", ""], "name of the profile is empty"),
    ],
)
def test_input(arguments: list[str], words: str) -> None:
    assert words in complaint(3, *arguments)


def test_an_impossible_profile_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema: 1\ninherits: haswell\nprices:\n  entry: 5\n")
    assert f"{path}:4" in complaint(3, "profiles", str(path))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe.yaml")
    done = run("profiles", str(tmp_path / name))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1


def test_a_name_with_control_characters_is_shown_harmless() -> None:
    assert "\x1b" not in complaint(3, "profiles", "a\x1b[31m\nb.yaml")


def test_output_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    done = run("profiles", "--format", "csv", "-o", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert path.read_text().startswith("id,name")
    assert list(tmp_path.iterdir()) == [path]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_no_file_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("precious")
    assert "--force" in complaint(2, "profiles", "-o", str(path))
    assert path.read_text() == "precious"
    assert run("profiles", "-o", str(path), "--force").returncode == 0
    assert path.read_text() != "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_force_writes_through_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "out.txt", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    assert run("profiles", "-o", str(link), "--force").returncode == 0
    assert link.is_symlink()
    assert path.read_text() != "old"


@pytest.mark.parametrize("name", ["", "missing/out.txt"])
def test_places_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    assert "director" in complaint(2, "profiles", "-o", str(tmp_path / name))


def test_output_to_a_device() -> None:
    assert run("profiles", "-o", "/dev/null").returncode == 0
    assert "cannot write /dev/full" in complaint(4, "profiles", "-o", "/dev/full")


def test_a_file_system_that_is_full_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")

    def no_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = run("profiles", "-o", str(path), "--force", preexec_fn=no_space)
    assert done.returncode == 4
    assert "cannot write" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "profiles"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_standard_output_that_is_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vtx profiles >&-"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4
    assert done.stderr == "vtx: standard output is closed\n"


def test_a_pipe_that_nobody_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "profiles", "skylake_sp"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_interrupted_while_it_waits_for_standard_input() -> None:
    with subprocess.Popen(
        [*COMMAND, "replay", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while "pipe" not in _wait_channel(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "vtx: interrupted\n")


def _wait_channel(pid: int) -> str:
    """Return what the process is waiting for; where the system does not say, wait and assume."""
    try:
        channel = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        channel = "0"
    if channel == "0":
        time.sleep(1)
        return "pipe"
    return channel


def test_what_is_unexpected_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(Profiles, "run", run)
    monkeypatch.setattr(vtx.cli, "_abandon_stdout", lambda: None)
    monkeypatch.delenv("VTX_DEBUG", raising=False)
    assert vtx.cli.main(["profiles"]) == 4
    captured = capsys.readouterr()
    expected = "vtx: unexpected ZeroDivisionError: division by zero (VTX_DEBUG=1 shows where)\n"
    assert (captured.out, captured.err) == ("", expected)
    monkeypatch.setenv("VTX_DEBUG", "1")
    assert vtx.cli.main(["profiles"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Profiles, "run", run)
    assert vtx.cli.main(["profiles"]) == 130
    assert capsys.readouterr().err == "vtx: interrupted\n"


LISTING = "schema: 1\nsteps: |\n  nop\n  cpuid\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("import vtx\n\n@vtx.on('CPUID')\ndef f(cpu): pass\n", 3, "f(cpu) cannot be called"),
        ("import sys\nsys.exit(3)\n", 2, "must not exit"),
        ("import vtx\n@vtx.on('CPUID')\ndef f(cpu, exit):\n    raise SystemExit\n", 4, "not exit"),
        ("import vtx\n@vtx.on('CPUID')\ndef f(cpu, exit):\n    cpu.vmread(0x7ffe)\n", 4, "VMREAD"),
    ],
)
def test_handlers_that_cannot_work(tmp_path: Path, text: str, line: int, words: str) -> None:
    trace, handlers = tmp_path / "t.yaml", tmp_path / "h.py"
    trace.write_text(LISTING)
    handlers.write_text(text)
    said = complaint(3, "replay", str(trace), "--handlers", str(handlers))
    assert f"{handlers}:{line}: " in said
    assert words in said


def test_handlers_are_called_by_their_file(tmp_path: Path) -> None:
    trace, handlers = tmp_path / "t.yaml", tmp_path / "h.py"
    trace.write_text(LISTING)
    handlers.write_text("x = 1\n")
    said = complaint(3, "replay", str(trace), "--handlers", str(handlers))
    assert "vtx_user_handlers" not in said
    assert "the file handles no exit reason" in said


def test_empty_and_unknown_names(tmp_path: Path) -> None:
    trace = tmp_path / "t.yaml"
    trace.write_text(LISTING)
    assert "name of the trace file is empty" in complaint(3, "replay", "")
    assert "name of the profile is empty" in complaint(3, "replay", str(trace), "--profile", "")
    assert "'vtx profiles' lists" in complaint(3, "replay", str(trace), "--profile", "nosuch")
    trace.write_text(LISTING.replace("steps", "profile: nosuch\nsteps"))
    assert f"{trace}:2:10: unknown profile" in complaint(3, "replay", str(trace))


def test_a_comparison_without_figures_says_why(tmp_path: Path) -> None:
    trace = tmp_path / "t.yaml"
    trace.write_text(LISTING)
    done = run("compare", str(trace), "--profiles", "penryn_core2")
    assert done.returncode == 3
    assert "penryn_core2 has no EPT" in done.stderr
    assert "on 1 CPU profile\n" in done.stdout
    assert "rests on" not in done.stdout


def test_a_table_counts_one_and_names_as_the_trace_does(tmp_path: Path) -> None:
    trace = tmp_path / "t.yaml"
    text = "ept: off\nexpect:\n  exits: {cpuid: 1}\n  vmcs: {guest_cr3: 0}\nsteps"
    trace.write_text(LISTING.replace("steps", text).replace("  nop\n", ""))
    done = run("replay", str(trace))
    assert "1 exit in 0 steps, end" in done.stdout
    assert "exits cpuid" in done.stdout
    assert "guest_cr3" in done.stdout


def test_csv_of_profiles_says_yes_and_no() -> None:
    lines = run("profiles", "--format", "csv").stdout.splitlines()
    assert "True" not in "".join(lines)
    assert "yes" in lines[-1].split(",")
