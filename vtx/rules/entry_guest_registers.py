"""VM-entry checks on guest control registers, debug registers and MSRs.

SDM, "Checks on Guest Control Registers, Debug Registers, and MSRs".
"""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Entry, Proc2
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr0, Cr4, Efer
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import GUEST_REGISTERS as REGISTERS
from vtx.rules.declaration import Checks, only
from vtx.rules.entry_host import LINEAR_WIDTH, define_canonical
from vtx.rules.limits import (
    canonical,
    cr3_reserved,
    debugctl_reserved,
    efer_reserved,
    is_valid_pat,
    page_table_width,
    perf_global_ctrl_reserved,
)

check = Checks()

_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_CANONICAL_BITS = ~0x7FFF_FFFF_FFFF & MASK64
_CR0_UNCHECKED = Cr0.CD | Cr0.NW
_CR0_OF_UNRESTRICTED = Cr0.PE | Cr0.PG
_IA32E = Entry.IA32E_MODE_GUEST


def _is_unrestricted(vmcs: Vmcs) -> int:
    return vmcs.proc2 & Proc2.UNRESTRICTED_GUEST


@check(
    "guest.cr0_fixed.must_be_1.restricted",
    REGISTERS,
    Proc2.UNRESTRICTED_GUEST,
    only(F.GUEST_CR0, ~_CR0_UNCHECKED),
    capability=("IA32_VMX_CR0_FIXED0",),
    cause='a guest in real mode or without paging needs "unrestricted guest"',
)
def guest_cr0_sets_the_fixed_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "unrestricted guest" is 0, guest CR0 sets every bit of IA32_VMX_CR0_FIXED0 (PE, NE and PG
    in practice) but CD and NW."""
    fixed = processor.shape.msr(Msr.IA32_VMX_CR0_FIXED0) & ~_CR0_UNCHECKED
    return bool(_is_unrestricted(vmcs)) or not fixed & ~vmcs[F.GUEST_CR0]


@check(
    "guest.cr0_fixed.must_be_1.unrestricted",
    REGISTERS,
    Proc2.UNRESTRICTED_GUEST,
    only(F.GUEST_CR0, ~(_CR0_UNCHECKED | _CR0_OF_UNRESTRICTED)),
    capability=("IA32_VMX_CR0_FIXED0",),
    note="NE stays mandatory",
)
def unrestricted_guest_cr0_sets_the_fixed_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "unrestricted guest" is 1, guest CR0 sets every bit of IA32_VMX_CR0_FIXED0 but PE, PG, CD
    and NW."""
    fixed = processor.shape.msr(Msr.IA32_VMX_CR0_FIXED0)
    fixed &= ~(_CR0_UNCHECKED | _CR0_OF_UNRESTRICTED)
    return not _is_unrestricted(vmcs) or not fixed & ~vmcs[F.GUEST_CR0]


@check(
    "guest.cr0_fixed.must_be_0",
    REGISTERS,
    only(F.GUEST_CR0, ~_CR0_UNCHECKED),
    capability=("IA32_VMX_CR0_FIXED1",),
)
def guest_cr0_clears_the_unsupported_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Guest CR0 sets no bit that is 0 in IA32_VMX_CR0_FIXED1, so bits 63:32 are 0; CD and NW do
    not matter."""
    allowed = processor.shape.msr(Msr.IA32_VMX_CR0_FIXED1)
    return not vmcs[F.GUEST_CR0] & ~allowed & ~_CR0_UNCHECKED


@check("guest.cr0_pg_needs_pe", REGISTERS, only(F.GUEST_CR0, Cr0.PG | Cr0.PE))
def guest_paging_comes_with_protection(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR0.PG of the guest is 1, its CR0.PE is 1."""
    return not vmcs[F.GUEST_CR0] & Cr0.PG or bool(vmcs[F.GUEST_CR0] & Cr0.PE)


@check(
    "guest.cr4_fixed.must_be_1",
    REGISTERS,
    F.GUEST_CR4,
    capability=("IA32_VMX_CR4_FIXED0",),
    cause="the guest's own CR4 was stored; VMXE must stay 1 and be hidden by mask and shadow",
)
def guest_cr4_sets_the_fixed_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Guest CR4 sets every bit of IA32_VMX_CR4_FIXED0 (VMXE in practice)."""
    return not processor.shape.msr(Msr.IA32_VMX_CR4_FIXED0) & ~vmcs[F.GUEST_CR4]


@check(
    "guest.cr4_fixed.must_be_0",
    REGISTERS,
    F.GUEST_CR4,
    capability=("IA32_VMX_CR4_FIXED1",),
)
def guest_cr4_clears_the_unsupported_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Guest CR4 sets no bit that is 0 in IA32_VMX_CR4_FIXED1."""
    return not vmcs[F.GUEST_CR4] & ~processor.shape.msr(Msr.IA32_VMX_CR4_FIXED1)


@check(
    "guest.cr4_cet_needs_wp",
    REGISTERS,
    only(F.GUEST_CR4, Cr4.CET),
    only(F.GUEST_CR0, Cr0.WP),
)
def guest_cet_comes_with_write_protection(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.CET of the guest is 1, its CR0.WP is 1."""
    return not vmcs[F.GUEST_CR4] & Cr4.CET or bool(vmcs[F.GUEST_CR0] & Cr0.WP)


@check(
    "guest.debugctl_reserved",
    REGISTERS,
    Entry.LOAD_DEBUG_CONTROLS,
    F.GUEST_IA32_DEBUGCTL,
    capability=("CPUID RTM", "CPUID bus-lock detect"),
    note="bits 13 and 14 came with different models; they count as supported here",
)
def guest_debugctl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load debug controls" is 1, guest IA32_DEBUGCTL sets no reserved bit: 5:3, 63:16, and 2
    (bus-lock detection) and 15 (RTM) on a CPU without them."""
    return not vmcs.entry & Entry.LOAD_DEBUG_CONTROLS or not vmcs[
        F.GUEST_IA32_DEBUGCTL
    ] & debugctl_reserved(processor.shape)


@check("guest.ia32e.paging", REGISTERS, _IA32E, only(F.GUEST_CR0, Cr0.PG))
def ia32e_guest_has_paging(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 1, CR0.PG of the guest is 1."""
    return not vmcs.entry & _IA32E or bool(vmcs[F.GUEST_CR0] & Cr0.PG)


@check("guest.ia32e.pae", REGISTERS, _IA32E, only(F.GUEST_CR4, Cr4.PAE))
def ia32e_guest_has_pae(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 1, CR4.PAE of the guest is 1."""
    return not vmcs.entry & _IA32E or bool(vmcs[F.GUEST_CR4] & Cr4.PAE)


@check("guest.no_ia32e.pcide", REGISTERS, _IA32E, only(F.GUEST_CR4, Cr4.PCIDE))
def pcids_come_with_an_ia32e_guest(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 0, CR4.PCIDE of the guest is 0."""
    return bool(vmcs.entry & _IA32E) or not vmcs[F.GUEST_CR4] & Cr4.PCIDE


@check("guest.no_ia32e.fred", REGISTERS, _IA32E, only(F.GUEST_CR4, Cr4.FRED))
def fred_comes_with_an_ia32e_guest(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 0, CR4.FRED of the guest is 0."""
    return bool(vmcs.entry & _IA32E) or not vmcs[F.GUEST_CR4] & Cr4.FRED


@check(
    "guest.cr3_reserved",
    REGISTERS,
    only(F.GUEST_CR3, _ABOVE_32),
    Proc2.ENABLE_EPT,
    capability=("MAXPHYADDR", "IA32_TME_ACTIVATE", "CPUID LAM"),
    note=(
        "bits 62:61 belong to linear-address masking where the CPU has it; bits 11:0 are ignored "
        "with 32-bit and PAE paging"
    ),
    cause="bit 63, the no-flush hint of MOV to CR3 with PCIDs, was stored in the field",
)
def guest_cr3_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Guest CR3 sets no bit at or above MAXPHYADDR; without EPT, none that holds a KeyID either."""
    shape = processor.shape
    width = shape.maxphyaddr if vmcs.proc2 & Proc2.ENABLE_EPT else page_table_width(shape)
    return not vmcs[F.GUEST_CR3] & cr3_reserved(shape, width)


@check("guest.dr7_high", REGISTERS, Entry.LOAD_DEBUG_CONTROLS, only(F.GUEST_DR7, _ABOVE_32))
def guest_dr7_has_32_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load debug controls" is 1, bits 63:32 of guest DR7 are 0."""
    return not vmcs.entry & Entry.LOAD_DEBUG_CONTROLS or not vmcs[F.GUEST_DR7] >> 32


define_canonical(check, "guest.sysenter_esp_canonical", REGISTERS, F.GUEST_IA32_SYSENTER_ESP)
define_canonical(check, "guest.sysenter_eip_canonical", REGISTERS, F.GUEST_IA32_SYSENTER_EIP)
define_canonical(
    check, "guest.s_cet.canonical", REGISTERS, F.GUEST_IA32_S_CET, Entry.LOAD_CET_STATE
)
define_canonical(
    check,
    "guest.interrupt_ssp_table_canonical",
    REGISTERS,
    F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR,
    Entry.LOAD_CET_STATE,
)


@check(
    "guest.perf_global_ctrl_reserved",
    REGISTERS,
    Entry.LOAD_IA32_PERF_GLOBAL_CTRL,
    F.GUEST_IA32_PERF_GLOBAL_CTRL,
    capability=("performance counters (CPUID.0AH)",),
)
def guest_perf_global_ctrl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_PERF_GLOBAL_CTRL" is 1, the guest field sets no reserved bit of that MSR: no
    bit of a counter that the CPU does not have."""
    return not vmcs.entry & Entry.LOAD_IA32_PERF_GLOBAL_CTRL or not vmcs[
        F.GUEST_IA32_PERF_GLOBAL_CTRL
    ] & perf_global_ctrl_reserved(processor.shape)


@check("guest.pat", REGISTERS, Entry.LOAD_IA32_PAT, F.GUEST_IA32_PAT)
def guest_pat_holds_memory_types(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_PAT" is 1, each of the eight bytes of the guest field is 0, 1, 4, 5, 6 or
    7."""
    return not vmcs.entry & Entry.LOAD_IA32_PAT or is_valid_pat(vmcs[F.GUEST_IA32_PAT])


@check(
    "guest.efer.reserved",
    REGISTERS,
    Entry.LOAD_IA32_EFER,
    F.GUEST_IA32_EFER,
    capability=("CPUID NX", "CPUID Intel 64"),
)
def guest_efer_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_EFER" is 1, the guest field sets no reserved bit: 7:1, 9, 63:12, and NXE (11)
    on a CPU without it."""
    return not vmcs.entry & Entry.LOAD_IA32_EFER or not vmcs[F.GUEST_IA32_EFER] & efer_reserved(
        processor.shape
    )


@check(
    "guest.efer.lma",
    REGISTERS,
    Entry.LOAD_IA32_EFER,
    _IA32E,
    only(F.GUEST_IA32_EFER, Efer.LMA),
)
def guest_lma_goes_with_the_entry_control(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_EFER" is 1, LMA in the guest field equals "IA-32e mode guest"."""
    if not vmcs.entry & Entry.LOAD_IA32_EFER:
        return True
    return bool(vmcs[F.GUEST_IA32_EFER] & Efer.LMA) == bool(vmcs.entry & _IA32E)


@check(
    "guest.efer.lme",
    REGISTERS,
    Entry.LOAD_IA32_EFER,
    only(F.GUEST_CR0, Cr0.PG),
    only(F.GUEST_IA32_EFER, Efer.LMA | Efer.LME),
)
def guest_lme_goes_with_lma(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_EFER" and CR0.PG of the guest are 1, LME in the guest field equals LMA."""
    if not vmcs.entry & Entry.LOAD_IA32_EFER or not vmcs[F.GUEST_CR0] & Cr0.PG:
        return True
    efer = vmcs[F.GUEST_IA32_EFER]
    return bool(efer & Efer.LME) == bool(efer & Efer.LMA)


@check(
    "guest.bndcfgs.reserved",
    REGISTERS,
    Entry.LOAD_IA32_BNDCFGS,
    only(F.GUEST_IA32_BNDCFGS, 0xFFC),
)
def guest_bndcfgs_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_BNDCFGS" is 1, bits 11:2 of guest IA32_BNDCFGS are 0."""
    return not vmcs.entry & Entry.LOAD_IA32_BNDCFGS or not vmcs[F.GUEST_IA32_BNDCFGS] & 0xFFC


@check(
    "guest.bndcfgs.canonical",
    REGISTERS,
    Entry.LOAD_IA32_BNDCFGS,
    only(F.GUEST_IA32_BNDCFGS, _CANONICAL_BITS),
    capability=LINEAR_WIDTH,
)
def guest_bound_directory_is_canonical(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_BNDCFGS" is 1, the linear address in bits 63:12 of guest IA32_BNDCFGS is
    canonical."""
    return not vmcs.entry & Entry.LOAD_IA32_BNDCFGS or canonical(
        vmcs[F.GUEST_IA32_BNDCFGS] & ~0xFFF, processor.shape
    )
