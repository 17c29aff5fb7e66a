"""Control and debug registers, as the guest reads and writes them when no exit happens.

In VMX non-root operation masks and shadows stand between the guest and CR0 and CR4 (SDM, "Changes
to Instruction Behavior in VMX Non-Root Operation"). Each function executes one instruction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bit
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.machine.encoding import has_memory_operand
from vtx.machine.mmu import Access
from vtx.machine.registers import AccessRights, Cr0, Cr4, Efer
from vtx.rules.control_registers import CR0_FIXED_IN_PLACE, ControlState, cr0_fault, cr4_fault
from vtx.rules.execution_context import refresh
from vtx.rules.execution_memory import guest_physical, write
from vtx.rules.exiting_faults import DB, GP, UD
from vtx.rules.exiting_information import operand_address, register
from vtx.rules.exiting_rules import lmsw_source
from vtx.rules.limits import cr3_reserved, page_table_width

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.vmcs import Vmcs

__all__ = ["EFFECTS", "load_pdptes", "virtual_cr0", "virtual_cr4"]

_LMSW_BITS = 0xF
_NO_INVALIDATE = 1 << 63
_DR6_ONES, _DR6_WRITABLE = 0xFFFF_0FF0, 0xE00F
_DR7_ONES, _DR7_ZEROS = 0x400, 0xD000
_DR7_GENERAL_DETECT = 13
_PDPTE_PRESENT = 1
_PDPTE_RESERVED = 0x1E6
#: Changes of these bits reload the PDPTEs under PAE paging.
_CR0_RELOADS = Cr0.PG | Cr0.CD | Cr0.NW
_CR4_RELOADS = Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP


def _vmcs(processor: Processor) -> Vmcs:
    vmcs = processor.vmcs
    assert vmcs is not None
    return vmcs


def _source(processor: Processor, instruction: Instruction) -> int:
    value = register(processor.regs, instruction.operands["source"])
    return value if processor.regs.in_64bit_mode else value & MASK32


def put(processor: Processor, instruction: Instruction, value: int) -> None:
    """Write the destination register: 64 bits, or 32 bits with the upper half cleared."""
    name = GENERAL_REGISTERS[instruction.operands["destination"]]
    mask = MASK64 if processor.regs.in_64bit_mode else MASK32
    setattr(processor.regs, name, value & mask)


def virtual_cr0(processor: Processor) -> int:
    """Return CR0 as the guest reads it: the read shadow where the guest/host mask is 1."""
    vmcs = _vmcs(processor)
    mask = vmcs[Field.CR0_GUEST_HOST_MASK]
    return processor.regs.cr0 & ~mask | vmcs[Field.CR0_READ_SHADOW] & mask


def virtual_cr4(processor: Processor) -> int:
    """Return CR4 as the guest reads it: the read shadow where the guest/host mask is 1."""
    vmcs = _vmcs(processor)
    mask = vmcs[Field.CR4_GUEST_HOST_MASK]
    return processor.regs.cr4 & ~mask | vmcs[Field.CR4_READ_SHADOW] & mask


def _privileged(processor: Processor, instruction: Instruction) -> None:
    if processor.regs.cpl:
        raise GuestFault(GP, 0, f"{instruction.name} at CPL {processor.regs.cpl}")


def mov_from_cr0(processor: Processor, instruction: Instruction) -> None:
    """MOV r, CR0."""
    _privileged(processor, instruction)
    put(processor, instruction, virtual_cr0(processor))


def mov_from_cr4(processor: Processor, instruction: Instruction) -> None:
    """MOV r, CR4."""
    _privileged(processor, instruction)
    put(processor, instruction, virtual_cr4(processor))


def mov_from_cr2(processor: Processor, instruction: Instruction) -> None:
    """MOV r, CR2."""
    _privileged(processor, instruction)
    put(processor, instruction, processor.regs.cr2)


def mov_to_cr2(processor: Processor, instruction: Instruction) -> None:
    """MOV CR2, r."""
    _privileged(processor, instruction)
    processor.regs.cr2 = _source(processor, instruction)


def mov_from_cr3(processor: Processor, instruction: Instruction) -> None:
    """MOV r, CR3."""
    put(processor, instruction, processor.regs.cr3)


def smsw(processor: Processor, instruction: Instruction) -> None:
    """SMSW: 16 bits to memory or a 16-bit register, the whole of CR0 to a wider one."""
    regs, operands = processor.regs, instruction.operands
    if regs.cpl and regs.cr4 & Cr4.UMIP:
        raise GuestFault(GP, 0, "SMSW at CPL > 0 with CR4.UMIP 1")
    value = virtual_cr0(processor)
    if has_memory_operand(operands):
        write(processor, operand_address(regs, operands), (value & 0xFFFF).to_bytes(2, "little"))
    else:
        put_sized(processor, operands["destination"], value, operands.get("operand_size", 4))


def put_sized(processor: Processor, number: int, value: int, size: int) -> None:
    """Write `size` bytes of a register: 2 keep the rest, 4 clear the upper half."""
    name = GENERAL_REGISTERS[number]
    if size == 2:
        kept: int = getattr(processor.regs, name) & ~0xFFFF
        setattr(processor.regs, name, kept | value & 0xFFFF)
    else:
        setattr(processor.regs, name, value & (MASK64 if size == 8 else MASK32))


# CR0.


def _vmx_allows(processor: Processor, value: int, fixed0: Msr, fixed1: Msr) -> bool:
    """Tell whether VMX operation supports a value of CR0 or CR4."""
    required = processor.shape.msr(fixed0)
    if fixed0 == Msr.IA32_VMX_CR0_FIXED0 and _vmcs(processor).proc2 & Proc2.UNRESTRICTED_GUEST:
        required &= ~(Cr0.PE | Cr0.PG)
    return value & required == required and not value & ~processor.shape.msr(fixed1)


def _control_state(processor: Processor) -> ControlState:
    regs = processor.regs
    code_64bit = bool(regs.cs.access_rights & AccessRights.L)
    return ControlState(regs.cr0, regs.cr3, regs.cr4, regs.efer, code_64bit)


def _cr0_fault(processor: Processor, value: int) -> str | None:
    """Return what is wrong with a value of CR0 (SDM, "MOV - Move to/from Control Registers")."""
    fault = cr0_fault(value, _control_state(processor))
    if fault:
        return fault
    if not _vmx_allows(processor, value, Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1):
        return "a bit has a value that VMX operation does not support"
    return None


def _load_cr0(processor: Processor, value: int) -> None:
    """Load a value of CR0 whose masked bits are those of CR0 already."""
    regs = processor.regs
    fault = _cr0_fault(processor, value)
    if fault:
        raise GuestFault(GP, 0, f"CR0: {fault}")
    value = value & ~CR0_FIXED_IN_PLACE | regs.cr0 & CR0_FIXED_IN_PLACE | Cr0.ET
    changed = value ^ regs.cr0
    efer = regs.efer
    if changed & Cr0.PG:
        long_mode = value & Cr0.PG and efer & Efer.LME
        efer = efer | Efer.LMA if long_mode else efer & ~Efer.LMA
    pae = value & Cr0.PG and regs.cr4 & Cr4.PAE and not efer & Efer.LMA
    if pae and changed & _CR0_RELOADS:
        load_pdptes(processor, regs.cr3)
    processor.mmu.mov_to_cr0(processor.context, value)
    regs.cr0 = value
    if efer != regs.efer:
        regs.efer = efer
    refresh(processor)


def mov_to_cr0(processor: Processor, instruction: Instruction) -> None:
    """MOV CR0, r: bits that the mask gives to the VMM keep their value."""
    mask = _vmcs(processor)[Field.CR0_GUEST_HOST_MASK]
    source = _source(processor, instruction)
    _load_cr0(processor, processor.regs.cr0 & mask | source & ~mask)


def clts(processor: Processor, instruction: Instruction) -> None:
    """CLTS: clears TS, or completes without effect if the mask gives TS to the VMM."""
    if not _vmcs(processor)[Field.CR0_GUEST_HOST_MASK] & Cr0.TS:
        if processor.shape.msr(Msr.IA32_VMX_CR0_FIXED0) & Cr0.TS:
            raise GuestFault(GP, 0, "VMX operation fixes CR0.TS to 1")
        processor.regs.cr0 &= ~Cr0.TS
        processor.context.cr0 = processor.regs.cr0


def lmsw(processor: Processor, instruction: Instruction) -> None:
    """LMSW: loads MP, EM and TS where the mask allows, and sets PE; never clears PE."""
    regs = processor.regs
    source = lmsw_source(processor, instruction)
    changeable = _LMSW_BITS & ~_vmcs(processor)[Field.CR0_GUEST_HOST_MASK]
    value = regs.cr0 & ~changeable | source & changeable | regs.cr0 & Cr0.PE
    _load_cr0(processor, value)


# CR3, CR4, CR8.


def mov_to_cr3(processor: Processor, instruction: Instruction) -> None:
    """MOV CR3, r: another address space."""
    regs = processor.regs
    value = _source(processor, instruction)
    if regs.in_64bit_mode:
        pcide = regs.cr4 & Cr4.PCIDE
        reserved = cr3_reserved(processor.shape, page_table_width(processor.shape))
        if value & reserved & ~(_NO_INVALIDATE if pcide else 0):
            raise GuestFault(GP, 0, "CR3: reserved bits are set")
    if regs.uses_pae_paging:
        load_pdptes(processor, value)
    processor.mmu.mov_to_cr3(processor.context, value)
    regs.cr3 = value & ~_NO_INVALIDATE
    refresh(processor)


def load_pdptes(processor: Processor, cr3: int) -> None:
    """Load the PDPTE registers from memory (SDM, "PDPTE Registers").

    Raises
    ------
    GuestFault
        #GP(0): a present entry sets reserved bits.
    ExitTaken
        An EPT violation or misconfiguration on the way.
    """
    base = guest_physical(processor, cr3 & 0xFFFF_FFE0, Access.LOAD)
    raw = processor.memory.read(base, 32)
    entries = tuple(int.from_bytes(raw[n : n + 8], "little") for n in range(0, 32, 8))
    beyond = MASK64 >> processor.shape.maxphyaddr << processor.shape.maxphyaddr
    if any(e & _PDPTE_PRESENT and e & (_PDPTE_RESERVED | beyond) for e in entries):
        raise GuestFault(GP, 0, "a PDPTE sets reserved bits")
    first, second, third, fourth = entries
    processor.regs.pdptes = (first, second, third, fourth)


def _cr4_fault(processor: Processor, value: int) -> str | None:
    """Return what is wrong with a value of CR4."""
    fault = cr4_fault(value, _control_state(processor))
    if fault:
        return fault
    if not _vmx_allows(processor, value, Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1):
        return "a bit has a value that VMX operation does not support"
    return None


def mov_to_cr4(processor: Processor, instruction: Instruction) -> None:
    """MOV CR4, r: bits that the mask gives to the VMM keep their value."""
    regs = processor.regs
    mask = _vmcs(processor)[Field.CR4_GUEST_HOST_MASK]
    value = regs.cr4 & mask | _source(processor, instruction) & ~mask
    fault = _cr4_fault(processor, value)
    if fault:
        raise GuestFault(GP, 0, f"CR4: {fault}")
    pae = regs.cr0 & Cr0.PG and value & Cr4.PAE and not regs.in_ia32e_mode
    if pae and (value ^ regs.cr4) & _CR4_RELOADS:
        load_pdptes(processor, regs.cr3)
    processor.mmu.mov_to_cr4(processor.context, value)
    regs.cr4 = value
    refresh(processor)


def mov_to_cr8(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """MOV CR8, r: the task priority, virtual under "use TPR shadow"."""
    value = _source(processor, instruction)
    if value >> 4:
        raise GuestFault(GP, 0, "CR8: reserved bits are set")
    if _vmcs(processor).proc1 & Proc1.USE_TPR_SHADOW:
        from vtx.rules.execution_apic import write_vtpr

        return write_vtpr(processor, value << 4)
    processor.regs.cr8 = value
    return None


def mov_from_cr8(processor: Processor, instruction: Instruction) -> None:
    """MOV r, CR8."""
    if _vmcs(processor).proc1 & Proc1.USE_TPR_SHADOW:
        from vtx.rules.execution_apic import VTPR, read_register

        put(processor, instruction, read_register(processor, VTPR) >> 4 & 0xF)
    else:
        put(processor, instruction, processor.regs.cr8)


# Debug registers.


def _debug_register(processor: Processor, instruction: Instruction) -> int:
    """Return the number of the debug register, after the faults that an access may raise."""
    regs = processor.regs
    number = instruction.operands["debug"]
    if number in (4, 5):
        if regs.cr4 & Cr4.DE:
            raise GuestFault(UD, None, f"DR{number} with CR4.DE 1")
        number += 2
    _privileged(processor, instruction)
    if bit(regs.dr7, _DR7_GENERAL_DETECT):
        raise GuestFault(DB, None, "DR7.GD is 1", address=1 << _DR7_GENERAL_DETECT)
    return number


def mov_to_dr(processor: Processor, instruction: Instruction) -> None:
    """MOV DRn, r."""
    number = _debug_register(processor, instruction)
    value = _source(processor, instruction)
    if number in (6, 7) and value >> 32:
        raise GuestFault(GP, 0, f"DR{number}: bits 63:32 are set")
    if number == 6:
        value = value & _DR6_WRITABLE | _DR6_ONES
    elif number == 7:
        value = value & ~_DR7_ZEROS | _DR7_ONES
    setattr(processor.regs, f"dr{number}", value)


def mov_from_dr(processor: Processor, instruction: Instruction) -> None:
    """MOV r, DRn."""
    number = _debug_register(processor, instruction)
    put(processor, instruction, getattr(processor.regs, f"dr{number}"))


#: What each instruction does when it does not exit.
EFFECTS = {
    "mov_from_cr0": mov_from_cr0,
    "mov_from_cr2": mov_from_cr2,
    "mov_from_cr3": mov_from_cr3,
    "mov_from_cr4": mov_from_cr4,
    "mov_from_cr8": mov_from_cr8,
    "mov_to_cr0": mov_to_cr0,
    "mov_to_cr2": mov_to_cr2,
    "mov_to_cr3": mov_to_cr3,
    "mov_to_cr4": mov_to_cr4,
    "mov_to_cr8": mov_to_cr8,
    "mov_to_dr": mov_to_dr,
    "mov_from_dr": mov_from_dr,
    "clts": clts,
    "lmsw": lmsw,
    "smsw": smsw,
}
