"""Exit qualifications in words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.facts.exits import ExitReason
from vtx.facts.qualifications import QUALIFICATIONS
from vtx.facts.sentences import layout_sentence, qualification_sentence

R = ExitReason

EXAMPLES = [
    (R.EPT_VIOLATION, 0x181, "A data read at the guest-physical address", "allow no access at all"),
    (R.EPT_VIOLATION, 0x182, "A data write at", "allow no access at all"),
    (R.EPT_VIOLATION, 0x184, "An instruction fetch at", "allow no access at all"),
    (
        R.EPT_VIOLATION,
        0x1AA,
        "A data write at",
        "allow reads and instruction fetches but not writes.",
    ),
    (R.EPT_VIOLATION, 0x1B9, "A data read at", "allow reads, writes and instruction fetches."),
    (
        R.EPT_VIOLATION,
        0x83,
        "A data read and data write of a guest paging-structure entry",
        "no access",
    ),
    (R.EPT_VIOLATION, 0x1, "A data read with no valid guest-linear address", "no access"),
    (R.EPT_VIOLATION, 0x1181, "from an IRET", "A data read"),
    (R.EPT_VIOLATION, 0x2182, "a shadow-stack access", "A data write"),
    (R.EPT_VIOLATION, 0x8181, "Guest-paging verification failed", "A data read"),
    (R.EPT_VIOLATION, 0x10181, "asynchronous", "A data read"),
    (R.IO_INSTRUCTION, 0x03F8_0008, "IN of 1 byte", "port 0x3f8, taken from DX"),
    (R.IO_INSTRUCTION, 0x0060_0040, "OUT of 1 byte", "port 0x60, given as an immediate"),
    (R.IO_INSTRUCTION, 0x01F0_003B, "REP INS of 4 bytes", "port 0x1f0"),
    (R.IO_INSTRUCTION, 0x0CF8_0011, "OUTS of 2 bytes", "port 0xcf8"),
    (R.CR_ACCESS, 0x003, "MOV CR3, RAX."),
    (R.CR_ACCESS, 0x913, "MOV R9, CR3."),
    (R.CR_ACCESS, 0x020, "CLTS."),
    (R.CR_ACCESS, 0x0001_0030, "LMSW of 0x1, from a register."),
    (R.CR_ACCESS, 0x0001_0070, "LMSW of 0x1, from memory."),
    (R.DR_ACCESS, 0x107, "MOV DR7, RCX."),
    (R.DR_ACCESS, 0x117, "MOV RCX, DR7."),
    (R.TASK_SWITCH, 0xC000_0028, "selector 0x28", "a task gate in the IDT"),
    (R.TASK_SWITCH, 0x0000_0028, "initiated by CALL"),
    (R.APIC_ACCESS, 0x10B0, "Linear data write at offset 0xb0"),
    (R.APIC_ACCESS, 0xF000, "Guest-physical fetch"),
    (R.APIC_ACCESS, 0x9000, "Undefined kind of access 9"),
    (R.INVLPG, 0x7F00, "linear address 0x7f00"),
    (R.VMREAD, (1 << 64) - 8, "that is -8"),
    (R.VMREAD, 0, "no displacement"),
    (R.MWAIT, 0, "not armed"),
    (R.MWAIT, 1, "was armed"),
    (R.STARTUP_IPI, 0x99, "vector is 0x99"),
    (R.VIRTUALIZED_EOI, 0x31, "vector 0x31"),
    (R.APIC_WRITE, 0x300, "offset 0x300"),
    (R.PML_FULL, 0x1000, "log was full", "IRET"),
    (R.SPP_RELATED_EVENT, 0x800, "SPP miss"),
    (R.SPP_RELATED_EVENT, 0, "misconfigured"),
    (R.NOTIFY, 1, "must not be resumed"),
    (R.NOTIFY, 0, "may be resumed"),
    (R.WRMSR, 0, "was WRMSR."),
    (R.WRMSR, 1, "was WRMSRNS."),
    (R.WBINVD, 1, "was WBNOINVD."),
    (R.INVALID_STATE, 0, "any other guest-state check"),
    (R.INVALID_STATE, 2, "loading the PDPTEs"),
    (R.INVALID_STATE, 3, "NMI", "STI"),
    (R.INVALID_STATE, 4, "link pointer"),
    (R.INVALID_STATE, 1, "not used"),
    (R.MSR_LOAD_FAIL, 3, "Entry 3"),
    (R.MSR_LOAD_FAIL, 0, "names none"),
    (R.RDMSRLIST, 0x10, "MSR 0x10"),
    (R.RDMSRLIST, 0, "not in use"),
    (R.RDMSR_IMMEDIATE, 0x1B, "MSR 0x1b"),
    (R.ENQCMD_PASID_TRANSLATION_FAILURE, 0x12345, "PASID is 0x12345"),
    (R.EXCEPTION_NMI, 0x4000, "depends on the vector"),
    (R.CPUID, 0, "no qualification"),
    (R.CPUID, 5, "0x5 is no part of it"),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e[0].name}-{e[1]:#x}")
def test_examples(example: tuple[ExitReason, int, str]) -> None:
    reason, qualification, *fragments = example
    sentence = qualification_sentence(reason, qualification)
    for fragment in fragments:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("qualification", "vector", "nmi", "fragment"),
    [
        (0x4000, 1, False, "a single step"),
        (0x3, 1, False, "breakpoint 0 and the condition of breakpoint 1 were met"),
        (0x2001, 1, False, "breakpoint 0 was met and a debug register was accessed"),
        (0x0, 1, False, "no condition"),
        (0xDEAD000, 14, False, "linear address 0xdead000"),
        (0x0, 2, True, "No NMI source"),
        (0x2, 2, True, "report is 0x2"),
        (0x0, 13, False, "no qualification"),
    ],
)
def test_exceptions(qualification: int, vector: int, nmi: bool, fragment: str) -> None:
    sentence = qualification_sentence(R.EXCEPTION_OR_NMI, qualification, vector, nmi=nmi)
    assert fragment in sentence


@pytest.mark.parametrize("layout", QUALIFICATIONS.values(), ids=lambda layout: layout.name)
@given(word=st.integers(0, (1 << 64) - 1))
def test_every_word_of_every_layout_is_one_clean_sentence(layout, word: int) -> None:  # type: ignore[no-untyped-def]
    sentence = layout_sentence(layout, word)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert not re.search(r"\.\.|  | \.|None", sentence)
