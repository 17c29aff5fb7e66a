"""VM-entry checks on pending debug exceptions and on the VMCS link pointer.

Second part of the SDM's section "Checks on Guest Non-Register State".
"""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Entry, Proc2
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import Activity, Interruptibility, Rflags
from vtx.machine.vmcs import NO_LINK, SHADOW_BIT, Vmcs
from vtx.rules.areas import LINK_POINTER as LINK
from vtx.rules.areas import NON_REGISTER_STATE as STATE
from vtx.rules.declaration import Checks, Live, only
from vtx.rules.limits import has_bus_lock_detect, has_rtm, page_table_width
from vtx.rules.physical import read_u32

check = Checks()

# Pending debug exceptions: bits 3:0 breakpoints, 11 bus lock, 12 enabled breakpoint, 14 single
# step (BS), 16 debug exception inside a transactional region (RTM).
_BUS_LOCK, _ENABLED_BREAKPOINT, _BS, _RTM = 1 << 11, 1 << 12, 1 << 14, 1 << 16
_PENDING_RESERVED = 0x7F0 | 1 << 13 | 1 << 15 | MASK64 >> 17 << 17
_NOT_WITH_RTM = 0xFFF | 7 << 13 | MASK64 >> 17 << 17
_BTF = 1 << 1
_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_SHADOW = Interruptibility.STI | Interruptibility.MOV_SS


@check(
    "guest.pending_debug.reserved",
    STATE,
    only(F.GUEST_PENDING_DEBUG_EXCEPTIONS, _PENDING_RESERVED | _BUS_LOCK),
    capability=("CPUID bus-lock detect",),
    note=(
        "the list of checks still calls bits 11:4 reserved, while the field's layout defines bit "
        "11 on CPUs with bus-lock detection"
    ),
)
def pending_debug_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Bits 10:4, 13, 15 and 63:17 of the pending debug exceptions are 0, and bit 11 (bus lock) on
    a CPU without bus-lock debug exceptions."""
    pending = vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS]
    if pending & _PENDING_RESERVED:
        return False
    return not pending & _BUS_LOCK or has_bus_lock_detect(processor.shape)


_SINGLE_STEP = (
    only(F.GUEST_INTERRUPTIBILITY_STATE, _SHADOW),
    F.GUEST_ACTIVITY_STATE,
    only(F.GUEST_RFLAGS, Rflags.TF),
    only(F.GUEST_IA32_DEBUGCTL, _BTF),
    only(F.GUEST_PENDING_DEBUG_EXCEPTIONS, _BS),
)


def _trap_is_held_back(vmcs: Vmcs) -> bool:
    """Tell whether a single-step trap would be pending: behind STI or MOV SS, or in HLT."""
    return (
        bool(vmcs[F.GUEST_INTERRUPTIBILITY_STATE] & _SHADOW)
        or vmcs[F.GUEST_ACTIVITY_STATE] == Activity.HLT
    )


def _single_steps(vmcs: Vmcs) -> bool:
    return bool(vmcs[F.GUEST_RFLAGS] & Rflags.TF) and not vmcs[F.GUEST_IA32_DEBUGCTL] & _BTF


@check(
    "guest.pending_debug.bs_must_be_1",
    STATE,
    *_SINGLE_STEP,
    cause="a debugger set RFLAGS.TF in a guest behind STI, MOV SS or HLT without pending BS",
)
def single_step_behind_sti_or_mov_ss_is_pending(vmcs: Vmcs, processor: Processor) -> bool:
    """If there is blocking by STI or MOV SS or the activity state is HLT, and the guest
    single-steps (RFLAGS.TF 1, IA32_DEBUGCTL.BTF 0), bit 14 (BS) of the pending debug exceptions is
    1."""
    return (
        not _trap_is_held_back(vmcs)
        or not _single_steps(vmcs)
        or bool(vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS] & _BS)
    )


@check("guest.pending_debug.bs_must_be_0", STATE, *_SINGLE_STEP)
def no_single_step_is_pending_without_single_stepping(vmcs: Vmcs, processor: Processor) -> bool:
    """If there is blocking by STI or MOV SS or the activity state is HLT, and the guest does not
    single-step (RFLAGS.TF 0 or IA32_DEBUGCTL.BTF 1), bit 14 (BS) of the pending debug exceptions
    is 0."""
    return (
        not _trap_is_held_back(vmcs)
        or _single_steps(vmcs)
        or not vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS] & _BS
    )


@check(
    "guest.pending_debug.rtm_bits",
    STATE,
    only(F.GUEST_PENDING_DEBUG_EXCEPTIONS, _NOT_WITH_RTM | _ENABLED_BREAKPOINT | _RTM),
)
def pending_debug_in_a_transaction_is_a_breakpoint(vmcs: Vmcs, processor: Processor) -> bool:
    """If bit 16 (RTM) of the pending debug exceptions is 1, bits 11:0, 15:13 and 63:17 are 0 and
    bit 12 (enabled breakpoint) is 1."""
    pending = vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS]
    if not pending & _RTM:
        return True
    return not pending & _NOT_WITH_RTM and bool(pending & _ENABLED_BREAKPOINT)


@check(
    "guest.pending_debug.rtm_supported",
    STATE,
    only(F.GUEST_PENDING_DEBUG_EXCEPTIONS, _RTM),
    capability=("CPUID RTM",),
)
def pending_debug_in_a_transaction_needs_rtm(vmcs: Vmcs, processor: Processor) -> bool:
    """On a CPU without RTM, bit 16 (RTM) of the pending debug exceptions is 0."""
    return not vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS] & _RTM or has_rtm(processor.shape)


@check(
    "guest.pending_debug.rtm_mov_ss",
    STATE,
    only(F.GUEST_PENDING_DEBUG_EXCEPTIONS, _RTM),
    only(F.GUEST_INTERRUPTIBILITY_STATE, Interruptibility.MOV_SS),
)
def pending_debug_in_a_transaction_is_not_behind_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """If bit 16 (RTM) of the pending debug exceptions is 1, there is no blocking by MOV SS."""
    return (
        not vmcs[F.GUEST_PENDING_DEBUG_EXCEPTIONS] & _RTM
        or not vmcs[F.GUEST_INTERRUPTIBILITY_STATE] & Interruptibility.MOV_SS
    )


def _links(vmcs: Vmcs) -> bool:
    return vmcs[F.VMCS_LINK_POINTER] != NO_LINK


def _links_to_a_region(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether the link pointer is an address at which a region can be read."""
    pointer = vmcs[F.VMCS_LINK_POINTER]
    return (
        pointer != NO_LINK
        and not pointer & 0xFFF
        and not pointer >> page_table_width(processor.shape)
    )


@check("guest.link_pointer.align", LINK, F.VMCS_LINK_POINTER)
def link_pointer_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
    """Unless the VMCS link pointer is FFFFFFFF_FFFFFFFFH, its bits 11:0 are 0."""
    return not _links(vmcs) or not vmcs[F.VMCS_LINK_POINTER] & 0xFFF


@check(
    "guest.link_pointer.width",
    LINK,
    F.VMCS_LINK_POINTER,
    capability=("MAXPHYADDR", "IA32_TME_ACTIVATE"),
)
def link_pointer_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """Unless the VMCS link pointer is FFFFFFFF_FFFFFFFFH, it sets no bit beyond the
    physical-address width."""
    return not _links(vmcs) or not vmcs[F.VMCS_LINK_POINTER] >> page_table_width(processor.shape)


@check(
    "guest.link_pointer.revision",
    LINK,
    F.VMCS_LINK_POINTER,
    applies=_links_to_a_region,
    live=(Live.MEMORY,),
    capability=("IA32_VMX_BASIC[30:0]",),
)
def linked_region_has_the_revision_identifier(vmcs: Vmcs, processor: Processor) -> bool:
    """Unless the VMCS link pointer is FFFFFFFF_FFFFFFFFH, bits 30:0 of the 4 bytes it references
    are the CPU's VMCS revision identifier."""
    if not _links_to_a_region(vmcs, processor):
        return True
    first = read_u32(processor, vmcs[F.VMCS_LINK_POINTER])
    return first & ~SHADOW_BIT == processor.shape.revision_id


@check(
    "guest.link_pointer.shadow_indicator",
    LINK,
    F.VMCS_LINK_POINTER,
    Proc2.VMCS_SHADOWING,
    applies=_links_to_a_region,
    live=(Live.MEMORY,),
)
def linked_region_is_a_shadow_vmcs_if_vmcs_shadowing_is_on(
    vmcs: Vmcs, processor: Processor
) -> bool:
    """Unless the VMCS link pointer is FFFFFFFF_FFFFFFFFH, bit 31 of the 4 bytes it references
    equals "VMCS shadowing"."""
    if not _links_to_a_region(vmcs, processor):
        return True
    first = read_u32(processor, vmcs[F.VMCS_LINK_POINTER])
    return bool(first & SHADOW_BIT) == bool(vmcs.proc2 & Proc2.VMCS_SHADOWING)


@check(
    "guest.link_pointer.not_current",
    LINK,
    F.VMCS_LINK_POINTER,
    Entry.ENTRY_TO_SMM,
    live=(Live.CURRENT_VMCS, Live.SMM),
)
def link_pointer_is_not_the_current_vmcs(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is outside SMM or "entry to SMM" is 1, the VMCS link pointer is not
    the current-VMCS pointer, unless it is FFFFFFFF_FFFFFFFFH."""
    if processor.smm and not vmcs.entry & Entry.ENTRY_TO_SMM:
        return True
    return not _links(vmcs) or vmcs[F.VMCS_LINK_POINTER] != processor.current_vmcs_pointer


@check(
    "guest.link_pointer.not_executive",
    LINK,
    F.VMCS_LINK_POINTER,
    F.EXECUTIVE_VMCS_POINTER,
    Entry.ENTRY_TO_SMM,
    live=(Live.SMM,),
)
def link_pointer_is_not_the_executive_vmcs(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is in SMM and "entry to SMM" is 0, the VMCS link pointer is not the
    executive-VMCS pointer, unless it is FFFFFFFF_FFFFFFFFH."""
    if not processor.smm or vmcs.entry & Entry.ENTRY_TO_SMM:
        return True
    return not _links(vmcs) or vmcs[F.VMCS_LINK_POINTER] != vmcs[F.EXECUTIVE_VMCS_POINTER]
