"""How a VM-entry check is written down.

A check is a small function under a module's :class:`Checks`, named for *what must hold*; its
docstring is the rule in one sentence. The decorator says which fields the function looks at, bit by
bit where only some bits matter: from that, :mod:`vtx.rules.check` knows which checks a VMWRITE can
have changed.
The *area* a check belongs to (:mod:`vtx.rules.areas`) fixes the section of the manual and the
consequence of a failure, so that a check cannot report a wrong code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.controls import GROUPS, control_info
from vtx.facts.fields import Field, mask

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs
    from vtx.sdm import Section

__all__ = [
    "Area",
    "Check",
    "Checks",
    "Consequence",
    "Guard",
    "Kind",
    "Live",
    "Part",
    "Predicate",
    "Read",
    "Stage",
    "only",
]

Predicate = Callable[["Vmcs", "Processor"], bool]
Guard = Callable[["Vmcs", "Processor"], bool]


class Stage(IntEnum):
    """Steps of VM entry at which checks are made, in the manual's order."""

    INSTRUCTION = 0
    """By VMLAUNCH and VMRESUME themselves, in a fixed order (:mod:`vtx.cpu`)."""
    CONTROLS_AND_HOST = 1
    """Controls and host state: VMfailValid; in any order among themselves."""
    GUEST = 2
    """Guest state: a failed entry with exit reason 33; in any order among themselves."""
    MSR_LOAD = 3
    """The VM-entry MSR-load area, entry by entry: exit reason 34."""
    EVENT = 4
    """Events that end an entry which has begun to load state: exit reason 41."""


class Kind(Enum):
    """What a failed check leads to."""

    FAULT = "fault"
    VM_EXIT = "VM exit"
    VMFAIL_INVALID = "VMfailInvalid"
    VMFAIL_VALID = "VMfailValid"
    ENTRY_FAILURE = "VM-entry failure"


class Consequence(NamedTuple):
    """What the processor does when a check fails.

    Attributes
    ----------
    kind : Kind
        Fault, VMfail, ordinary VM exit or failed entry.
    error : int or None
        VM-instruction error number of VMfailValid.
    reason : int or None
        Basic exit reason; of an entry failure it is reported with bit 31 set.
    qualification : int or None
        Exit qualification; None where it is not a constant, or not defined.
    vector : str or None
        The fault.
    """

    kind: Kind
    error: int | None = None
    reason: int | None = None
    qualification: int | None = None
    vector: str | None = None

    def __str__(self) -> str:
        if self.kind is Kind.FAULT:
            return self.vector or "fault"
        if self.kind is Kind.VMFAIL_INVALID:
            return "VMfailInvalid"
        if self.kind is Kind.VMFAIL_VALID:
            return f"VMfailValid, VM-instruction error {self.error}"
        if self.kind is Kind.VM_EXIT:
            return "an ordinary VM exit"
        text = f"VM-entry failure, exit reason {self.reason}"
        if self.qualification is not None:
            return f"{text}, exit qualification {self.qualification}"
        return text


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """A group of checks with one section and one consequence.

    Parameters
    ----------
    section : Section
        Where the manual states the rules.
    stage : Stage
        When they are checked.
    consequence : Consequence
        What a failure leads to.
    """

    section: Section
    stage: Stage
    consequence: Consequence


class Live(Enum):
    """State outside the VMCS that a check may look at."""

    EFER_LMA = "IA32_EFER.LMA of the logical processor"
    RTIT_CTL = "IA32_RTIT_CTL of the logical processor"
    SEAM = "whether the logical processor is in SEAM"
    SMM = "whether the logical processor is in SMM"
    CURRENT_VMCS = "the current-VMCS pointer"
    VMXON_POINTER = "the VMXON pointer"
    REGISTERS = "registers of the logical processor"
    PENDING = "events that are pending"
    MEMORY = "memory"


class Part(NamedTuple):
    """Some bits of a VMCS field."""

    field: Field
    mask: int


#: What a check may say that it reads: a field, bits of one, or a control.
Read = Field | Part | IntEnum


def only(field: Field, bits: int) -> Part:
    """Say that a check looks at the bits `bits` (a mask) of `field` only."""
    return Part(field, int(bits))


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One rule that VM entry checks.

    Attributes
    ----------
    id : str
        Stable name: ``"guest.rflags.if.external_interrupt"``.
    area : Area
        Section and consequence.
    title : str
        What must hold, in a few words.
    rule : str
        The rule as a sentence.
    reads : dict of Field to int
        The fields it looks at, each with the mask of the bits that can matter.
    holds : callable
        ``holds(vmcs, processor)`` tells whether the rule is kept.
    applies : callable or None
        For a check that looks at memory: whether it does so for this VMCS.
    live : frozenset of Live
        State outside the VMCS that it looks at.
    capability : tuple of str
        What it depends on that the CPU fixes: capability MSRs, address widths, CPUID features.
    note : str or None
        Where sources disagree, or what else is worth knowing.
    cause : str or None
        What most often breaks the rule in practice.
    """

    id: str
    area: Area
    title: str
    rule: str
    reads: dict[Field, int]
    holds: Predicate
    applies: Guard | None = None
    live: frozenset[Live] = frozenset()
    capability: tuple[str, ...] = ()
    note: str | None = None
    cause: str | None = None

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields it looks at."""
        return tuple(self.reads)

    @property
    def section(self) -> Section:
        """Where the manual states the rule."""
        return self.area.section

    @property
    def consequence(self) -> Consequence:
        """What a failure leads to."""
        return self.area.consequence

    def __repr__(self) -> str:
        return f"<Check {self.id}>"


def _add_control(reads: dict[Field, int], control: IntEnum) -> None:
    """Add what decides a control: its bit, and the controls that activate its group."""
    info = control_info(control)
    group = GROUPS[info.group]
    reads[group.field] = reads.get(group.field, 0) | control
    if group.activated_by is not None:
        key, _, name = group.activated_by.partition(".")
        _add_control(reads, GROUPS[key].members[name.upper()])


def _masks(reads: tuple[Read, ...]) -> dict[Field, int]:
    """Turn what a check declares into a mask for each field."""
    masks: dict[Field, int] = {}
    for read in reads:
        if isinstance(read, Part):
            masks[read.field] = masks.get(read.field, 0) | read.mask & mask(read.field)
        elif isinstance(read, Field):
            masks[read] = mask(read)
        else:
            _add_control(masks, read)
    return masks


class Checks:
    """The checks of one module, in the order in which they are declared there.

    An instance is the decorator that declares one: ``@check(id, area, *reads)``.
    """

    def __init__(self) -> None:
        self.declared: list[Check] = []

    def __call__(
        self,
        id: str,
        area: Area,
        *reads: Read,
        title: str | None = None,
        rule: str | None = None,
        applies: Guard | None = None,
        live: tuple[Live, ...] = (),
        capability: tuple[str, ...] = (),
        note: str | None = None,
        cause: str | None = None,
    ) -> Callable[[Predicate], Predicate]:
        """Declare the decorated function to be a VM-entry check.

        Parameters
        ----------
        id : str
            Name of the check.
        area : Area
            Where it belongs.
        *reads : Field, Part or control
            Everything in the VMCS that it looks at. A control stands for its bit together with the
            control that activates its group.
        title, rule : str, optional
            For functions made by a loop over alike fields; otherwise the function's name and
            docstring say it.
        applies, live, capability, note, cause : optional
            As in :class:`Check`.
        """

        def declare(function: Predicate) -> Predicate:
            name = title or function.__name__.replace("_", " ")
            text = rule or function.__doc__
            assert text, f"{id} does not state its rule"
            function.__doc__ = text
            self.declared.append(
                Check(
                    id=id,
                    area=area,
                    title=name,
                    rule=" ".join(text.split()),
                    reads=_masks(reads),
                    holds=function,
                    applies=applies,
                    live=frozenset(live),
                    capability=capability,
                    note=note,
                    cause=cause,
                )
            )
            return function

        return declare
