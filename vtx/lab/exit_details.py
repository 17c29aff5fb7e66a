"""What an exit was about: the port under I/O, the MSR under RDMSR, the address under EPT."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from vtx.facts.exits import ExitReason
from vtx.facts.msrs import Msr
from vtx.machine.exit_scanner import EVENT_NAMES
from vtx.machine.exit_tally import OTHERS, Subject, subject_of

__all__ = ["detail_text", "record_detail", "subject_for"]

_KIND_SHIFT = 48
_VALUE_BITS = 47
#: An EPT violation is told by the 2-MByte region of its guest-physical address.
_REGION_SHIFT = 21
_ADDRESSED = (EVENT_NAMES.index("kvm_page_fault"), EVENT_NAMES.index("kvm_mmio"))

_SUBJECTS = {
    int(ExitReason.EXCEPTION_OR_NMI): Subject.EXCEPTION,
    int(ExitReason.EXTERNAL_INTERRUPT): Subject.VECTOR,
    int(ExitReason.CPUID): Subject.LEAF,
    int(ExitReason.CR_ACCESS): Subject.CR,
    int(ExitReason.DR_ACCESS): Subject.DR,
    int(ExitReason.IO_INSTRUCTION): Subject.PORT,
    int(ExitReason.RDMSR): Subject.MSR,
    int(ExitReason.WRMSR): Subject.MSR,
    int(ExitReason.APIC_ACCESS): Subject.APIC,
    int(ExitReason.VIRTUALIZED_EOI): Subject.EOI,
    int(ExitReason.EPT_VIOLATION): Subject.REGION,
    int(ExitReason.EPT_MISCONFIGURATION): Subject.REGION,
    int(ExitReason.APIC_WRITE): Subject.APIC,
}


def subject_for(number: int) -> Subject:
    """Return what the exits of a reason are about."""
    return _SUBJECTS.get(number, Subject.NONE)


# ---- As text ------------------------------------------------------------------------------------


@cache
def _msr_name(number: int) -> str:
    try:
        return f" {Msr(number).name}"
    except ValueError:
        if 0x800 <= number <= 0x83F:
            return f" x2APIC {(number - 0x800) << 4:#x}"
        return ""


_CR_ACCESSES = ("mov to cr{}", "mov from cr{}", "clts", "lmsw")
_EVENT_TYPES = {0: "interrupt", 2: "NMI", 3: "exception", 4: "INT n", 5: "#DB", 6: "exception"}


def detail_text(part: int) -> str:
    """Return the words for a subject, without the nesting level; empty for none."""
    if part == OTHERS:
        return "others"
    kind, value = part >> _KIND_SHIFT & 0xF, part >> 1 & ((1 << _VALUE_BITS) - 1)
    return _TEXTS[kind](value) if kind in _TEXTS else ""


def _region_text(value: int) -> str:
    start = value << _REGION_SHIFT
    return f"gpa {start:#x}-{start + (1 << _REGION_SHIFT) - 1:#x}"


_TEXTS: dict[int, Callable[[int], str]] = {
    Subject.PORT: lambda v: f"port {v & 0xFFFF:#x} {'in' if v >> 16 & 1 else 'out'}",
    Subject.MSR: lambda v: f"msr {v:#x}{_msr_name(v)}",
    Subject.CR: lambda v: _CR_ACCESSES[v >> 4].format(v & 0xF),
    Subject.DR: lambda v: f"mov {'from' if v & 0x10 else 'to'} dr{v & 7}",
    Subject.REGION: _region_text,
    Subject.VECTOR: lambda v: f"vector {v:#x}",
    Subject.EXCEPTION: lambda v: f"{_EVENT_TYPES.get(v >> 8, 'event')} {v & 0xFF}",
    Subject.LEAF: lambda v: f"leaf {v:#x}",
    Subject.APIC: lambda v: f"offset {v:#x}",
    Subject.EOI: lambda v: f"vector {v:#x}",
}


def record_detail(record: Any, number: int | None) -> str:
    """Return what one exit was about, with the whole address where there is one."""
    if int(record["detail_kind"]) in _ADDRESSED:
        return f"gpa {int(record['detail']):#x}"
    subject = Subject.NONE if number is None else subject_for(number)
    return detail_text(subject_of(record, subject)) if subject else ""
