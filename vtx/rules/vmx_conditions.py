"""Conditions that several VMX instructions test: mode, addresses, encodings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32
from vtx.machine.registers import Cr0, Rflags
from vtx.rules.limits import physical_width
from vtx.rules.physical import read_u32

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["bad_address", "region_word", "without_vmx_instructions"]

_PE = int(Cr0.PE)
_VM = int(Rflags.VM)


def without_vmx_instructions(processor: Processor) -> bool:
    """Tell whether the mode has no VMX instructions.

    These are real-address mode, virtual-8086 mode and compatibility mode.
    """
    regs = processor.regs
    return (
        not regs.cr0 & _PE
        or bool(regs.rflags & _VM)
        or (not regs.cs.access_rights & 0x2000 and regs.in_ia32e_mode)
    )


def bad_address(processor: Processor, address: int) -> bool:
    """Tell whether the address of a VMCS is misaligned or beyond the physical-address width."""
    return bool(address & 0xFFF or address >> physical_width(processor.shape))


def region_word(processor: Processor, address: int) -> int:
    """Return the first word of the region at `address`: revision identifier and shadow bit."""
    return read_u32(processor, address) & MASK32
