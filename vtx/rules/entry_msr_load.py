"""Checks on the entries of the VM-entry MSR-load area (SDM, "Loading MSRs").

They look at one entry of the area at a time, after guest state has been loaded; the first entry
that fails ends the VM entry, and its number (from 1) is the exit qualification. The VM-exit
MSR-load area follows the same rules; there a failure is a VMX abort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vtx.bits import bits
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import MSR_LOAD
from vtx.rules.declaration import Check, Checks, Live
from vtx.rules.limits import physical_width
from vtx.rules.msr_values import wrmsr_fault
from vtx.rules.physical import read_u64

__all__ = ["MSR_LOAD_RULES", "MsrEntry"]

check = Checks()

_ENTRY_BYTES = 16
_X2APIC_PAGE = 0x8
_ONLY_IN_SMM = frozenset({Msr.IA32_SMM_MONITOR_CTL})
#: Microcode update and its signature: this model refuses them, as nested KVM does.
_REFUSED_BY_THIS_MODEL = frozenset({Msr.IA32_BIOS_UPDT_TRIG, Msr.IA32_BIOS_SIGN_ID})


class MsrEntry(NamedTuple):
    """One entry of an MSR area: 16 bytes in memory.

    Attributes
    ----------
    low : int
        Bytes 7:0: the MSR's address in bits 31:0; bits 63:32 are reserved.
    value : int
        Bytes 15:8.
    """

    low: int
    value: int

    @property
    def msr(self) -> int:
        """Address of the MSR."""
        return self.low & 0xFFFF_FFFF


EntryRule = Callable[[MsrEntry, Processor], bool]

#: The checks with what each says about one entry, in the manual's order.
MSR_LOAD_RULES: list[tuple[Check, EntryRule]] = []


def _area_can_be_read(vmcs: Vmcs, processor: Processor) -> bool:
    """Tell whether there is an area, and its address passed the checks on controls."""
    count, start = vmcs[F.VM_ENTRY_MSR_LOAD_COUNT], vmcs[F.VM_ENTRY_MSR_LOAD_ADDRESS]
    last = start + _ENTRY_BYTES * count - 1
    return bool(count) and not start & 0xF and not last >> physical_width(processor.shape)


def _entries(vmcs: Vmcs, processor: Processor) -> list[MsrEntry]:
    """Return the VM-entry MSR-load area, up to the number of entries that the CPU recommends.

    With more entries than 512 * (IA32_VMX_MISC[27:25] + 1) behaviour is undefined.
    """
    if not _area_can_be_read(vmcs, processor):
        return []
    start = vmcs[F.VM_ENTRY_MSR_LOAD_ADDRESS]
    recommended = 512 * (bits(processor.shape.msr(Msr.IA32_VMX_MISC), 27, 25) + 1)
    count = min(vmcs[F.VM_ENTRY_MSR_LOAD_COUNT], recommended)
    addresses = (start + _ENTRY_BYTES * n for n in range(count))
    return [MsrEntry(read_u64(processor, a), read_u64(processor, a + 8)) for a in addresses]


def _entry_check(
    name: str, *, live: tuple[Live, ...] = (), capability: tuple[str, ...] = ()
) -> Callable[[EntryRule], EntryRule]:
    """Declare a rule for one entry; the check holds if every entry of the area keeps it."""

    def declare(rule: EntryRule) -> EntryRule:
        @check(
            f"msrload.{name}",
            MSR_LOAD,
            F.VM_ENTRY_MSR_LOAD_COUNT,
            F.VM_ENTRY_MSR_LOAD_ADDRESS,
            title=rule.__name__.replace("_", " "),
            rule=rule.__doc__,
            applies=_area_can_be_read,
            live=(Live.MEMORY, *live),
            capability=capability,
        )
        def every_entry_keeps_the_rule(vmcs: Vmcs, processor: Processor) -> bool:
            return all(rule(entry, processor) for entry in _entries(vmcs, processor))

        MSR_LOAD_RULES.append((check.declared[-1], rule))
        return rule

    return declare


@_entry_check("fs_base")
def msr_is_not_fs_base(entry: MsrEntry, processor: Processor) -> bool:
    """An entry does not name IA32_FS_BASE (C0000100H); the base comes from the FS-base field."""
    return entry.msr != Msr.IA32_FS_BASE


@_entry_check("gs_base")
def msr_is_not_gs_base(entry: MsrEntry, processor: Processor) -> bool:
    """An entry does not name IA32_GS_BASE (C0000101H); the base comes from the GS-base field."""
    return entry.msr != Msr.IA32_GS_BASE


@_entry_check("x2apic")
def msr_is_not_an_x2apic_register(entry: MsrEntry, processor: Processor) -> bool:
    """An entry does not name an MSR of the x2APIC range (800H-8FFH)."""
    return entry.msr >> 8 != _X2APIC_PAGE


@_entry_check("smm_only", live=(Live.SMM,))
def msr_is_writable_outside_smm(entry: MsrEntry, processor: Processor) -> bool:
    """Outside SMM an entry does not name an MSR that can be written in SMM only, such as
    IA32_SMM_MONITOR_CTL (9BH)."""
    return processor.smm or entry.msr not in _ONLY_IN_SMM


@_entry_check("smbase", capability=("IA32_VMX_MISC[15]",))
def msr_is_not_smbase(entry: MsrEntry, processor: Processor) -> bool:
    """An entry does not name IA32_SMBASE (9EH)."""
    return entry.msr != Msr.IA32_SMBASE


@_entry_check("model_specific", capability=("model",))
def msr_is_not_refused_by_this_model(entry: MsrEntry, processor: Processor) -> bool:
    """An entry does not name an MSR that the CPU model refuses to load at VM entry; here those are
    IA32_BIOS_UPDT_TRIG (79H) and IA32_BIOS_SIGN_ID (8BH)."""
    return entry.msr not in _REFUSED_BY_THIS_MODEL


@_entry_check("reserved")
def entry_reserved_bits_are_0(entry: MsrEntry, processor: Processor) -> bool:
    """Bits 63:32 of an entry are 0."""
    return not entry.low >> 32


@_entry_check("wrmsr_would_fault", live=(Live.REGISTERS,), capability=("the MSR itself",))
def wrmsr_would_accept_the_value(entry: MsrEntry, processor: Processor) -> bool:
    """Writing bits 127:64 of an entry to its MSR with WRMSR at CPL 0 causes no #GP: the MSR exists
    and is writable, no reserved bit is set, and an address is canonical."""
    return wrmsr_fault(processor, entry.msr, entry.value) is None
