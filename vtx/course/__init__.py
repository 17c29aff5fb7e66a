"""The course: lessons with programs to run, exercises, and checkers that say what is wrong.

The lessons' texts, programs and exercises are files under ``docs/course``; the checkers are the
modules of :mod:`vtx.course.checkers`. How to write a lesson: ``docs/course/README.md``.
"""

from __future__ import annotations

from vtx.course.lab import Lab, Remark
from vtx.course.lessons import Lesson, find_lesson, lessons
from vtx.course.runner import Verdict, run_exercise

__all__ = ["Lab", "Lesson", "Remark", "Verdict", "find_lesson", "lessons", "run_exercise"]
