"""Where the lessons are, and what each consists of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vtx.errors import InputError, UnknownName

__all__ = ["Lesson", "find_lesson", "lessons"]

_NAME = re.compile(r"(?P<number>\d\d)-(?P<slug>[a-z0-9-]+)")
_TITLE = re.compile(r"#\s+(?:\d+[.:]?\s+)?(?P<title>.+)")
_GOAL = re.compile(r"\*\*Goal\.?\*\*\s*(?P<goal>.+?)(?:\n\s*\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Lesson:
    """One lesson: a directory with a text, a program or trace, and an exercise.

    Attributes
    ----------
    number : str
        Two digits: ``"05"``.
    slug : str
        The rest of the directory's name: ``"cpuid"``.
    directory : Path
        Where its files are.
    """

    number: str
    slug: str
    directory: Path

    @property
    def text(self) -> str:
        """``lesson.md``: goal, text, exercise."""
        return _read(self.directory / "lesson.md")

    @property
    def title(self) -> str:
        """The heading of the text, without its number."""
        found = _TITLE.match(self.text)
        return found["title"].strip() if found else self.slug

    @property
    def goal(self) -> str:
        """What one can do after the lesson, in a sentence."""
        found = _GOAL.search(self.text)
        return " ".join(found["goal"].split()) if found else ""

    @property
    def program(self) -> Path | None:
        """``program.py`` or ``trace.yaml``: what the lesson shows."""
        for name in ("program.py", "trace.yaml"):
            if (self.directory / name).exists():
                return self.directory / name
        return None

    @property
    def expected(self) -> Path:
        """``expected.txt``: what the program prints."""
        return self.directory / "expected.txt"

    @property
    def exercise(self) -> Path:
        """``exercise.py``: where a student begins."""
        return self.directory / "exercise.py"

    @property
    def solution(self) -> Path:
        """One way to do the exercise; kept apart from the lesson."""
        return self.directory.parent / "solutions" / f"{self.number}.py"


@cache
def lessons() -> tuple[Lesson, ...]:
    """Return all lessons in order.

    Raises
    ------
    InputError
        The course is not there: vtx was installed without it.
    """
    folder = _folder()
    found = []
    for directory in sorted(folder.iterdir()):
        name = _NAME.fullmatch(directory.name)
        if name and (directory / "lesson.md").exists():
            found.append(Lesson(name["number"], name["slug"], directory))
    return tuple(found)


def find_lesson(name: str) -> Lesson:
    """Return the lesson with this number (``5``, ``05``) or name (``cpuid``, ``05-cpuid``).

    Raises
    ------
    UnknownName
        There is no such lesson.
    """
    wanted = name.strip().lower()
    number = wanted.zfill(2) if wanted.isdecimal() else wanted
    for lesson in lessons():
        if number in (lesson.number, lesson.slug, f"{lesson.number}-{lesson.slug}"):
            return lesson
    known = [word for lesson in lessons() for word in (lesson.number, lesson.slug)]
    raise UnknownName("lesson", name, known)


def _folder() -> Path:
    """Return the directory of the lessons: in a source tree, or as they were installed."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent.parent / "docs" / "course", here / "lessons_data"):
        if folder.is_dir():
            return folder
    raise InputError(
        "the lessons are not installed", hint="install vtx from its source or its wheel anew"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the lesson: {error.strerror}", file=str(path)) from None
