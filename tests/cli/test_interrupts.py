"""An interrupt ends the command with one sentence whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where tests run
import vtx.__main__ as entry
entry.hush()
print("ready", flush=True)
sys.exit(entry.main(["exits", "-"]))
"""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.02, 0.05, 0.1, 0.2, 0.5])
def test_interrupted_at_any_time(delay_seconds: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as command:
        assert command.stdout is not None and command.stdout.readline() == b"ready\n"
        time.sleep(delay_seconds)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (130, b"", b"vtx: interrupted\n")
