"""Exit reasons explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtx import sdm
from vtx.explanation.article import Article, BitTable
from vtx.explanation.tables import layout_table, upper_first
from vtx.facts.exits import (
    EXITS,
    OTHER_NAMES,
    ExitInfo,
    ExitKind,
    Filled,
    find_exit_reason,
    kvm_name,
)
from vtx.facts.qualifications import INSTRUCTION_INFORMATION, QUALIFICATIONS
from vtx.facts.sentences import layout_sentence

__all__ = ["exit_articles"]

_KINDS: Final[Mapping[ExitKind, str]] = {
    ExitKind.FAULT: "fault-like: the instruction did not execute, the saved RIP references it",
    ExitKind.TRAP: "trap-like: the instruction completed, the saved RIP references the next one",
    ExitKind.EVENT: "an event at an instruction boundary: the saved RIP is what its delivery "
    "would have pushed",
    ExitKind.ENTRY_FAILURE: "a failed VM entry: it looks like an exit, with bit 31 of the exit "
    "reason set",
}
_FILLED: Final[Mapping[Filled, str]] = {
    Filled.YES: "filled",
    Filled.NO: "undefined",
    Filled.CONDITIONAL: "filled in some cases only",
}
_VALID: Final[Mapping[Filled, str]] = {
    Filled.YES: "valid",
    Filled.NO: "not valid (bit 31 is 0)",
    Filled.CONDITIONAL: "valid in some cases only",
}
#: The layouts that the vector of an exception chooses from.
_BY_VECTOR: Final = ("debug_exception", "page_fault", "nmi_source")


def exit_articles(what: str, qualification: int | None = None) -> list[Article]:
    """Explain the exit reason called or numbered `what`; decode a qualification.

    Raises
    ------
    UnknownName
        There is no such exit reason.
    """
    info = find_exit_reason(what)
    return [
        Article(
            kind="exit",
            name=info.name,
            number=int(info.reason),
            title=f"Exit reason {int(info.reason)} ({int(info.reason):#x}): {info.sdm_title}",
            summary=f"{upper_first(info.meaning)}.",
            facts=_facts(info),
            tables=(*_qualification_tables(info, qualification), *_instruction_tables(info)),
            note=info.note or "",
            sections=(sdm.VMX_BASIC_EXIT_REASONS.citation, sdm.BASIC_VM_EXIT_INFORMATION.citation),
            related=_filled_fields(info),
        )
    ]


def _facts(info: ExitInfo) -> dict[str, str]:
    """Say how the exit behaves and which information fields it fills."""
    others = [name for name, reason in OTHER_NAMES.items() if reason == info.reason]
    kvm = kvm_name(info.reason)
    names = [f"{info.name}"]
    if kvm.lower() != info.name:
        names.append(f"{kvm} in KVM and perf")
    if others:
        names.append(f"{' and '.join(others)} in older kernels or Xen")
    facts = {"Names": "; ".join(names), "Kind": _KINDS[info.kind]}
    if info.kind is ExitKind.ENTRY_FAILURE:
        facts["Information"] = "only exit reason and exit qualification are written"
        return facts
    facts["Qualification"] = (
        QUALIFICATIONS[info.qualification].title if info.qualification else "cleared to 0"
    )
    facts["Instruction length"] = _FILLED[info.instruction_length]
    facts["Instruction information"] = (
        INSTRUCTION_INFORMATION[info.instruction_information].title
        if info.instruction_information
        else _FILLED[Filled.NO]
    )
    facts["Guest-linear address"] = _FILLED[info.guest_linear_address]
    facts["Guest-physical address"] = _FILLED[info.guest_physical_address]
    facts["Interruption information"] = _VALID[info.interruption_information]
    facts["IDT-vectoring information"] = (
        "valid if the exit came while another event was being delivered"
        if info.idt_vectoring_possible
        else _VALID[Filled.NO]
    )
    return facts


def _qualification_tables(info: ExitInfo, qualification: int | None) -> list[BitTable]:
    """Draw the exit qualification; one that an exit does not have is told as a sentence."""
    if info.qualification is None:
        if qualification is None:
            return []
        what = "as it should be" if qualification == 0 else "so this value is no part of it"
        sentence = f"This exit clears the field to 0, {what}."
        title = "Exit qualification"
        source = str(sdm.BASIC_VM_EXIT_INFORMATION)
        return [BitTable(title, qualification, sentence, (), source)]
    keys = [info.qualification]
    if info.qualification == "by_vector":
        keys = list(_BY_VECTOR)
    tables = []
    for key in keys:
        layout = QUALIFICATIONS[key]
        sentence = "" if qualification is None else layout_sentence(layout, qualification)
        tables.append(layout_table(layout, qualification, sentence))
    return tables


def _instruction_tables(info: ExitInfo) -> list[BitTable]:
    """Draw the VM-exit instruction information, if the exit fills it."""
    key = info.instruction_information
    return [] if key is None else [layout_table(INSTRUCTION_INFORMATION[key])]


def _filled_fields(info: ExitInfo) -> tuple[str, ...]:
    """Name the VMCS fields that a handler of this exit reads."""
    fields = {
        "exit_qualification": info.qualification is not None,
        "vm_exit_instruction_length": info.instruction_length is not Filled.NO,
        "vm_exit_instruction_information": info.instruction_information is not None,
        "guest_linear_address": info.guest_linear_address is not Filled.NO,
        "guest_physical_address": info.guest_physical_address is not Filled.NO,
        "vm_exit_interruption_information": info.interruption_information is not Filled.NO,
        "idt_vectoring_information": info.idt_vectoring_possible,
    }
    return tuple(name for name, filled in fields.items() if filled)


def filling_reasons(column: str) -> tuple[list[str], list[str]]:
    """Return the exits that always, and that sometimes, fill an information field.

    Parameters
    ----------
    column : str
        A column of `ExitInfo` whose values are `Filled`.
    """
    always, sometimes = [], []
    for info in EXITS.values():
        filled = getattr(info, column)
        if filled is Filled.YES:
            always.append(info.name)
        elif filled is Filled.CONDITIONAL:
            sometimes.append(info.name)
    return always, sometimes
