"""Model-specific registers: the VMX capability MSRs bit by bit, and the others by address.

Source of the capability MSRs: SDM, appendix "VMX Capability Reporting Facility"; of the others:
SDM volume 4, "Architectural MSRs", unless the row says otherwise.
"""

from enum import IntEnum
from typing import NamedTuple

from vtx.errors import UnknownName
from vtx.facts.layout import BitRange, flag
from vtx.facts.lookup import as_number, canonical
from vtx.facts.members import plain_members

__all__ = ["CAPABILITY_MSRS", "Msr", "MsrInfo", "find_capability_msr", "find_msr"]


@plain_members
class Msr(IntEnum):
    """MSRs that the machine knows; the value of a member is the MSR's address."""

    __hash__ = int.__hash__

    # VMX capability reporting, and the MSR that permits VMXON
    IA32_FEATURE_CONTROL = 0x03A
    IA32_VMX_BASIC = 0x480
    IA32_VMX_PINBASED_CTLS = 0x481
    IA32_VMX_PROCBASED_CTLS = 0x482
    IA32_VMX_EXIT_CTLS = 0x483
    IA32_VMX_ENTRY_CTLS = 0x484
    IA32_VMX_MISC = 0x485
    IA32_VMX_CR0_FIXED0 = 0x486
    IA32_VMX_CR0_FIXED1 = 0x487
    IA32_VMX_CR4_FIXED0 = 0x488
    IA32_VMX_CR4_FIXED1 = 0x489
    IA32_VMX_VMCS_ENUM = 0x48A
    IA32_VMX_PROCBASED_CTLS2 = 0x48B
    IA32_VMX_EPT_VPID_CAP = 0x48C
    IA32_VMX_TRUE_PINBASED_CTLS = 0x48D
    IA32_VMX_TRUE_PROCBASED_CTLS = 0x48E
    IA32_VMX_TRUE_EXIT_CTLS = 0x48F
    IA32_VMX_TRUE_ENTRY_CTLS = 0x490
    IA32_VMX_VMFUNC = 0x491
    IA32_VMX_PROCBASED_CTLS3 = 0x492
    IA32_VMX_EXIT_CTLS2 = 0x493

    # Time
    IA32_TIME_STAMP_COUNTER = 0x10
    IA32_TSC_ADJUST = 0x3B
    IA32_TSC_DEADLINE = 0x6E0
    IA32_TSC_AUX = 0xC000_0103
    IA32_UMWAIT_CONTROL = 0xE1
    IA32_MPERF = 0xE7
    IA32_APERF = 0xE8

    # APIC and interrupts
    IA32_APIC_BASE = 0x1B
    IA32_X2APIC_TPR = 0x808
    IA32_X2APIC_EOI = 0x80B
    IA32_X2APIC_ICR = 0x830
    IA32_X2APIC_SELF_IPI = 0x83F
    IA32_UINTR_RR = 0x985
    IA32_UINTR_HANDLER = 0x986
    IA32_UINTR_STACKADJUST = 0x987
    IA32_UINTR_MISC = 0x988
    IA32_UINTR_PD = 0x989
    IA32_UINTR_TT = 0x98A

    # System calls, segments and modes
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_EFER = 0xC000_0080
    IA32_STAR = 0xC000_0081
    IA32_LSTAR = 0xC000_0082
    IA32_CSTAR = 0xC000_0083
    IA32_FMASK = 0xC000_0084
    IA32_FS_BASE = 0xC000_0100
    IA32_GS_BASE = 0xC000_0101
    IA32_KERNEL_GS_BASE = 0xC000_0102

    # Memory types
    IA32_MTRRCAP = 0xFE
    IA32_MTRR_DEF_TYPE = 0x2FF
    IA32_PAT = 0x277
    IA32_TME_ACTIVATE = 0x982

    # Debugging, tracing and performance monitoring
    IA32_MISC_ENABLE = 0x1A0
    IA32_DEBUGCTL = 0x1D9
    IA32_PERF_GLOBAL_CTRL = 0x38F
    IA32_RTIT_CTL = 0x570
    IA32_LBR_CTL = 0x14CE

    # Extended state and protection
    IA32_U_CET = 0x6A0
    IA32_S_CET = 0x6A2
    IA32_PL0_SSP = 0x6A4
    IA32_PL1_SSP = 0x6A5
    IA32_PL2_SSP = 0x6A6
    IA32_PL3_SSP = 0x6A7
    IA32_INTERRUPT_SSP_TABLE_ADDR = 0x6A8
    IA32_PKRS = 0x6E1
    IA32_BNDCFGS = 0xD90
    IA32_PASID = 0xD93
    IA32_XSS = 0xDA0
    IA32_XFD = 0x1C4

    # Speculation control
    IA32_SPEC_CTRL = 0x48
    IA32_PRED_CMD = 0x49
    IA32_ARCH_CAPABILITIES = 0x10A
    IA32_FLUSH_CMD = 0x10B

    # FRED (SDM, "FRED MSRs")
    IA32_FRED_RSP0 = 0x1CC
    IA32_FRED_RSP1 = 0x1CD
    IA32_FRED_RSP2 = 0x1CE
    IA32_FRED_RSP3 = 0x1CF
    IA32_FRED_STKLVLS = 0x1D0
    IA32_FRED_SSP1 = 0x1D1
    IA32_FRED_SSP2 = 0x1D2
    IA32_FRED_SSP3 = 0x1D3
    IA32_FRED_CONFIG = 0x1D4

    # System management and microcode
    IA32_BIOS_UPDT_TRIG = 0x79
    IA32_BIOS_SIGN_ID = 0x8B
    IA32_SMM_MONITOR_CTL = 0x9B
    IA32_SMBASE = 0x9E

    # Other names in use
    IA32_TSC = IA32_TIME_STAMP_COUNTER
    IA32_FEAT_CTL = IA32_FEATURE_CONTROL


class MsrInfo(NamedTuple):
    """One capability MSR.

    Attributes
    ----------
    msr : Msr
        The MSR; its value is the address.
    ranges : tuple of BitRange
        What its bits say, from bit 0 to bit 63 without gap.
    exists_if : str
        The condition under which RDMSR does not fault.
    reports : str or None
        Name of the VMCS field whose settings it reports.
    rule : str or None
        How to read it.
    reset : str or None
        Value after reset, if that is not a constant of the CPU.
    access : str
        Who may write it.
    note : str or None
        What else is worth knowing.
    """

    msr: Msr
    ranges: tuple[BitRange, ...]
    exists_if: str
    reports: str | None = None
    rule: str | None = None
    reset: str | None = None
    access: str = "read-only: WRMSR causes #GP(0)"
    note: str | None = None

    @property
    def name(self) -> str:
        """The manual's name."""
        return self.msr._name_


#: How the MSRs of the 32-bit controls are read.
_ALLOWED_SETTINGS = (
    "bits 31:0: allowed 0-settings (a 1 means that the control must be 1); bits 63:32: allowed "
    "1-settings (a 1 means that the control may be 1)"
)

#: The 21 MSRs that say what VMX operation supports, by address.
CAPABILITY_MSRS: dict[Msr, MsrInfo] = {
    Msr.IA32_FEATURE_CONTROL: MsrInfo(
        Msr.IA32_FEATURE_CONTROL,
        (
            flag(0, "lock", "writes #GP until reset when 1; VMXON #GP when 0"),
            flag(1, "enable_vmx_inside_smx", "VMXON allowed in SMX operation"),
            flag(2, "enable_vmx_outside_smx", "VMXON allowed outside SMX operation"),
            BitRange(7, 3, "reserved", "must be 0"),
            BitRange(14, 8, "senter_local_enables", "per-function GETSEC[SENTER] enables"),
            flag(15, "senter_global_enable", "GETSEC[SENTER] enable"),
            flag(16, "reserved", "must be 0"),
            flag(17, "sgx_launch_control_enable", "IA32_SGXLEPUBKEYHASHn writable"),
            flag(18, "sgx_global_enable", "SGX leaf functions enabled"),
            flag(19, "reserved", "must be 0"),
            flag(20, "lmce_on", "local machine check enable"),
            BitRange(63, 21, "reserved", "must be 0"),
        ),
        exists_if="CPUID.1:ECX[5]=1 or CPUID.1:ECX[6]=1 (and others)",
        reset="0, kept across INIT; firmware normally sets 5H (lock + outside SMX)",
        access="RW until locked",
        note="Linux calls it IA32_FEAT_CTL",
    ),
    Msr.IA32_VMX_BASIC: MsrInfo(
        Msr.IA32_VMX_BASIC,
        (
            BitRange(30, 0, "revision_id", "VMCS revision identifier"),
            flag(31, "zero", "always 0"),
            BitRange(
                44,
                32,
                "region_size",
                "bytes for VMXON/VMCS region, 1..4096 (bit 44 set iff 43:32 zero)",
            ),
            BitRange(47, 45, "reserved", "always 0"),
            flag(
                48,
                "physical_address_width_32",
                "1: VMX physical addresses limited to 32 bits; 0 on Intel 64",
            ),
            flag(49, "dual_monitor", "dual-monitor treatment supported"),
            BitRange(53, 50, "memory_type", "0 UC, 6 WB for VMCS and pointed-to structures"),
            flag(54, "ins_outs_info", "INS/OUTS exits fill instruction information"),
            flag(55, "true_controls", "default1 controls may be 0; TRUE capability MSRs exist"),
            flag(
                56,
                "error_code_any_exception",
                "VM entry does not tie deliver-error-code to the vector",
            ),
            flag(57, "reserved", "always 0"),
            flag(58, "nested_exception", "nested-exception bit (13) of event fields supported"),
            BitRange(63, 59, "reserved", "always 0"),
        ),
        exists_if="CPUID.1:ECX[5]=1",
        note=(
            "56 and 58 are newer than 2016; ia32-doc stops at 55; Linux names 56 "
            "NO_HW_ERROR_CODE_CC, 58 NESTED_EXCEPTION; 57 unnamed everywhere"
        ),
    ),
    Msr.IA32_VMX_PINBASED_CTLS: MsrInfo(
        Msr.IA32_VMX_PINBASED_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask; default1 bits always read 1 here"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="pin_based_controls",
        exists_if="CPUID.1:ECX[5]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_PROCBASED_CTLS: MsrInfo(
        Msr.IA32_VMX_PROCBASED_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask; default1 bits always read 1 here"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="primary_processor_based_controls",
        exists_if="CPUID.1:ECX[5]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_EXIT_CTLS: MsrInfo(
        Msr.IA32_VMX_EXIT_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask; default1 bits always read 1 here"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="vm_exit_controls",
        exists_if="CPUID.1:ECX[5]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_ENTRY_CTLS: MsrInfo(
        Msr.IA32_VMX_ENTRY_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask; default1 bits always read 1 here"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="vm_entry_controls",
        exists_if="CPUID.1:ECX[5]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_MISC: MsrInfo(
        Msr.IA32_VMX_MISC,
        (
            BitRange(
                4,
                0,
                "preemption_timer_tsc_shift",
                "timer ticks when TSC bit X toggles, rate TSC >> X",
            ),
            flag(
                5,
                "stores_efer_lma",
                "exits store EFER.LMA into entry control 9; 1 iff unrestricted guest supported",
            ),
            flag(6, "activity_hlt", "HLT activity state supported"),
            flag(7, "activity_shutdown", "shutdown activity state supported"),
            flag(8, "activity_wait_for_sipi", "wait-for-SIPI activity state supported"),
            BitRange(13, 9, "reserved", "always 0"),
            flag(14, "intel_pt_in_vmx", "Intel PT usable in VMX operation"),
            flag(15, "rdmsr_smbase_in_smm", "RDMSR of IA32_SMBASE works in SMM"),
            BitRange(24, 16, "cr3_target_count", "number of CR3-target values"),
            BitRange(
                27, 25, "max_msr_list", "N: recommended maximum 512*(N+1) entries per MSR area"
            ),
            flag(28, "smm_monitor_ctl_bit2", "IA32_SMM_MONITOR_CTL[2] may be 1"),
            flag(29, "vmwrite_any_field", "VMWRITE may write VM-exit information fields"),
            flag(
                30,
                "zero_length_injection",
                "VM-entry instruction length 0 allowed for software events",
            ),
            flag(31, "reserved", "always 0"),
            BitRange(63, 32, "mseg_revision", "MSEG revision identifier"),
        ),
        exists_if="CPUID.1:ECX[5]=1",
    ),
    Msr.IA32_VMX_CR0_FIXED0: MsrInfo(
        Msr.IA32_VMX_CR0_FIXED0,
        (BitRange(63, 0, "fixed0", "bit must be 1 in VMX operation if 1"),),
        exists_if="CPUID.1:ECX[5]=1",
        note="typical 80000021H (PG, NE, PE); PE and PG are waived for unrestricted guests",
    ),
    Msr.IA32_VMX_CR0_FIXED1: MsrInfo(
        Msr.IA32_VMX_CR0_FIXED1,
        (BitRange(63, 0, "fixed1", "bit must be 0 in VMX operation if 0"),),
        exists_if="CPUID.1:ECX[5]=1",
        note="typical FFFFFFFFH",
    ),
    Msr.IA32_VMX_CR4_FIXED0: MsrInfo(
        Msr.IA32_VMX_CR4_FIXED0,
        (BitRange(63, 0, "fixed0", "bit must be 1 in VMX operation if 1"),),
        exists_if="CPUID.1:ECX[5]=1",
        note="typical 2000H (VMXE)",
    ),
    Msr.IA32_VMX_CR4_FIXED1: MsrInfo(
        Msr.IA32_VMX_CR4_FIXED1,
        (BitRange(63, 0, "fixed1", "bit must be 0 in VMX operation if 0"),),
        exists_if="CPUID.1:ECX[5]=1",
        note="mask of supported CR4 bits",
    ),
    Msr.IA32_VMX_VMCS_ENUM: MsrInfo(
        Msr.IA32_VMX_VMCS_ENUM,
        (
            flag(0, "reserved", "always 0"),
            BitRange(9, 1, "highest_index", "highest index (bits 9:1) used by any field encoding"),
            BitRange(63, 10, "reserved", "always 0"),
        ),
        exists_if="CPUID.1:ECX[5]=1",
        note=(
            "indices of all widths and areas count; e.g. 17H (preemption timer 0x482E) or higher "
            "on FRED/spec-ctrl parts"
        ),
    ),
    Msr.IA32_VMX_PROCBASED_CTLS2: MsrInfo(
        Msr.IA32_VMX_PROCBASED_CTLS2,
        (
            BitRange(31, 0, "allowed0", "always 0"),
            BitRange(63, 32, "allowed1", "may-be-1 mask of secondary controls"),
        ),
        reports="secondary_processor_based_controls",
        exists_if="IA32_VMX_PROCBASED_CTLS[63]=1",
    ),
    Msr.IA32_VMX_EPT_VPID_CAP: MsrInfo(
        Msr.IA32_VMX_EPT_VPID_CAP,
        (
            flag(0, "execute_only", "execute-only EPT translations"),
            BitRange(5, 1, "reserved", "always 0"),
            flag(6, "page_walk_4", "4-level EPT"),
            flag(7, "page_walk_5", "5-level EPT"),
            flag(8, "memory_type_uc", "EPT structures may be UC"),
            BitRange(13, 9, "reserved", "always 0"),
            flag(14, "memory_type_wb", "EPT structures may be WB"),
            flag(15, "reserved", "always 0"),
            flag(16, "pde_2mb", "2-MByte EPT pages"),
            flag(17, "pdpte_1gb", "1-GByte EPT pages"),
            BitRange(19, 18, "reserved", "always 0"),
            flag(20, "invept", "INVEPT supported"),
            flag(21, "accessed_dirty", "EPT accessed and dirty flags"),
            flag(22, "advanced_ept_exit_info", "qualification bits 9-11 for EPT violations"),
            flag(23, "supervisor_shadow_stack", "EPTP[7] supervisor shadow-stack control"),
            flag(24, "reserved", "always 0"),
            flag(25, "invept_single_context", "INVEPT type 1"),
            flag(26, "invept_all_context", "INVEPT type 2"),
            BitRange(31, 27, "reserved", "always 0"),
            flag(32, "invvpid", "INVVPID supported"),
            BitRange(39, 33, "reserved", "always 0"),
            flag(40, "invvpid_individual_address", "INVVPID type 0"),
            flag(41, "invvpid_single_context", "INVVPID type 1"),
            flag(42, "invvpid_all_context", "INVVPID type 2"),
            flag(43, "invvpid_single_context_retaining_globals", "INVVPID type 3"),
            BitRange(47, 44, "reserved", "always 0"),
            BitRange(53, 48, "max_hlat_prefix_size", "enumerated maximum HLAT prefix size"),
            BitRange(63, 54, "reserved", "always 0"),
        ),
        exists_if="IA32_VMX_PROCBASED_CTLS2[33]=1 (EPT) or [37]=1 (VPID)",
        note="bits 7, 22, 23, 53:48 newer than 2016",
    ),
    Msr.IA32_VMX_TRUE_PINBASED_CTLS: MsrInfo(
        Msr.IA32_VMX_TRUE_PINBASED_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask (default1 bits may read 0)"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="pin_based_controls",
        exists_if="IA32_VMX_BASIC[55]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_TRUE_PROCBASED_CTLS: MsrInfo(
        Msr.IA32_VMX_TRUE_PROCBASED_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask (default1 bits may read 0)"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="primary_processor_based_controls",
        exists_if="IA32_VMX_BASIC[55]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_TRUE_EXIT_CTLS: MsrInfo(
        Msr.IA32_VMX_TRUE_EXIT_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask (default1 bits may read 0)"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="vm_exit_controls",
        exists_if="IA32_VMX_BASIC[55]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_TRUE_ENTRY_CTLS: MsrInfo(
        Msr.IA32_VMX_TRUE_ENTRY_CTLS,
        (
            BitRange(31, 0, "allowed0", "must-be-1 mask (default1 bits may read 0)"),
            BitRange(63, 32, "allowed1", "may-be-1 mask"),
        ),
        reports="vm_entry_controls",
        exists_if="IA32_VMX_BASIC[55]=1",
        rule=_ALLOWED_SETTINGS,
    ),
    Msr.IA32_VMX_VMFUNC: MsrInfo(
        Msr.IA32_VMX_VMFUNC,
        (
            flag(0, "eptp_switching", "EPTP switching may be 1"),
            BitRange(63, 1, "allowed1", "0"),
        ),
        reports="vm_function_controls",
        exists_if="IA32_VMX_PROCBASED_CTLS2[45]=1 (enable VM functions)",
    ),
    Msr.IA32_VMX_PROCBASED_CTLS3: MsrInfo(
        Msr.IA32_VMX_PROCBASED_CTLS3,
        (BitRange(63, 0, "allowed1", "bit set = tertiary control may be 1"),),
        reports="tertiary_processor_based_controls",
        exists_if="IA32_VMX_PROCBASED_CTLS[49]=1 (activate tertiary controls)",
    ),
    Msr.IA32_VMX_EXIT_CTLS2: MsrInfo(
        Msr.IA32_VMX_EXIT_CTLS2,
        (BitRange(63, 0, "allowed1", "bit set = secondary exit control may be 1"),),
        reports="secondary_vm_exit_controls",
        exists_if="IA32_VMX_EXIT_CTLS[63]=1 (activate secondary VM-exit controls)",
    ),
}


def find_msr(what: str | int) -> Msr:
    """Return an MSR by name (any case, with or without ``IA32_``) or address.

    Raises
    ------
    UnknownName
        No table lists this MSR; the nearest names are given.
    """
    number = as_number(what)
    if number is not None:
        try:
            return Msr(number)
        except ValueError:
            raise UnknownName("MSR", f"{number:#x}") from None
    name = canonical(str(what)).upper()
    members = Msr.__members__
    found = members.get(name) or members.get(f"IA32_{name}") or members.get(f"IA32_VMX_{name}")
    if found is None:
        raise UnknownName("MSR", what, members)
    return found


def find_capability_msr(what: str | int) -> MsrInfo:
    """Return the row of a VMX capability MSR by name or address.

    Raises
    ------
    UnknownName
        There is no such capability MSR; the nearest names are given.
    """
    names = [info.name for info in CAPABILITY_MSRS.values()]
    try:
        msr = find_msr(what)
    except UnknownName:
        raise UnknownName("VMX capability MSR", what, names) from None
    if msr not in CAPABILITY_MSRS:
        raise UnknownName("VMX capability MSR", what, names)
    return CAPABILITY_MSRS[msr]
