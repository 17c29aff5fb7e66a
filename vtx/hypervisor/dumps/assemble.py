"""Make dumps of what was found: where one ends, which section a label is in, what contradicts.

Printk does not keep the lines of two dumps apart, and logs lose lines. So the order of the lines
is checked: the rows of a dump come in one known order, and a row that is out of it shows that two
dumps are mixed, or that something was lost. What cannot be told apart is not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vtx.facts.controls import Entry
from vtx.facts.fields import FIELDS, Field
from vtx.hypervisor.dumps.labels import CONTROL, GUEST, Special
from vtx.hypervisor.dumps.model import Dump, Unreadable, Verdict
from vtx.hypervisor.dumps.scan import Item

__all__ = ["assemble"]

#: Seconds between two lines of a dump that can only mean that a line between them is missing.
_GAP_SECONDS = 5.0
#: The row from which on a dump is as good as complete ("IDTVectoring").
_NEARLY_COMPLETE = CONTROL + 9
#: Rows up to this one begin a dump ("Sysenter" of the guest).
_BEGINNING = GUEST + 9
#: Fewer rows than this after a complete dump are what somebody wrote about it.
_REMARK_ROWS = 4


@dataclass
class _Run:
    """Items that may be one dump: from one beginning to the next."""

    items: list[Item] = field(default_factory=list)
    label: str = ""
    verdict: Verdict | None = None
    headed: bool = False

    @property
    def rows(self) -> list[Item]:
        return [item for item in self.items if item.kind == "row"]


def _definite(item: Item) -> int | None:
    """Return the rank of an item that can stand in one place only."""
    return item.ranks[0] if len(item.ranks) == 1 else None


def _reach(items: Iterable[Item]) -> int:
    """Return the highest rank that is certain."""
    return max((rank for item in items if (rank := _definite(item)) is not None), default=0)


# ---- Cutting the stream into runs ----------------------------------------------------------


class _Cutter:
    """Cuts a stream of items where a new dump begins."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.run = _Run()
        self.time: float | None = None

    def begin(self) -> None:
        """End the current run, if there is anything in it."""
        if self.run.items:
            self.runs.append(self.run)
        elif not self.run.label and self.run.verdict is None:
            return
        self.run = _Run()

    def add(self, item: Item) -> None:
        """Take one item of the stream."""
        handler = getattr(self, f"_add_{item.kind}")
        handler(item)

    def _add_start(self, item: Item) -> None:
        self.begin()
        self.run.label = item.text
        self.time = item.time

    def _add_label(self, item: Item) -> None:
        domain = self.run.label if self.run.label.startswith("Domain") else ""
        if self.run.items:
            domain = ""
            self.begin()
        self.run.label = f"{domain} {item.text}".strip()
        self.time = item.time

    def _add_verdict(self, item: Item) -> None:
        self.begin()
        self.run.verdict, self.run.label = item.verdict, item.text
        self.time = item.time

    def _add_section(self, item: Item) -> None:
        if item.ranks[0] == GUEST and (self.run.rows or self.run.headed):
            self.begin()
        self.run.headed = self.run.headed or item.ranks[0] == GUEST
        self._place(item)

    def _place(self, item: Item) -> None:
        if (
            self.run.rows
            and None not in (item.time, self.time)
            and abs((item.time or 0) - (self.time or 0)) > _GAP_SECONDS
        ):
            self.begin()
        self.time = item.time if item.time is not None else self.time
        self.run.items.append(item)

    _add_row = _add_area = _add_msr = _place

    def finish(self) -> list[_Run]:
        """Return all runs that hold a value."""
        self.begin()
        return [run for run in self.runs if run.rows]


# ---- Order within a run --------------------------------------------------------------------


def _without_quotations(items: list[Item]) -> Iterator[Item]:
    """Leave out rows that only repeat, out of order, what an earlier row says."""
    said: set[tuple[object, int]] = set()
    reach = 0
    for item in items:
        rank = _definite(item)
        values = {(value.targets, value.value) for value in item.values}
        if rank is not None and rank < reach and values and values <= said:
            continue
        said |= values
        reach = max(reach, rank or 0)
        yield item


def _pieces(items: list[Item]) -> list[list[Item]]:
    """Cut items wherever a row stands before its place."""
    pieces: list[list[Item]] = [[]]
    reach = 0
    for item in items:
        rank = _definite(item)
        if rank is not None:
            if rank < reach:
                pieces.append([])
                reach = rank
            reach = max(reach, rank)
        pieces[-1].append(item)
    return pieces


def _is_beginning(piece: list[Item]) -> bool:
    ranks = [rank for item in piece if (rank := _definite(item)) is not None]
    return bool(ranks) and ranks[0] <= _BEGINNING


def _is_remark(piece: list[Item], before: list[Item]) -> bool:
    """Tell whether a piece is somebody's words about the complete dump before it."""
    rows = [item for item in piece if item.kind == "row"]
    known = {id(item.row) for item in before}
    return (
        len(rows) < _REMARK_ROWS
        and _reach(before) >= _NEARLY_COMPLETE
        and all(id(item.row) in known for item in rows)
    )


def _untangled(run: _Run, before_is_complete: bool) -> list[tuple[_Run, bool]]:
    """Return the dumps that a run is, each with whether others are mixed into it."""
    pieces = _pieces(list(_without_quotations(run.items)))
    kept = [pieces[0]]
    kept += [piece for piece in pieces[1:] if not _is_remark(piece, kept[0])]
    if len(kept) == 1:
        return [(_Run(kept[0], run.label, run.verdict), False)]
    complete = all(_reach(piece) >= _NEARLY_COMPLETE for piece in kept[:-1])
    if before_is_complete and complete and all(map(_is_beginning, kept[1:])):
        first, *others = kept
        return [
            (_Run(first, run.label, run.verdict), False),
            *((_Run(piece), False) for piece in others),
        ]
    return [(_Run([item for piece in kept for item in piece], run.label, run.verdict), True)]


# ---- From items to values ------------------------------------------------------------------


class _Builder:
    """Makes one dump of the items of a run."""

    def __init__(self, run: _Run, form: str, tangled: bool) -> None:
        lines = [item.line for item in run.items]
        self.dump = Dump(form, run.label, min(lines), max(lines), tangled=tangled)
        self.items = run.items
        self.old = any(item.row and item.row.old for item in run.items)
        self.given: dict[Field, int] = {}
        self.status: dict[str, tuple[int, int]] = {}
        self.area = ""
        self.efer: tuple[int, int] | None = None
        self.dump.verdict = run.verdict or Verdict()

    def build(self) -> Dump:
        """Return the dump."""
        for index, item in enumerate(self.items):
            if item.kind == "row":
                self._row(index, item)
            elif item.kind == "area":
                self.area = item.text
            elif item.msr and (item.text == "xen" or self.area == "guest autoload"):
                self.dump.msr_load.append(item.msr)
        if self.status.keys() == {"svi", "rvi"}:
            (svi, line), (rvi, _) = self.status["svi"], self.status["rvi"]
            self._set(Field.GUEST_INTERRUPT_STATUS, svi << 8 | rvi, line)
        self._set_efer()
        self._drop_contradictions()
        return self.dump

    def _set_efer(self) -> None:
        """Tell whether "EFER=" of KVM is the field: it is if VM entry loads it.

        Otherwise "(effective)" or "(autoload)" stood behind it, and a cut line has lost that.
        """
        if self.efer is None:
            return
        value, line = self.efer
        if self.dump.values.get(Field.VM_ENTRY_CONTROLS, 0) & Entry.LOAD_IA32_EFER:
            self._set(Field.GUEST_IA32_EFER, value, line)
        else:
            self.dump.effective_efer = value

    def _place(self, index: int, item: Item) -> int | None:
        """Return which of its places an item stands in; None if that cannot be told."""
        if len(item.ranks) == 1 or all(len(set(value.targets)) == 1 for value in item.values):
            return 0
        if self.dump.tangled:
            return None
        if item.row and item.row.word == "RSP":
            return 1 if self.old else 0 if self.dump.form == "kvm" else None
        low = _reach(self.items[:index])
        ahead = (rank for later in self.items[index + 1 :] if (rank := _definite(later)))
        high = next(ahead, CONTROL + 99)
        fitting = [place for place, rank in enumerate(item.ranks) if low <= rank <= high]
        return fitting[0] if len(fitting) == 1 else None

    def _row(self, index: int, item: Item) -> None:
        for part, why in item.damaged:
            self._cannot_read(item.line, part.targets[:1], why)
        place = self._place(index, item)
        for value in item.values:
            if place is None:
                why = "the dump does not tell which of them it is"
                self._cannot_read(item.line, value.targets, why)
            elif value.part.old not in (None, self.old):
                why = "it has not as many digits as such a dump prints"
                self._cannot_read(item.line, value.targets, why)
            else:
                self._take(value.targets[place], value.value, item.line)

    def _cannot_read(self, line: int, targets: tuple[Field | Special, ...], why: str) -> None:
        names = dict.fromkeys(
            FIELDS[target].name if isinstance(target, Field) else target.name for target in targets
        )
        self.dump.unreadable.append(Unreadable(line, " or ".join(names), why))

    def _take(self, target: Field | Special, value: int, line: int) -> None:
        if isinstance(target, Field):
            self._set(target, value, line)
        elif target.name in ("svi", "rvi"):
            self.status[target.name] = (value, line)
        elif target.name == "effective_efer":
            self.dump.effective_efer = value
        elif target.name == "efer":
            self.efer = (value, line)

    def _set(self, field_: Field, value: int, line: int) -> None:
        known = self.dump.values.get(field_)
        if known is None:
            self.dump.values[field_] = value
            self.dump.lines[field_] = line
        elif known != value:
            self.given[field_] = line

    def _drop_contradictions(self) -> None:
        for field_, line in self.given.items():
            first = self.dump.lines.pop(field_)
            del self.dump.values[field_]
            why = f"line {first} says otherwise"
            self.dump.unreadable.append(Unreadable(line, FIELDS[field_].name, why))
            self.dump.tangled = True


def _with_verdict(dump: Dump) -> Dump:
    """Complete the verdict with what the dump itself shows."""
    reason = dump.values.get(Field.EXIT_REASON)
    qualification = dump.values.get(Field.EXIT_QUALIFICATION)
    shown = dump.verdict
    agrees = shown.kind == "none" or (reason == shown.exit_reason and shown.qualification is None)
    if reason is not None and agrees:
        dump.verdict = Verdict.of_exit(reason, qualification)
    return dump


def assemble(items: list[Item], xen: bool) -> list[Dump]:
    """Return the dumps that the items of one stream make up, in order.

    Parameters
    ----------
    items : list of Item
        What was found.
    xen : bool
        The text is from Xen.
    """
    cutter = _Cutter()
    for item in items:
        cutter.add(item)
    dumps: list[Dump] = []
    complete = True
    for run in cutter.finish():
        for part, tangled in _untangled(run, complete):
            dumps.append(_with_verdict(_Builder(part, "xen" if xen else "kvm", tangled).build()))
        complete = _reach(run.items) >= _NEARLY_COMPLETE
    return [dump for dump in dumps if dump.values or dump.unreadable]
