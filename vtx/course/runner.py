"""Runs a student's file against a lesson's checker, in a process of its own that may be stopped."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from vtx.course.lab import Lab, Remark, StudentError
from vtx.course.lessons import Lesson
from vtx.errors import EmulationStopped, InputError

__all__ = ["Verdict", "run_exercise"]

#: Seconds after which a file that does not come back is stopped.
TIMEOUT_SECONDS = 20.0
_MODULE = "vtx_exercise"
#: How often the checker runs, each time on other variations.
_VARIATIONS = 3


@dataclass(frozen=True)
class Verdict:
    """What became of an exercise.

    Attributes
    ----------
    lesson : Lesson
    remarks : tuple of Remark
        In the order in which things were looked at; the same remark of several variations once.
    """

    lesson: Lesson
    remarks: tuple[Remark, ...]

    @property
    def passed(self) -> bool:
        """Everything is as it should be."""
        return bool(self.remarks) and all(remark.good for remark in self.remarks)


def run_exercise(lesson: Lesson, path: str | Path, seed: int | None = None) -> Verdict:
    """Check a student's file.

    Parameters
    ----------
    lesson : Lesson
        Whose exercise it is.
    path : str or Path
        The file.
    seed : int, optional
        What the variations follow from; by default they differ from run to run.

    Raises
    ------
    InputError
        The file cannot be read, is no Python, or the lesson has no exercise.
    """
    path = str(path)
    try:
        source = Path(path).read_text(encoding="utf-8")
        compile(source, path, "exec")
    except IsADirectoryError:
        raise InputError("this is a directory, not a Python file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", file=path) from None
    except SyntaxError as error:
        raise InputError(f"not Python: {error.msg}", file=path, line=error.lineno) from None
    except ValueError as error:
        raise InputError(f"not Python: {error}", file=path) from None
    _checker(lesson)
    first = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    remarks: dict[Remark, None] = {}
    for variation in range(_VARIATIONS):
        found = _in_child(lesson, path, first + variation)
        remarks.update(dict.fromkeys(found))
        if not all(remark.good for remark in found):
            break
    return Verdict(lesson, tuple(remarks))


def _in_child(lesson: Lesson, path: str, seed: int) -> list[Remark]:
    """Run the checker once in a child process; stop it if it does not come back."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, lesson, path, seed), daemon=True)
    child.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_SECONDS):
            return [
                Remark(
                    False,
                    f"your program did not come back within {TIMEOUT_SECONDS:.0f} seconds",
                    "is there a loop that never ends?",
                )
            ]
        remarks: list[Remark] = ours.recv()
        return remarks
    except EOFError:
        return [Remark(False, "your program ended Python itself", "remove exit() or os._exit()")]
    finally:
        child.kill()
        child.join()
        ours.close()


def _work(pipe: Connection, lesson: Lesson, path: str, seed: int) -> None:
    """Execute the student's file and the checker (in the child)."""
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    pipe.send(check(lesson, path, seed))
    pipe.close()


def check(lesson: Lesson, path: str, seed: int) -> list[Remark]:
    """Run the checker of a lesson on a file, in this process.

    Returns
    -------
    list of Remark
        The last one is bad if something stopped the checker.
    """
    lab: Lab | None = None
    try:
        lab = Lab(_execute(path), path, seed)
        _checker(lesson)(lab)
        return lab.remarks
    except StudentError as error:
        return [*(lab.remarks if lab else []), Remark(False, error.message, error.hint)]
    except EmulationStopped as stopped:
        # The student's own loop was entering the guest.
        return [*(lab.remarks if lab else []), Remark(False, str(stopped))]
    except Exception as error:
        # What a student may leave behind is without end: better this than no answer.
        what = f"the checker could not judge what it found: {type(error).__name__}: {error}"
        return [*(lab.remarks if lab else []), Remark(False, what, "are all values of its kind?")]
    finally:
        if lab is not None:
            lab.close()


def _checker(lesson: Lesson) -> Callable[[Lab], None]:
    """Return the function that checks a lesson's exercise."""
    name = f"vtx.course.checkers.lesson_{lesson.number}"
    if importlib.util.find_spec(name) is None:
        raise InputError(f"lesson {lesson.number} has no exercise")
    function: Callable[[Lab], None] = importlib.import_module(name).check
    return function


def _execute(path: str) -> ModuleType:
    """Execute the student's file as a module of its own."""
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        from vtx.course.lab import _line

        text = f"{_line(error, path)}{type(error).__name__}: {error}"
        raise StudentError(f"your file fails before anything is checked: {text}") from error
    except SystemExit as error:
        raise StudentError("your file exits before anything is checked") from error
    return module
