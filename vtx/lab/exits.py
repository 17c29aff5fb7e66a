"""Statistics of recorded VM exits, gathered batch by batch.

What is kept is bounded: it grows with the number of different reasons, details, vCPUs and durations
up to limits, and not with the number of exits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vtx.errors import UsageError
from vtx.lab.exit_details import detail_text, subject_for
from vtx.lab.exit_reasons import reason_number
from vtx.lab.exit_rows import PERCENTILES, ExitRow, Tally, Times, VcpuRow
from vtx.machine.exit_scanner import ExitFlag
from vtx.machine.exit_tally import ExitTally, TallyEntry, TallyTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ExitStatistics"]

_MOST_SLICES = 100_000
_FIRST_UNKNOWN = 0x800
_LEVEL_BIT = 1


class ExitStatistics:
    """What a trace of VM exits comes to.

    Parameters
    ----------
    slice_ns : int, optional
        Also gather slices of time of this length.
    per_vcpu : bool
        Also gather vCPUs.
    """

    def __init__(self, slice_ns: int | None = None, *, per_vcpu: bool = True) -> None:
        self.slice_ns = slice_ns
        self._xen = False
        self._tally = ExitTally(slice_ns or 0, per_vcpu=per_vcpu)
        self._groups: list[int] = []
        self._labels: dict[int, str] = {}
        self._columns: tuple[NDArray[Any], NDArray[Any]] | None = None

    def add(self, records: NDArray[Any], names: Sequence[str], *, xen: bool = False) -> None:
        """Take in a batch of exits.

        Parameters
        ----------
        records : ndarray of exit_dtype, shape (n,), n >= 1
            The exits.
        names : sequence of str
            Reasons by the column ``reason``.
        xen : bool
            The column ``tid`` holds domains.
        """
        self._xen = xen
        rows, subjects = self._by_reason(names)
        self._tally.add(records, rows, subjects, xen=xen)
        first, last = self.first_ns, self.last_ns
        span = 0 if first is None or last is None else last - first
        if self.slice_ns and span // self.slice_ns > _MOST_SLICES:
            raise UsageError(f"--per-slice would make more than {_MOST_SLICES:,} slices")

    def _by_reason(self, names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return row and subject of each reason: by its number, whatever its name is."""
        import numpy as np

        if self._columns is None or len(self._groups) < len(names):
            for index in range(len(self._groups), len(names)):
                number = reason_number(names[index])
                group = _FIRST_UNKNOWN + index % _FIRST_UNKNOWN if number is None else number
                self._groups.append(group)
                self._labels.setdefault(group, names[index])
            subjects = [subject_for(group) for group in self._groups]
            self._columns = (np.array(self._groups, np.uint16), np.array(subjects, np.uint8))
        return self._columns

    # ---- What came of it ----------------------------------------------------------------------

    @property
    def samples(self) -> int:
        """How many exits."""
        return int(self._tally.summary.samples)

    @property
    def first_ns(self) -> int | None:
        """The earliest stamp of an exit."""
        summary = self._tally.summary
        return int(summary.first_ns) if summary.first_ns <= summary.last_ns else None

    @property
    def last_ns(self) -> int | None:
        """The latest stamp of an exit."""
        return None if self.first_ns is None else int(self._tally.summary.last_ns)

    @property
    def nested(self) -> bool:
        """Whether a nested guest ran."""
        return bool(self._tally.summary.flags & ExitFlag.L2)

    def rows(self) -> list[ExitRow]:
        """Return one row for each reason: most time first, then most samples."""
        details = self._grouped(TallyTable.DETAILS)
        rows = []
        for group, whole in self._grouped(TallyTable.ROWS).items():
            parts = details[group]
            named, levels = self._parts(group, parts)
            rows.append(
                ExitRow(
                    self._labels[group],
                    group if group < _FIRST_UNKNOWN else None,
                    self._sum(TallyTable.ROWS, whole),
                    sorted(named.items(), key=lambda item: _weight(item[1]), reverse=True),
                    levels,
                )
            )
        return sorted(rows, key=lambda row: _weight(row.tally), reverse=True)

    def below(self, reason: str, limit_ns: int) -> tuple[int, int]:
        """Return how many exits of a row took less than `limit_ns`, and how long together."""
        for index, entry in enumerate(self._tally.entries(TallyTable.ROWS)):
            if self._labels[entry.key] == reason:
                return self._tally.below(TallyTable.ROWS, index, limit_ns)
        return 0, 0

    @property
    def flags(self) -> int:
        """What is known of at least one exit: bits of :class:`ExitFlag`."""
        return int(self._tally.summary.flags)

    def _parts(
        self, group: int, parts: Sequence[tuple[int, TallyEntry]]
    ) -> tuple[dict[str, Tally], dict[str, Tally]]:
        """Return the details of a row, and its levels if a nested guest ran."""
        named: dict[str, list[tuple[int, TallyEntry]]] = {}
        levels: dict[str, list[tuple[int, TallyEntry]]] = {}
        for index, entry in parts:
            level = "L2" if entry.part & _LEVEL_BIT else "L1"
            text = detail_text(entry.part & ~_LEVEL_BIT)
            if self.nested:
                levels.setdefault(level, []).append((index, entry))
                text = f"{text}, {level}" if text else ""
            if text:
                named.setdefault(text, []).append((index, entry))
        return (
            {text: self._sum(TallyTable.DETAILS, some) for text, some in named.items()},
            {level: self._sum(TallyTable.DETAILS, levels[level]) for level in sorted(levels)},
        )

    def total(self) -> Tally:
        """Return all exits together."""
        return self._sum(TallyTable.ROWS, list(enumerate(self._tally.entries(TallyTable.ROWS))))

    def vcpus(self) -> list[VcpuRow]:
        """Return one row for each vCPU, by its name."""
        rows = []
        for key, parts in self._grouped(TallyTable.VCPUS).items():
            vcpu = max(entry.vcpu for _, entry in parts)
            label = _vcpu_name(key >> 32, vcpu, self._xen)
            rows.append(self._part(TallyTable.VCPUS, label, parts))
        return sorted(rows, key=lambda row: [_natural(word) for word in row.label.split()])

    def slices(self) -> Iterator[tuple[int, VcpuRow]]:
        """Yield the slices of time in which an exit began, with their starts in nanoseconds."""
        assert self.slice_ns is not None
        for number, parts in sorted(self._grouped(TallyTable.SLICES).items()):
            start = number * self.slice_ns
            yield start, self._part(TallyTable.SLICES, f"{start / 1e9:.6f}", parts)

    def _grouped(self, table: TallyTable) -> dict[int, list[tuple[int, TallyEntry]]]:
        """Return the tallies of a table by their keys, with their indices."""
        groups: dict[int, list[tuple[int, TallyEntry]]] = {}
        for index, entry in enumerate(self._tally.entries(table)):
            groups.setdefault(entry.key, []).append((index, entry))
        return groups

    def _sum(self, table: TallyTable, some: Sequence[tuple[int, TallyEntry]]) -> Tally:
        whole = Tally()
        for _, entry in some:
            whole.add(entry.samples, _times(entry))
        if whole.times is not None:
            found = self._tally.percentiles(table, [index for index, _ in some], PERCENTILES)
            whole.times.percentiles, whole.times.within = found
        return whole

    def _part(
        self, table: TallyTable, label: str, some: Sequence[tuple[int, TallyEntry]]
    ) -> VcpuRow:
        reasons = {entry.part: self._sum(table, [(index, entry)]) for index, entry in some}
        ordered = sorted(reasons.items(), key=lambda item: _weight(item[1]), reverse=True)
        named: Mapping[str, Tally] = {self._labels[group]: tally for group, tally in ordered}
        return VcpuRow(label, self._sum(table, some), named)


def _times(entry: TallyEntry) -> Times | None:
    if not entry.timed:
        return None
    return Times(entry.timed, entry.total, entry.least, entry.most, entry.mean, entry.squares)


def _natural(word: str) -> tuple[int, str]:
    return (int(word), "") if word.isdecimal() else (-1, word)


def _vcpu_name(tid: int, vcpu: int, xen: bool) -> str:
    if xen:
        return f"d{tid} v{vcpu}"
    number = f"vcpu {vcpu}" if vcpu >= 0 else "vcpu ?"
    return f"{number} thread {tid}" if tid else number


def _weight(tally: Tally) -> tuple[float, int]:
    return (tally.times.total if tally.times else 0.0, tally.samples)
