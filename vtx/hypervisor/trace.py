"""Traces: a guest's program, the VMM's settings for it, and what should come of it, in one file.

The format is described in ``docs/traces.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vtx.errors import InputError, UnknownName
from vtx.hypervisor.expectations import read_expectations
from vtx.hypervisor.header import KEYS, guest_mode, read_header
from vtx.hypervisor.listing import Listing, StreamLine, parse_listing
from vtx.hypervisor.options import ExitOptions, Header
from vtx.hypervisor.programs import Segment, length_of, segments_of
from vtx.machine.image_legacy import code_bits, handler_bits
from vtx.machine.program import Loop, Operation, Program
from vtx.profiles.document import Item, parse_document, read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SCHEMA", "Trace", "load_trace", "parse_trace", "program"]

#: The version of the format that this package reads.
SCHEMA = 1
_MOST_BYTES = 64 << 20


#: What stands before the listing of a bare program.
_HEAD = "schema: 1\nsteps: |\n"


@dataclass(frozen=True)
class Trace:
    """A trace, read and checked.

    Parameters
    ----------
    file : str
        Where it came from, for messages.
    header : Header
        All that is not steps.
    listing : tuple of Instruction, Loop, StreamLine
        The steps; loops refer to them by index.

    See Also
    --------
    load_trace : read one from a file.
    """

    file: str
    header: Header
    listing: Listing

    @property
    def name(self) -> str:
        """What the trace calls itself, or else the name of its file."""
        return self.header.name or Path(self.file).stem

    @cached_property
    def records(self) -> NDArray[np.uint64] | None:
        """The records of the stream from its first on, shape (n,); None if there is no stream.

        The file is opened when this is first used, and memory-mapped if it is not compressed.

        Raises
        ------
        InputError
            The file is missing, truncated, empty or of another type.
        """
        stream = self.header.stream
        if stream is None:
            return None
        from vtx.streams import open_stream

        try:
            records = open_stream(stream.path, format=stream.kind).array()
            if (stream.stop or stream.start + 1) > len(records):
                raise InputError(
                    f"the stream {stream.path} has only {len(records)} references",
                    hint="correct its start and stop",
                )
        except InputError as error:
            raise error.at(self.file, stream.line, stream.column) from None
        return records

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The program in pieces that one logical processor after the other executes."""
        return tuple(segments_of(self.header, self.listing, self.records, self.file))

    @property
    def program(self) -> Program:
        """The program of a trace that says nothing else of the machine or its VMCS.

        Raises
        ------
        InputError
            The trace is for several logical processors, or has settings that only a replay heeds.
        """
        header = self.header
        settings = {
            "controls": header.controls,
            "vmcs": header.vmcs,
            "exits": header.exits != ExitOptions(),
            "preemption_timer": header.preemption_timer,
            "stream": header.stream,
            "handlers": header.handlers,
            "interrupts": header.insertions,
        }
        for name, setting in settings.items():
            if setting:
                raise InputError(
                    f"{self.name} has {name!r}, which a program alone does not carry",
                    file=self.file,
                    hint="run it with vtx.replay",
                )
        if self.header.processors > 1:
            raise InputError(
                f"{self.name} is for {self.header.processors} logical processors",
                file=self.file,
                hint="run it with vtx.replay",
            )
        return self.segments[0].program

    @property
    def entry_points(self) -> Mapping[int, int]:
        """Address of the first instruction of each logical processor that begins with one."""
        found: dict[int, int | None] = {}
        for segment in self.segments:
            found.setdefault(segment.processor, segment.program.entry_point)
        return {number: address for number, address in found.items() if address is not None}

    @property
    def steps(self) -> int:
        """Steps and references of the program, loops multiplied out, its handlers left out."""
        return sum(length_of(segment.program) for segment in self.segments)

    @property
    def references(self) -> int:
        """Number of references of the stream that the trace uses; 0 without a stream."""
        stream = self.header.stream
        if stream is None or self.records is None:
            return 0
        return (len(self.records) if stream.stop is None else stream.stop) - stream.start


def load_trace(path: str | Path, options: Mapping[str, object] | None = None) -> Trace:
    """Read a trace from a file.

    Parameters
    ----------
    path : str or Path
        A YAML file in the format of ``docs/traces.md``.
    options : mapping of str to object, optional
        Keys of the trace that are to be other than in the file, nested ones with a dot:
        ``{"ept.pages": "2M", "vpid": False}``.

    Raises
    ------
    InputError
        The file cannot be read or is no valid trace; with file, line, column and a hint.

    Examples
    --------
    >>> import vtx
    >>> vtx.load_trace("traces/01-cpuid.yaml").name
    'cpuid'
    """
    path = Path(path)
    return parse_trace(read_text(path, "trace", _MOST_BYTES), str(path), path.parent, options)


def parse_trace(
    text: str,
    file: str = "<text>",
    folder: str | Path = ".",
    options: Mapping[str, object] | None = None,
) -> Trace:
    """Read a trace from text.

    Parameters
    ----------
    text : str
        The trace.
    file : str
        Its name, for messages.
    folder : str or Path
        Where the names of stream files start.
    options : mapping of str to object, optional
        As for :func:`load_trace`.

    Raises
    ------
    InputError
        As :func:`load_trace`.
    """
    document = parse_document(text, file, "trace")
    for key, value in (options or {}).items():
        document = document.replaced(key.split("."), value)
    entries = _entries(document)
    lines = text.split("\n")

    mode = guest_mode(entries)

    def steps(block: Item, what: str) -> tuple[Operation, ...]:
        listing = parse_listing(block, what, lines, bits=handler_bits(mode))
        _check_processors(listing, 1, file, "it runs where the program is interrupted")
        return tuple(step for step in listing if not isinstance(step, StreamLine))

    header = read_header(entries, Path(folder), steps)
    expectations = read_expectations(entries.get("expect"))
    listing = _listing(entries, document, lines, code_bits(mode))
    _check_processors(listing, header.processors, file)
    return Trace(file, replace(header, expectations=expectations), listing)


def program(steps: str, handlers: Mapping[int | str, str] | None = None) -> Program:
    r"""Return the program that a listing says: what a guest executes, one instruction a line.

    Parameters
    ----------
    steps : str
        As the `steps` of a trace.
    handlers : mapping of int or str to str, optional
        What the guest runs when it gets an interrupt or exception: steps by vector or by name
        (``"#GP"``). Without one for a vector, that is a bare IRET.

    Raises
    ------
    InputError
        A line is no step; the message has its number (those of handlers come after the steps').

    Examples
    --------
    >>> import vtx
    >>> len(vtx.program("cpuid leaf=1\nhlt").operations)
    2
    >>> ticking = vtx.program("nop\nhlt", handlers={32: "modify 0x5000 value=1\niret"})
    """
    text = _block(steps, "  ")
    if handlers:
        text += "handlers:\n"
        for vector, block in handlers.items():
            name = f"'{vector}'" if isinstance(vector, str) else vector
            text += f"  {name}: |\n{_block(block, '    ')}"
    try:
        return parse_trace(_HEAD + text).segments[0].program
    except InputError as error:
        error.file = "<program>"
        if error.line is not None:
            error.line -= _HEAD.count("\n")
        raise


def _block(steps: str, margin: str) -> str:
    """Return steps as a literal block of YAML."""
    return "".join(f"{margin}{line.strip()}\n" for line in steps.strip().splitlines())


def _entries(document: Item) -> Mapping[str, Item]:
    """Return the keys of a trace, once its schema is known to be ours."""
    entries = document.entries("a trace")
    schema = entries.get("schema")
    if schema is None:
        raise document.error("the trace does not say its schema", hint="begin with schema: 1")
    if schema.integer("schema", 0, 1 << 31) != SCHEMA:
        raise schema.error(f"schema {schema.value} is unknown", hint=f"this vtx reads {SCHEMA}")
    if next(iter(entries)) != "schema":
        raise schema.error("schema must be the first key")
    for key, item in entries.items():
        if key not in KEYS:
            raise UnknownName("key of a trace", key, KEYS).at(item.file, item.line, None)
    return entries


def _listing(entries: Mapping[str, Item], document: Item, lines: list[str], bits: int) -> Listing:
    streaming = "stream" in entries
    if "steps" not in entries:
        if not streaming:
            raise document.error("the trace has neither steps nor a stream")
        return (StreamLine(None, None, 0, entries["stream"].line),)
    block = entries["steps"]
    listing = parse_listing(block, "steps", lines, streams=streaming, bits=bits)
    if streaming and not any(isinstance(step, StreamLine) for step in listing):
        raise block.error(
            "the steps do not say where the stream runs", hint="add a line that says stream"
        )
    return listing


def _check_processors(listing: Listing, processors: int, file: str, why: str = "") -> None:
    """Refuse steps of a logical processor that the machine does not have."""
    for step in listing:
        if not isinstance(step, Loop) and step.processor >= processors:
            machine = f"the machine has {processors} logical processor{'s' * (processors > 1)}"
            raise InputError(
                f"this step is for @{step.processor}, but {why or machine}",
                file=file,
                line=step.line,
                hint="write no @" if why else f"write processors: {step.processor + 1}",
            )
