"""Keeping what translation depends on equal to the guest's registers.

VM entry and VM exit set the whole context; while the guest runs, whoever changes a register that
paging looks at calls :func:`refresh`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.msrs import Msr

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["refresh"]


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
