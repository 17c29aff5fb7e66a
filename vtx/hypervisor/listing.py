"""The ``steps`` of a trace: one instruction a line, and loops, read into operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vtx.errors import InputError, UnknownName
from vtx.facts.instructions import FORMS
from vtx.machine.assembly import parse_instruction
from vtx.machine.program import Instruction, Loop

if TYPE_CHECKING:
    from vtx.profiles.document import Item

__all__ = ["Listing", "StreamLine", "parse_listing"]

#: A listing may run this many steps; what is longer is a stream.
MAXIMUM_STEPS = 10_000_000
_DEEPEST = 16
_WORDS = ("repeat", "end", "stream")


@dataclass(frozen=True)
class StreamLine:
    """The line ``stream [START STOP]``: here the references of the trace's stream run."""

    start: int | None
    stop: int | None
    processor: int
    line: int


#: A listing's operations; loops refer to them by index.
Listing = tuple[Instruction | Loop | StreamLine, ...]


@dataclass
class _OpenLoop:
    start: int
    count: int
    line: int
    steps: int = 0


def parse_listing(
    block: Item, what: str, lines: list[str], *, streams: bool = False, bits: int = 64
) -> Listing:
    """Read a block of steps.

    Parameters
    ----------
    block : Item
        The value of the key, where it stands in the file.
    what : str
        Name of the key, for messages.
    lines : list of str
        The lines of the whole file.
    streams : bool
        Lines ``stream`` are allowed.
    bits : int
        Width of the code: 16, 32 or 64.

    Raises
    ------
    InputError
        A line is no instruction, a loop does not end, or the block has no steps; with file, line
        and column.
    """
    reader = _Reader(block.file, streams, bits)
    for number, text, offset in _numbered(block, what, lines):
        try:
            reader.read(number, text)
        except InputError as error:
            column = None if error.column is None else error.column + offset
            error.column = column
            raise error.at(block.file, number, offset + 1) from None
    return reader.finish(block, what)


def _numbered(block: Item, what: str, lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """Return the block's lines with their line numbers in the file and their indentation."""
    if not isinstance(block.value, str):
        raise block.error(f"{what} must be a block of lines", hint=f"write '{what}: |'")
    opening = lines[block.line - 1][block.column - 1 :]
    if opening.startswith("|"):
        first = block.line
        for index, text in enumerate(block.value.split("\n")):
            if first + index < len(lines) and text:
                written = lines[first + index]
                yield first + index + 1, text, max(len(written) - len(text), 0)
    elif "\n" not in block.value and 0 <= opening.find(block.value) <= 1:
        yield block.line, block.value, block.column - 1 + opening.find(block.value)
    else:
        raise block.error(f"{what} must be a literal block", hint=f"write '{what}: |'")


class _Reader:
    """What has been read of a listing so far."""

    def __init__(self, file: str, streams: bool, bits: int) -> None:
        self.file = file
        self.bits = bits
        self.streams = streams
        self.operations: list[Instruction | Loop | StreamLine] = []
        self.open: list[_OpenLoop] = [_OpenLoop(0, 1, 0)]

    def read(self, number: int, text: str) -> None:
        """Read one line."""
        line = text.split("#", 1)[0].strip()
        if not line:
            return
        words = line.split()
        word = next((word for word in words if not word.startswith("@")), "").lower()
        if word == "repeat":
            self._repeat(words, number)
        elif word == "end":
            self._end(words, number)
        elif word == "stream":
            self._stream(words, number)
        else:
            self._add(replace(_instruction(text, self.bits), line=number), 1)

    def _add(self, operation: Instruction | StreamLine, steps: int) -> None:
        self.operations.append(operation)
        self.open[-1].steps += steps
        self._check_length()

    def _check_length(self) -> None:
        total = 0
        for loop in reversed(self.open):
            total = (total + loop.steps) * loop.count
            if total > MAXIMUM_STEPS:
                raise InputError(
                    f"the listing runs more than {MAXIMUM_STEPS:,} steps",
                    hint="repeat less, or record a stream",
                )

    def _repeat(self, words: list[str], number: int) -> None:
        if len(words) != 2:
            raise InputError("repeat takes one number", hint="write repeat 10")
        if len(self.open) > _DEEPEST:
            raise InputError(f"more than {_DEEPEST} loops inside each other")
        count = _count(words[1], "repeat", 1)
        self.open.append(_OpenLoop(len(self.operations), count, number))

    def _end(self, words: list[str], number: int) -> None:
        if len(words) != 1:
            raise InputError("end stands alone on its line")
        if len(self.open) == 1:
            raise InputError("there is no repeat for this end")
        loop = self.open.pop()
        if loop.start == len(self.operations):
            raise InputError(f"the loop from line {loop.line} is empty")
        self.operations.append(Loop(loop.start, loop.count))
        self.open[-1].steps += loop.steps * loop.count
        self._check_length()

    def _stream(self, words: list[str], number: int) -> None:
        processor = 0
        if words[0].startswith("@"):
            processor = _count(words.pop(0)[1:], "the logical processor", 0)
        if not self.streams or len(words) not in (1, 3):
            hint = "write stream, or stream 0 250000" if self.streams else None
            raise InputError("a stream cannot stand here", hint=hint)
        window = [_count(word, "a reference", 0) for word in words[1:]]
        start, stop = window or (None, None)
        self._add(StreamLine(start, stop, processor, number), 1)

    def finish(self, block: Item, what: str) -> Listing:
        """Return the operations, once all lines are read."""
        if len(self.open) > 1:
            raise InputError(
                "this repeat has no end", file=self.file, line=self.open[-1].line, hint="add end"
            )
        if not self.operations:
            raise block.error(f"{what} has no steps")
        return tuple(self.operations)


def _instruction(text: str, bits: int) -> Instruction:
    """Read an instruction; what is none may have been meant as a word of the listing."""
    try:
        return parse_instruction(text, bits)
    except UnknownName as error:
        if error.kind != "instruction":
            raise
        known = (*FORMS, *_WORDS)
        raise UnknownName("instruction", error.name, known).at(None, None, error.column) from None


def _count(word: str, what: str, low: int) -> int:
    """Return the number that `word` writes, at least `low`."""
    try:
        number = int(word, 0)
    except ValueError:
        raise InputError(f"{what} takes a number, not {word!r}") from None
    if not low <= number < 1 << 63:
        raise InputError(f"{what} cannot be {word}")
    return number
