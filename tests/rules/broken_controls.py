"""Counter-examples of the checks on control fields."""

from __future__ import annotations

from vtx.facts.msrs import Msr

from .entry_support import (
    BEYOND_PHYSICAL,
    PAGE,
    Broken,
    with_msr,
    without_control,
)

APIC = {"proc1.use_tpr_shadow": 1, "virtual_apic_address": PAGE}
DELIVERY = {
    **APIC,
    "proc2.virtual_interrupt_delivery": 1,
    "pin.external_interrupt_exiting": 1,
}
POSTED = {**DELIVERY, "pin.process_posted_interrupts": 1, "exit1.acknowledge_interrupt_on_exit": 1}
IPI = {**APIC, "proc3.ipi_virtualization": 1}
TIMER = {**DELIVERY, "proc3.apic_timer_virtualization": 1}
SWITCHING = {"proc2.enable_vm_functions": 1, "vmfunc.eptp_switching": 1}
TRACE = {
    "proc2.intel_pt_uses_guest_physical_addresses": 1,
    "entry.load_ia32_rtit_ctl": 1,
    "exit1.clear_ia32_rtit_ctl": 1,
}
WITHOUT_EPT = {"proc2.enable_ept": 0}


def _set(field: str, bit: int) -> dict[str, int]:
    return {field: 1 << bit}


RESERVED = (
    Broken("ctl.exec.pin_reserved.must_be_1", {"pin_based_controls": 0x16 & ~2 | 9}),
    Broken("ctl.exec.pin_reserved.must_be_0", {"pin_based_controls": 1 << 31 | 0x16 | 9}),
    Broken("ctl.exec.proc1_reserved.must_be_1", {"primary_processor_based_controls": 0x8400_6170}),
    Broken("ctl.exec.proc1_reserved.must_be_0", {"primary_processor_based_controls": 0x8400_6173}),
    Broken(
        "ctl.exec.proc2_reserved",
        {"proc2.wbinvd_exiting": 1},
        shape=without_control("proc2", "wbinvd_exiting"),
    ),
    Broken(
        "ctl.exec.proc3_reserved",
        {"proc3.loadiwkey_exiting": 1},
        shape=with_msr(Msr.IA32_VMX_PROCBASED_CTLS3, clear=1),
    ),
    Broken("ctl.exec.cr3_target_count", {"cr3_target_count": 5}),
)

STRUCTURES = {
    "io_bitmap_a": ("io_bitmap_a", {"proc1.use_io_bitmaps": 1}),
    "io_bitmap_b": ("io_bitmap_b", {"proc1.use_io_bitmaps": 1}),
    "msr_bitmap": ("msr_bitmap", {"proc1.use_msr_bitmaps": 1}),
    "virtual_apic": ("virtual_apic_address", APIC),
    "apic_access": ("apic_access_address", {"proc2.virtualize_apic_accesses": 1}),
    "pml": ("pml_address", {"proc2.enable_pml": 1}),
    "spptp": (
        "sub_page_permission_table_pointer",
        {"proc2.sub_page_write_permissions_for_ept": 1},
    ),
    "eptp_list": ("eptp_list_address", SWITCHING),
    "vmread_bitmap": ("vmread_bitmap_address", {"proc2.vmcs_shadowing": 1}),
    "vmwrite_bitmap": ("vmwrite_bitmap_address", {"proc2.vmcs_shadowing": 1}),
    "ve_info": ("virtualization_exception_info_address", {"proc2.ept_violation_ve": 1}),
    "low_pasid_directory": ("low_pasid_directory_address", {"proc2.pasid_translation": 1}),
    "high_pasid_directory": ("high_pasid_directory_address", {"proc2.pasid_translation": 1}),
}
ADDRESSES = tuple(
    case
    for name, (field, given) in STRUCTURES.items()
    for case in (
        Broken(f"ctl.exec.{name}.align", {field: PAGE | 0x800}, given),
        Broken(f"ctl.exec.{name}.width", {field: BEYOND_PHYSICAL}, given),
    )
)

APIC_RULES = (
    Broken("ctl.exec.tpr_threshold_reserved", {"tpr_threshold": 0x10}, APIC),
    Broken("ctl.exec.tpr_threshold_vs_vtpr", {"tpr_threshold": 3}, APIC),
    Broken(
        "ctl.exec.virtual_nmis_need_nmi_exiting", {"pin.nmi_exiting": 0}, {"pin.virtual_nmis": 1}
    ),
    Broken(
        "ctl.exec.nmi_window_needs_virtual_nmis",
        {"proc1.nmi_window_exiting": 1, "pin.virtual_nmis": 0},
    ),
    Broken("ctl.exec.tpr_shadow_required.x2apic_mode", {"proc2.virtualize_x2apic_mode": 1}),
    Broken(
        "ctl.exec.tpr_shadow_required.apic_register_virtualization",
        {"proc2.apic_register_virtualization": 1},
    ),
    Broken(
        "ctl.exec.tpr_shadow_required.virtual_interrupt_delivery",
        {"proc2.virtual_interrupt_delivery": 1},
        {"pin.external_interrupt_exiting": 1},
    ),
    Broken("ctl.exec.tpr_shadow_required.ipi_virtualization", {"proc3.ipi_virtualization": 1}),
    Broken(
        "ctl.exec.x2apic_vs_apic_accesses",
        {"proc2.virtualize_apic_accesses": 1},
        {**APIC, "proc2.virtualize_x2apic_mode": 1},
    ),
    Broken(
        "ctl.exec.vid_needs_external_interrupt_exiting",
        {"pin.external_interrupt_exiting": 0},
        DELIVERY,
    ),
    Broken("ctl.exec.posted_interrupts.vid", {"proc2.virtual_interrupt_delivery": 0}, POSTED),
    Broken(
        "ctl.exec.posted_interrupts.ack_on_exit",
        {"exit1.acknowledge_interrupt_on_exit": 0},
        POSTED,
    ),
    Broken(
        "ctl.exec.posted_interrupts.vector", _set("posted_interrupt_notification_vector", 8), POSTED
    ),
    Broken(
        "ctl.exec.posted_interrupts.descriptor_align",
        _set("posted_interrupt_descriptor_address", 5),
        POSTED,
    ),
    Broken(
        "ctl.exec.posted_interrupts.descriptor_width",
        {"posted_interrupt_descriptor_address": BEYOND_PHYSICAL},
        POSTED,
    ),
    Broken("ctl.exec.ipi_virtualization.table_align", _set("pid_pointer_table_address", 2), IPI),
    Broken(
        "ctl.exec.ipi_virtualization.table_width",
        {"pid_pointer_table_address": BEYOND_PHYSICAL},
        IPI,
        also=("ctl.exec.ipi_virtualization.last_entry_width",),
        why="the table's last entry does not lie below its first",
    ),
    Broken(
        "ctl.exec.ipi_virtualization.last_entry_width",
        {"pid_pointer_table_address": BEYOND_PHYSICAL - 8, "last_pid_pointer_index": 1},
        IPI,
    ),
    Broken("ctl.exec.vpid_nonzero", {"vpid": 0}, {"proc2.enable_vpid": 1, "vpid": 1}),
)

EPT_POINTER = PAGE | 3 << 3 | 6
EPT = (
    Broken("ctl.exec.eptp.memory_type", {"ept_pointer": EPT_POINTER & ~7 | 4}),
    Broken("ctl.exec.eptp.walk_length", {"ept_pointer": EPT_POINTER & ~0x38 | 2 << 3}),
    Broken(
        "ctl.exec.eptp.accessed_dirty",
        {"ept_pointer": EPT_POINTER | 1 << 6},
        shape=with_msr(Msr.IA32_VMX_EPT_VPID_CAP, clear=1 << 21),
    ),
    Broken("ctl.exec.eptp.supervisor_shadow_stack", {"ept_pointer": EPT_POINTER | 1 << 7}),
    Broken("ctl.exec.eptp.reserved", {"ept_pointer": EPT_POINTER | 1 << 8}),
    Broken("ctl.exec.eptp.width", {"ept_pointer": EPT_POINTER | BEYOND_PHYSICAL}),
    Broken("ctl.exec.ept_required.pml", WITHOUT_EPT, {"proc2.enable_pml": 1}),
    Broken(
        "ctl.exec.ept_required.unrestricted_guest", WITHOUT_EPT, {"proc2.unrestricted_guest": 1}
    ),
    Broken(
        "ctl.exec.ept_required.mode_based_execute",
        WITHOUT_EPT,
        {"proc2.mode_based_execute_control_for_ept": 1},
    ),
    Broken(
        "ctl.exec.ept_required.sub_page_permissions",
        WITHOUT_EPT,
        {"proc2.sub_page_write_permissions_for_ept": 1},
    ),
    Broken("ctl.exec.ept_required.pt_uses_gpa", WITHOUT_EPT, TRACE),
    Broken(
        "ctl.exec.ept_required.pebs_uses_gpa",
        WITHOUT_EPT,
        {"proc3.pebs_uses_guest_physical_addresses": 1},
    ),
    Broken("ctl.exec.ept_required.hlat", WITHOUT_EPT, {"proc3.enable_hlat": 1}),
    Broken(
        "ctl.exec.ept_required.ept_paging_write", WITHOUT_EPT, {"proc3.ept_paging_write_control": 1}
    ),
    Broken(
        "ctl.exec.ept_required.guest_paging_verification",
        WITHOUT_EPT,
        {"proc3.guest_paging_verification": 1},
    ),
    Broken("ctl.exec.seam.ept_required", WITHOUT_EPT, state={"in_seam": True}),
    Broken(
        "ctl.exec.seam.shared_eptp_reserved",
        {"seam_shared_ept_pointer": BEYOND_PHYSICAL},
        state={"in_seam": True},
    ),
    Broken("ctl.exec.vmfunc_reserved", _set("vm_function_controls", 1), SWITCHING),
    Broken("ctl.exec.vmfunc_eptp_switching_needs_ept", WITHOUT_EPT, SWITCHING),
)

OTHER_EXECUTION = (
    Broken(
        "ctl.exec.pt_enabled_vs_load_rtit",
        {"entry.load_ia32_rtit_ctl": 1},
        state={"rtit_ctl": 1},
    ),
    Broken("ctl.exec.pt_gpa.load_rtit_on_entry", {"entry.load_ia32_rtit_ctl": 0}, TRACE),
    Broken("ctl.exec.pt_gpa.clear_rtit_on_exit", {"exit1.clear_ia32_rtit_ctl": 0}, TRACE),
    Broken(
        "ctl.exec.tsc_multiplier_nonzero",
        {"tsc_multiplier": 0},
        {"proc2.use_tsc_scaling": 1, "tsc_multiplier": 1 << 48},
    ),
    Broken("ctl.exec.hlatp.reserved_low", _set("hlat_pointer", 5), {"proc3.enable_hlat": 1}),
    Broken("ctl.exec.hlatp.width", {"hlat_pointer": BEYOND_PHYSICAL}, {"proc3.enable_hlat": 1}),
    Broken("ctl.exec.apic_timer.vid", {"proc2.virtual_interrupt_delivery": 0}, TIMER),
    Broken("ctl.exec.apic_timer.rdtsc_exiting", {"proc1.rdtsc_exiting": 1}, TIMER),
    Broken("ctl.exec.apic_timer.vector", _set("virtual_timer_vector", 8), TIMER),
)


#: One entry for an MSR area: IA32_PAT with a value that it may have.
PAT_ENTRY = (0x277).to_bytes(8, "little") + (0x0007_0406_0007_0406).to_bytes(8, "little")


def _area(prefix: str, address: str, count: str) -> tuple[Broken, ...]:
    given, memory = {count: 1, address: PAGE}, {PAGE: PAT_ENTRY}
    last_byte = f"{prefix}.last_byte"
    return (
        Broken(f"{prefix}.align", {address: PAGE + 8}, given, memory=memory),
        Broken(
            f"{prefix}.width",
            {address: BEYOND_PHYSICAL},
            given,
            memory=memory,
            also=(last_byte,),
            why="an area's last byte does not lie below its first",
        ),
        Broken(last_byte, {address: BEYOND_PHYSICAL - 16, count: 2}, given, memory=memory),
    )


EXIT = (
    Broken("ctl.exit.exit1_reserved.must_be_1", {"vm_exit_controls": 0x3_6DFE | 1 << 9}),
    Broken(
        "ctl.exit.exit1_reserved.must_be_0",
        {"exit1.clear_ia32_bndcfgs": 1},
        shape=without_control("exit1", "clear_ia32_bndcfgs"),
    ),
    Broken(
        "ctl.exit.exit2_reserved",
        _set("secondary_vm_exit_controls", 63),
        {"exit1.activate_secondary_controls": 1},
    ),
    Broken("ctl.exit.save_preemption_timer", {"exit1.save_vmx_preemption_timer_value": 1}),
    *_area("ctl.exit.msr_store", "vm_exit_msr_store_address", "vm_exit_msr_store_count"),
    *_area("ctl.exit.msr_load", "vm_exit_msr_load_address", "vm_exit_msr_load_count"),
)

VALID = 1 << 31
ERROR_CODE = 1 << 11


def _event(kind: int, vector: int, bits: int = 0) -> dict[str, int]:
    return {"vm_entry_interruption_information": VALID | bits | kind << 8 | vector}


LENGTH = {"vm_entry_instruction_length": 2}
LONG = {"vm_entry_instruction_length": 16}
ZERO = {"vm_entry_instruction_length": 0}
WITHOUT_MTF = without_control("proc1", "monitor_trap_flag")


def _lengths(name: str, event: dict[str, int], mode: str = "ia32e") -> tuple[Broken, Broken]:
    return (
        Broken(f"ctl.entry.inject.length_max.{name}", LONG, {**event, **LENGTH}, mode),
        Broken(f"ctl.entry.inject.length_zero.{name}", ZERO, {**event, **LENGTH}, mode),
    )


ENTRY = (
    Broken("ctl.entry.reserved.must_be_1", {"vm_entry_controls": 0x11FA | 1 << 9 | 3 << 14}),
    Broken("ctl.entry.reserved.must_be_0", {"vm_entry_controls": 1 << 31 | 0x13FF | 3 << 14}),
    Broken("ctl.entry.inject.type_reserved", _event(1, 0x20)),
    Broken(
        "ctl.entry.inject.type_other_event",
        _event(7, 1),
        LENGTH,
        shape=with_msr(Msr.IA32_VMX_CR4_FIXED1, clear=1 << 32, shape=WITHOUT_MTF),
        also=("ctl.entry.inject.vector_other_event",),
        why="no vector of an other event is defined on a CPU without both features",
    ),
    Broken("ctl.entry.inject.vector_nmi", _event(2, 3)),
    Broken("ctl.entry.inject.vector_hw_exception", _event(3, 32)),
    Broken("ctl.entry.inject.vector_other_event", _event(7, 3)),
    Broken("ctl.entry.inject.error_code_required", _event(3, 13), _event(3, 13, ERROR_CODE)),
    Broken("ctl.entry.inject.error_code_not_hw_exception", _event(2, 2, ERROR_CODE), _event(2, 2)),
    Broken(
        "ctl.entry.inject.error_code_real_mode", _event(3, 13, ERROR_CODE), _event(3, 13), "real"
    ),
    Broken("ctl.entry.inject.error_code_forbidden_vector", _event(3, 21, ERROR_CODE)),
    Broken("ctl.entry.inject.nested_exception_bit", _event(3, 6, 1 << 13)),
    Broken("ctl.entry.inject.reserved", _event(3, 6, 1 << 12)),
    Broken(
        "ctl.entry.inject.error_code_high",
        {"vm_entry_exception_error_code": 1 << 16},
        _event(3, 13, ERROR_CODE),
    ),
    *_lengths("software_interrupt", _event(4, 0x80)),
    *_lengths("privileged_software_exception", _event(5, 1)),
    *_lengths("software_exception", _event(6, 3)),
    *_lengths("fred_syscall", _event(7, 1), "fred"),
    *_area("ctl.entry.msr_load", "vm_entry_msr_load_address", "vm_entry_msr_load_count"),
    Broken(
        "ctl.entry.entry_to_smm_outside_smm",
        {"entry.entry_to_smm": 1},
        also=("guest.interruptibility.smi_entry_to_smm",),
        why="the guest must block SMIs after entry to SMM and must not outside SMM",
    ),
    Broken(
        "ctl.entry.deactivate_dual_monitor_outside_smm",
        {"entry.deactivate_dual_monitor_treatment": 1},
    ),
    Broken(
        "ctl.entry.smm_bits_exclusive",
        {"entry.deactivate_dual_monitor_treatment": 1},
        {"entry.entry_to_smm": 1, "guest_interruptibility_state": 4},
        state={"smm": True, "dual_monitor_active": True},
    ),
)

CASES = (*RESERVED, *ADDRESSES, *APIC_RULES, *EPT, *OTHER_EXECUTION, *EXIT, *ENTRY)
