"""VM-entry checks explained."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from vtx.errors import UnknownName
from vtx.explanation.article import Article
from vtx.explanation.causes import cause_of
from vtx.explanation.tables import upper_first
from vtx.facts.controls import GROUPS
from vtx.facts.fields import Field, mask
from vtx.facts.lookup import canonical
from vtx.rules.check import CHECKS
from vtx.rules.declaration import Check, Kind, Stage
from vtx.rules.unreachable import WITHOUT_CHECK, WithoutCheck

__all__ = ["check_articles"]

_STAGES: Final[Mapping[Stage, str]] = {
    Stage.INSTRUCTION: "by VMLAUNCH and VMRESUME themselves, before anything of the VMCS",
    Stage.CONTROLS_AND_HOST: "with the controls and the host state, before any guest state is "
    "looked at; in any order among themselves",
    Stage.GUEST: "with the guest state, after controls and host state have passed; in any order "
    "among themselves",
    Stage.MSR_LOAD: "for each entry of the VM-entry MSR-load area, after the guest state is loaded",
    Stage.EVENT: "when the entry has begun to load state",
}
_AFTERWARDS: Final[Mapping[Kind, str]] = {
    Kind.FAULT: "The instruction faults; the VMCS stays as it is.",
    Kind.VMFAIL_INVALID: "Execution goes on with the next instruction, RFLAGS.CF set; there is no "
    "VMCS to write a number to.",
    Kind.VMFAIL_VALID: "Execution goes on with the next instruction, RFLAGS.ZF set; the number is "
    "in vm_instruction_error.",
    Kind.ENTRY_FAILURE: "The host state is loaded as by a VM exit, with bit 31 of the exit reason "
    "set; guest state and launch state stay as they are.",
    Kind.VM_EXIT: "",
}
_MOST = 40


def check_articles(what: str) -> list[Article]:
    """Explain the VM-entry checks whose id is `what`, begins with it or ends with it.

    Raises
    ------
    UnknownName
        No check has such an id.
    """
    wanted = what.strip().lower()
    if not wanted:
        raise UnknownName("VM-entry check", what, CHECKS)
    if wanted in WITHOUT_CHECK:
        return [_without(wanted, WITHOUT_CHECK[wanted])]
    exact = [check for check in CHECKS.values() if canonical(check.id) == canonical(wanted)]
    ending = [check for check in CHECKS.values() if check.id.endswith(f".{wanted}")]
    beginning = [c for c in CHECKS.values() if c.id.startswith(wanted.rstrip(".") + ".")]
    found = exact or ending
    if len(found) == 1:
        return [_article(found[0])]
    group = found or beginning
    if not group:
        near = get_close_matches(wanted, CHECKS, n=3, cutoff=0.75)
        raise UnknownName("VM-entry check", what, near or CHECKS)
    return [_group(wanted, group)]


def _article(check: Check) -> Article:
    """Tell what one check demands, when, of what, and what a failure looks like."""
    consequence = check.consequence
    facts = {
        "Otherwise": f"{consequence}. {_AFTERWARDS[consequence.kind]}".rstrip(),
        "Checked": _STAGES[check.area.stage],
    }
    if check.reads:
        facts["Looks at"] = "; ".join(
            _read(field, bits) for field, bits in sorted(check.reads.items())
        )
    if check.live:
        facts["And at"] = "; ".join(sorted(live.value for live in check.live))
    if check.capability:
        facts["Depends on"] = ", ".join(check.capability) + " of the CPU"
    cause = cause_of(check)
    if cause:
        facts["Likely cause"] = f"{upper_first(cause.rstrip('.'))}."
    return Article(
        kind="check",
        name=check.id,
        number=None,
        title=f"VM-entry check {check.id}",
        summary=check.rule,
        facts=facts,
        note=check.note or "",
        sections=(check.section.citation,),
        related=_related(check),
    )


def _read(field: Field, bits: int) -> str:
    """Name a field; if only some of its bits matter, name those."""
    name = field._name_.lower()
    if bits == mask(field):
        return name
    group = next((group for group in GROUPS.values() if group.field == field), None)
    if group is not None:
        names = [info.name for info in group.controls if bits & int(info.control)]
        return f"{name} ({', '.join(names)})"
    return f"{name} (bits {_ranges(bits)})"


def _ranges(bits: int) -> str:
    """Write a mask as the manual does: ``31:17, 15``."""
    parts = []
    while bits:
        high = bits.bit_length() - 1
        low = high
        while low and bits >> (low - 1) & 1:
            low -= 1
        parts.append(str(high) if high == low else f"{high}:{low}")
        bits &= (1 << low) - 1
    return ", ".join(parts)


def _related(check: Check) -> tuple[str, ...]:
    """Name the error or exit reason it ends in, and the fields it looks at."""
    consequence = check.consequence
    names = []
    if consequence.error is not None:
        names.append(f"error {consequence.error}")
    if consequence.reason is not None:
        names.append(f"exit {consequence.reason}")
    return (*names, *(field._name_.lower() for field in sorted(check.reads)))


def _group(what: str, checks: list[Check]) -> Article:
    """List several checks with their rules."""
    rest = len(checks) - _MOST
    sections = dict.fromkeys(check.section.citation for check in checks)
    return Article(
        kind="check",
        name=what,
        number=None,
        title=f"{len(checks)} VM-entry checks of {what}",
        summary="Every one has an article of its own under its name.",
        facts={check.id: check.rule for check in checks[:_MOST]},
        note=f"{rest} more: give more of the name." if rest > 0 else "",
        sections=tuple(sections)[:3],
    )


def _without(id: str, rule: WithoutCheck) -> Article:
    """Tell of a rule that no VMCS can break."""
    return Article(
        kind="check",
        name=id,
        number=None,
        title=f"VM-entry rule {id}",
        summary=rule.rule,
        facts={"No check": f"{upper_first(rule.reason)}."},
        sections=(rule.section.citation,),
    )
