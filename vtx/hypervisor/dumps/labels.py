"""The lines of a VMCS dump: labels, the fields behind them, and how many digits a value has.

One table for KVM (``dump_vmcs`` of Linux 4.2 to 6.18, and the posted series for CET and FRED) and
for Xen (``vmcs_dump_vcpu`` of 3.x to 4.20). A *row* is a label and the values that can only be told
by standing after it, read one after the other, whatever white space and line breaks are between
them. Both programs print with a minimum number of digits: a value has at least those, and more
only without leading zeros and up to the width of its field.

The *rank* of a row is its place in a dump. Labels that stand in more than one section have a rank
for each; which one is meant follows from what stands before and after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from vtx.facts.fields import Field as F
from vtx.facts.fields import mask

__all__ = [
    "CONTROL",
    "GUEST",
    "HOST",
    "ROWS_BY_WORD",
    "Part",
    "Row",
    "Special",
    "section_of",
]

# Ranks: the sections of a dump, each with room for its rows.
GUEST = 100
HOST = 200
CONTROL = 300


def section_of(rank: int) -> int:
    """Return the section (:data:`GUEST`, :data:`HOST`, :data:`CONTROL`) of a rank."""
    return rank // 100 * 100


class Special(NamedTuple):
    """A value that is not that of a field."""

    name: str


class Part(NamedTuple):
    """One value of a row.

    Attributes
    ----------
    label : str
        Regular expression of what stands before the value.
    targets : tuple of Field or Special
        What it gives, for each rank of the row.
    low, high : int
        Fewest and most digits.
    optional : bool
        Not every version prints it.
    decimal : bool
        The digits are decimal.
    old : bool or None
        Whether it is Xen up to 4.5 that prints so many digits there; None: whoever prints it.
    tail : str
        Regular expression of what must follow.
    """

    label: str
    targets: tuple[F | Special, ...]
    low: int
    high: int
    optional: bool = False
    decimal: bool = False
    old: bool | None = None
    tail: str = ""

    @property
    def digits(self) -> str:
        """Regular expression of the value."""
        if self.decimal:
            return rf"\d{{{self.low},{self.high}}}"
        exact = f"[0-9a-fA-F]{{{self.low}}}"
        if self.high == self.low:
            return exact
        return f"(?:{exact}|[1-9a-fA-F][0-9a-fA-F]{{{self.low},{self.high - 1}}})"

    @property
    def expression(self) -> str:
        """Regular expression of label and value, up to a place where the value surely ends."""
        text = rf"{self.label}({self.digits})(?![0-9A-Za-z_]){self.tail}"
        return f"(?:{text})?" if self.optional else text


@dataclass(frozen=True)
class Row:
    """A label and its values.

    Attributes
    ----------
    word : str
        The first word, by which the row is found.
    ranks : tuple of int
        Where in a dump it can stand.
    parts : tuple of Part
        Its values, in order.
    old : bool
        Only Xen up to 4.5 prints it so.
    undivided : bool
        A part of it alone could be something else.
    """

    word: str
    ranks: tuple[int, ...]
    parts: tuple[Part, ...]
    old: bool = False
    undivided: bool = False

    @cached_property
    def whole(self) -> re.Pattern[str]:
        """The expression that an undamaged row matches, a group for each part."""
        return re.compile("".join(part.expression for part in self.parts))

    @cached_property
    def labels(self) -> tuple[re.Pattern[str], ...]:
        """The expressions of the labels alone."""
        return tuple(re.compile(part.label) for part in self.parts)


_rows: list[Row] = []
_X = "0x"
_MAYBE_X = "(?:0x)?"
_THEN = r",?\s+"


def _label(text: str, prefix: str = "") -> str:
    """Return the expression of a label: spaces are any white space, ``=`` may have some around."""
    pattern = re.sub(r" +", r"\\s+", re.escape(text).replace(r"\ ", " "))
    return rf"{pattern}\s*=\s*{prefix}"


def _value(label: str, *targets: F | Special, low: int = 0, **more: Any) -> Part:
    """Return a part whose value is as wide as its field, or has at least `low` digits."""
    first = targets[0]
    high = 16 if isinstance(first, Special) else mask(first).bit_length() // 4
    return Part(label, targets, low or high, high, **more)


def _row(word: str, ranks: int | tuple[int, ...], *parts: Part, **more: bool) -> None:
    ranks = (ranks,) if isinstance(ranks, int) else ranks
    _rows.append(Row(word, ranks, parts, **more))


def _simple(text: str, rank: int, field: F | Special, prefix: str = "", low: int = 0) -> None:
    """Declare a row with one value, in one section."""
    _row(text.split()[0], rank, _value(_label(text, prefix), field, low=low))


def _list(rank: int, *pairs: tuple[str, F]) -> None:
    """Declare a row of ``name=value`` of which only the whole tells what it is."""
    first, *rest = pairs
    _row(
        first[0],
        rank,
        _value(f"{first[0]}=", first[1]),
        *(_value(f"{_THEN}{name}=", field) for name, field in rest),
    )


# ---- Guest state ---------------------------------------------------------------------------

for _name, _rank in (("CR0", GUEST + 1), ("CR4", GUEST + 2)):
    _row(
        _name,
        _rank,
        _value(rf"{_name}:\s*actual=0x", F[f"GUEST_{_name}"]),
        _value(rf"{_THEN}shadow=0x", F[f"{_name}_READ_SHADOW"]),
        _value(rf"{_THEN}gh_mask=", F[f"{_name}_GUEST_HOST_MASK"]),
    )
_simple("CR3", GUEST + 3, F.GUEST_CR3, _X)
_row(
    "CR3",
    GUEST + 3,
    _value(r"CR3:\s*actual=0x", F.GUEST_CR3),
    Part(rf"{_THEN}target_count=", (F.CR3_TARGET_COUNT,), 1, 3, decimal=True),
    old=True,
)
for _n in range(4):
    for _name in ("PDPTR", "PDPTE"):
        _simple(f"{_name}{_n}", GUEST + 5, F[f"GUEST_PDPTE{_n}"], _X)
_row(  # Xen prints the saved registers in parentheses behind those of the VMCS
    "RSP",
    GUEST + 6,
    _value(_label("RSP", _X), F.GUEST_RSP),
    _value(rf"\s*\(0x[0-9a-f]{{16}}\){_THEN}{_label('RIP', _X)}", F.GUEST_RIP),
    undivided=True,
)
_row(  # the guest's in a dump of KVM, the host's in one of Xen up to 4.5
    "RSP",
    (GUEST + 6, HOST + 1),
    _value(_label("RSP", _X), F.GUEST_RSP, F.HOST_RSP),
    _value(rf"{_THEN}{_label('RIP', _X)}", F.GUEST_RIP, F.HOST_RIP),
    undivided=True,
)
_row("RFLAGS", GUEST + 7, _value(_label("RFLAGS", _X), F.GUEST_RFLAGS))
_row("RFLAGS", GUEST + 7, Part(_label("RFLAGS", _X), (F.GUEST_RFLAGS,), 8, 8, old=False))
_simple("DR7", GUEST + 8, F.GUEST_DR7, _X)
_row(
    "Sysenter",
    (GUEST + 9, HOST + 7),
    _value(_label("Sysenter RSP"), F.GUEST_IA32_SYSENTER_ESP, F.HOST_IA32_SYSENTER_ESP),
    _value(rf"{_THEN}CS:RIP=", F.GUEST_IA32_SYSENTER_CS, F.HOST_IA32_SYSENTER_CS, low=4),
    _value(":", F.GUEST_IA32_SYSENTER_EIP, F.HOST_IA32_SYSENTER_EIP),
)


def _segment(name: str, rank: int, selector: bool) -> None:
    """Declare the two forms of a segment's row: KVM's with labels, and Xen's table."""
    columns = [("LIMIT", "limit", 8), ("BASE", "base", 16)]
    if selector:
        columns = [("SELECTOR", "sel", 4), ("ACCESS_RIGHTS", "attr", 5), *columns]
    fields = [F[f"GUEST_{name}_{column}"] for column, _, _ in columns]
    labelled: list[Part] = []
    table: list[Part] = []
    for field, (_, label, low) in zip(fields, columns, strict=True):
        start = _THEN if labelled else rf"{name}\s*:\s*"
        labelled.append(_value(f"{start}{label}=0x", field, low=low))
        table.append(_value(r"\s+" if table else rf"{name}:\s+", field, low=low))
    _row(name, rank, *labelled)
    _row(name, rank, *table)


for _place, _name in enumerate(("CS", "DS", "SS", "ES", "FS", "GS")):
    _segment(_name, GUEST + 11 + _place, selector=True)
for _place, _name in enumerate(("GDTR", "LDTR", "IDTR", "TR")):
    _segment(_name, GUEST + 17 + _place, selector=_name in ("LDTR", "TR"))

_row(  # what KVM loads by other means than the field
    "EFER",
    GUEST + 24,
    _value(_label("EFER", _X), Special("effective_efer"), tail=r"\s*\((?:autoload|effective)\)"),
)
_row(
    "EFER",
    (GUEST + 24, HOST + 9),
    _value(r"EFER=\s*0x", Special("efer"), F.HOST_IA32_EFER),
)
_row(
    "EFER",
    (GUEST + 24, HOST + 9),
    _value(r"EFER\s+=\s*0x", F.GUEST_IA32_EFER, F.HOST_IA32_EFER),
)
_row("EFER", GUEST + 24, _value(r"EFER\(VMCS\)\s*=\s*0x", F.GUEST_IA32_EFER))
_row("EFER", GUEST + 24, _value(r"EFER\(MSR\s+LL\)\s*=\s*0x", Special("effective_efer")))
_row("PAT", (GUEST + 25, HOST + 10), _value(_label("PAT", _X), F.GUEST_IA32_PAT, F.HOST_IA32_PAT))
_row("Guest", GUEST + 25, _value(_label("Guest PAT", _X), F.GUEST_IA32_PAT), old=True)
_row("Host", HOST + 10, _value(_label("Host PAT", _X), F.HOST_IA32_PAT), old=True)
_simple("PreemptionTimer", GUEST + 26, F.VMX_PREEMPTION_TIMER_VALUE, _X)
_simple("SM Base", GUEST + 26, F.GUEST_SMBASE, _X)
for _text, _rank, _field in (
    ("DebugCtl", GUEST + 28, F.GUEST_IA32_DEBUGCTL),
    ("DebugExceptions", GUEST + 29, F.GUEST_PENDING_DEBUG_EXCEPTIONS),
):
    _simple(_text, _rank, _field, _X)
    _row(_text, _rank, _value(f"{_text}=", _field), old=True)
_row(
    "PerfGlobCtl",
    (GUEST + 30, HOST + 11),
    _value(_label("PerfGlobCtl", _X), F.GUEST_IA32_PERF_GLOBAL_CTRL, F.HOST_IA32_PERF_GLOBAL_CTRL),
)
_simple("BndCfgS", GUEST + 31, F.GUEST_IA32_BNDCFGS, _X)
for _text, _rank, _field in (
    ("Interruptibility", GUEST + 32, F.GUEST_INTERRUPTIBILITY_STATE),
    ("ActivityState", GUEST + 33, F.GUEST_ACTIVITY_STATE),
):
    _row(_text, _rank, _value(rf"{_text}\s+=\s+", _field))
    # At most 4 digits: 8 of the 32 bits are in use, and a longer value could be a broken one.
    _row(_text, _rank, Part(f"{_text}=", (_field,), 4, 4), old=True)
_simple("InterruptStatus", GUEST + 34, F.GUEST_INTERRUPT_STATUS)
_CET = (GUEST + 38, HOST + 14, CONTROL + 60)  # the third place: as first posted


def _cet(text: str, guest: F, host: F) -> None:
    _row(text.split()[0], _CET, _value(_label(text, _X), guest, host, host))


_cet("S_CET", F.GUEST_IA32_S_CET, F.HOST_IA32_S_CET)
_cet("SSP", F.GUEST_SSP, F.HOST_SSP)
for _text in ("SSP TABLE", "INTR SSP TABLE"):
    _cet(_text, F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR, F.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR)
for _side, _rank in (("GUEST", GUEST + 22), ("HOST", HOST + 5)):
    _row(
        "FRED",
        _rank,
        _value(rf"FRED\s+{_side.lower()}:\s*config=0x", F[f"{_side}_IA32_FRED_CONFIG"]),
        _value(rf"{_THEN}stack[_ ]levels=0x", F[f"{_side}_IA32_FRED_STKLVLS"]),
        Part(rf"{_THEN}RSP0=0x", (Special("fred_rsp0"),), 16, 16),
        *(_value(rf"{_THEN}RSP{n}=0x", F[f"{_side}_IA32_FRED_RSP{n}"]) for n in (1, 2, 3)),
    )

# ---- Host state ----------------------------------------------------------------------------

_SYMBOL = r"(?:\s*\([^()\n]{1,80}\))?"
_row(
    "RIP",
    HOST + 1,
    _value(_label("RIP", _X), F.HOST_RIP),
    _value(rf"{_SYMBOL}{_THEN}{_label('RSP', _X)}", F.HOST_RSP),
    undivided=True,
)
for _order in ("CS SS DS ES FS GS TR", "CS DS ES FS GS SS TR"):
    _list(HOST + 2, *((name, F[f"HOST_{name}_SELECTOR"]) for name in _order.split()))
_list(HOST + 3, *((f"{name}Base", F[f"HOST_{name}_BASE"]) for name in ("FS", "GS", "TR")))
_list(HOST + 4, ("GDTBase", F.HOST_GDTR_BASE), ("IDTBase", F.HOST_IDTR_BASE))
_row(
    "CR0",
    HOST + 6,
    # QEMU's register dump has "CR0=00050032 CR2=...".
    _value(r"CR0=(?![0-9a-f]{8}\s+CR2=)", F.HOST_CR0),
    _value(rf"{_THEN}CR3=", F.HOST_CR3),
    _value(rf"{_THEN}CR4=", F.HOST_CR4),
)

# ---- Control state -------------------------------------------------------------------------

for _text, _field in (
    ("PinBased", F.PIN_BASED_CONTROLS),
    ("CPUBased", F.PRIMARY_PROCESSOR_BASED_CONTROLS),
    ("SecondaryExec", F.SECONDARY_PROCESSOR_BASED_CONTROLS),
    ("TertiaryExec", F.TERTIARY_PROCESSOR_BASED_CONTROLS),
    ("EntryControls", F.VM_ENTRY_CONTROLS),
    ("ExitControls", F.VM_EXIT_CONTROLS),
    ("SecondaryExitControls", F.SECONDARY_VM_EXIT_CONTROLS),
):
    _simple(_text, CONTROL + 1, _field, _MAYBE_X)
_simple("ExceptionBitmap", CONTROL + 3, F.EXCEPTION_BITMAP)
_simple("PFECmask", CONTROL + 3, F.PAGE_FAULT_ERROR_CODE_MASK)
_simple("PFECmatch", CONTROL + 3, F.PAGE_FAULT_ERROR_CODE_MATCH)
_row(
    "VMEntry",
    CONTROL + 5,
    _value(r"VMEntry:\s*intr_info=", F.VM_ENTRY_INTERRUPTION_INFORMATION),
    _value(rf"{_THEN}errcode=", F.VM_ENTRY_EXCEPTION_ERROR_CODE),
    _value(rf"{_THEN}ilen=", F.VM_ENTRY_INSTRUCTION_LENGTH),
    _value(rf"{_THEN}event_data=", F.INJECTED_EVENT_DATA, optional=True),
)
_row(
    "VMExit",
    CONTROL + 7,
    _value(r"VMExit:\s*intr_info=", F.VM_EXIT_INTERRUPTION_INFORMATION),
    _value(rf"{_THEN}errcode=", F.VM_EXIT_INTERRUPTION_ERROR_CODE),
    _value(rf"{_THEN}ilen=", F.VM_EXIT_INSTRUCTION_LENGTH),
)
_row(
    "reason",
    CONTROL + 8,
    _value("reason=", F.EXIT_REASON),
    _value(rf"{_THEN}qualification=", F.EXIT_QUALIFICATION, old=False),
)
_row(
    "reason",
    CONTROL + 8,
    _value("reason=", F.EXIT_REASON),
    Part(rf"{_THEN}qualification=", (F.EXIT_QUALIFICATION,), 8, 8, old=True),  # its low half
)
_row(
    "IDTVectoring",
    CONTROL + 9,
    _value(r"IDTVectoring:\s*info=", F.IDT_VECTORING_INFORMATION),
    _value(rf"{_THEN}errcode=", F.IDT_VECTORING_ERROR_CODE),
    _value(rf"{_THEN}event_data=", F.ORIGINAL_EVENT_DATA, optional=True),
)
_row(
    "TSC",
    (CONTROL + 11, GUEST + 27),
    _value(_label("TSC Offset", _MAYBE_X), F.TSC_OFFSET, F.TSC_OFFSET),
)
_simple("TSC Multiplier", CONTROL + 12, F.TSC_MULTIPLIER, _X)
_row(
    "SVI",
    CONTROL + 13,
    Part(r"SVI\|RVI\s*=\s*", (Special("svi"),), 2, 2),
    Part(r"\|", (Special("rvi"),), 2, 2),
)
_simple("TPR Threshold", CONTROL + 14, F.TPR_THRESHOLD, _X, low=2)
_simple("APIC-access addr", CONTROL + 15, F.APIC_ACCESS_ADDRESS, _X)
_simple("virt-APIC addr", CONTROL + 16, F.VIRTUAL_APIC_ADDRESS, _X)
_simple("PostedIntrVec", CONTROL + 17, F.POSTED_INTERRUPT_NOTIFICATION_VECTOR, _X, low=2)
_simple("EPT pointer", CONTROL + 18, F.EPT_POINTER, _X)
_simple("EPTP index", CONTROL + 19, F.EPTP_INDEX, _X)
for _n in range(4):
    # "CR3 target0=X target1=X"; Xen up to 4.5 has "target0=X, target1=X" in the guest state.
    _simple(f"CR3 target{_n}", CONTROL + 20, F[f"CR3_TARGET_VALUE_{_n}"])
    _row(
        f"target{_n}",
        (GUEST + 4, CONTROL + 20),
        _value(f"target{_n}=", *[F[f"CR3_TARGET_VALUE_{_n}"]] * 2),
    )
_simple("PLE Gap", CONTROL + 21, F.PLE_GAP)
_simple("Window", CONTROL + 21, F.PLE_WINDOW)
_simple("Virtual processor ID", CONTROL + 22, F.VPID, _X)
_simple("VMfunc controls", CONTROL + 23, F.VM_FUNCTION_CONTROLS)
_simple("VE info address", CONTROL + 24, F.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS, _X)


def _by_word(rows: list[Row]) -> dict[str, tuple[Row, ...]]:
    words: dict[str, tuple[Row, ...]] = {}
    for row in rows:
        words[row.word] = (*words.get(row.word, ()), row)
    return words


#: All rows by their first word.
ROWS_BY_WORD: dict[str, tuple[Row, ...]] = _by_word(_rows)
