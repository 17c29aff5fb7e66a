"""What a CPU's shape means for values: address widths, and which bits of MSRs are reserved.

VM entry, VM exit and WRMSR share these: "would WRMSR of this value fault?" and "may the VMCS field
hold it?" are the same question.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from vtx.bits import bit, bits, is_canonical
from vtx.facts.controls import GROUPS, Proc1, Proc2
from vtx.facts.msrs import Msr
from vtx.machine.registers import Cr4, Efer

if TYPE_CHECKING:
    from vtx.machine.shape import Shape

__all__ = [
    "allowed_settings",
    "canonical",
    "cr3_reserved",
    "cr3_target_count",
    "cr4_may_be_1",
    "debugctl_reserved",
    "efer_reserved",
    "fred_config_reserved",
    "has_bus_lock_detect",
    "has_intel64",
    "has_lam",
    "has_monitor_trap_flag",
    "has_rtm",
    "has_sgx",
    "is_valid_pat",
    "lbr_ctl_reserved",
    "page_table_width",
    "perf_global_ctrl_reserved",
    "physical_width",
    "rtit_ctl_reserved",
    "s_cet_is_consistent",
    "s_cet_reserved",
    "spec_ctrl_reserved",
]

_ALL = 0xFFFF_FFFF_FFFF_FFFF
_Value = TypeVar("_Value")
_KEYID_BITS = (39, 36)
_EACH_BYTE = 0x0101_0101_0101_0101


def _once(function: Callable[[Shape], _Value]) -> Callable[[Shape], _Value]:
    """Compute a property of a shape once; a shape never changes, and VM entry asks often."""
    name = f"vtx.rules.limits.{function.__name__}"

    @wraps(function)
    def known(shape: Shape) -> _Value:
        properties = shape.__dict__
        if name not in properties:
            properties[name] = function(shape)
        value: _Value = properties[name]
        return value

    return known


@_once
def allowed_settings(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return what the CPU allows of each control word: the bits that must, and may, be 1."""
    return {key: (shape.allowed0(key), shape.allowed1(key)) for key in GROUPS}


def _key_id_bits(shape: Shape) -> int:
    """Return how many address bits memory encryption takes away (IA32_TME_ACTIVATE)."""
    activate = shape.msr(Msr.IA32_TME_ACTIVATE)
    return bits(activate, *_KEYID_BITS) if bit(activate, 0) else 0


@_once
def physical_width(shape: Shape) -> int:
    """Return the width of physical addresses of VMX structures.

    32 if IA32_VMX_BASIC[48] is 1; otherwise MAXPHYADDR, less the bits that hold a KeyID.
    """
    return min(shape.physical_width, shape.maxphyaddr - _key_id_bits(shape))


@_once
def page_table_width(shape: Shape) -> int:
    """Return the width of physical addresses in paging structures outside EPT."""
    return shape.maxphyaddr - _key_id_bits(shape)


@_once
def cr3_target_count(shape: Shape) -> int:
    """Return the number of CR3-target values (IA32_VMX_MISC[24:16])."""
    return bits(shape.msr(Msr.IA32_VMX_MISC), 24, 16)


def has_intel64(shape: Shape) -> bool:
    """Tell whether the CPU has Intel 64: without it linear addresses have 32 bits."""
    return shape.linear_bits > 32


def canonical(address: int, shape: Shape) -> bool:
    """Tell whether an address is canonical for the CPU's maximum linear-address width.

    Without Intel 64 there is no such rule.
    """
    return not has_intel64(shape) or is_canonical(address, shape.linear_bits)


def cr4_may_be_1(shape: Shape, flag: Cr4) -> bool:
    """Tell whether the CPU has the feature that a CR4 bit enables (IA32_VMX_CR4_FIXED1)."""
    return bool(shape.msr(Msr.IA32_VMX_CR4_FIXED1) & flag)


@_once
def has_sgx(shape: Shape) -> bool:
    """Tell whether the CPU has SGX: its ENCLS can be made to exit, or the profile says so."""
    return "sgx" in shape.features or shape.supports(Proc2.ENABLE_ENCLS_EXITING)


def has_rtm(shape: Shape) -> bool:
    """Tell whether the CPU has restricted transactional memory (CPUID.07H:EBX.RTM)."""
    return "rtm" in shape.features


def has_bus_lock_detect(shape: Shape) -> bool:
    """Tell whether the CPU has bus-lock debug exceptions (CPUID.07H:ECX.BUS_LOCK_DETECT)."""
    return "bus_lock_detect" in shape.features


@_once
def has_monitor_trap_flag(shape: Shape) -> bool:
    """Tell whether the CPU supports the 1-setting of "monitor trap flag"."""
    return shape.supports(Proc1.MONITOR_TRAP_FLAG)


@_once
def has_lam(shape: Shape) -> bool:
    """Tell whether the CPU has linear-address masking."""
    return "lam" in shape.features or cr4_may_be_1(shape, Cr4.LAM_SUP)


def cr3_reserved(shape: Shape, width: int) -> int:
    """Return the bits that must be 0 in CR3 when physical addresses have `width` bits.

    The LAM bits (62 and 61) are not reserved on a CPU with linear-address masking.
    """
    reserved = _ALL >> width << width
    return reserved & ~(3 << 61) if has_lam(shape) else reserved


@_once
def efer_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_EFER."""
    defined = 0
    if has_intel64(shape):
        defined |= Efer.SCE | Efer.LME | Efer.LMA
    if "nx" in shape.features:
        defined |= Efer.NXE
    return _ALL & ~defined


def is_valid_pat(value: int) -> bool:
    """Tell whether each of the eight bytes of IA32_PAT is a memory type (0, 1, 4, 5, 6 or 7)."""
    # In each byte: bits 7:3 are 0, and bit 1 comes only with bit 2.
    return not value & 0xF8 * _EACH_BYTE and not value >> 1 & ~(value >> 2) & _EACH_BYTE


@_once
def debugctl_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_DEBUGCTL (SDM, "IA32_DEBUGCTL MSR").

    Bits 14:6 came with different CPUs and no capability tells them apart, so they all count as
    defined; bits 2 (bus-lock detection) and 15 (RTM) are defined where the profile says so.
    """
    defined = 0b0111_1111_1100_0011
    if has_bus_lock_detect(shape):
        defined |= 1 << 2
    if has_rtm(shape):
        defined |= 1 << 15
    return _ALL & ~defined


def _counters(shape: Shape, kind: str, otherwise: int) -> int:
    """Return n of the feature ``kind_n`` of a shape: its number of performance counters."""
    numbers = [
        int(feature.removeprefix(kind))
        for feature in shape.features
        if feature.startswith(kind) and feature.removeprefix(kind).isdecimal()
    ]
    return max(numbers, default=otherwise)


@_once
def perf_global_ctrl_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_PERF_GLOBAL_CTRL.

    Where the profile does not number the counters (features ``general_counters_n`` and
    ``fixed_counters_n``, from CPUID leaf 0AH), eight general and four fixed ones are assumed, the
    most that client and server CPUs of the profiled generations have, and bit 48.
    """
    general = _counters(shape, "general_counters_", 8)
    fixed = _counters(shape, "fixed_counters_", 4)
    return _ALL & ~((1 << general) - 1 | ((1 << fixed) - 1) << 32 | 1 << 48)


def rtit_ctl_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_RTIT_CTL (SDM, "IA32_RTIT_CTL MSR").

    Bits that only some CPUs with Intel PT have count as defined: leaf 14H of CPUID is not part of
    a shape.
    """
    del shape
    reserved = 1 << 18 | 1 << 23 | 7 << 28
    return reserved | 0x7F << 48 | 0xFF << 56


def lbr_ctl_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_LBR_CTL: 15:4 and 63:23."""
    del shape
    return 0xFFF << 4 | _ALL >> 23 << 23


def spec_ctrl_reserved(shape: Shape) -> int:
    """Return the reserved bits of IA32_SPEC_CTRL (SDM, "IA32_SPEC_CTRL MSR").

    Bits 8:0 and 10 are defined by the architecture; which of them a CPU has is in CPUID leaf 07H,
    which is not part of a shape, so each of them counts as defined.
    """
    del shape
    return _ALL & ~0b101_1111_1111


def s_cet_reserved() -> int:
    """Return the bits 9:6 that must be 0 in IA32_S_CET and IA32_U_CET."""
    return 0x3C0


def s_cet_is_consistent(value: int) -> bool:
    """Tell whether SUPPRESS (10) and TRACKER (11) of IA32_S_CET are not both 1."""
    return value & 0xC00 != 0xC00


def fred_config_reserved() -> int:
    """Return the bits 2, 5:4 and 11 that must be 0 in IA32_FRED_CONFIG."""
    return 1 << 2 | 3 << 4 | 1 << 11
