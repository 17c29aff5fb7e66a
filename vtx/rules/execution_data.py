"""Loads, stores, moves, stack and port accesses of the guest.

Each function executes one instruction that does not exit; the data move between the guest's
registers and its memory, through the MMU. Ports have no devices behind them: reads give all ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import GuestFault
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.machine.mmu import Access
from vtx.machine.registers import Rflags
from vtx.rules.execution_memory import access, read, write
from vtx.rules.execution_registers import put_sized
from vtx.rules.exiting_information import (
    address_size,
    operand_address,
    register,
    string_operand_address,
)
from vtx.rules.stack import Stack, operand_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS"]

_DEFAULT_SIZE = 8
_RAX, _RDX = 0, 2


def _size(instruction: Instruction) -> int:
    operands = instruction.operands
    return operands.get("size", operands.get("operand_size", _DEFAULT_SIZE))


def load(processor: Processor, instruction: Instruction) -> None:
    """Read memory; into a register if the instruction has one."""
    operands = instruction.operands
    linear, size = operand_address(processor.regs, operands), _size(instruction)
    if "destination" not in operands:
        access(processor, linear, size, Access.LOAD)
        return
    value = int.from_bytes(read(processor, linear, size), "little")
    if size == 1:
        _put_byte(processor, operands, value)
    else:
        put_sized(processor, operands["destination"], value, size)


def _put_byte(processor: Processor, operands: Mapping[str, int], value: int) -> None:
    """Write an 8-bit register: bits 7:0, or bits 15:8 of AH, CH, DH and BH."""
    name, shift = GENERAL_REGISTERS[operands["destination"]], 8 * operands.get("high_byte", 0)
    kept: int = getattr(processor.regs, name) & ~(0xFF << shift)
    setattr(processor.regs, name, kept | value << shift)


def _source(processor: Processor, operands: Mapping[str, int]) -> int:
    """Return the register operand; AH, CH, DH and BH are bits 15:8."""
    return register(processor.regs, operands["source"]) >> 8 * operands.get("high_byte", 0)


def store(processor: Processor, instruction: Instruction) -> None:
    """Write memory: a register, a number, or (with neither) no new content."""
    operands = instruction.operands
    linear, size = operand_address(processor.regs, operands), _size(instruction)
    if "source" in operands:
        value = _source(processor, operands)
    elif "value" in operands:
        value = operands["value"]
    else:
        access(processor, linear, size, Access.STORE)
        return
    write(processor, linear, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))


def modify(processor: Processor, instruction: Instruction) -> None:
    """Add a register or a number (0 by default) to memory; with a register, set flags as ADD."""
    operands = instruction.operands
    linear, size = operand_address(processor.regs, operands), _size(instruction)
    addend = operands.get("value", 0)
    is_add = "source" in operands
    if is_add:
        addend = _source(processor, operands) & _all_ones(size)
    # One access that reads and writes: it must be allowed to write before it reads.
    access(processor, linear, size, Access.MODIFY)
    if not addend and not is_add:
        return
    value = int.from_bytes(read(processor, linear, size), "little")
    result = value + addend & _all_ones(size)
    write(processor, linear, result.to_bytes(size, "little"))
    if is_add:
        _add_flags(processor, value, addend, size)


def _add_flags(processor: Processor, first: int, second: int, size: int) -> None:
    """Set the status flags as ADD does."""
    total = first + second
    result, sign = total & _all_ones(size), 1 << 8 * size - 1
    _logical_flags(processor, result, size)
    flags = Rflags.CF if total > result else 0
    flags |= Rflags.AF if (first ^ second ^ result) & 0x10 else 0
    flags |= Rflags.OF if (first ^ result) & (second ^ result) & sign else 0
    processor.regs.rflags |= flags


def fetch(processor: Processor, instruction: Instruction) -> None:
    """Refer to memory as an instruction fetch does."""
    linear = operand_address(processor.regs, instruction.operands)
    access(processor, linear, instruction.operands.get("size", 1), Access.FETCH)


def mov(processor: Processor, instruction: Instruction) -> None:
    """Copy a register or a number to a register."""
    operands = instruction.operands
    value = operands.get("value")
    if value is None:
        value = register(processor.regs, operands["source"])
    put_sized(processor, operands["destination"], value, operands.get("operand_size", 8))


def push(processor: Processor, instruction: Instruction) -> None:
    """PUSH of a register."""
    regs, operands = processor.regs, instruction.operands
    stack = Stack(processor)
    stack.push(register(regs, operands["source"]), operand_size(regs, operands))
    regs.rsp = stack.pointer


def pop(processor: Processor, instruction: Instruction) -> None:
    """POP of a register."""
    regs, operands = processor.regs, instruction.operands
    size = operand_size(regs, operands)
    stack = Stack(processor)
    value = stack.pop(size)
    regs.rsp = stack.pointer
    put_sized(processor, operands["destination"], value, size)


_STATUS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
_DE = 0


def _logical_flags(processor: Processor, value: int, size: int) -> None:
    """Set the status flags as AND and XOR do; AF, which the manual leaves undefined, becomes 0."""
    flags = 0 if value else Rflags.ZF
    flags |= Rflags.SF if value >> 8 * size - 1 else 0
    flags |= 0 if (value & 0xFF).bit_count() & 1 else Rflags.PF
    processor.regs.rflags = processor.regs.rflags & ~_STATUS | flags


def _two_registers(processor: Processor, instruction: Instruction) -> tuple[int, int, int]:
    operands = instruction.operands
    size = operands.get("operand_size", 4)
    mask = _all_ones(size)
    first, second = (
        register(processor.regs, operands[n]) & mask for n in ("destination", "source")
    )
    return first, second, size


def xor(processor: Processor, instruction: Instruction) -> None:
    """XOR of two registers."""
    first, second, size = _two_registers(processor, instruction)
    put_sized(processor, instruction.operands["destination"], first ^ second, size)
    _logical_flags(processor, first ^ second, size)


def test(processor: Processor, instruction: Instruction) -> None:
    """TEST of two registers."""
    first, second, size = _two_registers(processor, instruction)
    _logical_flags(processor, first & second, size)


def btr(processor: Processor, instruction: Instruction) -> None:
    """BTR of a register: CF gets the bit, which becomes 0; the other status flags stay."""
    regs, operands = processor.regs, instruction.operands
    size = operands.get("operand_size", 4)
    value = register(regs, operands["destination"])
    mask = 1 << operands["bit"] % (8 * size)
    regs.rflags = regs.rflags & ~Rflags.CF | (Rflags.CF if value & mask else 0)
    put_sized(processor, operands["destination"], value & ~mask, size)


def div(processor: Processor, instruction: Instruction) -> None:
    """DIV of RDX:RAX (in the operand size) by a register."""
    regs, operands = processor.regs, instruction.operands
    size = operands.get("operand_size", 4)
    mask = _all_ones(size)
    divisor = register(regs, operands["source"]) & mask
    dividend = (regs.rdx & mask) << 8 * size | regs.rax & mask
    if not divisor or dividend // divisor > mask:
        raise GuestFault(_DE, None, "the quotient does not fit")
    put_sized(processor, _RAX, dividend // divisor, size)
    put_sized(processor, _RDX, dividend % divisor, size)


def _all_ones(size: int) -> int:
    return (1 << 8 * size) - 1


def in_(processor: Processor, instruction: Instruction) -> None:
    """IN: all ones, as no device answers."""
    size = instruction.operands["size"]
    kept = 0 if size == 4 else processor.regs.rax & ~_all_ones(size)
    processor.regs.rax = kept | _all_ones(size)


def out(processor: Processor, instruction: Instruction) -> None:
    """OUT: no device listens."""


def _string(processor: Processor, instruction: Instruction) -> None:
    """Run INS or OUTS: once, or with REP until the count is 0.

    Each iteration leaves the registers as they must be when the next one faults or exits.
    """
    regs, operands = processor.regs, instruction.operands
    mask = (1 << 8 * address_size(regs, operands)) - 1
    size = operands["size"]
    step = -size if regs.rflags & Rflags.DF else size
    is_ins = instruction.name == "ins"
    pointer = "rdi" if is_ins else "rsi"
    while not operands.get("rep") or regs.rcx & mask:
        linear = string_operand_address(regs, instruction)
        if is_ins:
            write(processor, linear, b"\xff" * size)
        else:
            access(processor, linear, size, Access.LOAD)
        value: int = getattr(regs, pointer)
        setattr(regs, pointer, value & ~mask | value + step & mask)
        if not operands.get("rep"):
            return
        regs.rcx = regs.rcx & ~mask | regs.rcx - 1 & mask


def enqueue(processor: Processor, instruction: Instruction) -> None:
    """ENQCMD and ENQCMDS: no device accepts the command, so ZF becomes 1.

    The source was read before; the destination is written as one 64-byte store.
    """
    regs = processor.regs
    destination = register(regs, instruction.operands["destination"])
    access(processor, destination, 64, Access.STORE)
    status = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
    regs.rflags = regs.rflags & ~status | Rflags.ZF


#: What each instruction does when it does not exit.
EFFECTS = {
    "load": load,
    "store": store,
    "modify": modify,
    "fetch": fetch,
    "mov": mov,
    "xor": xor,
    "test": test,
    "btr": btr,
    "div": div,
    "push": push,
    "pop": pop,
    "in": in_,
    "out": out,
    "ins": _string,
    "outs": _string,
    "enqcmd": enqueue,
    "enqcmds": enqueue,
}
