"""What address translation depends on, before and after a transition.

The guest's context stays as the guest left it until the next VM entry of the same VMCS; only what
the VMM changed in between is brought up to date. In VMX root operation a context is made when an
instruction needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import GuestFault
from vtx.facts.controls import Proc2, Proc3
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.mmu import Access, Context, WalkStatus
from vtx.machine.registers import Cr4

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["CONTEXT_FIELDS", "SMAP_OR_PKE", "enter_root", "leave_root", "root_context", "translate"]

_EFER, _PKRS = int(Msr.IA32_EFER), int(Msr.IA32_PKRS)
#: What makes a translation depend on RFLAGS.AC and on PKRU.
SMAP_OR_PKE = Cr4.SMAP | Cr4.PKE
_ENABLE_VPID, _ENABLE_PML = int(Proc2.ENABLE_VPID), int(Proc2.ENABLE_PML)
_GP, _PF = 13, 14

#: Controls that translation depends on.
CONTEXT_FIELDS = frozenset(
    {
        Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
        Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
        Field.EPT_POINTER,
        Field.VPID,
        Field.PML_ADDRESS,
        Field.APIC_ACCESS_ADDRESS,
        Field.PML_INDEX,
        Field.TERTIARY_PROCESSOR_BASED_CONTROLS,
        Field.SUB_PAGE_PERMISSION_TABLE_POINTER,
        Field.HLAT_POINTER,
        Field.HLAT_PREFIX_SIZE,
        Field.GUEST_PDPTE0,
        Field.GUEST_PDPTE1,
        Field.GUEST_PDPTE2,
        Field.GUEST_PDPTE3,
    }
)


def leave_root(processor: Processor, controls: int, *, fresh: bool) -> None:
    """Make the context that of the guest whose state was loaded, at the end of a VM entry.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation, its registers loaded.
    controls : int
        Secondary processor-based controls as they act.
    fresh : bool
        Registers or controls may differ from those at the last exit of this VMCS.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    if fresh or processor.context_vmcs is not vmcs:
        _fill(processor, vmcs)
        processor.context_vmcs = vmcs
    elif processor.regs.cr4 & SMAP_OR_PKE:
        # RFLAGS.AC and PKRU are not among what makes an entry a fresh one.
        processor.context.rflags = processor.regs.rflags
        processor.context.pkru = processor.regs.pkru
    if not controls & _ENABLE_VPID:
        processor.mmu.flush_vpid(0)


def _fill(processor: Processor, vmcs: Vmcs) -> None:
    regs = processor.regs
    context = processor.context
    context.cr0, context.cr3, context.cr4 = regs.cr0, regs.cr3, regs.cr4
    context.efer = regs.msrs.get(_EFER, 0)
    context.rflags = regs.rflags
    context.cpl = regs.cpl
    context.pkru = regs.pkru
    context.pkrs = regs.msrs.get(_PKRS, 0) & 0xFFFF_FFFF
    context.pdptes = regs.pdptes
    controls = vmcs.proc2
    context.vpid = vmcs[Field.VPID] if controls & Proc2.ENABLE_VPID else 0
    context.eptp = vmcs[Field.EPT_POINTER] if controls & Proc2.ENABLE_EPT else None
    context.mode_based_execute = bool(controls & Proc2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)
    context.pml_address = vmcs[Field.PML_ADDRESS] if controls & Proc2.ENABLE_PML else None
    context.pml_index = vmcs[Field.PML_INDEX]
    virtualized = controls & Proc2.VIRTUALIZE_APIC_ACCESSES
    context.apic_access = vmcs[Field.APIC_ACCESS_ADDRESS] if virtualized else None
    _fill_extensions(context, vmcs)


def _fill_extensions(context: Context, vmcs: Vmcs) -> None:
    """Sub-page permissions, HLAT, and what EPT leaves say of paging structures."""
    spp = vmcs.proc2 & Proc2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT
    context.sub_page_table = vmcs[Field.SUB_PAGE_PERMISSION_TABLE_POINTER] if spp else None
    controls = vmcs.proc3
    context.paging_write = bool(controls & Proc3.EPT_PAGING_WRITE_CONTROL)
    context.verify_guest_paging = bool(controls & Proc3.GUEST_PAGING_VERIFICATION)
    hlat = controls & Proc3.ENABLE_HLAT
    context.hlat_pointer = vmcs[Field.HLAT_POINTER] if hlat else None
    context.hlat_prefix_size = vmcs[Field.HLAT_PREFIX_SIZE] if hlat else 0


def enter_root(processor: Processor, controls: int) -> None:
    """Do what a VM exit does to translation: without VPIDs, forget VPID 0; save the PML index.

    Parameters
    ----------
    processor : Processor
        In VMX root operation.
    controls : int
        Secondary processor-based controls as they act.
    """
    if not controls & _ENABLE_VPID:
        processor.mmu.flush_vpid(0)
    vmcs = processor.vmcs
    if controls & _ENABLE_PML and vmcs is not None and processor.context_vmcs is vmcs:
        vmcs.values[Field.PML_INDEX] = processor.context.pml_index


def root_context(processor: Processor) -> Context:
    """Return the context of VMX root operation: the host's paging, no EPT, VPID 0."""
    regs = processor.regs
    return Context(
        cr0=regs.cr0,
        cr3=regs.cr3,
        cr4=regs.cr4,
        efer=regs.efer,
        rflags=regs.rflags,
        cpl=regs.cpl,
        pdptes=regs.pdptes,
        pkru=regs.pkru,
        pkrs=regs.msrs.get(_PKRS, 0),
    )


def translate(processor: Processor, linear: int, *, write: bool) -> int:
    """Return the host-physical address of an operand in VMX root operation.

    Raises
    ------
    GuestFault
        #PF, or #GP(0) where the linear address is not canonical.
    """
    access = Access.STORE if write else Access.LOAD
    walk = processor.mmu.translate(root_context(processor), linear, access)
    if walk.status is WalkStatus.OK:
        return walk.hpa
    if walk.status is WalkStatus.PAGE_FAULT:
        raise GuestFault(_PF, walk.error_code, f"at {linear:#x}", address=linear)
    raise GuestFault(_GP, 0, f"operand at {linear:#x}: {walk.explain()}")
