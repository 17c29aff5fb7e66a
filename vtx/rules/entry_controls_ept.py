"""VM-entry checks on the VM-execution control fields: the EPT pointer and what follows it.

Second part of the SDM's section "VM-Execution Control Fields".
"""

from __future__ import annotations

from vtx.facts.controls import Entry, Exit1, Proc1, Proc2, Proc3, VmFunction
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import EXECUTION_CONTROLS as EXECUTION
from vtx.rules.declaration import Checks, Live, only
from vtx.rules.entry_controls_families import (
    PHYSICAL_WIDTH,
    define_exclusion,
    define_requirement,
)
from vtx.rules.limits import allowed_settings, physical_width

check = Checks()

#: Bits of IA32_VMX_EPT_VPID_CAP.
_CAP_WALK_4, _CAP_WALK_5, _CAP_UC, _CAP_WB = 6, 7, 8, 14
_CAP_ACCESSED_DIRTY, _CAP_SHADOW_STACK = 21, 23
#: EPT memory type → the capability bit that allows it.
_MEMORY_TYPES = {0: _CAP_UC, 6: _CAP_WB}
#: EPTP[5:3], one less than the walk length → the capability bit that allows it.
_WALK_LENGTHS = {3: _CAP_WALK_4, 4: _CAP_WALK_5}

_EPTP_TYPE = 0x7
_EPTP_WALK = 0x38
_EPTP_ACCESSED_DIRTY = 1 << 6
_EPTP_SHADOW_STACK = 1 << 7
_EPTP_RESERVED = 0xF00
_ABOVE_32 = 0xFFFF_FFFF_0000_0000
_HLATP_RESERVED = 0xFE7


def _ept(vmcs: Vmcs) -> int:
    return vmcs.proc2 & Proc2.ENABLE_EPT


@check(
    "ctl.exec.eptp.memory_type",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _EPTP_TYPE),
    capability=("IA32_VMX_EPT_VPID_CAP[8]", "IA32_VMX_EPT_VPID_CAP[14]"),
)
def ept_memory_type_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1, bits 2:0 of the EPT pointer are a memory type that the CPU supports
    for EPT structures: 0 (UC) with IA32_VMX_EPT_VPID_CAP[8], 6 (WB) with [14]."""
    if not _ept(vmcs):
        return True
    capability = _MEMORY_TYPES.get(vmcs[F.EPT_POINTER] & _EPTP_TYPE)
    return capability is not None and processor.shape.ept_vpid_cap(capability)


@check(
    "ctl.exec.eptp.walk_length",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _EPTP_WALK),
    capability=("IA32_VMX_EPT_VPID_CAP[6]", "IA32_VMX_EPT_VPID_CAP[7]"),
)
def ept_walk_length_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1, bits 5:3 of the EPT pointer are one less than an EPT walk length that
    the CPU supports: 3 with IA32_VMX_EPT_VPID_CAP[6], 4 with [7]."""
    if not _ept(vmcs):
        return True
    capability = _WALK_LENGTHS.get((vmcs[F.EPT_POINTER] & _EPTP_WALK) >> 3)
    return capability is not None and processor.shape.ept_vpid_cap(capability)


@check(
    "ctl.exec.eptp.accessed_dirty",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _EPTP_ACCESSED_DIRTY),
    capability=("IA32_VMX_EPT_VPID_CAP[21]",),
)
def ept_accessed_and_dirty_flags_are_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1 and the CPU has no accessed and dirty flags for EPT
    (IA32_VMX_EPT_VPID_CAP[21]), bit 6 of the EPT pointer is 0."""
    return (
        not _ept(vmcs)
        or not vmcs[F.EPT_POINTER] & _EPTP_ACCESSED_DIRTY
        or processor.shape.ept_vpid_cap(_CAP_ACCESSED_DIRTY)
    )


@check(
    "ctl.exec.eptp.supervisor_shadow_stack",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _EPTP_SHADOW_STACK),
    capability=("IA32_VMX_EPT_VPID_CAP[23]",),
    note=(
        "the format of the EPT pointer defines bit 7 for CPUs with the capability, while the "
        "list of checks still calls bits 11:7 reserved; KVM treats bit 7 as reserved"
    ),
)
def ept_supervisor_shadow_stack_control_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1, bit 7 of the EPT pointer (supervisor shadow-stack control) is 0 unless
    the CPU supports it (IA32_VMX_EPT_VPID_CAP[23])."""
    return (
        not _ept(vmcs)
        or not vmcs[F.EPT_POINTER] & _EPTP_SHADOW_STACK
        or processor.shape.ept_vpid_cap(_CAP_SHADOW_STACK)
    )


@check(
    "ctl.exec.eptp.reserved",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _EPTP_RESERVED),
)
def ept_pointer_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1, bits 11:8 of the EPT pointer are 0."""
    return not _ept(vmcs) or not vmcs[F.EPT_POINTER] & _EPTP_RESERVED


@check(
    "ctl.exec.eptp.width",
    EXECUTION,
    Proc2.ENABLE_EPT,
    only(F.EPT_POINTER, _ABOVE_32),
    capability=PHYSICAL_WIDTH,
)
def ept_pointer_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable EPT" is 1, the EPT pointer sets no bit beyond the physical-address width."""
    return not _ept(vmcs) or not vmcs[F.EPT_POINTER] >> physical_width(processor.shape)


for _name, _control in (
    ("pml", Proc2.ENABLE_PML),
    ("unrestricted_guest", Proc2.UNRESTRICTED_GUEST),
    ("mode_based_execute", Proc2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT),
    ("sub_page_permissions", Proc2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT),
    ("pt_uses_gpa", Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES),
    ("pebs_uses_gpa", Proc3.PEBS_USES_GUEST_PHYSICAL_ADDRESSES),
    ("hlat", Proc3.ENABLE_HLAT),
    ("ept_paging_write", Proc3.EPT_PAGING_WRITE_CONTROL),
    ("guest_paging_verification", Proc3.GUEST_PAGING_VERIFICATION),
):
    define_requirement(
        check, f"ctl.exec.ept_required.{_name}", EXECUTION, _control, Proc2.ENABLE_EPT
    )


@check(
    "ctl.exec.seam.ept_required",
    EXECUTION,
    Proc2.ENABLE_EPT,
    live=(Live.SEAM,),
)
def guest_entered_in_seam_uses_ept(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is in SEAM at VM entry, "enable EPT" is 1."""
    return not processor.in_seam or bool(_ept(vmcs))


@check(
    "ctl.exec.seam.shared_eptp_reserved",
    EXECUTION,
    only(F.SEAM_SHARED_EPT_POINTER, 0xFFF | _ABOVE_32),
    live=(Live.SEAM,),
    capability=("MAXPHYADDR",),
)
def seam_shared_ept_pointer_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is in SEAM at VM entry, bits 11:0 and those at or above MAXPHYADDR
    of the SEAM shared EPT pointer are 0."""
    if not processor.in_seam:
        return True
    pointer = vmcs[F.SEAM_SHARED_EPT_POINTER]
    return not pointer & 0xFFF and not pointer >> processor.shape.maxphyaddr


@check(
    "ctl.exec.vmfunc_reserved",
    EXECUTION,
    Proc2.ENABLE_VM_FUNCTIONS,
    F.VM_FUNCTION_CONTROLS,
    capability=("IA32_VMX_VMFUNC",),
)
def vm_functions_are_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable VM functions" is 1, no bit that is 0 in IA32_VMX_VMFUNC is 1 in the VM-function
    controls."""
    return not vmcs.vm_functions & ~allowed_settings(processor.shape)["vmfunc"][1]


define_requirement(
    check,
    "ctl.exec.vmfunc_eptp_switching_needs_ept",
    EXECUTION,
    VmFunction.EPTP_SWITCHING,
    Proc2.ENABLE_EPT,
)


@check(
    "ctl.exec.pt_enabled_vs_load_rtit",
    EXECUTION,
    Entry.LOAD_IA32_RTIT_CTL,
    live=(Live.RTIT_CTL,),
    capability=("IA32_VMX_MISC[14]",),
)
def processor_trace_is_off_if_entry_loads_its_control(vmcs: Vmcs, processor: Processor) -> bool:
    """If IA32_RTIT_CTL.TraceEn is 1 on the logical processor, "load IA32_RTIT_CTL" is 0."""
    return not (
        vmcs.entry & Entry.LOAD_IA32_RTIT_CTL and processor.regs.msrs.get(Msr.IA32_RTIT_CTL, 0) & 1
    )


define_requirement(
    check,
    "ctl.exec.pt_gpa.load_rtit_on_entry",
    EXECUTION,
    Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,
    Entry.LOAD_IA32_RTIT_CTL,
)
define_requirement(
    check,
    "ctl.exec.pt_gpa.clear_rtit_on_exit",
    EXECUTION,
    Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,
    Exit1.CLEAR_IA32_RTIT_CTL,
)


@check("ctl.exec.tsc_multiplier_nonzero", EXECUTION, Proc2.USE_TSC_SCALING, F.TSC_MULTIPLIER)
def tsc_multiplier_is_not_zero(vmcs: Vmcs, processor: Processor) -> bool:
    """If "use TSC scaling" is 1, the TSC multiplier is not 0."""
    return not vmcs.proc2 & Proc2.USE_TSC_SCALING or vmcs[F.TSC_MULTIPLIER] != 0


@check(
    "ctl.exec.hlatp.reserved_low",
    EXECUTION,
    Proc3.ENABLE_HLAT,
    only(F.HLAT_POINTER, _HLATP_RESERVED),
    note="bits 4:3 are PWT and PCD",
)
def hlat_pointer_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable HLAT" is 1, bits 2:0 and 11:5 of the HLAT pointer are 0."""
    return not vmcs.proc3 & Proc3.ENABLE_HLAT or not vmcs[F.HLAT_POINTER] & _HLATP_RESERVED


@check(
    "ctl.exec.hlatp.width",
    EXECUTION,
    Proc3.ENABLE_HLAT,
    only(F.HLAT_POINTER, _ABOVE_32),
    capability=PHYSICAL_WIDTH,
)
def hlat_pointer_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable HLAT" is 1, the HLAT pointer sets no bit beyond the physical-address width."""
    return not vmcs.proc3 & Proc3.ENABLE_HLAT or not vmcs[F.HLAT_POINTER] >> physical_width(
        processor.shape
    )


define_requirement(
    check,
    "ctl.exec.apic_timer.vid",
    EXECUTION,
    Proc3.APIC_TIMER_VIRTUALIZATION,
    Proc2.VIRTUAL_INTERRUPT_DELIVERY,
)
define_exclusion(
    check,
    "ctl.exec.apic_timer.rdtsc_exiting",
    EXECUTION,
    Proc3.APIC_TIMER_VIRTUALIZATION,
    Proc1.RDTSC_EXITING,
)


@check(
    "ctl.exec.apic_timer.vector",
    EXECUTION,
    Proc3.APIC_TIMER_VIRTUALIZATION,
    only(F.VIRTUAL_TIMER_VECTOR, 0xFF00),
)
def virtual_timer_vector_is_a_vector(vmcs: Vmcs, processor: Processor) -> bool:
    """If "APIC-timer virtualization" is 1, bits 15:8 of the virtual timer vector are 0."""
    return not vmcs.proc3 & Proc3.APIC_TIMER_VIRTUALIZATION or vmcs[F.VIRTUAL_TIMER_VECTOR] <= 0xFF
