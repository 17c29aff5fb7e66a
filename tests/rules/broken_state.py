"""Counter-examples of the checks on non-register state, PDPTEs, MSR areas, and around SMM."""

from __future__ import annotations

from collections.abc import Mapping

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.vmcs import Vmcs

from .entry_support import (
    BEYOND_PHYSICAL,
    NOT_CANONICAL,
    PAGE,
    REVISION,
    VMCS,
    VMXON,
    Broken,
    guest,
    with_msr,
    without_features,
)

IF = {"guest_rflags": 0x202}
STI, MOV_SS, SMI, NMI, ENCLAVE = 1, 2, 4, 8, 16
HLT, SHUTDOWN, WAIT_FOR_SIPI = 1, 2, 3
IN_SMM = {"smm": True, "dual_monitor_active": True}
INTO_SMM = {"entry.entry_to_smm": 1, "guest_interruptibility_state": SMI}


def blocking(bits: int) -> dict[str, int]:
    """Return the change that sets the interruptibility state."""
    return {"guest_interruptibility_state": bits}


def activity(state: int) -> dict[str, int]:
    """Return the change that sets the activity state."""
    return {"guest_activity_state": state}


def event(kind: int, vector: int) -> dict[str, int]:
    """Return the change that injects an event."""
    return {
        "vm_entry_interruption_information": 1 << 31 | kind << 8 | vector,
        "vm_entry_instruction_length": 2,
    }


EXTERNAL_INTERRUPT, NMI_EVENT = event(0, 0x20), event(2, 2)

ACTIVITY = (
    Broken("guest.activity.supported", activity(4)),
    Broken("guest.activity.hlt_dpl", activity(HLT), mode="user"),
    Broken("guest.activity.blocking", activity(SHUTDOWN), {**IF, **blocking(STI)}),
    Broken("guest.activity.inject_hlt", event(4, 0x80), activity(HLT)),
    Broken("guest.activity.inject_shutdown", EXTERNAL_INTERRUPT, {**IF, **activity(SHUTDOWN)}),
    Broken("guest.activity.inject_wait_for_sipi", NMI_EVENT, activity(WAIT_FOR_SIPI)),
    Broken("guest.activity.entry_to_smm", activity(WAIT_FOR_SIPI), INTO_SMM, state=IN_SMM),
)

INTERRUPTIBILITY = (
    Broken("guest.interruptibility.reserved", blocking(1 << 5)),
    Broken("guest.interruptibility.sti_and_mov_ss", blocking(STI | MOV_SS), IF),
    Broken("guest.interruptibility.sti_needs_if", blocking(STI), {"guest_rflags": 2}),
    Broken("guest.interruptibility.ext_int.sti", blocking(STI), {**IF, **EXTERNAL_INTERRUPT}),
    Broken("guest.interruptibility.ext_int.mov_ss", blocking(MOV_SS), {**IF, **EXTERNAL_INTERRUPT}),
    Broken("guest.interruptibility.nmi.sti", blocking(STI), {**IF, **NMI_EVENT}),
    Broken("guest.interruptibility.nmi.mov_ss", blocking(MOV_SS), NMI_EVENT),
    Broken("guest.interruptibility.smi_outside_smm", blocking(SMI)),
    Broken("guest.interruptibility.smi_entry_to_smm", blocking(0), INTO_SMM, state=IN_SMM),
    Broken(
        "guest.interruptibility.virtual_nmi",
        blocking(NMI),
        {**NMI_EVENT, "pin.nmi_exiting": 1, "pin.virtual_nmis": 1},
    ),
    Broken("guest.interruptibility.enclave_mov_ss", blocking(ENCLAVE | MOV_SS)),
    Broken(
        "guest.interruptibility.enclave_sgx",
        blocking(ENCLAVE),
        shape=with_msr(
            Msr.IA32_VMX_PROCBASED_CTLS2, clear=1 << (32 + 15), shape=without_features("sgx")
        ),
    ),
)

PENDING = "guest_pending_debug_exceptions"
TRAP_FLAG, BS, ENABLED_BREAKPOINT, RTM = 0x100, 1 << 14, 1 << 12, 1 << 16
PENDING_DEBUG = (
    Broken("guest.pending_debug.reserved", {PENDING: 1 << 4}),
    Broken("guest.pending_debug.bs_must_be_1", blocking(MOV_SS), {"guest_rflags": 2 | TRAP_FLAG}),
    Broken("guest.pending_debug.bs_must_be_0", {PENDING: BS}, blocking(MOV_SS)),
    Broken("guest.pending_debug.rtm_bits", {PENDING: RTM}),
    Broken(
        "guest.pending_debug.rtm_supported",
        {PENDING: RTM | ENABLED_BREAKPOINT},
        shape=without_features("rtm"),
    ),
    Broken(
        "guest.pending_debug.rtm_mov_ss",
        blocking(MOV_SS),
        {PENDING: RTM | ENABLED_BREAKPOINT},
    ),
)

LINKED = 0x6000
LINK = {"vmcs_link_pointer": LINKED}
ORDINARY = {LINKED: REVISION.to_bytes(4, "little")}
LINK_POINTER = (
    Broken("guest.link_pointer.align", {"vmcs_link_pointer": LINKED + 8}, LINK, memory=ORDINARY),
    Broken(
        "guest.link_pointer.width", {"vmcs_link_pointer": BEYOND_PHYSICAL}, LINK, memory=ORDINARY
    ),
    Broken(
        "guest.link_pointer.revision",
        {"vmcs_link_pointer": PAGE},
        LINK,
        memory={**ORDINARY, PAGE: (REVISION + 1).to_bytes(4, "little")},
    ),
    Broken(
        "guest.link_pointer.shadow_indicator",
        {"proc2.vmcs_shadowing": 1},
        LINK,
        memory=ORDINARY,
    ),
    Broken("guest.link_pointer.not_current", {"vmcs_link_pointer": VMCS}, LINK, memory=ORDINARY),
    Broken(
        "guest.link_pointer.not_executive",
        {"vmcs_link_pointer": VMXON},
        {**LINK, "executive_vmcs_pointer": VMXON},
        state=IN_SMM,
        memory=ORDINARY,
    ),
)


def pdptes(*entries: int) -> dict[int, bytes]:
    """Return the memory of a page-directory-pointer table."""
    return {PAGE: b"".join(entry.to_bytes(8, "little") for entry in entries)}


IN_MEMORY = "pae without ept"
PDPTES = (
    # The valid neighbour takes its PDPTEs from another place.
    Broken(
        "guest.pdpte.memory.reserved_low",
        {"guest_cr3": PAGE},
        {"guest_cr3": PAGE + 0x20},
        IN_MEMORY,
        memory=pdptes(0, 1 | 1 << 5),
    ),
    Broken(
        "guest.pdpte.memory.reserved_high",
        {"guest_cr3": PAGE},
        {"guest_cr3": PAGE + 0x20},
        IN_MEMORY,
        memory=pdptes(0, 0, 0, 1 | BEYOND_PHYSICAL),
    ),
    Broken("guest.pdpte.vmcs.reserved_low", {"guest_pdpte2": 1 | 1 << 1}, mode="pae"),
    Broken("guest.pdpte.vmcs.reserved_high", {"guest_pdpte0": 1 | 1 << 63}, mode="pae"),
)


def _entry(low: int, value: int = 0) -> dict[int, bytes]:
    return {LINKED: low.to_bytes(8, "little") + value.to_bytes(8, "little")}


def _msr_load(
    name: str, low: int, value: int = 0, also: tuple[str, ...] = (), why: str = ""
) -> Broken:
    change = {"vm_entry_msr_load_address": LINKED, "vm_entry_msr_load_count": 1}
    return Broken(f"msrload.{name}", change, memory=_entry(low, value), also=also, why=why)


FAULT = ("msrload.wrmsr_would_fault",)
MSR_LOAD = (
    _msr_load("fs_base", Msr.IA32_FS_BASE),
    _msr_load("gs_base", Msr.IA32_GS_BASE),
    _msr_load("x2apic", 0x8FF, also=FAULT, why="the machine has no such MSR"),
    _msr_load(
        "smm_only", Msr.IA32_SMM_MONITOR_CTL, also=FAULT, why="WRMSR outside SMM faults, too"
    ),
    _msr_load("smbase", Msr.IA32_SMBASE, also=FAULT, why="the MSR is never writable"),
    _msr_load("model_specific", Msr.IA32_BIOS_SIGN_ID),
    _msr_load("reserved", 1 << 32 | Msr.IA32_PAT, 0x0007_0406_0007_0406),
    _msr_load("wrmsr_would_fault", Msr.IA32_LSTAR, NOT_CANONICAL),
)

EXECUTIVE = 0x7000
RETURN_TO_GUEST = {"executive_vmcs_pointer": EXECUTIVE}
RETURN_TO_ROOT = {"executive_vmcs_pointer": VMXON}


def executive(
    changes: Mapping[Field, int] | None = None, *, launched: bool = True
) -> dict[int, bytes]:
    """Return the memory of an executive VMCS."""
    vmcs = guest()
    vmcs.launched = launched
    for field, value in (changes or {}).items():
        vmcs[field] = value
    return {EXECUTIVE: vmcs.to_bytes()}


def _other_revision() -> dict[int, bytes]:
    region = Vmcs.from_bytes(executive()[EXECUTIVE])
    region.revision_id = REVISION + 1
    return {EXECUTIVE: region.to_bytes()}


SMM = (
    Broken(
        "smm.executive_vmcs_pointer.align",
        {"executive_vmcs_pointer": EXECUTIVE + 8},
        RETURN_TO_GUEST,
        state=IN_SMM,
        memory=executive(),
    ),
    Broken(
        "smm.executive_vmcs_pointer.width",
        {"executive_vmcs_pointer": BEYOND_PHYSICAL},
        RETURN_TO_GUEST,
        state=IN_SMM,
        memory=executive(),
    ),
    Broken(
        "smm.executive_vmcs_pointer.revision",
        RETURN_TO_GUEST,
        RETURN_TO_ROOT,
        state=IN_SMM,
        memory=_other_revision(),
    ),
    Broken(
        "smm.executive_vmcs_launched",
        RETURN_TO_GUEST,
        RETURN_TO_ROOT,
        state=IN_SMM,
        memory=executive(launched=False),
    ),
    Broken(
        "smm.deactivate_needs_vmxon_pointer",
        RETURN_TO_GUEST,
        {**RETURN_TO_ROOT, "entry.deactivate_dual_monitor_treatment": 1},
        state=IN_SMM,
        memory=executive(),
    ),
    Broken(
        "smm.executive_exec_controls",
        RETURN_TO_GUEST,
        RETURN_TO_ROOT,
        state=IN_SMM,
        memory=executive({Field.PIN_BASED_CONTROLS: 0}),
    ),
    Broken(
        "smm.no_mtf_injection_to_root",
        {"vm_entry_interruption_information": 1 << 31 | 7 << 8},
        RETURN_TO_ROOT,
        state=IN_SMM,
    ),
    Broken("smm.activity_root", activity(WAIT_FOR_SIPI), RETURN_TO_ROOT, state=IN_SMM),
)

CASES = (
    *ACTIVITY,
    *INTERRUPTIBILITY,
    *PENDING_DEBUG,
    *LINK_POINTER,
    *PDPTES,
    *MSR_LOAD,
    *SMM,
)
