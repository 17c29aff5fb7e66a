"""The registry of VM-entry checks, and what VM entry does with it.

`CHECKS` holds every check by its id, in the manual's order. Three questions are asked of it:

* `entry_failure`: does this VM entry fail? Only the checks that can have changed their answer
  since the last successful entry are made: a check says which bits of which fields it looks at.
* `failing_checks`: which rules does this VMCS break, all of them?
* `check_msr_load`: may this entry of an MSR area be loaded?
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, NamedTuple, cast

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.rules import (
    areas,
    entry_basic,
    entry_controls_entry,
    entry_controls_ept,
    entry_controls_execution,
    entry_controls_exit,
    entry_event,
    entry_guest_access_rights,
    entry_guest_msrs,
    entry_guest_pdptes,
    entry_guest_pending,
    entry_guest_registers,
    entry_guest_rip,
    entry_guest_segments,
    entry_guest_state,
    entry_guest_tables,
    entry_host,
    entry_host_size,
    entry_msr_load,
    entry_smm,
)
from vtx.rules.declaration import Check, Consequence, Kind, Live, Stage
from vtx.rules.entry_msr_load import MSR_LOAD_RULES, MsrEntry
from vtx.rules.entry_smm import guest_as_returned_to, returns_from_smm

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = [
    "CHECKS",
    "Check",
    "Consequence",
    "Failure",
    "Kind",
    "Live",
    "Stage",
    "check_msr_load",
    "entry_failure",
    "failing_checks",
    "rip_judged",
]

#: The manual's order.
_MODULES = (
    entry_basic,
    entry_controls_execution,
    entry_controls_ept,
    entry_controls_exit,
    entry_controls_entry,
    entry_host,
    entry_host_size,
    entry_guest_registers,
    entry_guest_msrs,
    entry_guest_segments,
    entry_guest_access_rights,
    entry_guest_tables,
    entry_guest_rip,
    entry_guest_state,
    entry_guest_pending,
    entry_guest_pdptes,
    entry_msr_load,
    entry_event,
    entry_smm,
)

#: Every check by its id, in the manual's order.
CHECKS: dict[str, Check] = {
    check.id: check for module in _MODULES for check in module.check.declared
}

_RIP = Field.GUEST_RIP
_EFER, _RTIT_CTL = int(Msr.IA32_EFER), int(Msr.IA32_RTIT_CTL)
_EFER_LMA = 1 << 10


def _of_stage(stage: Stage) -> tuple[Check, ...]:
    return tuple(check for check in CHECKS.values() if check.area.stage is stage)


# What VM entry itself asks, in the order in which it asks.
_CONTROLS_AND_HOST, _GUEST = _of_stage(Stage.CONTROLS_AND_HOST), _of_stage(Stage.GUEST)
_AT_ENTRY = (*_CONTROLS_AND_HOST, *_GUEST)
_RANK = {check: rank for rank, check in enumerate(_AT_ENTRY)}
_FROM_MEMORY = tuple(check for check in _AT_ENTRY if Live.MEMORY in check.live)


class Failure(NamedTuple):
    """A failed VM entry.

    Attributes
    ----------
    check : Check
        The first rule that is broken.
    error : int or None
        VM-instruction error of VMfailValid: the entry did not begin to load guest state.
    reason : int or None
        Basic exit reason of an entry that fails while it loads guest state.
    qualification : int or None
        The exit qualification with it.
    """

    check: Check
    error: int | None
    reason: int | None
    qualification: int | None


def _failure(check: Check) -> Failure:
    consequence = check.consequence
    return Failure(check, consequence.error, consequence.reason, consequence.qualification)


# What must be checked again: by field, the bits that any check looks at, and the checks.


def _index() -> dict[int, tuple[int, tuple[tuple[int, Check], ...]]]:
    by_field: dict[int, list[tuple[int, Check]]] = {}
    for check in _AT_ENTRY:
        for field, mask in check.reads.items():
            by_field.setdefault(field, []).append((mask, check))
    return {
        field: (reduce(or_, (mask for mask, _ in readers)), tuple(readers))
        for field, readers in by_field.items()
    }


_READERS = _index()
_WATCHED = {field: watched for field, (watched, _) in _READERS.items()}


class _Judgement:
    """What is known of a VMCS that passed all checks.

    Attributes
    ----------
    shape : Shape
        The CPU it passed them on.
    lma, trace_enabled, pointer, in_seam
        The state of the logical processor that checks look at.
    values : dict of Field to int
        The fields that checks look at, as they were.
    from_memory : tuple of Check
        The checks that depend on memory for this VMCS.
    """

    __slots__ = ("from_memory", "in_seam", "lma", "pointer", "shape", "trace_enabled", "values")

    def __init__(self, vmcs: Vmcs, processor: Processor) -> None:
        values = vmcs.values
        msrs = processor.regs.msrs
        self.shape: Shape = processor.shape
        self.lma = msrs.get(_EFER, 0) & _EFER_LMA
        self.trace_enabled = msrs.get(_RTIT_CTL, 0) & 1
        self.pointer = processor.current_vmcs_pointer
        self.in_seam = processor.in_seam
        self.values: dict[int, int] = {field: values[field] for field in _READERS}
        self.from_memory = _memory_readers(vmcs, processor)

    def still_applies(self, processor: Processor) -> bool:
        """Tell whether nothing that checks look at has changed beside the VMCS and memory."""
        msrs = processor.regs.msrs
        return (
            self.shape is processor.shape
            and self.pointer == processor.current_vmcs_pointer
            and self.lma == msrs.get(_EFER, 0) & _EFER_LMA
            and self.trace_enabled == msrs.get(_RTIT_CTL, 0) & 1
            and self.in_seam == processor.in_seam
        )


def _memory_readers(vmcs: Vmcs, processor: Processor) -> tuple[Check, ...]:
    return tuple(
        check for check in _FROM_MEMORY if check.applies is None or check.applies(vmcs, processor)
    )


class _Snapshot(dict[int, int]):
    """The fields of a VMCS at one moment, with its control words: quick to read many times."""

    __slots__ = ("entry", "exit1", "exit2", "pin", "proc1", "proc2", "proc3", "vm_functions")

    def __init__(self, vmcs: Vmcs) -> None:
        super().__init__(vmcs.values)
        for name in self.__slots__:
            setattr(self, name, getattr(vmcs, name))


def _snapshot(vmcs: Vmcs) -> Vmcs:
    """Return what reads like `vmcs`, for the many checks in a row that only read."""
    return cast("Vmcs", _Snapshot(vmcs))


def entry_failure(vmcs: Vmcs, processor: Processor) -> Failure | None:
    """Check controls, host state and guest state as VM entry does.

    Parameters
    ----------
    vmcs : Vmcs
        The current VMCS. What is learned about it is kept there, for the next entry.
    processor : Processor
        Who executes VMLAUNCH or VMRESUME.

    Returns
    -------
    Failure or None
        The first broken rule in the manual's order (the processor is free in its choice among
        controls and host state, and among guest state); None if the entry may go on to load MSRs.
    """
    if processor.smm:
        return next(map(_failure, _failing_at_entry(vmcs, processor)), None)
    judged = vmcs.judged
    if type(judged) is not _Judgement or not judged.still_applies(processor):
        broken = next(_failing_at_entry(vmcs, processor), None)
        if broken is not None:
            return _failure(broken)
        vmcs.judged = _Judgement(vmcs, processor)
        return None
    values, known = vmcs.values, judged.values
    for field in vmcs.dirty:
        watched = _WATCHED.get(field)
        if watched and (values[field] ^ known[field]) & watched:
            return _check_again(vmcs, processor, judged, _stale_checks(vmcs, judged))
    if judged.from_memory:
        return _check_again(vmcs, processor, judged, set())
    return None


def rip_judged(vmcs: Vmcs, processor: Processor) -> tuple[int, int] | None:
    """Return what lets an entry pass all checks again if only RIP is written before it.

    Parameters
    ----------
    vmcs : Vmcs
        The current VMCS, right after a VM exit.
    processor : Processor

    Returns
    -------
    tuple of int, or None
        The RIP that passed, and its bits that checks look at; None if more could have changed.
    """
    judged = vmcs.judged
    if processor.smm or type(judged) is not _Judgement or judged.from_memory:
        return None
    if not judged.still_applies(processor):
        return None
    return judged.values.get(_RIP, 0), _WATCHED.get(_RIP, 0)


def _stale_checks(vmcs: Vmcs, judged: _Judgement) -> set[Check]:
    """Return the checks whose fields have changed in a bit that they look at."""
    stale: set[Check] = set()
    values, known, readers = vmcs.values, judged.values, _READERS
    for field in vmcs.dirty:
        entry = readers.get(field)
        if entry is None:
            continue
        changed = values[field] ^ known[field]
        if changed & entry[0]:
            stale.update(check for mask, check in entry[1] if changed & mask)
    return stale


def _check_again(
    vmcs: Vmcs, processor: Processor, judged: _Judgement, stale: set[Check]
) -> Failure | None:
    """Make the stale checks and those that depend on memory; remember the VMCS if they hold."""
    for check in sorted(stale.union(judged.from_memory), key=_RANK.__getitem__):
        if not check.holds(vmcs, processor):
            return _failure(check)
    if stale:
        values, known = vmcs.values, judged.values
        for field in vmcs.dirty:
            if field in known:
                known[field] = values[field]
        if not stale.isdisjoint(_FROM_MEMORY):
            judged.from_memory = _memory_readers(vmcs, processor)
    return None


# All broken rules.


def _failing_at_entry(vmcs: Vmcs, processor: Processor) -> Iterator[Check]:
    """Return the broken rules on controls, host and guest state, in the order of VM entry."""
    returning = returns_from_smm(vmcs, processor)
    snapshot = _snapshot(vmcs)
    for check in _CONTROLS_AND_HOST:
        if not (returning and _is_replaced(check)) and not check.holds(snapshot, processor):
            yield check
    if returning:
        snapshot = _snapshot(guest_as_returned_to(vmcs, processor))
    for check in _GUEST:
        if not check.holds(snapshot, processor):
            yield check


def _is_replaced(check: Check) -> bool:
    """Tell whether VM entries that return from SMM make another check instead of this one."""
    return check.area is areas.EXECUTION_CONTROLS or check.id == "ctl.exit.save_preemption_timer"


def failing_checks(vmcs: Vmcs, processor: Processor) -> list[Check]:
    """Return every rule that a VMCS breaks, in the manual's order.

    Those on controls, host and guest state, and those on the entries of the VM-entry MSR-load area.

    Parameters
    ----------
    vmcs : Vmcs
        What to judge; nothing in it changes.
    processor : Processor
        The CPU and the state in which VM entry would happen.
    """
    failing = list(_failing_at_entry(vmcs, processor))
    failing += [check for check, _ in MSR_LOAD_RULES if not check.holds(vmcs, processor)]
    return failing


def check_msr_load(processor: Processor, index: int, msr: int, value: int) -> Check | None:
    """Return the rule that an entry of an MSR-load area breaks, None if it may be loaded.

    Parameters
    ----------
    processor : Processor
        After guest state has been loaded (after host state, for the VM-exit area).
    index : int
        Number of the entry, from 1: the exit qualification if it fails.
    msr : int
        Bits 63:0 of the entry: the MSR's address, and the bits 63:32 that must be 0.
    value : int
        Bits 127:64 of the entry.
    """
    del index
    entry = MsrEntry(msr, value)
    for check, rule in MSR_LOAD_RULES:
        if not rule(entry, processor):
            return check
    return None
