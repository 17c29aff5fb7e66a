"""The forms of the instruction table as a decoder needs them: by opcode bytes, best first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from vtx.facts.instructions import ENCODINGS, INSTRUCTIONS, SEGMENT_REGISTERS, Form

__all__ = ["DecodedForm", "forms_at"]

_IMMEDIATES = {"ib": 1, "iw": 2, "id": 4, "iq": 8}
_MANDATORY = frozenset({"66", "F2", "F3"})
_REX_R = "44"
_VEX3 = "C4"
#: Words of the table that are a register number in ModR/M.reg.
_IN_REG = {f"cr{n}": n for n in range(8)} | {"cr8": 0}
_IN_REG |= {name: number for number, name in enumerate(SEGMENT_REGISTERS)}
#: Opcodes whose ModR/M.mod the processor ignores: both operands are registers.
_ALWAYS_REGISTER = frozenset({(0x0F, 0x20), (0x0F, 0x21), (0x0F, 0x22), (0x0F, 0x23)})
#: With two registers the first is ModR/M.reg, but for these opcodes it is ModR/M.rm.
_RM_FIRST = frozenset(
    {("urdmsr", (0x0F, 0x38, 0xF8)), ("mov", (0x89,)), ("xor", (0x31,)), ("test", (0x85,))}
)


class DecodedForm(NamedTuple):
    """One form, taken apart.

    Attributes
    ----------
    name : str
        Row of the instruction table.
    form : Form
    mandatory : frozenset of int
        Prefixes that are part of the opcode.
    size : int
        Operand size that a 66 prefix, or its absence, must give; 0 if it does not matter.
    sized : bool
        The operand size belongs to the operands.
    needs_w : bool
        REX.W must be 1.
    rex_r : int or None
        What REX.R must be, where it selects the control register.
    modrm : bool
    digit : int or None
        What ModR/M.reg must be.
    rm_is : str
        ``"memory"``, ``"register"``, ``"either"`` or ``"always register"``.
    reg, rm, register : str
        Operands in ModR/M.reg, in ModR/M.rm, and in the opcode's last byte.
    immediates : tuple of (str, int)
        Operands and bytes; fewer than 0 where the sign is extended.
    relative : str
        Operand that is relative to the next instruction.
    """

    name: str
    form: Form
    mandatory: frozenset[int]
    size: int
    sized: bool
    needs_w: bool
    rex_r: int | None
    modrm: bool
    digit: int | None
    rm_is: str
    reg: str
    rm: str
    register: str
    immediates: tuple[tuple[str, int], ...]
    relative: str

    @property
    def byte_register(self) -> bool:
        """The register operand has 8 bits."""
        return any(kind == "r8" for _, kind in self.form.operands)

    @property
    def rank(self) -> tuple[int, ...]:
        """More is better where several forms fit."""
        named = sum(1 for name, _ in self.form.operands if name)
        return (
            len(self.mandatory),
            self.digit is not None,
            named,
            self.sized,
            self.needs_w,
            bool(self.size),
        )


_Opcode = tuple[int, ...]


def forms_at(opcode: _Opcode) -> tuple[DecodedForm, ...]:
    """Return the forms with these opcode bytes, best first; VEX ones begin (0xC4, map)."""
    return _table().get(opcode, ())


@cache
def _table() -> dict[_Opcode, tuple[DecodedForm, ...]]:
    found: dict[_Opcode, list[DecodedForm]] = {}
    for name, form in _forms():
        for opcode, decoded in _take_apart(name, form):
            found.setdefault(opcode, []).append(decoded)
    return {
        opcode: tuple(sorted(forms, key=lambda form: form.rank, reverse=True))
        for opcode, forms in found.items()
    }


def _forms() -> Iterator[tuple[str, Form]]:
    for spec in INSTRUCTIONS.values():
        # "fetch" is a reference without an instruction, a task switch has many encodings.
        if not spec.is_event and spec.name not in ("fetch", "task_switch"):
            for form in spec.forms:
                yield spec.name, form
    yield from ENCODINGS


def _take_apart(name: str, form: Form) -> Iterator[tuple[_Opcode, DecodedForm]]:
    tokens = form.opcode.split()
    prefixes: list[str] = []
    while tokens[0] in (*_MANDATORY, _REX_R, "W", "osz"):
        prefixes.append(tokens.pop(0))
    literal: list[int] = []
    while tokens and len(tokens[0]) == 2 and tokens[0] not in (*_IMMEDIATES, "/r", "+r"):
        if tokens[0][0] == "/":
            break
        literal.append(int(tokens.pop(0), 16))
    if form.opcode.startswith(_VEX3):
        _, first, second, opcode = literal
        prefix = {0: "", 1: "66", 2: "F3", 3: "F2"}[second & 3]
        prefixes += [prefix] if prefix else []
        literal = [0xC4, first & 0x1F, opcode]
    opcodes = tuple(literal)
    decoded = _decoded(name, form, prefixes, opcodes, tokens)
    if "+r" in tokens:
        for number in range(8):
            yield (*opcodes[:-1], opcodes[-1] + number), decoded
    else:
        yield opcodes, decoded


def _decoded(
    name: str, form: Form, prefixes: list[str], opcodes: _Opcode, tokens: list[str]
) -> DecodedForm:
    # Before a one-byte opcode, 66 is the operand size and no part of the opcode.
    sizes = len(opcodes) == 1 and bool(form.fixed.get("size", 1) > 1 or "66" in prefixes)
    size = (2 if "66" in prefixes else 4) if sizes else 0
    mandatory = frozenset(int(p, 16) for p in prefixes if p in _MANDATORY and not sizes)
    modrm = next((token for token in tokens if token[0] == "/"), "")
    digit = int(modrm[1:]) if modrm[1:].isdigit() else None
    reg, rm, register, immediates, fixed_reg = _places(name, form, opcodes, tokens)
    if fixed_reg is not None:
        digit = fixed_reg
    rm_kind = next((kind for operand, kind in form.operands if operand and operand == rm), "")
    takes_cr = any(kind.startswith("cr") and not operand for operand, kind in form.operands)
    return DecodedForm(
        name=name,
        form=form,
        mandatory=mandatory,
        size=size,
        sized="osz" in prefixes or name in ("iret", "mov"),
        needs_w="W" in prefixes and name != "iret",
        rex_r=(1 if _REX_R in prefixes else 0) if takes_cr else None,
        modrm=bool(modrm),
        digit=digit,
        rm_is=_rm_is(rm_kind, opcodes, bool(rm)),
        reg=reg,
        rm=rm,
        register=register,
        immediates=immediates,
        relative="target" if name == "jmp" else "",
    )


def _rm_is(kind: str, opcodes: _Opcode, has_rm: bool) -> str:
    if opcodes in _ALWAYS_REGISTER:
        return "always register"
    if not has_rm or kind.startswith("rm"):
        return "either"
    return "memory" if kind in ("m", "a") else "register"


def _places(
    name: str, form: Form, opcodes: _Opcode, tokens: list[str]
) -> tuple[str, str, str, tuple[tuple[str, int], ...], int | None]:
    """Say where each operand stands: in reg, in rm, in the opcode or behind it."""
    fixed_reg = next(
        (_IN_REG[kind] for o, kind in form.operands if not o and kind in _IN_REG), None
    )
    named = [(operand, kind) for operand, kind in form.operands if operand]
    sizes = [_IMMEDIATES[token] for token in tokens if token in _IMMEDIATES]
    numbers = [operand for operand, kind in named if "imm" in kind]
    rest = [(operand, kind) for operand, kind in named if "imm" not in kind]
    signed = any(kind == "simm32" for _, kind in named)
    immediates = tuple(
        (operand, -size if signed else size) for operand, size in zip(numbers, sizes, strict=True)
    )
    if "+r" in tokens:
        return "", "", rest[0][0], immediates, None
    if not any(token[0] == "/" for token in tokens):
        return "", "", "", immediates, fixed_reg
    if len(rest) < 2:
        return "", rest[0][0] if rest else "", "", immediates, fixed_reg
    (first, first_kind), (second, _) = rest
    memory_first = first_kind.startswith("rm") or first_kind in ("m", "a")
    if (
        memory_first
        or (name, opcodes) in _RM_FIRST
        or (first_kind.startswith("r") and (opcodes == (0x0F, 0x21)))
    ):
        return second, first, "", immediates, fixed_reg
    return first, second, "", immediates, fixed_reg
