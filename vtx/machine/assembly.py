"""One line of a listing to one step: ``mov cr3, rax value=0x5000``.

A line is an optional logical processor (``@1``), prefixes (``rep``, ``lock``, ``a32``, a segment),
a mnemonic, operands separated by commas, and ``name=value`` pairs: what the step puts into
registers first, and what the instruction table allows beside. ``#`` begins a comment.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from vtx.bits import MASK64
from vtx.errors import InputError, UnknownName, suggest
from vtx.facts.instructions import (
    EVENTS,
    FORMS,
    GENERAL_REGISTERS,
    INSTRUCTIONS,
    SEGMENT_REGISTERS,
    Form,
    InstructionSpec,
    Parameter,
)
from vtx.machine.encoding import MAX_INSTRUCTION_BYTES, default_segment, encoded_length
from vtx.machine.program import Instruction, operand_value

__all__ = ["parse_instruction"]


def _register_names() -> dict[str, tuple[str, int]]:
    """Return the registers by name, as (kind, number)."""
    names = {name: ("r64", number) for number, name in enumerate(GENERAL_REGISTERS)}
    for number, stem in enumerate(("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")):
        names["e" + stem] = ("r32", number)
        names[stem] = ("r16", number)
    for number, name in enumerate(("al", "cl", "dl", "bl")):
        names[name] = ("r8", number)
    for number in range(8, 16):
        names[f"r{number}d"] = ("r32", number)
        names[f"r{number}w"] = ("r16", number)
        names[f"r{number}b"] = ("r8", number)
    names |= {name: ("seg", number) for number, name in enumerate(SEGMENT_REGISTERS)}
    names |= {f"cr{number}": ("cr", number) for number in (0, 2, 3, 4, 8)}
    names |= {f"dr{number}": ("dr", number) for number in range(8)}
    names |= {f"xmm{number}": ("xmm", number) for number in range(16)}
    return names


_REGISTERS = _register_names()
_WIDTHS = {"r8": 1, "r16": 2, "r32": 4, "r64": 8}
_PREFIXES = {
    "rep": ("rep", 1), "repe": ("rep", 1), "repne": ("rep", 1), "lock": ("lock", 1),
    "a32": ("address_size", 4),
} | {name: ("segment", number) for number, name in enumerate(SEGMENT_REGISTERS)}  # fmt: skip
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(\S+)")
_WORD = re.compile(r"\S+")
_TERM = re.compile(r"\s*([+-]?)\s*([^+\-\s]+)\s*")
_LENGTH_PAIRS = ("length", "rip")


class _Operand:
    """One operand as written: what kind it is, and what it says."""

    __slots__ = ("column", "kind", "memory", "number", "text")

    def __init__(self, text: str, column: int) -> None:
        self.text = text
        self.column = column
        self.number = 0
        self.memory: dict[str, int] = {}
        self.kind = self._read()

    def _read(self) -> str:
        word = self.text.lower()
        if word.startswith("["):
            self.memory = _memory_operand(self.text, self.column)
            return "m"
        if word in _REGISTERS:
            kind, self.number = _REGISTERS[word]
            return kind
        number = _number(word)
        if number is None:
            return "name"
        _check_fits("the number", number, 64, self.column)
        self.number = number & MASK64
        return "imm"


def _number(word: str) -> int | None:
    """Return the number that `word` writes, or None."""
    try:
        return int(word, 0)
    except ValueError:
        return None


def _check_fits(what: str, number: int, bits: int, column: int, *, signed: bool = True) -> None:
    """Refuse a number that does not fit, rather than use a part of it."""
    lowest = -(1 << bits - 1) if signed else 0
    if not lowest <= number < 1 << bits:
        raise InputError(
            f"{what} {number:#x} does not fit into {bits} bits",
            column=column,
            hint=f"write a number from 0 to {(1 << bits) - 1:#x}",
        )


def _check_pair(spec: InstructionSpec, name: str, text: str, column: int) -> None:
    """Refuse the number of a ``name=value`` pair that does not fit where it goes."""
    number = _number(text)
    if number is None:
        return
    if name == "length" and not 0 <= number <= MAX_INSTRUCTION_BYTES:
        raise InputError(
            f"no instruction has {number} bytes",
            column=column,
            hint=f"write length=1 to length={MAX_INSTRUCTION_BYTES}",
        )
    parameter = spec.parameters.get(name)
    target = parameter.target if parameter is not None else name
    if name == "msr" or target == "dx":
        bits = 32 if name == "msr" else 16
        _check_fits(name, number, bits, column, signed=False)
    elif name != "length":
        bits = 32 if _REGISTERS.get(target, ("",))[0] == "r32" else 64
        _check_fits(name, number, bits, column)


def _unknown_register(word: str, column: int) -> InputError:
    return UnknownName("register", word, _REGISTERS).at(None, None, column)


def _memory_operand(text: str, column: int) -> dict[str, int]:
    """Read ``[gs:rbx+rsi*4+0x10]``."""
    if not text.endswith("]"):
        raise InputError("the memory operand has no closing bracket", column=column)
    body = text[1:-1].strip().lower()
    operand: dict[str, int] = {}
    segment, colon, rest = body.partition(":")
    if colon:
        if segment.strip() not in SEGMENT_REGISTERS:
            raise UnknownName("segment register", segment.strip(), SEGMENT_REGISTERS).at(
                None, None, column
            )
        operand["segment"] = SEGMENT_REGISTERS.index(segment.strip())
        body = rest.strip()
    for word in ("rel ", "abs "):
        if body.startswith(word):
            body = body.removeprefix(word).strip()
            if word == "rel ":
                operand["rip_relative"] = 1
    displacement = 0
    position = 0
    while position < len(body):
        match = _TERM.match(body, position)
        if match is None:
            raise InputError(f"{text} is not a memory operand", column=column)
        displacement += _memory_term(operand, match[1], match[2], column)
        position = match.end()
    if not body:
        raise InputError("the memory operand is empty", column=column, hint="write [rbx+0x10]")
    _check_fits("the address", displacement, 64, column)
    operand["displacement"] = displacement & MASK64
    operand.setdefault("segment", default_segment(operand))
    return operand


def _memory_term(operand: dict[str, int], sign: str, term: str, column: int) -> int:
    """Add one term of a memory operand to `operand`; return it if it is a displacement."""
    number = _number(term)
    if number is not None:
        return -number if sign == "-" else number
    name, star, scale = term.partition("*")
    kind, register = _REGISTERS.get(name, ("", 0))
    if kind not in ("r64", "r32") or sign == "-":
        raise _unknown_register(term, column)
    if kind == "r32":
        operand["address_size"] = 4
    if not star and "base" not in operand:
        operand["base"] = register
        return 0
    factor = _number(scale) if star else 1
    if factor not in (1, 2, 4, 8) or "index" in operand or register == 4:
        raise InputError(
            f"{term!r} cannot be the index", column=column, hint="one register times 1, 2, 4 or 8"
        )
    operand["index"], operand["scale"] = register, factor
    return 0


def _fits(operand: _Operand, name: str, kind: str) -> bool:
    """Tell whether `operand` can stand where the form has `name` of `kind`."""
    if not name:
        return operand.text.lower() == kind
    if kind.startswith("imm"):
        if operand.kind == "name":
            return name == "msr"
        return operand.kind == "imm" and operand.number < 1 << int(kind[3:])
    return operand.kind in _ACCEPTS[kind]


#: Kinds of operand that code of 16 or 32 bits accepts as well.
_NARROWER = frozenset({("r64", "r32"), ("rm64", "r32")})
_ACCEPTS: dict[str, tuple[str, ...]] = {
    "r": ("r16", "r32", "r64"),
    "r8": ("r8",), "r16": ("r16",), "r32": ("r32",), "r64": ("r64",),
    "rm": ("m", "r16", "r32", "r64"),
    "rm16": ("m", "r16", "r32", "r64"),
    "rm64": ("m", "r64"),
    "m": ("m",), "a": ("m", "imm"), "dr": ("dr",), "xmm": ("xmm",),
}  # fmt: skip


def _match(operands: list[_Operand], form: Form, bits: int) -> dict[str, int] | None:
    """Return what `operands` say under `form`, or None if they do not fit it."""
    if len(operands) != len(form.operands):
        return None
    said: dict[str, int] = dict(form.fixed)
    for operand, (name, kind) in zip(operands, form.operands, strict=True):
        if not _fits(operand, name, kind) and not (
            bits != 64 and (kind, operand.kind) in _NARROWER
        ):
            return None
        if operand.kind == "m":
            said |= operand.memory
        elif kind == "a":
            said["displacement"] = operand.number
        elif name and operand.kind == "name":
            said[name] = operand_value(Parameter(name, "", "msr"), operand.text)
        elif name:
            said[name] = operand.number
            if operand.kind in _WIDTHS and kind in ("r", "rm"):
                said["operand_size"] = _WIDTHS[operand.kind]
    return said


def _no_form(mnemonic: str, operands: list[_Operand], column: int) -> InputError:
    """Say why none of the forms of `mnemonic` fits."""
    for operand in operands:
        if operand.kind == "name":
            return _unknown_register(operand.text, operand.column)
    forms = list(dict.fromkeys(_readable(form) for _, form in FORMS[mnemonic]))
    if mnemonic in ("in", "out") and any(o.kind == "imm" and o.number > 0xFF for o in operands):
        hint = f"ports above 0xff go through dx: {forms[-1]} port=0x3f8"
    else:
        written = mnemonic + " " + ", ".join(operand.text for operand in operands)
        hint = "write " + " or ".join(suggest(written, forms) or forms[:3])
    where = operands[0].column if operands else column
    return InputError(f"{mnemonic} does not take these operands", column=where, hint=hint)


def _readable(form: Form) -> str:
    """Return a form as a user would write it."""
    words = {"m": "[rbx+8]", "a": "0x7000", "dr": "dr7", "xmm": "xmm1", "r16": "ax", "r32": "eax",
             "rm": "rax", "rm16": "ax", "rm64": "rax", "r": "rax", "r64": "rax"}  # fmt: skip
    operands = [words.get(kind, "5") if name else kind for name, kind in form.operands]
    return f"{form.mnemonic} {', '.join(operands)}".strip()


def _split_operands(text: str, start: int) -> list[_Operand]:
    """Split at commas; `start` is the column of the first character of `text`."""
    operands: list[_Operand] = []
    position = 0
    if not text.strip():
        return operands
    for part in text.split(","):
        column = start + position + len(part) - len(part.lstrip())
        if not part.strip():
            raise InputError("an operand is missing", column=column)
        operands.append(_Operand(part.strip(), column))
        position += len(part) + 1
    return operands


def _head(text: str) -> tuple[dict[str, int], int, str, int, str, int]:
    """Read what comes before the operands.

    Returns
    -------
    tuple
        Prefixes, logical processor, mnemonic, its column, the rest, its column.
    """
    prefixes: dict[str, int] = {}
    processor = 0
    position = 0
    while (match := _WORD.search(text, position)) is not None:
        word, column = match[0].lower(), match.start() + 1
        position = match.end()
        if word.startswith("@"):
            number = _number(word[1:])
            if number is None or number < 0:
                raise InputError(f"{word!r} names no logical processor", column=column,
                                 hint="write @1 before the mnemonic")  # fmt: skip
            processor = number
        elif word in _PREFIXES:
            key, value = _PREFIXES[word]
            prefixes[key] = value
        else:
            return prefixes, processor, word, column, text[position:], position + 1
    raise InputError("there is no instruction on this line", column=position + 1)


def _pairs(text: str, start: int, spec: InstructionSpec, said: dict[str, int]) -> dict[str, int]:
    """Read the ``name=value`` pairs of a line into `said`; return its length and address."""
    places: dict[str, int] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            word = text[position:].split()[0]
            raise InputError(f"{word!r} is not a name=value pair", column=start + position)
        name, column = match[1].lower(), start + position
        if name in said or name in places:
            raise InputError(f"{name} is given twice", column=column, hint="keep one of them")
        _check_pair(spec, name, match[2], start + match.start(2))
        try:
            if name in _LENGTH_PAIRS:
                places[name] = operand_value(None, match[2])
            else:
                said[name] = operand_value(spec.parameters.get(name), match[2])
        except InputError as error:
            raise error.at(None, None, start + match.start(2)) from None
        _known_pair(spec, name, column)
        position = match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip())
    return places


def _known_pair(spec: InstructionSpec, name: str, column: int) -> None:
    known = (*spec.parameters, *_LENGTH_PAIRS)
    if name not in known and _REGISTERS.get(name, ("",))[0] not in ("r64", "r32"):
        raise UnknownName(f"parameter of {spec.name}", name, (*known, *GENERAL_REGISTERS)).at(
            None, None, column
        )


@lru_cache(maxsize=4096)
def parse_instruction(text: str, bits: int = 64) -> Instruction:
    """Return the step that one line of a listing describes.

    Parameters
    ----------
    text : str
        The line, such as ``"out dx, al port=0x3f8 value=0x41"``.
    bits : int
        Width of the code it stands in: 16, 32 or 64. Outside 64-bit code a register of 64 bits
        may be written with its name of 32.

    Returns
    -------
    Instruction
        Equal lines give the same object: a step is immutable.

    Raises
    ------
    InputError
        The line is not an instruction; `column` counts from 1, and the hint says what to write.
    """
    line = text.split("#", 1)[0].rstrip()
    first = _PAIR.search(line)
    head = line[: first.start()] if first else line
    prefixes, processor, mnemonic, column, rest, rest_column = _head(head)
    if mnemonic not in FORMS:
        raise UnknownName("instruction", mnemonic, [*FORMS, *_PREFIXES]).at(None, None, column)
    name, form, said = _choose(mnemonic, _split_operands(rest, rest_column), column, bits)
    if name in EVENTS and prefixes:
        raise InputError(f"{name} is an event: it takes no prefix", column=1)
    said = prefixes | said if "segment" not in prefixes else said | prefixes
    spec = INSTRUCTIONS[name]
    pairs = _pairs(line[first.start() :], first.start() + 1, spec, said) if first else {}
    try:
        length = pairs.get("length") or encoded_length(form, said, bits)
        return Instruction(name, said, length, pairs.get("rip", 0), processor, None, line.strip())
    except InputError as error:
        raise error.at(None, None, column) from None


def _choose(
    mnemonic: str, operands: list[_Operand], column: int, bits: int
) -> tuple[str, Form, dict[str, int]]:
    """Return the first form that the operands fit, with its row and what the operands say."""
    for name, form in FORMS[mnemonic]:
        said = _match(operands, form, bits)
        if said is not None:
            return name, form, said
    raise _no_form(mnemonic, operands, column)


#: The type of :func:`parse_instruction`, for callers that pass it on.
Parser = Callable[[str], Instruction]
