"""Exit reasons as tools print them: which of Intel's they are, and which are AMD's."""

from __future__ import annotations

import re
from functools import cache

from vtx.errors import UnknownName
from vtx.facts.exits import EXITS, ExitReason, find_exit_reason, kvm_name

__all__ = ["is_amd", "printed_name", "reason_number"]

#: The number alone, as tools print it that read the event's fields and not its text.
_BARE = re.compile(r"0x[0-9a-fA-F]+|\d+")
_NUMBERED = re.compile(r"UNKNOWN \((-?\d+)\)|(0x[0-9a-fA-F]+|\d+)")
#: Names of AMD-V's exit codes in KVM's tracepoints that no VT-x exit has. Those that both have
#: (hlt, cpuid, invlpg ...) tell nothing.
_AMD = frozenset(
    [
        "interrupt",
        "intr",
        "vintr",
        "npf",
        "io",
        "msr",
        "shutdown",
        "vmrun",
        "vmmcall",
        "vmload",
        "vmsave",
        "stgi",
        "clgi",
        "skinit",
        "invlpga",
        "icebp",
        "ferr_freeze",
        "iret",
        "swint",
        "popf",
        "pushf",
        "smi",
        "cr0_sel_write",
        "vmgexit",
        "read_idtr",
        "read_gdtr",
        "read_ldtr",
        "read_tr",
        "write_idtr",
        "write_gdtr",
        "write_ldtr",
        "write_tr",
        "avic_incomplete_ipi",
        "avic_unaccelerated_access",
        "efer_write_trap",
        "bus_lock_threshold",
        "idle_hlt",
        "cr0_write_trap",
        "cr4_write_trap",
        "cr8_write_trap",
        "cr3_write_trap",
        "DE",
        "DB",
        "BP",
        "OF",
        "BR",
        "UD",
        "NM",
        "DF",
        "TS",
        "NP",
        "SS",
        "GP",
        "PF",
        "MF",
        "AC",
        "MC",
        "XF",
    ]
)
#: The field of kvm_exit that says whose exit reasons these are.
_AMD_ISA = "isa=2"
_AMD_FORM = re.compile(r"(EXIT|VMEXIT|SVM_EXIT)_[A-Z0-9_]+|(read|write)_[cd]r\d+|[A-Z]{2} excp")


@cache
def is_amd(name: str) -> bool:
    """Whether only AMD-V has an exit of this name."""
    return name in _AMD or name == _AMD_ISA or _AMD_FORM.fullmatch(name) is not None


@cache
def reason_number(name: str) -> int | None:
    """Return the number of a VT-x exit reason as printed, or None if the manual has none.

    ``UNKNOWN (N)`` and plain numbers are taken at their word; bit 31, the mark of a VM-entry
    failure, is left out.
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        number = int(numbered[1]) if numbered[1] else int(numbered[2], 0)
        number &= 0x7FFF_FFFF
        return number if number in EXITS else None
    try:
        return int(find_exit_reason(name.removesuffix("_FAST")).reason)
    except UnknownName:
        return None


@cache
def printed_name(name: str) -> str:
    """Return what to call a reason: for a bare number of the manual's, the name KVM prints."""
    number = reason_number(name) if _BARE.fullmatch(name) else None
    return name if number is None else kvm_name(ExitReason(number))
