"""The MSR areas of VM entry and VM exit (SDM, "Loading MSRs" and "Saving MSRs").

An entry has 16 bytes: bits 31:0 MSR address, 63:32 reserved, 127:64 data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vtx.facts.fields import Field
from vtx.facts.msrs import CAPABILITY_MSRS, Msr
from vtx.machine.registers import Efer
from vtx.rules.transitions_abort import AbortIndicator, vmx_abort

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.rules.check import Check

__all__ = ["load_at_entry", "load_at_exit", "store_at_exit"]

_ENTRY = struct.Struct("<QQ")
#: MSRs that RDMSR cannot read: writing them is a command.
_WRITE_ONLY = frozenset({Msr.IA32_PRED_CMD, Msr.IA32_FLUSH_CMD})
_X2APIC = 0x8
_KNOWN = frozenset(int(msr) for msr in Msr)


def _entries(processor: Processor, address: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Return number (from 1), bits 63:0 and data of each entry of an area."""
    for number in range(1, count + 1):
        low, data = _ENTRY.unpack(processor.memory.read(address, _ENTRY.size))
        yield number, low, data
        address += _ENTRY.size


def _write(processor: Processor, msr: int, value: int) -> None:
    """Give an MSR a value that WRMSR would accept, as WRMSR does."""
    regs = processor.regs
    if msr == Msr.IA32_TIME_STAMP_COUNTER:
        processor.tsc = value
    elif msr == Msr.IA32_EFER:
        # LMA is not written by WRMSR: it follows LME and CR0.PG.
        regs.efer = value & ~Efer.LMA | regs.efer & Efer.LMA
    else:
        regs.write_msr(msr, value)


def load_at_entry(processor: Processor) -> tuple[int, Check] | None:
    """Load the VM-entry MSR-load area; return the first entry that fails, and the broken rule.

    The number of the entry, counted from 1, is the exit qualification of the failed VM entry.
    """
    from vtx.rules.check import check_msr_load

    values = processor.vmcs.values if processor.vmcs else {}
    count = values[Field.VM_ENTRY_MSR_LOAD_COUNT]
    for number, msr, data in _entries(processor, values[Field.VM_ENTRY_MSR_LOAD_ADDRESS], count):
        broken = check_msr_load(processor, number, msr, data)
        if broken is not None:
            return number, broken
        _write(processor, msr, data)
    return None


def load_at_exit(processor: Processor) -> None:
    """Load the VM-exit MSR-load area.

    Raises
    ------
    VmxAbort
        Indicator 4: an entry names an MSR, or holds a value, that must not be loaded.
    """
    from vtx.rules.check import check_msr_load

    values = processor.vmcs.values if processor.vmcs else {}
    count = values[Field.VM_EXIT_MSR_LOAD_COUNT]
    for number, msr, data in _entries(processor, values[Field.VM_EXIT_MSR_LOAD_ADDRESS], count):
        # The rules for an entry are those of VM entry.
        broken = check_msr_load(processor, number, msr, data)
        if broken is not None:
            detail = f"entry {number} (MSR {msr & 0xFFFF_FFFF:#x}): {broken.title}"
            raise vmx_abort(processor, AbortIndicator.LOADING_HOST_MSRS, detail)
        _write(processor, msr, data)


def _why_not_stored(processor: Processor, msr: int) -> str | None:
    """Return why an entry of the VM-exit MSR-store area fails, None if it does not."""
    if msr >> 32:
        return "bits 63:32 are not 0"
    if msr >> 8 == _X2APIC:
        return "the MSR gives access to an x2APIC register"
    if msr == Msr.IA32_SMBASE and not processor.smm:
        return "the MSR can be read in SMM only"
    if msr in _WRITE_ONLY or not (msr in _KNOWN or msr in processor.regs.msrs):
        return "RDMSR of the MSR would cause #GP(0)"
    return None


def _read(processor: Processor, msr: int) -> int:
    if msr == Msr.IA32_TIME_STAMP_COUNTER:
        return processor.tsc
    if msr in CAPABILITY_MSRS and msr != Msr.IA32_FEATURE_CONTROL:
        return processor.shape.msr(msr)
    return processor.regs.read_msr(msr)


def store_at_exit(processor: Processor) -> None:
    """Store MSRs into the VM-exit MSR-store area.

    Raises
    ------
    VmxAbort
        Indicator 1: an entry names an MSR that cannot be stored.
    """
    values = processor.vmcs.values if processor.vmcs else {}
    address = values[Field.VM_EXIT_MSR_STORE_ADDRESS]
    count = values[Field.VM_EXIT_MSR_STORE_COUNT]
    for number, msr, _ in _entries(processor, address, count):
        why = _why_not_stored(processor, msr)
        if why is not None:
            detail = f"entry {number} (MSR {msr & 0xFFFF_FFFF:#x}): {why}"
            raise vmx_abort(processor, AbortIndicator.SAVING_GUEST_MSRS, detail)
        data_address = address + _ENTRY.size * (number - 1) + 8
        processor.memory.write_u64(data_address, _read(processor, msr))
