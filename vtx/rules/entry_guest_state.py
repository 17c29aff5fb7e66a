"""VM-entry checks on the guest's activity and interruptibility.

First part of the SDM's section "Checks on Guest Non-Register State".
"""

from __future__ import annotations

from vtx.facts.controls import Entry, Pin
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import AccessRights, Activity, Interruptibility, Rflags
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import NMI_AND_STI
from vtx.rules.areas import NON_REGISTER_STATE as STATE
from vtx.rules.declaration import Checks, Live, Part, only
from vtx.rules.injected import VALID, EventType, injected, type_and_vector
from vtx.rules.limits import has_sgx

check = Checks()

#: IA32_VMX_MISC bit that allows an activity state other than active.
_SUPPORT = {Activity.HLT: 6, Activity.SHUTDOWN: 7, Activity.WAIT_FOR_SIPI: 8}
_TYPE, _VECTOR = 0x700, 0xFF
_DEBUG, _MACHINE_CHECK, _PENDING_MTF = 1, 18, 0
_STI, _MOV_SS, _SMI = Interruptibility.STI, Interruptibility.MOV_SS, Interruptibility.SMI
_NMI, _ENCLAVE = Interruptibility.NMI, Interruptibility.ENCLAVE
_EVENT = only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE | _VECTOR)
_EVENT_TYPE = only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE)
_IS_INJECTED = only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID)
_WAKES_FROM_HLT = frozenset(
    {
        (EventType.HARDWARE_EXCEPTION, _DEBUG),
        (EventType.HARDWARE_EXCEPTION, _MACHINE_CHECK),
        (EventType.OTHER_EVENT, _PENDING_MTF),
    }
)


def _blocking(bits: int) -> Part:
    return only(F.GUEST_INTERRUPTIBILITY_STATE, bits)


def _is_blocked(vmcs: Vmcs, by: int) -> int:
    return vmcs[F.GUEST_INTERRUPTIBILITY_STATE] & by


@check(
    "guest.activity.supported",
    STATE,
    F.GUEST_ACTIVITY_STATE,
    capability=("IA32_VMX_MISC[8:6]",),
)
def activity_state_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """The activity state is 0 (active), or 1 (HLT), 2 (shutdown) or 3 (wait-for-SIPI) where
    IA32_VMX_MISC bit 6, 7 or 8 respectively is 1."""
    state = vmcs[F.GUEST_ACTIVITY_STATE]
    if state == Activity.ACTIVE:
        return True
    return state <= Activity.WAIT_FOR_SIPI and processor.shape.misc(_SUPPORT[Activity(state)])


@check(
    "guest.activity.hlt_dpl",
    STATE,
    F.GUEST_ACTIVITY_STATE,
    only(F.GUEST_SS_ACCESS_RIGHTS, AccessRights.DPL),
)
def halted_guest_is_in_ring_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If the DPL of SS is not 0, the activity state is not HLT."""
    return (
        vmcs[F.GUEST_ACTIVITY_STATE] != Activity.HLT
        or not vmcs[F.GUEST_SS_ACCESS_RIGHTS] & AccessRights.DPL
    )


@check("guest.activity.blocking", STATE, F.GUEST_ACTIVITY_STATE, _blocking(_STI | _MOV_SS))
def guest_blocked_by_sti_or_mov_ss_is_active(vmcs: Vmcs, processor: Processor) -> bool:
    """If there is blocking by STI or by MOV SS, the activity state is active."""
    return vmcs[F.GUEST_ACTIVITY_STATE] == Activity.ACTIVE or not _is_blocked(vmcs, _STI | _MOV_SS)


@check("guest.activity.inject_hlt", STATE, F.GUEST_ACTIVITY_STATE, _EVENT)
def injected_event_wakes_a_halted_guest(vmcs: Vmcs, processor: Processor) -> bool:
    """If the activity state is HLT, an injected event is an external interrupt, an NMI, a hardware
    exception with vector 1 or 18, or a pending MTF VM exit (type 7, vector 0)."""
    event = type_and_vector(vmcs)
    return (
        event is None
        or vmcs[F.GUEST_ACTIVITY_STATE] != Activity.HLT
        or event[0] in (EventType.EXTERNAL_INTERRUPT, EventType.NMI)
        or event in _WAKES_FROM_HLT
    )


@check("guest.activity.inject_shutdown", STATE, F.GUEST_ACTIVITY_STATE, _EVENT)
def injected_event_ends_a_shutdown(vmcs: Vmcs, processor: Processor) -> bool:
    """If the activity state is shutdown, an injected event is an NMI or a machine check (type 3,
    vector 18)."""
    event = type_and_vector(vmcs)
    return (
        event is None
        or vmcs[F.GUEST_ACTIVITY_STATE] != Activity.SHUTDOWN
        or event[0] == EventType.NMI
        or event == (EventType.HARDWARE_EXCEPTION, _MACHINE_CHECK)
    )


@check("guest.activity.inject_wait_for_sipi", STATE, F.GUEST_ACTIVITY_STATE, _IS_INJECTED)
def nothing_is_injected_into_a_guest_that_waits_for_sipi(vmcs: Vmcs, processor: Processor) -> bool:
    """If the activity state is wait-for-SIPI, no event is injected."""
    return injected(vmcs) is None or vmcs[F.GUEST_ACTIVITY_STATE] != Activity.WAIT_FOR_SIPI


@check("guest.activity.entry_to_smm", STATE, F.GUEST_ACTIVITY_STATE, Entry.ENTRY_TO_SMM)
def guest_in_smm_does_not_wait_for_sipi(vmcs: Vmcs, processor: Processor) -> bool:
    """If "entry to SMM" is 1, the activity state is not wait-for-SIPI."""
    return (
        not vmcs.entry & Entry.ENTRY_TO_SMM
        or vmcs[F.GUEST_ACTIVITY_STATE] != Activity.WAIT_FOR_SIPI
    )


@check("guest.interruptibility.reserved", STATE, _blocking(0xFFFF_FFE0))
def interruptibility_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Bits 31:5 of the interruptibility state are 0."""
    return not _is_blocked(vmcs, 0xFFFF_FFE0)


@check("guest.interruptibility.sti_and_mov_ss", STATE, _blocking(_STI | _MOV_SS))
def blocking_is_not_by_both_sti_and_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """There is not both blocking by STI and blocking by MOV SS."""
    return _is_blocked(vmcs, _STI | _MOV_SS) != _STI | _MOV_SS


@check(
    "guest.interruptibility.sti_needs_if",
    STATE,
    _blocking(_STI),
    only(F.GUEST_RFLAGS, Rflags.IF),
    cause="RFLAGS.IF was cleared without clearing the shadow of STI, often around SMM",
)
def blocking_by_sti_comes_with_interrupts_enabled(vmcs: Vmcs, processor: Processor) -> bool:
    """If RFLAGS.IF of the guest is 0, there is no blocking by STI."""
    return not _is_blocked(vmcs, _STI) or bool(vmcs[F.GUEST_RFLAGS] & Rflags.IF)


@check("guest.interruptibility.ext_int.sti", STATE, _blocking(_STI), _EVENT_TYPE)
def injected_interrupt_is_not_blocked_by_sti(vmcs: Vmcs, processor: Processor) -> bool:
    """If the entry injects an external interrupt, there is no blocking by STI."""
    return injected(vmcs) != EventType.EXTERNAL_INTERRUPT or not _is_blocked(vmcs, _STI)


@check("guest.interruptibility.ext_int.mov_ss", STATE, _blocking(_MOV_SS), _EVENT_TYPE)
def injected_interrupt_is_not_blocked_by_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """If the entry injects an external interrupt, there is no blocking by MOV SS."""
    return injected(vmcs) != EventType.EXTERNAL_INTERRUPT or not _is_blocked(vmcs, _MOV_SS)


@check(
    "guest.interruptibility.nmi.sti",
    NMI_AND_STI,
    _blocking(_STI),
    _EVENT_TYPE,
    note="older editions call the check implementation specific: some CPUs do not make it",
)
def injected_nmi_is_not_blocked_by_sti(vmcs: Vmcs, processor: Processor) -> bool:
    """If the entry injects an NMI, there is no blocking by STI."""
    return injected(vmcs) != EventType.NMI or not _is_blocked(vmcs, _STI)


@check("guest.interruptibility.nmi.mov_ss", STATE, _blocking(_MOV_SS), _EVENT_TYPE)
def injected_nmi_is_not_blocked_by_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """If the entry injects an NMI, there is no blocking by MOV SS."""
    return injected(vmcs) != EventType.NMI or not _is_blocked(vmcs, _MOV_SS)


@check("guest.interruptibility.smi_outside_smm", STATE, _blocking(_SMI), live=(Live.SMM,))
def smis_are_blocked_in_smm_only(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is not in SMM, there is no blocking by SMI."""
    return processor.smm or not _is_blocked(vmcs, _SMI)


@check("guest.interruptibility.smi_entry_to_smm", STATE, _blocking(_SMI), Entry.ENTRY_TO_SMM)
def smis_are_blocked_after_entry_to_smm(vmcs: Vmcs, processor: Processor) -> bool:
    """If "entry to SMM" is 1, there is blocking by SMI."""
    return not vmcs.entry & Entry.ENTRY_TO_SMM or bool(_is_blocked(vmcs, _SMI))


@check("guest.interruptibility.virtual_nmi", STATE, _blocking(_NMI), Pin.VIRTUAL_NMIS, _EVENT_TYPE)
def injected_virtual_nmi_is_not_blocked(vmcs: Vmcs, processor: Processor) -> bool:
    """If "virtual NMIs" is 1 and the entry injects an NMI, there is no blocking by NMI."""
    return (
        not vmcs.pin & Pin.VIRTUAL_NMIS
        or injected(vmcs) != EventType.NMI
        or not _is_blocked(vmcs, _NMI)
    )


@check("guest.interruptibility.enclave_mov_ss", STATE, _blocking(_ENCLAVE | _MOV_SS))
def enclave_interruption_comes_without_blocking_by_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """If bit 4 (enclave interruption) of the interruptibility state is 1, there is no blocking by
    MOV SS."""
    return _is_blocked(vmcs, _ENCLAVE | _MOV_SS) != _ENCLAVE | _MOV_SS


@check("guest.interruptibility.enclave_sgx", STATE, _blocking(_ENCLAVE), capability=("CPUID SGX",))
def enclave_interruption_needs_sgx(vmcs: Vmcs, processor: Processor) -> bool:
    """On a CPU without SGX, bit 4 (enclave interruption) of the interruptibility state is 0."""
    return not _is_blocked(vmcs, _ENCLAVE) or has_sgx(processor.shape)
