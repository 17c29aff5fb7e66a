"""VMX controls explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtx import sdm
from vtx.explanation.article import Article, BitTable, Row
from vtx.explanation.tables import upper_first
from vtx.facts.controls import GROUPS, ControlGroup, ControlInfo, find_control, find_controls
from vtx.facts.fields import FIELDS

__all__ = ["control_articles"]

_SECTIONS: Final[Mapping[str, sdm.Section]] = {
    "pin": sdm.PIN_BASED_VM_EXECUTION_CONTROLS,
    "proc1": sdm.PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "proc2": sdm.PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "proc3": sdm.PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    "exit1": sdm.VM_EXIT_CONTROLS,
    "exit2": sdm.VM_EXIT_CONTROLS,
    "entry": sdm.VM_ENTRY_CONTROLS,
    "vmfunc": sdm.VM_FUNCTION_CONTROLS,
}
#: Groups reported by a plain 64-bit mask; the others have allowed 1-settings in bits 63:32.
_PLAIN_MASKS: Final = frozenset({"proc3", "exit2", "vmfunc"})


def control_articles(what: str) -> list[Article]:
    """Explain the controls called `what`: one in each group that has the name.

    Raises
    ------
    UnknownName
        No control has this name.
    """
    found = find_controls(what) or [find_control(what)]
    return [_article(info, GROUPS[info.group]) for info in found]


def _article(info: ControlInfo, group: ControlGroup) -> Article:
    """Tell what one control bit does and what it hangs on."""
    mask = int(info.control)
    fields = tuple(
        field.name
        for field in FIELDS.values()
        if info.key in [term.strip() for term in (field.requires or "").split("|")]
    )
    return Article(
        kind="control",
        name=info.key,
        number=mask,
        title=f"{info.sdm_name}: bit {info.bit} of the {_lower_first(group.title)}",
        summary=f"{upper_first(info.meaning)}.",
        facts=_facts(info, group, mask, fields),
        tables=(_place(info, group),),
        note=info.note or "",
        sections=(_SECTIONS[info.group].citation,),
        related=(group.field._name_.lower(), group.capability_msr, *fields),
    )


def _place(info: ControlInfo, group: ControlGroup) -> BitTable:
    """Draw the control in its word, between its neighbours."""
    at = group.controls.index(info)
    near = group.controls[max(at - 1, 0) : at + 2]
    return BitTable(
        title=f"In {group.field._name_.lower()}",
        value=None,
        sentence="",
        rows=tuple(Row(str(one.bit), one.name, None, one.sdm_name) for one in near),
        source=_SECTIONS[info.group].citation,
    )


def _lower_first(title: str) -> str:
    """Return a title for the middle of a sentence; VM-exit controls keep their capitals."""
    return title if title.startswith("VM") else title[0].lower() + title[1:]


def _facts(
    info: ControlInfo, group: ControlGroup, mask: int, fields: tuple[str, ...]
) -> dict[str, str]:
    """Give name, mask, capability bits, dependencies and fields."""
    allowed1 = info.bit if info.group in _PLAIN_MASKS else 32 + info.bit
    facts = {
        "Name": info.key,
        "Mask": f"{mask:#x} in {group.field._name_.lower()}",
        "May be 1 if": f"bit {allowed1} of {group.capability_msr} is 1",
    }
    if info.default1:
        facts["Must be 1"] = (
            f"unless bit {info.bit} of {group.true_capability_msr} is 0 (it is in the default1 "
            "class)"
        )
    if group.activated_by:
        facts["In force if"] = f"{group.activated_by} is 1; otherwise it acts as 0"
    if info.depends:
        facts["VM entry needs"] = info.depends
    if fields:
        facts["Brings fields"] = ", ".join(fields)
    return facts
