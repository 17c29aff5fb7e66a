"""VMCS fields explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtx import sdm
from vtx.explanation.article import Article, BitTable, Row
from vtx.explanation.exits import filling_reasons
from vtx.explanation.tables import layout_table
from vtx.facts.controls import GROUPS, ControlGroup
from vtx.facts.exits import EXITS
from vtx.facts.fields import ACCESS_HIGH, FIELDS, Area, Field, FieldInfo, Width, find_encoding
from vtx.facts.kernel_names import KERNEL_NAMES
from vtx.facts.lookup import canonical
from vtx.facts.qualifications import field_layout
from vtx.facts.word_sentences import word_sentence

__all__ = ["field_articles", "requirement"]

_AREAS: Final[Mapping[Area, str]] = {
    Area.CONTROL: "A control field: VM entry checks it, and it governs VMX non-root operation, "
    "VM exits or VM entries.",
    Area.READ_ONLY: "A read-only data field: VM exits and failed VMX instructions write it, the "
    "VMM reads it. VMWRITE to it fails with error 13 unless IA32_VMX_MISC[29] is 1.",
    Area.GUEST: "A guest-state field: VM entry checks it and loads it, VM exit saves to it.",
    Area.HOST: "A host-state field: VM entry checks it, VM exit loads from it.",
}
_AREA_NAMES: Final[Mapping[Area, str]] = {
    Area.CONTROL: "control",
    Area.READ_ONLY: "read-only data",
    Area.GUEST: "guest state",
    Area.HOST: "host state",
}
_WIDTH_NAMES: Final[Mapping[Width, str]] = {
    Width.W16: "16-bit",
    Width.W64: "64-bit",
    Width.W32: "32-bit",
    Width.NATURAL: "natural width (64 bits with Intel 64)",
}
_AREA_SECTIONS: Final[Mapping[Area, sdm.Section]] = {
    Area.GUEST: sdm.GUEST_REGISTER_STATE,
    Area.HOST: sdm.HOST_STATE_AREA,
}
#: Columns of `ExitInfo` that say which exits fill a field.
_COLUMNS: Final[Mapping[Field, str]] = {
    Field.GUEST_LINEAR_ADDRESS: "guest_linear_address",
    Field.GUEST_PHYSICAL_ADDRESS: "guest_physical_address",
    Field.VM_EXIT_INSTRUCTION_LENGTH: "instruction_length",
    Field.VM_EXIT_INTERRUPTION_INFORMATION: "interruption_information",
}
_GROUP_OF_FIELD: Final[Mapping[Field, ControlGroup]] = {g.field: g for g in GROUPS.values()}


def field_articles(what: str, value: int | None = None) -> list[Article]:
    """Explain the VMCS field called or encoded `what`; with a value, decode that first.

    Raises
    ------
    UnknownName
        There is no such field.
    """
    encoding = int(KERNEL_NAMES.get(canonical(what)) or find_encoding(what))
    info = FIELDS[Field(encoding & ~ACCESS_HIGH)]
    half = " (this encoding accesses its high half)" if encoding & ACCESS_HIGH else ""
    return [
        Article(
            kind="field",
            name=info.name,
            number=int(info.field),
            title=f"VMCS field {int(info.field):#06x}: {info.sdm_name}{half}",
            summary=_AREAS[info.area],
            facts=_facts(info),
            tables=_tables(encoding, info, value),
            note=info.note or "",
            sections=_sections(info),
            related=_related(info),
        )
    ]


def _tables(encoding: int, info: FieldInfo, value: int | None) -> tuple[BitTable, ...]:
    """Draw the encoding and what the field holds; a value comes first."""
    tables = (_encoding_table(encoding, info), *_value_tables(info, value))
    return tables if value is None else tables[::-1]


def _facts(info: FieldInfo) -> dict[str, str]:
    """Give names, width, access, existence, and the exits that fill the field."""
    kernels = [name for name, field in KERNEL_NAMES.items() if field == info.field]
    facts = {"Names": ", ".join((info.name, *info.also)), "Width": _WIDTH_NAMES[info.width]}
    if kernels:
        facts["In Linux or Xen"] = ", ".join(kernels)
    if info.width is Width.W64:
        facts["High half"] = f"{info.field | ACCESS_HIGH:#06x} accesses bits 63:32"
    facts["Exists"] = (
        f"if {requirement(info.requires)}" if info.requires else "on every CPU with VMX"
    )
    facts |= _filled_by(info.field)
    return facts


def requirement(requires: str) -> str:
    """Put a `FieldInfo.requires` into words."""
    alternatives = []
    for term in requires.split("|"):
        kind, _, rest = term.strip().partition(":")
        if kind == "cpu":
            alternatives.append(f"the CPU supports {rest.upper()}")
        elif kind == "cap":
            alternatives.append(f"the capability MSRs say {rest}")
        else:
            alternatives.append(f"the CPU allows {term.strip()} to be 1")
    return " or ".join(alternatives)


def _filled_by(field: Field) -> dict[str, str]:
    """Say which exits fill an information field."""
    if field == Field.EXIT_QUALIFICATION:
        names = [info.name for info in EXITS.values() if info.qualification]
        return {"Filled by": ", ".join(names), "Otherwise": "cleared to 0"}
    if field == Field.VM_EXIT_INSTRUCTION_INFORMATION:
        names = [info.name for info in EXITS.values() if info.instruction_information]
        return {"Filled by": ", ".join(names), "Otherwise": "undefined"}
    if field == Field.IDT_VECTORING_INFORMATION:
        names = [info.name for info in EXITS.values() if info.idt_vectoring_possible]
        return {"May be valid for": ", ".join(names), "Otherwise": "bit 31 is 0"}
    if field not in _COLUMNS:
        return {}
    always, sometimes = filling_reasons(_COLUMNS[field])
    facts = {"Filled by": ", ".join(always)} if always else {}
    return facts | {"In some cases by": ", ".join(sometimes)}


def _encoding_table(encoding: int, info: FieldInfo) -> BitTable:
    """Take the encoding apart."""
    rows = (
        Row("0", "access", encoding & ACCESS_HIGH, ("full", "high half")[encoding & ACCESS_HIGH]),
        Row("9:1", "index", info.index, "position among the fields of this area and width"),
        Row("11:10", "area", int(info.area), _AREA_NAMES[info.area]),
        Row("14:13", "width", int(info.width), _WIDTH_NAMES[info.width]),
    )
    return BitTable("Encoding", encoding, "", rows, str(sdm.FIELD_ENCODING_IN_VMCS))


def _value_tables(info: FieldInfo, value: int | None) -> list[BitTable]:
    """Draw what the field holds: its layout, or the controls in it."""
    if info.layout is not None:
        sentence = "" if value is None else word_sentence(info.layout, value)
        return [layout_table(field_layout(info.layout), value, sentence)]
    group = _GROUP_OF_FIELD.get(info.field)
    if group is None:
        return [] if value is None else [_plain(info, value)]
    return [_controls_table(group, value)]


def _plain(info: FieldInfo, value: int) -> BitTable:
    """Show a value of a field whose bits have no names."""
    sentence = f"{value:#x} is {value}; the manual gives the bits of this field no names here."
    return BitTable(info.sdm_name, value, sentence, (), str(sdm.FIELD_ENCODING_IN_VMCS))


def _controls_table(group: ControlGroup, value: int | None) -> BitTable:
    """Draw a field of controls; with a value, say which are 1."""
    rows = []
    for control in group.controls:
        mask = int(control.control)
        held = None if value is None else int(bool(value & mask))
        meaning = control.meaning if held != 0 else f"no: {control.meaning}"
        rows.append(Row(str(control.bit), control.name, held, meaning))
    source = f"{group.capability_msr} reports which settings the CPU allows"
    sentence = ""
    if value is not None:
        known = sum(int(control.control) for control in group.controls)
        ones = [control.sdm_name for control in group.controls if value & int(control.control)]
        sentence = f"1: {', '.join(ones) or 'none'}."
        if value & ~known:
            sentence += f" Reserved bits set: {value & ~known:#x} ({group.reserved})."
    return BitTable(group.title, value, sentence, tuple(rows), source, notes=(group.reserved,))


def _sections(info: FieldInfo) -> tuple[str, ...]:
    """Cite the section on the field's area, where one covers it, and the appendix."""
    area = _AREA_SECTIONS.get(info.area)
    first = () if area is None else (area.citation,)
    return (*first, sdm.FIELD_ENCODING_IN_VMCS.citation)


def _related(info: FieldInfo) -> tuple[str, ...]:
    """Name the controls and capability MSRs that the field depends on."""
    terms = [term.strip() for term in (info.requires or "").split("|")]
    controls = [term for term in terms if "." in term and ":" not in term]
    group = _GROUP_OF_FIELD.get(info.field)
    msrs = (group.capability_msr, group.true_capability_msr) if group else ()
    return (*controls, *(msr for msr in msrs if msr))
