"""What the header of a trace says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from vtx.machine.image import GIB

if TYPE_CHECKING:
    from vtx.facts.controls import ControlInfo
    from vtx.facts.fields import Field
    from vtx.machine.program import Operation

__all__ = [
    "EptOptions",
    "ExitOptions",
    "Expectation",
    "GuestOptions",
    "Header",
    "Insertion",
    "StreamOptions",
]


@dataclass(frozen=True)
class GuestOptions:
    """The guest.

    Parameters
    ----------
    memory_bytes : int
        Guest-physical memory.
    user : bool
        The program runs at privilege level 3.
    demand : bool
        The lower half of the linear-address space is paged in on demand by the guest's kernel;
        otherwise guest memory is mapped there.
    pages : str
        Size of the pages that are mapped on demand: ``"4K"`` or ``"2M"``.
    entry : int or None
        Address of the first instruction; None is the image's own.
    registers : mapping of str to int
        General-purpose registers, RSP and RFLAGS before the first instruction.
    mode : str
        One of :data:`vtx.machine.image_legacy.MODES`.
    """

    memory_bytes: int = GIB
    user: bool = False
    demand: bool = False
    pages: str = "4K"
    entry: int | None = None
    registers: Mapping[str, int] = field(default_factory=dict)
    mode: str = "long"


@dataclass(frozen=True)
class EptOptions:
    """How the VMM uses EPT.

    Parameters
    ----------
    enabled : bool
        Without EPT, guest-physical addresses are host-physical ones.
    pages : str
        ``"4K"``, ``"2M"`` or ``"1G"``.
    map_all : bool
        All guest memory is mapped before the first VM entry; otherwise on EPT violations.
    """

    enabled: bool = True
    pages: str = "4K"
    map_all: bool = False


@dataclass(frozen=True)
class ExitOptions:
    """What the VMM lets exit, beside what the controls say; None leaves the VMM's default.

    Parameters
    ----------
    msr_read, msr_write : frozenset of int or None
        MSRs whose access exits, through MSR bitmaps.
    io : frozenset of int or None
        Ports whose access exits, through I/O bitmaps.
    exceptions : frozenset of int or None
        Vectors in the exception bitmap.
    cr0, cr4 : int or None
        Guest/host masks.
    cr3_load, cr3_store, cr8_load, cr8_store : bool or None
        Accesses to CR3 and CR8.
    """

    msr_read: frozenset[int] | None = None
    msr_write: frozenset[int] | None = None
    io: frozenset[int] | None = None
    exceptions: frozenset[int] | None = None
    cr0: int | None = None
    cr4: int | None = None
    cr3_load: bool | None = None
    cr3_store: bool | None = None
    cr8_load: bool | None = None
    cr8_store: bool | None = None


@dataclass(frozen=True)
class StreamOptions:
    """A recorded reference stream.

    Parameters
    ----------
    path : Path
        Array file.
    start, stop : int, int or None
        The records that are used; None is the end of the file.
    line, column : int
        Where the trace names it.
    kind : str or None
        Format of the file, if the trace says it.
    """

    path: Path
    start: int
    stop: int | None
    line: int
    column: int
    kind: str | None = None


@dataclass(frozen=True)
class Insertion:
    """Steps that stand between the references of a stream.

    Parameters
    ----------
    first : int
        They stand before this reference, counted from 0 in the stream's file.
    every : int or None
        And before each `every`-th after it.
    until : int or None
        But not from this one on.
    operations : tuple of Instruction, Loop
        The steps.
    """

    first: int
    every: int | None
    until: int | None
    operations: tuple[Operation, ...]


class Expectation(IntEnum):
    """What an expectation is about."""

    __hash__ = int.__hash__

    EXITS = 0
    TOTAL_EXITS = 1
    REGISTER = 2
    MEMORY = 3
    FIELD = 4
    CONSOLE = 5
    OUTCOME = 6
    CHECK = 7


@dataclass(frozen=True)
class Expected:
    """One line of the ``expect`` block.

    Parameters
    ----------
    kind : Expectation
        What it is about.
    key : int or str
        Exit reason, register, guest-physical address or VMCS field.
    value : int or str
        What the run should end with.
    line : int
        Where it stands.
    name : str
        What the trace calls it, where it has a name of its own: KVM's of an exit, say.
    """

    kind: Expectation
    key: int | str
    value: int | str
    line: int
    name: str = ""


@dataclass(frozen=True)
class Header:
    """Everything a trace says beside its steps; see ``docs/traces.md``."""

    name: str = ""
    description: str = ""
    source: str = ""
    profile: str | None = None
    processors: int = 1
    guest: GuestOptions = field(default_factory=GuestOptions)
    ept: EptOptions = field(default_factory=EptOptions)
    vpid: int | None = None
    controls: tuple[tuple[ControlInfo, bool], ...] = ()
    vmcs: Mapping[Field, int] = field(default_factory=dict)
    exits: ExitOptions = field(default_factory=ExitOptions)
    preemption_timer: int | None = None
    stream: StreamOptions | None = None
    insertions: tuple[Insertion, ...] = ()
    handlers: Mapping[int, tuple[Operation, ...]] = field(default_factory=dict)
    expectations: tuple[Expected, ...] = ()
