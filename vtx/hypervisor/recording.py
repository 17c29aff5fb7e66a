"""A run of a trace recorded step by step, to be looked at forwards and backwards.

The machine runs once, from beginning to end; what it was before each step of the guest, at each VM
exit and at each VM entry is kept as a :class:`Frame`. Looking at a frame changes nothing, so going
back is as exact as going forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx.errors import EmulationStopped, VMfail
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field
from vtx.hypervisor.handlers import Vmm
from vtx.hypervisor.replay import DEFAULT_PROFILE, _Player, _shape
from vtx.hypervisor.setup import check_support, make_machine
from vtx.hypervisor.trace import Trace, load_trace
from vtx.machine.context import Access
from vtx.machine.program import Instruction, Stream
from vtx.machine.registers import GPR_NAMES
from vtx.rules.exiting_information import operand_address

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.hypervisor.vmm import VmmLoop
    from vtx.lab.profile import Profile
    from vtx.machine.exit import Exit
    from vtx.machine.processor import Processor
    from vtx.machine.shape import Shape
    from vtx.machine.walk import Walk

__all__ = ["Change", "Counts", "Frame", "Kind", "Recording", "record"]

#: Frames kept by default: a listing of some minutes of reading.
MOST_FRAMES = 100_000
#: Walks kept: each is up to 35 references.
_MOST_WALKS = 5_000
_REGISTERS = (*GPR_NAMES, "rip", "rflags", "cr0", "cr2", "cr3", "cr4")
_IN_VMCS = {
    "rip": Field.GUEST_RIP,
    "rsp": Field.GUEST_RSP,
    "rflags": Field.GUEST_RFLAGS,
    "cr0": Field.GUEST_CR0,
    "cr3": Field.GUEST_CR3,
    "cr4": Field.GUEST_CR4,
}
_ACCESSES = {
    "load": Access.LOAD,
    "store": Access.STORE,
    "modify": Access.MODIFY,
    "fetch": Access.FETCH,
}


class Kind(StrEnum):
    """What a frame shows."""

    STEP = "step"
    """The guest is about to execute an instruction, or to take an event."""
    EXIT = "exit"
    """A VM exit: the VMM has not done anything yet."""
    ENTRY = "entry"
    """The VMM has handled the exit and is about to enter the guest."""
    END = "end"
    """The run is over."""


class Change(NamedTuple):
    """A VMCS field that changed since the frame before: by the exit, or by the VMM."""

    field: str
    before: int
    after: int


@dataclass(frozen=True)
class Counts:
    """What was counted up to a frame, as :func:`vtx.lab.ledger.price` wants it."""

    counts: Mapping[int, Sequence[int]]
    translation: Mapping[str, int]

    @property
    def events(self) -> Counts:
        """Itself: the counts of events by exit reason."""
        return self


@dataclass(frozen=True)
class Frame:
    """The machine at one moment.

    Attributes
    ----------
    index : int
        Position in the recording.
    kind : Kind
    processor : int
        Logical processor.
    steps : int
        Steps that the guest has taken.
    text : str
        The instruction, event or stream; of an exit its sentence.
    line : int or None
        Line of the trace.
    registers : mapping of str to int
        The guest's registers.
    changes : tuple of Change
        VMCS fields that changed.
    reason : ExitReason or None
        Of an exit.
    qualification : int
        Of an exit.
    address : int or None
        Linear address that the step or exit is about.
    walk : Walk or None
        How that address is translated.
    counts : Counts
        Everything counted so far.
    """

    index: int
    kind: Kind
    processor: int
    steps: int
    text: str
    line: int | None
    registers: Mapping[str, int]
    changes: tuple[Change, ...] = ()
    reason: ExitReason | None = None
    qualification: int = 0
    address: int | None = None
    walk: Walk | None = None
    counts: Counts | None = None

    @property
    def root(self) -> bool:
        """In VMX root operation."""
        return self.kind in (Kind.EXIT, Kind.ENTRY)


@dataclass(frozen=True)
class Recording:
    """All frames of a run.

    Attributes
    ----------
    trace : Trace
    frames : tuple of Frame
        The last one says how the run ended.
    complete : bool
        False if the run was longer than what is kept.
    """

    trace: Trace
    frames: tuple[Frame, ...]
    complete: bool

    def find(self, start: int, wanted: Any, *, backwards: bool = False) -> int | None:
        """Return the next frame from `start`, not itself, for which ``wanted(frame)`` is true."""
        indices = range(start - 1, -1, -1) if backwards else range(start + 1, len(self.frames))
        return next((i for i in indices if wanted(self.frames[i])), None)


class _Enough(Exception):
    """As many frames as are wanted are recorded."""


def record(
    trace: str | Path | Trace,
    profile: str | Shape | Profile | None = None,
    *,
    vmm: VmmLoop | None = None,
    most: int = MOST_FRAMES,
) -> Recording:
    """Run a trace and record every step, exit and entry.

    Parameters
    ----------
    trace : str, Path or Trace
        The trace, or its file.
    profile : str, Shape or Profile, optional
        The CPU; by default the one that the trace names, or else ``skylake_sp``.
    vmm : VmmLoop, optional
        The VMM; :class:`vtx.Vmm` by default.
    most : int
        Frames at most; the run is cut off after them.

    Raises
    ------
    InputError, NotSupported
        As :func:`vtx.replay`. What stops the run itself becomes the last frame.
    """
    if not isinstance(trace, Trace):
        trace = load_trace(trace)
    shape = _shape(profile if profile is not None else trace.header.profile or DEFAULT_PROFILE)
    check_support(trace.header, shape, trace.name)
    vmm = vmm if vmm is not None else Vmm()
    with make_machine(trace.header, shape) as machine:
        player = _Player(trace, machine, vmm, None)
        recorder = _Recorder(machine.cpus, vmm, most)
        complete = True
        try:
            player.play()
            text = f"the guest ends: {vmm.outcome}" + (f" ({vmm.message})" if vmm.message else "")
        except (EmulationStopped, VMfail) as stop:
            text = str(stop)
        except _Enough:
            text, complete = f"the recording ends here, after {most} frames", False
        recorder.end(text)
    return Recording(trace, tuple(recorder.frames), complete)


class _Recorder:
    """Stands between the machine, its VMM and the list of frames."""

    def __init__(self, cpus: Sequence[Cpu], vmm: VmmLoop, most: int) -> None:
        self.frames: list[Frame] = []
        self._most = most
        self._walks = 0
        self._cpu: Processor = cpus[0]
        self._values: dict[int, dict[int, int]] = {}
        self._handle = vmm.handle
        for cpu in cpus:
            cpu.observer = self.step
        # The VMM's own loop calls what the instance holds.
        vmm.handle = self.handle  # type: ignore[method-assign]

    def step(self, processor: Processor) -> None:
        """Record what the guest is about to do."""
        operation = processor.cursors[-1].operation
        address, walk = None, None
        if isinstance(operation, Stream):
            record_ = processor.cursors[-1].record
            text, line = f"stream, from reference {record_}", None
        else:
            assert isinstance(operation, Instruction)
            text, line = str(operation), operation.line
            if operation.name in _ACCESSES and operation.length:
                address = operand_address(processor.regs, operation.operands)
        self._finish_walk()
        if processor.vmcs is not None:
            self._values.setdefault(id(processor.vmcs), dict(processor.vmcs.values))
        self._add(processor, Kind.STEP, text, line, address=address, walk=walk)

    def _finish_walk(self) -> None:
        """Give the step before its walk, which the guest has just done itself."""
        if not self.frames or self.frames[-1].kind is not Kind.STEP or self._walks >= _MOST_WALKS:
            return
        last = self.frames[-1]
        if last.address is None or last.processor != self._cpu.number:
            return
        name = last.text.split()[0]
        self._walks += 1
        walk = self._cpu.mmu.walk(
            self._cpu.context, last.address, _ACCESSES.get(name, Access.LOAD), record=True
        )
        self.frames[-1] = _with_walk(last, walk)

    def handle(self, cpu: Cpu, exit: Exit) -> None:
        """Record an exit, let the VMM handle it, and record what it did."""
        info = exit.information
        address, walk = None, None
        if info.reason is ExitReason.EPT_VIOLATION and info.qualification >> 7 & 1:
            address = info.guest_linear_address
            if self._walks < _MOST_WALKS:
                self._walks += 1
                access = (
                    Access.FETCH
                    if info.qualification & 4
                    else Access.STORE
                    if info.qualification & 2
                    else Access.LOAD
                )
                walk = cpu.mmu.walk(cpu.context, address, access, record=True)
        line = self.frames[-1].line if self.frames else None
        self._add(
            cpu,
            Kind.EXIT,
            exit.explain(),
            line,
            reason=info.reason,
            qualification=info.qualification,
            address=address,
            walk=walk,
        )
        self._handle(cpu, exit)
        text = f"the VMM has handled {info.reason.name}"
        self._add(cpu, Kind.ENTRY, text, line, reason=info.reason)

    def end(self, text: str) -> None:
        """Record how the run ended."""
        self._most += 1
        self._add(self._cpu, Kind.END, text, None)

    def _add(
        self, processor: Processor, kind: Kind, text: str, line: int | None, **more: Any
    ) -> None:
        if len(self.frames) >= self._most:
            raise _Enough
        self._cpu = processor
        root = kind is not Kind.STEP
        self.frames.append(
            Frame(
                index=len(self.frames),
                kind=kind,
                processor=processor.number,
                steps=processor.steps,
                text=text,
                line=line,
                registers=_registers(processor),
                changes=self._changes(processor) if root else (),
                counts=_counts(processor) if root else None,
                **more,
            )
        )

    def _changes(self, processor: Processor) -> tuple[Change, ...]:
        """Return what differs in the VMCS since the last time."""
        if processor.vmcs is None:
            return ()
        key = id(processor.vmcs)
        now = processor.vmcs.values
        before = self._values.get(key)
        self._values[key] = dict(now)
        if before is None:
            return ()
        return tuple(
            Change(FIELDS[Field(field)].name, before[field], value)
            for field, value in now.items()
            if before[field] != value and FIELDS[Field(field)].area is not Area.HOST
        )


def _with_walk(frame: Frame, walk: Walk) -> Frame:
    from dataclasses import replace

    return replace(frame, walk=walk)


def _registers(processor: Processor) -> dict[str, int]:
    """Return the guest's registers, wherever they are now."""
    regs, vmcs = processor.regs, processor.vmcs
    values: dict[str, int] = {name: getattr(regs, name) for name in _REGISTERS}
    if vmcs is not None and not processor.non_root:
        values |= {name: vmcs[field] for name, field in _IN_VMCS.items()}
    return values


def _counts(processor: Processor) -> Counts:
    log = processor.events
    return Counts(
        {reason: tuple(row) for reason, row in log.counts.items()}, dict(processor.mmu.counters())
    )
