"""Making the checks of VM entry on a VMCS that is known in part, on a CPU that is not known.

Every check is made all the same. One that asks for something that is not there is *undecidable*;
one that would answer differently on two CPUs, too. What has to be assumed is named, and where
another assumption would change the answer, both are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.controls import Proc1
from vtx.facts.fields import Field
from vtx.hypervisor.check_cpu import (
    Assumed,
    KnownMemory,
    Missing,
    SilentProcessor,
    known_vmcs,
    least,
    most,
)
from vtx.hypervisor.dumps.model import Dump
from vtx.machine.register_bits import Cr4
from vtx.rules.areas import SEGMENTS
from vtx.rules.check import CHECKS
from vtx.rules.declaration import Check, Stage

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = ["RANK", "Bench", "BrokenRule", "Outcome", "Undecidable", "judge_unknown"]

_ABOVE_4G = 1 << 32


@dataclass
class BrokenRule:
    """A rule that the VMCS breaks.

    Attributes
    ----------
    check : Check
        The rule.
    explains_verdict : bool or None
        Whether breaking it leads to what the processor said; None if it said nothing.
    hangs_on : list of str
        With what the rule would hold: assumptions that may be wrong.
    detail : str
        What else is to say about it here.
    """

    check: Check
    explains_verdict: bool | None = None
    hangs_on: list[str] = field(default_factory=list)
    detail: str = ""


@dataclass(frozen=True)
class Undecidable:
    """A rule that could not be judged.

    Attributes
    ----------
    check : Check
        The rule.
    needs : tuple of str
        What would have to be known.
    on_some_cpus : bool
        Everything else is known: there are CPUs that break the rule, and CPUs that do not.
    """

    check: Check
    needs: tuple[str, ...]
    on_some_cpus: bool = False


#: The manual's order.
RANK: dict[Check, int] = {check: rank for rank, check in enumerate(CHECKS.values())}
_ERROR_CODE, _NESTED = "IA32_VMX_BASIC[56]", "IA32_VMX_BASIC[58]"
_MAXPHYADDR, _LINEAR = "MAXPHYADDR", "linear-address width"


def _is_assumed(need: str) -> bool:
    return need.startswith((_MAXPHYADDR, _LINEAR, _ERROR_CODE, _NESTED))


def _is_judged(check: Check) -> bool:
    """Tell whether a check is on the VMCS, and made outside SMM."""
    stages = (Stage.CONTROLS_AND_HOST, Stage.GUEST)
    return check.area.stage in stages and not check.id.startswith("smm.")


class _Group(NamedTuple):
    """Checks that look at much the same fields, so that their answers are kept together."""

    checks: tuple[Check, ...]
    fields: tuple[Field, ...]


@cache
def _groups() -> tuple[_Group, ...]:
    """Return all checks, by section of the manual, and those of segments by segment."""
    by_topic: dict[tuple[str, str], list[Check]] = {}
    for check in CHECKS.values():
        if _is_judged(check):
            segment = check.id.split(".")[1] if check.area is SEGMENTS else ""
            by_topic.setdefault((check.section.number, segment), []).append(check)
    return tuple(
        _Group(tuple(checks), tuple({name for check in checks for name in check.reads}))
        for checks in by_topic.values()
    )


@cache
def _watched() -> dict[Field, int]:
    """Return for every field the bits that any check looks at."""
    masks: dict[Field, int] = {}
    for group in _groups():
        for check in group.checks:
            for name, mask in check.reads.items():
                masks[name] = masks.get(name, 0) | mask
    return masks


# ---- One VMCS, and processors to judge it by -----------------------------------------------


class Bench:
    """One VMCS with what is known of the processor that entered it.

    Parameters
    ----------
    dump : Dump
        What was read.
    """

    def __init__(self, dump: Dump) -> None:
        self.dump = dump
        self.vmcs: Vmcs = known_vmcs(dump.values)
        self.memory = KnownMemory(dump.memory)
        #: Whether the VMM runs in IA-32e mode; None if nothing tells.
        self.ia32e_mode = _vmm_is_64bit(dump)

    def processor(self, shape: Shape) -> Processor:
        """Return a processor of this shape; of its state it knows no more than the dump."""
        return SilentProcessor(shape, self.ia32e_mode, self.memory).as_processor()

    def holds(self, check: Check, processor: Processor) -> bool:
        """Make one check.

        Raises
        ------
        Missing
            It asks for what is not known.
        """
        if check.applies is not None and not check.applies(self.vmcs, processor):
            return True
        return check.holds(self.vmcs, processor)


def _vmm_is_64bit(dump: Dump) -> bool | None:
    """Tell whether the VMM runs in IA-32e mode: addresses of 64 bits say so.

    One alone may be what is wrong with the VMCS.
    """
    addresses = (
        Field.HOST_RIP, Field.HOST_RSP, Field.HOST_GDTR_BASE, Field.HOST_IDTR_BASE,
        Field.HOST_TR_BASE, Field.HOST_GS_BASE,
    )  # fmt: skip
    high = sum(dump.values.get(name, 0) >= _ABOVE_4G for name in addresses)
    return True if high > 1 else None


@dataclass
class Outcome:
    """What the checks say under one set of assumptions.

    Attributes
    ----------
    broken : list of BrokenRule
        In the manual's order.
    undecidable : list of Undecidable
        In the manual's order.
    otherwise : list of (Check, str)
        Rules that hold, and with what they would be broken.
    assumed : Assumed or None
        The assumptions; None if the CPU is known.
    """

    broken: list[BrokenRule]
    undecidable: list[Undecidable]
    otherwise: list[tuple[Check, str]]
    assumed: Assumed | None


class _Answers(NamedTuple):
    """What the checks of a group say about the same bits of the same fields."""

    broken: tuple[Check, ...]
    undecidable: tuple[Undecidable, ...]
    otherwise: tuple[tuple[Check, str], ...]


_NOTHING = _Answers((), (), ())
_MOST_ANSWERS = 1 << 14


class _Panel:
    """Two processors between which all CPUs lie (or one CPU), and what was learned on them.

    What a check says depends on the bits that it declares to look at; so VMCSs that have those in
    common, as thousands of one hypervisor have, are judged by one evaluation.

    Parameters
    ----------
    generous, strict : Shape
        The two CPUs; the same one if the CPU is known.
    narrow : Shape or None
        One with narrower physical addresses, if their width is assumed.
    """

    def __init__(self, generous: Shape, strict: Shape, narrow: Shape | None = None) -> None:
        self.generous = generous
        self.strict = strict
        self.narrow = narrow
        self._answers: dict[object, _Answers] = {}

    def judge(self, bench: Bench, assumed: Assumed | None) -> Outcome:
        """Make all checks."""
        broken: list[Check] = []
        undecidable: list[Undecidable] = []
        otherwise: list[tuple[Check, str]] = []
        whole = bench.dump.values.get
        answers = self._answers if not bench.dump.memory else {}
        if len(answers) > _MOST_ANSWERS:
            answers.clear()
        for number, group in enumerate(_groups()):
            # As they are, for VMCSs that have all of them in common; those that differ find one
            # another by the bits that matter.
            key = (number, bench.ia32e_mode, *map(whole, group.fields))
            answer = answers.get(key)
            if answer is None:
                answer = answers[key] = self._answer(bench, number, group, answers)
            if answer is not _NOTHING:
                broken += answer.broken
                undecidable += answer.undecidable
                otherwise += answer.otherwise
        return Outcome([BrokenRule(check) for check in broken], undecidable, otherwise, assumed)

    def _answer(
        self, bench: Bench, number: int, group: _Group, answers: dict[object, _Answers]
    ) -> _Answers:
        """Return what the checks of a group say, if need be by making them."""
        values, watched = bench.dump.values, _watched()
        bits = (values[name] & watched[name] if name in values else None for name in group.fields)
        key = ("bits", number, bench.ia32e_mode, *bits)
        answer = answers.get(key)
        if answer is None:
            answer = answers[key] = self._evaluate(bench, group)
        return answer

    def _evaluate(self, bench: Bench, group: _Group) -> _Answers:
        generous = bench.processor(self.generous)
        one = self.generous is self.strict
        strict = generous if one else bench.processor(self.strict)
        narrow = bench.processor(self.narrow) if self.narrow else None
        broken: list[Check] = []
        undecidable: list[Undecidable] = []
        otherwise: list[tuple[Check, str]] = []
        vmcs = bench.vmcs
        for check in group.checks:
            try:
                if check.applies is not None and not check.applies(vmcs, generous):
                    continue
                holds = check.holds(vmcs, generous)
                if not one and check.capability and check.holds(vmcs, strict) is not holds:
                    needs = tuple(need for need in check.capability if not _is_assumed(need))
                    undecidable.append(Undecidable(check, needs or check.capability, True))
                    continue
            except Missing as missing:
                undecidable.append(Undecidable(check, (missing.need,)))
                continue
            if not holds:
                broken.append(check)
            elif narrow and _MAXPHYADDR in check.capability and not bench.holds(check, narrow):
                otherwise.append((check, f"{_MAXPHYADDR} {narrow.shape.maxphyaddr}"))
        if not (broken or undecidable or otherwise):
            return _NOTHING
        return _Answers(tuple(broken), tuple(undecidable), tuple(otherwise))


@lru_cache(maxsize=64)
def _panel(assumed: Assumed, width_is_given: bool) -> _Panel:
    """Return the panel for a CPU of which only this is taken for granted."""
    narrow = None
    if not width_is_given and assumed.maxphyaddr > _LEAST_MAXPHYADDR:
        narrow = most(assumed._replace(maxphyaddr=_LEAST_MAXPHYADDR))
    return _Panel(most(assumed), least(assumed), narrow)


_panels: dict[int, _Panel] = {}


def _panel_of(shape: Shape) -> _Panel:
    """Return the panel of one known CPU."""
    panel = _panels.get(id(shape))
    if panel is None or panel.generous is not shape:
        panel = _panels[id(shape)] = _Panel(shape, shape)
    return panel


def judge_known(bench: Bench, shape: Shape) -> Outcome:
    """Make all checks for a known CPU."""
    return _panel_of(shape).judge(bench, None)


# ---- Assumptions ---------------------------------------------------------------------------

#: Other widths of physical addresses: of client CPUs, of recent server CPUs.
_OTHER_MAXPHYADDR = (39, 52)
_LEAST_MAXPHYADDR = _OTHER_MAXPHYADDR[0]


class _Alternative(NamedTuple):
    """Something that may be other than assumed: its name for users, and all assumptions with it."""

    words: str
    assumed: Assumed


def _alternatives(fixed: Mapping[str, int], assumed: Assumed) -> Iterator[_Alternative]:
    """Return what may be other than assumed; `fixed` is what the user or the input says."""
    if "maxphyaddr" not in fixed:
        for width in _OTHER_MAXPHYADDR:
            if width != assumed.maxphyaddr:
                yield _Alternative(f"MAXPHYADDR {width}", assumed._replace(maxphyaddr=width))
    if "linear_bits" not in fixed and assumed.linear_bits == 48:
        yield _Alternative("57-bit linear addresses", assumed._replace(linear_bits=57))
    if not assumed.any_error_code:
        yield _Alternative(f"{_ERROR_CODE} = 1", assumed._replace(any_error_code=True))
    if not assumed.nested_exception:
        yield _Alternative(f"{_NESTED} = 1", assumed._replace(nested_exception=True))


def _first_assumption(dump: Dump, fixed: Mapping[str, int]) -> Assumed:
    """Return what is assumed before the processor's verdict is looked at.

    CR4.LA57 is 1 on CPUs with 57-bit linear addresses only. All CPUs known to have tertiary
    controls report IA32_VMX_BASIC[56] as 1.
    """
    known = dump.values.get
    five_levels = (known(Field.HOST_CR4, 0) | known(Field.GUEST_CR4, 0)) & Cr4.LA57
    tertiary = known(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, 0) & Proc1.ACTIVATE_TERTIARY_CONTROLS
    default = Assumed()
    return Assumed(
        fixed.get("maxphyaddr", default.maxphyaddr),
        fixed.get("linear_bits", 57 if five_levels else default.linear_bits),
        any_error_code=bool(tertiary),
    )


def judge_unknown(bench: Bench, fixed: Mapping[str, int], passed: bool) -> Outcome:
    """Make all checks for a CPU that nobody has named.

    Parameters
    ----------
    bench : Bench
        The VMCS.
    fixed : mapping
        Those of ``maxphyaddr`` and ``linear_bits`` that are given.
    passed : bool
        The processor has accepted controls and host state. So an assumption under which one of
        those is broken is wrong if another one mends it.
    """
    assumed = _first_assumption(bench.dump, fixed)
    given = "maxphyaddr" in fixed
    outcome = _panel(assumed, given).judge(bench, assumed)
    if passed:
        while (better := _refuted(bench, outcome, list(_alternatives(fixed, assumed)))) is not None:
            assumed = better
            outcome = _panel(assumed, given).judge(bench, assumed)
    for rule in outcome.broken:
        if any(map(_is_assumed, rule.check.capability)):
            others = _alternatives(fixed, assumed)
            rule.hangs_on = [other.words for other in others if _mends(bench, rule.check, other)]
    return outcome


def _mends(bench: Bench, check: Check, other: _Alternative) -> bool:
    """Tell whether a broken rule would hold under another assumption."""
    if not any(map(_is_assumed, check.capability)):
        return False
    return bench.holds(check, bench.processor(most(other.assumed)))


def _refuted(bench: Bench, outcome: Outcome, alternatives: list[_Alternative]) -> Assumed | None:
    """Return a better assumption if the processor has accepted what this one forbids."""
    for rule in outcome.broken:
        if rule.check.area.stage is Stage.CONTROLS_AND_HOST:
            for other in alternatives:
                if _mends(bench, rule.check, other):
                    return other.assumed
    return None
