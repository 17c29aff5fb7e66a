"""SENDUIPI: a user interrupt is posted to its receiver, and a notification IPI is sent.

SDM volume 1, "User IPIs", and for what VMX changes, "Changes to Instruction Behavior in VMX
Non-Root Operation". Delivery of user interrupts to the receiver's code is not modelled: what is
posted stays posted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, bits
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.msrs import Msr
from vtx.machine.registers import Cr4
from vtx.rules.execution_apic import VICR_HIGH, VICR_LOW, icr_write, write_register
from vtx.rules.execution_memory import read, write
from vtx.rules.exiting_faults import GP, UD
from vtx.rules.exiting_information import register
from vtx.rules.ipi import notify

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["senduipi"]

#: Reserved bits of an entry of the user-interrupt target table, and of a user posted-interrupt
#: descriptor.
_ENTRY_RESERVED = 0xFFFF_FFFF_FFFF_C0FE | 0x3F << 64
_DESCRIPTOR_RESERVED = 0xFF00_FFFC
_ENTRY_BYTES = 16
_VALID = _ENABLED = 1
_OUTSTANDING, _SUPPRESSED = 1 << 0, 1 << 1


def senduipi(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """SENDUIPI: the operand is an index into the user-interrupt target table.

    Returns
    -------
    ExitInformation or None
        A trap-like APIC-write exit, if the notification cannot be completed without the VMM.

    Raises
    ------
    GuestFault
        #UD where user interrupts are off, #GP(0) for a bad entry or descriptor, or a fault of an
        access to one of them.
    """
    address, vector = _entry(processor, register(processor.regs, instruction.operands["source"]))
    descriptor = int.from_bytes(read(processor, address, _ENTRY_BYTES, supervisor=True), "little")
    if descriptor & _DESCRIPTOR_RESERVED:
        raise GuestFault(GP, 0, "SENDUIPI: reserved bits of the descriptor are set")
    notifies = not descriptor & (_OUTSTANDING | _SUPPRESSED)
    posted = descriptor | 1 << 64 + vector | (_OUTSTANDING if notifies else 0)
    write(processor, address, posted.to_bytes(_ENTRY_BYTES, "little"), supervisor=True)
    if not notifies:
        return None
    return _notify(processor, bits(descriptor, 23, 16), bits(descriptor, 63, 32))


def _entry(processor: Processor, index: int) -> tuple[int, int]:
    """Return address of the descriptor and user-interrupt vector of an entry of the table."""
    regs = processor.regs
    table = regs.msrs.get(Msr.IA32_UINTR_TT, 0)
    if not (regs.cr4 & Cr4.UINTR and regs.in_64bit_mode and table & _ENABLED):
        raise GuestFault(UD, None, "SENDUIPI without user interrupts enabled")
    if index > regs.msrs.get(Msr.IA32_UINTR_MISC, 0) & MASK32:
        raise GuestFault(GP, 0, f"SENDUIPI of entry {index:#x}, beyond the table")
    place = (table & ~0xF) + _ENTRY_BYTES * index
    entry = int.from_bytes(read(processor, place, _ENTRY_BYTES, supervisor=True), "little")
    if not entry & _VALID or entry & _ENTRY_RESERVED:
        raise GuestFault(GP, 0, f"SENDUIPI: entry {index:#x} is not valid")
    return entry >> 64, bits(entry, 13, 8)


def _notify(processor: Processor, vector: int, destination: int) -> ExitInformation | None:
    """Send the notification: by the processor's own APIC, or by the virtual one."""
    vmcs = processor.vmcs
    assert vmcs is not None
    if not vmcs.proc1 & Proc1.USE_TPR_SHADOW:
        notify(processor, vector, destination)
        return None
    if vmcs.proc2 & Proc2.VIRTUALIZE_X2APIC_MODE:
        target = high = destination
    else:
        target = bits(destination, 15, 8)
        high = target << 24
    write_register(processor, VICR_HIGH, high)
    write_register(processor, VICR_LOW, vector)
    return icr_write(processor, target)
