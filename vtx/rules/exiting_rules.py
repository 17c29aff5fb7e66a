"""Instructions whose exit hangs on values: masks and shadows, bitmaps, target lists, windows.

Each function answers "does it exit?" for one row of the manual's list (SDM, "Instructions That
Cause VM Exits Conditionally") and changes nothing but what the processor counts to know it
(PAUSE-loop exiting).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bit
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.encoding import has_memory_operand
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr0
from vtx.rules import exiting_information as info
from vtx.rules.execution_memory import read_u16, read_u64
from vtx.rules.exiting_faults import GP, UD
from vtx.rules.physical import read_u8, read_u32
from vtx.rules.physical import read_u64 as read_physical_u64
from vtx.rules.task_switch import by_instruction
from vtx.rules.vmx_fields import exits as shadowing_exits
from vtx.rules.vmx_functions import exits as vm_function_exits

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.vmcs import Vmcs

__all__ = ["msr_is_selected"]

_BITMAP_LAST = 63
_MSRS_A_BITMAP = 0x2000
_MSR_LOW, _MSR_HIGH = 0, 0xC000_0000
_CR3_TARGETS = (
    Field.CR3_TARGET_VALUE_0,
    Field.CR3_TARGET_VALUE_1,
    Field.CR3_TARGET_VALUE_2,
    Field.CR3_TARGET_VALUE_3,
)
_USER_MSR_CTL = 0x1C
_USER_MSRS = 0x4000
_WRITES_FROM = 2048


def _vmcs(processor: Processor) -> Vmcs:
    vmcs = processor.vmcs
    assert vmcs is not None
    return vmcs


def _source(processor: Processor, instruction: Instruction) -> int:
    """Return the source register of MOV to CR: 64 bits in 64-bit mode, else 32."""
    value = info.register(processor.regs, instruction.operands["source"])
    return value if processor.regs.in_64bit_mode else value & MASK32


# Control registers.


def mov_to_cr0(processor: Processor, instruction: Instruction) -> bool:
    """Exit if a bit that the mask gives to the VMM differs from the read shadow."""
    vmcs = _vmcs(processor)
    difference = _source(processor, instruction) ^ vmcs[Field.CR0_READ_SHADOW]
    return bool(difference & vmcs[Field.CR0_GUEST_HOST_MASK])


def mov_to_cr4(processor: Processor, instruction: Instruction) -> bool:
    """Exit if a bit that the mask gives to the VMM differs from the read shadow."""
    vmcs = _vmcs(processor)
    difference = _source(processor, instruction) ^ vmcs[Field.CR4_READ_SHADOW]
    return bool(difference & vmcs[Field.CR4_GUEST_HOST_MASK])


def mov_to_cr3(processor: Processor, instruction: Instruction) -> bool:
    """Exit if the value is none of the CR3-target values in use."""
    vmcs = _vmcs(processor)
    if not vmcs.proc1 & Proc1.CR3_LOAD_EXITING:
        return False
    targets = _CR3_TARGETS[: vmcs[Field.CR3_TARGET_COUNT]]
    value = _source(processor, instruction)
    width = MASK64 if processor.regs.in_64bit_mode else MASK32
    return all(value != vmcs[target] & width for target in targets)


def clts(processor: Processor, instruction: Instruction) -> bool:
    """Exit if bit 3 (TS) is 1 both in the mask and in the read shadow."""
    vmcs = _vmcs(processor)
    return bool(vmcs[Field.CR0_GUEST_HOST_MASK] & vmcs[Field.CR0_READ_SHADOW] & Cr0.TS)


def lmsw_source(processor: Processor, instruction: Instruction) -> int:
    """Return the 16 bits that LMSW loads; reading them from memory may fault."""
    if has_memory_operand(instruction.operands):
        return read_u16(processor, info.operand_address(processor.regs, instruction.operands))
    return info.register(processor.regs, instruction.operands["source"]) & 0xFFFF


def lmsw(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """Exit if PE would be set against the shadow, or MP, EM or TS differ from it where masked."""
    vmcs = _vmcs(processor)
    mask, shadow = vmcs[Field.CR0_GUEST_HOST_MASK], vmcs[Field.CR0_READ_SHADOW]
    source = lmsw_source(processor, instruction)
    sets_pe = mask & source & ~shadow & Cr0.PE
    if not sets_pe and not mask & (source ^ shadow) & 0b1110:
        return None
    in_memory = has_memory_operand(instruction.operands)
    linear = info.operand_address(processor.regs, instruction.operands) if in_memory else 0
    return ExitInformation(
        ExitReason.CONTROL_REGISTER_ACCESS,
        info.lmsw(source, in_memory),
        instruction.length,
        guest_linear_address=linear,
    )


# Model-specific registers.


def msr_is_selected(processor: Processor, msr: int, write: bool) -> bool:
    """Tell whether RDMSR (or WRMSR) of `msr` exits: by its bit, or because it has none."""
    vmcs = _vmcs(processor)
    if not vmcs.proc1 & Proc1.USE_MSR_BITMAPS:
        return True
    number = msr - _MSR_HIGH if msr >= _MSR_HIGH else msr - _MSR_LOW
    if not 0 <= number < _MSRS_A_BITMAP:
        return True
    bitmap = vmcs[Field.MSR_BITMAP] + (_WRITES_FROM if write else 0)
    bitmap += 1024 if msr >= _MSR_HIGH else 0
    return bool(bit(read_u8(processor, bitmap + number // 8), number & 7))


def rdmsr(processor: Processor, instruction: Instruction) -> bool:
    """Ask the MSR bitmaps about the MSR in ECX."""
    return msr_is_selected(processor, processor.regs.rcx & MASK32, write=False)


def wrmsr(processor: Processor, instruction: Instruction) -> bool:
    """Ask the MSR bitmaps about the MSR in ECX."""
    return msr_is_selected(processor, processor.regs.rcx & MASK32, write=True)


def rdmsr_imm(processor: Processor, instruction: Instruction) -> bool:
    """Ask the MSR bitmaps about the immediate operand."""
    return msr_is_selected(processor, instruction.operands["msr"], write=False)


def wrmsr_imm(processor: Processor, instruction: Instruction) -> bool:
    """Ask the MSR bitmaps about the immediate operand."""
    return msr_is_selected(processor, instruction.operands["msr"], write=True)


def msr_list(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """Exit without bitmaps at once; with them when the next MSR of the list is selected."""
    regs, name = processor.regs, instruction.name
    reason = ExitReason[name.upper()]
    if not _vmcs(processor).proc1 & Proc1.USE_MSR_BITMAPS:
        return ExitInformation(reason, 0, instruction.length)
    if not regs.rcx:
        return None
    first = (regs.rcx & -regs.rcx).bit_length() - 1
    msr = read_u64(processor, regs.rsi + 8 * first)
    if msr > MASK32:
        raise GuestFault(GP, 0, f"{name}: entry {first} of the table has high bits")
    if name == "rdmsrlist":
        return (
            ExitInformation(reason, msr, instruction.length)
            if msr_is_selected(processor, msr, write=False)
            else None
        )
    # The value is read before the exit and left in the MSR-data field.
    data = read_u64(processor, regs.rdi + 8 * first)
    if not msr_is_selected(processor, msr, write=True):
        return None
    if processor.shape.field_exists(Field.MSR_DATA):
        _vmcs(processor)[Field.MSR_DATA] = data
    return ExitInformation(reason, msr, instruction.length)


def user_msr_faults(processor: Processor, instruction: Instruction) -> None:
    """#UD unless enabled; #GP(0) for an MSR above 3FFFH or one that its bitmap forbids."""
    control = processor.regs.msrs.get(_USER_MSR_CTL, 0)
    name = instruction.name
    if "user_msr" not in processor.shape.features or not control & 1:
        raise GuestFault(UD, None, f"{name} is not enabled")
    msr = info.msr_operand(processor, instruction)
    if msr >= _USER_MSRS:
        raise GuestFault(GP, 0, f"{name} of MSR {msr:#x}")
    bitmap = control & ~0xFFF & MASK64
    start = bitmap + (_WRITES_FROM if name.startswith("uwrmsr") else 0)
    word = read_u16(processor, start + msr // 8 & ~1, supervisor=True)
    if not bit(word, msr & 15):
        raise GuestFault(GP, 0, f"the user-MSR bitmap forbids {name} of MSR {msr:#x}")


def user_msr(processor: Processor, instruction: Instruction) -> bool:
    """Ask the low bitmaps; MSRs from 2000H on always exit."""
    msr = info.msr_operand(processor, instruction)
    return msr_is_selected(processor, msr, write=instruction.name.startswith("uwrmsr"))


# Leaf functions with bitmaps of their own.


def _leaf_bit(processor: Processor, bitmap: int) -> bool:
    return bool(bit(bitmap, min(processor.regs.rax & MASK32, _BITMAP_LAST)))


def encls(processor: Processor, instruction: Instruction) -> bool:
    """Exit for "enable ENCLS exiting" and the bit of the leaf (bit 63 from leaf 63 on)."""
    vmcs = _vmcs(processor)
    active = vmcs.proc2 & Proc2.ENABLE_ENCLS_EXITING
    return bool(active) and _leaf_bit(processor, vmcs[Field.ENCLS_EXITING_BITMAP])


def enclv(processor: Processor, instruction: Instruction) -> bool:
    """Exit for "enable ENCLV exiting" and the bit of the leaf."""
    vmcs = _vmcs(processor)
    active = vmcs.proc2 & Proc2.ENABLE_ENCLV_EXITING
    return bool(active) and _leaf_bit(processor, vmcs[Field.ENCLV_EXITING_BITMAP])


def pconfig(processor: Processor, instruction: Instruction) -> bool:
    """Ask the bit of the leaf in the PCONFIG-exiting bitmap."""
    return _leaf_bit(processor, _vmcs(processor)[Field.PCONFIG_EXITING_BITMAP])


def xss(processor: Processor, instruction: Instruction) -> bool:
    """Exit if a component asked for and enabled in IA32_XSS is in the XSS-exiting bitmap."""
    regs = processor.regs
    asked = (regs.rdx & MASK32) << 32 | regs.rax & MASK32
    enabled = regs.msrs.get(Msr.IA32_XSS, 0)
    return bool(asked & enabled & _vmcs(processor)[Field.XSS_EXITING_BITMAP])


# Task switches.


def task_switch(processor: Processor, instruction: Instruction) -> ExitInformation:
    """Exit for every task switch that passes the tests of gate, selector and descriptor."""
    operands = instruction.operands
    selector, source = operands.get("selector", 0) & 0xFFFF, operands.get("source", 0) & 3
    return by_instruction(processor, selector, source, instruction.length)


def pause(processor: Processor, instruction: Instruction) -> bool:
    """Exit for PAUSE exiting; or PAUSE-loop exiting at CPL 0, when the loop outlasts PLE_Window."""
    vmcs = _vmcs(processor)
    if vmcs.proc1 & Proc1.PAUSE_EXITING:
        return True
    if not vmcs.proc2 & Proc2.PAUSE_LOOP_EXITING or processor.regs.cpl:
        return False
    now, loop = processor.tsc, processor.pause_loop
    if loop is None or now - loop[1] > vmcs[Field.PLE_GAP]:
        processor.pause_loop = (now, now)
        return False
    processor.pause_loop = (loop[0], now)
    return now - loop[0] > vmcs[Field.PLE_WINDOW]


def _shadowed(processor: Processor, instruction: Instruction, bitmap: Field) -> bool:
    """Tell whether VMREAD or VMWRITE exits for all that VMCS shadowing can do."""
    encoding = info.register(processor.regs, instruction.operands["encoding"])
    if not processor.regs.in_64bit_mode:
        encoding &= MASK32
    return shadowing_exits(processor, encoding, bitmap)


def vmread(processor: Processor, instruction: Instruction) -> bool:
    """Exit without VMCS shadowing, or if the VMREAD bitmap has the field."""
    return _shadowed(processor, instruction, Field.VMREAD_BITMAP_ADDRESS)


def vmwrite(processor: Processor, instruction: Instruction) -> bool:
    """Exit without VMCS shadowing, or if the VMWRITE bitmap has the field."""
    return _shadowed(processor, instruction, Field.VMWRITE_BITMAP_ADDRESS)


def vm_function_number(processor: Processor, instruction: Instruction) -> None:
    """#UD for a VM function above 63."""
    if processor.regs.rax & MASK32 > _BITMAP_LAST:
        raise GuestFault(UD, None, f"VMFUNC {processor.regs.rax & MASK32}")


def vmfunc(processor: Processor, instruction: Instruction) -> bool:
    """Exit if the function is not enabled, or EPTP switching finds no usable EPTP."""
    return vm_function_exits(processor)


def translated_pasid(processor: Processor, pasid: int) -> int | None:
    """Return the host PASID of a guest PASID, None if translation fails."""
    vmcs = _vmcs(processor)
    high = pasid >> 19 & 1
    field = Field.HIGH_PASID_DIRECTORY_ADDRESS if high else Field.LOW_PASID_DIRECTORY_ADDRESS
    entry = read_physical_u64(processor, vmcs[field] + 8 * (pasid >> 10 & 0x1FF))
    reserved = 0xFFE | MASK64 >> processor.shape.maxphyaddr << processor.shape.maxphyaddr
    if not entry & 1 or entry & reserved:
        return None
    leaf = read_u32(processor, (entry & ~0xFFF) + 4 * (pasid & 0x3FF))
    return leaf & 0xF_FFFF if leaf >> 31 and not leaf & 0x7FF0_0000 else None


def enqcmd(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """Exit if PASID translation fails; the fault tests and the load of the source come before."""
    from vtx.rules.execution_memory import read

    regs, vmcs = processor.regs, _vmcs(processor)
    user = instruction.name == "enqcmd"
    pasid = regs.msrs.get(Msr.IA32_PASID, 0)
    if user and not pasid >> 31 & 1:
        raise GuestFault(GP, 0, "ENQCMD with IA32_PASID not valid")
    source = read(processor, info.operand_address(regs, instruction.operands), 64)
    low = int.from_bytes(source[:4], "little")
    if not vmcs.proc2 & Proc2.PASID_TRANSLATION:
        return None
    number = pasid & 0xF_FFFF if user else low & 0xF_FFFF
    if translated_pasid(processor, number) is not None:
        return None
    if user:
        return ExitInformation(
            ExitReason.ENQCMD_PASID_TRANSLATION_FAILURE, number, instruction.length
        )
    return ExitInformation(ExitReason.ENQCMDS_PASID_TRANSLATION_FAILURE, low, instruction.length)
