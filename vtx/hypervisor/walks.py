"""One walk in a guest that a trace has set up: what its page tables and EPT say of an address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vtx.errors import InputError
from vtx.hypervisor.handlers import Vmm
from vtx.hypervisor.programs import Segment, length_of
from vtx.hypervisor.replay import DEFAULT_PROFILE, _Player, _shape
from vtx.hypervisor.setup import check_support, make_machine
from vtx.hypervisor.trace import Trace, load_trace
from vtx.machine.context import Access
from vtx.machine.program import Loop, Operation, Program, Stream
from vtx.machine.shape import Shape
from vtx.machine.walk import Walk

__all__ = ["walk_address"]


def walk_address(
    trace: str | Path | Trace,
    gva: int,
    access: int = Access.LOAD,
    *,
    profile: str | Shape | None = None,
    at: int | None = None,
    cached: bool = False,
    cpl: int | None = None,
) -> Walk:
    """Run a trace, or its beginning, and walk one linear address in its guest.

    Parameters
    ----------
    trace : str, Path or Trace
        The trace, or its file.
    gva : int
        Linear address, 64 bits.
    access : Access
        What the access is.
    profile : str or Shape, optional
        The CPU; by default the one that the trace names, or else ``skylake_sp``.
    at : int, optional
        Run so many steps and references; all by default. Rounds of a loop are run whole.
    cached : bool
        Ask TLBs and paging-structure caches as the trace has left them, instead of walking from
        the roots.
    cpl : int, optional
        Privilege level of the access; the guest's own by default.

    Returns
    -------
    Walk
        With every step recorded.

    Raises
    ------
    InputError
        The trace, the profile or the address is wrong.
    """
    if not 0 <= gva < 1 << 64:
        raise InputError(f"{gva:#x} is no linear address of 64 bits")
    if not isinstance(trace, Trace):
        trace = load_trace(trace)
    shape = _shape(profile if profile is not None else trace.header.profile or DEFAULT_PROFILE)
    check_support(trace.header, shape, trace.name)
    if at is not None:
        trace = _beginning(trace, at)
    with make_machine(trace.header, shape) as machine:
        _Player(trace, machine, Vmm(), None).play()
        cpu = machine.cpus[0]
        if cpu.context_vmcs is None:
            raise InputError(f"{trace.name} has entered no guest", file=trace.file)
        context = cpu.context
        if cpl is not None:
            context.cpl = cpl
        if cached:
            return cpu.mmu.translate(context, gva, access, record=True)
        return cpu.mmu.walk(context, gva, access, record=True)


def _beginning(trace: Trace, steps: int) -> Trace:
    """Return a trace that executes the first `steps` steps and references of `trace`."""
    if steps < 0:
        raise InputError(f"a trace has no step {steps}")
    shorter = replace(trace)
    # Segments are computed once and kept; this trace has fewer.
    shorter.__dict__["segments"] = tuple(_first(trace.segments, steps)) or trace.segments[:1]
    return shorter


def _first(segments: tuple[Segment, ...], steps: int) -> Iterator[Segment]:
    for segment in segments:
        length = length_of(segment.program)
        if length > steps:
            yield replace(segment, program=_cut(segment.program, steps))
            return
        yield segment
        steps -= length


def _cut(program: Program, steps: int) -> Program:
    """Return the operations of the first `steps` steps; a loop is cut behind a round."""
    kept: list[Operation] = []
    totals = [0]
    for operation in program.operations:
        done, left = totals[-1], steps - totals[-1]
        if isinstance(operation, Loop):
            body = done - totals[operation.start]
            rounds = min(operation.count - 1, left // body) if body else 0
            part: Operation = replace(operation, count=1 + rounds)
            length = body * rounds
        elif isinstance(operation, Stream):
            length = min(operation.stop - operation.start, left)
            part = replace(operation, stop=operation.start + length)
        else:
            part, length = operation, min(1, left)
        if not length and left == 0:
            break
        kept.append(part)
        totals.append(done + length)
    return replace(program, operations=tuple(kept))
