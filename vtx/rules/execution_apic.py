"""The virtual APIC: what the guest's accesses to its local APIC do without, or before, an exit.

SDM, "APIC Virtualization and Virtual Interrupts". The virtual-APIC page is physical memory that
the VMCS names; RVI and SVI are in the guest-interrupt-status field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, bit
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.exit_information import ExitInformation
from vtx.rules.ipi import ICR_RESERVED, interrupt, post_ipi, send

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = [
    "VICR_HIGH",
    "VICR_LOW",
    "VTPR",
    "acknowledge_virtual_interrupt",
    "apic_write",
    "has_virtual_interrupt",
    "icr_write",
    "post_interrupts",
    "ppr_virtualization",
    "read_register",
    "read_x2apic",
    "request_virtual_interrupt",
    "tpr_below_threshold",
    "write_register",
    "write_vtpr",
    "write_x2apic",
]

VTPR, VPPR, VEOI, VISR, VIRR = 0x080, 0x0A0, 0x0B0, 0x100, 0x200
VICR_LOW, VICR_HIGH, SELF_IPI = 0x300, 0x310, 0x3F0
_GP = 13
_EOI_BITMAPS = (
    Field.EOI_EXIT_BITMAP_0,
    Field.EOI_EXIT_BITMAP_1,
    Field.EOI_EXIT_BITMAP_2,
    Field.EOI_EXIT_BITMAP_3,
)
#: IA32_APIC_BASE: global enable and x2APIC mode.
_X2APIC_MODE = 3 << 10
_APIC_ID = 0x802
#: ICR[31:0] apart from vector, level and destination mode: fixed, edge-triggered, to self.
_SELF_FIXED_MASK, _SELF_FIXED = 0xFFFF_B700, 0x4_0000
#: ICR[31:0] apart from vector and level: fixed, edge-triggered, physical, without shorthand.
_IPI_MUST_BE_0 = 0xFFFF_BF00
_POSTED_WORDS, _OUTSTANDING = 32, 32


def _vmcs(processor: Processor) -> Vmcs:
    vmcs = processor.vmcs
    assert vmcs is not None
    return vmcs


def _page(processor: Processor) -> int:
    return _vmcs(processor)[Field.VIRTUAL_APIC_ADDRESS]


def read_register(processor: Processor, offset: int) -> int:
    """Return 32 bits of the virtual-APIC page."""
    return processor.memory.read_u32(_page(processor) + offset)


def write_register(processor: Processor, offset: int, value: int) -> None:
    """Write 32 bits of the virtual-APIC page."""
    processor.memory.write_u32(_page(processor) + offset, value)


# RVI and SVI, and the vectors of VISR and VIRR.


def _status(processor: Processor) -> tuple[int, int]:
    """Return RVI and SVI."""
    value = _vmcs(processor)[Field.GUEST_INTERRUPT_STATUS]
    return value & 0xFF, value >> 8


def _set_status(processor: Processor, rvi: int, svi: int) -> None:
    _vmcs(processor)[Field.GUEST_INTERRUPT_STATUS] = rvi | svi << 8


def _place(base: int, vector: int) -> int:
    """Return the offset of the 32-bit word with the bit of a vector."""
    return base + (vector >> 5) * 16


def _set_vector(processor: Processor, base: int, vector: int, on: bool) -> None:
    offset = _place(base, vector)
    value, mask = read_register(processor, offset), 1 << (vector & 31)
    write_register(processor, offset, value | mask if on else value & ~mask)


def _highest(processor: Processor, base: int) -> int:
    """Return the highest vector whose bit is 1, 0 if there is none."""
    for word in range(7, -1, -1):
        value = read_register(processor, base + 16 * word)
        if value:
            return 32 * word + value.bit_length() - 1
    return 0


# Virtualization of TPR, PPR, EOI and self-IPI.


def _delivers_virtual_interrupts(processor: Processor) -> bool:
    return bool(_vmcs(processor).proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY)


def tpr_below_threshold(processor: Processor) -> bool:
    """Tell whether VTPR[7:4] is below the TPR threshold."""
    threshold = _vmcs(processor)[Field.TPR_THRESHOLD] & 0xF
    return (read_register(processor, VTPR) >> 4 & 0xF) < threshold


def write_vtpr(processor: Processor, value: int) -> ExitInformation | None:
    """Write VTPR, and do TPR virtualization (SDM, "TPR Virtualization")."""
    write_register(processor, VTPR, value & 0xFF)
    if _delivers_virtual_interrupts(processor):
        ppr_virtualization(processor)
    elif tpr_below_threshold(processor):
        return ExitInformation(ExitReason.TPR_BELOW_THRESHOLD, trap=True)
    return None


def ppr_virtualization(processor: Processor) -> None:
    """Set VPPR from VTPR and SVI (SDM, "PPR Virtualization")."""
    vtpr, svi = read_register(processor, VTPR) & 0xFF, _status(processor)[1]
    write_register(processor, VPPR, vtpr if vtpr >> 4 >= svi >> 4 else svi & 0xF0)


def _eoi(processor: Processor) -> ExitInformation | None:
    """EOI virtualization (SDM, "EOI Virtualization")."""
    rvi, vector = _status(processor)
    _set_vector(processor, VISR, vector, on=False)
    _set_status(processor, rvi, _highest(processor, VISR))
    ppr_virtualization(processor)
    if bit(_vmcs(processor)[_EOI_BITMAPS[vector >> 6]], vector & 63):
        return ExitInformation(ExitReason.VIRTUALIZED_EOI, vector, trap=True)
    return None


def request_virtual_interrupt(processor: Processor, vector: int) -> None:
    """Request a virtual interrupt, as self-IPI virtualization does (SDM, "Self-IPI ...")."""
    _set_vector(processor, VIRR, vector, on=True)
    rvi, svi = _status(processor)
    _set_status(processor, max(rvi, vector), svi)


def has_virtual_interrupt(processor: Processor) -> bool:
    """Tell whether a pending virtual interrupt is recognized."""
    vmcs = _vmcs(processor)
    if not vmcs.proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY:
        return False
    if vmcs.proc1 & Proc1.INTERRUPT_WINDOW_EXITING:
        return False
    rvi = _status(processor)[0]
    return rvi >> 4 > (read_register(processor, VPPR) >> 4 & 0xF)


def acknowledge_virtual_interrupt(processor: Processor) -> int:
    """Take the pending virtual interrupt into service; return its vector."""
    vector = _status(processor)[0]
    _set_vector(processor, VISR, vector, on=True)
    write_register(processor, VPPR, vector & 0xF0)
    _set_vector(processor, VIRR, vector, on=False)
    _set_status(processor, _highest(processor, VIRR), vector)
    return vector


def post_interrupts(processor: Processor) -> None:
    """Posted-interrupt processing (SDM, "Posted-Interrupt Processing")."""
    memory = processor.memory
    address = _vmcs(processor)[Field.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
    memory.write_u8(address + _OUTSTANDING, memory.read_u8(address + _OUTSTANDING) & ~1)
    requests = int.from_bytes(memory.read(address, _POSTED_WORDS), "little")
    memory.write(address, bytes(_POSTED_WORDS))
    for word in range(8):
        offset = VIRR + 16 * word
        value = read_register(processor, offset) | requests >> 32 * word & MASK32
        write_register(processor, offset, value)
    rvi, svi = _status(processor)
    _set_status(processor, max(rvi, requests.bit_length() - 1, 0), svi)


# Writes to the page, and the x2APIC registers.


def _apic_write_exit(offset: int) -> ExitInformation:
    return ExitInformation(ExitReason.APIC_WRITE, offset, trap=True)


def apic_write(processor: Processor, offset: int) -> ExitInformation | None:
    """APIC-write emulation of a write to the virtual-APIC page at `offset`.

    SDM, "APIC-Write Emulation". The exits are trap-like.
    """
    register = offset & ~3
    if register == VTPR:
        return write_vtpr(processor, read_register(processor, VTPR))
    virtual = _delivers_virtual_interrupts(processor)
    if register == VEOI and virtual:
        write_register(processor, VEOI, 0)
        return _eoi(processor)
    if register == VICR_LOW:
        return icr_write(processor, read_register(processor, VICR_HIGH) >> 24)
    if register == VICR_HIGH:
        write_register(processor, VICR_HIGH, read_register(processor, VICR_HIGH) & 0xFF00_0000)
        return None
    return _apic_write_exit(register)


def icr_write(processor: Processor, target: int) -> ExitInformation | None:
    """Do what a write to VICR_LO leads to; `target` is the virtual APIC ID that VICR_HI names."""
    icr = read_register(processor, VICR_LOW)
    if (
        _delivers_virtual_interrupts(processor)
        and icr & _SELF_FIXED_MASK == _SELF_FIXED
        and icr & 0xF0
    ):
        request_virtual_interrupt(processor, icr & 0xFF)
        return None
    posts = _vmcs(processor).proc3 & Proc3.IPI_VIRTUALIZATION and not icr & _IPI_MUST_BE_0
    if posts and post_ipi(processor, icr & 0xFF, target):
        return None
    return _apic_write_exit(VICR_LOW)


def _in_x2apic_mode(processor: Processor, msr: int) -> None:
    base = processor.regs.msrs.get(Msr.IA32_APIC_BASE, 0)
    if "x2apic" not in processor.shape.features or base & _X2APIC_MODE != _X2APIC_MODE:
        raise GuestFault(_GP, 0, f"MSR {msr:#x} outside x2APIC mode")


def read_x2apic(processor: Processor, msr: int) -> int:
    """Return what RDMSR of 800H-8FFH reads (SDM, "Virtualizing MSR-Based APIC Accesses")."""
    proc2 = _vmcs(processor).proc2
    if proc2 & Proc2.VIRTUALIZE_X2APIC_MODE:
        every = proc2 & Proc2.APIC_REGISTER_VIRTUALIZATION
        if every or msr == Msr.IA32_X2APIC_TPR:
            return processor.memory.read_u64(_page(processor) + (msr & 0xFF) * 16)
    _in_x2apic_mode(processor, msr)
    if msr == Msr.IA32_X2APIC_TPR:
        return processor.regs.cr8 << 4
    if msr == _APIC_ID:
        return processor.number
    return processor.regs.msrs.get(msr, 0)


def write_x2apic(processor: Processor, msr: int, value: int) -> ExitInformation | None:
    """Do what WRMSR of 800H-8FFH does, virtualized where the controls say so."""
    proc2 = _vmcs(processor).proc2
    if not proc2 & Proc2.VIRTUALIZE_X2APIC_MODE:
        _write_real_x2apic(processor, msr, value)
        return None
    virtual = proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY
    if msr == Msr.IA32_X2APIC_TPR:
        _no_bits_above(msr, value, 8)
        return write_vtpr(processor, value)
    if msr == Msr.IA32_X2APIC_EOI and virtual:
        _no_bits_above(msr, value, 0)
        write_register(processor, VEOI, 0)
        return _eoi(processor)
    if msr == Msr.IA32_X2APIC_SELF_IPI and virtual:
        _no_bits_above(msr, value, 8)
        write_register(processor, SELF_IPI, value)
        if not value & 0xF0:
            return _apic_write_exit(SELF_IPI)
        request_virtual_interrupt(processor, value)
        return None
    if msr == Msr.IA32_X2APIC_ICR and _vmcs(processor).proc3 & Proc3.IPI_VIRTUALIZATION:
        _no_reserved_icr_bits(msr, value)
        processor.memory.write_u64(_page(processor) + VICR_LOW, value)
        return icr_write(processor, value >> 32)
    _write_real_x2apic(processor, msr, value)
    return None


def _no_reserved_icr_bits(msr: int, value: int) -> None:
    if value & ICR_RESERVED:
        raise GuestFault(_GP, 0, f"WRMSR of {msr:#x}: reserved bits are set")


def _no_bits_above(msr: int, value: int, width: int) -> None:
    if value >> width:
        raise GuestFault(_GP, 0, f"WRMSR of {msr:#x}: reserved bits are set")


def _write_real_x2apic(processor: Processor, msr: int, value: int) -> None:
    """Write a register of the processor's own APIC; priority and interrupts have effects."""
    _in_x2apic_mode(processor, msr)
    if msr == _APIC_ID:
        raise GuestFault(_GP, 0, f"MSR {msr:#x} is read-only")
    if msr == Msr.IA32_X2APIC_TPR:
        _no_bits_above(msr, value, 8)
        processor.regs.cr8 = value >> 4
    elif msr == Msr.IA32_X2APIC_EOI:
        _no_bits_above(msr, value, 0)
    elif msr == Msr.IA32_X2APIC_SELF_IPI:
        _no_bits_above(msr, value, 8)
        interrupt(processor, value)
    elif msr == Msr.IA32_X2APIC_ICR:
        _no_reserved_icr_bits(msr, value)
        processor.regs.msrs[msr] = value
        send(processor, value)
    else:
        processor.regs.msrs[msr] = value
