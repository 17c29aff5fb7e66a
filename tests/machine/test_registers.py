"""Registers: the state after reset, modes, and system registers as one value."""

from __future__ import annotations

import pytest

from vtx.facts.msrs import Msr
from vtx.machine.registers import (
    GPR_NAMES,
    SEGMENT_NAMES,
    Cr0,
    Cr4,
    Efer,
    MsrFile,
    Registers,
    Rflags,
    Segment,
    SystemRegisters,
    TableRegister,
)
from vtx.machine.shape import Shape


def test_state_after_reset():
    regs = Registers()
    assert regs.rip == 0xFFF0
    assert regs.rflags == 2
    assert regs.cr0 == 0x6000_0010
    assert regs.cs == Segment(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B)
    assert regs.dr6 == 0xFFFF_0FF0
    assert regs.dr7 == 0x400
    assert regs.xcr0 == 1
    assert regs.cpl == 0
    assert not regs.in_protected_mode


def test_general_purpose_registers_by_number():
    regs = Registers()
    for number, name in enumerate(GPR_NAMES):
        regs.set_gpr(number, number + (1 << 64) + 100)
        assert getattr(regs, name) == regs.gpr(number) == number + 100
    assert GPR_NAMES[4] == "rsp"
    assert regs.as_dict()["rsp"] == 104


@pytest.mark.parametrize("name", SystemRegisters._fields)
def test_system_registers_are_replaced_as_one_value(name: str):
    regs = Registers()
    before = regs.system
    value = {"gdtr": TableRegister(1, 2), "idtr": TableRegister(1, 2)}.get(name, 5)
    if name in SEGMENT_NAMES:
        value = Segment(8, 0x1000, 0xFFFF, 0x93)
    setattr(regs, name, value)
    assert getattr(regs, name) == value == getattr(regs.system, name)
    assert regs.system is not before
    others = [other for other in SystemRegisters._fields if other != name]
    assert all(getattr(regs, other) == getattr(before, other) for other in others)


def test_segments():
    segment = Segment(0x10, 0, 0xFFFF_FFFF, 0xC0F3)
    assert segment.usable
    assert segment.dpl == 3
    assert segment.type == 3
    assert not Segment().usable


@pytest.mark.parametrize(
    ("cr0", "rflags", "efer", "cs", "modes"),
    [
        (0, 2, 0, 0x9B, ()),
        (Cr0.PE, 2, 0, 0xC09B, ("in_protected_mode",)),
        (Cr0.PE, 2 | Rflags.VM, 0, 0xF3, ("in_virtual_8086_mode",)),
        (Cr0.PE | Cr0.PG, 2, Efer.LMA, 0xA09B,
         ("in_protected_mode", "in_ia32e_mode", "in_64bit_mode")),
        (Cr0.PE | Cr0.PG, 2, Efer.LMA, 0xC09B,
         ("in_protected_mode", "in_ia32e_mode", "in_compatibility_mode")),
    ],
)  # fmt: skip
def test_modes(cr0: int, rflags: int, efer: int, cs: int, modes: tuple[str, ...]):
    regs = Registers()
    regs.cr0, regs.rflags, regs.efer = cr0, rflags, efer
    regs.cs = Segment(8, 0, 0xFFFF_FFFF, cs)
    for mode in (
        "in_protected_mode", "in_virtual_8086_mode", "in_ia32e_mode", "in_64bit_mode",
        "in_compatibility_mode",
    ):  # fmt: skip
        assert getattr(regs, mode) == (mode in modes)


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "pae"),
    [
        (Cr0.PG, Cr4.PAE, 0, True),
        (Cr0.PG, 0, 0, False),
        (0, Cr4.PAE, 0, False),
        (Cr0.PG, Cr4.PAE, Efer.LMA, False),
    ],
)
def test_pae_paging(cr0: int, cr4: int, efer: int, pae: bool):
    regs = Registers()
    regs.cr0, regs.cr4, regs.efer = cr0, cr4, efer
    assert regs.uses_pae_paging is pae


def test_cpl_is_the_dpl_of_ss():
    regs = Registers()
    regs.ss = Segment(0x1B, 0, 0xFFFF_FFFF, 0xC0F3)
    assert regs.cpl == 3


def test_fs_and_gs_base_are_msrs():
    regs = Registers()
    regs.write_msr(Msr.IA32_FS_BASE, 0x1234)
    regs.write_msr(Msr.IA32_GS_BASE, 0x5678)
    assert (regs.fs.base, regs.gs.base) == (0x1234, 0x5678)
    assert regs.read_msr(Msr.IA32_FS_BASE) == 0x1234
    assert regs.read_msr(Msr.IA32_GS_BASE) == 0x5678
    assert regs.read_msr(Msr.IA32_LSTAR) == 0
    regs.write_msr(Msr.IA32_LSTAR, 7)
    assert regs.read_msr(Msr.IA32_LSTAR) == 7


@pytest.mark.parametrize(
    "write",
    [
        lambda msrs: msrs.__setitem__(1, 2),
        lambda msrs: msrs.update({1: 2}),
        lambda msrs: msrs.pop(0x277),
    ],
)
def test_msr_file_notices_writes(write):
    msrs = MsrFile({Msr.IA32_PAT: 6})
    msrs.changed = False
    write(msrs)
    assert msrs.changed


def test_host_may_execute_vmxon():
    shape = Shape.of("skylake_sp")
    regs = Registers.for_64bit_host(shape)
    assert regs.in_64bit_mode
    assert regs.cpl == 0
    assert regs.cr4 & Cr4.VMXE
    for value, fixed0, fixed1 in (
        (regs.cr0, Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1),
        (regs.cr4, Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1),
    ):
        assert not shape.msr(fixed0) & ~value
        assert not value & ~shape.msr(fixed1)
    assert regs.read_msr(Msr.IA32_FEATURE_CONTROL) == 5


def test_copy_shares_nothing():
    regs = Registers()
    twin = regs.copy()
    twin.rax, twin.cr3 = 1, 0x1000
    twin.msrs[5] = 6
    assert (regs.rax, regs.cr3, regs.msrs.get(5)) == (0, 0, None)
    assert regs.copy().as_dict() == regs.as_dict()


def test_repr_names_what_matters():
    assert "rip=0xfff0" in repr(Registers())
