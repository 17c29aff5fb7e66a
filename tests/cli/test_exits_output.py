"""`vtx exits` and `vtx compare` when their output cannot be written, or a line never ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRACE = "".join(
    f" q-1 [000] 1.{index:06d}: kvm_exit: reason HLT rip 0x10 info 0 0\n"
    f" q-1 [000] 1.{index + 1:06d}: kvm_entry: vcpu 0\n"
    for index in range(0, 40, 2)
)
COMMANDS = [["exits"], ["exits", "--format", "json"], ["compare"]]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.txt"
    path.write_text(TRACE)
    return path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_full_disk(trace: Path, command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "vtx", command[0], str(trace), *command[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 4
    assert ended.stderr.count("\n") == 1
    assert "No space left on device" in ended.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_closed_pipe(trace: Path, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "-m", "vtx", command[0], str(trace), *command[1:]],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (141, "")


#: Runs vtx on standard input and says how much memory it took at most, in KiB.
#: Linux counts what the test's own process had in ru_maxrss, too; VmHWM begins with the program.
_MEASURED = """
import pathlib, resource, sys
from vtx.cli import main
code = main(["exits", "-", "--format", "json", "-o", sys.argv[1]])
status = pathlib.Path("/proc/self/status")
peaks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] \\
    if status.exists() else [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]
print(code, *peaks)
"""


def test_a_line_of_100_megabytes_takes_no_memory(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    child = subprocess.Popen(
        [sys.executable, "-c", _MEASURED, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    child.stdin.write(TRACE.encode())
    block = b"x" * (1 << 20)
    for _ in range(100):
        child.stdin.write(block)
    said, _ = child.communicate(b"\n" + TRACE.encode())
    code, kilobytes = map(int, said.split())
    assert code == 0
    assert kilobytes < 95 << 10  # less than the line alone
    text = out.read_text()
    assert '"too_long": 1' in text
    assert '"samples": 40' in text
