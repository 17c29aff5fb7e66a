"""Reading a corpus: JSON lines, plain or compressed with xz; the first line is the header."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from vtx.errors import InputError

__all__ = ["FORMATS", "Case", "Corpus", "open_corpus", "require"]

FORMATS = ("bochs-entry-1", "bochs-walk-1", "bochs-insn-1", "bochs-root-1")
_XZ_MAGIC = b"\xfd7zXZ\x00"
#: No line of a corpus is longer; more is another kind of file.
_MOST_LINE_BYTES = 64 << 20


class Case(NamedTuple):
    """One line of a corpus: its number in the file (from 1), and what it says."""

    line: int
    data: Mapping[str, Any]


class Corpus(NamedTuple):
    """A corpus that was opened.

    Attributes
    ----------
    file : str
        Its name, for messages.
    header : mapping
        First line.
    cases : iterator of Case
        The others, read as they are asked for.
    """

    file: str
    header: Mapping[str, Any]
    cases: Iterator[Case]

    @property
    def format(self) -> str:
        """Name of the format, one of :data:`FORMATS`."""
        return str(self.header["format"])


def open_corpus(path: str | Path) -> Corpus:
    """Open a corpus and read its header.

    Raises
    ------
    InputError
        There is no such file, it is no corpus, or of an unknown format.
    """
    name = str(path)
    lines = _objects(name)
    first = next(lines, None)
    if first is None:
        raise InputError("the file is empty", file=name, hint="a corpus begins with a header")
    form = first.data.get("format")
    if form is None:
        hint = 'the first line must be {"format": "bochs-entry-1", ...}'
        raise InputError("the corpus has no header", file=name, line=first.line, hint=hint)
    if form not in FORMATS:
        hint = f"known are {', '.join(FORMATS)}"
        raise InputError(f"unknown format {form!r}", file=name, line=first.line, hint=hint)
    return Corpus(name, first.data, lines)


def _objects(name: str) -> Iterator[Case]:
    """Yield the objects of a file, line by line."""
    number = 0
    try:
        with _open(name) as stream:
            while line := stream.readline(_MOST_LINE_BYTES):
                number += 1
                if line.strip():
                    yield Case(number, _object(line, name, number))
    except (lzma.LZMAError, EOFError) as error:
        why = "it ends early" if isinstance(error, EOFError) else str(error).lower()
        raise InputError(
            f"the compressed file is damaged: {why}", file=name, line=number + 1
        ) from None
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}", file=name) from None
    except ValueError as error:  # a null character in the name
        raise InputError(f"no file can have this name: {error}") from None


def _open(name: str) -> IO[bytes]:
    with Path(name).open("rb") as file:
        compressed = file.read(len(_XZ_MAGIC)) == _XZ_MAGIC
    return lzma.open(name, "rb") if compressed else Path(name).open("rb")


def _object(line: bytes, name: str, number: int) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except UnicodeDecodeError:
        raise InputError("this is no text", file=name, line=number) from None
    except (json.JSONDecodeError, RecursionError) as error:
        column = error.colno if isinstance(error, json.JSONDecodeError) else None
        raise InputError(
            "this is no JSON", file=name, line=number, column=column, hint="one object a line"
        ) from None
    if not isinstance(data, dict):
        raise InputError("a line must be a JSON object", file=name, line=number)
    return data


def require(data: Mapping[str, Any], *keys: str) -> None:
    """Raise InputError unless `data` has all `keys`."""
    missing = [key for key in keys if key not in data]
    if missing:
        raise InputError(f"it has no {missing[0]!r}")
