"""Processors on which transitions can be made one by one, with every field and control there is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from vtx.cpu import Cpu, Machine
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field, mask
from vtx.facts.msrs import Msr
from vtx.machine.exit_information import ExitInformation
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs
from vtx.rules.transitions import load_guest_state, vm_exit
from vtx.rules.transitions_context import leave_root
from vtx.rules.transitions_synced import Synced

__all__ = ["guest_fields", "leave", "loaded", "numbered", "reenter", "shape_of_everything"]

_ALL = 0xFFFF_FFFF_FFFF_FFFF
_CONTROL_MSRS = (
    "IA32_VMX_PINBASED_CTLS", "IA32_VMX_PROCBASED_CTLS", "IA32_VMX_PROCBASED_CTLS2",
    "IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_EXIT_CTLS", "IA32_VMX_EXIT_CTLS2",
    "IA32_VMX_ENTRY_CTLS", "IA32_VMX_TRUE_PINBASED_CTLS", "IA32_VMX_TRUE_PROCBASED_CTLS",
    "IA32_VMX_TRUE_EXIT_CTLS", "IA32_VMX_TRUE_ENTRY_CTLS", "IA32_VMX_VMFUNC",
)  # fmt: skip


@cache
def shape_of_everything() -> Shape:
    """Return a CPU on which every control may be 1 and every field exists."""
    shape = Shape.of("sapphire_rapids")
    msrs = dict(shape.msrs)
    for name in _CONTROL_MSRS:
        only_allowed1 = name in ("IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_EXIT_CTLS2")
        msrs[Msr[name]] = _ALL if only_allowed1 else 0xFFFF_FFFF_0000_0000
    msrs[Msr.IA32_VMX_VMFUNC] = _ALL
    return replace(shape, msrs=msrs, features=shape.features | {"fred"})


def loaded(shape: Shape | None = None, **fields: int) -> Cpu:
    """Return a CPU with a current VMCS whose guest was not entered."""
    cpu = Machine(shape or shape_of_everything(), memory_bytes=2 << 30).cpus[0]
    cpu.vmxon()
    cpu.vmptrld(cpu.new_region())
    assert cpu.vmcs is not None
    for field, value in Vmcs.for_64bit_guest(cpu.shape).update(**fields).fields():
        cpu.vmcs[field] = value
    return cpu


def reenter(cpu: Cpu) -> None:
    """Make the part of a VM entry that loads state, without its checks."""
    load_guest_state(cpu)
    assert cpu.vmcs is not None
    known = cpu.vmcs.synced
    assert isinstance(known, Synced)
    leave_root(cpu, known.proc2, fresh=known.fresh)
    cpu.vmcs.dirty.clear()


def leave(cpu: Cpu, reason: ExitReason = ExitReason.CPUID, **information: Any) -> None:
    """Make a VM exit."""
    vm_exit(cpu, ExitInformation(reason, **information))


def numbered(field: Field) -> int:
    """Return a value that no other field has, as wide as the field allows."""
    return (0x0101_0101_0101_0101 * (1 + list(FIELDS).index(field) % 250) ^ field) & mask(field)


def guest_fields() -> list[Field]:
    """Return the guest-state fields."""
    return [field for field, info in FIELDS.items() if info.area is Area.GUEST]
