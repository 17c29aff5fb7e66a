"""From machine code to the instructions of the table (SDM, "Instruction Format").

The inverse of an assembler for the forms in :mod:`vtx.facts.instructions`: everything is derived
from the opcode strings that stand there, in 16-, 32- and 64-bit code.
"""

from __future__ import annotations

from typing import NamedTuple

from vtx.bits import MASK64, sign_extend
from vtx.errors import InputError
from vtx.facts.instructions import INSTRUCTIONS, SEGMENT_REGISTERS
from vtx.machine.decoding_forms import DecodedForm, forms_at
from vtx.machine.encoding import MAX_INSTRUCTION_BYTES
from vtx.machine.program import Instruction

__all__ = ["DecodeError", "decode"]

_SEGMENTS = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
_OPERAND_SIZE, _ADDRESS_SIZE, _LOCK, _REPNE, _REP = 0x66, 0x67, 0xF0, 0xF2, 0xF3
_PREFIXES = frozenset({*_SEGMENTS, _OPERAND_SIZE, _ADDRESS_SIZE, _LOCK, _REPNE, _REP})
_VEX3 = 0xC4
_VEX_PREFIX = {0: None, 1: _OPERAND_SIZE, 2: _REP, 3: _REPNE}
_DS, _SS = 3, 2
#: Their operand has 64 bits in 64-bit mode without REX.W.
_WIDE = frozenset({"push", "pop", "pushf", "popf"})
#: No instructions in 64-bit mode: #UD ("Opcode Map", i64).
_INVALID_64 = frozenset(
    b"\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\x82\x9a\xd4\xd5\xd6\xea"
)
#: MOV between the accumulator and an address in the instruction: name, and whether it is a byte.
_MOV_OFFSETS = {
    0xA0: ("load", True), 0xA1: ("load", False), 0xA2: ("store", True), 0xA3: ("store", False),
}  # fmt: skip
_RSP, _RBP, _RSI, _RDI, _RBX = 4, 5, 6, 7, 3
#: Base and index of 16-bit addressing by ModR/M.rm.
_PAIRS_16 = (
    (_RBX, _RSI), (_RBX, _RDI), (_RBP, _RSI), (_RBP, _RDI),
    (_RSI, None), (_RDI, None), (_RBP, None), (_RBX, None),
)  # fmt: skip


class DecodeError(InputError):
    """The bytes are no instruction of the table, or end within one.

    Attributes
    ----------
    truncated : bool
        There could be an instruction if more bytes followed.
    """

    def __init__(self, code: bytes, why: str, *, truncated: bool = False) -> None:
        self.truncated = truncated
        super().__init__(f"{code[:MAX_INSTRUCTION_BYTES].hex() or 'no bytes'}: {why}")


class _Bytes:
    """The bytes of one instruction, read one after the other."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.at = 0

    def peek(self, ahead: int = 0) -> int:
        place = self.at + ahead
        if place >= MAX_INSTRUCTION_BYTES:
            raise DecodeError(self.code, "an instruction has at most 15 bytes")
        if place >= len(self.code):
            raise DecodeError(self.code, "the code ends within an instruction", truncated=True)
        return self.code[place]

    def number(self, size: int) -> int:
        """Return the next `size` bytes as a number without sign."""
        value = 0
        for position in range(size):
            value |= self.peek() << 8 * position
            self.at += 1
        return value


class _Head(NamedTuple):
    """What stands before the opcode.

    `prefixes` holds the legacy prefixes, `segment` is the override, `w r x b` are those of REX
    or VEX, `vex_map` is 0 without VEX. `has_rex`: there is a REX prefix.
    """

    mode: int
    prefixes: frozenset[int]
    segment: int | None
    w: int
    r: int
    x: int
    b: int
    vex_map: int
    has_rex: bool

    @property
    def operand_size(self) -> int:
        """Bytes of an operand whose size the prefixes choose."""
        if self.w:
            return 8
        narrow = _OPERAND_SIZE in self.prefixes
        return 2 if narrow != (self.mode == 16) else 4

    @property
    def default_address_size(self) -> int:
        return self.mode // 8

    @property
    def address_size(self) -> int:
        if _ADDRESS_SIZE not in self.prefixes:
            return self.default_address_size
        return 2 if self.mode == 32 else 4


def decode(code: bytes, mode: int = 64, rip: int = 0) -> Instruction:
    """Return the instruction at the beginning of `code`.

    Parameters
    ----------
    code : bytes
        Machine code; what follows the first instruction is not looked at.
    mode : int
        16, 32 or 64: the default sizes of the code segment.
    rip : int
        Instruction pointer at the first byte, for relative operands.

    Raises
    ------
    DecodeError
        It is no instruction of the table.
    """
    source = _Bytes(code)
    head = _read_head(source, mode)
    opcode = source.at
    if head.vex_map:
        candidates = forms_at((_VEX3, head.vex_map, source.number(1)))
        chosen = _choose(source, head, candidates)
        if chosen is not None:
            return _build(source, head, *chosen, rip)
    else:
        for length in (4, 3, 2, 1):
            literal = tuple(code[opcode : opcode + length])
            if len(literal) < length:
                continue
            source.at = opcode + length
            chosen = _choose(source, head, forms_at(literal))
            if chosen is not None:
                return _build(source, head, *chosen, rip)
    source.at = opcode
    if not head.vex_map and source.peek() in _MOV_OFFSETS:
        return _mov_offset(source, head, rip)
    if mode == 64 and source.peek() in _INVALID_64:
        return Instruction("ud2", length=opcode + 1, rip=rip, text="undefined in 64-bit mode")
    if len(code) < opcode + 3 and len(code) < MAX_INSTRUCTION_BYTES:
        raise DecodeError(code, "no instruction of the table begins so", truncated=True)
    raise DecodeError(code, f"no instruction of the table in {mode}-bit code")


def _mov_offset(source: _Bytes, head: _Head, rip: int) -> Instruction:
    """Read MOV of the accumulator from or to an address of the address size."""
    name, byte = _MOV_OFFSETS[source.number(1)]
    operands = {"displacement": source.number(head.address_size)}
    operands["destination" if name == "load" else "source"] = 0
    if byte:
        operands["size"] = 1
    else:
        operands["operand_size"] = head.operand_size
    if head.segment is not None:
        operands["segment"] = head.segment
    return Instruction(name, operands, length=source.at, rip=rip, text=f"mov moffs ({name})")


def _read_head(source: _Bytes, mode: int) -> _Head:
    """Read legacy prefixes, and REX or VEX."""
    prefixes: set[int] = set()
    segment = None
    while (byte := source.peek()) in _PREFIXES:
        source.at += 1
        segment = _SEGMENTS.get(byte, segment)
        if byte in (_REP, _REPNE):
            prefixes -= {_REP, _REPNE}  # the last of them counts
        prefixes.add(byte)
    if mode == 64 and segment is not None and segment < SEGMENT_REGISTERS.index("fs"):
        segment = None  # the others do nothing in 64-bit mode
    rex = 0
    if mode == 64 and byte >> 4 == 4:
        rex = byte
        source.at += 1
    has_rex = bool(rex)
    w, r, x, b = (rex >> position & 1 for position in (3, 2, 1, 0))
    vex_map = 0
    if source.peek() == _VEX3 and (mode == 64 or source.peek(1) >> 6 == 3):
        first, second = source.peek(1), source.peek(2)
        source.at += 3
        r, x, b = (~first >> position & 1 for position in (7, 6, 5))
        w, vex_map = second >> 7, first & 0x1F
        implied = _VEX_PREFIX[second & 3]
        if implied is not None:
            prefixes.add(implied)
    return _Head(mode, frozenset(prefixes), segment, w, r, x, b, vex_map, has_rex)


_Chosen = tuple[DecodedForm, dict[str, int]]


def _choose(source: _Bytes, head: _Head, candidates: tuple[DecodedForm, ...]) -> _Chosen | None:
    """Return the best form that fits, with what is fixed by it."""
    for form in candidates:
        if not _prefixes_fit(head, form):
            continue
        if form.modrm and not _modrm_fits(source.peek(), head, form):
            continue
        return form, dict(form.form.fixed)
    return None


def _prefixes_fit(head: _Head, form: DecodedForm) -> bool:
    if not form.mandatory <= head.prefixes:
        return False
    if form.size and head.operand_size != form.size and not (form.size == 4 and head.w):
        return False
    if form.rex_r is not None and head.r != form.rex_r:
        return False
    return not form.needs_w or bool(head.w)


def _modrm_fits(modrm: int, head: _Head, form: DecodedForm) -> bool:
    is_register = modrm >> 6 == 3
    if (form.rm_is == "memory" and is_register) or (form.rm_is == "register" and not is_register):
        return False
    return form.digit is None or modrm >> 3 & 7 == form.digit


def _build(
    source: _Bytes, head: _Head, form: DecodedForm, operands: dict[str, int], rip: int
) -> Instruction:
    """Read the operands of the form that was chosen."""
    if form.register:
        operands[form.register] = source.code[source.at - 1] & 7 | head.b << 3
    relative = False
    if form.modrm:
        relative = _read_modrm(source, head, form, operands)
    for name, size in form.immediates:
        operands[name] = _read_immediate(source, head, form, size)
    length = source.at
    if relative:
        operands["displacement"] += rip + length
        operands["displacement"] &= MASK64 if head.address_size == 8 else 0xFFFF_FFFF
    if form.relative:
        operands[form.relative] = rip + length + operands[form.relative] & MASK64
    _apply_prefixes(head, form, operands)
    return Instruction(form.name, operands, length=length, rip=rip, text=_text(form, operands))


def _read_immediate(source: _Bytes, head: _Head, form: DecodedForm, size: int) -> int:
    """Read an immediate operand; a jump's distance has the operand size outside 64-bit mode."""
    if form.relative:
        count = 2 if head.mode != 64 and head.operand_size == 2 else size
        return sign_extend(source.number(count), 8 * count)
    value = source.number(abs(size))
    return sign_extend(value, -8 * size) if size < 0 else value


def _text(form: DecodedForm, operands: dict[str, int]) -> str:
    values = " ".join(f"{key}={value:#x}" for key, value in operands.items())
    return f"{form.form.syntax} [{values}]" if values else form.form.mnemonic


def _apply_prefixes(head: _Head, form: DecodedForm, operands: dict[str, int]) -> None:
    spec = INSTRUCTIONS[form.name]
    if form.sized or (_OPERAND_SIZE in head.prefixes - form.mandatory and not form.form.fixed):
        operands["operand_size"] = head.operand_size
        if head.mode == 64 and form.name in _WIDE and head.operand_size == 4:
            operands["operand_size"] = 8
    if head.address_size != head.default_address_size:
        operands["address_size"] = head.address_size
    if _LOCK in head.prefixes:
        operands["lock"] = 1
    if form.reg and form.byte_register and not head.has_rex and operands[form.reg] >= _RSP:
        operands[form.reg] -= _RSP  # AH, CH, DH, BH
        operands["high_byte"] = 1
    if spec.name in ("ins", "outs"):
        if head.prefixes & {_REP, _REPNE}:
            operands["rep"] = 1
        if head.segment is not None:
            operands["segment"] = head.segment


def _read_modrm(source: _Bytes, head: _Head, form: DecodedForm, operands: dict[str, int]) -> bool:
    """Read ModR/M and what belongs to it; tell whether the address is relative to RIP."""
    modrm = source.number(1)
    if form.reg:
        operands[form.reg] = modrm >> 3 & 7 | head.r << 3
    if modrm >> 6 == 3 or form.rm_is == "always register":
        if form.rm:
            operands[form.rm] = modrm & 7 | head.b << 3
        return False
    segment, relative = _read_address(source, head, modrm, operands)
    if head.segment is not None:
        segment = head.segment
    if segment != _DS:
        operands["segment"] = segment
    return relative


def _read_address(
    source: _Bytes, head: _Head, modrm: int, operands: dict[str, int]
) -> tuple[int, bool]:
    """Read a memory operand; return its default segment, and whether it is relative to RIP."""
    if head.address_size == 2:
        return _read_address_16(source, modrm, operands), False
    mod, rm = modrm >> 6, modrm & 7
    base: int | None = rm | head.b << 3
    if rm == _RSP:
        sib = source.number(1)
        index = sib >> 3 & 7 | head.x << 3
        if index != _RSP:
            operands["index"] = index
            operands["scale"] = 1 << (sib >> 6)
        base = sib & 7 | head.b << 3
        if sib & 7 == _RBP and mod == 0:
            base = None
    relative = mod == 0 and rm == _RBP
    if relative:
        base = None
    size = 4 if base is None else {0: 0, 1: 1, 2: 4}[mod]
    relative = relative and head.mode == 64
    displacement = sign_extend(source.number(size), 8 * size) if size else 0
    operands["displacement"] = displacement & MASK64
    if base is not None:
        operands["base"] = base
    if relative:
        operands["rip_relative"] = 1
    return (_SS if base in (_RSP, _RBP) else _DS), relative


def _read_address_16(source: _Bytes, modrm: int, operands: dict[str, int]) -> int:
    mod, rm = modrm >> 6, modrm & 7
    if mod == 0 and rm == 6:
        operands["displacement"] = source.number(2)
        return _DS
    base, index = _PAIRS_16[rm]
    operands["base"] = base
    if index is not None:
        operands["index"], operands["scale"] = index, 1
    displacement = sign_extend(source.number(mod), 8 * mod) if mod else 0
    operands["displacement"] = displacement & MASK64
    return _SS if base == _RBP else _DS
