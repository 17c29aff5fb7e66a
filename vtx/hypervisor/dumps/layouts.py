"""Reading thousands of dumps that look alike: the layout of one is learned, the rest are matched.

A kernel prints all its dumps in one layout, so a file of many differs from dump to dump in digits
only. One is read with all care; which digits gave which field is found out by reading it again
with other digits in it. That becomes one regular expression for a whole dump. A dump that it does
not match, and all text between dumps, is read with the same care as ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vtx.facts.fields import Field
from vtx.hypervisor.dumps.clean import clean
from vtx.hypervisor.dumps.model import Dump, Verdict

__all__ = ["FEW", "HEADER", "Reader", "beginnings", "learn"]

#: Fewer dumps than these are not worth learning a layout.
FEW = 8
_MOST_LAYOUTS = 16

#: The line that every dump has at or near its beginning.
HEADER = "*** Guest State ***"
_START = "last attempted VM-entry on CPU"
#: Digits that may be a value, unlike those of a time, a date or a task.
_DIGITS = re.compile(r"(?:(?<=0x)[0-9a-f]{2,16}|(?<=[= :])[0-9a-f]{4,16})(?![0-9A-Za-z_.\])-]| \()")
#: What has to be read to understand the rest, or stands in the dump twice.
_KEPT = re.compile(r"(?:EntryControls=(?:0x)?|InterruptStatus = )\Z")
_PREFIX_PART = re.compile(r"(?P<task>\[\s*[TC]\d+\])|(?P<number>\d+(?:\.\d+)?)|(?P<space>\s+)|.")
_GAP_SECONDS = 5.0

Read = Callable[[str], list[Dump]]


class Layout(NamedTuple):
    """One layout.

    Attributes
    ----------
    pattern : re.Pattern
        What a whole dump looks like, from the start of its first line.
    fields : tuple of Field
        The field of each group.
    lines : dict of Field to int
        On which line of the dump each field stands, from 0.
    constant : dict of Field to int
        Fields whose digits are part of the expression.
    label : bool
        The first line names VMCS and CPU.
    height : int
        Number of lines.
    effective_efer : int or None
        IA32_EFER of the guest where it is not the field that is shown.
    """

    pattern: re.Pattern[str]
    fields: tuple[Field, ...]
    lines: dict[Field, int]
    constant: dict[Field, int]
    label: bool
    height: int
    effective_efer: int | None


def beginnings(text: str) -> list[int]:
    """Return where dumps may begin: the starts of their first lines."""
    starts: list[int] = []
    position = text.find(HEADER)
    while position >= 0:
        start = text.rfind("\n", 0, position) + 1
        above = text.rfind("\n", 0, max(start - 1, 0)) + 1
        starts.append(above if _START in text[above:start] else start)
        position = text.find(HEADER, position + len(HEADER))
    return starts


def _tagged(block: str) -> tuple[str, list[tuple[int, int]], dict[int, int]]:
    """Put other digits in the place of every value.

    Returns
    -------
    tuple
        The block with those digits, the places of the values, and which value each number stands
        for.
    """
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    tags: dict[int, int] = {}
    end = 0
    for number, match in enumerate(_DIGITS.finditer(block)):
        if _KEPT.search(block, max(0, match.start() - 20), match.start()):
            continue
        width = match.end() - match.start()
        tag = f"{0xA0 + number % 0x60:x}" if width < 4 else f"a{number:0{width - 1}x}"
        parts += [block[end : match.start()], tag[-width:].rjust(width, "0")]
        end = match.end()
        tags[int(parts[-1], 16)] = len(places)
        places.append(match.span())
    return "".join([*parts, block[end:]]), places, tags


def _prefix_pattern(prefix: str, stamp: str) -> str:
    """Return the expression of a log prefix: its times may differ, its task may not."""
    parts = []
    for match in _PREFIX_PART.finditer(prefix):
        if match["number"]:
            number = r"\d+\.\d+" if "." in match["number"] else r"\d+"
            if "." in match["number"] and stamp:
                number, stamp = f"(?P<{stamp}>{number})", ""
            parts.append(number)
        elif match["space"]:
            parts.append(r"\s+")
        else:
            parts.append(re.escape(match.group()))
    return "".join(parts)


def _pattern(block: str, places: list[tuple[int, int]], groups: set[int]) -> str:
    """Return the expression of a block; the values `groups` become groups of their own."""
    texts = {line.number: line.text for line in clean(block)}
    parts, offset, place = [], 0, 0
    rows = block.split("\n")[:-1]
    for index, raw in enumerate(rows):
        text = texts.get(index + 1, "")
        start = offset + (raw.index(text) if text else len(raw))
        stamp = "first" if index == 0 else "last" if index == len(rows) - 1 else ""
        parts.append(_prefix_pattern(block[offset:start], stamp))
        offset += len(raw) + 1
        while place < len(places) and places[place][0] < offset:
            low, high = places[place]
            digits = rf"[0-9a-f]{{{high - low}}}"
            parts.append(re.escape(block[start:low]))
            parts.append(f"({digits})" if place in groups else digits)
            start, place = high, place + 1
        parts.append(re.escape(block[start:offset]))
    return "".join(parts)


def learn(block: str, read: Read) -> Layout | None:
    """Return the layout of the dump that a block of lines is, None if it is not that regular.

    Parameters
    ----------
    block : str
        The lines of a dump, from its first to its last.
    read : callable
        Reads dumps with all care.
    """
    first = read(block)
    text, places, tags = _tagged(block)
    second = read(text)
    if len(first) != 1 or len(second) != 1 or len(tags) != len(places):
        return None
    dump, tagged = first[0], second[0]
    if not (_is_regular(dump) and _is_regular(tagged) and dump.lines == tagged.lines):
        return None
    by_place = {tags[value]: field for field, value in tagged.values.items() if value in tags}
    constant = {field: value for field, value in tagged.values.items() if value not in tags}
    if any(dump.values[field] != value for field, value in constant.items()):
        return None
    return Layout(
        re.compile(_pattern(block, places, set(by_place))),
        tuple(by_place[place] for place in sorted(by_place)),
        {field: line - 1 for field, line in dump.lines.items()},
        constant,
        dump.label.startswith("VMCS"),
        block.count("\n"),
        dump.effective_efer,
    )


def _is_regular(dump: Dump) -> bool:
    return (
        dump.form == "kvm"
        and not (dump.tangled or dump.unreadable or dump.msr_load or dump.remarks)
        and len(dump.values) == len(dump.lines)
    )


_LABEL = re.compile(r"VMCS (\S+), last attempted VM-entry on CPU (-?\d+)")


class Reader:
    """Reads dumps of a few layouts, and learns those.

    Parameters
    ----------
    read : callable
        Reads dumps with all care.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._layouts: list[Layout] = []
        self._misses = FEW  # the first dump is worth learning at once

    def read(self, text: str) -> tuple[list[Dump], str]:
        """Return the dumps of known layouts, and the text with blank lines in their place."""
        dumps: list[Dump] = []
        rest: list[str] = []
        end, line, counted = 0, 1, 0
        starts = beginnings(text)
        for start, following in zip(starts, [*starts[1:], len(text)], strict=True):
            if start < end:
                continue
            found = self._match(text, start) or self._learn(text, start, following)
            if found is None:
                continue
            layout, match = found
            line += text.count("\n", counted, start)
            counted = start
            dumps.append(_dump(layout, match, line))
            rest += [text[end:start], "\n" * layout.height]
            end = match.end()
        return dumps, "".join([*rest, text[end:]])

    def _match(self, text: str, start: int) -> tuple[Layout, re.Match[str]] | None:
        for index, layout in enumerate(self._layouts):
            match = layout.pattern.match(text, start)
            if match is not None and not _has_gap(match):
                if index:  # the next dump is likely to be like this one
                    self._layouts.insert(0, self._layouts.pop(index))
                return layout, match
        return None

    def _learn(self, text: str, start: int, end: int) -> tuple[Layout, re.Match[str]] | None:
        """Learn the layout of a dump, if others were not matched either."""
        self._misses += 1
        if self._misses < FEW or len(self._layouts) >= _MOST_LAYOUTS:
            return None
        dumps = self._read(text[start:end])
        if len(dumps) != 1:
            return None
        rows = text[start:end].split("\n")[: dumps[0].last_line]
        layout = learn("\n".join(rows) + "\n", self._read)
        if layout is None:
            return None
        self._misses = 0
        self._layouts.insert(0, layout)
        return self._match(text, start)


def _has_gap(match: re.Match[str]) -> bool:
    """Tell whether the last line was printed much later than the first."""
    times = match.groupdict()
    first, last = times.get("first"), times.get("last")
    return bool(first and last) and abs(float(last or 0) - float(first or 0)) > _GAP_SECONDS


def _groups(match: re.Match[str]) -> Iterator[str]:
    """Return the digits of the values: all groups but those of times."""
    named = set(match.re.groupindex.values())
    return (digits for n, digits in enumerate(match.groups(), 1) if n not in named)


def _dump(layout: Layout, match: re.Match[str], line: int) -> Dump:
    values = {
        field: int(digits, 16) for field, digits in zip(layout.fields, _groups(match), strict=True)
    }
    values |= layout.constant
    label = _LABEL.search(match.string, match.start(), match.end()) if layout.label else None
    reason = values.get(Field.EXIT_REASON)
    verdict = (
        Verdict()
        if reason is None
        else Verdict.of_exit(reason, values.get(Field.EXIT_QUALIFICATION))
    )
    return Dump(
        "kvm",
        f"VMCS {label[1]}, last entered on CPU {label[2]}" if label else "",
        line + layout.label,
        line + layout.height - 1,
        values,
        {field: line + offset for field, offset in layout.lines.items()},
        verdict=verdict,
        effective_efer=layout.effective_efer,
    )
