"""Starting states: what a VMM writes into a fresh VMCS before its first VMLAUNCH."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from vtx.facts.controls import GROUPS, Entry, Exit1, Pin, Proc1, Proc2
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine import image
from vtx.machine.registers import Cr4

if TYPE_CHECKING:
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = ["fill_64bit_guest"]

# What the VMM would like; a CPU that does not have a control goes without.
_WANTED: dict[str, tuple[IntEnum, ...]] = {
    "pin": (Pin.EXTERNAL_INTERRUPT_EXITING, Pin.NMI_EXITING, Pin.VIRTUAL_NMIS),
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
#: Controls of the default1 class that software may set to 0 where TRUE capability MSRs exist.
_CHOSEN_0 = Proc1.CR3_LOAD_EXITING | Proc1.CR3_STORE_EXITING


def _controls(shape: Shape | None, group: str) -> int:
    """Return the control word nearest to what is wanted that the CPU allows."""
    wanted: int = sum(_WANTED[group])
    if shape is None:
        word = wanted | GROUPS[group].default1_mask
        return word & ~_CHOSEN_0 if group == "proc1" else word
    return (wanted | shape.allowed0(group)) & shape.allowed1(group)


def fill_64bit_guest(
    vmcs: Vmcs, shape: Shape | None, *, guest_base: int | None, user: bool, processor: int
) -> None:
    """Write controls, host state and the state of a 64-bit guest into a VMCS that is all 0.

    Parameters
    ----------
    vmcs : Vmcs
        What to fill.
    shape, guest_base, user, processor
        See :meth:`vtx.machine.vmcs.Vmcs.for_64bit_guest`.
    """
    _set_controls(vmcs, shape)
    if guest_base is None:
        guest_base = 0 if vmcs.proc2 & Proc2.ENABLE_EPT else image.GUEST_BASE
    guest = image.guest_fields(processor=processor, guest_base=guest_base, user=user)
    for field, value in (image.host_fields(processor) | guest).items():
        # IA32_PAT and IA32_EFER, say: a CPU without their controls keeps them across transitions.
        if shape is None or shape.field_exists(field):
            vmcs[field] = value
    if shape is not None:
        _fix_control_registers(vmcs, shape)
    # CR4.VMXE is the VMM's affair: the guest reads 0, and exits if it sets it.
    vmcs[Field.CR4_GUEST_HOST_MASK] = Cr4.VMXE
    vmcs[Field.CR0_READ_SHADOW] = vmcs[Field.GUEST_CR0]
    vmcs[Field.CR4_READ_SHADOW] = vmcs[Field.GUEST_CR4] & ~Cr4.VMXE
    vmcs[Field.VMCS_LINK_POINTER] = 0xFFFF_FFFF_FFFF_FFFF


def _set_controls(vmcs: Vmcs, shape: Shape | None) -> None:
    for group in ("pin", "proc1", "exit1", "entry"):
        vmcs[GROUPS[group].field] = _controls(shape, group)
    if vmcs.proc1 & Proc1.ACTIVATE_SECONDARY_CONTROLS:
        vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] = _controls(shape, "proc2")
        vmcs[Field.VPID] = 1 if vmcs.proc2 & Proc2.ENABLE_VPID else 0


def _fix_control_registers(vmcs: Vmcs, shape: Shape) -> None:
    """Bring CR0 and CR4 of guest and host within what the CPU fixes in VMX operation."""
    for register, fixed0, fixed1 in (
        ("CR0", Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1),
        ("CR4", Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1),
    ):
        for side in ("GUEST", "HOST"):
            field = Field[f"{side}_{register}"]
            vmcs[field] = (vmcs[field] | shape.msr(fixed0)) & shape.msr(fixed1)
