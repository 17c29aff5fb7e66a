"""Find labels and their values in the lines of a text.

The lines of one stream are joined, because mail breaks a line of a dump in two and joins two into
one; a value is taken only if its label is whole, if it has as many digits as its label promises,
and if something follows that cannot be a digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vtx.facts.fields import Field
from vtx.hypervisor.dumps.clean import Line
from vtx.hypervisor.dumps.labels import CONTROL, GUEST, HOST, ROWS_BY_WORD, Part, Row, Special
from vtx.hypervisor.dumps.model import MsrEntry, Verdict

__all__ = ["Item", "Value", "scan"]

_WORD = re.compile(r"(?<![^\s,;:(>|*\"'])[A-Za-z_]\w*(?:-\w+)?")
_TOKEN = re.compile(r"[0-9A-Za-z_]*")


class Value(NamedTuple):
    """A value, and the part of a row that it stands in."""

    part: Part
    value: int

    @property
    def targets(self) -> tuple[Field | Special, ...]:
        """What it may be the value of: one target for each rank of its row."""
        return self.part.targets


@dataclass
class Item:
    """Something that was found.

    Attributes
    ----------
    kind : str
        ``"row"``, ``"start"`` (the line above a KVM dump), ``"section"``, ``"verdict"``,
        ``"label"`` (which VMCS comes next), ``"area"`` and ``"msr"`` (MSR areas), ``"qemu"``.
    line : int
        Line of the input.
    time : float or None
        When it was printed.
    ranks : tuple of int
        Where in a dump it can stand.
    row : Row or None
        The row of labels.
    values : list of Value
        What it says.
    damaged : list of (Part, str)
        What it should say and cannot be read, and why.
    text : str
        Of a label: the text. Of an MSR area: its name.
    verdict : Verdict or None
        Of a verdict.
    msr : MsrEntry or None
        Of an entry of an MSR area.
    after : bool
        Of a verdict: it stands below the dump it belongs to.
    """

    kind: str
    line: int
    time: float | None = None
    ranks: tuple[int, ...] = ()
    row: Row | None = None
    values: list[Value] = field(default_factory=list)
    damaged: list[tuple[Part, str]] = field(default_factory=list)
    text: str = ""
    verdict: Verdict | None = None
    msr: MsrEntry | None = None
    after: bool = False


class _Found(NamedTuple):
    item: Item | None
    end: int


class _Text:
    """The text of one stream with the places of its lines."""

    def __init__(self, lines: list[Line], cut: bool) -> None:
        self.lines = lines
        self.cut = cut
        self.text = "\n".join(line.text for line in lines)
        self._index = 0
        self._ends: list[int] = []
        end = -1
        for line in lines:
            end += len(line.text) + 1
            self._ends.append(end)

    def line_at(self, position: int) -> Line:
        """Return the line at a position; positions must not decrease."""
        while self._ends[self._index] < position:
            self._index += 1
        return self.lines[self._index]

    def may_be_cut(self, digits: str, part: Part, end: int) -> bool:
        """Tell whether the input ends in these digits and could have had more of them."""
        return (
            self.cut
            and end == len(self.text)
            and len(digits) < part.high
            and not digits.startswith("0")
        )


def _number(part: Part, digits: str) -> int:
    return int(digits, 10 if part.decimal else 16)


def _whole(row: Row, text: _Text, position: int) -> tuple[list[Value], int] | None:
    """Read an undamaged row."""
    match = row.whole.match(text.text, position)
    if match is None:
        return None
    values = [
        Value(part, _number(part, digits))
        for part, digits in zip(row.parts, match.groups(), strict=True)
        if digits is not None
    ]
    if match.end() == len(text.text) and text.may_be_cut(
        match.groups()[-1] or "0", row.parts[-1], match.end()
    ):
        return None
    return values, match.end()


class _Reading(NamedTuple):
    values: list[Value]
    damaged: list[tuple[Part, str]]
    end: int


def _piecewise(row: Row, text: _Text, position: int) -> _Reading | None:
    """Read what is intact of a damaged row; None if it is not this row at all."""
    values: list[Value] = []
    damaged: list[tuple[Part, str]] = []
    for part, label in zip(row.parts, row.labels, strict=True):
        match = label.match(text.text, position)
        if match is None:
            if part.optional:
                continue
            if part is row.parts[0]:
                return None
            damaged.append((part, "its label is missing or damaged"))
            break
        token = _TOKEN.match(text.text, match.end())
        assert token is not None, "the pattern matches everywhere"
        digits, position = token.group(), token.end()
        if not re.fullmatch(part.digits, digits):
            damaged.append((part, f"{digits!r} is not a whole value"))
            if "=" not in part.label:
                break  # in a table only the whole row tells which column a value is in
        elif text.may_be_cut(digits, part, position):
            damaged.append((part, "the input ends in the value"))
        else:
            values.append(Value(part, _number(part, digits)))
    return _Reading(values, damaged, position)


def _read_row(rows: tuple[Row, ...], text: _Text, position: int) -> _Found:
    """Read the row at a position, whichever of `rows` fits best."""
    for row in rows:
        if found := _whole(row, text, position):
            line = text.line_at(position)
            item = Item("row", line.number, line.time, row.ranks, row, found[0])
            return _Found(item, found[1])
    best: tuple[Row, _Reading] | None = None
    for row in rows:
        reading = _piecewise(row, text, position)
        if reading and (best is None or len(reading.values) > len(best[1].values)):
            best = row, reading
    if best is None:
        return _Found(None, position)
    row, reading = best
    line = text.line_at(position)
    if row.undivided:
        why = "the line is not whole, and a part of it could be the guest's or the host's"
        reading = _Reading([], [(part, why) for part in row.parts], reading.end)
    item = Item("row", line.number, line.time, row.ranks, row, reading.values, reading.damaged)
    return _Found(item, reading.end)


# ---- Everything that is not a row ----------------------------------------------------------

_Reader = Callable[[_Text, int], _Found]
_HEADER = re.compile(r"(Guest|Host|Control)\s+State\s*\*\*\*")
_SECTIONS = {"Guest": GUEST, "Host": HOST, "Control": CONTROL}
_START = re.compile(r"VMCS\s+(\(?\w+\)?),\s+last\s+attempted\s+VM-entry\s+on\s+CPU\s+(-?\d+)(?!\w)")
_AREA = re.compile(r"MSR\s+((?:guest\s+|host\s+)?auto(?:load|store)):")
_ENTRY = re.compile(r"msr=0x([0-9a-fA-F]{8})\s+value=0x([0-9a-fA-F]{16})(?![0-9A-Za-z_])")
_ENTRY_POSITION = re.compile(r"(\d{1,3}):\s*\Z")
_XEN_ENTRY = re.compile(r"msr\s+([0-9a-f]{8})\s+val\s+([0-9a-f]{16})(?![0-9A-Za-z_])")
_XEN_VCPU = re.compile(r"(d\d+v\d+)\s*\Z")
_XEN_FAILURE = re.compile(
    r"vmentry\s+failure\s+\(reason\s+0x(8[0-9a-f]{7})\)"
    r"(?::\s+(?:Invalid\s+guest\s+state\s+\((\d+)\)|MSR\s+loading\s+\(entry\s+(\d+)\)|MCE))?"
)
_OLD_XEN_FAILURE = re.compile(
    r"Failed\s+vm\s+entry\s+\(exit\s+reason\s+0x(8[0-9a-f]{7})\)"
    r"(?:\s+caused\s+by\s+(?:invalid\s+guest\s+state\s+\((\d+)\)|MSR\s+entry\s+(\d+)\s+loading))?"
)
_XEN_ERROR = re.compile(r"VM(?:LAUNCH|RESUME)\s+error:\s+(?:0x)?([0-9a-f]{1,2})(?![0-9A-Za-z_])")
_HARDWARE_ERROR = re.compile(
    r"(?:KVM:\s+entry\s+failed,\s+hardware\s+error\s+"
    r"|(?:hardware|hw)_entry_failure_reason\W{1,5})(0x[0-9a-f]{1,8}|\d{1,10})(?![0-9A-Za-z_])"
)
_QEMU = re.compile(
    r"[ER]IP=([0-9a-f]{8,16})\s+[ER]FL=[0-9a-f]{8}\s+\[[^\]\n]{1,12}\]\s+CPL=(\d)\s+II=\d\s+A20=\d"
    r"\s+SMM=(\d)\s+HLT=(\d)"
)
_NUMBERED = re.compile(r"VCPU\s+\d+\b|Domain\s+\d+(?=\s+<<<)")
_FAILED_REASONS = {33, 34, 41}
_MOST_ERRORS = 28


def _header(text: _Text, position: int) -> _Found:
    match = _HEADER.match(text.text, position)
    if match is None:
        return _Found(None, position)
    line = text.line_at(position)
    item = Item("section", line.number, line.time, (_SECTIONS[match[1]],))
    return _Found(item, match.end())


def _start(text: _Text, position: int) -> _Found:
    match = _START.match(text.text, position)
    if match is None:
        return _Found(None, position)
    line = text.line_at(position)
    label = f"VMCS {match[1]}, last entered on CPU {match[2]}"
    return _Found(Item("start", line.number, line.time, text=label), match.end())


def _area(text: _Text, position: int) -> _Found:
    match = _AREA.match(text.text, position)
    if match is None:
        return _Found(None, position)
    line = text.line_at(position)
    rank = HOST + 13 if match[1].startswith("host") else GUEST + 36
    name = " ".join(match[1].split())
    return _Found(Item("area", line.number, line.time, (rank,), text=name), match.end())


def _entry(text: _Text, position: int) -> _Found:
    """Read ``  0: msr=0x00000600 value=0x...``, or Xen's ``msr 000001dd val ... (mbz 0)``."""
    line = text.line_at(position)
    if match := _XEN_ENTRY.match(text.text, position):
        entry = MsrEntry(-1, int(match[1], 16), int(match[2], 16))
        return _Found(Item("msr", line.number, line.time, text="xen", msr=entry), match.end())
    match = _ENTRY.match(text.text, position)
    before = _ENTRY_POSITION.search(text.text, max(0, position - 6), position)
    if match is None or before is None:
        return _Found(None, position)
    entry = MsrEntry(int(before[1]), int(match[1], 16), int(match[2], 16))
    return _Found(Item("msr", line.number, line.time, msr=entry), match.end())


def _vcpu_before(text: _Text, position: int) -> str:
    match = _XEN_VCPU.search(text.text, max(0, position - 16), position)
    return match[1] if match else ""


def _xen_failure(text: _Text, position: int) -> _Found:
    """Read Xen's line above a dump: the exit reason, and what the qualification says."""
    pattern = _XEN_FAILURE if text.text[position] == "v" else _OLD_XEN_FAILURE
    match = pattern.match(text.text, position)
    if match is None:
        return _Found(None, position)
    reason = int(match[1], 16)
    if reason & 0xFFFF not in _FAILED_REASONS:
        return _Found(None, position)
    line = text.line_at(position)
    # The number of an MSR is not what the exit qualification says in every version.
    qualification = int(match[2]) if match[2] else None
    verdict = Verdict.of_exit(reason, qualification)
    label = _vcpu_before(text, position)
    return _Found(Item("verdict", line.number, line.time, verdict=verdict, text=label), match.end())


def _xen_error(text: _Text, position: int) -> _Found:
    match = _XEN_ERROR.match(text.text, position)
    if match is None or not 1 <= int(match[1], 16) <= _MOST_ERRORS:
        return _Found(None, position)
    if text.cut and match.end() == len(text.text):
        return _Found(None, position)
    line = text.line_at(position)
    verdict = Verdict("vmfail_valid", int(match[1], 16))
    label = _vcpu_before(text, position)
    return _Found(Item("verdict", line.number, line.time, verdict=verdict, text=label), match.end())


def _hardware_error(text: _Text, position: int) -> _Found:
    """Read what QEMU or another user of KVM says about a failed entry."""
    match = _HARDWARE_ERROR.match(text.text, position)
    if match is None or (text.cut and match.end() == len(text.text)):
        return _Found(None, position)
    verdict = Verdict.of_hardware_error(int(match[1], 0))
    known = (
        1 <= verdict.error <= _MOST_ERRORS
        if verdict.error is not None
        else verdict.basic_reason in _FAILED_REASONS
    )
    if not known:
        return _Found(None, position)
    line = text.line_at(position)
    return _Found(Item("verdict", line.number, line.time, verdict=verdict, after=True), match.end())


def _qemu(text: _Text, position: int) -> _Found:
    """Read the line of QEMU's register dump that tells the modes of the virtual CPU."""
    match = _QEMU.match(text.text, position)
    if match is None:
        return _read_row(ROWS_BY_WORD.get("RIP", ()), text, position)
    line = text.line_at(position)
    remark = "QEMU's register dump: CPL " + match[2]
    if match[3] == "1":
        remark += ", the virtual CPU is in system-management mode"
    if match[4] == "1":
        remark += ", it is halted"
    return _Found(Item("qemu", line.number, line.time, text=remark), match.end())


def _numbered(text: _Text, position: int) -> _Found:
    """Read ``VCPU 0`` and ``Domain 2 <<<`` of Xen's key 'v'."""
    match = _NUMBERED.match(text.text, position)
    if match is None:
        return _Found(None, position)
    line = text.line_at(position)
    return _Found(Item("label", line.number, line.time, text=match.group()), match.end())


_READERS: dict[str, _Reader] = {
    "VMCS": _start,
    "MSR": _area,
    "msr": _entry,
    "vmentry": _xen_failure,
    "Failed": _xen_failure,
    "VMLAUNCH": _xen_error,
    "VMRESUME": _xen_error,
    "KVM": _hardware_error,
    "hardware_entry_failure_reason": _hardware_error,
    "hw_entry_failure_reason": _hardware_error,
    "EIP": _qemu,
    "RIP": _qemu,
    "VCPU": _numbered,
    "Domain": _numbered,
}


#: Where the input begins with one of these, it may be the rest of a longer word: LDTR.
_ENDS_OF_WORDS = frozenset({"TR"})


def _read(word: str, text: _Text, position: int) -> _Found:
    """Read whatever begins with `word` at a position."""
    if word in _SECTIONS:
        found = _header(text, position)
        if found.item is not None:
            return found
    if reader := _READERS.get(word):
        return reader(text, position)
    rows = ROWS_BY_WORD.get(word)
    if rows and not (position == 0 and word in _ENDS_OF_WORDS):
        return _read_row(rows, text, position)
    return _Found(None, position)


def scan(lines: list[Line], cut: bool = False) -> list[Item]:
    """Return everything that is found in the lines of one stream, in order.

    Parameters
    ----------
    lines : list of Line
        Lines without prefixes.
    cut : bool
        The input may end in the middle of its last line: it has no line end there.
    """
    text = _Text(lines, cut)
    items: list[Item] = []
    position = 0
    while match := _WORD.search(text.text, position):
        item, end = _read(match.group(), text, match.start())
        if item is not None:
            items.append(item)
        position = max(end, match.end())
    return items
