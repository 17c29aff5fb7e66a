"""Judging the VMCS of a dump: the processor's verdict, the broken rules, what is unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.check_cpu import Assumed, Missing, most, with_widths
from vtx.hypervisor.check_evaluation import (
    RANK,
    Bench,
    BrokenRule,
    Outcome,
    Undecidable,
    judge_known,
    judge_unknown,
)
from vtx.hypervisor.dumps.model import Dump, MsrEntry, Verdict
from vtx.machine.shape import Shape
from vtx.rules.check import CHECKS
from vtx.rules.declaration import Check, Kind, Stage
from vtx.rules.entry_msr_load import MSR_LOAD_RULES
from vtx.rules.entry_msr_load import MsrEntry as LoadedEntry

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["BrokenRule", "Cpu", "Judgement", "Undecidable", "is_settled", "judge"]

_GUEST_STATE, _MSR_LOADING, _MACHINE_CHECK = 33, 34, 41
_FAILED_ENTRY = _VALID = 1 << 31


class Cpu(NamedTuple):
    """What the user says of the CPU.

    Attributes
    ----------
    profile : str or None
        CPU profile, by name or file.
    maxphyaddr, linear_bits : int or None
        Address widths; they go before those of the profile.
    """

    profile: str | None = None
    maxphyaddr: int | None = None
    linear_bits: int | None = None


@dataclass
class Judgement:
    """What is to say about one dump.

    Attributes
    ----------
    dump : Dump
        What was judged.
    verdict : Verdict
        What the processor said; if it said nothing, what the broken rules lead to.
    verdict_source : str
        ``"dump"``, or ``"rules"`` if the verdict follows from the broken rules.
    failures : list of BrokenRule
        Those that explain the verdict first.
    undecidable : list of Undecidable
        In the manual's order.
    otherwise : list of (Check, str)
        Rules that hold under the assumptions, and with what they would not.
    assumed : dict
        Assumptions by name.
    profile : str or None
        The CPU profile that was asked.
    """

    dump: Dump
    verdict: Verdict
    verdict_source: str
    failures: list[BrokenRule]
    undecidable: list[Undecidable]
    otherwise: list[tuple[Check, str]]
    assumed: dict[str, int]
    profile: str | None

    @property
    def suspects(self) -> list[Check]:
        """Rules that the VMCS breaks on some CPUs, and that would explain the verdict."""
        return [
            rule.check
            for rule in self.undecidable
            if rule.on_some_cpus
            and not self.is_settled(rule)
            and _explains(rule.check, self.verdict)
        ]

    def is_settled(self, rule: Undecidable) -> bool:
        """Tell whether the processor has gone past a check, so that the rule holds on that CPU."""
        return is_settled(rule, self.dump.verdict)


def is_settled(rule: Undecidable, verdict: Verdict) -> bool:
    """Tell whether a processor that said this has gone past a check."""
    return _has_passed(verdict, rule.check.area.stage)


def judge(dump: Dump, cpu: Cpu | None = None) -> Judgement:
    """Judge the VMCS of a dump.

    Parameters
    ----------
    dump : Dump
        What was read.
    cpu : Cpu, optional
        What is known of the CPU.

    Raises
    ------
    InputError
        There is no such profile, or it is wrong.
    """
    cpu = cpu or Cpu()
    profile = cpu.profile or dump.profile
    fixed = _widths(dump, cpu)
    bench = Bench(dump)
    if profile is not None:
        outcome = judge_known(bench, _profiled(profile, fixed))
    else:
        outcome = judge_unknown(bench, fixed, _has_passed(dump.verdict, Stage.CONTROLS_AND_HOST))
    if dump.tangled:
        _untangle(dump, outcome)
    _judge_msr_load(bench, outcome)
    _add_what_the_verdict_shows(dump.verdict, outcome)
    verdict, source = _verdict(dump.verdict, outcome.broken)
    if source == "dump" and verdict.kind in ("entry_failure", "vmfail_valid"):
        for broken in outcome.broken:
            broken.explains_verdict = _explains(broken.check, verdict)
        outcome.broken.sort(key=lambda broken: not broken.explains_verdict)
    assumed = _assumptions(bench, outcome.assumed, fixed)
    return Judgement(
        dump,
        verdict,
        source,
        outcome.broken,
        outcome.undecidable,
        outcome.otherwise,
        assumed,
        profile,
    )


# ---- The CPU -------------------------------------------------------------------------------


def _widths(dump: Dump, cpu: Cpu) -> dict[str, int]:
    """Return the address widths that somebody has given."""
    widths = {
        "maxphyaddr": cpu.maxphyaddr or dump.maxphyaddr,
        "linear_bits": cpu.linear_bits or dump.linear_bits,
    }
    return {name: value for name, value in widths.items() if value is not None}


_shapes: dict[str, Shape] = {}
_shapes_by_width: dict[tuple[str, int, int], Shape] = {}


def _profiled(profile: str, fixed: dict[str, int]) -> Shape:
    """Return the shape of a profile, with other address widths where they are given."""
    shape = _shapes.get(profile)
    if shape is None:
        shape = _shapes[profile] = Shape.of(profile)
    widths = (
        fixed.get("maxphyaddr", shape.maxphyaddr),
        fixed.get("linear_bits", shape.linear_bits),
    )
    key = (profile, *widths)
    if key not in _shapes_by_width:
        _shapes_by_width[key] = with_widths(shape, *widths)
    return _shapes_by_width[key]


def _assumptions(bench: Bench, assumed: Assumed | None, fixed: dict[str, int]) -> dict[str, int]:
    """Return by name what was assumed and not given."""
    names: dict[str, int] = {}
    if assumed is not None:
        for name in ("maxphyaddr", "linear_bits"):
            if name not in fixed:
                names[name] = getattr(assumed, name)
        if bench.dump.values.get(Field.VM_ENTRY_INTERRUPTION_INFORMATION, 0) & _VALID:
            names["ia32_vmx_basic.56"] = int(assumed.any_error_code)
            names["ia32_vmx_basic.58"] = int(assumed.nested_exception)
    if bench.ia32e_mode is not None:
        names["ia32_efer.lma"] = int(bench.ia32e_mode)
    names["smm"] = 0
    return names


# ---- What the processor said ---------------------------------------------------------------


def _has_passed(verdict: Verdict, stage: Stage) -> bool:
    """Tell whether the processor got past a stage of checks."""
    if verdict.kind != "entry_failure":
        return False
    if stage <= Stage.CONTROLS_AND_HOST:
        return True
    return stage is Stage.GUEST and verdict.basic_reason != _GUEST_STATE


def _has_failed_before(verdict: Verdict, stage: Stage) -> bool:
    """Tell whether the processor never came to a stage of checks."""
    if verdict.kind == "vmfail_valid":
        return stage > Stage.CONTROLS_AND_HOST
    return (
        verdict.kind == "entry_failure"
        and verdict.basic_reason == _GUEST_STATE
        and stage > Stage.GUEST
    )


def _explains(check: Check, verdict: Verdict) -> bool:
    """Tell whether breaking a rule leads to a verdict."""
    consequence = check.consequence
    if verdict.kind == "vmfail_valid":
        return consequence.error == verdict.error
    if consequence.kind is not Kind.ENTRY_FAILURE or consequence.reason != verdict.basic_reason:
        return False
    return None in (consequence.qualification, verdict.qualification) or (
        consequence.qualification == verdict.qualification
    )


def _verdict(shown: Verdict, broken: list[BrokenRule]) -> tuple[Verdict, str]:
    """Return the verdict and where it is from.

    A failed entry is what the dump shows. VMfail leaves the exit fields as they were: without the
    error number beside the dump, what broken rules lead to says more than an older exit.
    """
    if shown.kind in ("entry_failure", "vmfail_valid") or not broken:
        return shown, "dump"
    first = min(broken, key=lambda rule: RANK[rule.check]).check.consequence
    if first.kind is Kind.VMFAIL_VALID:
        return Verdict("vmfail_valid", first.error), "rules"
    reason = _FAILED_ENTRY | (first.reason or _GUEST_STATE)
    return Verdict("entry_failure", None, reason, first.qualification), "rules"


_SHOWN_BY_VERDICT = tuple(
    check
    for check in CHECKS.values()
    if check.area.stage in (Stage.INSTRUCTION, Stage.EVENT)
    and check.consequence.kind in (Kind.VMFAIL_VALID, Kind.ENTRY_FAILURE)
)


def _add_what_the_verdict_shows(verdict: Verdict, outcome: Outcome) -> None:
    """Add rules that the processor's verdict alone shows to be broken.

    Launch state and blocking by MOV SS have VM-instruction errors of their own, and a machine
    check an exit reason; the VMCS does not show them.
    """
    if verdict.kind not in ("vmfail_valid", "entry_failure"):
        return
    shown = [check for check in _SHOWN_BY_VERDICT if _explains(check, verdict)]
    if len(shown) == 1:
        outcome.broken.append(BrokenRule(shown[0], detail="the processor's verdict shows it"))


# ---- Lines of two dumps --------------------------------------------------------------------


def _untangle(dump: Dump, outcome: Outcome) -> None:
    """Keep only what one line shows: two lines may belong to different VMCSs."""
    certain: list[BrokenRule] = []
    doubtful: list[BrokenRule] = []
    for rule in outcome.broken:
        lines = {dump.lines[name] for name in rule.check.fields if name in dump.lines}
        (certain if len(lines) == 1 else doubtful).append(rule)
    need = ("lines that surely belong to one dump",)
    outcome.broken = certain
    outcome.undecidable += [Undecidable(rule.check, need) for rule in doubtful]
    outcome.undecidable.sort(key=lambda rule: RANK[rule.check])


# ---- The VM-entry MSR-load area ------------------------------------------------------------

#: Rules about which MSRs a model refuses: only the processor itself can tell.
_OF_THE_MODEL = "msrload.model_specific"
_WRMSR = "msrload.wrmsr_would_fault"
_MSR = 0xFFFF_FFFF
#: As many entries as IA32_VMX_MISC[27:25] can recommend to have at most.
_MOST_ENTRIES = 4096


def _judge_msr_load(bench: Bench, outcome: Outcome) -> None:
    """Judge the entries of the VM-entry MSR-load area that the input shows."""
    dump = bench.dump
    entries, need = dump.msr_load, ""
    if not entries:
        try:
            entries = _entries_in_memory(bench)
        except Missing as missing:
            need = missing.need
    if need and not _has_failed_before(dump.verdict, Stage.MSR_LOAD):
        rules = (check for check, _ in MSR_LOAD_RULES if check.id != _OF_THE_MODEL)
        outcome.undecidable += [Undecidable(check, (need,)) for check in rules]
    failed = _failed_entry(dump)
    processor = bench.processor(most(outcome.assumed or Assumed()))
    for entry in entries:
        name = _msr_name(entry.msr & _MSR)
        detail = f"the entry for {name} with the value {entry.value:#018x}"
        broken = _broken_entry_rule(LoadedEntry(entry.msr, entry.value), processor)
        if broken is not None:
            outcome.broken.append(BrokenRule(broken, detail=detail))
        elif entry is failed:
            refused = BrokenRule(CHECKS[_WRMSR], detail=f"the processor refused {detail}")
            outcome.broken.append(refused)


def _entries_in_memory(bench: Bench) -> list[MsrEntry]:
    """Read the whole area (raises Missing)."""
    count = bench.vmcs[Field.VM_ENTRY_MSR_LOAD_COUNT]
    if not count:
        return []
    start = bench.vmcs[Field.VM_ENTRY_MSR_LOAD_ADDRESS]
    area = bench.memory.read(start, 16 * min(count, _MOST_ENTRIES))
    return [
        MsrEntry(at // 16, *(int.from_bytes(area[at + n : at + n + 8], "little") for n in (0, 8)))
        for at in range(0, len(area), 16)
    ]


def _failed_entry(dump: Dump) -> MsrEntry | None:
    """Return the entry that the processor refused, if it did and the dump shows it."""
    verdict = dump.verdict
    if verdict.kind != "entry_failure" or verdict.basic_reason != _MSR_LOADING:
        return None
    for entry in dump.msr_load:
        if entry.position < 0 or entry.position + 1 == verdict.qualification:
            return entry
    return None


def _broken_entry_rule(entry: LoadedEntry, processor: Processor) -> Check | None:
    """Return the rule that an entry surely breaks; of an MSR nobody knows, WRMSR says nothing."""
    for check, rule in MSR_LOAD_RULES:
        if check.id == _OF_THE_MODEL or (check.id == _WRMSR and not _is_known(entry.msr)):
            continue
        try:
            if not rule(entry, processor):
                return check
        except Missing:
            continue
    return None


def _is_known(msr: int) -> bool:
    return msr in Msr.__members__.values()


def _msr_name(msr: int) -> str:
    return f"{Msr(msr).name} ({msr:#x})" if _is_known(msr) else f"MSR {msr:#x}"
