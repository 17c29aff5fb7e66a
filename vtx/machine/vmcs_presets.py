"""Starting states: what a VMM writes into a fresh VMCS before its first VMLAUNCH."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING

from vtx.facts.controls import GROUPS, Entry, Exit1, Pin, Proc1, Proc2
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine import layout
from vtx.machine.registers import UNUSABLE, Cr0, Cr4, Efer

if TYPE_CHECKING:
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = ["fill_64bit_guest"]

# What the VMM would like; a CPU that does not have a control goes without.
_WANTED: dict[str, tuple[IntEnum, ...]] = {
    "pin": (Pin.EXTERNAL_INTERRUPT_EXITING, Pin.NMI_EXITING),
    "proc1": (
        Proc1.HLT_EXITING,
        Proc1.UNCONDITIONAL_IO_EXITING,
        Proc1.ACTIVATE_SECONDARY_CONTROLS,
    ),
    "proc2": (
        Proc2.ENABLE_EPT,
        Proc2.ENABLE_VPID,
        Proc2.ENABLE_RDTSCP,
        Proc2.ENABLE_INVPCID,
        Proc2.ENABLE_XSAVES_XRSTORS,
    ),
    "exit1": (
        Exit1.SAVE_DEBUG_CONTROLS,
        Exit1.HOST_ADDRESS_SPACE_SIZE,
        Exit1.ACKNOWLEDGE_INTERRUPT_ON_EXIT,
        Exit1.SAVE_IA32_PAT,
        Exit1.LOAD_IA32_PAT,
        Exit1.SAVE_IA32_EFER,
        Exit1.LOAD_IA32_EFER,
    ),
    "entry": (
        Entry.LOAD_DEBUG_CONTROLS,
        Entry.IA32E_MODE_GUEST,
        Entry.LOAD_IA32_PAT,
        Entry.LOAD_IA32_EFER,
    ),
}
#: Controls of the default1 class that are 0 on every CPU that lets software choose: what they
#: do is a cost, not a need.
_CHOSEN_0 = Proc1.CR3_LOAD_EXITING | Proc1.CR3_STORE_EXITING

_EFER = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE
_CR0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
_PAT = 0x0007_0406_0007_0406
_CODE_64 = 0xA09B
_DATA = 0xC093
_BUSY_TSS = 0x8B


def _controls(shape: Shape | None, group: str) -> int:
    """Return the control word nearest to what is wanted that the CPU allows."""
    wanted: int = sum(_WANTED[group])
    if shape is None:
        word = wanted | GROUPS[group].default1_mask
        return word & ~_CHOSEN_0 if group == "proc1" else word
    return (wanted | shape.allowed0(group)) & shape.allowed1(group)


def fill_64bit_guest(vmcs: Vmcs, shape: Shape | None, base: int) -> None:
    """Write controls, host state and the state of a 64-bit guest at CPL 0 into `vmcs`.

    Parameters
    ----------
    vmcs : Vmcs
        A VMCS whose fields are all 0.
    shape : Shape or None
        See :meth:`vtx.machine.vmcs.Vmcs.for_64bit_guest`.
    base : int
        Guest-physical and linear address of the guest's image.
    """
    _set_controls(vmcs, shape)
    fixed0 = [
        shape.msr(m) if shape else 0 for m in (Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR4_FIXED0)
    ]
    cr0 = _CR0 | fixed0[0]
    cr4 = Cr4.PAE | Cr4.PGE | Cr4.VMXE | fixed0[1]
    _set(vmcs, _host_state(cr0, cr4))
    _set(vmcs, _guest_registers(cr0, cr4, base))
    _set(vmcs, _guest_segments(base))


def _set(vmcs: Vmcs, fields: Iterable[tuple[Field, int]]) -> None:
    for field, value in fields:
        vmcs[field] = value


def _set_controls(vmcs: Vmcs, shape: Shape | None) -> None:
    for group in ("pin", "proc1", "exit1", "entry"):
        vmcs[GROUPS[group].field] = _controls(shape, group)
    if vmcs.proc1 & Proc1.ACTIVATE_SECONDARY_CONTROLS:
        vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] = _controls(shape, "proc2")
        vmcs[Field.VPID] = 1 if vmcs.proc2 & Proc2.ENABLE_VPID else 0
    # CR4.VMXE is the VMM's affair: the guest reads 0 and exits when it sets it.
    vmcs[Field.CR4_GUEST_HOST_MASK] = Cr4.VMXE
    vmcs[Field.VMCS_LINK_POINTER] = 0xFFFF_FFFF_FFFF_FFFF


def _host_state(cr0: int, cr4: int) -> list[tuple[Field, int]]:
    return [
        (Field.HOST_CR0, cr0),
        (Field.HOST_CR3, layout.HOST_CR3),
        (Field.HOST_CR4, cr4),
        (Field.HOST_CS_SELECTOR, layout.CODE_SELECTOR),
        (Field.HOST_SS_SELECTOR, layout.DATA_SELECTOR),
        (Field.HOST_TR_SELECTOR, layout.TSS_SELECTOR),
        (Field.HOST_TR_BASE, layout.HOST_TSS),
        (Field.HOST_GDTR_BASE, layout.HOST_GDT),
        (Field.HOST_IDTR_BASE, layout.HOST_IDT),
        (Field.HOST_RSP, layout.HOST_STACK_TOP),
        (Field.HOST_RIP, layout.HOST_RIP),
        (Field.HOST_IA32_EFER, _EFER),
        (Field.HOST_IA32_PAT, _PAT),
    ]


def _guest_registers(cr0: int, cr4: int, base: int) -> list[tuple[Field, int]]:
    return [
        (Field.GUEST_CR0, cr0),
        (Field.GUEST_CR3, base + layout.GUEST_CR3),
        (Field.GUEST_CR4, cr4),
        (Field.CR0_READ_SHADOW, cr0),
        (Field.CR4_READ_SHADOW, cr4 & ~Cr4.VMXE),
        (Field.GUEST_DR7, 0x400),
        (Field.GUEST_RIP, base + layout.GUEST_ENTRY),
        (Field.GUEST_RSP, base + layout.GUEST_STACK_TOP),
        (Field.GUEST_RFLAGS, 0x2),
        (Field.GUEST_IA32_EFER, _EFER),
        (Field.GUEST_IA32_PAT, _PAT),
        (Field.GUEST_GDTR_BASE, base + layout.GDT_ADDRESS),
        (Field.GUEST_GDTR_LIMIT, layout.GDT_BYTES - 1),
        (Field.GUEST_IDTR_BASE, base + layout.IDT_ADDRESS),
        (Field.GUEST_IDTR_LIMIT, layout.IDT_BYTES - 1),
    ]


def _guest_segments(base: int) -> list[tuple[Field, int]]:
    flat = 0xFFFF_FFFF
    rows = {
        "CS": (layout.CODE_SELECTOR, 0, flat, _CODE_64),
        "TR": (layout.TSS_SELECTOR, base + layout.TSS_ADDRESS, layout.TSS_BYTES - 1, _BUSY_TSS),
        "LDTR": (0, 0, 0, UNUSABLE),
    }
    rows |= {
        name: (layout.DATA_SELECTOR, 0, flat, _DATA) for name in ("ES", "SS", "DS", "FS", "GS")
    }
    return [
        (Field[f"GUEST_{name}_{part}"], value)
        for name, row in rows.items()
        for part, value in zip(("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS"), row, strict=True)
    ]
