"""Instructions and events explained: what exits, and in which order faults and exits come."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Final

from vtx import sdm
from vtx.errors import UnknownName
from vtx.explanation.article import Article
from vtx.explanation.tables import upper_first
from vtx.facts.exiting import (
    BOUNDARY_PRIORITY,
    CHANGED,
    CONDITIONAL,
    EVENTS,
    UNCONDITIONAL,
    Exiting,
)
from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.instructions import FORMS, INSTRUCTIONS
from vtx.facts.lookup import canonical
from vtx.facts.vmx_instructions import OUTCOMES, VMX_INSTRUCTIONS, VmxInstruction

__all__ = ["event_articles", "instruction_articles"]

_SECTIONS: Final[Mapping[str, sdm.Section]] = {
    **dict.fromkeys(UNCONDITIONAL, sdm.INSTRUCTIONS_THAT_CAUSE_VM_EXITS_UNCONDITIONALLY),
    **dict.fromkeys(CONDITIONAL, sdm.INSTRUCTIONS_THAT_CAUSE_VM_EXITS_CONDITIONALLY),
    **dict.fromkeys(CHANGED, sdm.CHANGES_TO_INSTRUCTION_BEHAVIOR_IN_VMX_NON_ROOT_OPERATION),
}
_ROWS: Final[Mapping[str, Exiting]] = {**UNCONDITIONAL, **CONDITIONAL, **CHANGED}
#: What stands for any operand in a mnemonic: ``MOV CR3, r``.
_OPERAND = re.compile(r"\b(imm|r)\b")


def instruction_articles(what: str) -> list[Article]:
    """Explain the instruction called `what`.

    Raises
    ------
    UnknownName
        It is no instruction that non-root operation treats differently, nor one of VMX.
    """
    rows, vmx = _named().get(_key(what), ((), None))
    if not rows and vmx is None:
        near = get_close_matches(_key(what), _named(), n=3, cutoff=0.75)
        raise UnknownName("instruction", what, near or _named())
    return [_article(row, vmx) for row in rows] or [_vmx_only(vmx)]


def event_articles(what: str) -> list[Article]:
    """Explain the event called `what`: an exception, an interrupt, a timer, a page-walk event.

    Raises
    ------
    UnknownName
        There is no such event.
    """
    row = EVENTS.get(canonical(what))
    if row is None:
        raise UnknownName("event", what, EVENTS)
    facts = _decision(row)
    if row.priority:
        facts["Priority"] = f"{upper_first(row.priority)}."
        order = enumerate(BOUNDARY_PRIORITY, 1)
        facts["The order"] = "; ".join(f"{number}. {level}" for number, level in order)
    if row.blocked_in:
        facts["Blocked in"] = ", ".join(state.replace("_", " ") for state in row.blocked_in)
    return [
        Article(
            kind="event",
            name=row.name,
            number=row.reason,
            title=f"Event: {row.name.replace('_', ' ')}",
            summary=f"VM exit: {row.exits_if}.",
            facts=facts | _rules(row),
            sections=(sdm.OTHER_CAUSES_OF_VM_EXITS.citation,),
            related=_related(row),
        )
    ]


def _key(what: str) -> str:
    """Bring a name into the form of the table: ``MOV CR3, r`` and ``mov_cr3`` are the same."""
    return canonical(" ".join(what.replace(",", " ").split()))


@cache
def _named() -> dict[str, tuple[tuple[Exiting, ...], VmxInstruction | None]]:
    """Return what each name means: rows of the exit lists, and a row of the VMX reference."""
    rows: dict[str, dict[str, Exiting]] = {}
    for row in _ROWS.values():
        for name in (row.name, *map(_key, _mnemonics(row))):
            rows.setdefault(name, {})[row.name] = row
    vmx = {name.lower(): instruction for name, instruction in VMX_INSTRUCTIONS.items()}
    return {name: (tuple(rows.get(name, {}).values()), vmx.get(name)) for name in {*rows, *vmx}}


def _mnemonics(row: Exiting) -> Iterator[str]:
    """Yield the ways in which a reader may name the instructions of a row."""
    for written in row.instructions:
        yield written
        short = " ".join(_OPERAND.sub(" ", written.replace(",", " ")).split())
        yield short
        yield short.split()[0] if not short.startswith("MOV") else short.replace("DRn", "DR")


def _article(row: Exiting, vmx: VmxInstruction | None) -> Article:
    """Tell what decides, what comes first, and what happens otherwise."""
    names = ", ".join(row.instructions)
    facts = _decision(row)
    facts |= _rules(row)
    if vmx is not None:
        facts |= _conditions(vmx)
    facts |= _written(row)
    changed = row.name in CHANGED
    verb = "exits" if len(row.instructions) == 1 else "exit"
    return Article(
        kind="instruction",
        name=row.name,
        number=row.reason,
        title=f"{names}: {'changed without an exit' if changed else _title(row)}",
        summary=(
            f"In VMX non-root operation, without an exit: {row.exits_if}."
            if changed
            else f"In VMX non-root operation {names} {verb} {_condition(row)}."
        ),
        facts=facts,
        note=vmx.note if vmx is not None else "",
        sections=(
            _SECTIONS[row.name].citation,
            sdm.RELATIVE_PRIORITY_OF_FAULTS_AND_VM_EXITS.citation,
        ),
        related=_related(row),
    )


def _condition(row: Exiting) -> str:
    """Say when it exits, for the end of a sentence."""
    when = row.exits_if
    return when if when.startswith(("always", "never")) else f"if {when}"


def _title(row: Exiting) -> str:
    """Say how the exit is decided."""
    if row.name in UNCONDITIONAL:
        return "exits unconditionally"
    return "exits if the controls say so" if row.controls else "exits in some states"


def _vmx_only(vmx: VmxInstruction | None) -> Article:
    assert vmx is not None
    reason = vmx.reason
    return Article(
        kind="instruction",
        name=vmx.name.lower(),
        number=reason,
        title=f"{vmx.name}: a VMX instruction",
        summary=f"{vmx.name} ({vmx.operands}) tests these conditions; the first true one decides.",
        facts=_conditions(vmx),
        note=vmx.note,
        sections=(sdm.CONVENTIONS.citation,),
        related=() if reason is None else (EXITS[ExitReason(reason)].name,),
    )


def _decision(row: Exiting) -> dict[str, str]:
    """Give the exit reason, the controls, and the order of faults and the exit."""
    facts = {}
    if row.reason is not None:
        info = EXITS[ExitReason(row.reason)]
        facts["Exit reason"] = f"{row.reason} ({info.name}): {info.sdm_title}"
    if row.controls:
        facts["Decided by"] = ", ".join(row.controls)
    order = [*row.faults, *(["the VM exit"] if row.reason is not None else []), *row.beats]
    if len(order) > 1:
        facts["In order"] = ", then ".join(order)
    if row.otherwise:
        facts["Without an exit"] = f"{upper_first(row.otherwise)}."
    return facts


def _rules(row: Exiting) -> dict[str, str]:
    """Give the rules that go beyond the rest of the row."""
    if not row.rules:
        return {}
    return {"Also": " ".join(f"{upper_first(rule.rstrip('.'))}." for rule in row.rules)}


def _conditions(vmx: VmxInstruction) -> dict[str, str]:
    """Give the conditions numbered in the order in which they are tested."""
    facts = {"Machine code": f"{vmx.opcode}; operands: {vmx.operands}"}
    for number, step in enumerate(vmx.conditions, 1):
        note = f" ({step.note})" if step.note else ""
        facts[f"{number}."] = f"{upper_first(step.when)}: {step.outcome}{note}."
    facts["Otherwise"] = "; ".join(vmx.success)
    used = {word for step in vmx.conditions for word in re.findall(r"VM\w+", step.outcome)}
    for word in (*OUTCOMES,):
        if word in used:
            facts[word] = OUTCOMES[word]
    return facts


def _written(row: Exiting) -> dict[str, str]:
    """Show how a trace writes the instructions of a row."""
    forms = [
        form.syntax
        for listed in FORMS.values()
        for name, form in listed
        if name == row.name or INSTRUCTIONS[name].entry == row.name
    ]
    return {"In a trace": "; ".join(dict.fromkeys(forms))} if forms else {}


def _related(row: Exiting) -> tuple[str, ...]:
    """Name the exit reason and the controls and fields that decide."""
    reason = () if row.reason is None else (f"exit {EXITS[ExitReason(row.reason)].name}",)
    return (*reason, *(re.sub(r"_?\d\.\.\d$", "_0", control) for control in row.controls))
