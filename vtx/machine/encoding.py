"""How many bytes an instruction takes (SDM, "Instruction Format").

The model executes names, not bytes; but an exit reports the instruction's length, and RIP moves
by it, so the length is that of the encoding an assembler would choose for 64-bit mode.
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


def has_memory_operand(operands: Mapping[str, int]) -> bool:
    """Tell whether the operands of an instruction include one in memory."""
    return "displacement" in operands


def default_segment(operands: Mapping[str, int]) -> int:
    """Return the segment a memory operand uses without an override: SS for RSP and RBP."""
    return _SS if operands.get("base") in _DEFAULT_SEGMENT_IS_SS else _DS


def _memory_bytes(operands: Mapping[str, int]) -> int:
    """Bytes of SIB and displacement of a memory operand in 64-bit mode."""
    if operands.get("rip_relative"):
        return 4
    base = operands.get("base")
    if base is None:
        return 5
    sib = 1 if "index" in operands or base & 7 == 4 else 0
    displacement = operands["displacement"]
    signed = displacement - (1 << 64) if displacement >> 63 else displacement
    if signed == 0 and base & 7 != 5:
        return sib
    return sib + (1 if -128 <= signed <= 127 else 4)


def _prefix_bytes(form: Form, operands: Mapping[str, int]) -> int:
    """Bytes of the prefixes that the operands bring: segment, address size, REP, LOCK."""
    count = 1 if operands.get("address_size", 8) == 4 else 0
    count += 1 if operands.get("rep") else 0
    count += 1 if operands.get("lock") else 0
    if has_memory_operand(operands):
        count += 1 if operands.get("segment", _DS) != default_segment(operands) else 0
    elif operands.get("segment", _DS) != _DS:
        count += 1
    return count


def _needs_rex(form: Form, tokens: list[str], operands: Mapping[str, int]) -> bool:
    """Whether the instruction takes a REX prefix of its own."""
    if tokens[0] == "C4" or tokens[0] == "44":
        return False
    if "W" in tokens or ("osz" in tokens and operands.get("operand_size", 4) == 8):
        return True
    numbers = [operands.get("base", 0), operands.get("index", 0)]
    numbers += [operands.get(name, 0) for name, kind in form.operands if name and kind[0] in "rx"]
    return max(numbers) > 7


def encoded_length(form: Form, operands: Mapping[str, int]) -> int:
    """Return the bytes of `form` with these operands; 0 for an event.

    Raises
    ------
    InputError
        The prefixes make it longer than an instruction can be.
    """
    if not form.opcode:
        return 0
    tokens = form.opcode.split()
    length = _prefix_bytes(form, operands) + _needs_rex(form, tokens, operands)
    for part in tokens:
        if part == "osz":
            length += operands.get("operand_size", 4) == 2
        elif part in _IMMEDIATE_BYTES:
            length += _IMMEDIATE_BYTES[part]
        elif part[0] == "/":
            length += 1 + (_memory_bytes(operands) if has_memory_operand(operands) else 0)
        elif part not in ("W", "+r"):
            length += 1
    if length > MAX_INSTRUCTION_BYTES:
        raise InputError(
            f"{form.mnemonic} would be {length} bytes long",
            hint=f"an instruction has at most {MAX_INSTRUCTION_BYTES}",
        )
    return length
