"""One line of a listing: every form of the catalogue, its length, and what is wrong with others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import InputError
from vtx.facts.exits import ExitReason
from vtx.facts.instructions import EVENTS, GENERAL_REGISTERS, INSTRUCTIONS, Form
from vtx.machine.assembly import parse_instruction
from vtx.machine.encoding import encoded_length
from vtx.machine.program import Instruction

WORDS = {
    "r8": "al", "r16": "cx", "r32": "edx", "r64": "rbx", "r": "rsi", "rm": "rdi", "rm16": "bx",
    "rm64": "rax", "m": "[rbx+8]", "a": "0x7000", "imm8": "0x60", "imm16": "0x1234",
    "imm32": "0x12345678", "imm64": "0x1122334455667788", "dr": "dr7", "xmm": "xmm3",
}  # fmt: skip
FORMS = [
    pytest.param(name, form, id=form.syntax)
    for name, spec in INSTRUCTIONS.items()
    for form in spec.forms
]


def written(form: Form) -> str:
    words = [WORDS[kind] if name else kind for name, kind in form.operands]
    return f"{form.mnemonic} {', '.join(words)}".strip()


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_form_parses_to_its_row(name: str, form: Form) -> None:
    step = parse_instruction(written(form))
    assert step.name == name
    assert (step.length == 0) == (name in EVENTS)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_row_names_an_exit_reason_that_exists(name: str) -> None:
    spec = INSTRUCTIONS[name]
    assert spec.meaning
    if spec.reason is not None:
        assert spec.reason in set(ExitReason)
        assert spec.entry is not None


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_parameter_is_understood(name: str) -> None:
    spec = INSTRUCTIONS[name]
    for parameter in spec.parameters.values():
        value = {"msr": "IA32_PAT", "field": "GUEST_RIP"}.get(parameter.kind, "7")
        step = parse_instruction(f"{written(spec.forms[-1])} {parameter.name}={value}")
        assert step.operands[parameter.name] == {"msr": 0x277, "field": 0x681E}.get(
            parameter.kind, 7
        )
        assert bool(step.sets) == bool(parameter.target)


#: Machine code by assembly, from the manual's opcode tables, counted by hand.
LENGTHS = {
    "cpuid": 2,
    "hlt": 1,
    "pause": 2,
    "mov cr3, rax": 3,
    "mov cr3, r9": 4,
    "mov cr8, rax": 4,
    "mov cr8, r9": 4,
    "mov rax, 5": 5,
    "mov rax, 0x123456789": 10,
    "mov r9, 5": 6,
    "in al, 0x60": 2,
    "in ax, dx": 2,
    "in eax, dx": 1,
    "rep outsd": 2,
    "a32 rep insw": 4,
    "fs outsb": 2,
    "vmread rax, rcx": 3,
    "vmread r15, r8": 4,
    "vmread [rbx+rsi*4+0x10], rcx": 5,
    "vmwrite r9, [rbp-8]": 5,
    "vmclear [rel 0x60100]": 8,
    "vmptrld [abs 0x62010]": 8,
    "vmptrld [gs:rax+r12*2]": 6,
    "invept rdx, [rsp+0x20]": 7,
    "invlpg [rbx]": 3,
    "invlpg [rbx+rcx*8+0x1234]": 8,
    "invlpg [rbp]": 4,
    "invlpg [r12]": 5,
    "invlpg [r13]": 5,
    "invlpg [ebx]": 4,
    "rdrand ax": 4,
    "rdrand eax": 3,
    "rdrand r9": 4,
    "str edx": 3,
    "str rdx": 4,
    "push rax": 1,
    "push r9": 2,
    "iretq": 2,
    "int 0x80": 2,
    "jmp 0x1000": 5,
    "lock add [rbx], rax": 4,
    "add [rbx], eax": 2,
}


@pytest.mark.parametrize(("text", "length"), LENGTHS.items())
def test_lengths_are_those_of_an_assembler(text: str, length: int) -> None:
    assert parse_instruction(text).length == length


def test_what_a_step_puts_into_registers() -> None:
    assert parse_instruction("cpuid leaf=1 subleaf=0").sets == (("rax", 1), ("rcx", 0))
    assert parse_instruction("mov cr3, r9 value=0x5000").sets == (("r9", 0x5000),)
    step = parse_instruction("wrmsr msr=IA32_TSC_DEADLINE value=0x1_0000_0005")
    assert step.sets == (("rcx", 0x6E0), ("rax", 5), ("rdx", 1))
    assert parse_instruction("vmread rax, rbx field=GUEST_RIP").sets == (("rbx", 0x681E),)
    assert parse_instruction("out dx, al port=0x3f8 value=0x41").sets == (
        ("rdx", 0x3F8),
        ("rax", 0x41),
    )
    assert parse_instruction("vmcall rdi=7 eax=2").sets == (("rdi", 7), ("rax", 2))


def test_operands_and_places() -> None:
    step = parse_instruction("@1 invlpg [gs:rbx+rcx*8-0x10]  # a comment")
    assert step.processor == 1
    assert step.text == "@1 invlpg [gs:rbx+rcx*8-0x10]"
    assert step.operands == {
        "segment": 5, "base": 3, "index": 1, "scale": 8, "displacement": (1 << 64) - 0x10,
    }  # fmt: skip
    assert parse_instruction("load 0x7000 size=4").operands == {"displacement": 0x7000, "size": 4}
    assert parse_instruction("nop length=9 rip=0x1000").length == 9
    assert parse_instruction("nop length=9 rip=0x1000").rip == 0x1000


#: What is wrong, the column it is at, and a word of the hint.
MISTAKES = [
    ("cpuld", 1, "cpuid"),
    ("mov cr3, rx", 10, "rdx"),
    ("mov cr3", 5, "mov cr3, rax"),
    ("mov cr3, eax", 5, "mov cr3, rax"),
    ("mov cr5, rax", 5, "cr"),
    ("cpuid lef=1", 7, "leaf"),
    ("cpuid leaf=zz", 12, "4096"),
    ("cpuid leaf=1 bla", 14, ""),
    ("out 0x3f8, al", 5, "port=0x3f8"),
    ("load [rbx", 6, ""),
    ("load [rbx*3]", 6, "1, 2, 4 or 8"),
    ("load []", 6, "[rbx+0x10]"),
    ("load [rbx+zzz]", 6, ""),
    ("load [rsp+rsp*2]", 6, "1, 2, 4 or 8"),
    ("@x nop", 1, "@1"),
    ("", 1, ""),
    ("lock", 5, ""),
    ("rdmsr msr=IA32_EFFER", 11, "IA32_EFER"),
    ("vmread rax, rbx field=GUEST_RAP", 23, "guest_r"),
    ("lmsw [rbx] value=3", 1, "step before"),
    ("rep nmi", 1, ""),
    ("invlpg [zs:rbx]", 8, ""),
    ("load 0x7000,", 13, ""),
    ("int 0x100", 5, "int"),
]


@pytest.mark.parametrize(("text", "column", "hint"), MISTAKES)
def test_mistakes_are_placed_and_answered(text: str, column: int, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_instruction(text)
    assert caught.value.column == column
    assert hint in (caught.value.hint or "")


@given(st.text(max_size=40))
def test_any_text_is_a_step_or_an_input_error(text: str) -> None:
    try:
        step = parse_instruction(text)
    except InputError as error:
        assert error.column is not None
    else:
        assert step.name in INSTRUCTIONS


PIECES = st.sampled_from(
    ["mov", "load", "rep", "@1", "[", "]", "rax", "cr3", ",", "=", "value=", "0x10", "+", "*", "8",
     "leaf=1", "gs:", "outsb", "-", "vmread", "rbx", "a32", "lock"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=9), st.sampled_from(["", " "]))
def test_any_mixture_of_words_is_a_step_or_an_input_error(words: list[str], glue: str) -> None:
    try:
        parse_instruction(glue.join(words))
    except InputError as error:
        assert error.column is not None


REGISTER = st.sampled_from(GENERAL_REGISTERS)


@given(
    REGISTER,
    st.none() | st.sampled_from([r for r in GENERAL_REGISTERS if r != "rsp"]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(-(1 << 31), (1 << 31) - 1),
)
def test_a_memory_operand_reads_back(
    base: str, index: str | None, scale: int, displacement: int
) -> None:
    """The operand is written as a listing would; parts and length follow the encoding rules."""
    text = f"[{base}" + (f"+{index}*{scale}" if index else "") + f"{displacement:+}]"
    step = parse_instruction(f"invlpg {text}")
    operands = step.operands
    assert GENERAL_REGISTERS[operands["base"]] == base
    assert operands["displacement"] == displacement & (1 << 64) - 1
    assert operands["segment"] == (2 if base in ("rsp", "rbp") else 3)
    if index:
        assert GENERAL_REGISTERS[operands["index"]] == index
        assert operands["scale"] == scale
    small = 0 if displacement == 0 and base not in ("rbp", "r13") else 1
    wide = 4 if not -128 <= displacement <= 127 else small
    sib = 1 if index or base in ("rsp", "r12") else 0
    high = base.strip("r").isdigit() and int(base[1:]) > 7
    high |= bool(index) and index[1:].isdigit() and int(index[1:]) > 7
    assert step.length == 3 + wide + sib + high


def test_steps_built_in_python_equal_parsed_ones() -> None:
    for text, step in {
        "cpuid leaf=1": Instruction("cpuid", {"leaf": 1}),
        "mov cr3, rax value=0x5000": Instruction("mov_to_cr3", {"source": 0, "value": 0x5000}),
        "load 0x7000 size=8": Instruction("load", {"address": 0x7000, "size": 8}),
        "in ax, dx port=5": Instruction("in", {"size": 2, "port": 5}),
        "in ax, 5": Instruction("in", {"size": 2, "immediate": 5}),
    }.items():
        parsed = parse_instruction(text)
        assert (parsed.name, parsed.operands, parsed.sets, parsed.length) == (
            step.name,
            step.operands,
            step.sets,
            step.length,
        )


def test_a_step_built_in_python_must_exist_and_fit() -> None:
    with pytest.raises(InputError, match="cpuid"):
        Instruction("cpuidd")
    with pytest.raises(InputError, match="leaf"):
        Instruction("cpuid", {"leav": 1})
    with pytest.raises(InputError, match="number"):
        Instruction("cpuid", {"leaf": "one"})  # type: ignore[dict-item]


def test_no_instruction_is_longer_than_the_architecture_allows() -> None:
    form = INSTRUCTIONS["vmclear"].forms[0]
    operands = {"base": 8, "index": 9, "scale": 2, "displacement": 0x1234, "segment": 4}
    assert encoded_length(form, operands) == 11
    long = Form("long", (("address", "m"),), "66 F3 F2 0F 38 F8 F8 F8 /r id", {}, "long")
    with pytest.raises(InputError, match="15"):
        encoded_length(long, operands)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("out dx, al port=0x10000", 17, "port 0x10000 does not fit into 16 bits"),
        ("in al, dx port=-1", 16, "port -0x1 does not fit"),
        ("rdmsr msr=0x1_0000_0000", 11, "msr 0x100000000 does not fit into 32 bits"),
        ("urdmsr rax, rbx msr=-1", 21, "msr -0x1 does not fit"),
        ("cpuid leaf=0x1_0000_0000", 12, "leaf 0x100000000 does not fit into 32 bits"),
        ("cpuid ecx=0x1_0000_0000", 11, "ecx 0x100000000 does not fit into 32 bits"),
        ("load 0x1_0000_0000_0000_0000", 6, "does not fit into 64 bits"),
        ("load [rbx+0x1_0000_0000_0000_0000]", 6, "does not fit into 64 bits"),
        ("store 0x7000 value=0x1_0000_0000_0000_0000", 20, "does not fit into 64 bits"),
        ("cpuid rip=0x1_0000_0000_0000_0000", 11, "does not fit into 64 bits"),
        ("cpuid length=16", 14, "no instruction has 16 bytes"),
        ("cpuid length=-1", 14, "no instruction has -1 bytes"),
        ("cpuid leaf=1 leaf=2", 14, "leaf is given twice"),
        ("cpuid length=2 length=3", 16, "length is given twice"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, column: int, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_instruction(text)
    assert caught.value.column == column
    assert caught.value.hint


def test_the_largest_numbers_fit() -> None:
    assert dict(parse_instruction("out dx, al port=0xffff").sets)["rdx"] == 0xFFFF
    assert dict(parse_instruction("rdmsr msr=0xffffffff").sets)["rcx"] == 0xFFFF_FFFF
    assert dict(parse_instruction("cpuid leaf=-1").sets)["rax"] == 0xFFFF_FFFF
    assert parse_instruction("cpuid length=15").length == 15
    assert parse_instruction("load 0xffffffffffffffff").operands["displacement"] == (1 << 64) - 1
