"""What a VM exit due to an instruction says about it: qualification and operand encodings.

Source: SDM, "Basic VM-Exit Information" and "Information for VM Exits Due to Instruction
Execution". Bits that the manual leaves undefined are 0 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.machine.encoding import has_memory_operand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.registers import Registers

__all__ = [
    "address_size",
    "operand_address",
    "operand_offset",
    "register",
    "string_operand_address",
]

_DS, _ES = 3, 0
_FS, _GS = 4, 5
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_REP = 1 << 5
_STRING = 1 << 4
_IN = 1 << 3


def register(regs: Registers, number: int) -> int:
    """Return the general-purpose register with this number."""
    value: int = getattr(regs, GENERAL_REGISTERS[number])
    return value


# Addresses of memory operands.


def address_size(regs: Registers, operands: Mapping[str, int]) -> int:
    """Return the bytes of an address: as the instruction says, or what the mode defaults to."""
    given = operands.get("address_size")
    if given is not None:
        return given
    if regs.in_64bit_mode:
        return 8
    return 4 if regs.cs.access_rights & 0x4000 else 2


def _segment_base(regs: Registers, segment: int) -> int:
    """Return what a segment adds to an offset: in 64-bit mode only FS and GS add something."""
    if regs.in_64bit_mode and segment not in (_FS, _GS):
        return 0
    base: int = getattr(regs, _SEGMENTS[segment]).base
    return base


def operand_offset(regs: Registers, operands: Mapping[str, int]) -> int:
    """Return the effective address of the memory operand (its offset in the segment)."""
    offset = operands["displacement"]
    if "base" in operands:
        offset += register(regs, operands["base"])
    if "index" in operands:
        offset += register(regs, operands["index"]) * operands.get("scale", 1)
    return offset & ((1 << 8 * address_size(regs, operands)) - 1)


def operand_address(regs: Registers, operands: Mapping[str, int]) -> int:
    """Return the linear address of the memory operand."""
    offset = operand_offset(regs, operands)
    linear = _segment_base(regs, operands.get("segment", _DS)) + offset
    return linear & (MASK64 if regs.in_64bit_mode else MASK32)


def string_operand_address(regs: Registers, instruction: Instruction) -> int:
    """Return the linear address that INS writes (ES:rDI) or OUTS reads (DS:rSI, overridable)."""
    operands = instruction.operands
    mask = (1 << 8 * address_size(regs, operands)) - 1
    if instruction.name == "ins":
        base, offset = _segment_base(regs, _ES), regs.rdi & mask
    else:
        base, offset = _segment_base(regs, operands.get("segment", _DS)), regs.rsi & mask
    return base + offset & (MASK64 if regs.in_64bit_mode else MASK32)


# Exit qualifications. Each takes the processor and the instruction.


def displacement(processor: Processor, instruction: Instruction) -> int:
    """Displacement of the memory operand; next RIP included if it is RIP-relative."""
    return instruction.operands.get("displacement", 0)


def linear_address(processor: Processor, instruction: Instruction) -> int:
    """Linear address of the operand (INVLPG)."""
    return operand_address(processor.regs, instruction.operands)


def mov_to_cr(processor: Processor, instruction: Instruction) -> int:
    """Which control register, and the general-purpose register it is loaded from."""
    number = int(instruction.name.removeprefix("mov_to_cr"))
    return number | instruction.operands["source"] << 8


def mov_from_cr(processor: Processor, instruction: Instruction) -> int:
    """Which control register, and the general-purpose register it goes to."""
    number = int(instruction.name.removeprefix("mov_from_cr"))
    return number | 1 << 4 | instruction.operands["destination"] << 8


def clts(processor: Processor, instruction: Instruction) -> int:
    """Access type 2 to CR0."""
    return 2 << 4


def lmsw(source: int, in_memory: bool) -> int:
    """Access type 3 to CR0, with the operand's type and content."""
    return 3 << 4 | in_memory << 6 | source << 16


def mov_dr(processor: Processor, instruction: Instruction) -> int:
    """Which debug register, the direction, and the general-purpose register."""
    operands = instruction.operands
    if instruction.name == "mov_to_dr":
        return operands["debug"] | operands["source"] << 8
    return operands["debug"] | 1 << 4 | operands["destination"] << 8


def io_port(processor: Processor, instruction: Instruction) -> int:
    """Return the first port that IN, OUT, INS or OUTS accesses."""
    immediate = instruction.operands.get("immediate")
    return processor.regs.rdx & 0xFFFF if immediate is None else immediate


def io(processor: Processor, instruction: Instruction) -> int:
    """Size, direction, string and REP, operand encoding, port."""
    operands = instruction.operands
    value = operands["size"] - 1 | io_port(processor, instruction) << 16
    if instruction.name in ("in", "ins"):
        value |= _IN
    if instruction.name in ("ins", "outs"):
        value |= _STRING | (_REP if operands.get("rep") else 0)
    return value | (1 << 6 if "immediate" in operands else 0)


def mwait(processor: Processor, instruction: Instruction) -> int:
    """Whether address-range monitoring is armed."""
    return int(processor.monitor_armed)


def wrmsr_kind(processor: Processor, instruction: Instruction) -> int:
    """0 WRMSR, 1 WRMSRNS."""
    return int(instruction.name == "wrmsrns")


def wbinvd_kind(processor: Processor, instruction: Instruction) -> int:
    """0 WBINVD, 1 WBNOINVD."""
    return int(instruction.name == "wbnoinvd")


def msr_operand(processor: Processor, instruction: Instruction) -> int:
    """MSR that the instruction names, immediately or in a register."""
    operands = instruction.operands
    immediate = operands.get("msr") if instruction.name.endswith("_imm") else None
    if immediate is not None:
        return immediate
    return register(processor.regs, operands["number"]) & MASK32


# VM-exit instruction information. Each takes the processor and the instruction.


def _memory(processor: Processor, operands: Mapping[str, int]) -> int:
    """Scaling, address size, segment, index and base: the part that the tables share."""
    value = {2: 0, 4: 1, 8: 2}[address_size(processor.regs, operands)] << 7
    value |= operands.get("segment", _DS) << 15
    if "index" in operands:
        value |= operands.get("scale", 1).bit_length() - 1 | operands["index"] << 18
    else:
        value |= 1 << 22
    return value | (operands["base"] << 23 if "base" in operands else 1 << 27)


def memory_operand(processor: Processor, instruction: Instruction) -> int:
    """VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES."""
    return _memory(processor, instruction.operands)


def inv_descriptor(processor: Processor, instruction: Instruction) -> int:
    """INVEPT, INVPCID, INVVPID: with the register that holds the type."""
    return _memory(processor, instruction.operands) | instruction.operands["register"] << 28


_DESCRIPTOR_TABLE = {"sgdt": 0, "sidt": 1, "lgdt": 2, "lidt": 3}
_SELECTOR = {"sldt": 0, "str": 1, "lldt": 2, "ltr": 3}


def descriptor_table(processor: Processor, instruction: Instruction) -> int:
    """LGDT, LIDT, SGDT, SIDT: with the instruction's identity and operand size."""
    value = _memory(processor, instruction.operands) | _DESCRIPTOR_TABLE[instruction.name] << 28
    regs = processor.regs
    # Bit 11 is undefined from 64-bit mode.
    is_32_bit = not regs.in_64bit_mode and bool(regs.cs.access_rights & 0x4000)
    return value | is_32_bit << 11


def _register_or_memory(processor: Processor, operands: Mapping[str, int], name: str) -> int:
    if has_memory_operand(operands):
        return _memory(processor, operands)
    return 1 << 10 | operands[name] << 3


def selector(processor: Processor, instruction: Instruction) -> int:
    """LLDT, LTR, SLDT, STR: with the instruction's identity."""
    name = "source" if instruction.name in ("lldt", "ltr") else "destination"
    value = _register_or_memory(processor, instruction.operands, name)
    return value | _SELECTOR[instruction.name] << 28


def vmcs_field(processor: Processor, instruction: Instruction) -> int:
    """VMREAD, VMWRITE: with the register that holds the field's encoding."""
    name = "destination" if instruction.name == "vmread" else "source"
    value = _register_or_memory(processor, instruction.operands, name)
    return value | instruction.operands["encoding"] << 28


def random_number(processor: Processor, instruction: Instruction) -> int:
    """RDRAND, RDSEED: destination register and its size."""
    operands = instruction.operands
    size = {2: 0, 4: 1, 8: 2}[operands.get("operand_size", 4)]
    return operands["destination"] << 3 | size << 11


def wait(processor: Processor, instruction: Instruction) -> int:
    """TPAUSE, UMWAIT: source register."""
    return instruction.operands["source"] << 3


def wrapping_key(processor: Processor, instruction: Instruction) -> int:
    """LOADIWKEY: both XMM operands."""
    return instruction.operands["first"] << 3 | instruction.operands["second"] << 28


def msr_register(processor: Processor, instruction: Instruction) -> int:
    """URDMSR, UWRMSR and the immediate forms: register that holds or gets the value."""
    operands = instruction.operands
    name = "source" if "source" in operands else "destination"
    return operands[name] << 3


def ins_outs(processor: Processor, instruction: Instruction) -> int:
    """Return address size and segment of INS and OUTS, where the CPU reports them."""
    if not processor.shape.msr(Msr.IA32_VMX_BASIC) >> 54 & 1:
        return 0
    operands = instruction.operands
    value = {2: 0, 4: 1, 8: 2}[address_size(processor.regs, operands)] << 7
    if instruction.name == "outs":
        value |= operands.get("segment", _DS) << 15
    return value
