"""The header of a trace: YAML values, checked one by one, each error at its place in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vtx.errors import InputError, UnknownName
from vtx.facts.controls import ControlInfo, find_control
from vtx.facts.fields import Field, find_field, mask
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.hypervisor.header_exits import read_exits
from vtx.hypervisor.options import (
    EptOptions,
    GuestOptions,
    Header,
    Insertion,
    StreamOptions,
)
from vtx.hypervisor.values import EXCEPTIONS, at, flag, number_of, size_of, text_of
from vtx.machine import image, image_legacy
from vtx.machine.program import Instruction, Operation
from vtx.machine.shape import PAGE_SIZES
from vtx.profiles import names
from vtx.profiles.document import Item

__all__ = ["KEYS", "guest_mode", "read_header"]

#: Every key of a trace.
KEYS = (
    "schema", "name", "description", "source", "profile", "processors", "memory", "guest", "ept",
    "vpid", "controls", "vmcs", "exits", "interrupts", "preemption_timer", "stream", "schedule",
    "handlers", "steps", "expect",
)  # fmt: skip

_START_REGISTERS = (*GENERAL_REGISTERS, "rflags")

#: Reads a block of steps: the item, its name for messages, the most processors it may name.
Steps = Callable[[Item, str], tuple[Operation, ...]]


def read_header(entries: Mapping[str, Item], folder: Path, steps: Steps) -> Header:
    """Return what the header says.

    Parameters
    ----------
    entries : mapping of str to Item
        The keys of the trace with their values; keys are known to be among `KEYS`.
    folder : Path
        Where the trace is: relative file names start there.
    steps : callable
        Reads a block of steps.

    Raises
    ------
    InputError
        A value is wrong; with file, line and column.
    """
    get = entries.get
    processors = 1
    if (item := get("processors")) is not None:
        processors = number_of(item, "processors", 1, image.MAXIMUM_PROCESSORS)
    stream = _stream(entries["stream"], folder) if "stream" in entries else None
    guest = _guest(get("guest"), get("memory"), streaming=stream is not None)
    timer = get("preemption_timer")
    return Header(
        name=text_of(get("name"), "name"),
        description=text_of(get("description"), "description"),
        source=text_of(get("source"), "source"),
        profile=_profile(get("profile"), folder),
        processors=processors,
        guest=guest,
        ept=_ept(get("ept")),
        vpid=_vpid(get("vpid")),
        controls=_controls(get("controls")),
        vmcs=_fields(get("vmcs")),
        exits=read_exits(get("exits")),
        preemption_timer=None if timer is None else number_of(timer, "timer", 0, 0xFFFF_FFFF),
        stream=stream,
        insertions=_insertions(entries, steps),
        handlers=_handlers(get("handlers"), steps),
    )


def _profile(item: Item | None, folder: Path) -> str | None:
    """Return the name of a profile, or the path of a profile's file."""
    if item is None:
        return None
    name = item.text("profile")
    if name in names():
        return name
    if Path(name).suffix.lower() in (".yaml", ".yml"):
        return str(at(item, lambda: _path(folder, name)))
    raise UnknownName("profile", name, names()).at(item.file, item.line, item.column)


def _guest(item: Item | None, memory: Item | None, *, streaming: bool) -> GuestOptions:
    size_bytes = image.GIB if memory is None else size_of(memory, "memory")
    if size_bytes % image.LARGE_PAGE or not (
        image.MINIMUM_BYTES <= size_bytes <= image.MAXIMUM_BYTES
    ):
        assert memory is not None
        raise memory.error(
            f"a guest cannot have a memory of {size_bytes} bytes",
            hint="give a multiple of 2M from 8M to 63G",
        )
    keys = ("mode", "privilege", "map", "pages", "entry", "registers")
    entries = item.mapping("guest", keys) if item is not None else {}
    mode = entries["mode"].choice("mode", image_legacy.MODES) if "mode" in entries else "long"
    if mode != "long":
        assert item is not None
        _check_legacy(item, entries, size_bytes, streaming=streaming)
    kinds = {"privilege": ("user", "kernel"), "map": ("demand", "low"), "pages": ("4K", "2M")}
    said = {key: entries[key].choice(key, kinds[key]) for key in kinds if key in entries}
    if streaming and said.get("map") == "low":
        raise entries["map"].error("the pages of a stream are mapped on demand: write map: demand")
    entry = number_of(entries["entry"], "entry") if "entry" in entries else None
    default = "user" if streaming else "kernel"
    return GuestOptions(
        memory_bytes=size_bytes,
        user=said.get("privilege", default) == "user",
        demand=streaming or said.get("map") == "demand",
        pages=said.get("pages", "4K"),
        entry=entry,
        registers=_registers(entries.get("registers")),
        mode=mode,
    )


def _check_legacy(
    item: Item, entries: Mapping[str, Item], size_bytes: int, *, streaming: bool
) -> None:
    """Refuse what only a 64-bit guest can have."""
    if streaming:
        raise entries["mode"].error("only a 64-bit guest runs a stream", hint="write mode: long")
    if "map" in entries or "pages" in entries:
        raise entries["mode"].error("only a 64-bit guest has its memory mapped on demand")
    if size_bytes > image_legacy.MAXIMUM_BYTES:
        raise item.error("a guest outside 64-bit mode has at most 2G of memory")
    if "privilege" in entries and entries["mode"].value in ("real", "virtual_8086"):
        raise entries["privilege"].error("the mode of an 8086 program fixes its privilege")


def guest_mode(entries: Mapping[str, Item]) -> str:
    """Return the mode of a trace's guest: how wide its code is has to be known before its steps."""
    item = entries.get("guest")
    if item is None or not isinstance(item.value, Mapping):
        return "long"
    mode = item.entries("guest").get("mode")
    return "long" if mode is None else mode.choice("mode", image_legacy.MODES)


def _registers(item: Item | None) -> dict[str, int]:
    if item is None:
        return {}
    entries = item.mapping("registers", _START_REGISTERS)
    return {name: number_of(value, name) for name, value in entries.items()}


def _ept(item: Item | None) -> EptOptions:
    if item is None:
        return EptOptions()
    if isinstance(item.value, bool):
        return EptOptions(enabled=item.value)
    entries = item.mapping("ept", ("pages", "map"))
    pages = entries["pages"].choice("pages", PAGE_SIZES) if "pages" in entries else "4K"
    whole = "map" in entries and entries["map"].choice("map", ("demand", "all")) == "all"
    return EptOptions(True, pages, whole)


def _vpid(item: Item | None) -> int | None:
    """Return the VPID, 0 for none; None leaves it to the VMM."""
    if item is None:
        return None
    if isinstance(item.value, bool):
        return None if item.value else 0
    return number_of(item, "vpid", 1, 0xFFFF)


def _controls(item: Item | None) -> tuple[tuple[ControlInfo, bool], ...]:
    if item is None:
        return ()
    if isinstance(item.value, list):
        named = [(word.text("a control"), True, word) for word in item.value]
    else:
        named = [
            (name, flag(value, name), value) for name, value in item.entries("controls").items()
        ]
    return tuple((at(place, lambda n=name: find_control(n)), on) for name, on, place in named)  # type: ignore[misc]


def _fields(item: Item | None) -> dict[Field, int]:
    fields = {}
    for name, value in (item.entries("vmcs") if item is not None else {}).items():
        field = at(value, lambda n=name: find_field(n).field)  # type: ignore[misc]
        fields[field] = number_of(value, name, 0, mask(field))
    return fields


def _stream(item: Item, folder: Path) -> StreamOptions:
    if isinstance(item.value, str):
        entries = {"file": item}
    else:
        entries = item.mapping("stream", ("file", "kind", "start", "stop"))
    if "file" not in entries:
        raise item.error("the stream has no file")
    file = entries["file"]
    kind: str | None = None
    if "kind" in entries:
        from vtx.streams import FORMATS

        kind = entries["kind"].choice("kind", FORMATS)
    start = number_of(entries["start"], "start") if "start" in entries else 0
    stop = number_of(entries["stop"], "stop") if "stop" in entries else None
    if stop is not None and stop <= start:
        raise entries["stop"].error(f"the stream stops at {stop}, before it starts at {start}")
    path = at(file, lambda: _path(folder, file.text("file")))
    return StreamOptions(path, start, stop, file.line, file.column, kind)


def _path(folder: Path, name: str) -> Path:
    if "\0" in name:
        raise InputError("no file can have this name")
    return folder / name


def _insertions(entries: Mapping[str, Item], steps: Steps) -> tuple[Insertion, ...]:
    """Return the interrupts and the schedule; both need a stream to stand in."""
    insertions = []
    for key in ("interrupts", "schedule"):
        if key in entries and "stream" not in entries:
            raise entries[key].error(
                f"{key} needs a stream", hint="in a listing, write the steps where they belong"
            )
    if (item := entries.get("interrupts")) is not None:
        insertions.append(_interrupts(item))
    if (item := entries.get("schedule")) is not None:
        insertions += [_scheduled(entry, steps) for entry in item.items("schedule")]
    return tuple(insertions)


def _interrupts(item: Item) -> Insertion:
    entries = item.mapping("interrupts", ("vector", "every", "first"))
    for key in ("vector", "every"):
        if key not in entries:
            raise item.error(f"interrupts has no {key}")
    vector = number_of(entries["vector"], "vector", 32, 255)
    every = number_of(entries["every"], "every", 1, 1 << 48)
    first = number_of(entries["first"], "first", 0, 1 << 48) if "first" in entries else every
    step = Instruction(
        "external_interrupt",
        {"vector": vector},
        line=item.line,
        text=f"external_interrupt vector={vector}",
    )
    return Insertion(first, every, None, (step,))


def _scheduled(item: Item, steps: Steps) -> Insertion:
    entries = item.mapping("schedule", ("at", "every", "until", "steps"))
    for key in ("at", "steps"):
        if key not in entries:
            raise item.error(f"an entry of the schedule has no {key}")
    numbers = {
        key: number_of(entries[key], key, int(key == "every"), 1 << 48)
        for key in ("at", "every", "until")
        if key in entries
    }
    operations = steps(entries["steps"], "steps")
    return Insertion(numbers["at"], numbers.get("every"), numbers.get("until"), operations)


def _handlers(item: Item | None, steps: Steps) -> dict[int, tuple[Operation, ...]]:
    """Return what the guest's kernel runs, by vector."""
    handlers: dict[int, tuple[Operation, ...]] = {}
    for name, block in (item.entries("handlers") if item is not None else {}).items():
        vector = EXCEPTIONS.get(name)
        if vector is None:
            try:
                vector = int(name, 0)
            except ValueError:
                raise UnknownName("vector", name, EXCEPTIONS).at(
                    block.file, block.line, block.column
                ) from None
        if not 0 <= vector <= 255 or vector in handlers:
            raise block.error(f"no handler for vector {name} can be added")
        handlers[vector] = _handler(block, name, steps)
    return handlers


def _handler(block: Item, name: str, steps: Steps) -> tuple[Operation, ...]:
    """Read the steps of one handler."""
    operations = steps(block, f"the handler of {name}")
    instructions = [step for step in operations if isinstance(step, Instruction)]
    if instructions[-1].name != "iret" or instructions[-1] is not operations[-1]:
        raise InputError(
            f"the handler of {name} does not return",
            file=block.file,
            line=instructions[-1].line,
            hint="end it with iret",
        )
    length = sum(step.length for step in instructions)
    if length > image.HANDLER_STRIDE:
        raise block.error(
            f"the handler of {name} has {length} bytes of code, more than {image.HANDLER_STRIDE}"
        )
    return operations
