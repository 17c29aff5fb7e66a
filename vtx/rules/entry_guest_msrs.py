"""VM-entry checks on the guest MSRs that newer features brought.

Last part of the SDM's section "Checks on Guest Control Registers, Debug Registers, and MSRs".
"""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Entry
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import GUEST_REGISTERS as REGISTERS
from vtx.rules.declaration import Checks, only
from vtx.rules.entry_host import LINEAR_WIDTH, define_canonical
from vtx.rules.limits import (
    canonical,
    fred_config_reserved,
    lbr_ctl_reserved,
    rtit_ctl_reserved,
    s_cet_is_consistent,
    s_cet_reserved,
    spec_ctrl_reserved,
)

check = Checks()

_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_CANONICAL_BITS = ~0x7FFF_FFFF_FFFF & MASK64


@check(
    "guest.rtit_ctl_reserved",
    REGISTERS,
    Entry.LOAD_IA32_RTIT_CTL,
    F.GUEST_IA32_RTIT_CTL,
    capability=("CPUID.14H",),
)
def guest_rtit_ctl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_RTIT_CTL" is 1, the guest field sets no reserved bit of that MSR."""
    return not vmcs.entry & Entry.LOAD_IA32_RTIT_CTL or not vmcs[
        F.GUEST_IA32_RTIT_CTL
    ] & rtit_ctl_reserved(processor.shape)


@check(
    "guest.s_cet.reserved",
    REGISTERS,
    Entry.LOAD_CET_STATE,
    only(F.GUEST_IA32_S_CET, s_cet_reserved()),
)
def guest_s_cet_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 9:6 of guest IA32_S_CET are 0."""
    return not vmcs.entry & Entry.LOAD_CET_STATE or not vmcs[F.GUEST_IA32_S_CET] & s_cet_reserved()


@check(
    "guest.s_cet.suppress_tracker",
    REGISTERS,
    Entry.LOAD_CET_STATE,
    only(F.GUEST_IA32_S_CET, 0xC00),
)
def guest_s_cet_does_not_suppress_while_it_waits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 10 (SUPPRESS) and 11 (TRACKER) of guest IA32_S_CET are not
    both 1."""
    return not vmcs.entry & Entry.LOAD_CET_STATE or s_cet_is_consistent(vmcs[F.GUEST_IA32_S_CET])


@check(
    "guest.lbr_ctl_reserved",
    REGISTERS,
    Entry.LOAD_GUEST_IA32_LBR_CTL,
    F.GUEST_IA32_LBR_CTL,
    capability=("CPUID.1CH",),
)
def guest_lbr_ctl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load guest IA32_LBR_CTL" is 1, the guest field sets no reserved bit of that MSR: 15:4
    and 63:23."""
    return not vmcs.entry & Entry.LOAD_GUEST_IA32_LBR_CTL or not vmcs[
        F.GUEST_IA32_LBR_CTL
    ] & lbr_ctl_reserved(processor.shape)


@check("guest.pkrs_high", REGISTERS, Entry.LOAD_PKRS, only(F.GUEST_IA32_PKRS, _ABOVE_32))
def guest_pkrs_has_32_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load PKRS" is 1, bits 63:32 of guest IA32_PKRS are 0."""
    return not vmcs.entry & Entry.LOAD_PKRS or not vmcs[F.GUEST_IA32_PKRS] >> 32


@check("guest.uinv_high", REGISTERS, Entry.LOAD_UINV, only(F.GUEST_UINV, 0xFF00))
def guest_uinv_is_a_vector(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load UINV" is 1, bits 15:8 of guest UINV are 0."""
    return not vmcs.entry & Entry.LOAD_UINV or vmcs[F.GUEST_UINV] <= 0xFF


@check(
    "guest.fred.config_reserved",
    REGISTERS,
    Entry.LOAD_FRED,
    only(F.GUEST_IA32_FRED_CONFIG, fred_config_reserved()),
)
def guest_fred_config_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load FRED" is 1, bits 2, 5:4 and 11 of guest IA32_FRED_CONFIG are 0."""
    return (
        not vmcs.entry & Entry.LOAD_FRED
        or not vmcs[F.GUEST_IA32_FRED_CONFIG] & fred_config_reserved()
    )


define_canonical(
    check, "guest.fred.config_canonical", REGISTERS, F.GUEST_IA32_FRED_CONFIG, Entry.LOAD_FRED
)


def _define_guest_fred(name: str, field: F, low: int) -> None:
    """Define the check on a FRED stack pointer of the guest: canonical and aligned."""
    words = FIELDS[field].sdm_name

    @check(
        f"guest.fred.{name}",
        REGISTERS,
        Entry.LOAD_FRED,
        only(field, _CANONICAL_BITS | low),
        title=f"{words} is canonical and aligned",
        rule=(
            f'If "load FRED" is 1, {words} is canonical and its bits {low.bit_length() - 1}:0 '
            "are 0."
        ),
        capability=LINEAR_WIDTH,
    )
    def fred_stack_pointer_is_canonical_and_aligned(vmcs: Vmcs, processor: Processor) -> bool:
        value = vmcs[field] if vmcs.entry & Entry.LOAD_FRED else 0
        return not value & low and canonical(value, processor.shape)


for _name, _field, _low in (
    ("rsp1", F.GUEST_IA32_FRED_RSP1, 0x3F),
    ("rsp2", F.GUEST_IA32_FRED_RSP2, 0x3F),
    ("rsp3", F.GUEST_IA32_FRED_RSP3, 0x3F),
    ("ssp1", F.GUEST_IA32_FRED_SSP1, 0x7),
    ("ssp2", F.GUEST_IA32_FRED_SSP2, 0x7),
    ("ssp3", F.GUEST_IA32_FRED_SSP3, 0x7),
):
    _define_guest_fred(_name, _field, _low)


@check(
    "guest.spec_ctrl_reserved",
    REGISTERS,
    Entry.LOAD_IA32_SPEC_CTRL,
    F.GUEST_IA32_SPEC_CTRL,
    capability=("CPUID.07H",),
)
def guest_spec_ctrl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_SPEC_CTRL" is 1, the guest field sets no reserved bit of that MSR."""
    return not vmcs.entry & Entry.LOAD_IA32_SPEC_CTRL or not vmcs[
        F.GUEST_IA32_SPEC_CTRL
    ] & spec_ctrl_reserved(processor.shape)
