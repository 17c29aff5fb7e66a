"""VM-entry checks on guest RIP, RFLAGS and SSP (SDM, "Checks on Guest RIP, RFLAGS, and SSP")."""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Entry
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import AccessRights, Cr0, Rflags
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import RIP_RFLAGS_SSP as AREA
from vtx.rules.declaration import Checks, only
from vtx.rules.entry_host import LINEAR_WIDTH
from vtx.rules.injected import VALID, EventType, injected
from vtx.rules.limits import has_intel64

check = Checks()

_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_ABOVE_48 = ~0xFFFF_FFFF_FFFF & MASK64
_RFLAGS_RESERVED = MASK64 >> 22 << 22 | 1 << 15 | 1 << 5 | 1 << 3
_CS_L = only(F.GUEST_CS_ACCESS_RIGHTS, AccessRights.L)
_CET = Entry.LOAD_CET_STATE
_IA32E = Entry.IA32E_MODE_GUEST


def _is_64bit(vmcs: Vmcs) -> bool:
    """Tell whether the guest starts in 64-bit mode."""
    return bool(vmcs.entry & _IA32E and vmcs[F.GUEST_CS_ACCESS_RIGHTS] & AccessRights.L)


def _high_bits_are_identical(value: int, shape: Shape) -> bool:
    """Tell whether all bits from the linear-address width up are equal.

    That is weaker than being canonical: the highest bit of the width itself may differ.
    """
    if not has_intel64(shape):
        return True
    high = value >> shape.linear_bits
    return high == 0 or high == (1 << (64 - shape.linear_bits)) - 1


@check("guest.rip.not_64bit", AREA, _IA32E, _CS_L, only(F.GUEST_RIP, _ABOVE_32))
def rip_has_32_bits_outside_64bit_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" or CS.L is 0, bits 63:32 of guest RIP are 0."""
    return _is_64bit(vmcs) or not vmcs[F.GUEST_RIP] >> 32


@check(
    "guest.rip.64bit",
    AREA,
    _IA32E,
    _CS_L,
    only(F.GUEST_RIP, _ABOVE_48),
    capability=LINEAR_WIDTH,
    note=(
        "weaker than canonical: a RIP that passes and is not canonical causes #GP in the guest "
        "after entry"
    ),
)
def rip_bits_beyond_the_linear_width_are_identical(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" and CS.L are 1, the bits of guest RIP from the linear-address width
    (48 or 57) up are all equal."""
    return not _is_64bit(vmcs) or _high_bits_are_identical(vmcs[F.GUEST_RIP], processor.shape)


@check("guest.rflags.reserved_0", AREA, only(F.GUEST_RFLAGS, _RFLAGS_RESERVED))
def rflags_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Bits 63:22, 15, 5 and 3 of guest RFLAGS are 0."""
    return not vmcs[F.GUEST_RFLAGS] & _RFLAGS_RESERVED


@check(
    "guest.rflags.reserved_1",
    AREA,
    only(F.GUEST_RFLAGS, Rflags.RESERVED_1),
    cause="RFLAGS was left 0; its least value is 2",
)
def rflags_bit_1_is_1(vmcs: Vmcs, processor: Processor) -> bool:
    """Bit 1 of guest RFLAGS is 1."""
    return bool(vmcs[F.GUEST_RFLAGS] & Rflags.RESERVED_1)


@check("guest.rflags.vm.ia32e", AREA, _IA32E, only(F.GUEST_RFLAGS, Rflags.VM))
def ia32e_guest_is_not_in_v8086_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 1, RFLAGS.VM of the guest is 0."""
    return not vmcs.entry & _IA32E or not vmcs[F.GUEST_RFLAGS] & Rflags.VM


@check(
    "guest.rflags.vm.real_mode",
    AREA,
    only(F.GUEST_CR0, Cr0.PE),
    only(F.GUEST_RFLAGS, Rflags.VM),
)
def real_mode_guest_is_not_in_v8086_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR0.PE of the guest is 0, its RFLAGS.VM is 0."""
    return bool(vmcs[F.GUEST_CR0] & Cr0.PE) or not vmcs[F.GUEST_RFLAGS] & Rflags.VM


@check(
    "guest.rflags.if.external_interrupt",
    AREA,
    only(F.GUEST_RFLAGS, Rflags.IF),
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | 0x700),
    cause="an interrupt was queued for a guest that had disabled interrupts meanwhile",
)
def interrupts_are_enabled_for_an_injected_external_interrupt(
    vmcs: Vmcs, processor: Processor
) -> bool:
    """RFLAGS.IF of the guest is 1 if the entry injects an external interrupt."""
    return injected(vmcs) != EventType.EXTERNAL_INTERRUPT or bool(vmcs[F.GUEST_RFLAGS] & Rflags.IF)


@check("guest.ssp.align", AREA, _CET, only(F.GUEST_SSP, 3))
def ssp_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 1:0 of guest SSP are 0."""
    return not vmcs.entry & _CET or not vmcs[F.GUEST_SSP] & 3


@check(
    "guest.ssp.high_identical",
    AREA,
    _CET,
    only(F.GUEST_SSP, _ABOVE_48),
    capability=LINEAR_WIDTH,
    note="weaker than canonical",
)
def ssp_bits_beyond_the_linear_width_are_identical(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, the bits of guest SSP from the linear-address width (48 or 57) up
    are all equal."""
    return not vmcs.entry & _CET or _high_bits_are_identical(vmcs[F.GUEST_SSP], processor.shape)


@check(
    "guest.ssp.not_64bit",
    AREA,
    _CET,
    _IA32E,
    _CS_L,
    only(F.GUEST_SSP, _ABOVE_32),
    note=(
        "the rewritten list of checks no longer has the rule, but the section on loading SSP "
        "still states it, the CET specification had it, and CPUs enforce it"
    ),
)
def ssp_has_32_bits_outside_64bit_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, and "IA-32e mode guest" or CS.L is 0, bits 63:32 of guest SSP are
    0."""
    return not vmcs.entry & _CET or _is_64bit(vmcs) or not vmcs[F.GUEST_SSP] >> 32
