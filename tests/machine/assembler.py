"""Machine code for the forms of the instruction table, to test the decoder against."""

from __future__ import annotations

from collections.abc import Mapping

from vtx.facts.instructions import SEGMENT_REGISTERS, Form
from vtx.machine.encoding import default_segment

_SEGMENT_PREFIX = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
_IMMEDIATE_BYTES = {"ib": 1, "iw": 2, "id": 4, "iq": 8}
#: With two registers the first is in ModR/M.rm for these.
_RM_FIRST = ("urdmsr", "test")
_MASK = (1 << 64) - 1


def _parts(form: Form) -> tuple[str, str, str, list[str]]:
    """Return the operands in reg, in rm, in the opcode, and the immediates."""
    named = [(name, kind) for name, kind in form.operands if name]
    immediates = [name for name, kind in named if "imm" in kind]
    rest = [(name, kind) for name, kind in named if "imm" not in kind]
    if "+r" in form.opcode:
        return "", "", rest[0][0], immediates
    if len(rest) < 2:
        return "", rest[0][0] if rest else "", "", immediates
    (first, kind), (second, _) = rest
    if kind[:2] == "rm" or kind in "ma" or form.mnemonic in _RM_FIRST or "0F 21" in form.opcode:
        return second, first, "", immediates
    return first, second, "", immediates


def _memory(operands: Mapping[str, int]) -> tuple[int, bytes]:
    """Return ModR/M without reg, and SIB and displacement, as `encoded_length` counts them."""
    value = operands["displacement"]
    signed = value - (1 << 64) if value >> 63 else value
    base = operands.get("base")
    if operands.get("rip_relative"):
        return 0x05, signed.to_bytes(4, "little", signed=True)
    index = operands.get("index", 4)
    scale = operands.get("scale", 1).bit_length() - 1
    if base is None:
        sib = scale << 6 | (index & 7) << 3 | 5
        return 0x04, bytes([sib]) + signed.to_bytes(4, "little", signed=True)
    size = 0 if signed == 0 and base & 7 != 5 else 1 if -128 <= signed <= 127 else 4
    tail = signed.to_bytes(size, "little", signed=True) if size else b""
    mod = {0: 0, 1: 1, 4: 2}[size] << 6
    if index != 4 or base & 7 == 4:
        return mod | 4, bytes([scale << 6 | (index & 7) << 3 | base & 7]) + tail
    return mod | base & 7, tail


def _prefixes(form: Form, operands: Mapping[str, int]) -> list[int]:
    """Return the prefixes that the operands bring."""
    prefixes = []
    memory, segment = "displacement" in operands, operands.get("segment", 3)
    if segment != (default_segment(operands) if memory else 3):
        prefixes.append(_SEGMENT_PREFIX[segment])
    if "osz" in form.opcode and operands.get("operand_size", 4) == 2:
        prefixes.append(0x66)
    return prefixes


def assemble(form: Form, operands: Mapping[str, int]) -> bytes:
    """Return the machine code of a form in 64-bit mode.

    Parameters
    ----------
    form : Form
        Of the instruction table.
    operands : mapping of str to int
        As a decoder returns them: registers by number, a memory operand by its parts.
    """
    tokens = form.opcode.split()
    reg, rm, register, immediates = _parts(form)
    wide = "W" in tokens or ("osz" in tokens and operands.get("operand_size") == 8)
    number = operands.get(reg, 0) if reg else 0
    other = operands.get(rm or register, 0)
    if "displacement" in operands:
        other = operands.get("base", 0)
    rex = wide << 3 | (number >> 3) << 2 | (operands.get("index", 0) >> 3) << 1 | other >> 3
    prefixes, opcode, tail = _prefixes(form, operands), bytearray(), b""
    for token in tokens:
        if token in ("66", "F2", "F3") and not opcode:
            prefixes.append(int(token, 16))
        elif token == "44" and not opcode:
            rex |= 4
        elif token == "+r":
            opcode[-1] |= other & 7
        elif token[0] == "/":
            tail += _modrm(form, token, number, other, operands)
        elif token in _IMMEDIATE_BYTES:
            size = _IMMEDIATE_BYTES[token]
            value = operands[immediates.pop(0)] & (1 << 8 * size) - 1
            tail += value.to_bytes(size, "little")
        elif token not in ("W", "osz"):
            opcode.append(int(token, 16))
    if opcode[0] == 0xC4:
        opcode[1] &= ~((rex & 1) << 5)
        rex = 0
    return bytes(prefixes) + (bytes([0x40 | rex]) if rex else b"") + bytes(opcode) + tail


def _modrm(form: Form, token: str, number: int, other: int, operands: Mapping[str, int]) -> bytes:
    words = [kind for name, kind in form.operands if not name]
    if token[1:].isdigit():
        number = int(token[1:])
    elif words and words[0].startswith("cr"):
        number = int(words[0][2:])
    elif words and words[0] in SEGMENT_REGISTERS:
        number = SEGMENT_REGISTERS.index(words[0])
    if "displacement" not in operands:
        return bytes([0xC0 | (number & 7) << 3 | other & 7])
    modrm, rest = _memory(operands)
    return bytes([modrm | (number & 7) << 3]) + rest
