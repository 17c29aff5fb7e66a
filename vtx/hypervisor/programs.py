"""From a trace to what a logical processor executes: addresses, windows of the stream, segments.

A trace orders the steps of all logical processors. A :class:`Segment` is a stretch of that order
that one logical processor executes; replay runs them one after the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from vtx.errors import InputError
from vtx.hypervisor.listing import Listing, StreamLine
from vtx.hypervisor.options import Header, Insertion
from vtx.machine import image, image_legacy
from vtx.machine.program import Instruction, Loop, Operation, Program, Stream, place

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Segment", "length_of", "segments_of"]

#: Code between the references of a stream stands this far behind the code of the listing.
_INSERTED_OFFSET = 0x8000
#: Windows of the stream are not longer than this, so that a run can be watched and interrupted.
_LONGEST_WINDOW = 1 << 20


@dataclass(frozen=True)
class Segment:
    """What one logical processor executes before the next one goes on.

    Parameters
    ----------
    processor : int
        Which one.
    program : Program
        Its steps.
    """

    processor: int
    program: Program


def segments_of(
    header: Header, listing: Listing, records: NDArray[np.uint64] | None, file: str
) -> Iterator[Segment]:
    """Return the segments of a trace, at least one.

    Parameters
    ----------
    header : Header
        The trace's header.
    listing : tuple
        Its steps.
    records : ndarray of uint64, shape (n,), or None
        The stream.
    file : str
        For messages.
    """
    handlers = {
        vector: Program(place(steps, image.handler_address(vector)), name=f"vector {vector}")
        for vector, steps in header.handlers.items()
    }
    builder = _Builder(header, records, file)
    placed = [builder.place(step) for step in listing]
    for processor, steps in _stretches(placed):
        operations = tuple(builder.expand(steps))
        yield Segment(processor, Program(operations, handlers, name=file))


_Placed = Instruction | Loop | StreamLine


class _Builder:
    """Gives steps their addresses, and cuts the stream where other steps stand in it."""

    def __init__(self, header: Header, records: NDArray[np.uint64] | None, file: str) -> None:
        self.header = header
        self.records = records
        self.file = file
        self._here = [self._origin(processor) for processor in range(header.processors)]
        self._insertions = self._place_insertions()

    def _origin(self, processor: int) -> int:
        guest = self.header.guest
        if guest.entry is not None:
            return guest.entry + processor * image.TEXT_STRIDE
        if guest.mode != "long":
            return image_legacy.entry_point(guest.mode, processor)
        return image.entry_point(processor, user=guest.user, low_map=not guest.demand)

    def place(self, step: _Placed) -> _Placed:
        """Give a step its address."""
        if not isinstance(step, Instruction):
            return step
        placed = step if step.rip else step.at(self._here[step.processor])
        self._here[step.processor] = placed.end
        return placed

    def _place_insertions(self) -> list[Insertion]:
        """Give the steps between references their addresses, one insertion after the other."""
        here = self._origin(0) + _INSERTED_OFFSET
        insertions = []
        for insertion in self.header.insertions:
            operations = place(insertion.operations, here)
            here = max(step.end for step in operations if isinstance(step, Instruction))
            insertions.append(replace(insertion, operations=operations))
        return insertions

    def expand(self, steps: list[_Placed]) -> Iterator[Operation]:
        """Replace the lines that run the stream by its windows; keep loops' targets right."""
        moved: list[int] = []
        done = 0
        for step in steps:
            moved.append(done)
            if isinstance(step, Loop):
                yield Loop(moved[step.start], step.count)
                done += 1
            elif isinstance(step, Instruction):
                yield step
                done += 1
            else:
                for operation in self._windows(step, done):
                    yield operation
                    done += 1

    def _windows(self, line: StreamLine, index: int) -> Iterator[Operation]:
        """Return the stream's references and what stands between them."""
        assert self.records is not None
        assert self.header.stream is not None
        start, stop = self._bounds(line)
        here = start
        for position, insertion in self._stops(start, stop):
            for window in self._cut(here, position, line.processor):
                yield window
                index += 1
            here = position
            for step in insertion.operations:
                yield replace(step, start=step.start + index) if isinstance(step, Loop) else step
            index += len(insertion.operations)
        yield from self._cut(here, stop, line.processor)

    def _cut(self, start: int, stop: int, processor: int) -> Iterator[Stream]:
        """Return the references from `start` to `stop` in windows of bearable length."""
        assert self.records is not None
        for here in range(start, stop, _LONGEST_WINDOW):
            end = min(here + _LONGEST_WINDOW, stop)
            yield Stream(self.records, here, end, processor=processor)

    def _bounds(self, line: StreamLine) -> tuple[int, int]:
        """Return the window of the stream that a line runs."""
        stream, records = self.header.stream, self.records
        assert stream is not None
        assert records is not None
        last = len(records) if stream.stop is None else stream.stop
        start = stream.start if line.start is None else line.start
        stop = last if line.stop is None else line.stop
        if not stream.start <= start < stop <= last:
            raise InputError(
                f"the stream has references {stream.start} to {last}, not {start} to {stop}",
                file=self.file,
                line=line.line,
            )
        return start, stop

    def _stops(self, start: int, stop: int) -> Iterator[tuple[int, Insertion]]:
        """Return what stands before the references from `start` to `stop`, in order."""
        queue = []
        for order, insertion in enumerate(self._insertions):
            first = _first_from(insertion, start)
            if first is not None:
                queue.append((first, order, insertion))
        heapq.heapify(queue)
        while queue and queue[0][0] < stop:
            position, order, insertion = heapq.heappop(queue)
            yield position, insertion
            following = _first_from(insertion, position + 1)
            if following is not None:
                heapq.heappush(queue, (following, order, insertion))


def length_of(program: Program) -> int:
    """Return the steps and references of a program, loops multiplied out."""
    totals = [0]
    for operation in program.operations:
        if isinstance(operation, Loop):
            body = totals[-1] - totals[operation.start]
            totals.append(totals[-1] + body * (operation.count - 1))
        elif isinstance(operation, Stream):
            totals.append(totals[-1] + operation.stop - operation.start)
        else:
            totals.append(totals[-1] + 1)
    return totals[-1]


def _first_from(insertion: Insertion, position: int) -> int | None:
    """Return the first place of an insertion that is not before `position`."""
    first = insertion.first
    if first < position:
        if insertion.every is None:
            return None
        first += -(-(position - first) // insertion.every) * insertion.every
    return first if insertion.until is None or first < insertion.until else None


def _stretches(placed: list[_Placed]) -> Iterator[tuple[int, list[_Placed]]]:
    """Return runs of steps of one logical processor, with loops' targets inside the run.

    A loop over steps of several processors is unrolled: its order across processors counts.
    """
    numbers = {step.processor for step in placed if not isinstance(step, Loop)}
    if len(numbers) == 1:
        yield numbers.pop(), placed
        return
    steps = _unrolled(placed)
    for processor, run in groupby(steps, key=lambda step: step.processor):
        yield processor, list(run)


def _unrolled(placed: list[_Placed]) -> Iterator[Instruction | StreamLine]:
    """Return the steps in the order in which they run."""
    index = 0
    done: dict[int, int] = {}
    while index < len(placed):
        step = placed[index]
        if isinstance(step, Loop):
            rounds = done.get(index, 0) + 1
            done[index] = rounds
            if rounds < step.count:
                index = step.start
                continue
            del done[index]
        else:
            yield step
        index += 1
