"""``vtx lab``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vtx.commands.base import FAILED, FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.errors import InputError, UsageError

if TYPE_CHECKING:
    from vtx.course import Lesson, Verdict

__all__ = ["Lab"]

SCHEMA = "vtx.lab/1"


class Lab(Command):
    """The course: list the lessons, read one, begin an exercise, have it checked.

    vtx lab list                     the lessons
    vtx lab show 05                  the text of a lesson
    vtx lab start 05 [FILE]          a file to begin the exercise with
    vtx lab run 05 FILE              check it

    A lesson is given by number or name. A checked exercise has exit code 0 if all is as it should
    be, 1 if not; every run uses other variations, unless --seed fixes them.
    """

    name = "lab"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("action", choices=("list", "show", "start", "run"), metavar="ACTION")
        parser.add_argument("lesson", nargs="?", metavar="LESSON", help="number or name")
        parser.add_argument("file", nargs="?", metavar="FILE", help="the exercise")
        parser.add_argument("--seed", type=int, metavar="N", help="fix the variations")
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Do what the action says."""
        from vtx.course import find_lesson, lessons

        output = Output(args)
        if args.action == "list":
            _list(lessons(), output)
            return FINE
        if args.lesson is None:
            raise UsageError(f"vtx lab {args.action} wants a lesson: vtx lab {args.action} 05")
        lesson = find_lesson(args.lesson)
        if args.action == "show":
            output.write(lesson.text)
            return FINE
        if args.action == "start":
            _start(lesson, args.file or f"exercise_{lesson.number}.py", output)
            return FINE
        if args.file is None:
            raise UsageError(f"vtx lab run wants a file: vtx lab run {lesson.number} my_vmm.py")
        return _run(lesson, args.file, args.seed, output)


def _list(all_lessons: tuple[Lesson, ...], output: Output) -> None:
    rows = [
        {"number": lesson.number, "name": lesson.slug, "title": lesson.title, "goal": lesson.goal}
        for lesson in all_lessons
    ]
    if output.format == "json":
        output.write_json({"schema": SCHEMA, "lessons": rows})
        return
    output.write("".join(f"{row['number']}  {row['title']}\n" for row in rows))


def _start(lesson: Lesson, path: str, output: Output) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(lesson.exercise.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError("the file is there already", file=path, hint="name another one") from None
    except OSError as error:
        raise InputError(f"cannot write: {error.strerror}", file=path) from None
    output.write(f"{path}: begin here, then run: vtx lab run {lesson.number} {path}\n")


def _run(lesson: Lesson, path: str, seed: int | None, output: Output) -> int:
    from vtx.course import run_exercise

    verdict = run_exercise(lesson, path, seed)
    if output.format == "json":
        output.write_json(_as_json(verdict, path))
    else:
        output.write(_as_text(verdict))
    return FINE if verdict.passed else FAILED


def _as_json(verdict: Verdict, path: str) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "lesson": verdict.lesson.number,
        "file": path,
        "passed": verdict.passed,
        "remarks": [
            {"good": remark.good, "what": remark.what, "hint": remark.hint}
            for remark in verdict.remarks
        ],
    }


def _as_text(verdict: Verdict) -> str:
    lines = []
    for remark in verdict.remarks:
        lines.append(f"{'ok ' if remark.good else 'NO '} {remark.what}")
        if remark.hint:
            lines.append(f"      {remark.hint}")
    good = sum(remark.good for remark in verdict.remarks)
    lines.append("")
    lines.append(
        f"Lesson {verdict.lesson.number}: done."
        if verdict.passed
        else f"Lesson {verdict.lesson.number}: {good} of {len(verdict.remarks)} as they should be."
    )
    return "\n".join(lines) + "\n"
