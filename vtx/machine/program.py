"""What a guest executes: instructions, loops and recorded reference streams, and where it is.

A step does not say where it came from: a listing in YAML, a recorded stream in an array file or
a program built in Python all become the same operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cursor", "Instruction", "Loop", "Operation", "Program", "Stream"]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of a guest, named as in :mod:`vtx.facts.instructions`.

    Parameters
    ----------
    name : str
        Key of the instruction table: ``"cpuid"``, ``"mov_to_cr3"``, ``"load"``, or of an event
        that arrives before the next instruction: ``"external_interrupt"``, ``"nmi"`` ...
    operands : mapping
        Operands as the table describes them (``{"leaf": 1}``). Values that the instruction
        takes from registers are put into those registers before it executes.
    length : int
        Bytes of machine code; 0 for events.
    rip : int
        Linear address it stands at.
    processor : int
        Logical processor that executes it.
    line : int or None
        Line of the trace file, for messages.
    text : str
        As written.
    """

    name: str
    operands: Mapping[str, int | str] = field(default_factory=dict)
    length: int = 0
    rip: int = 0
    processor: int = 0
    line: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Loop:
    """End of a loop: go back to operation `start` until the body ran `count` times."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A window of a recorded reference stream.

    Parameters
    ----------
    records : ndarray of uint64, shape (n,)
        ``kind << 62 | size << 48 | linear address``; kind 0 instruction fetch, 1 load, 2 store,
        3 modify. A record of kind 0 and size 0 is an instruction: its low 48 bits index
        `instructions`.
    start, stop : int
        The window of records to run.
    instructions : tuple of Instruction
        What the instruction records refer to.
    processor : int
        Logical processor that runs it.
    """

    records: NDArray[np.uint64]
    start: int
    stop: int
    instructions: tuple[Instruction, ...] = ()
    processor: int = 0


Operation = Instruction | Loop | Stream


@dataclass(frozen=True, slots=True)
class Program:
    """What one guest executes.

    Parameters
    ----------
    operations : tuple of Operation
        In order; loops refer to them by index.
    handlers : mapping of int to Program
        What the guest's own kernel runs when the event with this vector is delivered to it;
        a handler ends with ``iret``.
    demand_paging : callable, optional
        The guest kernel's page-fault handler as Python: called as ``demand_paging(processor,
        linear_address, error_code)`` when a #PF is delivered to the guest, it maps the page and
        returns True, or returns False if the address is not the guest's.
    name : str
        For messages.
    """

    operations: tuple[Operation, ...]
    handlers: Mapping[int, Program] = field(default_factory=dict)
    demand_paging: object | None = None
    name: str = ""


class Cursor:
    """Where one logical processor stands in a program.

    Attributes
    ----------
    index : int
        Operation that executes next.
    record : int
        Next record, while the operation is a stream.
    iterations : dict of int to int
        Completed iterations of each unfinished loop, by the index of its :class:`Loop`.
    """

    __slots__ = ("index", "iterations", "program", "record")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.index = 0
        self.record = 0
        self.iterations: dict[int, int] = {}
        self._settle()

    def current(self) -> Instruction | Stream | None:
        """Return the operation that executes next, or None at the end of the program."""
        operations = self.program.operations
        if self.index >= len(operations):
            return None
        operation = operations[self.index]
        assert not isinstance(operation, Loop)
        return operation

    def advance(self) -> None:
        """Step over the current operation, round a loop where one ends."""
        self.index += 1
        self._settle()

    def go_to(self, index: int) -> None:
        """Continue at operation `index` (an instruction or a stream) with fresh loop counts."""
        self.index = index
        self.iterations.clear()
        self._settle()

    def _settle(self) -> None:
        """Pass over loop ends, and open a stream at its first record."""
        operations = self.program.operations
        while self.index < len(operations) and isinstance(
            operation := operations[self.index], Loop
        ):
            done = self.iterations.get(self.index, 0) + 1
            if done < operation.count:
                self.iterations[self.index] = done
                self.index = operation.start
            else:
                self.iterations.pop(self.index, None)
                self.index += 1
        if self.index < len(operations):
            operation = operations[self.index]
            if isinstance(operation, Stream):
                self.record = operation.start
