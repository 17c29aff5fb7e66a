"""Mistakes that students make in the exercises, and what the checkers say of them.

Each is a solution with something replaced: what, by what, and words of the remark that it gets.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vtx.course import find_lesson
from vtx.course.runner import check

MISTAKES = [
    # Lesson 01: the ten instructions.
    ("01", 'return f"VMfailValid({failure.error})"', 'return "VMfailInvalid"', "VMfailValid(9)"),
    ("01", "except vtx.VMfailInvalid:", "except vtx.InputError:", "VMfailInvalid"),
    ("01", "    cpu.vmxon()\n", "", "execute VMXON first"),
    ("01", "exit = cpu.vmresume()", "exit = cpu.vmlaunch()", "enter it with VMRESUME"),
    ("01", "exit = cpu.vmlaunch(program)", "exit = cpu.vmresume()", "first entry of a VMCS"),
    ("01", "        cpu.skip(exit)\n", "", "call cpu.skip(exit)"),
    ("01", "    cpu.vmxoff()\n", "", "cpu.vmxoff()"),
    ("01", "if exit.reason is ExitReason.VMCALL:", "if True:", "also executes CPUID"),
    ("01", "    return calls\n", "", "end it with: return calls"),
]


@pytest.mark.parametrize(("number", "right", "wrong", "says"), MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, number: str, right: str, wrong: str, says: str) -> None:
    lesson = find_lesson(number)
    source = lesson.solution.read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / "mine.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    bad = [remark for remark in check(lesson, str(path), 1) if not remark.good]
    assert says in " ".join(f"{remark.what} {remark.hint}" for remark in bad)
