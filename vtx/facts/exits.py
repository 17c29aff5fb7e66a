"""Basic exit reasons, in the order of SDM appendix "VMX Basic Exit Reasons".

Each row says which exit-information fields the exit fills (SDM, "Recording VM-Exit Information
and Updating VM-entry Control Fields"). The numbers 35, 38, 42, 71, 82 and 83 are not used.
"""

from enum import IntEnum, StrEnum
from functools import partial
from typing import NamedTuple

from vtx.errors import UnknownName
from vtx.facts.lookup import as_number, canonical
from vtx.facts.members import plain_members

__all__ = [
    "EXITS",
    "OTHER_NAMES",
    "ExitInfo",
    "ExitKind",
    "ExitReason",
    "Filled",
    "find_exit_reason",
    "kvm_name",
]


class ExitKind(StrEnum):
    """What the saved RIP points at, and when the exit happens."""

    FAULT = "fault"
    """The instruction did not execute; RIP references it."""
    TRAP = "trap"
    """The instruction completed; RIP references the next one."""
    EVENT = "event"
    """Taken at an instruction boundary; RIP is what delivery of the event would have pushed."""
    ENTRY_FAILURE = "entry_failure"
    """VM entry failed after it began to load guest state; exit-reason bit 31 is 1."""


class Filled(StrEnum):
    """Whether an exit fills an information field."""

    YES = "yes"
    NO = "no"
    CONDITIONAL = "conditional"


#: What a row says beside its name: the columns of `ExitInfo` from `sdm_title` on.
_Row = tuple[
    str, str, ExitKind, str | None, Filled, Filled, Filled, str | None, Filled, bool, str | None
]

YES, NO, CONDITIONAL = Filled.YES, Filled.NO, Filled.CONDITIONAL

_rows: list[_Row] = []


def _row(
    kind: ExitKind,
    number: int,
    sdm_title: str,
    meaning: str,
    *,
    qualification: str | None = None,
    linear: Filled = NO,
    physical: Filled = NO,
    length: Filled | None = None,
    information: str | None = None,
    interruption: Filled = NO,
    vectoring: bool = False,
    note: str | None = None,
) -> int:
    """Keep one row, and give its number to the enum.

    Fault-like exits report the instruction length unless the row says otherwise; no others do.
    """
    if length is None:
        length = YES if kind is ExitKind.FAULT else NO
    _rows.append(
        (
            sdm_title,
            meaning,
            kind,
            qualification,
            linear,
            physical,
            length,
            information,
            interruption,
            vectoring,
            note,
        )
    )
    return number


_fault = partial(_row, ExitKind.FAULT)
_trap = partial(_row, ExitKind.TRAP)
_event = partial(_row, ExitKind.EVENT)
_entry_failure = partial(_row, ExitKind.ENTRY_FAILURE)

_ENTRY_FAILURE_NOTE = (
    "exit-reason bit 31 is set; only exit reason and qualification are written, other "
    "information fields keep their old values; the guest area is not saved, the injection valid "
    "bit is not cleared, there are no VM-exit MSR stores; host state and the VM-exit MSR-load "
    "area are loaded"
)
_LENGTH_NOTE = (
    "the instruction-length list of SDM 092 does not name this instruction; treated as filled "
    "(Xen advances RIP by it for the MSR forms)"
)


@plain_members
class ExitReason(IntEnum):
    """Basic exit reasons: bits 15:0 of the exit-reason field."""

    __hash__ = int.__hash__

    EXCEPTION_OR_NMI = _event(
        0,
        "Exception or non-maskable interrupt (NMI)",
        (
            "an exception selected by the exception bitmap (or page-fault filter), or an NMI with "
            "NMI exiting"
        ),
        qualification="by_vector",
        length=CONDITIONAL,
        interruption=YES,
        vectoring=True,
        note=(
            "qualification: vector 1 debug_exception, vector 14 page_fault, NMI nmi_source (0 "
            "without NMI-source reporting), others 0. Length only for INT3/INTO/INT1-generated "
            "exceptions, or for a fault met while delivering a software interrupt/exception. "
            "Faults exit fault-like, #DB traps after the instruction."
        ),
    )
    EXTERNAL_INTERRUPT = _event(
        1,
        "External interrupt",
        "an unmasked external interrupt arrived with external-interrupt exiting",
        interruption=CONDITIONAL,
        note="interruption information valid only if exit1.acknowledge_interrupt_on_exit",
    )
    TRIPLE_FAULT = _event(
        2,
        "Triple fault",
        "an exception while invoking the double-fault handler that did not itself exit",
    )
    INIT_SIGNAL = _event(
        3, "INIT signal", "INIT arrived in non-root operation outside wait-for-SIPI"
    )
    STARTUP_IPI = _event(
        4,
        "Start-up IPI (SIPI)",
        "SIPI arrived while in the wait-for-SIPI activity state",
        qualification="sipi",
    )
    IO_SMI = _event(
        5,
        "I/O system-management interrupt (SMI)",
        "SMI right after an I/O instruction retired, dual-monitor treatment (SMM VM exit)",
        qualification="io_smi",
        linear=CONDITIONAL,
        note=(
            "also fills io_rcx, io_rsi, io_rdi, io_rip; guest-linear address for INS/OUTS with "
            "usable segment; only reachable with dual-monitor treatment active"
        ),
    )
    OTHER_SMI = _event(
        6, "Other SMI", "SMI not following an I/O instruction, dual-monitor treatment (SMM VM exit)"
    )
    INTERRUPT_WINDOW = _event(
        7, "Interrupt window", "interrupts became deliverable with interrupt-window exiting"
    )
    NMI_WINDOW = _event(8, "NMI window", "no virtual-NMI blocking with NMI-window exiting")
    TASK_SWITCH = _fault(
        9,
        "Task switch",
        "guest tried to switch tasks and the preliminary checks passed",
        qualification="task_switch",
        length=CONDITIONAL,
        vectoring=True,
        note=(
            "length for CALL/JMP/IRET, or a task gate reached by software interrupt, software "
            "exception or privileged software exception. IDT-vectoring valid when a task gate in "
            "the IDT was used."
        ),
    )
    CPUID = _fault(10, "CPUID", "CPUID executed")
    GETSEC = _fault(11, "GETSEC", "GETSEC executed")
    HLT = _fault(12, "HLT", "HLT executed with HLT exiting")
    INVD = _fault(13, "INVD", "INVD executed")
    INVLPG = _fault(
        14, "INVLPG", "INVLPG executed with INVLPG exiting", qualification="linear_address"
    )
    RDPMC = _fault(15, "RDPMC", "RDPMC executed with RDPMC exiting")
    RDTSC = _fault(16, "RDTSC", "RDTSC executed with RDTSC exiting")
    RSM = _fault(17, "RSM", "RSM executed in SMM in non-root operation")
    VMCALL = _fault(
        18,
        "VMCALL",
        "VMCALL executed by the guest, or by the executive monitor to reach the SMM monitor",
    )
    VMCLEAR = _fault(
        19,
        "VMCLEAR",
        "VMCLEAR executed",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    VMLAUNCH = _fault(20, "VMLAUNCH", "VMLAUNCH executed")
    VMPTRLD = _fault(
        21,
        "VMPTRLD",
        "VMPTRLD executed",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    VMPTRST = _fault(
        22,
        "VMPTRST",
        "VMPTRST executed",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    VMREAD = _fault(
        23,
        "VMREAD",
        "VMREAD executed and not handled by VMCS shadowing",
        qualification="displacement",
        information="vmread_vmwrite",
    )
    VMRESUME = _fault(24, "VMRESUME", "VMRESUME executed")
    VMWRITE = _fault(
        25,
        "VMWRITE",
        "VMWRITE executed and not handled by VMCS shadowing",
        qualification="displacement",
        information="vmread_vmwrite",
    )
    VMXOFF = _fault(26, "VMXOFF", "VMXOFF executed")
    VMXON = _fault(
        27,
        "VMXON",
        "VMXON executed",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    CONTROL_REGISTER_ACCESS = _fault(
        28,
        "Control-register accesses",
        "CLTS, LMSW or MOV CR that the masks, shadows, targets or controls do not allow",
        qualification="cr_access",
        linear=CONDITIONAL,
        note=(
            "guest-linear address only for LMSW with memory operand. Not used for the trap-like "
            "exit after MOV to CR8 (reason 43)."
        ),
    )
    MOV_DR = _fault(
        29, "MOV DR", "MOV to or from a debug register with MOV-DR exiting", qualification="mov_dr"
    )
    IO_INSTRUCTION = _fault(
        30,
        "I/O instruction",
        "IN, OUT, INS or OUTS selected by unconditional I/O exiting or the I/O bitmaps",
        qualification="io_instruction",
        linear=CONDITIONAL,
        information="ins_outs",
        note=(
            "guest-linear address and (if IA32_VMX_BASIC[54]) instruction information only for "
            "INS/OUTS"
        ),
    )
    RDMSR = _fault(
        31,
        "RDMSR",
        "RDMSR (implicit ECX form) selected by the MSR bitmaps or without bitmaps",
        note="qualification 0",
    )
    WRMSR = _fault(
        32,
        "WRMSR or WRMSRNS",
        "WRMSR (or WRMSRNS, implicit form) selected by the MSR bitmaps or without bitmaps",
        qualification="wrmsr_kind",
        note=(
            "SDM 092: reason 32 covers both, qualification 0 WRMSR / 1 WRMSRNS. Bochs reports "
            "WRMSRNS as reason 85 with qualification 1 (disagrees)."
        ),
    )
    ENTRY_FAILURE_GUEST_STATE = _entry_failure(
        33,
        "VM-entry failure due to invalid guest state",
        "a guest-state check of VM entry failed",
        qualification="entry_failure_guest_state",
        note=_ENTRY_FAILURE_NOTE,
    )
    ENTRY_FAILURE_MSR_LOADING = _entry_failure(
        34,
        "VM-entry failure due to MSR loading",
        "loading the VM-entry MSR-load area failed",
        qualification="entry_failure_msr",
        note=_ENTRY_FAILURE_NOTE,
    )
    MWAIT = _fault(36, "MWAIT", "MWAIT executed with MWAIT exiting", qualification="mwait")
    MONITOR_TRAP_FLAG = _event(
        37,
        "Monitor trap flag",
        "pending MTF VM exit reached an instruction boundary",
        note=(
            "taken at the boundary after an instruction, or right after VM entry when injected; "
            "saves pending debug exceptions"
        ),
    )
    MONITOR = _fault(39, "MONITOR", "MONITOR executed with MONITOR exiting")
    PAUSE = _fault(
        40,
        "PAUSE",
        "PAUSE executed with PAUSE exiting, or a CPL0 PAUSE loop detected",
        note="covers both PAUSE exiting and PAUSE-loop exiting",
    )
    ENTRY_FAILURE_MACHINE_CHECK = _entry_failure(
        41,
        "VM-entry failure due to machine-check event",
        "a machine check happened during VM entry",
        note=_ENTRY_FAILURE_NOTE,
    )
    TPR_BELOW_THRESHOLD = _trap(
        43,
        "TPR below threshold",
        (
            "VTPR[7:4] dropped below the TPR threshold (MOV CR8, WRMSR 808H, APIC-page write, or "
            "at VM entry)"
        ),
        note="RIP references the following instruction",
    )
    APIC_ACCESS = _fault(
        44,
        "APIC access",
        "access to the APIC-access page that was not virtualized",
        qualification="apic_access",
        length=CONDITIONAL,
        vectoring=True,
        note=(
            "length only if met while delivering a software interrupt or software/privileged "
            "software exception"
        ),
    )
    VIRTUALIZED_EOI = _trap(
        45,
        "Virtualized EOI",
        "EOI virtualization of a vector whose EOI-exit bit is set",
        qualification="eoi_vector",
        note="RIP references the following instruction",
    )
    GDTR_IDTR_ACCESS = _fault(
        46,
        "Access to GDTR or IDTR",
        "LGDT, LIDT, SGDT or SIDT with descriptor-table exiting",
        qualification="displacement",
        information="gdtr_idtr",
    )
    LDTR_TR_ACCESS = _fault(
        47,
        "Access to LDTR or TR",
        "LLDT, LTR, SLDT or STR with descriptor-table exiting",
        qualification="displacement",
        information="ldtr_tr",
    )
    EPT_VIOLATION = _fault(
        48,
        "EPT violation",
        "EPT permissions (or a not-present EPT entry) forbid the access",
        qualification="ept_violation",
        linear=CONDITIONAL,
        physical=YES,
        length=CONDITIONAL,
        vectoring=True,
        note=(
            "guest-linear address valid iff qualification bit 7. Trap-like only for trace-address "
            "pre-translation and PEBS cases. Length only if met while delivering a software "
            "interrupt/exception."
        ),
    )
    EPT_MISCONFIGURATION = _fault(
        49,
        "EPT misconfiguration",
        "an EPT entry holds an unsupported value",
        linear=CONDITIONAL,
        physical=YES,
        length=NO,
        vectoring=True,
        note=(
            "qualification cleared; guest-linear address undefined unless "
            "exit2.prematurely_busy_shadow_stack is 1 and the exit left a shadow stack prematurely "
            "busy. Bochs stores a linear address anyway."
        ),
    )
    INVEPT = _fault(
        50, "INVEPT", "INVEPT executed", qualification="displacement", information="inv_descriptor"
    )
    RDTSCP = _fault(51, "RDTSCP", "RDTSCP executed with enable RDTSCP and RDTSC exiting")
    VMX_PREEMPTION_TIMER_EXPIRED = _event(
        52, "VMX-preemption timer expired", "the preemption timer reached zero"
    )
    INVVPID = _fault(
        53,
        "INVVPID",
        "INVVPID executed",
        qualification="displacement",
        information="inv_descriptor",
    )
    WBINVD_OR_WBNOINVD = _fault(
        54,
        "WBINVD or WBNOINVD",
        "WBINVD or WBNOINVD executed with WBINVD exiting",
        qualification="wbinvd_kind",
        note="2016 edition lists WBINVD only, qualification 0",
    )
    XSETBV = _fault(55, "XSETBV", "XSETBV executed")
    APIC_WRITE = _trap(
        56,
        "APIC write",
        "a virtualized write to the virtual-APIC page needs software completion",
        qualification="apic_write",
        note="RIP references the following instruction",
    )
    RDRAND = _fault(
        57, "RDRAND", "RDRAND executed with RDRAND exiting", information="rdrand_rdseed"
    )
    INVPCID = _fault(
        58,
        "INVPCID",
        "INVPCID executed with enable INVPCID and INVLPG exiting",
        qualification="displacement",
        information="inv_descriptor",
    )
    VMFUNC = _fault(
        59, "VMFUNC", "VMFUNC of a function not enabled, or whose own conditions force an exit"
    )
    ENCLS = _fault(60, "ENCLS", "ENCLS leaf selected by the ENCLS-exiting bitmap")
    RDSEED = _fault(
        61, "RDSEED", "RDSEED executed with RDSEED exiting", information="rdrand_rdseed"
    )
    PAGE_MODIFICATION_LOG_FULL = _fault(
        62,
        "Page-modification log full",
        "an EPT A/D update was needed while the PML index was outside 0-511",
        qualification="pml_full",
        linear=CONDITIONAL,
        length=CONDITIONAL,
        vectoring=True,
        note=(
            "guest-physical address not architecturally filled (SDM lists only 48, 49, 66); "
            "guest-linear address only with exit2.prematurely_busy_shadow_stack and a busy shadow "
            "stack"
        ),
    )
    XSAVES = _fault(
        63,
        "XSAVES",
        "XSAVES with a component selected by EDX:EAX, IA32_XSS and the XSS-exiting bitmap",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    XRSTORS = _fault(
        64,
        "XRSTORS",
        "XRSTORS with a component selected by EDX:EAX, IA32_XSS and the XSS-exiting bitmap",
        qualification="displacement",
        information="vmx_memory_operand",
    )
    PCONFIG = _fault(
        65,
        "PCONFIG",
        "PCONFIG leaf selected by the PCONFIG-exiting bitmap",
        note="65 was PCOMMIT in withdrawn 2015-16 drafts",
    )
    SPP_RELATED_EVENT = _fault(
        66,
        "SPP-related event",
        "sub-page permission lookup met a miss or misconfiguration",
        qualification="spp_event",
        linear=YES,
        physical=YES,
        length=CONDITIONAL,
        vectoring=True,
    )
    UMWAIT = _fault(
        67,
        "UMWAIT",
        "UMWAIT executed with enable user wait and pause and RDTSC exiting",
        information="tpause_umwait",
    )
    TPAUSE = _fault(
        68,
        "TPAUSE",
        "TPAUSE executed with enable user wait and pause and RDTSC exiting",
        information="tpause_umwait",
    )
    LOADIWKEY = _fault(
        69, "LOADIWKEY", "LOADIWKEY executed with LOADIWKEY exiting", information="loadiwkey"
    )
    ENCLV = _fault(
        70,
        "ENCLV",
        "ENCLV leaf selected by the ENCLV-exiting bitmap",
        length=CONDITIONAL,
        note=(
            "ENCLV exiting dropped from SDM 092 (control, bitmap and length list no longer mention "
            "it)"
        ),
    )
    ENQCMD_PASID_TRANSLATION_FAILURE = _fault(
        72,
        "ENQCMD PASID translation failure",
        "PASID translation failed for ENQCMD",
        qualification="enqcmd_pasid",
        length=CONDITIONAL,
        note=_LENGTH_NOTE,
    )
    ENQCMDS_PASID_TRANSLATION_FAILURE = _fault(
        73,
        "ENQCMDS PASID translation failure",
        "PASID translation failed for ENQCMDS",
        qualification="enqcmds_pasid",
        length=CONDITIONAL,
        note=_LENGTH_NOTE,
    )
    BUS_LOCK = _trap(
        74,
        "Bus lock",
        "a bus lock was asserted with VMM bus-lock detection",
        note="exit-reason bit 26 is set too; another exit that preempts it also reports bit 26",
    )
    INSTRUCTION_TIMEOUT = _event(
        75,
        "Instruction timeout",
        "no instruction boundary reached within the instruction-timeout control",
        qualification="instruction_timeout",
        linear=CONDITIONAL,
        note=(
            "called notify in Linux and Xen; guest-linear address only with "
            "exit2.prematurely_busy_shadow_stack, a busy shadow stack and valid VM context"
        ),
    )
    SEAMCALL = _fault(76, "SEAMCALL", "SEAMCALL executed in non-root operation")
    TDCALL = _fault(77, "TDCALL", "TDCALL executed in non-root operation")
    RDMSRLIST = _fault(
        78,
        "RDMSRLIST",
        "RDMSRLIST without MSR bitmaps, or an MSR in the list selected by the bitmaps",
        qualification="msr_index_if_bitmaps",
        length=CONDITIONAL,
        note=_LENGTH_NOTE + "; RCX bit of the failing MSR stays set",
    )
    WRMSRLIST = _fault(
        79,
        "WRMSRLIST",
        "WRMSRLIST without MSR bitmaps, or an MSR in the list selected by the bitmaps",
        qualification="msr_index_if_bitmaps",
        length=CONDITIONAL,
        note=_LENGTH_NOTE
        + "; value that would be written goes to the msr_data field; RCX bit stays set",
    )
    URDMSR = _fault(
        80,
        "URDMSR",
        "URDMSR allowed by the user-MSR bitmap but selected by the MSR bitmaps",
        qualification="msr_index",
        length=CONDITIONAL,
        information="msr_imm",
        note=(
            "Xen patch series (v4-v9) uses qualification = MSR index and register in instruction "
            "information bits 6:3; SDM 092 lists neither; Bochs stores qualification 0; "
        )
        + _LENGTH_NOTE,
    )
    UWRMSR = _fault(
        81,
        "UWRMSR",
        "UWRMSR allowed by the user-MSR bitmap but selected by the MSR bitmaps",
        qualification="msr_index",
        length=CONDITIONAL,
        information="msr_imm",
        note="as for 80",
    )
    RDMSR_IMMEDIATE = _fault(
        84,
        "RDMSR (immediate form)",
        "RDMSR with immediate MSR address selected by the MSR bitmaps or without bitmaps",
        qualification="msr_index",
        length=CONDITIONAL,
        information="msr_imm",
        note=(
            "qualification = MSR index, instruction information bits 6:3 = destination register "
            "(KVM and Xen patches); not in the SDM 092 qualification list; Bochs stores "
            "qualification 0"
        ),
    )
    WRMSRNS_IMMEDIATE = _fault(
        85,
        "WRMSRNS (immediate form)",
        "WRMSRNS with immediate MSR address selected by the MSR bitmaps or without bitmaps",
        qualification="msr_index",
        length=CONDITIONAL,
        information="msr_imm",
        note=(
            "qualification = MSR index, instruction information bits 6:3 = source register (KVM "
            "and Xen patches). Bochs uses 85 for every WRMSRNS, qualification 1."
        ),
    )

    # The names that Linux (KVM, perf, ftrace) uses where they differ, as in its uapi/asm/vmx.h
    EXCEPTION_NMI = EXCEPTION_OR_NMI
    SIPI_SIGNAL = STARTUP_IPI
    VMOFF = VMXOFF
    VMON = VMXON
    CR_ACCESS = CONTROL_REGISTER_ACCESS
    DR_ACCESS = MOV_DR
    MSR_READ = RDMSR
    MSR_WRITE = WRMSR
    INVALID_STATE = ENTRY_FAILURE_GUEST_STATE
    MSR_LOAD_FAIL = ENTRY_FAILURE_MSR_LOADING
    MWAIT_INSTRUCTION = MWAIT
    MONITOR_INSTRUCTION = MONITOR
    PAUSE_INSTRUCTION = PAUSE
    MCE_DURING_VMENTRY = ENTRY_FAILURE_MACHINE_CHECK
    EOI_INDUCED = VIRTUALIZED_EOI
    GDTR_IDTR = GDTR_IDTR_ACCESS
    LDTR_TR = LDTR_TR_ACCESS
    EPT_MISCONFIG = EPT_MISCONFIGURATION
    PREEMPTION_TIMER = VMX_PREEMPTION_TIMER_EXPIRED
    WBINVD = WBINVD_OR_WBNOINVD
    PML_FULL = PAGE_MODIFICATION_LOG_FULL
    NOTIFY = INSTRUCTION_TIMEOUT
    MSR_READ_IMM = RDMSR_IMMEDIATE
    MSR_WRITE_IMM = WRMSRNS_IMMEDIATE


class ExitInfo(NamedTuple):
    """One basic exit reason.

    Attributes
    ----------
    reason : ExitReason
        The reason; its value is the number.
    name : str
        The reason's name in lower case.
    sdm_title : str
        The name the manual prints.
    meaning : str
        What happened.
    kind : ExitKind
        Fault-like, trap-like, an event, or a failed VM entry.
    qualification : str or None
        Layout of the exit qualification (a key of
        :data:`vtx.facts.qualifications.QUALIFICATIONS`); None: the field is cleared.
    guest_linear_address, guest_physical_address, instruction_length : Filled
        Whether the field is filled; NO leaves it undefined.
    instruction_information : str or None
        Layout of the VM-exit instruction information (a key of
        :data:`vtx.facts.qualifications.INSTRUCTION_INFORMATION`); None: undefined.
    interruption_information : Filled
        Whether the valid bit of the VM-exit interruption information is set.
    idt_vectoring_possible : bool
        Whether the exit can happen while another event is being delivered.
    note : str or None
        What else is worth knowing.
    """

    reason: ExitReason
    name: str
    sdm_title: str
    meaning: str
    kind: ExitKind
    qualification: str | None
    guest_linear_address: Filled
    guest_physical_address: Filled
    instruction_length: Filled
    instruction_information: str | None
    interruption_information: Filled
    idt_vectoring_possible: bool
    note: str | None


#: Every basic exit reason with its row, by number.
EXITS: dict[ExitReason, ExitInfo] = {
    reason: ExitInfo(reason, reason._name_.lower(), *row)
    for reason, row in zip(ExitReason, _rows, strict=True)
}

#: Names found in older kernels' traces and in Xen's, in lower case.
OTHER_NAMES: dict[str, ExitReason] = {
    # Xen
    "init": ExitReason.INIT_SIGNAL,
    "sipi": ExitReason.STARTUP_IPI,
    "pending_virt_intr": ExitReason.INTERRUPT_WINDOW,
    "pending_virt_nmi": ExitReason.NMI_WINDOW,
    "invalid_guest_state": ExitReason.ENTRY_FAILURE_GUEST_STATE,
    "msr_loading": ExitReason.ENTRY_FAILURE_MSR_LOADING,
    "machine_check": ExitReason.ENTRY_FAILURE_MACHINE_CHECK,
    "access_gdtr_or_idtr": ExitReason.GDTR_IDTR_ACCESS,
    "access_ldtr_or_tr": ExitReason.LDTR_TR_ACCESS,
    # Linux before 5.6
    "pending_interrupt": ExitReason.INTERRUPT_WINDOW,
    # Linux 2.6.3x, which traced in lower case
    "exception": ExitReason.EXCEPTION_OR_NMI,
    "ext_irq": ExitReason.EXTERNAL_INTERRUPT,
    "halt": ExitReason.HLT,
    "hypercall": ExitReason.VMCALL,
    "tpr_below_thres": ExitReason.TPR_BELOW_THRESHOLD,
}

_KVM_NAMES: dict[ExitReason, str] = {
    reason: name for name, reason in ExitReason.__members__.items() if name != reason._name_
}


def kvm_name(reason: ExitReason) -> str:
    """Return the name that KVM's tracepoints and ``perf kvm stat`` print for `reason`."""
    return _KVM_NAMES.get(reason, reason._name_)


def find_exit_reason(what: str | int) -> ExitInfo:
    """Return the row of an exit reason by name (the manual's, KVM's) or number.

    Parameters
    ----------
    what : str or int
        ``"ept_violation"``, ``"EPT violation"``, ``"MSR_WRITE"``, ``48``, ``"0x30"``; of a whole
        exit-reason field (``0x80000021``) bits 15:0 count.

    Raises
    ------
    UnknownName
        No exit has this reason; the nearest names are given.
    """
    number = as_number(what)
    if number is not None:
        basic = number & 0xFFFF
        if number >> 32 == 0 and basic in EXITS:
            return EXITS[ExitReason(basic)]
        raise UnknownName("exit reason", what)
    name = canonical(str(what)).removeprefix("exit_reason_")
    names = _names()
    if name not in names:
        raise UnknownName("exit reason", what, names)
    return EXITS[names[name]]


def _names() -> dict[str, ExitReason]:
    """Return every name a reason is known by, those of the enumeration first."""
    names = {name.lower(): reason for name, reason in ExitReason.__members__.items()}
    for name, reason in OTHER_NAMES.items():
        names.setdefault(name, reason)
    for reason, info in EXITS.items():
        names.setdefault(canonical(info.sdm_title), reason)
    return names
