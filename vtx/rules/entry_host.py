"""VM-entry checks on host state: control registers, MSRs, SSP, segments and descriptor tables.

SDM, "Checks on Host Control Registers, MSRs, and SSP" and "Checks on Host Segment and
Descriptor-Table Registers".
"""

from __future__ import annotations

from enum import IntEnum

from vtx.bits import MASK64
from vtx.facts.controls import Exit1, Exit2
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr0, Cr4, Efer
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import HOST_REGISTERS, HOST_SEGMENTS
from vtx.rules.declaration import Area, Checks, only
from vtx.rules.entry_controls_families import PHYSICAL_WIDTH, is_on, quoted
from vtx.rules.limits import (
    canonical,
    cr3_reserved,
    efer_reserved,
    fred_config_reserved,
    is_valid_pat,
    perf_global_ctrl_reserved,
    physical_width,
    s_cet_is_consistent,
    s_cet_reserved,
    spec_ctrl_reserved,
)

__all__ = ["LINEAR_WIDTH", "define_canonical"]

check = Checks()

#: What being canonical depends on.
LINEAR_WIDTH = ("linear-address width (CPUID.80000008H:EAX[15:8])",)
#: CPUs have at least 32-bit linear addresses; canonicality is decided at bit 47 or 56.
_CANONICAL_BITS = ~0x7FFF_FFFF_FFFF & MASK64
_ABOVE_32 = ~0xFFFF_FFFF & MASK64
#: VM exits do not change CR0.CD and CR0.NW, so VM entry does not check them.
_CR0_UNCHECKED = Cr0.CD | Cr0.NW


def define_canonical(
    check: Checks,
    id: str,
    area: Area,
    field: F,
    when: IntEnum | None = None,
    *,
    note: str | None = None,
) -> None:
    """Define the check that `field` holds a canonical address (if the control `when` is 1)."""
    name = FIELDS[field].sdm_name
    used = None if when is None else is_on(when)
    condition = "" if when is None else f"If {quoted(when)} is 1, "

    @check(
        id,
        area,
        *(() if when is None else (when,)),
        only(field, _CANONICAL_BITS),
        title=f"{name} is canonical",
        rule=(f"{condition}{name} is canonical for the CPU's maximum linear-address width."),
        capability=LINEAR_WIDTH,
        note=note,
    )
    def address_is_canonical(vmcs: Vmcs, processor: Processor) -> bool:
        if used is not None and not used(vmcs):
            return True
        return canonical(vmcs[field], processor.shape)


@check(
    "host.cr0_fixed.must_be_1",
    HOST_REGISTERS,
    only(F.HOST_CR0, ~_CR0_UNCHECKED),
    capability=("IA32_VMX_CR0_FIXED0",),
    note='"unrestricted guest" does not relax the rule for the host',
)
def host_cr0_sets_the_fixed_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Host CR0 sets every bit of IA32_VMX_CR0_FIXED0 (PE, NE and PG in practice) but CD and NW,
    which VM exits do not change."""
    fixed = processor.shape.msr(Msr.IA32_VMX_CR0_FIXED0)
    return not fixed & ~vmcs[F.HOST_CR0] & ~_CR0_UNCHECKED


@check(
    "host.cr0_fixed.must_be_0",
    HOST_REGISTERS,
    only(F.HOST_CR0, ~_CR0_UNCHECKED),
    capability=("IA32_VMX_CR0_FIXED1",),
)
def host_cr0_clears_the_unsupported_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Host CR0 sets no bit that is 0 in IA32_VMX_CR0_FIXED1, so bits 63:32 are 0; CD and NW do
    not matter."""
    allowed = processor.shape.msr(Msr.IA32_VMX_CR0_FIXED1)
    return not vmcs[F.HOST_CR0] & ~allowed & ~_CR0_UNCHECKED


@check(
    "host.cr4_fixed.must_be_1",
    HOST_REGISTERS,
    F.HOST_CR4,
    capability=("IA32_VMX_CR4_FIXED0",),
    cause="the VMM read CR4 before it set CR4.VMXE",
)
def host_cr4_sets_the_fixed_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Host CR4 sets every bit of IA32_VMX_CR4_FIXED0 (VMXE in practice)."""
    return not processor.shape.msr(Msr.IA32_VMX_CR4_FIXED0) & ~vmcs[F.HOST_CR4]


@check(
    "host.cr4_fixed.must_be_0",
    HOST_REGISTERS,
    F.HOST_CR4,
    capability=("IA32_VMX_CR4_FIXED1",),
)
def host_cr4_clears_the_unsupported_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """Host CR4 sets no bit that is 0 in IA32_VMX_CR4_FIXED1."""
    return not vmcs[F.HOST_CR4] & ~processor.shape.msr(Msr.IA32_VMX_CR4_FIXED1)


@check(
    "host.cr4_cet_needs_wp",
    HOST_REGISTERS,
    only(F.HOST_CR4, Cr4.CET),
    only(F.HOST_CR0, Cr0.WP),
)
def host_cet_comes_with_write_protection(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.CET of the host is 1, CR0.WP of the host is 1."""
    return not vmcs[F.HOST_CR4] & Cr4.CET or bool(vmcs[F.HOST_CR0] & Cr0.WP)


@check(
    "host.cr3_reserved",
    HOST_REGISTERS,
    only(F.HOST_CR3, _ABOVE_32),
    capability=(*PHYSICAL_WIDTH, "CPUID LAM"),
    note="bits 62:61 belong to linear-address masking where the CPU has it",
    cause="bit 63, the no-flush hint of MOV to CR3 with PCIDs, was stored in the field",
)
def host_cr3_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Host CR3 sets no bit beyond the physical-address width."""
    shape = processor.shape
    return not vmcs[F.HOST_CR3] & cr3_reserved(shape, physical_width(shape))


define_canonical(check, "host.sysenter_esp_canonical", HOST_REGISTERS, F.HOST_IA32_SYSENTER_ESP)
define_canonical(check, "host.sysenter_eip_canonical", HOST_REGISTERS, F.HOST_IA32_SYSENTER_EIP)


@check(
    "host.perf_global_ctrl_reserved",
    HOST_REGISTERS,
    Exit1.LOAD_IA32_PERF_GLOBAL_CTRL,
    F.HOST_IA32_PERF_GLOBAL_CTRL,
    capability=("performance counters (CPUID.0AH)",),
)
def host_perf_global_ctrl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_PERF_GLOBAL_CTRL" is 1, the host field sets no reserved bit of that MSR: no
    bit of a counter that the CPU does not have."""
    return not vmcs.exit1 & Exit1.LOAD_IA32_PERF_GLOBAL_CTRL or not vmcs[
        F.HOST_IA32_PERF_GLOBAL_CTRL
    ] & perf_global_ctrl_reserved(processor.shape)


@check("host.pat", HOST_REGISTERS, Exit1.LOAD_IA32_PAT, F.HOST_IA32_PAT)
def host_pat_holds_memory_types(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_PAT" is 1, each of the eight bytes of the host field is 0, 1, 4, 5, 6 or 7."""
    return not vmcs.exit1 & Exit1.LOAD_IA32_PAT or is_valid_pat(vmcs[F.HOST_IA32_PAT])


@check(
    "host.efer.reserved",
    HOST_REGISTERS,
    Exit1.LOAD_IA32_EFER,
    F.HOST_IA32_EFER,
    capability=("CPUID NX", "CPUID Intel 64"),
)
def host_efer_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_EFER" is 1, the host field sets no reserved bit: 7:1, 9, 63:12, and NXE (11)
    on a CPU without it."""
    return not vmcs.exit1 & Exit1.LOAD_IA32_EFER or not vmcs[F.HOST_IA32_EFER] & efer_reserved(
        processor.shape
    )


def _define_host_efer(name: str, bit: Efer) -> None:
    """Define the check that a bit of the host's EFER goes with the host's address-space size."""
    both = Exit1.LOAD_IA32_EFER, Exit1.HOST_ADDRESS_SPACE_SIZE

    @check(
        f"host.efer.{name}",
        HOST_REGISTERS,
        *both,
        only(F.HOST_IA32_EFER, bit),
        title=f"host EFER.{bit._name_} goes with the host's address-space size",
        rule=(
            f'If "load IA32_EFER" is 1, {bit._name_} in the host field equals "host address-space '
            'size".'
        ),
    )
    def host_efer_goes_with_the_address_space(vmcs: Vmcs, processor: Processor) -> bool:
        if not vmcs.exit1 & Exit1.LOAD_IA32_EFER:
            return True
        size = vmcs.exit1 & Exit1.HOST_ADDRESS_SPACE_SIZE
        return bool(vmcs[F.HOST_IA32_EFER] & bit) == bool(size)


_define_host_efer("lma", Efer.LMA)
_define_host_efer("lme", Efer.LME)


@check(
    "host.s_cet.reserved",
    HOST_REGISTERS,
    Exit1.LOAD_CET_STATE,
    only(F.HOST_IA32_S_CET, s_cet_reserved()),
)
def host_s_cet_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 9:6 of host IA32_S_CET are 0."""
    return not vmcs.exit1 & Exit1.LOAD_CET_STATE or not vmcs[F.HOST_IA32_S_CET] & s_cet_reserved()


@check(
    "host.s_cet.suppress_tracker",
    HOST_REGISTERS,
    Exit1.LOAD_CET_STATE,
    only(F.HOST_IA32_S_CET, 0xC00),
)
def host_s_cet_does_not_suppress_while_it_waits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 10 (SUPPRESS) and 11 (TRACKER) of host IA32_S_CET are not
    both 1."""
    return not vmcs.exit1 & Exit1.LOAD_CET_STATE or s_cet_is_consistent(vmcs[F.HOST_IA32_S_CET])


@check("host.ssp_align", HOST_REGISTERS, Exit1.LOAD_CET_STATE, only(F.HOST_SSP, 3))
def host_ssp_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load CET state" is 1, bits 1:0 of host SSP are 0."""
    return not vmcs.exit1 & Exit1.LOAD_CET_STATE or not vmcs[F.HOST_SSP] & 3


@check("host.pkrs_high", HOST_REGISTERS, Exit1.LOAD_PKRS, only(F.HOST_IA32_PKRS, _ABOVE_32))
def host_pkrs_has_32_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load PKRS" is 1, bits 63:32 of host IA32_PKRS are 0."""
    return not vmcs.exit1 & Exit1.LOAD_PKRS or not vmcs[F.HOST_IA32_PKRS] >> 32


def _loads_fred(vmcs: Vmcs) -> int:
    return vmcs.exit2 & Exit2.LOAD_FRED


@check(
    "host.fred.config_reserved",
    HOST_REGISTERS,
    Exit2.LOAD_FRED,
    only(F.HOST_IA32_FRED_CONFIG, fred_config_reserved()),
)
def host_fred_config_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load FRED" is 1, bits 2, 5:4 and 11 of host IA32_FRED_CONFIG are 0."""
    return not _loads_fred(vmcs) or not vmcs[F.HOST_IA32_FRED_CONFIG] & fred_config_reserved()


define_canonical(
    check, "host.fred.config_canonical", HOST_REGISTERS, F.HOST_IA32_FRED_CONFIG, Exit2.LOAD_FRED
)


def _define_host_fred(name: str, field: F, low: int) -> None:
    """Define the check on a FRED stack pointer of the host: canonical and aligned."""
    words = FIELDS[field].sdm_name

    @check(
        f"host.fred.{name}",
        HOST_REGISTERS,
        Exit2.LOAD_FRED,
        only(field, _CANONICAL_BITS | low),
        title=f"{words} is canonical and aligned",
        rule=(
            f'If "load FRED" is 1, {words} is canonical and its bits {low.bit_length() - 1}:0 '
            "are 0."
        ),
        capability=LINEAR_WIDTH,
    )
    def fred_stack_pointer_is_canonical_and_aligned(vmcs: Vmcs, processor: Processor) -> bool:
        value = vmcs[field] if _loads_fred(vmcs) else 0
        return not value & low and canonical(value, processor.shape)


for _name, _field, _low in (
    ("rsp1", F.HOST_IA32_FRED_RSP1, 0x3F),
    ("rsp2", F.HOST_IA32_FRED_RSP2, 0x3F),
    ("rsp3", F.HOST_IA32_FRED_RSP3, 0x3F),
    ("ssp1", F.HOST_IA32_FRED_SSP1, 0x7),
    ("ssp2", F.HOST_IA32_FRED_SSP2, 0x7),
    ("ssp3", F.HOST_IA32_FRED_SSP3, 0x7),
):
    _define_host_fred(_name, _field, _low)


@check(
    "host.spec_ctrl_reserved",
    HOST_REGISTERS,
    Exit2.LOAD_IA32_SPEC_CTRL,
    F.HOST_IA32_SPEC_CTRL,
    capability=("CPUID.07H",),
)
def host_spec_ctrl_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If "load IA32_SPEC_CTRL" is 1, the host field sets no reserved bit of that MSR."""
    return not vmcs.exit2 & Exit2.LOAD_IA32_SPEC_CTRL or not vmcs[
        F.HOST_IA32_SPEC_CTRL
    ] & spec_ctrl_reserved(processor.shape)


def _define_selector_of_gdt(name: str, field: F) -> None:
    """Define the check that a host selector has RPL 0 and refers to the GDT."""

    @check(
        f"host.{name}.selector_rpl_ti",
        HOST_SEGMENTS,
        only(field, 7),
        title=f"host {name.upper()} selector has RPL 0 and TI 0",
        rule=f"Bits 2:0 (RPL and TI) of the host {name.upper()} selector are 0.",
    )
    def selector_has_rpl_0_and_ti_0(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[field] & 7


for _name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
    _define_selector_of_gdt(_name, F[f"HOST_{_name.upper()}_SELECTOR"])


@check("host.cs.selector_null", HOST_SEGMENTS, F.HOST_CS_SELECTOR)
def host_cs_selector_is_not_null(vmcs: Vmcs, processor: Processor) -> bool:
    """The host CS selector is not 0000H."""
    return vmcs[F.HOST_CS_SELECTOR] != 0


@check(
    "host.tr.selector_null",
    HOST_SEGMENTS,
    F.HOST_TR_SELECTOR,
    cause="the VMM's loader never executed LTR",
)
def host_tr_selector_is_not_null(vmcs: Vmcs, processor: Processor) -> bool:
    """The host TR selector is not 0000H."""
    return vmcs[F.HOST_TR_SELECTOR] != 0


@check(
    "host.ss.selector_null",
    HOST_SEGMENTS,
    F.HOST_SS_SELECTOR,
    Exit1.HOST_ADDRESS_SPACE_SIZE,
)
def host_ss_selector_is_not_null_for_a_32bit_host(vmcs: Vmcs, processor: Processor) -> bool:
    """If "host address-space size" is 0, the host SS selector is not 0000H."""
    return vmcs[F.HOST_SS_SELECTOR] != 0 or bool(vmcs.exit1 & Exit1.HOST_ADDRESS_SPACE_SIZE)


for _name in ("fs", "gs", "gdtr", "idtr", "tr"):
    define_canonical(
        check, f"host.{_name}.base_canonical", HOST_SEGMENTS, F[f"HOST_{_name.upper()}_BASE"]
    )
