"""The known deviations of the other implementation, each a rule with the manual's words.

A case that is tagged with a deviation's name may be decided by it; a rule that needs no tag says
from the case itself when it applies. Either way the rule says what the manual's side looks like,
and our side counts as the manual's only if it does look so. No rule knows a case by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vtx.bits import MASK32
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.hypervisor.verify.golden import HANDLER_BYTES, HANDLERS
from vtx.hypervisor.verify.judgement import Verdict
from vtx.machine.decoding import decode
from vtx.machine.registers import Activity, Rflags
from vtx.rules.injected import EventType

__all__ = ["DEVIATIONS", "Deviation", "deviations_of"]

Case = Mapping[str, Any]
#: Whether our side is what the manual says, given case, ours and theirs.
Rule = Callable[[Case, Verdict, Verdict], bool]

_INVALID_GUEST_STATE, _MSR_LOADING = 33 | 1 << 31, 34 | 1 << 31
_EXCEPTION = 0
_CONTROLS = 7
_GP_VECTOR = 13
#: Interruption information: valid, error code, hardware exception, #GP.
_GP_FAULT = 0x8000_0B0D
_EPT_VIOLATION = 48
_DEFAULT_SIZE = 1 << 14
_PML_INDICES = 512
#: Blocking by MOV SS; of pending debug exceptions: enabled breakpoint, BS.
_MOV_SS, _DELIVERED = 1 << 1, 0x5000
#: VM-instruction error of INVEPT and INVVPID, the exceptions that reading their operand may raise.
_INVALID_OPERAND, _DESCRIPTOR_FAULTS = 28, frozenset({12, 13, 14})
_VMCALL = b"\x0f\x01\xc1"
#: Of the qualification of an I/O instruction.
_REP_PREFIXED = 1 << 5
#: What the other implementation says of an MSR that it does not know, and then ignores.
_UNKNOWN = "Unknown register"
#: Of a qualification: read, write, linear address valid, and whether it is that of the access.
_ACCESS_AND_LINEAR, _WRITE_OF_TABLE = 0x183, 0x82


class Deviation(NamedTuple):
    """One difference between the other implementation and the manual.

    Attributes
    ----------
    name : str
        As corpora tag it.
    tagged : bool
        It decides only cases that carry its name; else it says itself which.
    says : str
        What the manual says.
    section : str
        Where.
    manual : callable
        Whether our side is that.
    """

    name: str
    tagged: bool
    says: str
    section: str
    manual: Rule


#: Every deviation by its name.
DEVIATIONS: dict[str, Deviation] = {}


def _deviation(
    name: str, section: str, says: str, *, tagged: bool = True
) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        DEVIATIONS[name] = Deviation(name, tagged, says, section, rule)
        return rule

    return register


def deviations_of(
    form: str, case: Case, ours: Verdict, theirs: Verdict
) -> tuple[tuple[str, ...], bool]:
    """Say which deviations decide a difference, and whether the manual is on our side.

    Parameters
    ----------
    form : str
        Format of the corpus.
    case : mapping
    ours, theirs : dict
        Different from each other.

    Returns
    -------
    tuple of str
        Names: those that put the manual on our side, or else the tags of the case.
    bool
        The manual is on our side.
    """
    tags = tuple(case.get("deviation", ()))
    apply = [d for d in DEVIATIONS.values() if d.name in tags or not d.tagged]
    decisive = tuple(d.name for d in apply if d.manual(case, ours, theirs))
    if decisive:
        return decisive, True
    return tags, False


# ---- VM entries ------------------------------------------------------------------------------


def _fails_guest_check(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return (
        ours.get("exit_reason") == _INVALID_GUEST_STATE
        and ours.get("qualification") == 0
        and theirs.get("exit_reason") != _INVALID_GUEST_STATE
    )


for _name, _section, _says in (
    ("ia32e_without_pg", "Checks on Guest Control Registers, Debug Registers, and MSRs",
     'If the "IA-32e mode guest" VM-entry control is 1, bit 31 in the CR0 field must be 1.'),
    ("rip_noncanonical", "Checks on Guest RIP, RFLAGS, and SSP",
     "RIP must be canonical: bits 63:N must be identical if the guest enters 64-bit mode."),
    ("debugctl_unchecked", "Checks on Guest Control Registers, Debug Registers, and MSRs",
     'With "load debug controls" 1, reserved bits of IA32_DEBUGCTL must be 0.'),
    ("pending_dbg_high", "Checks on Guest Non-Register State",
     "Bits 63:32 of the pending debug exceptions are reserved and must be 0."),
    ("pending_dbg_bs", "Checks on Guest Non-Register State",
     "With blocking by STI or MOV SS or in HLT, BS must be 1 if TF is 1 and BTF is 0, else 0."),
    ("hlt_injection", "Checks on Guest Non-Register State",
     "Only some events may be injected into a guest in the HLT state."),
    ("shutdown_injection", "Checks on Guest Non-Register State",
     "Only NMI and #MC may be injected into a guest in the shutdown state."),
    ("virtual_nmi_injection", "Checks on Guest Non-Register State",
     'With "virtual NMIs" 1 an NMI cannot be injected while NMIs are blocked.'),
    ("vm_without_pe", "Checks on Guest RIP, RFLAGS, and SSP",
     "RFLAGS.VM must be 0 if CR0.PE is 0 or the guest enters IA-32e mode."),
    ("perf_global_ctrl_unchecked", "Checks on Guest Control Registers, Debug Registers, and MSRs",
     "Reserved bits of IA32_PERF_GLOBAL_CTRL must be 0."),
):  # fmt: skip
    _deviation(_name, _section, _says)(_fails_guest_check)


@_deviation(
    "nmi_sti_implementation_specific",
    "Checks on Guest Non-Register State",
    "An NMI cannot be injected with blocking by STI where the CPU checks it: qualification 3.",
)
def _nmi_and_sti(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("exit_reason") == _INVALID_GUEST_STATE and ours.get("qualification") in (0, 3)


@_deviation(
    "entry_to_smm",
    "VM-Entry Control Fields",
    '"Entry to SMM" and "deactivate dual-monitor treatment" must be 0 outside SMM: error 7.',
)
@_deviation(
    "posted_interrupts",
    "VM-Execution Control Fields",
    '"Process posted interrupts" needs virtual-interrupt delivery and "acknowledge interrupt on '
    'exit"; its descriptor is aligned to 64 bytes.',
)
def _fails_control_check(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("error") == _CONTROLS or theirs.get("error") == _CONTROLS


@_deviation(
    "interrupt_window_hlt",
    "Interrupt-Window Exiting and Virtual-Interrupt Delivery",
    "Interrupt-window exiting wakes a processor that VM entry put into the HLT state.",
)
def _window_wakes(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("exit_reason") == 7 and theirs.get("kind") == "idle"


@_deviation(
    "unknown_msr_accepted",
    "Loading MSRs",
    "RDMSR and WRMSR of an MSR that does not exist cause #GP(0).",
    tagged=False,
)
def _unknown_msr(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    said = " ".join(case["verdict"].get("bochs_says", ()))
    if "unknown_msr_accepted" not in case.get("deviation", ()) and _UNKNOWN not in said:
        return False
    if "exit_intr_info" in ours:
        if ours["exit_reason"] != _EXCEPTION:  # the guest's own handler exits
            return bool(ours["guest_rip"] == HANDLERS + HANDLER_BYTES * _GP_VECTOR)
        return bool(ours["exit_intr_info"] & 0xFF == _GP_VECTOR)
    return ours.get("exit_reason") == _MSR_LOADING or ours.get("kind") == "vmabort"


@_deviation(
    "tsc_aux_reserved",
    "IA32_TSC_AUX Register and RDTSCP Support",
    "Bits 63:32 of IA32_TSC_AUX are reserved: WRMSR of another value causes #GP(0).",
    tagged=False,
)
def _tsc_aux(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if ours.get("exit_reason") != _MSR_LOADING and ours.get("kind") != "vmabort":
        return False
    for text in case.get("mem", {}).values():
        area = bytes.fromhex(text)
        for at in range(0, len(area) - 15, 16):
            index = int.from_bytes(area[at : at + 4], "little")
            if index == Msr.IA32_TSC_AUX and any(area[at + 12 : at + 16]):
                return True
    return False


def _field(case: Case, field: Field) -> int:
    return int(case.get("delta", {}).get(f"{int(field):04x}", 0))


def _injected_type(case: Case) -> int | None:
    """Return the type of the event that VM entry injects."""
    word = _field(case, Field.VM_ENTRY_INTERRUPTION_INFORMATION)
    return word >> 8 & 7 if word >> 31 else None


@_deviation(
    "enabled_breakpoint_alone",
    "Delivery of Pending Debug Exceptions after VM Entry",
    'A pending debug exception is delivered if "enabled breakpoint" is 1, whatever B3:B0 are.',
    tagged=False,
)
def _enabled_breakpoint(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    pending = _field(case, Field.GUEST_PENDING_DEBUG_EXCEPTIONS)
    return bool(pending & 1 << 12) and not pending & 0x400F


@_deviation(
    "mtf_leaves_hlt",
    "Architectural State Before a VM Exit",
    "If an event causes a VM exit directly, the return to the active state comes after the exit: "
    "the saved activity state is HLT.",
    tagged=False,
)
def _mtf_in_hlt(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    state = int(Field.GUEST_ACTIVITY_STATE)
    written = _field(case, Field.GUEST_ACTIVITY_STATE)
    if written != Activity.HLT or ours.get("exit_reason") != 37:
        return False
    without = {key: value for key, value in theirs["post"].items() if key != state}
    expected: Verdict = theirs | {"post": without}
    return ours == expected


@_deviation(
    "violation_on_guest_table",
    "Exit Qualification for EPT Violations",
    "With accessed and dirty flags for EPT, an access to a guest paging-structure entry is a "
    "write as well as a read: bits 0 and 1.",
    tagged=False,
)
def _violation_on_guest_table(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    key = "exit_qualification" if "exit_qualification" in theirs else "qualification"
    if ours.get("exit_reason") != _EPT_VIOLATION or theirs.get("exit_reason") != _EPT_VIOLATION:
        return False
    qualification = theirs[key]
    if qualification & _ACCESS_AND_LINEAR != _WRITE_OF_TABLE:
        return False
    expected: Verdict = theirs | {key: qualification | 1}
    if "post" in theirs:
        number = int(Field.EXIT_QUALIFICATION)
        expected["post"] = theirs["post"] | {number: qualification | 1}
    return ours == expected


@_deviation(
    "injected_interrupt_checks_iopl",
    "Details of Vectored-Event Injection",
    "If a software interrupt is injected into a guest in virtual-8086 mode, no #GP can occur due "
    "to RFLAGS.IOPL < 3.",
    tagged=False,
)
def _injected_into_v8086(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    flags = _field(case, Field.GUEST_RFLAGS)
    if not flags & Rflags.VM or flags & Rflags.IOPL == Rflags.IOPL:
        return False
    return _injected_type(case) == EventType.SOFTWARE_INTERRUPT


@_deviation(
    "software_event_behind_mov_ss",
    "Delivery of Pending Debug Exceptions after VM Entry",
    "Pending debug exceptions are dropped behind an injected software interrupt or software "
    "exception only without blocking by MOV SS; with it the #DB follows.",
    tagged=False,
)
def _debug_behind_mov_ss(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    blocking = _field(case, Field.GUEST_INTERRUPTIBILITY_STATE) & _MOV_SS
    pending = _field(case, Field.GUEST_PENDING_DEBUG_EXCEPTIONS) & _DELIVERED
    software = (EventType.SOFTWARE_INTERRUPT, EventType.SOFTWARE_EXCEPTION)
    return bool(blocking and pending) and _injected_type(case) in software


@_deviation(
    "pending_debug_wakes_hlt",
    "HLT",
    "A debug exception resumes execution of a processor in the HLT state; one that is pending "
    "after VM entry is delivered.",
    tagged=False,
)
def _debug_wakes(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    pending = _field(case, Field.GUEST_PENDING_DEBUG_EXCEPTIONS) & _DELIVERED
    in_hlt = _field(case, Field.GUEST_ACTIVITY_STATE) == Activity.HLT
    return bool(pending) and in_hlt and theirs.get("kind") == "idle"


@_deviation(
    "pml_full_without_update",
    "Page-Modification Logging",
    "The PML index is examined when an access first needs to set an accessed or dirty flag for "
    "EPT; only then can there be a page-modification log-full event.",
    tagged=False,
)
def _log_full(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    full = ExitReason.PAGE_MODIFICATION_LOG_FULL
    if theirs.get("exit_reason") != full or ours.get("exit_reason") == full:
        return False
    number = int(Field.PML_INDEX)
    index: int = ours.get("post", {}).get(number, _field(case, Field.PML_INDEX))
    return index >= _PML_INDICES


@_deviation(
    "host_tr_default_size",
    "Loading Host Segment and Descriptor-Table Registers",
    "The D/B bit of TR is 0 after a VM exit, whatever it was in the guest.",
    tagged=False,
)
def _host_tr(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if not _field(case, Field.GUEST_TR_ACCESS_RIGHTS) & _DEFAULT_SIZE or "host" not in theirs:
        return False
    tr = list(theirs["host"]["tr"])
    tr[2] &= ~_DEFAULT_SIZE
    return ours == theirs | {"host": theirs["host"] | {"tr": tr}}


# ---- Walks -----------------------------------------------------------------------------------


@_deviation(
    "walk_qualification_bit0",
    "Exit Qualification for EPT Violations",
    "With accessed and dirty flags for EPT, an access to a guest paging-structure entry is a "
    "write as well as a read: bits 0 and 1.",
)
@_deviation(
    "mbe_qualification_bit13",
    "Exit Qualification for EPT Violations",
    "Bit 6 is the user-mode execute right with mode-based execute control; bit 13 is another.",
)
def _corrected_qualification(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if "qual_sdm" not in case:
        return False
    return ours == theirs | {"qual": case["qual_sdm"]}


@_deviation(
    "rmw_qualification",
    "Exit Qualification for EPT Violations",
    "A read-modify-write access may set bit 0 beside bit 1.",
)
def _read_modify_write(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if ours.get("kind") != "ept_violation" or theirs.get("kind") != "ept_violation":
        return False
    expected = case.get("qual_sdm", theirs["qual"])
    return ours == theirs | {"qual": expected | 1}


@_deviation(
    "guest_ad_update_ignores_ept_w",
    "EPT Violations",
    "Setting an accessed or dirty flag in a guest table that EPT does not let be written is an "
    "EPT violation.",
)
def _flags_need_write(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("kind") == "ept_violation" and bool(ours["qual"] & 2)


@_deviation(
    "ept_large_bit12",
    "EPT Misconfigurations",
    "Bits 20:12 (29:12) of an entry that maps a 2-MByte (1-GByte) page are reserved.",
)
def _large_page_bits(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("kind") == "ept_misconfig"


# ---- Instructions ----------------------------------------------------------------------------


@_deviation(
    "privilege_before_exit",
    "Relative Priority of Faults and VM Exits",
    "Faults based on privilege level come before VM exits: INVPCID at CPL > 0 causes #GP(0).",
    tagged=False,
)
def _invpcid_privilege(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if not case.get("cpl") or theirs.get("exit_reason") != ExitReason.INVPCID:
        return False
    return ours.get("exit_reason") == _EXCEPTION and ours["exit_intr_info"] == _GP_FAULT


@_deviation(
    "rep_count_zero",
    "REP/REPE/REPZ/REPNE/REPNZ: Repeat String Operation Prefix",
    "The count is tested before the first iteration: with 0 the string instruction is not "
    "executed, so it accesses no port and cannot cause a VM exit.",
    tagged=False,
)
def _no_iteration(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return (
        theirs.get("exit_reason") == ExitReason.IO_INSTRUCTION
        and bool(theirs["exit_qualification"] & _REP_PREFIXED)
        and ours.get("exit_reason") == ExitReason.CPUID
        and ours["guest_rip"] == theirs["guest_rip"] + theirs["exit_instr_len"]
        and ours["gpr"] == theirs["gpr"]
    )


def _invalidation_type(case: Case, ours: Verdict) -> int | None:
    """Return the type that INVEPT or INVVPID found invalid on our side."""
    if ours.get("error") != _INVALID_OPERAND and ours.get("outcome") != "vmfail_invalid":
        return None
    bits = int(case.get("bits", 64))
    step = decode(bytes.fromhex(case.get("code", "90")), bits)
    if step.name not in ("invept", "invvpid"):
        return None
    kind = int(case.get("regs", {}).get(GENERAL_REGISTERS[step.operands["register"]], 0))
    return kind if bits == 64 else kind & MASK32


@_deviation(
    "invvpid_type_32bit",
    "INVEPT, INVVPID",
    "In 64-bit mode the type is the whole 64-bit register.",
    tagged=False,
)
def _whole_type(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    kind = _invalidation_type(case, ours)
    return kind is not None and kind > MASK32


@_deviation(
    "invalidation_type_first",
    "INVEPT, INVVPID",
    "A type that the processor does not support makes the instruction fail before it reads the "
    "descriptor, which then cannot fault.",
    tagged=False,
)
def _type_before_descriptor(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if _invalidation_type(case, ours) is None or theirs.get("outcome") != "exception":
        return False
    return theirs["vector"] in _DESCRIPTOR_FAULTS


@_deviation(
    "vmcall_in_root",
    "VMCALL",
    "In VMX root operation VMCALL fails or calls the monitor.",
    tagged=False,
)
def _vmcall(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    if bytes.fromhex(case.get("code", "")) != _VMCALL:
        return False
    failed = str(ours.get("outcome", "")).startswith("vmfail")
    return failed and theirs.get("outcome") in ("ok", "vmfail_invalid")


@_deviation(
    "shadow_current_vmcs",
    "VMLAUNCH/VMRESUME",
    "With a shadow VMCS as the current VMCS, VMLAUNCH and VMRESUME end in VMfailInvalid.",
)
def _shadow(case: Case, ours: Verdict, theirs: Verdict) -> bool:
    return ours.get("outcome", ours.get("kind")) == "vmfail_invalid"
