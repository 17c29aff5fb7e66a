"""The stepper: recordings, breakpoints, views, and the program driven by keys on 80 x 24."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import vtx
from vtx.errors import InputError
from vtx.facts.exits import ExitReason
from vtx.hypervisor.recording import Kind, Recording, record
from vtx.hypervisor.trace import parse_trace
from vtx.lab.profile import load_profile
from vtx.stepper import views
from vtx.stepper.app import Stepper
from vtx.stepper.breakpoints import Breakpoint, parse_breakpoint

TRACES = Path(__file__).resolve().parent.parent.parent / "traces"
TRACE = """schema: 1
name: small
ept: {pages: 2M}
steps: |
  mov rbx, 5
  cpuid leaf=1
  store 0x800000 value=7
  rdmsr msr=0x277
  hlt
"""


@pytest.fixture(scope="module")
def small() -> Recording:
    return record(parse_trace(TRACE))


# ---- Recordings ----


def test_a_recording_is_the_run_that_replay_makes() -> None:
    for name in ("01-cpuid", "02-ept-violation", "03-cr-msr-io", "04-two-processors"):
        path = TRACES / f"{name}.yaml"
        recording, run = record(path), vtx.replay(path)
        exits = [f for f in recording.frames if f.kind is Kind.EXIT]
        assert len(exits) == run.total_exits
        assert [f.reason for f in exits] == [record_.reason for record_ in run.events.exits]
        assert recording.complete
        last = recording.frames[-1]
        assert last.kind is Kind.END
        assert run.outcome in last.text
        if name != "04-two-processors":
            shared = run.registers.keys() & last.registers.keys()
            assert {n: last.registers[n] for n in shared} == {n: run.registers[n] for n in shared}


def test_frames_follow_each_other(small: Recording) -> None:
    kinds = [frame.kind for frame in small.frames]
    for one, next_ in itertools.pairwise(kinds):
        assert next_ is Kind.ENTRY if one is Kind.EXIT else one is not Kind.END
    steps = [frame.text for frame in small.frames if frame.kind is Kind.STEP]
    assert list(dict.fromkeys(steps)) == [
        "mov rbx, 5", "cpuid leaf=1", "store 0x800000 value=7", "rdmsr msr=0x277", "hlt",
    ]  # fmt: skip
    lines = {frame.line for frame in small.frames if frame.kind is Kind.STEP}
    assert lines == {5, 6, 7, 8, 9}


def test_the_changes_are_the_exits_and_the_vmms(small: Recording) -> None:
    cpuid = next(f for f in small.frames if f.reason == ExitReason.CPUID)
    changed = {change.field: change.after for change in cpuid.changes}
    assert changed["exit_reason"] == 10
    assert changed["vm_exit_instruction_length"] == 2
    entry = small.frames[cpuid.index + 1]
    assert entry.kind is Kind.ENTRY
    moved = {change.field: change.after - change.before for change in entry.changes}
    assert moved == {"guest_rip": 2}


def test_walks_of_steps_and_of_violations(small: Recording) -> None:
    store = [f for f in small.frames if f.text.startswith("store") and f.walk]
    assert store[-1].address == 0x80_0000
    assert store[-1].walk.ok
    violation = next(f for f in small.frames if f.reason == ExitReason.EPT_VIOLATION)
    assert violation.walk is not None
    assert not violation.walk.ok


def test_a_recording_that_is_cut_off() -> None:
    recording = record(parse_trace(TRACE), most=5)
    assert not recording.complete
    assert len(recording.frames) == 6
    assert "after 5 frames" in recording.frames[-1].text


def test_a_run_that_fails_ends_with_its_sentence() -> None:
    text = TRACE.replace("ept:", "vmcs: {guest_rflags: 0}\nept:")
    recording = record(parse_trace(text))
    assert "Bit 1 of guest RFLAGS" in recording.frames[-1].text + recording.frames[0].text


def test_an_observed_machine_does_what_it_does_alone() -> None:
    path = TRACES / "03-cr-msr-io.yaml"
    run = vtx.replay(path)
    last = record(path).frames[-1]
    assert last.counts is not None
    alone = {reason: tuple(row) for reason, row in run.events.counts.items()}
    assert dict(last.counts.counts) == alone
    assert dict(last.counts.translation) == dict(run.translation)


# ---- Breakpoints ----


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cpuid", {"reason": ExitReason.CPUID}),
        ("MSR_READ", {"reason": ExitReason.RDMSR}),
        ("exit 48", {"reason": ExitReason.EPT_VIOLATION}),
        ("0x800000", {"address": 0x80_0000}),
        ("line 8", {"line": 8}),
    ],
)
def test_breakpoints_are_read(text: str, wanted: dict[str, int]) -> None:
    assert parse_breakpoint(text) == Breakpoint(text, **wanted)


@pytest.mark.parametrize("text", ["", "cpuidd", "line x", "exit", "line 5 6"])
def test_what_is_no_breakpoint(text: str) -> None:
    with pytest.raises(InputError):
        parse_breakpoint(text)


@pytest.mark.parametrize("text", ["rdmsr", "0x800000", "line 8", "0x200000"])
def test_breakpoints_hit(small: Recording, text: str) -> None:
    point = parse_breakpoint(text)
    hits = [frame for frame in small.frames if point.hits(frame)]
    assert hits
    if text == "rdmsr":
        assert {frame.reason for frame in hits} == {ExitReason.RDMSR}
    if text == "line 8":
        assert {frame.text for frame in hits} == {"rdmsr msr=0x277"}
    if text == "0x800000":
        assert all(frame.address == 0x80_0000 for frame in hits)


# ---- Views ----


def test_every_frame_can_be_shown(small: Recording) -> None:
    profile = load_profile("skylake_sp")
    before = None
    for frame in small.frames:
        for rows in (
            [views.title(small, frame)],
            views.listing(small, frame, 12),
            views.registers(frame, before),
            views.exit_details(frame),
            views.vmcs_changes(frame),
            views.walk(frame),
            views.costs(small, frame, profile),
        ):
            assert rows
            assert all(isinstance(row, str) for row in rows)
        before = frame


def test_registers_that_changed_are_marked(small: Recording) -> None:
    rows = views.registers(small.frames[-1], small.frames[0])
    marked = [row.split()[0] for row in rows if row.startswith("*")]
    assert "*rbx" in marked
    assert all(len(row) <= 50 for row in rows)


def test_costs_grow(small: Recording) -> None:
    profile = load_profile("skylake_sp")
    assert "first VM exit is still to come" in views.costs(small, small.frames[0], profile)[0]
    assert "cycles" in views.costs(small, small.frames[-1], profile)[0]
    assert "no prices" in views.costs(small, small.frames[-1], load_profile("gracemont_n305"))[0]


# ---- The program ----


def drive(
    recording: Recording, keys: Callable[[Stepper], Awaitable[None]] | None = None
) -> Stepper:
    """Run the program on a terminal of 80 x 24 without one, and press keys."""
    app = Stepper(recording, load_profile("skylake_sp"))

    async def run() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            app.pilot = pilot  # type: ignore[attr-defined]
            await keys(app)

    asyncio.run(run())
    return app


def shown(app: Stepper, name: str) -> str:
    from textual.widgets import Static

    return str(app.query_one(f"#{name}", Static).render())


def test_forwards_backwards_and_to_exits(small: Recording) -> None:
    async def keys(app: Stepper) -> None:
        press = app.pilot.press  # type: ignore[attr-defined]
        await press("p")
        assert "beginning" in shown(app, "message")
        await press("n", "n")
        assert app.position == 2
        await press("p")
        assert app.position == 1
        await press("home", "e")
        assert app.frame.kind is Kind.EXIT
        first = app.position
        await press("e", "E")
        assert app.position == first
        assert "VMX root operation" in shown(app, "title")
        assert f"exit {int(app.frame.reason or 0)}" in shown(app, "listing")
        await press("end")
        assert app.frame.kind is Kind.END
        await press("n")
        assert "this is the end" in shown(app, "message")
        await press("e")
        assert "no further VM exit" in shown(app, "message")

    drive(small, keys)


def test_breakpoints_by_keys(small: Recording) -> None:
    async def keys(app: Stepper) -> None:
        press = app.pilot.press  # type: ignore[attr-defined]
        await press("c")
        assert "no breakpoint" in shown(app, "message")
        await press("b", *"rdmsr", "enter")
        assert "breakpoints: rdmsr" in shown(app, "message")
        await press("c")
        assert app.frame.reason == ExitReason.RDMSR
        assert app.frame.kind is Kind.EXIT
        assert "breakpoint rdmsr" in shown(app, "message")
        await press("c")
        assert "no breakpoint is hit" in shown(app, "message")
        await press("C")
        assert app.frame.reason == ExitReason.RDMSR
        await press("b", *"nonsense", "enter")
        assert "no exit reason" in shown(app, "message")
        await press("b", "escape", "d")
        assert app.breakpoints == []
        await press("g", "3", "enter")
        assert app.position == 3
        await press("g", "x", "enter")
        assert "no number" in shown(app, "message")

    drive(small, keys)


def test_tabs_and_help(small: Recording) -> None:
    from textual.widgets import TabbedContent

    async def keys(app: Stepper) -> None:
        press = app.pilot.press  # type: ignore[attr-defined]
        await press("e")
        for key, name in zip("4321", ("costs", "walk", "vmcs", "exit"), strict=True):
            await press(key)
            assert app.query_one("#tabs", TabbedContent).active == name
        assert shown(app, "costs-text").startswith("skylake_sp")
        await press("question_mark")
        assert len(app.screen_stack) == 2
        await press("x")
        assert len(app.screen_stack) == 1

    drive(small, keys)


def test_all_of_it_fits_into_80_by_24(small: Recording) -> None:
    from textual.widgets import Static, TabbedContent

    async def keys(app: Stepper) -> None:
        await app.pilot.press("e")  # type: ignore[attr-defined]
        for widget in (*app.query(Static), app.query_one("#tabs", TabbedContent)):
            if widget.id in ("title", "listing", "registers", "message", "tabs"):
                region = widget.region
                assert region.right <= 80
                assert region.bottom <= 24
                assert region.height >= 1
        assert app.query_one("#registers", Static).region.width == 50

    drive(small, keys)


# ---- The command ----


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("01-cpuid.yaml",), 2, "needs a terminal"),
        (("none.yaml",), 3, "none.yaml"),
        (("01-cpuid.yaml", "--break", "cpuidd"), 3, "no exit reason"),
    ],
)
def test_the_command_without_a_terminal(arguments: tuple[str, ...], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vtx", "step", *arguments],
        capture_output=True,
        text=True,
        cwd=TRACES,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_the_command_on_a_terminal() -> None:
    """In a real pseudo-terminal of 80 x 24: it comes up, moves, and leaves with q."""
    import fcntl
    import os
    import pty
    import struct
    import termios
    import time

    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover - the other process
        os.chdir(TRACES)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "vtx", "step", "01-cpuid.yaml"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = b""
    until = time.monotonic() + 60
    pressed = False
    os.set_blocking(terminal, False)
    try:
        while time.monotonic() < until:
            try:
                data = os.read(terminal, 65536)
            except BlockingIOError:
                time.sleep(0.05)
                continue
            except OSError:
                break
            if not data:
                break
            seen += data
            if b"non-root" in seen and not pressed:
                pressed = True
                os.write(terminal, b"q")
    finally:
        _, status = os.waitpid(child, 0)
        os.close(terminal)
    assert pressed
    assert os.waitstatus_to_exitcode(status) == 0
