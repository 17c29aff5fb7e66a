"""What only people at a terminal see: style, and progress of long work."""

import io
import os
import pty
import subprocess
import sys

import pytest

from vtx.commands import progress
from vtx.commands.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(*arguments: str, columns: int = 200) -> str:
    """Return what a command prints with a terminal as its standard output."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "vtx", *arguments],
        stdout=theirs,
        stdin=subprocess.DEVNULL,
        env=environment,
    ) as process:
        os.close(theirs)
        out = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side has closed
                break
            if not piece:
                break
            out += piece
    os.close(ours)
    assert process.returncode == 0
    return out.decode()


def test_a_table_on_a_terminal_has_bold_headings_and_the_same_figures() -> None:
    text = on_a_terminal("profiles")
    assert "\x1b[1m" in text
    for figure in ("~382", "no data", "3,963"):
        assert figure in text


def test_a_narrow_terminal_cuts_no_figure() -> None:
    text = on_a_terminal("profiles", columns=30)
    for figure in ("prescott_p4_672", "3,963", "2,409", "1,554", "377", "fault_exit_extra"):
        assert figure in text


def test_json_on_a_terminal_is_as_in_a_file() -> None:
    assert "\x1b" not in on_a_terminal("profiles", "--format", "json")


def test_work_of_less_than_a_second_shows_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("running") as bar:
        bar.update(1, 2)
    assert terminal.getvalue() == ""


def test_long_work_shows_progress_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("running") as bar:
        bar.update(1, 2, "haswell")
        bar.update(2, 2, "skylake_sp")
    assert "running" in terminal.getvalue()


def test_progress_goes_to_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    with Progress("running") as bar:
        bar.update(1, 2)
    assert file.getvalue() == ""
