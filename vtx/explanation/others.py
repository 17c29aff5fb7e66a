"""VM-instruction errors and capability MSRs explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtx import sdm
from vtx.explanation.article import Article, BitTable, Row
from vtx.explanation.tables import upper_first
from vtx.facts.controls import GROUPS
from vtx.facts.instruction_errors import find_instruction_error
from vtx.facts.layout import UNNAMED
from vtx.facts.msrs import Msr, MsrInfo, find_capability_msr

__all__ = ["error_articles", "msr_articles"]

_CONTROL_SECTIONS: Final = sdm.VM_EXECUTION_CONTROLS
_MSR_SECTIONS: Final[Mapping[Msr, sdm.Section]] = {
    Msr.IA32_VMX_BASIC: sdm.BASIC_VMX_INFORMATION,
    Msr.IA32_VMX_MISC: sdm.MISCELLANEOUS_DATA,
    Msr.IA32_VMX_CR0_FIXED0: sdm.VMX_FIXED_BITS_IN_CR0,
    Msr.IA32_VMX_CR0_FIXED1: sdm.VMX_FIXED_BITS_IN_CR0,
    Msr.IA32_VMX_CR4_FIXED0: sdm.VMX_FIXED_BITS_IN_CR4,
    Msr.IA32_VMX_CR4_FIXED1: sdm.VMX_FIXED_BITS_IN_CR4,
    Msr.IA32_VMX_VMCS_ENUM: sdm.VMCS_ENUMERATION,
    Msr.IA32_VMX_EPT_VPID_CAP: sdm.VPID_AND_EPT_CAPABILITIES,
    Msr.IA32_VMX_VMFUNC: sdm.VM_FUNCTIONS_CAPABILITIES,
}


def error_articles(what: str) -> list[Article]:
    """Explain the VM-instruction error called or numbered `what`.

    Raises
    ------
    UnknownName
        There is no such error.
    """
    info = find_instruction_error(what)
    number = int(info.error)
    return [
        Article(
            kind="error",
            name=info.name,
            number=number,
            title=f"VM-instruction error {number}: {info.text}",
            summary=f"{upper_first(info.when)}.",
            facts={
                "Name": info.name,
                "Reported by": ", ".join(info.instructions),
                "Delivery": f"VMfailValid: RFLAGS.ZF is set, CF, PF, AF, SF and OF are cleared, "
                f"and {number} is written to vm_instruction_error. Execution goes on with the "
                "next instruction. (Without a current VMCS there is no place for the number: "
                "VMfailInvalid sets CF instead.)",
            },
            note=info.note or "",
            sections=(sdm.VM_INSTRUCTION_ERROR_NUMBERS.citation, sdm.CONVENTIONS.citation),
            related=("vm_instruction_error",),
        )
    ]


def msr_articles(what: str) -> list[Article]:
    """Explain the VMX capability MSR called or at address `what`.

    Raises
    ------
    UnknownName
        There is no such capability MSR.
    """
    info = find_capability_msr(what)
    facts = {"Address": f"{int(info.msr):#x}", "Exists": f"if {info.exists_if}"}
    facts["Access"] = info.access
    if info.reset:
        facts["After reset"] = info.reset
    if info.reports:
        facts["Reports on"] = info.reports
    if info.rule:
        facts["How to read it"] = info.rule
    section = _MSR_SECTIONS.get(info.msr, _CONTROL_SECTIONS)
    return [
        Article(
            kind="msr",
            name=info.name,
            number=int(info.msr),
            title=f"MSR {int(info.msr):#x}: {info.name}",
            summary=_summary(info),
            facts=facts,
            tables=(_bits(info, str(section)), *_control_bits(info)),
            note=info.note or "",
            sections=(section.citation,),
            related=(info.reports,) if info.reports else (),
        )
    ]


def _summary(info: MsrInfo) -> str:
    """Say what the MSR is for."""
    if info.msr is Msr.IA32_FEATURE_CONTROL:
        return "Firmware's switch: VMXON causes #GP(0) unless this MSR permits it and is locked."
    if info.reports:
        return f"A VMX capability MSR: which settings of {info.reports} VM entry accepts."
    if "FIXED" in info.name:
        register = info.name.split("_")[2]
        return f"A VMX capability MSR: which bits of {register} are fixed in VMX operation."
    return "A VMX capability MSR: what VMX operation supports on this CPU."


def _bits(info: MsrInfo, source: str) -> BitTable:
    """Draw the MSR; ranges without a name of their own are left out."""
    rows = tuple(
        Row(row.label, row.name, None, row.meaning)
        for row in info.ranges
        if row.name not in UNNAMED
    )
    return BitTable("Bits", None, "", rows, source)


def _control_bits(info: MsrInfo) -> list[BitTable]:
    """List the controls that an MSR reports on, by the bit that says "may be 1"."""
    for group in GROUPS.values():
        if info.name in (group.capability_msr, group.true_capability_msr):
            shift = 0 if info.ranges[-1].low < 32 else 32
            rows = tuple(
                Row(str(control.bit + shift), control.name, None, f"may be 1: {control.sdm_name}")
                for control in group.controls
            )
            return [BitTable(f"Allowed 1-settings: {group.title}", None, "", rows, info.name)]
    return []
