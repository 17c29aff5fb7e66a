"""Which values WRMSR accepts: the rule behind #GP(0) of WRMSR and behind loading MSR areas.

One small function per MSR says what is wrong with a value, if anything; an MSR that is in no table
here does not exist on the machine. (SDM volume 4 and the sections on the features; the VM-entry
and VM-exit MSR areas refer to WRMSR in "Loading MSRs" and "Saving MSRs".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtx.facts.msrs import Msr
from vtx.machine.registers import Cr0, Cr4, Efer
from vtx.rules.limits import (
    canonical,
    cr4_may_be_1,
    debugctl_reserved,
    efer_reserved,
    fred_config_reserved,
    is_valid_pat,
    lbr_ctl_reserved,
    perf_global_ctrl_reserved,
    rtit_ctl_reserved,
    s_cet_is_consistent,
    s_cet_reserved,
    spec_ctrl_reserved,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.shape import Shape

__all__ = ["MISSING", "READ_ONLY", "wrmsr_fault"]

#: Says what is wrong with a value, None if WRMSR accepts it.
Rule = Callable[["Processor", int], str | None]

_RESERVED = "it sets reserved bits"
_NOT_CANONICAL = "it is not canonical"
_NO_SUCH_MSR = "there is no such MSR"
_NOT_ON_THIS_CPU = "the CPU does not have the MSR"
#: What `wrmsr_fault` says of MSRs that do not exist: RDMSR faults, too.
MISSING = frozenset({_NO_SUCH_MSR, _NOT_ON_THIS_CPU})

_MTRR_TYPES = frozenset({0, 1, 4, 5, 6})
_BOOTSTRAP_PROCESSOR, _X2APIC_MODE, _APIC_ENABLED = 1 << 8, 1 << 10, 1 << 11
_APIC_MODE = _X2APIC_MODE | _APIC_ENABLED
#: Changes of mode that WRMSR refuses (SDM, "x2APIC State Transitions").
_FORBIDDEN_APIC_MODES = frozenset(
    {(before, _X2APIC_MODE) for before in (0, _APIC_ENABLED, _APIC_MODE)}
    | {(0, _APIC_MODE), (_APIC_MODE, _APIC_ENABLED)}
)

#: MSRs that WRMSR never writes.
READ_ONLY = frozenset(
    {
        *range(Msr.IA32_VMX_BASIC, Msr.IA32_VMX_EXIT_CTLS2 + 1),
        Msr.IA32_MTRRCAP,
        Msr.IA32_ARCH_CAPABILITIES,
        Msr.IA32_SMBASE,
        Msr.IA32_TME_ACTIVATE,  # firmware locks it
    }
)

#: MSRs that take any 64-bit value.
_ANY = frozenset(
    {
        Msr.IA32_TIME_STAMP_COUNTER,
        Msr.IA32_TSC_ADJUST,
        Msr.IA32_TSC_DEADLINE,
        Msr.IA32_MPERF,
        Msr.IA32_APERF,
        Msr.IA32_SYSENTER_CS,
        Msr.IA32_STAR,
        Msr.IA32_FMASK,
        Msr.IA32_MISC_ENABLE,
        Msr.IA32_BIOS_SIGN_ID,
        Msr.IA32_BIOS_UPDT_TRIG,
        Msr.IA32_XFD,
        Msr.IA32_PASID,
    }
)

#: MSRs that hold a linear address, which must be canonical.
_ADDRESSES = frozenset(
    {
        Msr.IA32_SYSENTER_ESP,
        Msr.IA32_SYSENTER_EIP,
        Msr.IA32_LSTAR,
        Msr.IA32_CSTAR,
        Msr.IA32_FS_BASE,
        Msr.IA32_GS_BASE,
        Msr.IA32_KERNEL_GS_BASE,
    }
)

#: MSRs of which only these bits may be 1.
_DEFINED_BITS = {
    Msr.IA32_TSC_AUX: 0xFFFF_FFFF,
    Msr.IA32_UMWAIT_CONTROL: 0xFFFF_FFFD,
    Msr.IA32_PRED_CMD: 1 << 0,
    Msr.IA32_FLUSH_CMD: 1 << 0,
    Msr.IA32_PKRS: 0xFFFF_FFFF,
}

#: MSRs whose reserved bits depend on the CPU.
_RESERVED_BITS: dict[int, Callable[[Shape], int]] = {
    Msr.IA32_DEBUGCTL: debugctl_reserved,
    Msr.IA32_PERF_GLOBAL_CTRL: perf_global_ctrl_reserved,
    Msr.IA32_RTIT_CTL: rtit_ctl_reserved,
    Msr.IA32_LBR_CTL: lbr_ctl_reserved,
    Msr.IA32_SPEC_CTRL: spec_ctrl_reserved,
}

#: Features without which an MSR does not exist, by the CR4 bit that enables them.
_NEEDS_CR4_BIT = {
    **dict.fromkeys(range(Msr.IA32_FRED_RSP0, Msr.IA32_FRED_CONFIG + 1), Cr4.FRED),
    **dict.fromkeys(range(Msr.IA32_PL0_SSP, Msr.IA32_INTERRUPT_SSP_TABLE_ADDR + 1), Cr4.CET),
    Msr.IA32_U_CET: Cr4.CET,
    Msr.IA32_S_CET: Cr4.CET,
    Msr.IA32_PKRS: Cr4.PKS,
    **dict.fromkeys(range(Msr.IA32_UINTR_RR, Msr.IA32_UINTR_TT + 1), Cr4.UINTR),
    Msr.IA32_XSS: Cr4.OSXSAVE,
}


def _efer(processor: Processor, value: int) -> str | None:
    if value & efer_reserved(processor.shape):
        return _RESERVED
    regs = processor.regs
    if regs.cr0 & Cr0.PG and (value ^ regs.efer) & Efer.LME:
        return "it changes LME while paging is on"
    return None


def _pat(processor: Processor, value: int) -> str | None:
    return None if is_valid_pat(value) else "a byte of it is no memory type"


def _feature_control(processor: Processor, value: int) -> str | None:
    locked = processor.regs.read_msr(Msr.IA32_FEATURE_CONTROL) & 1
    return "the MSR is locked" if locked else None


def _apic_base(processor: Processor, value: int) -> str | None:
    """Judge by the local APIC's modes: disabled, xAPIC, x2APIC (bits 11:10 = 0, 2, 3)."""
    shape = processor.shape
    x2apic = _X2APIC_MODE if "x2apic" in shape.features else 0
    address = (1 << shape.maxphyaddr) - 0x1000
    if value & ~(address | _APIC_ENABLED | x2apic | _BOOTSTRAP_PROCESSOR):
        return _RESERVED
    before = processor.regs.msrs.get(Msr.IA32_APIC_BASE, _APIC_ENABLED) & _APIC_MODE
    if (before, value & _APIC_MODE) in _FORBIDDEN_APIC_MODES:
        return "the local APIC cannot change to that mode"
    return None


def _mtrr_def_type(processor: Processor, value: int) -> str | None:
    if value & ~0xCFF:
        return _RESERVED
    return None if value & 0xFF in _MTRR_TYPES else "its memory type does not exist"


def _smm_monitor_ctl(processor: Processor, value: int) -> str | None:
    if not processor.smm:
        return "the MSR can be written in SMM only"
    return _RESERVED if value & ~0xFFFF_F005 else None


def _cet(processor: Processor, value: int) -> str | None:
    if value & s_cet_reserved() or not s_cet_is_consistent(value):
        return _RESERVED
    return None if canonical(value, processor.shape) else _NOT_CANONICAL


def _shadow_stack(processor: Processor, value: int) -> str | None:
    if value & 3:
        return "it is not aligned to 4 bytes"
    return None if canonical(value, processor.shape) else _NOT_CANONICAL


def _aligned(low: int) -> Rule:
    def rule(processor: Processor, value: int) -> str | None:
        if value & low:
            return _RESERVED
        return None if canonical(value, processor.shape) else _NOT_CANONICAL

    return rule


def _bndcfgs(processor: Processor, value: int) -> str | None:
    if value & 0xFFC:
        return _RESERVED
    return None if canonical(value & ~0xFFF, processor.shape) else _NOT_CANONICAL


def _xss(processor: Processor, value: int) -> str | None:
    """Supervisor states: PT (8), PASID (10), CET (12:11), HDC, UINTR, LBR and HWP (16:13)."""
    return _RESERVED if value & ~0x1_FD00 else None


def _uintr_pd(processor: Processor, value: int) -> str | None:
    if value & 0x3F:
        return "it is not aligned to 64 bytes"
    return None if canonical(value, processor.shape) else _NOT_CANONICAL


def _uintr_misc(processor: Processor, value: int) -> str | None:
    return _RESERVED if value >> 40 else None


def _anything(processor: Processor, value: int) -> str | None:
    return None


_RULES: dict[int, Rule] = {
    Msr.IA32_EFER: _efer,
    Msr.IA32_PAT: _pat,
    Msr.IA32_FEATURE_CONTROL: _feature_control,
    Msr.IA32_APIC_BASE: _apic_base,
    Msr.IA32_MTRR_DEF_TYPE: _mtrr_def_type,
    Msr.IA32_SMM_MONITOR_CTL: _smm_monitor_ctl,
    Msr.IA32_U_CET: _cet,
    Msr.IA32_S_CET: _cet,
    **dict.fromkeys(range(Msr.IA32_PL0_SSP, Msr.IA32_PL3_SSP + 1), _shadow_stack),
    Msr.IA32_INTERRUPT_SSP_TABLE_ADDR: _aligned(0x7),
    Msr.IA32_BNDCFGS: _bndcfgs,
    Msr.IA32_XSS: _xss,
    Msr.IA32_UINTR_RR: _anything,
    Msr.IA32_UINTR_HANDLER: _aligned(0),
    Msr.IA32_UINTR_STACKADJUST: _aligned(0),
    Msr.IA32_UINTR_MISC: _uintr_misc,
    Msr.IA32_UINTR_PD: _uintr_pd,
    Msr.IA32_UINTR_TT: _aligned(0xE),
    **dict.fromkeys(range(Msr.IA32_FRED_RSP0, Msr.IA32_FRED_RSP3 + 1), _aligned(0x3F)),
    Msr.IA32_FRED_STKLVLS: _anything,
    **dict.fromkeys(range(Msr.IA32_FRED_SSP1, Msr.IA32_FRED_SSP3 + 1), _aligned(0x7)),
    Msr.IA32_FRED_CONFIG: _aligned(fred_config_reserved()),
    **dict.fromkeys(_ANY, _anything),
    **dict.fromkeys(_ADDRESSES, _aligned(0)),
}


def wrmsr_fault(processor: Processor, msr: int, value: int) -> str | None:
    """Return why WRMSR at CPL 0 would cause #GP(0), None if it would not.

    Parameters
    ----------
    processor : Processor
        Its shape says which MSRs and bits exist; its registers matter where a value is legal only
        in some mode.
    msr : int
        Address of the MSR. The x2APIC registers (800H-8FFH) are not judged here.
    value : int
        64 bits.
    """
    shape = processor.shape
    if msr in READ_ONLY:
        return "the MSR is read-only"
    feature = _NEEDS_CR4_BIT.get(msr)
    if feature is not None and not cr4_may_be_1(shape, feature):
        return _NOT_ON_THIS_CPU
    if msr in _DEFINED_BITS:
        return _RESERVED if value & ~_DEFINED_BITS[Msr(msr)] else None
    if msr in _RESERVED_BITS:
        return _RESERVED if value & _RESERVED_BITS[msr](shape) else None
    rule = _RULES.get(msr)
    if rule is None:
        return _NO_SUCH_MSR
    return rule(processor, value)
