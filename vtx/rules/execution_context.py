"""What translation depends on: kept equal to the guest's registers, and the width of addresses.

VM entry and VM exit set the whole context; while the guest runs, whoever changes a register that
paging looks at calls :func:`refresh`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import is_canonical
from vtx.facts.msrs import Msr
from vtx.machine.registers import Cr4

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["is_linear_address", "refresh", "refresh_privilege"]


_LA57 = int(Cr4.LA57)


def is_linear_address(processor: Processor, address: int) -> bool:
    """Tell whether a 64-bit address is canonical for the paging mode: 57 bits with CR4.LA57."""
    # Most addresses are in the lower half of the narrower space.
    return not address >> 47 or is_canonical(
        address, 57 if processor.regs.system.cr4 & _LA57 else 48
    )


def refresh(processor: Processor) -> None:
    """Copy the registers that guest paging depends on into the processor's context.

    Cached translations stay as they are: invalidation is the instruction's business.
    """
    regs, context = processor.regs, processor.context
    context.cr0 = regs.cr0
    context.cr3 = regs.cr3
    context.cr4 = regs.cr4
    context.efer = regs.efer
    context.rflags = regs.rflags
    context.cpl = regs.cpl
    context.pkru = regs.pkru
    context.pkrs = regs.msrs.get(Msr.IA32_PKRS, 0)
    if regs.uses_pae_paging:
        context.pdptes = regs.pdptes


def refresh_privilege(processor: Processor) -> None:
    """Copy what events and returns change: the privilege level, and RFLAGS for its AC flag."""
    regs = processor.regs
    processor.context.set_privilege(regs.cpl, regs.rflags)
