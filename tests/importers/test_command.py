"""``vtx exits`` as users run it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data" / "kvm"
COMMAND = [sys.executable, "-m", "vtx", "exits"]
LINE = " q-1 [000] d..1 {}: kvm_{}\n"


def run(*arguments: object, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, input=data, capture_output=True, timeout=120)


def report(*arguments: object, data: bytes | None = None) -> dict:
    done = run(*arguments, "--format", "json", data=data)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trace(tmp_path: Path, *events: tuple[str, str]) -> Path:
    path = tmp_path / "trace.txt"
    path.write_text("".join(LINE.format(stamp, event) for stamp, event in events))
    return path


@pytest.mark.parametrize("how", ["plain", "gz", "xz", "stdin", "stdin gz"])
def test_files_and_pipes(tmp_path: Path, how: str) -> None:
    content = (DATA / "01.txt").read_bytes()
    packed = {"gz": gzip.compress, "xz": lzma.compress}.get(how.split()[-1], bytes)(content)
    path = tmp_path / "packed"  # told by content, not by name
    path.write_bytes(packed)
    document = report("-", data=packed) if how.startswith("stdin") else report(path)
    assert document["schema"] == "vtx.exits/1"
    assert {row["reason"]: row["samples"] for row in document["rows"]} == {
        "IO_INSTRUCTION": 6,
        "EXTERNAL_INTERRUPT": 3,
        "PENDING_INTERRUPT": 1,
    }
    assert document["lines"] == {
        "read": 79,
        "used": 38,
        "skipped": {"blank": 7, "comment": 10, "other_event": 24},
    }


def test_an_exit_without_entry_counts(tmp_path: Path) -> None:
    path = trace(tmp_path, ("1.000001", "exit: reason HLT rip 0x1 info 0 0"))
    (row,) = report(path)["rows"]
    assert (row["samples"], row["time_ns"]) == (1, None)


def test_table(tmp_path: Path) -> None:
    done = run(DATA / "01.txt", "--per-vcpu", "--per-slice", "1ms", "--than", "20us")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    for words in (
        "port 0x60 in", "vector 0xfd", "vcpu 0 thread 5665", "2 exits longer than 20.00 us",
        "Slowest exits", "> IO_INSTRUCTION", "lines read, 38 used, 41 skipped",
    ):  # fmt: skip
        assert words in text


def test_csv() -> None:
    done = run(DATA / "06.txt", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [(r["view"], r["reason"], r["detail"], r["samples"]) for r in rows] == [
        ("reason", "EXTERNAL_INTERRUPT", "", "4"),
        ("detail", "EXTERNAL_INTERRUPT", "vector 0xec", "3"),
        ("detail", "EXTERNAL_INTERRUPT", "vector 0xfd", "1"),
        ("total", "", "", "4"),
    ]
    assert b"11 lines read, 9 used" in done.stderr


def test_baseline() -> None:
    document = report(DATA / "06.txt", "--baseline", DATA / "01.txt")
    changes = {entry["reason"]: entry for entry in document["changes"]}
    both = changes["EXTERNAL_INTERRUPT"]
    assert (both["trace"]["samples"], both["baseline"]["samples"]) == (4, 3)
    assert changes["IO_INSTRUCTION"]["trace"]["samples"] == 0
    assert "baseline" in run(DATA / "06.txt", "--baseline", DATA / "01.txt").stdout.decode()


def test_names_that_changed_meet_in_a_baseline(tmp_path: Path) -> None:
    old = trace(tmp_path, ("1.000001", "exit: reason PENDING_INTERRUPT rip 0x1 info 0 0"))
    new = (LINE.format("1.000001", "exit: reason INTERRUPT_WINDOW rip 0x1 info 0 0")).encode()
    (entry,) = report("-", "--baseline", old, data=new)["changes"]
    assert (entry["trace"]["samples"], entry["baseline"]["samples"]) == (1, 1)


BAD = {
    "empty": (b"", "is empty"),
    "no event": (b"hello\nworld\n", "no trace of VM exits"),
    "no KVM event": (b" q-1 [000] 1.000001: sched_switch: x\n", "event of KVM's (1 other event)"),
    "only entries": (LINE.format("1.0", "entry: vcpu 0").encode(), "no kvm_exit (1 kvm_entry)"),
    "AMD": (LINE.format("1.0", "exit: reason npf rip 0x1").encode(), "of an AMD host: 'npf'"),
    "AMD, EXIT_": (LINE.format("1.0", "exit: reason EXIT_NPF rip 0x1").encode(), "AMD host"),
    "AMD report": (b"  npf  1  100.00%  100.00%  1.00us  1.00us  1.00us ( +-   0.00% )\n", "AMD"),
    "garbage": (bytes(range(256)) * 1000, "no trace of VM exits"),
    "cut": (LINE.format("1.0", "exit: reas").encode(), "all cut"),
    "trace.dat": (b"\x17\x08\x44tracing6\0", "trace-cmd report"),
    "perf.data": (b"PERFILE2" + bytes(100), "perf script"),
    "damaged gzip": (gzip.compress(bytes(10**6))[:500], "damaged"),
    "damaged xz": (lzma.compress(bytes(10**6))[:100], "damaged"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("piped", [False, True])
def test_bad_input_is_one_sentence(tmp_path: Path, name: str, piped: bool) -> None:
    data, words = BAD[name]
    path, out = tmp_path / "bad", tmp_path / "out.json"
    path.write_bytes(data)
    done = run("-" if piped else path, "--format", "json", "-o", out, data=data)
    text = done.stderr.decode()
    assert done.returncode == 3
    assert text.startswith("vtx: ")
    assert text.count("\n") == 1
    assert words in text
    assert done.stdout == b""
    assert not out.exists()


def test_a_directory_and_a_missing_file(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 3
    assert b"No such file" in run(tmp_path / "none").stderr


def test_a_clock_that_goes_backwards_is_told(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        ("1.000005", "exit: reason HLT rip 0x1 info 0 0"),
        ("1.000001", "entry: vcpu 0"),
    )
    document = report(path)
    assert document["rows"][0]["time_ns"] is None
    assert "The clock went backwards between exit and entry: 1 exit has" in " ".join(
        document["warnings"]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--than", "fast"), ("--per-slice", "0s"), ("--storm", "1"), ("--slowest", "x"),
        ("--details", "-1"),
    ],
)  # fmt: skip
def test_usage(arguments: tuple[str, ...]) -> None:
    assert run(DATA / "01.txt", *arguments).returncode == 2


def test_reports_have_no_single_exits() -> None:
    assert run(DATA / "17_perf_kvm_stat.txt", "--per-vcpu").returncode == 2


def test_interrupted_while_waiting_for_a_pipe() -> None:
    words = [*COMMAND, "-"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write((DATA / "06.txt").read_bytes())
        process.stdin.flush()
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b""
        assert process.stderr.read() == b"vtx: interrupted\n"
