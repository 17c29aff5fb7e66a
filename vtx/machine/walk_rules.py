"""What a walk says in words: the names of its entries, their flags, and the rule that ended it."""

from __future__ import annotations

from typing import NamedTuple

from vtx.facts.ept import MEMORY_TYPE
from vtx.facts.qualifications import QUALIFICATIONS, decode
from vtx.machine.walk import Dimension, Source, Step, StepKind, Walk, WalkStatus

__all__ = ["Ending", "ending", "entry_flags", "entry_name", "failing_step"]

_NAMES = {5: "PML5E", 4: "PML4E", 3: "PDPTE", 2: "PDE", 1: "PTE"}
_LEAF_LEVELS = (3, 2)
_GUEST_FLAGS = ((0, "P"), (1, "W"), (2, "U"), (5, "A"), (6, "D"), (8, "G"), (63, "XD"))
_EPT_FLAGS = ((0, "R"), (1, "W"), (2, "X"), (8, "A"), (9, "D"), (10, "XU"))
_PAGE_SIZE = 1 << 7
_ERROR_CODE = (
    (1, "the page is mapped, but its rights do not allow the access"),
    (2, "the access is a write"),
    (4, "the access is a user-mode one"),
    (8, "a reserved bit is set in an entry"),
    (16, "the access is an instruction fetch"),
    (32, "a protection key forbids it"),
    (64, "the access is a shadow-stack one"),
    (128, "it happened in HLAT paging"),
)
#: What gave a translation without a walk.
_ANSWERED = {
    Source.L1: "from a first-level TLB",
    Source.L2: "from the second-level TLB",
    Source.IDENTITY: "without any translation: paging and EPT are off",
}
_VIOLATION_BITS = ("read", "write", "fetch")
_RIGHTS = ("entry_readable", "entry_writable", "entry_executable", "entry_user_executable")


class Ending(NamedTuple):
    """How a walk ended.

    Attributes
    ----------
    what : str
        One sentence.
    rule : str
        The manual's rule behind it.
    source : str
        Where the manual has it.
    """

    what: str
    rule: str
    source: str


_RULES = {
    WalkStatus.OK: (
        "every entry is present and its rights allow the access",
        'SDM, "EPT Translation Mechanism"',
    ),
    WalkStatus.PAGE_FAULT: (
        "an access is a page fault if an entry of guest paging is not present, has a reserved bit "
        "set, or does not give the right that is needed",
        'SDM, "Page-Fault Exceptions"',
    ),
    WalkStatus.NON_CANONICAL: (
        "a linear address is canonical if its upper bits all equal the highest implemented one; no "
        "entry is read otherwise, and the access is #GP or #SS",
        'SDM, "Canonical Addressing"',
    ),
    WalkStatus.EPT_VIOLATION: (
        "an access is an EPT violation if an EPT entry of the walk is not present (bits 2:0 are 0) "
        "or if the entries do not all give the right that is needed",
        'SDM, "EPT Violations"',
    ),
    WalkStatus.EPT_MISCONFIGURATION: (
        "an EPT entry that is present must not be writable without being readable, must not have "
        "reserved bits set, and its memory type must not be a reserved one",
        'SDM, "EPT Misconfigurations"',
    ),
    WalkStatus.PML_FULL: (
        "a dirty flag that must be set while the PML index is above 511 causes a VM exit first",
        'SDM, "Page-Modification Logging"',
    ),
    WalkStatus.BEYOND_MEMORY: (
        "the machine has no memory at this physical address",
        "the memory of this machine",
    ),
}
_OTHER_RULE = (
    "sub-page write permissions decide writes to a page whose EPT entry has bit 61 set",
    'SDM, "Sub-Page Write Permissions"',
)


def ending(walk: Walk) -> Ending:
    """Say how a walk ended, and by which rule."""
    status = walk.status
    rule, source = _RULES.get(status, _OTHER_RULE)
    what = walk.explain()
    if walk.ok and walk.source in _ANSWERED:
        what += f", {_ANSWERED[walk.source]}"
    if status is WalkStatus.PAGE_FAULT:
        what += f": {_page_fault(walk.error_code)}"
    elif status is WalkStatus.EPT_VIOLATION:
        what += f": {_violation(walk.qualification)}"
    failed = failing_step(walk)
    if failed is not None:
        what += f"; it ended at the {entry_name(failed)} at {failed.address:#x}"
    return Ending(what, rule, source)


def failing_step(walk: Walk) -> Step | None:
    """Return the last entry that a recorded walk read before it failed; None if it succeeded."""
    if walk.ok:
        return None
    reads = [step for step in walk.steps if step.kind is StepKind.READ]
    return reads[-1] if reads else None


def _page_fault(error_code: int) -> str:
    said = [text for bit, text in _ERROR_CODE if error_code & bit]
    if not error_code & 1:
        said.insert(0, "an entry is not present")
    return ", ".join(said)


def _violation(qualification: int) -> str:
    bits = {
        bit.range.name: bit.value for bit in decode(QUALIFICATIONS["ept_violation"], qualification)
    }
    asked = " and ".join(name for name in _VIOLATION_BITS if bits[name]) or "access"
    rights = {"entry_readable": "read", "entry_writable": "write", "entry_executable": "execute"}
    given = [word for name, word in rights.items() if bits[name]]
    target = "the address that the linear address translates to"
    if not bits["translated"]:
        target = "a guest paging-structure entry"
    return f"{asked} of {target}, and the EPT entries allow {', '.join(given) or 'nothing'}"


def entry_name(step: Step) -> str:
    """Return what a step touches: ``PML4E``, ``EPT PDE``, ``nested TLB``, ``PML log``."""
    if step.dimension is Dimension.LOG:
        return "PML log"
    if step.dimension is Dimension.EPT:
        return f"EPT {_NAMES[step.level]}" if step.level else "nested TLB"
    return _NAMES.get(step.level, f"level {step.level}")


def entry_flags(step: Step) -> str:
    """Return the flags of the entry that a step read or wrote, with the manual's short names."""
    if step.kind is StepKind.CACHED or step.dimension is Dimension.LOG:
        return ""
    ept = step.dimension is Dimension.EPT
    value = step.value
    flags = [name for bit, name in (_EPT_FLAGS if ept else _GUEST_FLAGS) if value >> bit & 1]
    leaf = step.level == 1 or (step.level in _LEAF_LEVELS and bool(value & _PAGE_SIZE))
    if leaf and step.level > 1:
        flags.append("1G" if step.level == 3 else "2M" if step.size_bytes == 8 else "4M")
    if ept and leaf and value & 7:
        memory_type = value >> 3 & 7
        flags.append(MEMORY_TYPE.get(memory_type, f"type {memory_type}"))
    return " ".join(flags) if flags else "not present"
