"""An exit qualification as a plain sentence.

Each function reads one layout of :mod:`vtx.facts.qualifications`, whose name it bears, and says
in words what the value means. `qualification_sentence` picks the function.
"""

from collections.abc import Callable, Mapping
from typing import Final

from vtx.bits import bit, bits
from vtx.facts.exits import ExitReason
from vtx.facts.qualifications import (
    APIC_ACCESS_TYPE,
    ENTRY_FAILURE,
    GPR,
    Layout,
    qualification_layout,
)

__all__ = ["layout_sentence", "qualification_sentence"]


def listed(words: list[str], conjunction: str = "and") -> str:
    """Return ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def _nmi_unblocking(q: int) -> str:
    unblocked = bit(q, 12)
    return " The access came from an IRET that had removed blocking by NMI." if unblocked else ""


def _asynchronous(q: int) -> str:
    return " It was asynchronous to instruction execution." if bit(q, 16) else ""


def ept_violation(q: int) -> str:
    """Who accessed what, and what the EPT entries would have allowed."""
    kinds = [
        word
        for position, word in enumerate(("data read", "data write", "instruction fetch"))
        if bit(q, position)
    ]
    if not bit(q, 7):
        target = "with no valid guest-linear address (a PDPTE load, or an asynchronous access)"
    elif bit(q, 8):
        target = "at the guest-physical address that a linear address translates to"
    else:
        target = "of a guest paging-structure entry, while a linear address was being translated"
    access = " and ".join(kinds) or "access"
    stack = " It was a shadow-stack access." if bit(q, 13) else ""
    verification = " Guest-paging verification failed." if bit(q, 15) else ""
    return (
        f"{_article(access)} {access} {target}; {_ept_permissions(q)}."
        f"{stack}{verification}{_nmi_unblocking(q)}{_asynchronous(q)}"
    )


def _article(words: str) -> str:
    return "An" if words[0] in "aeiou" else "A"


def _ept_permissions(q: int) -> str:
    """Say what bits 5:3 report: the permissions common to all EPT entries used."""
    names = {3: "reads", 4: "writes", 5: "instruction fetches"}
    allowed = [name for position, name in names.items() if bit(q, position)]
    if not allowed:
        return "the EPT entries used allow no access at all (as when one is not present)"
    denied = [name for position, name in names.items() if not bit(q, position)]
    but = f" but not {listed(denied, 'or')}" if denied else ""
    return f"the EPT entries used allow {listed(allowed)}{but}"


def io_instruction(q: int) -> str:
    """Which instruction touched which port, and how widely."""
    size = {0: "1 byte", 1: "2 bytes", 3: "4 bytes"}.get(bits(q, 2, 0), "an undefined size")
    name = ("OUT", "IN")[bit(q, 3)]
    if bit(q, 4):
        name = ("OUTS", "INS")[bit(q, 3)]
        name = f"REP {name}" if bit(q, 5) else name
    way = "given as an immediate" if bit(q, 6) else "taken from DX"
    return f"{name} of {size}, port {bits(q, 31, 16):#x}, {way}."


def cr_access(q: int) -> str:
    """Which instruction touched which control register."""
    kind = bits(q, 5, 4)
    if kind == 2:
        return "CLTS."
    if kind == 3:
        operand = ("a register", "memory")[bit(q, 6)]
        return f"LMSW of {bits(q, 31, 16):#x}, from {operand}."
    register, cr = GPR[bits(q, 11, 8)], f"CR{bits(q, 3, 0)}"
    return f"MOV {cr}, {register}." if kind == 0 else f"MOV {register}, {cr}."


def mov_dr(q: int) -> str:
    """Which debug register moved where."""
    register, dr = GPR[bits(q, 11, 8)], f"DR{bits(q, 2, 0)}"
    return f"MOV {register}, {dr}." if bit(q, 4) else f"MOV {dr}, {register}."


def task_switch(q: int) -> str:
    """Which TSS, and what asked for it."""
    source = ("CALL", "IRET", "JMP", "a task gate in the IDT")[bits(q, 31, 30)]
    return f"A task switch to the TSS with selector {bits(q, 15, 0):#x}, initiated by {source}."


def debug_exception(q: int) -> str:
    """Which debug conditions were met."""
    causes = [f"the condition of breakpoint {n}" for n in range(4) if bit(q, n)]
    named = {
        11: "a bus lock was detected",
        13: "a debug register was accessed while DR7.GD was 1",
        14: "a single step (or a taken branch) completed",
        16: "the exception came inside an RTM region",
    }
    events = [text for position, text in named.items() if bit(q, position)]
    met = [f"{listed(causes)} {'was' if len(causes) == 1 else 'were'} met"] if causes else []
    return f"A debug exception: {listed(met + events) or 'no condition is reported'}."


def apic_access(q: int) -> str:
    """Which kind of access, and where in the APIC page."""
    kind = bits(q, 15, 12)
    text = APIC_ACCESS_TYPE.get(kind, f"undefined kind of access {kind}")
    offset = f" at offset {bits(q, 11, 0):#x} of the APIC-access page" if kind <= 4 else ""
    return f"{text[0].upper()}{text[1:]}{offset}.{_asynchronous(q)}"


def entry_failure_guest_state(q: int) -> str:
    """Which kind of guest-state check VM entry failed."""
    kind = ENTRY_FAILURE.get(q)
    if kind is None:
        return f"The value {q:#x} is not used for this VM-entry failure."
    return f"VM entry failed its checks of the guest state: {kind}."


def entry_failure_msr(q: int) -> str:
    """Which entry of the VM-entry MSR-load area failed."""
    if q == 0:
        return "Entries are counted from 1, so 0 names none."
    return f"Entry {q} of the VM-entry MSR-load area (counted from 1) could not be loaded."


def pml_full(q: int) -> str:
    """Tell what is known of the access that met the full log."""
    detail = _nmi_unblocking(q) + _asynchronous(q)
    return f"The page-modification log was full when EPT flags had to be updated.{detail}"


def spp_event(q: int) -> str:
    """Miss or misconfiguration."""
    kind = ("a misconfigured entry", "a missing entry (SPP miss)")[bit(q, 11)]
    detail = _nmi_unblocking(q) + _asynchronous(q)
    return f"The lookup of sub-page write permissions met {kind}.{detail}"


def instruction_timeout(q: int) -> str:
    """Whether the VM may go on."""
    state = "invalid: the VM must not be resumed" if bit(q, 0) else "valid: the VM may be resumed"
    return f"No instruction boundary came within the timeout. The VM context is {state}." + (
        _nmi_unblocking(q)
    )


def mwait(q: int) -> str:
    """Whether MWAIT would have waited."""
    return f"Address-range monitoring was {'armed' if bit(q, 0) else 'not armed'}."


def displacement(q: int) -> str:
    """Give the displacement, also as the signed number it may be."""
    if q == 0:
        return "The instruction has no displacement, or a register operand."
    signed = q - (1 << 64) if bit(q, 63) else q
    minus = f", that is {signed}" if signed < 0 else ""
    return (
        f"The instruction's displacement is {q:#x}{minus} "
        "(for RIP-relative addressing: the address itself)."
    )


def by_vector(q: int) -> str:
    """Point to the vector in the VM-exit interruption information, which decides."""
    if q == 0:
        return "The value is 0: no debug condition, address or NMI source is reported."
    return (
        "What it means depends on the vector: debug conditions for vector 1 (#DB), the faulting "
        "linear address for vector 14 (#PF), the source for an NMI."
    )


def _wrmsr(q: int) -> str:
    return f"The instruction was {('WRMSR', 'WRMSRNS')[bit(q, 0)]}."


def _wbinvd(q: int) -> str:
    return f"The instruction was {('WBINVD', 'WBNOINVD')[bit(q, 0)]}."


def _msr_if_bitmaps(q: int) -> str:
    if q == 0:
        return "MSR 0, or MSR bitmaps are not in use."
    return f"The access to MSR {q:#x} caused the exit."


_SENTENCES: Final[Mapping[str, Callable[[int], str]]] = {
    "debug_exception": debug_exception,
    "page_fault": lambda q: f"The page fault was at linear address {q:#x}.",
    "nmi_source": lambda q: f"The NMI-source report is {q:#x}." if q else "No NMI source.",
    "sipi": lambda q: f"The SIPI vector is {q & 0xFF:#x}.",
    "io_smi": io_instruction,
    "task_switch": task_switch,
    "linear_address": lambda q: f"INVLPG of linear address {q:#x}.",
    "displacement": displacement,
    "cr_access": cr_access,
    "mov_dr": mov_dr,
    "io_instruction": io_instruction,
    "mwait": mwait,
    "apic_access": apic_access,
    "eoi_vector": lambda q: f"The virtual interrupt with vector {q & 0xFF:#x} was dismissed.",
    "apic_write": lambda q: f"The write was to offset {q & 0xFFF:#x} of the virtual-APIC page.",
    "ept_violation": ept_violation,
    "pml_full": pml_full,
    "spp_event": spp_event,
    "instruction_timeout": instruction_timeout,
    "enqcmd_pasid": lambda q: f"The guest's PASID is {q & 0xF_FFFF:#x}.",
    "enqcmds_pasid": lambda q: f"The low half of the source operand is {q & 0xFFFF_FFFF:#x}.",
    "msr_index_if_bitmaps": _msr_if_bitmaps,
    "msr_index": lambda q: f"The instruction named MSR {q & 0xFFFF_FFFF:#x}.",
    "wrmsr_kind": _wrmsr,
    "wbinvd_kind": _wbinvd,
    "entry_failure_guest_state": entry_failure_guest_state,
    "entry_failure_msr": entry_failure_msr,
    "by_vector": by_vector,
}


def layout_sentence(layout: Layout, qualification: int) -> str:
    """Say in words what `qualification` means under one of the `QUALIFICATIONS`."""
    return _SENTENCES[layout.name](qualification)


def qualification_sentence(
    reason: ExitReason, qualification: int, vector: int | None = None, *, nmi: bool = False
) -> str:
    """Say in words what an exit qualification means.

    Parameters
    ----------
    reason : ExitReason
        Basic exit reason.
    qualification : int
        Value of the exit-qualification field.
    vector : int, optional
        For an exception, its vector.
    nmi : bool
        The exit is due to an NMI.
    """
    layout = qualification_layout(reason, vector, nmi=nmi)
    if layout is None:
        if qualification == 0:
            return "The exit has no qualification: the field is cleared."
        return f"This exit clears the exit qualification, so {qualification:#x} is no part of it."
    return layout_sentence(layout, qualification)
