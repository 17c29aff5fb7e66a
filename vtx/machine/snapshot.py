"""The state of a whole machine at one moment: taken, put back, compared.

A snapshot holds the registers and VMX state of every logical processor, its VMCSs, where its guest
stands in its program, all memory, and what was counted. Cached translations are not part of it:
after a restore every TLB is empty, as a processor may make it at any time (SDM, "Caching
Translation Information"), so that what the machine does is the same and only the number of walks
differs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx.errors import UsageError
from vtx.facts.fields import FIELDS
from vtx.machine.events import GUEST, Event, EventLog
from vtx.machine.registers import GPR_NAMES, Registers

if TYPE_CHECKING:
    from vtx.cpu import Machine
    from vtx.machine.processor import Processor
    from vtx.machine.program import Cursor
    from vtx.machine.vmcs import Vmcs

__all__ = ["Difference", "Snapshot", "restore", "take"]

_FRAME = 4096
#: Scalars of a processor that are copied as they are.
_SCALARS = (
    "in_vmx", "smm", "vmxon_pointer", "current_vmcs_pointer", "vmx_session", "in_smx", "in_seam",
    "dual_monitor_active", "a20m", "init_blocked", "smi_blocked", "a20m_blocked", "nmi_blocked",
    "monitor_armed", "delivered", "pushed_bytes", "same_fault", "pause_loop", "apic_write",
    "preemption_timer", "tsc", "steps",
)  # fmt: skip
_COMPARED = (
    *GPR_NAMES, "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "dr0", "dr1", "dr2", "dr3",
    "dr6", "dr7", "xcr0", "pkru", "ssp", "es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr",
    "idtr", "pdptes", "activity_state", "interruptibility_state", "pending_debug_exceptions",
)  # fmt: skip


class Difference(NamedTuple):
    """One thing that differs between two snapshots.

    Attributes
    ----------
    kind : str
        ``"register"``, ``"msr"``, ``"vmcs"``, ``"processor"``, ``"memory"`` or ``"event"``.
    name : str
        Which: ``"cpu 0 rax"``, ``"VMCS at 0x201000 guest_rip"``, ``"0x40200000"``.
    before, after : object
        What it was in the first snapshot and what it is in the second; bytes for memory.
    """

    kind: str
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {_shown(self.before)} -> {_shown(self.after)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:#x}"
    return value.hex(" ") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class _ProcessorState:
    """One logical processor."""

    regs: Registers
    scalars: dict[str, Any]
    pending: Any
    cursors: tuple[Cursor, ...]
    vmcss: dict[int, Vmcs]
    current: int | None
    link: int | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A machine at one moment; `Machine.restore` makes the machine that again.

    Two snapshots are equal if nothing differs between them (:meth:`differences`).
    """

    processors: tuple[_ProcessorState, ...]
    memory: dict[int, bytes]
    events: EventLog
    frames: tuple[int, tuple[int, ...]]
    ept: Any
    guest: Any

    def differences(self, later: Snapshot) -> list[Difference]:
        """Return everything that differs in `later`, registers first, memory last."""
        return list(_differences(self, later))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and next(_differences(self, other), None) is None

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = len(self.memory) * _FRAME
        return f"<Snapshot of {len(self.processors)} processors and {size:#x} bytes of memory>"


def take(machine: Machine) -> Snapshot:
    """Return the state of `machine`.

    Raises
    ------
    UsageError
        A processor is in VMX non-root operation: a snapshot is taken between a VM exit and the
        next VM entry.
    """
    memory = machine.memory
    return Snapshot(
        processors=tuple(_processor(cpu) for cpu in machine.cpus),
        memory={frame: memory.read(frame, _FRAME) for frame in memory.frames_in_use()},
        events=machine.events.copy(),
        frames=machine.frames.state(),
        ept=copy.copy(machine.ept),
        guest=copy.copy(machine.guest),
    )


def restore(machine: Machine, snapshot: Snapshot) -> None:
    """Make `machine` what it was when `snapshot` was taken of it.

    Raises
    ------
    UsageError
        The snapshot is of a machine with another number of processors.
    """
    if len(machine.cpus) != len(snapshot.processors):
        raise UsageError(
            f"the snapshot has {len(snapshot.processors)} logical processors, the machine "
            f"{len(machine.cpus)}"
        )
    machine.memory.clear()
    for frame, content in snapshot.memory.items():
        machine.memory.write(frame, content)
    machine.events.replace(snapshot.events)
    machine.frames.restore(snapshot.frames)
    machine.ept = copy.copy(snapshot.ept)
    machine.guest = copy.copy(snapshot.guest)
    for cpu, state in zip(machine.cpus, snapshot.processors, strict=True):
        _put_back(cpu, state)


def _processor(cpu: Processor) -> _ProcessorState:
    if cpu.non_root:
        raise UsageError(
            f"logical processor {cpu.number} is in VMX non-root operation; take the snapshot at a "
            "VM exit, before the next entry"
        )
    return _ProcessorState(
        regs=cpu.regs.copy(),
        scalars={name: copy.copy(getattr(cpu, name)) for name in _SCALARS},
        pending=copy.deepcopy(cpu.pending),
        cursors=tuple(_cursor(cursor) for cursor in cpu.cursors),
        vmcss={address: vmcs.copy() for address, vmcs in cpu.active_vmcss.items()},
        current=_address(cpu, cpu.vmcs),
        link=_address(cpu, cpu.link_vmcs),
    )


def _address(cpu: Processor, wanted: Vmcs | None) -> int | None:
    return next((at for at, vmcs in cpu.active_vmcss.items() if vmcs is wanted), None)


def _cursor(cursor: Cursor) -> Cursor:
    """Return a copy of where a processor stands; the program itself never changes."""
    twin = copy.copy(cursor)
    twin.iterations = dict(cursor.iterations)
    return twin


def _put_back(cpu: Processor, state: _ProcessorState) -> None:
    cpu.regs = state.regs.copy()
    for name, value in state.scalars.items():
        setattr(cpu, name, copy.copy(value))
    cpu.pending = copy.deepcopy(state.pending)
    cpu.cursors = [_cursor(cursor) for cursor in state.cursors]
    cpu.active_vmcss.clear()
    cpu.active_vmcss.update({address: vmcs.copy() for address, vmcs in state.vmcss.items()})
    cpu.vmcs = None if state.current is None else cpu.active_vmcss[state.current]
    cpu.link_vmcs = None if state.link is None else cpu.active_vmcss[state.link]
    cpu.non_root = False
    # What was derived from the state before is derived anew.
    cpu.context_vmcs = None
    cpu.root_system = None
    cpu.mmu.flush_all()


def _differences(a: Snapshot, b: Snapshot) -> Iterator[Difference]:
    for number, (old, new) in enumerate(zip(a.processors, b.processors, strict=False)):
        yield from _of_processor(f"cpu {number}", old, new)
        for address in sorted({*old.vmcss, *new.vmcss}):
            yield from _of_vmcs(address, old.vmcss.get(address), new.vmcss.get(address))
    if len(a.processors) != len(b.processors):
        yield Difference("processor", "count", len(a.processors), len(b.processors))
    yield from _of_events(a.events, b.events)
    yield from _of_memory(a.memory, b.memory)


def _of_processor(name: str, old: _ProcessorState, new: _ProcessorState) -> Iterator[Difference]:
    for register in _COMPARED:
        before, after = getattr(old.regs, register), getattr(new.regs, register)
        if before != after:
            yield Difference("register", f"{name} {register}", before, after)
    for msr in sorted({*old.regs.msrs, *new.regs.msrs}):
        before, after = old.regs.msrs.get(msr, 0), new.regs.msrs.get(msr, 0)
        if before != after:
            yield Difference("msr", f"{name} {msr:#x}", before, after)
    for scalar, before in old.scalars.items():
        if before != new.scalars[scalar]:
            yield Difference("processor", f"{name} {scalar}", before, new.scalars[scalar])
    if old.pending != new.pending:
        yield Difference("processor", f"{name} pending", old.pending, new.pending)
    where = [tuple((c.index, c.record, tuple(c.iterations.items())) for c in state.cursors)
             for state in (old, new)]  # fmt: skip
    if where[0] != where[1]:
        yield Difference("processor", f"{name} program", *where)


def _of_vmcs(address: int, old: Vmcs | None, new: Vmcs | None) -> Iterator[Difference]:
    name = f"VMCS at {address:#x}"
    if old is None or new is None:
        yield Difference("vmcs", f"{name} active", old is not None, new is not None)
        return
    if old.launched != new.launched:
        yield Difference("vmcs", f"{name} launched", old.launched, new.launched)
    for field, info in FIELDS.items():
        if old.values[field] != new.values[field]:
            yield Difference("vmcs", f"{name} {info.name}", old.values[field], new.values[field])


def _of_events(old: EventLog, new: EventLog) -> Iterator[Difference]:
    for reason in sorted({*old.counts, *new.counts}):
        rows = [log.counts.get(reason) or [0] * len(Event) for log in (old, new)]
        for event in Event:
            if rows[0][event] != rows[1][event]:
                where = "guest" if reason == GUEST else f"reason {reason}"
                name = f"{event.name.lower()} under {where}"
                yield Difference("event", name, rows[0][event], rows[1][event])


def _of_memory(old: dict[int, bytes], new: dict[int, bytes]) -> Iterator[Difference]:
    """Yield the spans of bytes that differ, each up to 16 bytes long."""
    empty = bytes(_FRAME)
    for frame in sorted({*old, *new}):
        before, after = old.get(frame, empty), new.get(frame, empty)
        if before == after:
            continue
        for at in range(0, _FRAME, 16):
            if before[at : at + 16] != after[at : at + 16]:
                yield Difference(
                    "memory", f"{frame + at:#x}", before[at : at + 16], after[at : at + 16]
                )
