"""VM-entry checks related to address-space size (SDM, "Checks Related to Address-Space Size")."""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Entry, Exit1
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr4
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import HOST_ADDRESS_SPACE as SIZE
from vtx.rules.declaration import Checks, Live, only
from vtx.rules.entry_host import LINEAR_WIDTH, define_canonical
from vtx.rules.limits import canonical, has_intel64

check = Checks()

_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_CANONICAL_BITS = ~0x7FFF_FFFF_FFFF & MASK64
_IA32E_GUEST = Entry.IA32E_MODE_GUEST
_HOST64 = Exit1.HOST_ADDRESS_SPACE_SIZE
_CET = Exit1.LOAD_CET_STATE


@check("host.size.lma0_ia32e_guest", SIZE, _IA32E_GUEST, live=(Live.EFER_LMA,))
def ia32e_guest_is_entered_from_ia32e_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is outside IA-32e mode (IA32_EFER.LMA 0) at VM entry, "IA-32e mode
    guest" is 0."""
    return not vmcs.entry & _IA32E_GUEST or processor.regs.in_ia32e_mode


@check("host.size.lma0_host64", SIZE, _HOST64, live=(Live.EFER_LMA,))
def host_64bit_is_set_from_ia32e_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is outside IA-32e mode (IA32_EFER.LMA 0) at VM entry, "host
    address-space size" is 0."""
    return not vmcs.exit1 & _HOST64 or processor.regs.in_ia32e_mode


@check("host.size.lma1_host64", SIZE, _HOST64, live=(Live.EFER_LMA,))
def host_in_ia32e_mode_stays_64bit(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is in IA-32e mode (IA32_EFER.LMA 1) at VM entry, "host
    address-space size" is 1."""
    return bool(vmcs.exit1 & _HOST64) or not processor.regs.in_ia32e_mode


@check("host.size32.ia32e_guest", SIZE, _HOST64, _IA32E_GUEST)
def host_32bit_has_no_ia32e_guest(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 0, "IA-32e mode guest" is 0."""
    return bool(vmcs.exit1 & _HOST64) or not vmcs.entry & _IA32E_GUEST


@check("host.size32.pcide", SIZE, _HOST64, only(F.HOST_CR4, Cr4.PCIDE))
def host_32bit_has_no_pcids(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 0, CR4.PCIDE of the host is 0."""
    return bool(vmcs.exit1 & _HOST64) or not vmcs[F.HOST_CR4] & Cr4.PCIDE


@check("host.size32.fred", SIZE, _HOST64, only(F.HOST_CR4, Cr4.FRED))
def host_32bit_has_no_fred(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 0, CR4.FRED of the host is 0."""
    return bool(vmcs.exit1 & _HOST64) or not vmcs[F.HOST_CR4] & Cr4.FRED


@check("host.size32.rip", SIZE, _HOST64, only(F.HOST_RIP, _ABOVE_32))
def host_32bit_has_a_32bit_rip(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 0, bits 63:32 of host RIP are 0."""
    return bool(vmcs.exit1 & _HOST64) or not vmcs[F.HOST_RIP] >> 32


def _define_32bit_cet(name: str, field: F) -> None:
    """Define the check that a CET field of a 32-bit host has 32 bits."""
    words = FIELDS[field].sdm_name

    @check(
        f"host.size32.{name}",
        SIZE,
        _HOST64,
        _CET,
        only(field, _ABOVE_32),
        title=f"{words} of a 32-bit host has 32 bits",
        rule=(
            f'If "host address-space size" is 0 and "load CET state" is 1, bits 63:32 of {words} '
            "are 0."
        ),
    )
    def cet_field_has_32_bits(vmcs: Vmcs, processor: Processor) -> bool:
        exits = vmcs.exit1
        return bool(exits & _HOST64) or not exits & _CET or not vmcs[field] >> 32


_define_32bit_cet("s_cet", F.HOST_IA32_S_CET)
_define_32bit_cet("ssp", F.HOST_SSP)


@check("host.size64.pae", SIZE, _HOST64, only(F.HOST_CR4, Cr4.PAE))
def host_64bit_uses_pae(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 1, CR4.PAE of the host is 1."""
    return not vmcs.exit1 & _HOST64 or bool(vmcs[F.HOST_CR4] & Cr4.PAE)


def _define_64bit_canonical(name: str, field: F, cet: bool, note: str | None = None) -> None:
    """Define the check that a field of a 64-bit host is canonical."""
    words = FIELDS[field].sdm_name
    loaded = ' and "load CET state" is 1' if cet else ""

    @check(
        f"host.size64.{name}",
        SIZE,
        _HOST64,
        *((_CET,) if cet else ()),
        only(field, _CANONICAL_BITS),
        title=f"{words} of a 64-bit host is canonical",
        rule=f'If "host address-space size" is 1{loaded}, {words} is canonical.',
        capability=LINEAR_WIDTH,
        note=note,
    )
    def host_address_is_canonical(vmcs: Vmcs, processor: Processor) -> bool:
        exits = vmcs.exit1
        if not exits & _HOST64 or (cet and not exits & _CET):
            return True
        return canonical(vmcs[field], processor.shape)


_define_64bit_canonical(
    "rip_canonical",
    F.HOST_RIP,
    cet=False,
    note=(
        "KVM takes the width from CR4.LA57 of the host, the paging mode after the exit; the "
        "manual just says canonical"
    ),
)
_define_64bit_canonical("s_cet_canonical", F.HOST_IA32_S_CET, cet=True)
_define_64bit_canonical("ssp_canonical", F.HOST_SSP, cet=True)
define_canonical(
    check, "host.interrupt_ssp_table_canonical", SIZE, F.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR, _CET
)


@check("host.no_intel64.ia32e_guest", SIZE, _IA32E_GUEST, capability=("CPUID Intel 64",))
def ia32e_guest_needs_intel_64(vmcs: Vmcs, processor: Processor) -> bool:
    """On a CPU without Intel 64, "IA-32e mode guest" is 0."""
    return has_intel64(processor.shape) or not vmcs.entry & _IA32E_GUEST


@check("host.no_intel64.host64", SIZE, _HOST64, capability=("CPUID Intel 64",))
def host_64bit_needs_intel_64(vmcs: Vmcs, processor: Processor) -> bool:
    """On a CPU without Intel 64, "host address-space size" is 0."""
    return has_intel64(processor.shape) or not vmcs.exit1 & _HOST64
