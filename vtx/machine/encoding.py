"""How many bytes an instruction takes (SDM, "Instruction Format").

The model executes names, not bytes; but an exit reports the instruction's length, and RIP moves
by it, so the length is that of the encoding an assembler would choose for code of that width.
"""

from __future__ import annotations

from collections.abc import Mapping

from vtx.errors import InputError
from vtx.facts.instructions import Form

__all__ = ["MAX_INSTRUCTION_BYTES", "default_segment", "encoded_length", "has_memory_operand"]

#: No instruction is longer (SDM, "Instruction Format").
MAX_INSTRUCTION_BYTES = 15

_IMMEDIATE_BYTES = {"ib": 1, "iw": 2, "id": 4, "iq": 8}
_DEFAULT_SEGMENT_IS_SS = (4, 5)
_DS, _SS = 3, 2
#: IN, OUT, INS and OUTS of 16 or 32 bits: the width of the code decides which needs a prefix.
_BY_SIZE_IN_16_BIT_CODE = frozenset({"E5", "ED", "E7", "EF", "6D", "6F"})


def has_memory_operand(operands: Mapping[str, int]) -> bool:
    """Tell whether the operands of an instruction include one in memory."""
    return "displacement" in operands


def default_segment(operands: Mapping[str, int]) -> int:
    """Return the segment a memory operand uses without an override: SS for RSP and RBP."""
    return _SS if operands.get("base") in _DEFAULT_SEGMENT_IS_SS else _DS


def _memory_bytes(operands: Mapping[str, int], bits: int) -> int:
    """Bytes of SIB and displacement of a memory operand in code of this width."""
    if operands.get("rip_relative"):
        return 4
    wide = operands.get("address_size", bits // 8) > 2
    base = operands.get("base")
    if base is None:
        return 5 if bits == 64 else 4 if wide else 2
    sib = 1 if wide and ("index" in operands or base & 7 == 4) else 0
    displacement = operands["displacement"]
    signed = displacement - (1 << 64) if displacement >> 63 else displacement
    if signed == 0 and base & 7 != 5:
        return sib
    return sib + (1 if -128 <= signed <= 127 else 4 if wide else 2)


def _prefix_bytes(form: Form, operands: Mapping[str, int], bits: int) -> int:
    """Bytes of the prefixes that the operands bring: segment, address size, REP, LOCK."""
    count = 1 if operands.get("address_size", bits // 8) != bits // 8 else 0
    count += 1 if operands.get("rep") else 0
    count += 1 if operands.get("lock") else 0
    if has_memory_operand(operands):
        count += 1 if operands.get("segment", _DS) != default_segment(operands) else 0
    elif operands.get("segment", _DS) != _DS:
        count += 1
    return count


def _operand_size_prefix(tokens: list[str], operands: Mapping[str, int], bits: int) -> int:
    """Bytes of the operand-size prefix: it selects the width that is not the code's own."""
    size = operands.get("operand_size", 4)
    if "osz" in tokens:
        return int(size == 4) if bits == 16 else int(size == 2)
    if bits == 16 and tokens[0] in _BY_SIZE_IN_16_BIT_CODE:
        return int(operands.get("size") == 4)
    return 0


def _needs_rex(form: Form, tokens: list[str], operands: Mapping[str, int]) -> bool:
    """Whether the instruction takes a REX prefix of its own."""
    if tokens[0] == "C4" or tokens[0] == "44":
        return False
    if "W" in tokens or ("osz" in tokens and operands.get("operand_size", 4) == 8):
        return True
    numbers = [operands.get("base", 0), operands.get("index", 0)]
    numbers += [operands.get(name, 0) for name, kind in form.operands if name and kind[0] in "rx"]
    return max(numbers) > 7


def encoded_length(form: Form, operands: Mapping[str, int], bits: int = 64) -> int:
    """Return the bytes of `form` with these operands in code of `bits` bits; 0 for an event.

    Raises
    ------
    InputError
        The prefixes make it longer than an instruction can be.
    """
    if not form.opcode:
        return 0
    tokens = form.opcode.split()
    if bits == 16 and tokens[0] == "66" and tokens[1] in _BY_SIZE_IN_16_BIT_CODE:
        tokens = tokens[1:]
    length = _prefix_bytes(form, operands, bits) + _operand_size_prefix(tokens, operands, bits)
    length += bits == 64 and _needs_rex(form, tokens, operands)
    narrow = bits == 16 and form.mnemonic == "jmp"
    for part in tokens:
        if part in _IMMEDIATE_BYTES:
            length += 2 if narrow else _IMMEDIATE_BYTES[part]
        elif part[0] == "/":
            length += 1 + (_memory_bytes(operands, bits) if has_memory_operand(operands) else 0)
        elif part not in ("W", "+r", "osz"):
            length += 1
    if length > MAX_INSTRUCTION_BYTES:
        raise InputError(
            f"{form.mnemonic} would be {length} bytes long",
            hint=f"an instruction has at most {MAX_INSTRUCTION_BYTES}",
        )
    return length
