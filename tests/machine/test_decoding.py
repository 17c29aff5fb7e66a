"""From machine code to instructions: against an assembler, lengths, and another disassembler."""

from __future__ import annotations

from typing import Any

import pytest
from capstone import CS_ARCH_X86, CS_MODE_16, CS_MODE_32, CS_MODE_64, Cs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.assembler import assemble
from vtx.facts.instructions import INSTRUCTIONS, Form
from vtx.machine.decoding import DecodeError, decode
from vtx.machine.encoding import encoded_length
from vtx.machine.program import Instruction

MASK = (1 << 64) - 1
#: References and pseudo-instructions stand for many encodings.
NO_CODE = ("fetch", "task_switch")
#: Rows whose bytes a more general row of the table has, too.
SAME_CODE = {"iretq": "iret"}
FORMS: list[tuple[str, Form]] = [
    (name, form)
    for name, spec in INSTRUCTIONS.items()
    if not spec.is_event and name not in NO_CODE
    for form in spec.forms
]
IDS = [f"{name}: {form.syntax}" for name, form in FORMS]
REGISTERS = st.integers(0, 15)
DISPLACEMENTS = st.one_of(
    st.just(0), st.integers(-128, 127), st.integers(-(1 << 31), (1 << 31) - 1)
)
MODES = {16: CS_MODE_16, 32: CS_MODE_32, 64: CS_MODE_64}
#: What the other disassembler does not know, or calls otherwise.
UNKNOWN_THERE = frozenset(
    {
        "seamcall", "tdcall", "enclv", "enqcmd", "enqcmds", "loadiwkey", "pconfig", "tpause",
        "umwait", "umonitor", "wrmsrns", "rdmsrlist", "wrmsrlist", "urdmsr", "uwrmsr", "pbndkb",
        "erets", "eretu", "senduipi", "ud0", "ud1", "getsec", "rdmsr", "wbnoinvd",
    }
)  # fmt: skip
NAMED_OTHERWISE = {
    "load": {"mov"},
    "store": {"mov"},
    "modify": {"add"},
    "int1": {"int1", "icebp"},
    "mov": {"mov", "movabs"},
}
for names in (
    ("iret", "iretw", "iretd", "iretq"),
    ("insw", "insd"),
    ("outsw", "outsd"),
    ("pushf", "pushfw", "pushfd", "pushfq"),
    ("popf", "popfw", "popfd", "popfq"),
):
    NAMED_OTHERWISE |= {name: set(names) for name in names}


@st.composite
def memory(draw: Any) -> dict[str, int]:
    """Draw a memory operand of 64-bit mode."""
    operands = {"displacement": draw(DISPLACEMENTS) & MASK}
    base = draw(st.one_of(st.none(), REGISTERS))
    if base is not None:
        operands["base"] = base
    index = draw(st.one_of(st.none(), REGISTERS.filter(lambda number: number != 4)))
    if index is not None and base is not None:
        operands |= {"index": index, "scale": draw(st.sampled_from((1, 2, 4, 8)))}
    segment = draw(st.sampled_from((None, 4, 5)))
    if segment is not None:
        operands["segment"] = segment
    elif base in (4, 5):
        operands["segment"] = 2
    return operands


@st.composite
def operands_of(draw: Any, form: Form) -> dict[str, int]:
    """Draw operands for a form."""
    operands = dict(form.fixed)
    for name, kind in (pair for pair in form.operands if pair[0]):
        if kind in ("m", "a") or (kind.startswith("rm") and draw(st.booleans())):
            operands |= draw(memory())
        elif "imm" in kind:
            operands[name] = draw(st.integers(0, (1 << int(kind[3:])) - 1))
        elif kind in ("dr", "xmm"):
            operands[name] = draw(st.integers(0, 7))
        elif kind == "r8":  # 4 to 7 are AH, CH, DH and BH without REX
            operands[name] = draw(REGISTERS.filter(lambda number: not 4 <= number < 8))
        else:
            operands[name] = draw(REGISTERS)
    if "osz" in form.opcode and "operand_size" not in form.fixed:
        operands["operand_size"] = draw(st.sampled_from((2, 4, 8)))
    return operands


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_every_form_is_decoded_to_what_was_assembled(name: str, form: Form) -> None:
    @settings(max_examples=12, deadline=None, database=None)
    @given(operands_of(form))
    def holds(operands: dict[str, int]) -> None:
        code = assemble(form, operands)
        decoded = decode(code + b"\x90" * 4, rip=0x1000)
        assert decoded.name == name
        if form.mnemonic in ("pushfd", "popfd"):
            # 64-bit mode has none of 32 bits.
            size = 2 if operands["operand_size"] == 2 else 8
            assert decoded.operands == {"operand_size": size}
            return
        if name == "jmp":
            offset = operands["target"] & 0xFFFF_FFFF
            offset -= (offset & 1 << 31) << 1
            operands = {"target": 0x1000 + len(code) + offset & MASK}
        elif form.mnemonic == "load" and "destination" not in operands:
            operands = {**operands, "destination": 0}
        elif form.mnemonic in ("store", "modify") and "source" not in operands:
            operands = {**operands, "source": 0}
        for key, value in operands.items():
            assert decoded.operands.get(key) == value, key
        assert decoded.length == len(code) <= 15
        if "osz" not in form.opcode or "operand_size" in operands:
            assert len(code) == encoded_length(form, operands) or name in ("load", "store")

    holds()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_another_disassembler_says_the_same(name: str, form: Form, mode: int) -> None:
    if name.removesuffix("_imm") in UNKNOWN_THERE or (mode != 64 and form.opcode[0] == "W"):
        return
    operands = dict(form.fixed)
    for operand, kind in form.operands:
        if operand and kind in ("m", "a"):
            operands |= {"displacement": 0x10, "base": 3}
        elif operand:
            operands[operand] = 1
    if "osz" in form.opcode:
        operands["operand_size"] = 4
    code = assemble(form, operands) + b"\0" * 8
    if mode != 64 and code[0] >> 4 == 4:
        return
    if mode == 16 and code[0] == 0x66 and code[1] == 0x0F:
        return  # there it takes the prefix for an operand size
    theirs = next(Cs(CS_ARCH_X86, MODES[mode]).disasm(code, 0x1000), None)
    try:
        ours: Instruction | None = decode(code, mode, 0x1000)
    except DecodeError:
        ours = None
    if theirs is None:
        assert form.mnemonic == "into" and mode == 64
        return
    assert ours is not None
    mnemonic = theirs.mnemonic.split()[-1]
    assert mnemonic in NAMED_OTHERWISE.get(form.mnemonic, {form.mnemonic})
    assert ours.length == theirs.size


ADDRESSES_16 = {
    "0f 01 38": {"base": 3, "index": 6, "scale": 1, "displacement": 0},
    "0f 01 7a 10": {"base": 5, "index": 6, "scale": 1, "displacement": 0x10, "segment": 2},
    "0f 01 3e 34 12": {"displacement": 0x1234},
    "0f 01 be fe ff": {"base": 5, "displacement": MASK - 1, "segment": 2},
    "65 0f 01 3f": {"base": 3, "displacement": 0, "segment": 5},
}


@pytest.mark.parametrize("code", ADDRESSES_16)
def test_16_bit_addresses(code: str) -> None:
    decoded = decode(bytes.fromhex(code), 16)
    assert (decoded.name, dict(decoded.operands)) == ("invlpg", ADDRESSES_16[code])
    assert decode(b"\x67" + bytes.fromhex(code), 32).operands["address_size"] == 2


def test_prefixes_choose_sizes_by_mode() -> None:
    for mode, plain, prefixed in ((16, 2, 4), (32, 4, 2), (64, 4, 2)):
        assert decode(b"\xed", mode).operands == {"size": plain}
        assert decode(b"\x66\xed", mode).operands == {"size": prefixed}
    assert decode(b"\x67\x6e", 64).operands == {"size": 1, "address_size": 4}
    assert decode(b"\xf3\x64\x6e", 64).operands == {"size": 1, "rep": 1, "segment": 4}
    assert decode(b"\x2e\x6e", 64).operands == {"size": 1}


def test_the_stack_is_64_bits_wide_in_64_bit_mode() -> None:
    for code, name in (("9c", "pushf"), ("9d", "popf")):
        for mode, size in ((16, 2), (32, 4), (64, 8)):
            decoded = decode(bytes.fromhex(code), mode)
            assert (decoded.name, decoded.operands["operand_size"]) == (name, size)
    assert decode(bytes.fromhex("669c"), 64).operands["operand_size"] == 2


def test_an_address_may_be_relative_to_rip() -> None:
    decoded = decode(bytes.fromhex("660fc735f8000000"), 64, 0x6_0000)
    assert dict(decoded.operands) == {"displacement": 0x6_0100, "rip_relative": 1}
    assert dict(decode(bytes.fromhex("660fc735f8000000"), 32).operands) == {"displacement": 0xF8}


BYTES_AND_OFFSETS = {
    ("64", "0061 10"): ("modify", {"size": 1, "source": 0, "high_byte": 1, "base": 1,
                                   "displacement": 0x10}),
    ("64", "40 8823"): ("store", {"size": 1, "source": 4, "base": 3, "displacement": 0}),
    ("64", "8a3b"): ("load", {"size": 1, "destination": 3, "high_byte": 1, "base": 3,
                              "displacement": 0}),
    ("64", "a2 0fa20fa2 00000000"): ("store", {"size": 1, "source": 0,
                                               "displacement": 0xA20FA20F}),
    ("32", "66 a1 0fa20fa2"): ("load", {"operand_size": 2, "destination": 0,
                                        "displacement": 0xA20FA20F}),
    ("16", "64 a3 0fa2"): ("store", {"operand_size": 2, "source": 0, "displacement": 0xA20F,
                                     "segment": 4}),
    ("64", "61"): ("ud2", {}),
    ("64", "06"): ("ud2", {}),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "code"), BYTES_AND_OFFSETS)
def test_byte_registers_and_addresses_in_the_instruction(mode: str, code: str) -> None:
    decoded = decode(bytes.fromhex(code), int(mode))
    assert (decoded.name, dict(decoded.operands)) == BYTES_AND_OFFSETS[mode, code]
    assert decoded.length == len(bytes.fromhex(code))


@pytest.mark.parametrize("code", ["", "0f", "66", "0f01", "48b80000", "660fc735f800"])
def test_code_that_ends_early_says_so(code: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(bytes.fromhex(code))
    assert error.value.truncated


@pytest.mark.parametrize("code", ["0f58c1", "66" * 15 + "90", "0f01ee", "c5f877"])
def test_other_code_is_refused(code: str) -> None:
    with pytest.raises(DecodeError) as error:
        decode(bytes.fromhex(code))
    assert not error.value.truncated


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=20), st.sampled_from((16, 32, 64)))
def test_any_bytes_are_an_instruction_or_an_error(code: bytes, mode: int) -> None:
    try:
        decoded = decode(code, mode)
    except DecodeError:
        return
    assert 1 <= decoded.length <= min(15, len(code))
