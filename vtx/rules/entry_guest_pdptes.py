"""VM-entry checks on page-directory-pointer-table entries.

SDM, "Checks on Guest Page-Directory-Pointer-Table Entries": a guest that uses PAE paging takes its
four PDPTEs from the VMCS with EPT, and from memory at CR3 without it.
"""

from __future__ import annotations

from vtx.facts.controls import Entry, Proc2
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr0, Cr4
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import PDPTES
from vtx.rules.declaration import Checks, Live, only
from vtx.rules.limits import page_table_width
from vtx.rules.physical import read_u64

__all__ = ["PDPTE_RESERVED_LOW", "pdptes_in_memory"]

check = Checks()

_PRESENT = 1
#: Bits 2:1 and 8:5 of a present PDPTE must be 0.
PDPTE_RESERVED_LOW = 0x1E6
_FIELDS = (F.GUEST_PDPTE0, F.GUEST_PDPTE1, F.GUEST_PDPTE2, F.GUEST_PDPTE3)
_PAE_PAGING = (
    only(F.GUEST_CR0, Cr0.PG),
    only(F.GUEST_CR4, Cr4.PAE),
    Entry.IA32E_MODE_GUEST,
    Proc2.ENABLE_EPT,
)


def _uses_pae_paging(vmcs: Vmcs) -> bool:
    return bool(
        vmcs[F.GUEST_CR0] & Cr0.PG
        and vmcs[F.GUEST_CR4] & Cr4.PAE
        and not vmcs.entry & Entry.IA32E_MODE_GUEST
    )


def _are_in_memory(vmcs: Vmcs, processor: Processor) -> bool:
    return _uses_pae_paging(vmcs) and not vmcs.proc2 & Proc2.ENABLE_EPT


def pdptes_in_memory(processor: Processor, cr3: int) -> tuple[int, int, int, int]:
    """Return the four PDPTEs of the table at CR3[31:5], read as the processor reads them."""
    table = cr3 & 0xFFFF_FFE0
    first, second, third, fourth = (read_u64(processor, table + 8 * n) for n in range(4))
    return first, second, third, fourth


def _from_memory(vmcs: Vmcs, processor: Processor) -> tuple[int, ...]:
    """Return the PDPTEs that must be valid because they come from memory."""
    if not _are_in_memory(vmcs, processor):
        return ()
    return pdptes_in_memory(processor, vmcs[F.GUEST_CR3])


def _from_vmcs(vmcs: Vmcs) -> tuple[int, ...]:
    """Return the PDPTEs that must be valid because they come from the VMCS."""
    if not _uses_pae_paging(vmcs) or not vmcs.proc2 & Proc2.ENABLE_EPT:
        return ()
    return tuple(vmcs[field] for field in _FIELDS)


def _present_have_0(pdptes: tuple[int, ...], reserved: int) -> bool:
    return not any(entry & _PRESENT and entry & reserved for entry in pdptes)


@check(
    "guest.pdpte.memory.reserved_low",
    PDPTES,
    *_PAE_PAGING,
    only(F.GUEST_CR3, 0xFFFF_FFE0),
    applies=_are_in_memory,
    live=(Live.MEMORY,),
    note="a CPU may skip the check if PAE paging was in use before with the same CR3",
)
def pdptes_in_memory_have_reserved_bits_0(vmcs: Vmcs, processor: Processor) -> bool:
    """With PAE paging and without EPT, bits 2:1 and 8:5 are 0 in each PDPTE at CR3[31:5] that is
    present."""
    return _present_have_0(_from_memory(vmcs, processor), PDPTE_RESERVED_LOW)


@check(
    "guest.pdpte.memory.reserved_high",
    PDPTES,
    *_PAE_PAGING,
    only(F.GUEST_CR3, 0xFFFF_FFE0),
    applies=_are_in_memory,
    live=(Live.MEMORY,),
    capability=("MAXPHYADDR", "IA32_TME_ACTIVATE"),
)
def pdptes_in_memory_are_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """With PAE paging and without EPT, no bit at or above MAXPHYADDR is 1 in a PDPTE at CR3[31:5]
    that is present."""
    reserved = -1 << page_table_width(processor.shape)
    return _present_have_0(_from_memory(vmcs, processor), reserved)


@check("guest.pdpte.vmcs.reserved_low", PDPTES, *_PAE_PAGING, *_FIELDS)
def pdptes_in_the_vmcs_have_reserved_bits_0(vmcs: Vmcs, processor: Processor) -> bool:
    """With PAE paging and EPT, bits 2:1 and 8:5 are 0 in each guest PDPTE field with bit 0 set."""
    return _present_have_0(_from_vmcs(vmcs), PDPTE_RESERVED_LOW)


@check(
    "guest.pdpte.vmcs.reserved_high",
    PDPTES,
    *_PAE_PAGING,
    *_FIELDS,
    capability=("MAXPHYADDR",),
)
def pdptes_in_the_vmcs_are_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
    """With PAE paging and EPT, no bit at or above MAXPHYADDR is 1 in a guest PDPTE field whose bit
    0 is 1."""
    return _present_have_0(_from_vmcs(vmcs), -1 << processor.shape.maxphyaddr)
