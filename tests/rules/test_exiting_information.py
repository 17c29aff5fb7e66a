"""Exit qualification and instruction information of memory and register operands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import GuestCpu, capable_shape, inside
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.fields import Field as F
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.qualifications import INSTRUCTION_INFORMATION
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4
from vtx.rules.exiting import decide

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


@pytest.fixture(scope="module")
def cpu() -> Iterator[GuestCpu]:
    """A guest for which everything that can exit does."""
    with inside(capable_shape()) as cpu:
        assert cpu.vmcs is not None
        cpu.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] = 0xFFFF_FFFF & ~Proc1.USE_IO_BITMAPS
        cpu.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = 0xFFFF_FFFF & ~Proc2.VMCS_SHADOWING
        cpu.vmcs[F.TERTIARY_PROCESSOR_BASED_CONTROLS] = int(Proc3.LOADIWKEY_EXITING)
        cpu.vmcs[F.XSS_EXITING_BITMAP] = (1 << 64) - 1
        cpu.regs.msrs[0xDA0] = 1 << 8
        cpu.regs.cr4 |= Cr4.OSXSAVE | Cr4.KL | Cr4.OSFXSR | Cr4.VMXE
        cpu.regs.rax = 1 << 8
        yield cpu


def exit_of(cpu: GuestCpu, text: str) -> ExitInformation:
    exit = decide(cpu, parse_instruction(text))
    assert exit is not None
    return exit


#: Instruction, its table of the manual, and what it adds to the part all memory operands share.
MEMORY = [
    ("invept {r}, {m}", "inv_descriptor", "reg2"),
    ("invvpid {r}, {m}", "inv_descriptor", "reg2"),
    ("invpcid {r}, {m}", "inv_descriptor", "reg2"),
    ("vmread {m}, {r}", "vmread_vmwrite", "reg2"),
    ("vmwrite {r}, {m}", "vmread_vmwrite", "reg2"),
    ("vmclear {m}", "vmx_memory_operand", 0),
    ("vmptrld {m}", "vmx_memory_operand", 0),
    ("vmptrst {m}", "vmx_memory_operand", 0),
    ("vmxon {m}", "vmx_memory_operand", 0),
    ("xsaves {m}", "vmx_memory_operand", 0),
    ("xrstors {m}", "vmx_memory_operand", 0),
    ("sgdt {m}", "gdtr_idtr", 0 << 28),
    ("sidt {m}", "gdtr_idtr", 1 << 28),
    ("lgdt {m}", "gdtr_idtr", 2 << 28),
    ("lidt {m}", "gdtr_idtr", 3 << 28),
    ("sldt {m}", "ldtr_tr", 0 << 28),
    ("str {m}", "ldtr_tr", 1 << 28),
    ("lldt {m}", "ldtr_tr", 2 << 28),
    ("ltr {m}", "ldtr_tr", 3 << 28),
]


@given(
    row=st.sampled_from(MEMORY),
    base=st.none() | st.integers(0, 15),
    index=st.none() | st.integers(0, 15).filter(lambda n: n != 4),
    scale=st.integers(0, 3),
    displacement=st.integers(-(1 << 31), (1 << 31) - 1),
    segment=st.none() | st.integers(0, 5),
    narrow=st.booleans(),
    other=st.integers(0, 15),
)
def test_memory_operands(
    cpu: GuestCpu,
    row: tuple[str, str, str | int],
    base: int | None,
    index: int | None,
    scale: int,
    displacement: int,
    segment: int | None,
    narrow: bool,
    other: int,
) -> None:
    """Bit by bit as the manual's tables put the operand together."""
    pattern, table, extra = row
    terms = [] if base is None else [GENERAL_REGISTERS[base]]
    if index is not None:
        terms.append(f"{GENERAL_REGISTERS[index]}*{1 << scale}")
        if scale == 0 and base is None:
            base, index, terms = index, None, [GENERAL_REGISTERS[index]]
    override = "" if segment is None else f"{SEGMENTS[segment]}:"
    memory = f"[{override}{'+'.join(terms) or ''}{displacement:+}]"
    text = pattern.format(m=memory, r=GENERAL_REGISTERS[other])
    exit = exit_of(cpu, ("a32 " if narrow else "") + text)
    value = exit.instruction_information
    assert exit.qualification == displacement % (1 << 64)
    assert value >> 7 & 7 == (1 if narrow else 2)
    assert value >> 10 & 1 == 0
    default = 2 if base in (4, 5) else 3
    assert value >> 15 & 7 == (default if segment is None else segment)
    assert value >> 22 & 1 == (index is None)
    assert value >> 27 & 1 == (base is None)
    assert value >> 18 & 15 == (index or 0)
    assert value >> 23 & 15 == (base or 0)
    assert value & 3 == (scale if index is not None else 0)
    high = other if extra == "reg2" else int(extra) >> 28 if extra else 0
    assert value >> 28 == high
    defined = sum(
        ((1 << r.high - r.low + 1) - 1) << r.low
        for r in INSTRUCTION_INFORMATION[table].ranges
        if r.name != "undefined"
    )
    assert not value & ~defined


REGISTER = [
    ("sldt {r}", 0),
    ("str {r}", 1),
    ("lldt {w}", 2),
    ("ltr {w}", 3),
]
WORD = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}w" for n in range(8, 16)))


@given(row=st.sampled_from(REGISTER), number=st.integers(0, 15))
def test_selectors_in_registers(cpu: GuestCpu, row: tuple[str, int], number: int) -> None:
    pattern, identity = row
    exit = exit_of(cpu, pattern.format(r=GENERAL_REGISTERS[number], w=WORD[number]))
    assert exit.qualification == 0
    assert exit.instruction_information == identity << 28 | 1 << 10 | number << 3


@given(first=st.integers(0, 15), second=st.integers(0, 15), write=st.booleans())
def test_vmread_and_vmwrite_of_registers(
    cpu: GuestCpu, first: int, second: int, write: bool
) -> None:
    data, encoding = GENERAL_REGISTERS[first], GENERAL_REGISTERS[second]
    exit = exit_of(cpu, f"vmwrite {encoding}, {data}" if write else f"vmread {data}, {encoding}")
    assert exit.qualification == 0
    assert exit.instruction_information == second << 28 | 1 << 10 | first << 3


@given(number=st.integers(0, 15), size=st.sampled_from([2, 4, 8]), seed=st.booleans())
def test_random_numbers(cpu: GuestCpu, number: int, size: int, seed: bool) -> None:
    stem = GENERAL_REGISTERS[number]
    name = {
        8: stem,
        4: f"{stem}d" if number > 7 else f"e{stem[1:]}",
        2: f"{stem}w" if number > 7 else stem[1:],
    }[size]
    exit = exit_of(cpu, f"{'rdseed' if seed else 'rdrand'} {name}")
    assert exit.instruction_information == number << 3 | {2: 0, 4: 1, 8: 2}[size] << 11


@given(number=st.integers(0, 7), write=st.booleans())
def test_timed_waits(cpu: GuestCpu, number: int, write: bool) -> None:
    name = f"e{GENERAL_REGISTERS[number][1:]}"
    exit = exit_of(cpu, f"{'umwait' if write else 'tpause'} {name}")
    assert exit.instruction_information == number << 3


@given(first=st.integers(0, 15), second=st.integers(0, 15))
def test_wrapping_keys(cpu: GuestCpu, first: int, second: int) -> None:
    exit = exit_of(cpu, f"loadiwkey xmm{first}, xmm{second}")
    assert exit.instruction_information == first << 3 | second << 28


def test_mwait_tells_whether_monitoring_is_armed(cpu: GuestCpu) -> None:
    for armed in (False, True):
        cpu.monitor_armed = armed
        assert exit_of(cpu, "mwait").qualification == armed


def test_rip_relative_operands_report_their_target(cpu: GuestCpu) -> None:
    exit = exit_of(cpu, "vmclear [rel 0x60100]")
    assert exit.qualification == 0x60100
    assert exit.instruction_information >> 27 & 1


@given(base=st.integers(0, (1 << 64) - 1), displacement=st.integers(-(1 << 31), (1 << 31) - 1))
def test_invlpg_reports_the_linear_address(cpu: GuestCpu, base: int, displacement: int) -> None:
    cpu.regs.rbx = base
    cpu.regs.gs = cpu.regs.gs._replace(base=0x1_0000)
    plain = exit_of(cpu, f"invlpg [rbx{displacement:+}]").qualification
    assert plain == (base + displacement) % (1 << 64)
    based = exit_of(cpu, f"invlpg [gs:rbx{displacement:+}]").qualification
    assert based == (base + displacement + 0x1_0000) % (1 << 64)
    narrow = exit_of(cpu, f"invlpg [ebx{displacement:+}]").qualification
    assert narrow == (base + displacement) % (1 << 32)


def test_write_backs_tell_which_they_are(cpu: GuestCpu) -> None:
    assert exit_of(cpu, "wbinvd").qualification == 0
    assert exit_of(cpu, "wbnoinvd").qualification == 1
