"""Every component of the VMCS, in the order of SDM appendix B, "Field Encoding in VMCS".

A row gives the *index*; the encoding is computed from (area, width, index), so that a row can be
proof-read against the appendix and a mistyped digit cannot hide. The second access of a 64-bit
field (its `_high` half) has the encoding plus one; it is not a field of its own.
"""

from enum import IntEnum
from typing import NamedTuple

from vtx.errors import UnknownName
from vtx.facts.lookup import as_number, canonical
from vtx.facts.members import plain_members

__all__ = [
    "ACCESS_HIGH",
    "FIELDS",
    "Area",
    "Field",
    "FieldInfo",
    "Width",
    "encode",
    "find_encoding",
    "find_field",
    "mask",
    "split",
]

#: Bit 0 of an encoding: access to the high half of a 64-bit field.
ACCESS_HIGH = 1


class Area(IntEnum):
    """Bits 11:10 of an encoding: which area of the VMCS holds the field."""

    CONTROL = 0
    READ_ONLY = 1
    GUEST = 2
    HOST = 3


class Width(IntEnum):
    """Bits 14:13 of an encoding: the width of the field."""

    W16 = 0
    W64 = 1
    W32 = 2
    NATURAL = 3

    @property
    def bits(self) -> int:
        """Width in bits; natural width is 64, that of a processor with Intel 64."""
        return (16, 64, 32, 64)[self]


def encode(area: int, width: int, index: int, high: int = 0) -> int:
    """Return the encoding of a VMCS component.

    Parameters
    ----------
    area : Area
        Bits 11:10.
    width : Width
        Bits 14:13.
    index : int
        Bits 9:1.
    high : int
        Bit 0: 1 for access to the high half of a 64-bit field.
    """
    return width << 13 | area << 10 | index << 1 | high


def split(encoding: int) -> tuple[Area, Width, int, int]:
    """Return (area, width, index, access type) of a 15-bit encoding: `encode` backwards."""
    return (
        Area(encoding >> 10 & 3),
        Width(encoding >> 13 & 3),
        encoding >> 1 & 0x1FF,
        encoding & ACCESS_HIGH,
    )


#: What a row says beside its name: the columns of `FieldInfo` from `sdm_name` on.
_Row = tuple[str, Width, Area, int, str | None, tuple[str, ...], str | None, str | None]

_rows: list[_Row] = []


class _Rows:
    """Writes rows of one area and width: keeps the row, and gives its encoding to the enum."""

    def __init__(self, area: Area, width: Width) -> None:
        self.area = area
        self.width = width

    def __call__(
        self,
        index: int,
        sdm_name: str,
        requires: str | None = None,
        *,
        also: tuple[str, ...] = (),
        layout: str | None = None,
        note: str | None = None,
    ) -> int:
        _rows.append((sdm_name, self.width, self.area, index, requires, also, layout, note))
        return encode(self.area, self.width, index)


_control_16 = _Rows(Area.CONTROL, Width.W16)
_control_64 = _Rows(Area.CONTROL, Width.W64)
_control_32 = _Rows(Area.CONTROL, Width.W32)
_control_natural = _Rows(Area.CONTROL, Width.NATURAL)
_read_only_64 = _Rows(Area.READ_ONLY, Width.W64)
_read_only_32 = _Rows(Area.READ_ONLY, Width.W32)
_read_only_natural = _Rows(Area.READ_ONLY, Width.NATURAL)
_guest_16 = _Rows(Area.GUEST, Width.W16)
_guest_64 = _Rows(Area.GUEST, Width.W64)
_guest_32 = _Rows(Area.GUEST, Width.W32)
_guest_natural = _Rows(Area.GUEST, Width.NATURAL)
_host_16 = _Rows(Area.HOST, Width.W16)
_host_64 = _Rows(Area.HOST, Width.W64)
_host_32 = _Rows(Area.HOST, Width.W32)
_host_natural = _Rows(Area.HOST, Width.NATURAL)


@plain_members
class Field(IntEnum):
    """The VMCS fields; the value of a member is the field's (full-access) encoding."""

    __hash__ = int.__hash__

    # 16-bit control fields: 0x0000 + 2 * index
    VPID = _control_16(
        0,
        "Virtual-processor identifier (VPID)",
        "proc2.enable_vpid",
        also=("virtual_processor_identifier",),
    )
    POSTED_INTERRUPT_NOTIFICATION_VECTOR = _control_16(
        1, "Posted-interrupt notification vector", "pin.process_posted_interrupts"
    )
    EPTP_INDEX = _control_16(2, "EPTP index", "proc2.ept_violation_ve")
    HLAT_PREFIX_SIZE = _control_16(3, "HLAT prefix size", "proc3.enable_hlat")
    LAST_PID_POINTER_INDEX = _control_16(4, "Last PID-pointer index", "proc3.ipi_virtualization")
    VIRTUAL_TIMER_VECTOR = _control_16(
        5,
        "Virtual timer vector",
        "proc3.apic_timer_virtualization",
        note=(
            "described in SDM 092 section 27.6.27 (low byte used) but its encoding is not in the "
            "February 2026 appendix B; encoding from Bochs and a Linux patch"
        ),
    )

    # 16-bit guest-state fields: 0x0800 + 2 * index
    GUEST_ES_SELECTOR = _guest_16(0, "Guest ES selector")
    GUEST_CS_SELECTOR = _guest_16(1, "Guest CS selector")
    GUEST_SS_SELECTOR = _guest_16(2, "Guest SS selector")
    GUEST_DS_SELECTOR = _guest_16(3, "Guest DS selector")
    GUEST_FS_SELECTOR = _guest_16(4, "Guest FS selector")
    GUEST_GS_SELECTOR = _guest_16(5, "Guest GS selector")
    GUEST_LDTR_SELECTOR = _guest_16(6, "Guest LDTR selector")
    GUEST_TR_SELECTOR = _guest_16(7, "Guest TR selector")
    GUEST_INTERRUPT_STATUS = _guest_16(
        8,
        "Guest interrupt status",
        "proc2.virtual_interrupt_delivery",
        layout="guest_interrupt_status",
    )
    PML_INDEX = _guest_16(9, "PML index", "proc2.enable_pml", also=("guest_pml_index",))
    GUEST_UINV = _guest_16(10, "Guest UINV", "exit1.clear_uinv | entry.load_uinv")

    # 16-bit host-state fields: 0x0c00 + 2 * index
    HOST_ES_SELECTOR = _host_16(0, "Host ES selector")
    HOST_CS_SELECTOR = _host_16(1, "Host CS selector")
    HOST_SS_SELECTOR = _host_16(2, "Host SS selector")
    HOST_DS_SELECTOR = _host_16(3, "Host DS selector")
    HOST_FS_SELECTOR = _host_16(4, "Host FS selector")
    HOST_GS_SELECTOR = _host_16(5, "Host GS selector")
    HOST_TR_SELECTOR = _host_16(6, "Host TR selector")

    # 64-bit control fields: 0x2000 + 2 * index
    IO_BITMAP_A = _control_64(0, "Address of I/O bitmap A", also=("io_bitmap_a_address",))
    IO_BITMAP_B = _control_64(1, "Address of I/O bitmap B", also=("io_bitmap_b_address",))
    MSR_BITMAP = _control_64(
        2, "Address of MSR bitmaps", "proc1.use_msr_bitmaps", also=("msr_bitmap_address",)
    )
    VM_EXIT_MSR_STORE_ADDRESS = _control_64(3, "VM-exit MSR-store address")
    VM_EXIT_MSR_LOAD_ADDRESS = _control_64(4, "VM-exit MSR-load address")
    VM_ENTRY_MSR_LOAD_ADDRESS = _control_64(5, "VM-entry MSR-load address")
    EXECUTIVE_VMCS_POINTER = _control_64(
        6,
        "Executive-VMCS pointer",
        note=(
            "only meaningful with the dual-monitor treatment of SMIs/SMM; Linux and kvm-unit-tests "
            "leave it undefined"
        ),
    )
    PML_ADDRESS = _control_64(7, "PML address", "proc2.enable_pml")
    TSC_OFFSET = _control_64(8, "TSC offset")
    VIRTUAL_APIC_ADDRESS = _control_64(9, "Virtual-APIC address", "proc1.use_tpr_shadow")
    APIC_ACCESS_ADDRESS = _control_64(10, "APIC-access address", "proc2.virtualize_apic_accesses")
    POSTED_INTERRUPT_DESCRIPTOR_ADDRESS = _control_64(
        11, "Posted-interrupt descriptor address", "pin.process_posted_interrupts"
    )
    VM_FUNCTION_CONTROLS = _control_64(12, "VM-function controls", "proc2.enable_vm_functions")
    EPT_POINTER = _control_64(
        13, "EPT pointer (EPTP)", "proc2.enable_ept", also=("eptp",), layout="eptp"
    )
    EOI_EXIT_BITMAP_0 = _control_64(
        14, "EOI-exit bitmap 0 (EOI_EXIT0)", "proc2.virtual_interrupt_delivery"
    )
    EOI_EXIT_BITMAP_1 = _control_64(
        15, "EOI-exit bitmap 1 (EOI_EXIT1)", "proc2.virtual_interrupt_delivery"
    )
    EOI_EXIT_BITMAP_2 = _control_64(
        16, "EOI-exit bitmap 2 (EOI_EXIT2)", "proc2.virtual_interrupt_delivery"
    )
    EOI_EXIT_BITMAP_3 = _control_64(
        17, "EOI-exit bitmap 3 (EOI_EXIT3)", "proc2.virtual_interrupt_delivery"
    )
    EPTP_LIST_ADDRESS = _control_64(18, "EPTP-list address", "vmfunc.eptp_switching")
    VMREAD_BITMAP_ADDRESS = _control_64(19, "VMREAD-bitmap address", "proc2.vmcs_shadowing")
    VMWRITE_BITMAP_ADDRESS = _control_64(20, "VMWRITE-bitmap address", "proc2.vmcs_shadowing")
    VIRTUALIZATION_EXCEPTION_INFO_ADDRESS = _control_64(
        21,
        "Virtualization-exception information address",
        "proc2.ept_violation_ve",
        also=("virtualization_exception_information_address",),
    )
    XSS_EXITING_BITMAP = _control_64(22, "XSS-exiting bitmap", "proc2.enable_xsaves_xrstors")
    ENCLS_EXITING_BITMAP = _control_64(23, "ENCLS-exiting bitmap", "proc2.enable_encls_exiting")
    SUB_PAGE_PERMISSION_TABLE_POINTER = _control_64(
        24,
        "Sub-page-permission-table pointer",
        "proc2.sub_page_write_permissions_for_ept",
        also=("spptp",),
        layout="spptp",
    )
    TSC_MULTIPLIER = _control_64(25, "TSC multiplier", "proc2.use_tsc_scaling")
    TERTIARY_PROCESSOR_BASED_CONTROLS = _control_64(
        26, "Tertiary processor-based VM-execution controls", "proc1.activate_tertiary_controls"
    )
    ENCLV_EXITING_BITMAP = _control_64(
        27,
        "ENCLV-exiting bitmap",
        "proc2.enable_enclv_exiting",
        note=(
            "documented from SDM 072 on (appendix B); absent from the February 2026 appendix B "
            "listing and from SDM 092 control tables, so apparently withdrawn; Bochs, ia32-doc "
            "still list it"
        ),
    )
    LOW_PASID_DIRECTORY_ADDRESS = _control_64(
        28, "Low PASID directory address", "proc2.pasid_translation"
    )
    HIGH_PASID_DIRECTORY_ADDRESS = _control_64(
        29, "High PASID directory address", "proc2.pasid_translation"
    )
    SEAM_SHARED_EPT_POINTER = _control_64(
        30,
        "SEAM shared EPT pointer",
        "proc3.seam_guest_physical_address_width",
        layout="eptp",
        note='used only in SEAM (TDX) non-root operation; older names "shared EPT pointer"',
    )
    PCONFIG_EXITING_BITMAP = _control_64(31, "PCONFIG-exiting bitmap", "proc2.enable_pconfig")
    HLAT_POINTER = _control_64(
        32,
        "Hypervisor-managed linear-address translation pointer (HLATP)",
        "proc3.enable_hlat",
        also=("hlatp",),
        layout="hlatp",
    )
    PID_POINTER_TABLE_ADDRESS = _control_64(
        33, "PID-pointer table address", "proc3.ipi_virtualization"
    )
    SECONDARY_VM_EXIT_CONTROLS = _control_64(
        34, "Secondary VM-exit controls", "exit1.activate_secondary_controls"
    )
    IA32_SPEC_CTRL_MASK = _control_64(37, "IA32_SPEC_CTRL mask", "proc3.virtualize_ia32_spec_ctrl")
    IA32_SPEC_CTRL_SHADOW = _control_64(
        38, "IA32_SPEC_CTRL shadow", "proc3.virtualize_ia32_spec_ctrl"
    )
    GUEST_DEADLINE_SHADOW = _control_64(
        39,
        "Guest deadline shadow",
        "proc3.apic_timer_virtualization",
        note=(
            "described in SDM 092 section 27.6.27; encoding from Bochs and a Linux patch, not in "
            "the February 2026 appendix B"
        ),
    )
    INJECTED_EVENT_DATA = _control_64(41, "Injected-event data", "cpu:fred")

    # 64-bit read-only data fields: 0x2400 + 2 * index
    GUEST_PHYSICAL_ADDRESS = _read_only_64(0, "Guest-physical address", "proc2.enable_ept")
    MSR_DATA = _read_only_64(1, "MSR data", "proc3.enable_msr_list_instructions")
    ORIGINAL_EVENT_DATA = _read_only_64(2, "Original-event data", "cpu:fred")

    # 64-bit guest-state fields: 0x2800 + 2 * index
    VMCS_LINK_POINTER = _guest_64(0, "VMCS link pointer")
    GUEST_IA32_DEBUGCTL = _guest_64(1, "Guest IA32_DEBUGCTL")
    GUEST_IA32_PAT = _guest_64(2, "Guest IA32_PAT", "entry.load_ia32_pat | exit1.save_ia32_pat")
    GUEST_IA32_EFER = _guest_64(3, "Guest IA32_EFER", "entry.load_ia32_efer | exit1.save_ia32_efer")
    GUEST_IA32_PERF_GLOBAL_CTRL = _guest_64(
        4, "Guest IA32_PERF_GLOBAL_CTRL", "entry.load_ia32_perf_global_ctrl"
    )
    GUEST_PDPTE0 = _guest_64(5, "Guest PDPTE0", "proc2.enable_ept")
    GUEST_PDPTE1 = _guest_64(6, "Guest PDPTE1", "proc2.enable_ept")
    GUEST_PDPTE2 = _guest_64(7, "Guest PDPTE2", "proc2.enable_ept")
    GUEST_PDPTE3 = _guest_64(8, "Guest PDPTE3", "proc2.enable_ept")
    GUEST_IA32_BNDCFGS = _guest_64(
        9, "Guest IA32_BNDCFGS", "entry.load_ia32_bndcfgs | exit1.clear_ia32_bndcfgs"
    )
    GUEST_IA32_RTIT_CTL = _guest_64(
        10, "Guest IA32_RTIT_CTL", "entry.load_ia32_rtit_ctl | exit1.clear_ia32_rtit_ctl"
    )
    GUEST_IA32_LBR_CTL = _guest_64(
        11,
        "Guest IA32_LBR_CTL",
        "entry.load_guest_ia32_lbr_ctl | exit1.clear_ia32_lbr_ctl",
        note="Bochs does not list it",
    )
    GUEST_IA32_PKRS = _guest_64(12, "Guest IA32_PKRS", "entry.load_pkrs")
    GUEST_IA32_FRED_CONFIG = _guest_64(
        13, "Guest IA32_FRED_CONFIG", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_RSP1 = _guest_64(
        14, "Guest IA32_FRED_RSP1", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_RSP2 = _guest_64(
        15, "Guest IA32_FRED_RSP2", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_RSP3 = _guest_64(
        16, "Guest IA32_FRED_RSP3", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_STKLVLS = _guest_64(
        17, "Guest IA32_FRED_STKLVLS", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_SSP1 = _guest_64(
        18, "Guest IA32_FRED_SSP1", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_SSP2 = _guest_64(
        19, "Guest IA32_FRED_SSP2", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_FRED_SSP3 = _guest_64(
        20, "Guest IA32_FRED_SSP3", "entry.load_fred | exit2.save_fred"
    )
    GUEST_IA32_SPEC_CTRL = _guest_64(
        23,
        "Guest IA32_SPEC_CTRL",
        "entry.load_ia32_spec_ctrl",
        note=(
            "field described in SDM 092 section 27.4.1; encoding seen only in Bochs (not in the "
            "February 2026 appendix B)"
        ),
    )
    GUEST_DEADLINE = _guest_64(
        24,
        "Guest deadline",
        "proc3.apic_timer_virtualization",
        note="described in SDM 092 section 27.4.2; encoding from Bochs and a Linux patch",
    )

    # 64-bit host-state fields: 0x2c00 + 2 * index
    HOST_IA32_PAT = _host_64(0, "Host IA32_PAT", "exit1.load_ia32_pat")
    HOST_IA32_EFER = _host_64(1, "Host IA32_EFER", "exit1.load_ia32_efer")
    HOST_IA32_PERF_GLOBAL_CTRL = _host_64(
        2, "Host IA32_PERF_GLOBAL_CTRL", "exit1.load_ia32_perf_global_ctrl"
    )
    HOST_IA32_PKRS = _host_64(3, "Host IA32_PKRS", "exit1.load_pkrs")
    HOST_IA32_FRED_CONFIG = _host_64(4, "Host IA32_FRED_CONFIG", "exit2.load_fred")
    HOST_IA32_FRED_RSP1 = _host_64(5, "Host IA32_FRED_RSP1", "exit2.load_fred")
    HOST_IA32_FRED_RSP2 = _host_64(6, "Host IA32_FRED_RSP2", "exit2.load_fred")
    HOST_IA32_FRED_RSP3 = _host_64(7, "Host IA32_FRED_RSP3", "exit2.load_fred")
    HOST_IA32_FRED_STKLVLS = _host_64(8, "Host IA32_FRED_STKLVLS", "exit2.load_fred")
    HOST_IA32_FRED_SSP1 = _host_64(9, "Host IA32_FRED_SSP1", "exit2.load_fred")
    HOST_IA32_FRED_SSP2 = _host_64(10, "Host IA32_FRED_SSP2", "exit2.load_fred")
    HOST_IA32_FRED_SSP3 = _host_64(11, "Host IA32_FRED_SSP3", "exit2.load_fred")
    HOST_IA32_SPEC_CTRL = _host_64(
        13,
        "Host IA32_SPEC_CTRL",
        "exit2.load_ia32_spec_ctrl",
        note="field described in SDM 092 section 27.5; encoding seen only in Bochs",
    )

    # 32-bit control fields: 0x4000 + 2 * index
    PIN_BASED_CONTROLS = _control_32(0, "Pin-based VM-execution controls")
    PRIMARY_PROCESSOR_BASED_CONTROLS = _control_32(
        1, "Primary processor-based VM-execution controls"
    )
    EXCEPTION_BITMAP = _control_32(2, "Exception bitmap")
    PAGE_FAULT_ERROR_CODE_MASK = _control_32(3, "Page-fault error-code mask", also=("pfec_mask",))
    PAGE_FAULT_ERROR_CODE_MATCH = _control_32(
        4, "Page-fault error-code match", also=("pfec_match",)
    )
    CR3_TARGET_COUNT = _control_32(5, "CR3-target count")
    VM_EXIT_CONTROLS = _control_32(
        6,
        "VM-exit controls",
        also=("primary_vm_exit_controls",),
        note='called "primary VM-exit controls" in recent SDMs',
    )
    VM_EXIT_MSR_STORE_COUNT = _control_32(7, "VM-exit MSR-store count")
    VM_EXIT_MSR_LOAD_COUNT = _control_32(8, "VM-exit MSR-load count")
    VM_ENTRY_CONTROLS = _control_32(9, "VM-entry controls")
    VM_ENTRY_MSR_LOAD_COUNT = _control_32(10, "VM-entry MSR-load count")
    VM_ENTRY_INTERRUPTION_INFORMATION = _control_32(
        11,
        "VM-entry interruption-information field",
        also=("injected_event_identification",),
        layout="vm_entry_interruption_information",
        note='renamed "injected-event identification" in recent SDMs',
    )
    VM_ENTRY_EXCEPTION_ERROR_CODE = _control_32(
        12,
        "VM-entry exception error code",
        also=("injected_event_error_code",),
        note='renamed "injected-event error code"',
    )
    VM_ENTRY_INSTRUCTION_LENGTH = _control_32(13, "VM-entry instruction length")
    TPR_THRESHOLD = _control_32(14, "TPR threshold", "proc1.use_tpr_shadow")
    SECONDARY_PROCESSOR_BASED_CONTROLS = _control_32(
        15, "Secondary processor-based VM-execution controls", "proc1.activate_secondary_controls"
    )
    PLE_GAP = _control_32(16, "PLE_Gap", "proc2.pause_loop_exiting")
    PLE_WINDOW = _control_32(17, "PLE_Window", "proc2.pause_loop_exiting")
    INSTRUCTION_TIMEOUT_CONTROL = _control_32(
        18,
        "Instruction-timeout control",
        "proc2.instruction_timeout",
        also=("notify_window",),
        note="Linux and Xen call it NOTIFY_WINDOW; value counts crystal-clock cycles",
    )
    SEAM_GUEST_KEYID = _control_32(
        19,
        "SEAM-guest KeyID",
        "proc3.seam_guest_physical_address_width",
        note="used only in SEAM (TDX)",
    )

    # 32-bit read-only data fields: 0x4400 + 2 * index
    VM_INSTRUCTION_ERROR = _read_only_32(0, "VM-instruction error")
    EXIT_REASON = _read_only_32(1, "Exit reason", layout="exit_reason")
    VM_EXIT_INTERRUPTION_INFORMATION = _read_only_32(
        2,
        "VM-exit interruption information",
        also=("exiting_event_identification",),
        layout="vm_exit_interruption_information",
        note='renamed "exiting-event identification" in recent SDMs',
    )
    VM_EXIT_INTERRUPTION_ERROR_CODE = _read_only_32(
        3, "VM-exit interruption error code", also=("exiting_event_error_code",)
    )
    IDT_VECTORING_INFORMATION = _read_only_32(
        4,
        "IDT-vectoring information field",
        also=("original_event_identification",),
        layout="idt_vectoring_information",
        note='renamed "original-event identification"',
    )
    IDT_VECTORING_ERROR_CODE = _read_only_32(
        5, "IDT-vectoring error code", also=("original_event_error_code",)
    )
    VM_EXIT_INSTRUCTION_LENGTH = _read_only_32(6, "VM-exit instruction length")
    VM_EXIT_INSTRUCTION_INFORMATION = _read_only_32(7, "VM-exit instruction information")

    # 32-bit guest-state fields: 0x4800 + 2 * index
    GUEST_ES_LIMIT = _guest_32(0, "Guest ES limit")
    GUEST_CS_LIMIT = _guest_32(1, "Guest CS limit")
    GUEST_SS_LIMIT = _guest_32(2, "Guest SS limit")
    GUEST_DS_LIMIT = _guest_32(3, "Guest DS limit")
    GUEST_FS_LIMIT = _guest_32(4, "Guest FS limit")
    GUEST_GS_LIMIT = _guest_32(5, "Guest GS limit")
    GUEST_LDTR_LIMIT = _guest_32(6, "Guest LDTR limit")
    GUEST_TR_LIMIT = _guest_32(7, "Guest TR limit")
    GUEST_GDTR_LIMIT = _guest_32(8, "Guest GDTR limit")
    GUEST_IDTR_LIMIT = _guest_32(9, "Guest IDTR limit")
    GUEST_ES_ACCESS_RIGHTS = _guest_32(10, "Guest ES access rights", layout="access_rights")
    GUEST_CS_ACCESS_RIGHTS = _guest_32(11, "Guest CS access rights", layout="access_rights")
    GUEST_SS_ACCESS_RIGHTS = _guest_32(12, "Guest SS access rights", layout="access_rights")
    GUEST_DS_ACCESS_RIGHTS = _guest_32(13, "Guest DS access rights", layout="access_rights")
    GUEST_FS_ACCESS_RIGHTS = _guest_32(14, "Guest FS access rights", layout="access_rights")
    GUEST_GS_ACCESS_RIGHTS = _guest_32(15, "Guest GS access rights", layout="access_rights")
    GUEST_LDTR_ACCESS_RIGHTS = _guest_32(16, "Guest LDTR access rights", layout="access_rights")
    GUEST_TR_ACCESS_RIGHTS = _guest_32(17, "Guest TR access rights", layout="access_rights")
    GUEST_INTERRUPTIBILITY_STATE = _guest_32(
        18, "Guest interruptibility state", layout="interruptibility_state"
    )
    GUEST_ACTIVITY_STATE = _guest_32(19, "Guest activity state", layout="activity_state")
    GUEST_SMBASE = _guest_32(
        20, "Guest SMBASE", note="undefined after every VM exit except SMM VM exits; Linux omits it"
    )
    GUEST_IA32_SYSENTER_CS = _guest_32(21, "Guest IA32_SYSENTER_CS")
    VMX_PREEMPTION_TIMER_VALUE = _guest_32(
        23,
        "VMX-preemption timer value",
        "pin.activate_vmx_preemption_timer",
        note="encoding 0x482C is skipped (no field)",
    )

    # 32-bit host-state fields: 0x4c00 + 2 * index
    HOST_IA32_SYSENTER_CS = _host_32(0, "Host IA32_SYSENTER_CS")

    # Natural-width control fields: 0x6000 + 2 * index
    CR0_GUEST_HOST_MASK = _control_natural(0, "CR0 guest/host mask")
    CR4_GUEST_HOST_MASK = _control_natural(1, "CR4 guest/host mask")
    CR0_READ_SHADOW = _control_natural(2, "CR0 read shadow")
    CR4_READ_SHADOW = _control_natural(3, "CR4 read shadow")
    CR3_TARGET_VALUE_0 = _control_natural(4, "CR3-target value 0", "cap:misc.cr3_target_count > 0")
    CR3_TARGET_VALUE_1 = _control_natural(5, "CR3-target value 1", "cap:misc.cr3_target_count > 1")
    CR3_TARGET_VALUE_2 = _control_natural(6, "CR3-target value 2", "cap:misc.cr3_target_count > 2")
    CR3_TARGET_VALUE_3 = _control_natural(
        7,
        "CR3-target value 3",
        "cap:misc.cr3_target_count > 3",
        note=(
            "how many exist is IA32_VMX_MISC[24:16] (all real parts: 4); further values would "
            "continue at 0x6010"
        ),
    )

    # Natural-width read-only data fields: 0x6400 + 2 * index
    EXIT_QUALIFICATION = _read_only_natural(0, "Exit qualification")
    IO_RCX = _read_only_natural(1, "I/O RCX")
    IO_RSI = _read_only_natural(2, "I/O RSI")
    IO_RDI = _read_only_natural(3, "I/O RDI")
    IO_RIP = _read_only_natural(4, "I/O RIP")
    GUEST_LINEAR_ADDRESS = _read_only_natural(5, "Guest-linear address")

    # Natural-width guest-state fields: 0x6800 + 2 * index
    GUEST_CR0 = _guest_natural(0, "Guest CR0")
    GUEST_CR3 = _guest_natural(1, "Guest CR3")
    GUEST_CR4 = _guest_natural(2, "Guest CR4")
    GUEST_ES_BASE = _guest_natural(3, "Guest ES base")
    GUEST_CS_BASE = _guest_natural(4, "Guest CS base")
    GUEST_SS_BASE = _guest_natural(5, "Guest SS base")
    GUEST_DS_BASE = _guest_natural(6, "Guest DS base")
    GUEST_FS_BASE = _guest_natural(7, "Guest FS base")
    GUEST_GS_BASE = _guest_natural(8, "Guest GS base")
    GUEST_LDTR_BASE = _guest_natural(9, "Guest LDTR base")
    GUEST_TR_BASE = _guest_natural(10, "Guest TR base")
    GUEST_GDTR_BASE = _guest_natural(11, "Guest GDTR base")
    GUEST_IDTR_BASE = _guest_natural(12, "Guest IDTR base")
    GUEST_DR7 = _guest_natural(13, "Guest DR7")
    GUEST_RSP = _guest_natural(14, "Guest RSP")
    GUEST_RIP = _guest_natural(15, "Guest RIP")
    GUEST_RFLAGS = _guest_natural(16, "Guest RFLAGS")
    GUEST_PENDING_DEBUG_EXCEPTIONS = _guest_natural(
        17, "Guest pending debug exceptions", layout="pending_debug_exceptions"
    )
    GUEST_IA32_SYSENTER_ESP = _guest_natural(18, "Guest IA32_SYSENTER_ESP")
    GUEST_IA32_SYSENTER_EIP = _guest_natural(19, "Guest IA32_SYSENTER_EIP")
    GUEST_IA32_S_CET = _guest_natural(20, "Guest IA32_S_CET", "entry.load_cet_state")
    GUEST_SSP = _guest_natural(21, "Guest SSP", "entry.load_cet_state")
    GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR = _guest_natural(
        22, "Guest IA32_INTERRUPT_SSP_TABLE_ADDR", "entry.load_cet_state"
    )

    # Natural-width host-state fields: 0x6c00 + 2 * index
    HOST_CR0 = _host_natural(0, "Host CR0")
    HOST_CR3 = _host_natural(1, "Host CR3")
    HOST_CR4 = _host_natural(2, "Host CR4")
    HOST_FS_BASE = _host_natural(3, "Host FS base")
    HOST_GS_BASE = _host_natural(4, "Host GS base")
    HOST_TR_BASE = _host_natural(5, "Host TR base")
    HOST_GDTR_BASE = _host_natural(6, "Host GDTR base")
    HOST_IDTR_BASE = _host_natural(7, "Host IDTR base")
    HOST_IA32_SYSENTER_ESP = _host_natural(8, "Host IA32_SYSENTER_ESP")
    HOST_IA32_SYSENTER_EIP = _host_natural(9, "Host IA32_SYSENTER_EIP")
    HOST_RSP = _host_natural(10, "Host RSP")
    HOST_RIP = _host_natural(11, "Host RIP")
    HOST_IA32_S_CET = _host_natural(12, "Host IA32_S_CET", "exit1.load_cet_state")
    HOST_SSP = _host_natural(13, "Host SSP", "exit1.load_cet_state")
    HOST_IA32_INTERRUPT_SSP_TABLE_ADDR = _host_natural(
        14, "Host IA32_INTERRUPT_SSP_TABLE_ADDR", "exit1.load_cet_state"
    )


class FieldInfo(NamedTuple):
    """One row of the table of VMCS fields.

    Attributes
    ----------
    field : Field
        The field; its value is the encoding.
    name : str
        The field's name in lower case, as traces and commands write it.
    sdm_name : str
        The name the manual prints.
    width : Width
        Width, bits 14:13 of the encoding.
    area : Area
        Area, bits 11:10 of the encoding.
    index : int
        Bits 9:1 of the encoding.
    requires : str or None
        What makes the field exist: ``"group.control"`` (the CPU allows that control to be 1,
        whatever its setting now), ``"cpu:..."`` (a CPUID feature) or ``"cap:..."`` (a value in a
        capability MSR); ``" | "`` between alternatives. None: the field always exists.
    also : tuple of str
        Other names in use.
    layout : str or None
        Name of the field's bit layout in :mod:`vtx.facts.qualifications`.
    note : str or None
        What else is worth knowing, such as sources that disagree.
    """

    field: Field
    name: str
    sdm_name: str
    width: Width
    area: Area
    index: int  # type: ignore[assignment]  # a row of the appendix, not a sequence to search
    requires: str | None
    also: tuple[str, ...]
    layout: str | None
    note: str | None


#: Every field with its row, in order of encoding within each width.
FIELDS: dict[Field, FieldInfo] = {
    field: FieldInfo(field, field._name_.lower(), *row)
    for field, row in zip(Field, _rows, strict=True)
}

_MASKS: dict[int, int] = {field: (1 << info.width.bits) - 1 for field, info in FIELDS.items()}


def mask(field: int) -> int:
    """Return the mask of the value bits of `field`: all ones in its width."""
    return _MASKS[field]


def _names() -> dict[str, FieldInfo]:
    """Return every name a field is known by, the names of the tables first."""
    names = {info.name: info for info in FIELDS.values()}
    for info in FIELDS.values():
        for other in (*info.also, canonical(info.sdm_name)):
            names.setdefault(other, info)
    return names


_HIGH_SUFFIX = "_high"


def find_encoding(what: str | int) -> int:
    """Return the encoding of a VMCS component by its name or number.

    Unlike `find_field` this keeps the access type: ``"tsc_offset_high"`` and ``0x2011`` give
    0x2011.

    Raises
    ------
    UnknownName
        No field has this name or number, or the field has no high half.
    """
    number = as_number(what)
    if number is not None:
        full = number & ~ACCESS_HIGH
        if full in _MASKS and (full == number or FIELDS[Field(full)].width == Width.W64):
            return number
        raise UnknownName("VMCS field", f"{number:#x}")
    name = canonical(str(what))
    names = _names()
    if name in names:
        return int(names[name].field)
    info = names.get(name.removesuffix(_HIGH_SUFFIX))
    if info is not None and info.width == Width.W64:
        return info.field | ACCESS_HIGH
    raise UnknownName("VMCS field", what, names)


def find_field(what: str | int) -> FieldInfo:
    """Return the row of a VMCS field by its name (any case, any alias) or encoding.

    Parameters
    ----------
    what : str or int
        ``"guest_rip"``, ``"Guest RIP"``, ``"eptp"``, ``0x681E``, ``"0x681e"``; the ``_high`` name
        or encoding of a 64-bit field gives that field.

    Raises
    ------
    UnknownName
        No field has this name or number; the nearest names are given.
    """
    return FIELDS[Field(find_encoding(what) & ~ACCESS_HIGH)]
