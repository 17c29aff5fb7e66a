"""What WRMSR accepts, and so what an MSR area may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vtx.facts.msrs import Msr
from vtx.machine.shape import Shape
from vtx.rules.check import check_msr_load
from vtx.rules.msr_values import MISSING, READ_ONLY, wrmsr_fault

from .entry_support import EVERYTHING, NOT_CANONICAL, processor, with_msr, without_features

CANONICAL = 2**64 - 2**47
X2APIC = replace(EVERYTHING, features=EVERYTHING.features | {"x2apic"})
ADDRESSES = (
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
    Msr.IA32_LSTAR,
    Msr.IA32_CSTAR,
    Msr.IA32_FS_BASE,
    Msr.IA32_GS_BASE,
    Msr.IA32_KERNEL_GS_BASE,
    Msr.IA32_UINTR_HANDLER,
    Msr.IA32_UINTR_STACKADJUST,
)
ACCEPTED = [
    (Msr.IA32_TIME_STAMP_COUNTER, 2**64 - 1),
    (Msr.IA32_STAR, 2**64 - 1),
    (Msr.IA32_EFER, 0xD01),
    (Msr.IA32_PAT, 0x0706_0504_0100_0706),
    (Msr.IA32_DEBUGCTL, 0x7FC3 | 1 << 15 | 1 << 2),
    (Msr.IA32_TSC_AUX, 2**32 - 1),
    (Msr.IA32_UMWAIT_CONTROL, 0xFFFF_FFFD),
    (Msr.IA32_PKRS, 2**32 - 1),
    (Msr.IA32_SPEC_CTRL, 0x5FF),
    (Msr.IA32_PRED_CMD, 1),
    (Msr.IA32_APIC_BASE, 0xFEE0_0900),
    (Msr.IA32_MTRR_DEF_TYPE, 0xC06),
    (Msr.IA32_S_CET, CANONICAL | 0x43F),
    (Msr.IA32_PL0_SSP, CANONICAL | 4),
    (Msr.IA32_INTERRUPT_SSP_TABLE_ADDR, CANONICAL | 8),
    (Msr.IA32_BNDCFGS, CANONICAL | 3),
    (Msr.IA32_XSS, 0x1_FD00),
    (Msr.IA32_UINTR_RR, 2**64 - 1),
    (Msr.IA32_UINTR_MISC, 2**40 - 1),
    (Msr.IA32_UINTR_PD, CANONICAL | 0x40),
    (Msr.IA32_UINTR_TT, CANONICAL | 0x11),
    (Msr.IA32_FRED_RSP0, CANONICAL | 0x40),
    (Msr.IA32_FRED_SSP1, CANONICAL | 8),
    (Msr.IA32_FRED_STKLVLS, 2**64 - 1),
    (Msr.IA32_FRED_CONFIG, CANONICAL | 0x7C3),
    *((msr, CANONICAL) for msr in ADDRESSES),
]
REFUSED = [
    (Msr.IA32_EFER, 0xD02),
    (Msr.IA32_EFER, 0xC01),
    (Msr.IA32_PAT, 0x0706_0502_0100_0706),
    (Msr.IA32_PAT, 0x8006_0500_0100_0706),
    (Msr.IA32_DEBUGCTL, 1 << 3),
    (Msr.IA32_TSC_AUX, 2**32),
    (Msr.IA32_UMWAIT_CONTROL, 2),
    (Msr.IA32_PKRS, 2**32),
    (Msr.IA32_SPEC_CTRL, 1 << 9),
    (Msr.IA32_PRED_CMD, 2),
    (Msr.IA32_FLUSH_CMD, 2),
    (Msr.IA32_FEATURE_CONTROL, 5),
    (Msr.IA32_APIC_BASE, 1 << 46),
    (Msr.IA32_APIC_BASE, 1),
    (Msr.IA32_APIC_BASE, 0xFEE0_0C00),
    (Msr.IA32_MTRR_DEF_TYPE, 0x100),
    (Msr.IA32_MTRR_DEF_TYPE, 2),
    (Msr.IA32_SMM_MONITOR_CTL, 1),
    (Msr.IA32_S_CET, 1 << 6),
    (Msr.IA32_U_CET, 3 << 10),
    (Msr.IA32_PL3_SSP, 2),
    (Msr.IA32_PL0_SSP, NOT_CANONICAL),
    (Msr.IA32_U_CET, NOT_CANONICAL),
    (Msr.IA32_INTERRUPT_SSP_TABLE_ADDR, 4),
    (Msr.IA32_BNDCFGS, 4),
    (Msr.IA32_BNDCFGS, NOT_CANONICAL),
    (Msr.IA32_XSS, 1),
    (Msr.IA32_UINTR_MISC, 2**40),
    (Msr.IA32_UINTR_PD, 0x20),
    (Msr.IA32_UINTR_PD, NOT_CANONICAL),
    (Msr.IA32_UINTR_TT, 2),
    (Msr.IA32_FRED_RSP3, 0x20),
    (Msr.IA32_FRED_SSP3, 4),
    (Msr.IA32_FRED_CONFIG, 4),
    (Msr.IA32_PERF_GLOBAL_CTRL, 1 << 47),
    (Msr.IA32_RTIT_CTL, 1 << 18),
    (Msr.IA32_LBR_CTL, 1 << 4),
    (Msr.IA32_SMBASE, 0),
    (Msr.IA32_MTRRCAP, 0),
    (Msr.IA32_VMX_BASIC, 0),
    (0x12345, 0),
    *((msr, NOT_CANONICAL) for msr in ADDRESSES),
]


@pytest.mark.parametrize(("msr", "value"), ACCEPTED)
def test_accepted(msr: int, value: int) -> None:
    assert wrmsr_fault(processor(), msr, value) is None


@pytest.mark.parametrize(("msr", "value"), REFUSED)
def test_refused(msr: int, value: int) -> None:
    assert wrmsr_fault(processor(), msr, value)


@pytest.mark.parametrize("msr", Msr, ids=lambda msr: msr.name)
def test_every_msr_of_the_table_is_known(msr: Msr) -> None:
    cpu = processor(smm=True)
    cpu.regs.msrs[Msr.IA32_FEATURE_CONTROL] = 0
    value = cpu.regs.efer if msr == Msr.IA32_EFER else 0
    why = wrmsr_fault(cpu, msr, value)
    if msr in READ_ONLY:
        assert why == "the MSR is read-only"
    elif 0x800 <= msr < 0x900:
        assert why in MISSING
    else:
        assert why is None


@pytest.mark.parametrize(
    ("msr", "bit"),
    [
        (Msr.IA32_S_CET, 23),
        (Msr.IA32_PL0_SSP, 23),
        (Msr.IA32_PKRS, 24),
        (Msr.IA32_UINTR_RR, 25),
        (Msr.IA32_FRED_CONFIG, 32),
        (Msr.IA32_XSS, 18),
    ],
)
def test_msr_comes_with_its_feature(msr: Msr, bit: int) -> None:
    assert wrmsr_fault(processor(), msr, 0) is None
    lacking = with_msr(Msr.IA32_VMX_CR4_FIXED1, clear=1 << bit)
    assert wrmsr_fault(processor(lacking), msr, 0) in MISSING


@pytest.mark.parametrize(
    ("shape", "msr", "value"),
    [
        (without_features("nx"), Msr.IA32_EFER, 0xD00),
        (without_features("rtm"), Msr.IA32_DEBUGCTL, 1 << 15),
        (without_features("bus_lock_detect"), Msr.IA32_DEBUGCTL, 1 << 2),
        (
            replace(EVERYTHING, features=EVERYTHING.features | {"general_counters_4"}),
            Msr.IA32_PERF_GLOBAL_CTRL,
            1 << 7,
        ),
        (
            replace(EVERYTHING, features=EVERYTHING.features | {"fixed_counters_3"}),
            Msr.IA32_PERF_GLOBAL_CTRL,
            1 << 35,
        ),
    ],
    ids=lambda value: "" if isinstance(value, Shape) else None,
)
def test_bits_come_with_their_features(shape: Shape, msr: Msr, value: int) -> None:
    assert wrmsr_fault(processor(), msr, value) is None
    assert wrmsr_fault(processor(shape), msr, value)


def test_lme_may_change_while_paging_is_off() -> None:
    cpu = processor()
    assert wrmsr_fault(cpu, Msr.IA32_EFER, 0xC00) == "it changes LME while paging is on"
    cpu.regs.cr0 &= ~(1 << 31)
    assert wrmsr_fault(cpu, Msr.IA32_EFER, 0xC00) is None


def test_feature_control_is_writable_until_it_is_locked() -> None:
    cpu = processor()
    cpu.regs.msrs[Msr.IA32_FEATURE_CONTROL] = 4
    assert wrmsr_fault(cpu, Msr.IA32_FEATURE_CONTROL, 5) is None


@pytest.mark.parametrize(
    ("before", "after", "accepted"),
    [
        (0x800, 0xC00, True),
        (0xC00, 0x800, False),
        (0xC00, 0x000, True),
        (0x000, 0xC00, False),
        (0x000, 0x800, True),
        (0x800, 0x400, False),
    ],
)
def test_modes_of_the_local_apic(before: int, after: int, accepted: bool) -> None:
    cpu = processor(X2APIC)
    cpu.regs.msrs[Msr.IA32_APIC_BASE] = 0xFEE0_0000 | before
    why = wrmsr_fault(cpu, Msr.IA32_APIC_BASE, 0xFEE0_0000 | after)
    assert (why is None) == accepted


def test_smm_monitor_control_is_writable_in_smm() -> None:
    cpu = processor(smm=True)
    assert wrmsr_fault(cpu, Msr.IA32_SMM_MONITOR_CTL, 0x1000_0005) is None
    assert wrmsr_fault(cpu, Msr.IA32_SMM_MONITOR_CTL, 2)


# Entries of the MSR-load areas


@pytest.mark.parametrize(
    ("low", "value", "name"),
    [
        (Msr.IA32_PAT, 0x0007_0406_0007_0406, None),
        (Msr.IA32_KERNEL_GS_BASE, CANONICAL, None),
        (Msr.IA32_FS_BASE, 0, "msrload.fs_base"),
        (Msr.IA32_GS_BASE, 0, "msrload.gs_base"),
        (0x800, 0, "msrload.x2apic"),
        (0x8FF, 0, "msrload.x2apic"),
        (0x900, 0, "msrload.wrmsr_would_fault"),
        (Msr.IA32_SMM_MONITOR_CTL, 0, "msrload.smm_only"),
        (Msr.IA32_SMBASE, 0, "msrload.smbase"),
        (Msr.IA32_BIOS_UPDT_TRIG, 0, "msrload.model_specific"),
        (1 << 32 | Msr.IA32_PAT, 0, "msrload.reserved"),
        (Msr.IA32_PAT, 2, "msrload.wrmsr_would_fault"),
        (Msr.IA32_EFER, 0xD00, None),
        (Msr.IA32_EFER, 0x900, None),
        (Msr.IA32_EFER, 0x800, "msrload.wrmsr_would_fault"),
    ],
)
def test_entry_of_an_msr_area(low: int, value: int, name: str | None) -> None:
    broken = check_msr_load(processor(), 1, low, value)
    assert (broken.id if broken else None) == name


def test_smm_only_msr_may_be_loaded_in_smm() -> None:
    assert check_msr_load(processor(smm=True), 1, Msr.IA32_SMM_MONITOR_CTL, 1) is None
