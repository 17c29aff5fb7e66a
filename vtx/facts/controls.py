"""Every defined bit of the VMX controls, as the tables of the manual list them.

Members are *masks*, so that a test of a control is plain arithmetic::

    if proc2 & Proc2.ENABLE_EPT: ...

Source: SDM, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields",
and the appendix "VMX Capability Reporting Facility".
"""

from enum import IntEnum
from typing import NamedTuple

from vtx.errors import UnknownName
from vtx.facts.fields import Field
from vtx.facts.lookup import canonical
from vtx.facts.members import plain_members

__all__ = [
    "CONTROL_CLASSES",
    "GROUPS",
    "ControlGroup",
    "ControlInfo",
    "Entry",
    "Exit1",
    "Exit2",
    "Pin",
    "Proc1",
    "Proc2",
    "Proc3",
    "VmFunction",
    "control_info",
    "find_control",
    "find_controls",
]


class ControlInfo(NamedTuple):
    """One control bit.

    Attributes
    ----------
    control : IntEnum
        The member; its value is the mask ``1 << bit``.
    group : str
        Key of its group: ``"pin"``, ``"proc1"`` ...
    name : str
        Name in lower case; ``f"{group}.{name}"`` is how other tables refer to it.
    bit : int
        Bit position.
    sdm_name : str
        The name the manual prints.
    meaning : str
        What the 1-setting does (or the 0-setting, where it says so).
    default1 : bool
        In the default1 class: must be 1 unless a TRUE capability MSR allows 0.
    depends : str or None
        What VM entry demands of other controls when this one is 1.
    note : str or None
        What else is worth knowing.
    """

    control: IntEnum
    group: str
    name: str
    bit: int
    sdm_name: str
    meaning: str
    default1: bool
    depends: str | None
    note: str | None

    @property
    def key(self) -> str:
        """How the tables refer to this control: ``"proc2.enable_ept"``."""
        return f"{self.group}.{self.name}"


class ControlGroup(NamedTuple):
    """One vector of controls.

    Attributes
    ----------
    key : str
        ``"pin"``, ``"proc1"``, ``"proc2"``, ``"proc3"``, ``"exit1"``, ``"exit2"``, ``"entry"`` or
        ``"vmfunc"``.
    title : str
        The manual's name.
    members : type
        The enumeration of its bits.
    field : Field
        The VMCS field that holds it.
    width : int
        32 or 64.
    capability_msr, true_capability_msr : str, str or None
        Names of the MSRs that report which settings the CPU allows.
    default1_mask : int
        Bits of the default1 class, those without a name included.
    reserved : str
        What is said of the bits that have no name.
    controls : tuple of ControlInfo
        The named bits, lowest first.
    activated_by : str or None
        The control without which all bits of this group act as 0.
    """

    key: str
    title: str
    members: type[IntEnum]
    field: Field
    width: int
    capability_msr: str
    true_capability_msr: str | None
    default1_mask: int
    reserved: str
    controls: tuple[ControlInfo, ...]
    activated_by: str | None


#: What a row says: bit, name in the manual, meaning, depends, note.
_Row = tuple[int, str, str, str | None, str | None]


class _Rows:
    """Writes the rows of one group: keeps the row, and gives its mask to the enum."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []

    def __call__(
        self,
        bit: int,
        sdm_name: str,
        meaning: str,
        *,
        depends: str | None = None,
        note: str | None = None,
    ) -> int:
        self.rows.append((bit, sdm_name, meaning, depends, note))
        return 1 << bit


_pin, _proc1, _proc2, _proc3 = _Rows(), _Rows(), _Rows(), _Rows()
_exit1, _exit2, _entry, _vmfunc = _Rows(), _Rows(), _Rows(), _Rows()


@plain_members
class Pin(IntEnum):
    """Pin-based VM-execution controls (``pin_based_controls``)."""

    __hash__ = int.__hash__

    EXTERNAL_INTERRUPT_EXITING = _pin(
        0,
        "External-interrupt exiting",
        "external interrupts exit instead of being delivered; IF then ignored",
    )
    NMI_EXITING = _pin(3, "NMI exiting", "NMIs exit; IRET no longer affects physical NMI blocking")
    VIRTUAL_NMIS = _pin(
        5,
        "Virtual NMIs",
        "interruptibility bit 3 tracks virtual-NMI blocking; IRET clears it",
        depends="pin.nmi_exiting must be 1",
    )
    ACTIVATE_VMX_PREEMPTION_TIMER = _pin(
        6,
        "Activate VMX-preemption timer",
        "countdown timer runs in non-root operation; exit at zero",
    )
    PROCESS_POSTED_INTERRUPTS = _pin(
        7,
        "Process posted interrupts",
        "notification vector merges posted requests into the virtual APIC page",
        depends=(
            "proc2.virtual_interrupt_delivery and exit1.acknowledge_interrupt_on_exit must be 1"
        ),
    )


@plain_members
class Proc1(IntEnum):
    """Primary processor-based VM-execution controls (``primary_processor_based_controls``)."""

    __hash__ = int.__hash__

    INTERRUPT_WINDOW_EXITING = _proc1(
        2, "Interrupt-window exiting", "exit at instruction start when interrupts are deliverable"
    )
    USE_TSC_OFFSETTING = _proc1(
        3, "Use TSC offsetting", "TSC reads return value adjusted by the TSC-offset field"
    )
    HLT_EXITING = _proc1(7, "HLT exiting", "HLT exits")
    INVLPG_EXITING = _proc1(9, "INVLPG exiting", "INVLPG exits; INVPCID too when it is enabled")
    MWAIT_EXITING = _proc1(10, "MWAIT exiting", "MWAIT exits")
    RDPMC_EXITING = _proc1(11, "RDPMC exiting", "RDPMC exits")
    RDTSC_EXITING = _proc1(12, "RDTSC exiting", "RDTSC and enabled RDTSCP, TPAUSE, UMWAIT exit")
    CR3_LOAD_EXITING = _proc1(
        15,
        "CR3-load exiting",
        "MOV to CR3 exits unless value is a CR3 target",
        note="default1: 0-setting only if the TRUE capability MSR allows it",
    )
    CR3_STORE_EXITING = _proc1(
        16,
        "CR3-store exiting",
        "MOV from CR3 exits",
        note="default1: 0-setting only if the TRUE capability MSR allows it",
    )
    ACTIVATE_TERTIARY_CONTROLS = _proc1(
        17, "Activate tertiary controls", "0 treats all tertiary controls as 0"
    )
    CR8_LOAD_EXITING = _proc1(19, "CR8-load exiting", "MOV to CR8 exits")
    CR8_STORE_EXITING = _proc1(20, "CR8-store exiting", "MOV from CR8 exits")
    USE_TPR_SHADOW = _proc1(
        21,
        "Use TPR shadow",
        "TPR virtualization through the virtual-APIC page; base for APIC virtualization",
    )
    NMI_WINDOW_EXITING = _proc1(
        22,
        "NMI-window exiting",
        "exit at instruction start when no virtual-NMI blocking",
        depends="pin.virtual_nmis must be 1",
    )
    MOV_DR_EXITING = _proc1(23, "MOV-DR exiting", "MOV to/from debug registers exits")
    UNCONDITIONAL_IO_EXITING = _proc1(
        24,
        "Unconditional I/O exiting",
        "every I/O instruction exits; ignored when I/O bitmaps are used",
    )
    USE_IO_BITMAPS = _proc1(25, "Use I/O bitmaps", "I/O exits decided per port by bitmaps A and B")
    MONITOR_TRAP_FLAG = _proc1(
        27, "Monitor trap flag", "exit after each guest instruction boundary"
    )
    USE_MSR_BITMAPS = _proc1(
        28, "Use MSR bitmaps", "MSR exits decided per MSR; 0 makes every access exit"
    )
    MONITOR_EXITING = _proc1(29, "MONITOR exiting", "MONITOR exits")
    PAUSE_EXITING = _proc1(30, "PAUSE exiting", "PAUSE exits at any CPL")
    ACTIVATE_SECONDARY_CONTROLS = _proc1(
        31, "Activate secondary controls", "0 treats all secondary controls as 0"
    )


@plain_members
class Proc2(IntEnum):
    """Secondary processor-based VM-execution controls (``secondary_processor_based_controls``)."""

    __hash__ = int.__hash__

    VIRTUALIZE_APIC_ACCESSES = _proc2(
        0, "Virtualize APIC accesses", "accesses to the APIC-access page exit or are virtualized"
    )
    ENABLE_EPT = _proc2(1, "Enable EPT", "guest-physical addresses are translated by EPT")
    DESCRIPTOR_TABLE_EXITING = _proc2(
        2, "Descriptor-table exiting", "LGDT LIDT LLDT LTR SGDT SIDT SLDT STR exit"
    )
    ENABLE_RDTSCP = _proc2(3, "Enable RDTSCP", "0 makes RDTSCP and RDPID raise #UD")
    VIRTUALIZE_X2APIC_MODE = _proc2(
        4,
        "Virtualize x2APIC mode",
        "RDMSR/WRMSR of 800H-8FFH specially handled",
        depends="proc1.use_tpr_shadow 1 and proc2.virtualize_apic_accesses 0",
    )
    ENABLE_VPID = _proc2(5, "Enable VPID", "cached linear translations tagged with the VPID field")
    WBINVD_EXITING = _proc2(6, "WBINVD exiting", "WBINVD and WBNOINVD exit")
    UNRESTRICTED_GUEST = _proc2(
        7,
        "Unrestricted guest",
        "guest may run with CR0.PE or CR0.PG clear",
        depends="proc2.enable_ept must be 1",
    )
    APIC_REGISTER_VIRTUALIZATION = _proc2(
        8,
        "APIC-register virtualization",
        "most APIC register reads come from the virtual-APIC page",
        depends="proc1.use_tpr_shadow must be 1",
    )
    VIRTUAL_INTERRUPT_DELIVERY = _proc2(
        9,
        "Virtual-interrupt delivery",
        "evaluate and deliver virtual interrupts; emulate EOI, self-IPI, TPR writes",
        depends="proc1.use_tpr_shadow and pin.external_interrupt_exiting must be 1",
    )
    PAUSE_LOOP_EXITING = _proc2(
        10, "PAUSE-loop exiting", "CPL0 PAUSE loops exit per PLE_Gap and PLE_Window"
    )
    RDRAND_EXITING = _proc2(11, "RDRAND exiting", "RDRAND exits")
    ENABLE_INVPCID = _proc2(12, "Enable INVPCID", "0 makes INVPCID raise #UD")
    ENABLE_VM_FUNCTIONS = _proc2(13, "Enable VM functions", "VMFUNC usable in non-root operation")
    VMCS_SHADOWING = _proc2(14, "VMCS shadowing", "guest VMREAD/VMWRITE may access the shadow VMCS")
    ENABLE_ENCLS_EXITING = _proc2(15, "Enable ENCLS exiting", "ENCLS consults its exiting bitmap")
    RDSEED_EXITING = _proc2(16, "RDSEED exiting", "RDSEED exits")
    ENABLE_PML = _proc2(
        17,
        "Enable PML",
        "EPT dirty-bit updates log the GPA first",
        depends="proc2.enable_ept must be 1",
    )
    EPT_VIOLATION_VE = _proc2(
        18, "EPT-violation #VE", "convertible EPT violations become #VE instead of exits"
    )
    CONCEAL_VMX_FROM_PT = _proc2(
        19, "Conceal VMX from PT", "processor trace omits non-root indications"
    )
    ENABLE_XSAVES_XRSTORS = _proc2(
        20, "Enable XSAVES/XRSTORS", "0 makes XSAVES and XRSTORS raise #UD"
    )
    PASID_TRANSLATION = _proc2(
        21,
        "PASID translation",
        "ENQCMD(S) PASIDs translated through VMM tables",
        note=(
            "some sources call it enable PASID translation; Bochs does not define it. 2015-16 "
            "drafts used bit 21 (and exit reason 65) for PCOMMIT exiting, withdrawn with PCOMMIT"
        ),
    )
    MODE_BASED_EXECUTE_CONTROL_FOR_EPT = _proc2(
        22,
        "Mode-based execute control for EPT",
        "EPT execute permission split into supervisor (bit 2) and user (bit 10)",
        depends="proc2.enable_ept must be 1",
    )
    SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT = _proc2(
        23,
        "Sub-page write permissions for EPT",
        "EPT write permission at 128-byte granularity",
        depends="proc2.enable_ept must be 1",
    )
    INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES = _proc2(
        24,
        "Intel PT uses guest physical addresses",
        "trace output addresses are guest-physical",
        depends="proc2.enable_ept, entry.load_ia32_rtit_ctl, exit1.clear_ia32_rtit_ctl must be 1",
    )
    USE_TSC_SCALING = _proc2(
        25,
        "Use TSC scaling",
        "TSC multiplied by TSC-multiplier (48 fraction bits) before the offset",
    )
    ENABLE_USER_WAIT_AND_PAUSE = _proc2(
        26, "Enable user wait and pause", "0 makes TPAUSE, UMONITOR, UMWAIT raise #UD"
    )
    ENABLE_PCONFIG = _proc2(27, "Enable PCONFIG", "0 makes PCONFIG raise #UD; 1 uses the bitmap")
    ENABLE_ENCLV_EXITING = _proc2(
        28,
        "Enable ENCLV exiting",
        "ENCLV consults its exiting bitmap",
        note="removed from the table in SDM 092; Bochs, ia32-doc, Linux headers still define it",
    )
    VMM_BUS_LOCK_DETECTION = _proc2(
        30, "VMM bus-lock detection", "asserting a bus lock causes a trap-like exit"
    )
    INSTRUCTION_TIMEOUT = _proc2(
        31,
        "Instruction timeout",
        "exit if no instruction boundary within the timeout (notify)",
        note="Linux/Xen: NOTIFY_VM_EXITING",
    )


@plain_members
class Proc3(IntEnum):
    """Tertiary processor-based VM-execution controls (``tertiary_processor_based_controls``)."""

    __hash__ = int.__hash__

    LOADIWKEY_EXITING = _proc3(0, "LOADIWKEY exiting", "LOADIWKEY exits")
    ENABLE_HLAT = _proc3(
        1,
        "Enable HLAT",
        "hypervisor-managed linear-address translation is used",
        depends="proc2.enable_ept must be 1",
    )
    EPT_PAGING_WRITE_CONTROL = _proc3(
        2,
        "EPT paging-write control",
        "EPT leaf bit 58 permits paging-related writes",
        depends="proc2.enable_ept must be 1",
    )
    GUEST_PAGING_VERIFICATION = _proc3(
        3,
        "Guest-paging verification",
        "EPT leaf bit 57 demands verified guest paging structures",
        depends="proc2.enable_ept must be 1",
    )
    IPI_VIRTUALIZATION = _proc3(
        4,
        "IPI virtualization",
        "ICR writes post interrupts through the PID-pointer table",
        depends="proc1.use_tpr_shadow must be 1",
    )
    SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH = _proc3(
        5, "SEAM guest-physical address width", "selects shared/private split of GPAs in SEAM"
    )
    ENABLE_MSR_LIST_INSTRUCTIONS = _proc3(
        6, "Enable MSR-list instructions", "0 makes RDMSRLIST and WRMSRLIST raise #UD"
    )
    VIRTUALIZE_IA32_SPEC_CTRL = _proc3(
        7, "Virtualize IA32_SPEC_CTRL", "guest IA32_SPEC_CTRL accesses use mask and shadow fields"
    )
    APIC_TIMER_VIRTUALIZATION = _proc3(
        8,
        "APIC-timer virtualization",
        "guest TSC-deadline writes arm the guest timer",
        depends="proc2.virtual_interrupt_delivery 1, proc1.rdtsc_exiting 0",
    )
    ENABLE_PBNDKB = _proc3(9, "Enable PBNDKB", "0 makes PBNDKB raise #UD")
    PEBS_USES_GUEST_PHYSICAL_ADDRESSES = _proc3(
        12,
        "PEBS uses guest physical addresses",
        "architectural PEBS output addresses are guest-physical",
        depends="proc2.enable_ept must be 1",
    )


@plain_members
class Exit1(IntEnum):
    """Primary VM-exit controls (``vm_exit_controls``)."""

    __hash__ = int.__hash__

    SAVE_DEBUG_CONTROLS = _exit1(
        2, "Save debug controls", "DR7 and IA32_DEBUGCTL saved on exit", note="default1"
    )
    HOST_ADDRESS_SPACE_SIZE = _exit1(
        9, "Host address-space size", "host runs in 64-bit mode; loads CS.L, EFER.LME, EFER.LMA"
    )
    LOAD_IA32_PERF_GLOBAL_CTRL = _exit1(
        12, "Load IA32_PERF_GLOBAL_CTRL", "MSR loaded from host area"
    )
    ACKNOWLEDGE_INTERRUPT_ON_EXIT = _exit1(
        15,
        "Acknowledge interrupt on exit",
        "external-interrupt exits acknowledge the APIC and report the vector",
    )
    SAVE_IA32_PAT = _exit1(18, "Save IA32_PAT", "MSR saved to guest area")
    LOAD_IA32_PAT = _exit1(19, "Load IA32_PAT", "MSR loaded from host area")
    SAVE_IA32_EFER = _exit1(20, "Save IA32_EFER", "MSR saved to guest area")
    LOAD_IA32_EFER = _exit1(21, "Load IA32_EFER", "MSR loaded from host area")
    SAVE_VMX_PREEMPTION_TIMER_VALUE = _exit1(
        22,
        "Save VMX-preemption timer value",
        "remaining count written back on exit",
        depends="pin.activate_vmx_preemption_timer must be 1",
    )
    CLEAR_IA32_BNDCFGS = _exit1(23, "Clear IA32_BNDCFGS", "MSR zeroed on exit")
    CONCEAL_VMX_FROM_PT = _exit1(24, "Conceal VMX from PT", "no PIP packet on exit")
    CLEAR_IA32_RTIT_CTL = _exit1(25, "Clear IA32_RTIT_CTL", "MSR zeroed on exit")
    CLEAR_IA32_LBR_CTL = _exit1(26, "Clear IA32_LBR_CTL", "MSR zeroed on exit")
    CLEAR_UINV = _exit1(27, "Clear UINV", "user-interrupt notification vector zeroed on exit")
    LOAD_CET_STATE = _exit1(
        28, "Load CET state", "S_CET, SSP, interrupt SSP table loaded from host area"
    )
    LOAD_PKRS = _exit1(29, "Load PKRS", "IA32_PKRS loaded from host area")
    SAVE_IA32_PERF_GLOBAL_CTRL = _exit1(
        30,
        "Save IA32_PERF_GLOBAL_CTL",
        "IA32_PERF_GLOBAL_CTRL saved to guest area",
        note="the SDM table spells it CTL",
    )
    ACTIVATE_SECONDARY_CONTROLS = _exit1(
        31, "Activate secondary controls", "0 treats all secondary VM-exit controls as 0"
    )


@plain_members
class Exit2(IntEnum):
    """Secondary VM-exit controls (``secondary_vm_exit_controls``)."""

    __hash__ = int.__hash__

    SAVE_FRED = _exit2(0, "Save FRED", "FRED MSRs saved to guest area")
    LOAD_FRED = _exit2(1, "Load FRED", "FRED MSRs loaded from host area")
    LOAD_IA32_SPEC_CTRL = _exit2(2, "Load IA32_SPEC_CTRL", "MSR loaded from host area")
    PREMATURELY_BUSY_SHADOW_STACK = _exit2(
        3,
        "Prematurely busy shadow stack",
        "exit-reason bit 25 reports a prematurely busy shadow stack",
    )


@plain_members
class Entry(IntEnum):
    """VM-entry controls (``vm_entry_controls``)."""

    __hash__ = int.__hash__

    LOAD_DEBUG_CONTROLS = _entry(
        2, "Load debug controls", "DR7 and IA32_DEBUGCTL loaded on entry", note="default1"
    )
    IA32E_MODE_GUEST = _entry(
        9,
        "IA-32e mode guest",
        "guest in IA-32e mode; value loaded into EFER.LMA",
        note="exits store EFER.LMA here if IA32_VMX_MISC[5]=1",
    )
    ENTRY_TO_SMM = _entry(10, "Entry to SMM", "logical processor in SMM after entry; only from SMM")
    DEACTIVATE_DUAL_MONITOR_TREATMENT = _entry(
        11,
        "Deactivate dual-monitor treatment",
        "default SMI/SMM treatment after entry; only from SMM",
    )
    LOAD_IA32_PERF_GLOBAL_CTRL = _entry(
        13, "Load IA32_PERF_GLOBAL_CTRL", "MSR loaded from guest area"
    )
    LOAD_IA32_PAT = _entry(14, "Load IA32_PAT", "MSR loaded from guest area")
    LOAD_IA32_EFER = _entry(15, "Load IA32_EFER", "MSR loaded from guest area")
    LOAD_IA32_BNDCFGS = _entry(16, "Load IA32_BNDCFGS", "MSR loaded from guest area")
    CONCEAL_VMX_FROM_PT = _entry(17, "Conceal VMX from PT", "no PIP packet on entry")
    LOAD_IA32_RTIT_CTL = _entry(18, "Load IA32_RTIT_CTL", "MSR loaded from guest area")
    LOAD_UINV = _entry(19, "Load UINV", "user-interrupt notification vector loaded from guest area")
    LOAD_CET_STATE = _entry(
        20, "Load CET state", "S_CET, SSP, interrupt SSP table loaded from guest area"
    )
    LOAD_GUEST_IA32_LBR_CTL = _entry(21, "Load guest IA32_LBR_CTL", "MSR loaded from guest area")
    LOAD_PKRS = _entry(22, "Load PKRS", "IA32_PKRS loaded from guest area")
    LOAD_FRED = _entry(23, "Load FRED", "FRED MSRs loaded from guest area")
    LOAD_IA32_SPEC_CTRL = _entry(24, "Load IA32_SPEC_CTRL", "MSR loaded from guest area")
    ALLOW_SEAM_GUEST_TELEMETRY = _entry(
        25, "Allow SEAM-guest telemetry", "out-of-band telemetry may be enabled in SEAM non-root"
    )


@plain_members
class VmFunction(IntEnum):
    """VM-function controls (``vm_function_controls``)."""

    __hash__ = int.__hash__

    EPTP_SWITCHING = _vmfunc(
        0,
        "EPTP switching",
        "VMFUNC leaf 0 switches EPTP from a 512-entry list",
        depends="proc2.enable_ept must be 1",
    )


def _group(
    key: str,
    title: str,
    members: type[IntEnum],
    rows: _Rows,
    field: Field,
    width: int,
    msrs: tuple[str, str | None],
    default1: tuple[int, ...],
    reserved: str,
    activated_by: str | None = None,
) -> ControlGroup:
    """Join the rows of a group to the members of its enumeration."""
    default1_mask = sum(1 << bit for bit in default1)
    controls = tuple(
        ControlInfo(
            member,
            key,
            member._name_.lower(),
            bit,
            sdm_name,
            meaning,
            bit in default1,
            depends,
            note,
        )
        for member, (bit, sdm_name, meaning, depends, note) in zip(members, rows.rows, strict=True)
    )
    return ControlGroup(
        key, title, members, field, width, *msrs, default1_mask, reserved, controls, activated_by
    )


#: The eight groups by key, in the order in which the manual describes them.
GROUPS: dict[str, ControlGroup] = {
    group.key: group
    for group in (
        _group(
            "pin",
            "Pin-based VM-execution controls",
            Pin,
            _pin,
            Field.PIN_BASED_CONTROLS,
            32,
            ("IA32_VMX_PINBASED_CTLS", "IA32_VMX_TRUE_PINBASED_CTLS"),
            (1, 2, 4),
            (
                "all other bits; capability MSRs say whether 0 or 1; bits 1, 2, 4 are reserved "
                "default1"
            ),
        ),
        _group(
            "proc1",
            "Primary processor-based VM-execution controls",
            Proc1,
            _proc1,
            Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
            32,
            ("IA32_VMX_PROCBASED_CTLS", "IA32_VMX_TRUE_PROCBASED_CTLS"),
            (1, 4, 5, 6, 8, 13, 14, 15, 16, 26),
            (
                "bits 0, 1, 4-6, 8, 13, 14, 18, 26 have no documented function (1, 4-6, 8, 13, 14, "
                "26 default1)"
            ),
        ),
        _group(
            "proc2",
            "Secondary processor-based VM-execution controls",
            Proc2,
            _proc2,
            Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
            32,
            ("IA32_VMX_PROCBASED_CTLS2", None),
            (),
            "bit 29 undocumented; reserved bits must be 0 (allowed-0 half of the MSR is always 0)",
            "proc1.activate_secondary_controls",
        ),
        _group(
            "proc3",
            "Tertiary processor-based VM-execution controls",
            Proc3,
            _proc3,
            Field.TERTIARY_PROCESSOR_BASED_CONTROLS,
            64,
            ("IA32_VMX_PROCBASED_CTLS3", None),
            (),
            "all other bits 0; whole field checked only when proc1.activate_tertiary_controls is 1",
            "proc1.activate_tertiary_controls",
        ),
        _group(
            "exit1",
            "Primary VM-exit controls",
            Exit1,
            _exit1,
            Field.VM_EXIT_CONTROLS,
            32,
            ("IA32_VMX_EXIT_CTLS", "IA32_VMX_TRUE_EXIT_CTLS"),
            (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 16, 17),
            "bits 0, 1, 3-8, 10, 11, 13, 14, 16, 17 undocumented, default1",
        ),
        _group(
            "exit2",
            "Secondary VM-exit controls",
            Exit2,
            _exit2,
            Field.SECONDARY_VM_EXIT_CONTROLS,
            64,
            ("IA32_VMX_EXIT_CTLS2", None),
            (),
            "all other bits 0",
            "exit1.activate_secondary_controls",
        ),
        _group(
            "entry",
            "VM-entry controls",
            Entry,
            _entry,
            Field.VM_ENTRY_CONTROLS,
            32,
            ("IA32_VMX_ENTRY_CTLS", "IA32_VMX_TRUE_ENTRY_CTLS"),
            (0, 1, 2, 3, 4, 5, 6, 7, 8, 12),
            "bits 0, 1, 3-8, 12 undocumented, default1",
        ),
        _group(
            "vmfunc",
            "VM-function controls",
            VmFunction,
            _vmfunc,
            Field.VM_FUNCTION_CONTROLS,
            64,
            ("IA32_VMX_VMFUNC", None),
            (),
            "all other bits 0; checked only when proc2.enable_vm_functions is 1",
            "proc2.enable_vm_functions",
        ),
    )
}

#: The enumerations by the key of their group.
CONTROL_CLASSES: dict[str, type[IntEnum]] = {key: group.members for key, group in GROUPS.items()}

_GROUP_OF: dict[type[IntEnum], ControlGroup] = {group.members: group for group in GROUPS.values()}


def control_info(control: IntEnum) -> ControlInfo:
    """Return the row of a member of `Pin`, `Proc1`, ... (its class tells the group).

    Raises
    ------
    UnknownName
        `control` is a member of another enumeration.
    """
    group = _GROUP_OF.get(type(control))
    if group is None:
        raise UnknownName("VMX control", control)
    return next(info for info in group.controls if info.control is control)


def find_control(what: str) -> ControlInfo:
    """Return a control by name: ``"proc2.enable_ept"``, ``"enable_ept"``, ``"Enable EPT"``.

    Where two groups have a control of one name, the first group in the manual's order wins;
    write the group to choose.

    Raises
    ------
    UnknownName
        No control has this name; the nearest names are given.
    """
    matches = find_controls(what)
    if matches:
        return matches[0]
    names = [info.name for group in GROUPS.values() for info in group.controls]
    keys = [info.key for group in GROUPS.values() for info in group.controls]
    raise UnknownName("VMX control", what, keys if "." in what else names)


def find_controls(what: str) -> list[ControlInfo]:
    """Return all controls that `what` may name, in the manual's order (see `find_control`)."""
    prefix, _, rest = what.strip().partition(".")
    key = prefix.lower()
    groups = [GROUPS[key]] if rest and key in GROUPS else list(GROUPS.values())
    name = canonical(rest if rest and key in GROUPS else what)
    return [
        info
        for group in groups
        for info in group.controls
        if name in (info.name, canonical(info.sdm_name))
    ]
