"""The sample corpora, and corpora made from them."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "corpora"
FORMATS = ("entry", "walk", "insn", "root")
Case = dict[str, Any]


def path(form: str) -> Path:
    """Return the sample of a format."""
    return DATA / f"{form}.jsonl.xz"


@cache
def _lines(form: str) -> tuple[str, ...]:
    return tuple(lzma.decompress(path(form).read_bytes()).decode().splitlines())


def header(form: str) -> Case:
    """Return a copy of the header."""
    data: Case = json.loads(_lines(form)[0])
    return data


def cases(form: str) -> list[Case]:
    """Return copies of the cases."""
    return [json.loads(line) for line in _lines(form)[1:]]


def write(file: Path, form: str, chosen: Iterable[Case]) -> Path:
    """Write a corpus with these cases."""
    lines = [json.dumps(header(form)), *map(json.dumps, chosen)]
    file.write_text("\n".join(lines) + "\n")
    return file


def first(form: str, wanted: Callable[[Case], bool]) -> Case:
    """Return the first case that is wanted."""
    return next(case for case in cases(form) if wanted(case))
