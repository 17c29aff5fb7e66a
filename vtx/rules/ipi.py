"""Interrupts between logical processors: the interrupt command register and what it reaches.

SDM, "Issuing Interprocessor Interrupts" (x2APIC mode) and, for what VMX adds, "IPI
Virtualization": under that control the guest's own interrupts are posted in the descriptor of the
virtual processor they are for, and only a notification goes to the logical processor it is on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vtx.bits import MASK64, bits
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import Activity
from vtx.rules.limits import physical_width

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = [
    "ICR_RESERVED",
    "arrive",
    "destinations",
    "interrupt",
    "logical_id",
    "notify",
    "post_ipi",
    "send",
]

#: Bits of the interrupt command register in x2APIC mode that must be 0.
ICR_RESERVED = 0xFFF3_3000
_FIXED, _SMI, _NMI, _INIT, _STARTUP = 0, 2, 4, 5, 6
_SELF, _ALL = 1, 2
_LOGICAL_DESTINATION, _BROADCAST = 1 << 11, 0xFFFF_FFFF
_LOWEST_VECTOR = 16
_X2APIC_MODE = 1 << 10

# A posted-interrupt descriptor: 256 requests, then one word.
_REQUEST_BYTES = 32
_OUTSTANDING, _SUPPRESSED = 1 << 0, 1 << 1
_ENTRY_VALID = 1


def logical_id(number: int) -> int:
    """Return the logical x2APIC ID: cluster in bits 31:16, one bit of 15:0 for the processor."""
    return (number >> 4) << 16 | 1 << (number & 0xF)


def destinations(sender: int, command: int, numbers: Iterable[int]) -> Iterator[int]:
    """Return which processors, by x2APIC ID, an interrupt command of `sender` names.

    SDM, "Determining IPI Destination in x2APIC Mode": a shorthand says it alone.
    """
    shorthand, target = bits(command, 19, 18), command >> 32
    for number in numbers:
        if shorthand:
            named = shorthand == _ALL or (number == sender) == (shorthand == _SELF)
        elif target == _BROADCAST:
            named = True
        elif command & _LOGICAL_DESTINATION:
            own = logical_id(number)
            named = own >> 16 == target >> 16 and bool(own & target & 0xFFFF)
        else:
            named = number == target
        if named:
            yield number


def interrupt(processor: Processor, vector: int) -> None:
    """Let an external interrupt arrive at the local APIC of a processor."""
    if vector >= _LOWEST_VECTOR:
        processor.pending.interrupts.append(vector)


def send(processor: Processor, command: int) -> None:
    """Send what a 64-bit interrupt command says to the machine's processors that it names.

    Lowest-priority delivery is not supported in x2APIC mode; such a command is not sent.
    """
    vector, mode = bits(command, 7, 0), bits(command, 10, 8)
    peers = {peer.number: peer for peer in processor.peers}
    for number in destinations(processor.number, command, peers):
        arrive(peers[number], mode, vector)


def arrive(target: Processor, mode: int, vector: int) -> None:
    """Let an interrupt of a delivery mode arrive at a processor."""
    pending = target.pending
    if mode == _FIXED:
        interrupt(target, vector)
    elif mode == _NMI:
        pending.nmi = True
    elif mode == _SMI:
        pending.smi = True
    elif mode == _INIT:
        pending.init = True
    elif mode == _STARTUP and target.non_root:
        # A processor that does not wait for it drops a start-up IPI.
        waits = target.regs.activity_state == Activity.WAIT_FOR_SIPI
        pending.sipi = vector if waits else pending.sipi


def post_ipi(processor: Processor, vector: int, target: int) -> bool:
    """Post an interrupt to the virtual processor with a virtual APIC ID (IPI virtualization).

    Returns
    -------
    bool
        False if that cannot be done: an illegal vector, an ID beyond the table, or a PID pointer
        that is not valid. Nothing was changed then, and an APIC-write VM exit is due.
    """
    vmcs, memory = processor.vmcs, processor.memory
    assert vmcs is not None
    if vector < _LOWEST_VECTOR or target > vmcs[Field.LAST_PID_POINTER_INDEX]:
        return False
    entry = memory.read_u64(vmcs[Field.PID_POINTER_TABLE_ADDRESS] + 8 * target)
    too_wide = entry >> physical_width(processor.shape)
    if too_wide or entry & 0x3F != _ENTRY_VALID:
        return False
    descriptor = entry & ~0x3F & MASK64
    byte = descriptor + vector // 8
    memory.write_u8(byte, memory.read_u8(byte) | 1 << vector % 8)
    control = memory.read_u64(descriptor + _REQUEST_BYTES)
    if not control & (_OUTSTANDING | _SUPPRESSED):
        memory.write_u64(descriptor + _REQUEST_BYTES, control | _OUTSTANDING)
        notify(processor, bits(control, 23, 16), control >> 32)
    return True


def notify(processor: Processor, vector: int, destination: int) -> None:
    """Send a notification to the logical processor that a descriptor names."""
    if not processor.regs.msrs.get(Msr.IA32_APIC_BASE, 0) & _X2APIC_MODE:
        # An 8-bit ID in xAPIC mode.
        destination = bits(destination, 15, 8)
    for peer in processor.peers:
        if peer.number == destination:
            interrupt(peer, vector)
