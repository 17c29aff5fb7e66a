"""Every lesson: what it shows, its exercise, its solution."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vtx
from vtx.course import Lesson, find_lesson, lessons, run_exercise
from vtx.course.runner import check
from vtx.errors import InputError, UnknownName

ALL = lessons()
ROOT = Path(__file__).resolve().parent.parent.parent


def with_exercise() -> list[Lesson]:
    return [lesson for lesson in ALL if lesson.exercise.exists()]


@pytest.mark.parametrize("lesson", ALL, ids=lambda lesson: lesson.number)
def test_a_lesson_has_all_its_parts(lesson: Lesson) -> None:
    assert lesson.text.startswith(f"# {lesson.number} ")
    assert lesson.goal.endswith(".")
    assert lesson.program is not None
    assert lesson.expected.exists()
    for heading in ("## Run it", "## Exercise"):
        assert heading in lesson.text
    assert 250 <= len(lesson.text.split()) <= 2500
    assert lesson.exercise.exists()
    assert lesson.solution.exists()


@pytest.mark.parametrize("lesson", ALL, ids=lambda lesson: lesson.number)
def test_a_lesson_shows_what_it_says(lesson: Lesson) -> None:
    assert lesson.program is not None
    if lesson.program.suffix == ".py":
        command = [sys.executable, "-W", "error", str(lesson.program)]
    else:
        command = [sys.executable, "-m", "vtx", "replay", str(lesson.program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == lesson.expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("lesson", ALL, ids=lambda lesson: lesson.number)
def test_what_a_lesson_tells_to_look_up_is_there(lesson: Lesson) -> None:
    for query in re.findall(r"vtx explain ([a-z0-9_.# ]+[a-z0-9_.#])", lesson.text):
        assert vtx.explain(query)


@pytest.mark.parametrize("lesson", with_exercise(), ids=lambda lesson: lesson.number)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_solution_passes(lesson: Lesson, seed: int) -> None:
    remarks = check(lesson, str(lesson.solution), seed)
    assert remarks
    assert all(remark.good for remark in remarks), [r for r in remarks if not r.good]


@pytest.mark.parametrize("lesson", with_exercise(), ids=lambda lesson: lesson.number)
def test_the_beginning_does_not_pass(lesson: Lesson) -> None:
    remarks = check(lesson, str(lesson.exercise), 1)
    bad = [remark for remark in remarks if not remark.good]
    assert bad
    assert all(remark.what for remark in bad)


def test_numbers_follow_each_other() -> None:
    assert [lesson.number for lesson in ALL] == sorted({lesson.number for lesson in ALL})


def test_lessons_are_found_by_number_and_name() -> None:
    for name in ("05", "5", "cpuid", "05-cpuid"):
        assert find_lesson(name).number == "05"
    with pytest.raises(UnknownName, match="lesson"):
        find_lesson("99")


# ---- Mistakes, and what is said of them ----

MISTAKES = {
    "def handle(cpu, exit):\n    pass\n": "call cpu.skip(exit)",
    "def handle(cpu, exit):\n    cpu.regs.raxx = 1\n": "line 2, in handle: AttributeError",
    "x = 1\n": "does not define handle",
    "handle = 5\n": "no function",
    "1 / 0\n": "line 1, ZeroDivisionError",
    "import sys\nsys.exit()\n": "exits before",
    "def handle(cpu, exit):\n    cpu.vmwrite(0x4F00, 1)\n": "line 2, in handle: VMWRITE",
    "def handle(cpu, exit):\n    cpu.skip(exit)\n    cpu.guest.rflags = 0\n": "VM entry failed",
    "def handle(cpu):\n    pass\n": "positional argument",
}


@pytest.mark.parametrize("source", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, source: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    remark = check(find_lesson("05"), str(path), 1)[-1]
    assert not remark.good
    assert MISTAKES[source] in f"{remark.what} {remark.hint}"


def test_a_loop_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtx.course.runner.TIMEOUT_SECONDS", 1.5)
    path = tmp_path / "mine.py"
    path.write_text("def handle(cpu, exit):\n    while True:\n        pass\n")
    [remark] = run_exercise(find_lesson("05"), path, 1).remarks
    assert "did not come back" in remark.what


@pytest.mark.parametrize(
    ("content", "says"), [(b"def (", "not Python"), (b"\xff\xfe", "not Python"), (None, "cannot")]
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        run_exercise(find_lesson("05"), path, 1)


# ---- The command ----


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vtx", "lab", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


def test_the_command_from_beginning_to_end(tmp_path: Path) -> None:
    assert "05  CPUID" in command("list", cwd=tmp_path).stdout
    assert command("show", "cpuid", cwd=tmp_path).stdout == find_lesson("05").text
    assert command("start", "05", cwd=tmp_path).returncode == 0
    again = command("start", "05", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (3, "")
    assert "there already" in again.stderr
    begun = command("run", "05", "exercise_05.py", cwd=tmp_path)
    assert begun.returncode == 1
    assert "NO " in begun.stdout
    done = command("run", "05", find_lesson("05").solution, "--seed", 3, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Lesson 05: done.\n")


@pytest.mark.parametrize("arguments", [("run",), ("run", "05"), ("show",), ("dance",)])
def test_wrong_use(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_line_is_named_for_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def handle(cpu, exit):\n    1 / 0\n")
    assert "line 2, in handle" in check(find_lesson("05"), "mine.py", 1)[-1].what
