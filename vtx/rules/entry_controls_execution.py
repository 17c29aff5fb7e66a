"""VM-entry checks on the VM-execution control fields (SDM, "VM-Execution Control Fields")."""

from __future__ import annotations

from vtx.facts.controls import (
    GROUPS,
    Exit1,
    Pin,
    Proc1,
    Proc2,
    Proc3,
    VmFunction,
)
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import EXECUTION_CONTROLS as EXECUTION
from vtx.rules.declaration import Area, Checks, Live, only
from vtx.rules.entry_controls_families import (
    PHYSICAL_WIDTH,
    StructureAddress,
    define_address,
    define_exclusion,
    define_requirement,
)
from vtx.rules.limits import allowed_settings, cr3_target_count, physical_width
from vtx.rules.physical import read_u8

check = Checks()

_VTPR = 0x80


def define_allowed_settings(check: Checks, area: Area, key: str, prefix: str) -> None:
    """Define the two checks on a control word whose capability MSR has two halves."""
    group = GROUPS[key]
    field, title = group.field, group.title[0].lower() + group.title[1:]
    msrs = tuple(name for name in (group.capability_msr, group.true_capability_msr) if name)

    @check(
        f"{prefix}.must_be_1",
        area,
        field,
        title=f"{title}: bits that must be 1 are 1",
        rule=f"Every bit that {' or '.join(msrs)} reports as must-be-1 is 1 in the {title}.",
        capability=(*msrs, "IA32_VMX_BASIC[55]"),
        cause="a control word written without folding in the capability MSR's low half",
    )
    def bits_that_must_be_1_are_1(vmcs: Vmcs, processor: Processor) -> bool:
        return not allowed_settings(processor.shape)[key][0] & ~vmcs[field]

    @check(
        f"{prefix}.must_be_0",
        area,
        field,
        title=f"{title}: bits that must be 0 are 0",
        rule=f"No bit that {' or '.join(msrs)} does not report as may-be-1 is 1 in the {title}.",
        capability=(*msrs, "IA32_VMX_BASIC[55]"),
        cause="a control that this CPU does not support",
    )
    def bits_that_must_be_0_are_0(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[field] & ~allowed_settings(processor.shape)[key][1]


define_allowed_settings(check, EXECUTION, "pin", "ctl.exec.pin_reserved")
define_allowed_settings(check, EXECUTION, "proc1", "ctl.exec.proc1_reserved")


@check(
    "ctl.exec.proc2_reserved",
    EXECUTION,
    Proc1.ACTIVATE_SECONDARY_CONTROLS,
    F.SECONDARY_PROCESSOR_BASED_CONTROLS,
    capability=("IA32_VMX_PROCBASED_CTLS2",),
    cause="a control that this CPU does not support",
)
def secondary_controls_are_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "activate secondary controls" is 1, no bit that IA32_VMX_PROCBASED_CTLS2 does not report
    as may-be-1 is 1 in the secondary processor-based VM-execution controls."""
    return not vmcs.proc2 & ~allowed_settings(processor.shape)["proc2"][1]


@check(
    "ctl.exec.proc3_reserved",
    EXECUTION,
    Proc1.ACTIVATE_TERTIARY_CONTROLS,
    F.TERTIARY_PROCESSOR_BASED_CONTROLS,
    capability=("IA32_VMX_PROCBASED_CTLS3",),
    cause="a control that this CPU does not support",
)
def tertiary_controls_are_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "activate tertiary controls" is 1, no bit that is 0 in IA32_VMX_PROCBASED_CTLS3 is 1 in
    the tertiary processor-based VM-execution controls."""
    return not vmcs.proc3 & ~allowed_settings(processor.shape)["proc3"][1]


@check(
    "ctl.exec.cr3_target_count",
    EXECUTION,
    F.CR3_TARGET_COUNT,
    capability=("IA32_VMX_MISC[24:16]",),
)
def cr3_targets_are_not_too_many(vmcs: Vmcs, processor: Processor) -> bool:
    """The CR3-target count is not greater than the number of CR3-target values of the CPU
    (IA32_VMX_MISC[24:16], 4 on every CPU so far)."""
    return vmcs[F.CR3_TARGET_COUNT] <= cr3_target_count(processor.shape)


_ADDRESSES = (
    ("io_bitmap_a", F.IO_BITMAP_A, Proc1.USE_IO_BITMAPS),
    ("io_bitmap_b", F.IO_BITMAP_B, Proc1.USE_IO_BITMAPS),
    ("msr_bitmap", F.MSR_BITMAP, Proc1.USE_MSR_BITMAPS),
    ("virtual_apic", F.VIRTUAL_APIC_ADDRESS, Proc1.USE_TPR_SHADOW),
    ("apic_access", F.APIC_ACCESS_ADDRESS, Proc2.VIRTUALIZE_APIC_ACCESSES),
    ("pml", F.PML_ADDRESS, Proc2.ENABLE_PML),
    (
        "spptp",
        F.SUB_PAGE_PERMISSION_TABLE_POINTER,
        Proc2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,
    ),
    ("eptp_list", F.EPTP_LIST_ADDRESS, VmFunction.EPTP_SWITCHING),
    ("vmread_bitmap", F.VMREAD_BITMAP_ADDRESS, Proc2.VMCS_SHADOWING),
    ("vmwrite_bitmap", F.VMWRITE_BITMAP_ADDRESS, Proc2.VMCS_SHADOWING),
    ("ve_info", F.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS, Proc2.EPT_VIOLATION_VE),
    ("low_pasid_directory", F.LOW_PASID_DIRECTORY_ADDRESS, Proc2.PASID_TRANSLATION),
    ("high_pasid_directory", F.HIGH_PASID_DIRECTORY_ADDRESS, Proc2.PASID_TRANSLATION),
)
for _name, _field, _control in _ADDRESSES:
    _ids = (f"ctl.exec.{_name}.align", f"ctl.exec.{_name}.width")
    define_address(check, EXECUTION, StructureAddress(_ids, _field, 4096, _control))


@check(
    "ctl.exec.tpr_threshold_reserved",
    EXECUTION,
    Proc1.USE_TPR_SHADOW,
    Proc2.VIRTUAL_INTERRUPT_DELIVERY,
    only(F.TPR_THRESHOLD, ~0xF),
)
def tpr_threshold_is_a_priority_class(vmcs: Vmcs, processor: Processor) -> bool:
    """If "use TPR shadow" is 1 and "virtual-interrupt delivery" is 0, bits 31:4 of the TPR
    threshold are 0."""
    return not _uses_tpr_threshold(vmcs) or vmcs[F.TPR_THRESHOLD] <= 0xF


def _uses_tpr_threshold(vmcs: Vmcs) -> bool:
    return bool(
        vmcs.proc1 & Proc1.USE_TPR_SHADOW and not vmcs.proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY
    )


def _compares_with_vtpr(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether VM entry compares the threshold with VTPR, and where it is can be read."""
    page = vmcs[F.VIRTUAL_APIC_ADDRESS]
    return (
        _uses_tpr_threshold(vmcs)
        and not vmcs.proc2 & Proc2.VIRTUALIZE_APIC_ACCESSES
        and not page & 0xFFF
        and not page >> physical_width(processor.shape)
    )


@check(
    "ctl.exec.tpr_threshold_vs_vtpr",
    EXECUTION,
    Proc1.USE_TPR_SHADOW,
    Proc2.VIRTUAL_INTERRUPT_DELIVERY,
    Proc2.VIRTUALIZE_APIC_ACCESSES,
    F.VIRTUAL_APIC_ADDRESS,
    only(F.TPR_THRESHOLD, 0xF),
    applies=_compares_with_vtpr,
    live=(Live.MEMORY,),
    note=(
        'with "virtualize APIC accesses" the comparison is no entry check: it gives a VM exit '
        "(TPR below threshold) right after entry"
    ),
)
def tpr_threshold_is_not_above_the_virtual_tpr(vmcs: Vmcs, processor: Processor) -> bool:
    """If "use TPR shadow" is 1 and both "virtualize APIC accesses" and "virtual-interrupt
    delivery" are 0, bits 3:0 of the TPR threshold are not greater than bits 7:4 of VTPR in the
    virtual-APIC page."""
    if not _compares_with_vtpr(vmcs, processor):
        return True
    vtpr = read_u8(processor, vmcs[F.VIRTUAL_APIC_ADDRESS] + _VTPR)
    return vmcs[F.TPR_THRESHOLD] & 0xF <= vtpr >> 4


define_requirement(
    check, "ctl.exec.virtual_nmis_need_nmi_exiting", EXECUTION, Pin.VIRTUAL_NMIS, Pin.NMI_EXITING
)
define_requirement(
    check,
    "ctl.exec.nmi_window_needs_virtual_nmis",
    EXECUTION,
    Proc1.NMI_WINDOW_EXITING,
    Pin.VIRTUAL_NMIS,
)
for _name, _user in (
    ("x2apic_mode", Proc2.VIRTUALIZE_X2APIC_MODE),
    ("apic_register_virtualization", Proc2.APIC_REGISTER_VIRTUALIZATION),
    ("virtual_interrupt_delivery", Proc2.VIRTUAL_INTERRUPT_DELIVERY),
    ("ipi_virtualization", Proc3.IPI_VIRTUALIZATION),
):
    define_requirement(
        check, f"ctl.exec.tpr_shadow_required.{_name}", EXECUTION, _user, Proc1.USE_TPR_SHADOW
    )
define_exclusion(
    check,
    "ctl.exec.x2apic_vs_apic_accesses",
    EXECUTION,
    Proc2.VIRTUALIZE_X2APIC_MODE,
    Proc2.VIRTUALIZE_APIC_ACCESSES,
)
define_requirement(
    check,
    "ctl.exec.vid_needs_external_interrupt_exiting",
    EXECUTION,
    Proc2.VIRTUAL_INTERRUPT_DELIVERY,
    Pin.EXTERNAL_INTERRUPT_EXITING,
)
define_requirement(
    check,
    "ctl.exec.posted_interrupts.vid",
    EXECUTION,
    Pin.PROCESS_POSTED_INTERRUPTS,
    Proc2.VIRTUAL_INTERRUPT_DELIVERY,
)
define_requirement(
    check,
    "ctl.exec.posted_interrupts.ack_on_exit",
    EXECUTION,
    Pin.PROCESS_POSTED_INTERRUPTS,
    Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT,
)


@check(
    "ctl.exec.posted_interrupts.vector",
    EXECUTION,
    Pin.PROCESS_POSTED_INTERRUPTS,
    only(F.POSTED_INTERRUPT_NOTIFICATION_VECTOR, 0xFF00),
)
def posted_interrupt_notification_vector_is_a_vector(vmcs: Vmcs, processor: Processor) -> bool:
    """If "process posted interrupts" is 1, bits 15:8 of the posted-interrupt notification vector
    are 0."""
    return (
        not vmcs.pin & Pin.PROCESS_POSTED_INTERRUPTS
        or vmcs[F.POSTED_INTERRUPT_NOTIFICATION_VECTOR] <= 0xFF
    )


define_address(
    check,
    EXECUTION,
    StructureAddress(
        (
            "ctl.exec.posted_interrupts.descriptor_align",
            "ctl.exec.posted_interrupts.descriptor_width",
        ),
        F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
        64,
        Pin.PROCESS_POSTED_INTERRUPTS,
    ),
)
define_address(
    check,
    EXECUTION,
    StructureAddress(
        ("ctl.exec.ipi_virtualization.table_align", "ctl.exec.ipi_virtualization.table_width"),
        F.PID_POINTER_TABLE_ADDRESS,
        8,
        Proc3.IPI_VIRTUALIZATION,
    ),
)


@check(
    "ctl.exec.ipi_virtualization.last_entry_width",
    EXECUTION,
    Proc3.IPI_VIRTUALIZATION,
    F.PID_POINTER_TABLE_ADDRESS,
    F.LAST_PID_POINTER_INDEX,
    capability=PHYSICAL_WIDTH,
)
def last_pid_pointer_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IPI virtualization" is 1, the address of the last entry of the PID-pointer table, the
    table's address plus 8 times the last PID-pointer index, sets no bit beyond the
    physical-address width."""
    if not vmcs.proc3 & Proc3.IPI_VIRTUALIZATION:
        return True
    last = vmcs[F.PID_POINTER_TABLE_ADDRESS] + 8 * vmcs[F.LAST_PID_POINTER_INDEX]
    return not last >> physical_width(processor.shape)


@check("ctl.exec.vpid_nonzero", EXECUTION, Proc2.ENABLE_VPID, F.VPID)
def vpid_is_not_zero(vmcs: Vmcs, processor: Processor) -> bool:
    """If "enable VPID" is 1, the VPID is not 0000H."""
    return not vmcs.proc2 & Proc2.ENABLE_VPID or vmcs[F.VPID] != 0
