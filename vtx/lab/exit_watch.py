"""Single exits worth a look: the slowest with their neighbours, those beyond a limit, storms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtx.facts.exits import ExitReason
from vtx.lab.exit_details import record_detail
from vtx.lab.exit_reasons import reason_number
from vtx.machine.exit_scanner import ExitFlag

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ExitWatch", "SingleExit", "Storm"]

_NEIGHBOURS = 2
_MOST_LONGER = 100
_MOST_RUNS = 4096
_IDLE = int(ExitReason.HLT)
_PAGE_EXITS = (int(ExitReason.EPT_VIOLATION), int(ExitReason.EPT_MISCONFIGURATION))
#: So many exits in a row are a storm: the same page again and again means no progress at all,
#: while a loop of the guest that does I/O has to be longer to be remarkable.
PAGE_STORM, STORM = 4, 32


@dataclass(frozen=True)
class SingleExit:
    """One exit of the trace.

    Parameters
    ----------
    line : int
        Line of the trace, from 1.
    reason, detail : str
        As in the table.
    time_ns, duration_ns, rip, vcpu, thread : int or None
        None: the trace does not tell.
    level : str
        ``"L2"`` for an exit out of a nested guest, else empty.
    userspace : str
        Why KVM went on to user space, if it did.
    """

    line: int
    reason: str
    detail: str
    time_ns: int | None
    duration_ns: int | None
    rip: int | None
    vcpu: int | None
    thread: int | None
    level: str = ""
    userspace: str = ""


@dataclass
class Slow:
    """A slow exit among the exits of the same vCPU."""

    exit: SingleExit
    before: list[SingleExit]
    after: list[SingleExit] = field(default_factory=list)


@dataclass(frozen=True)
class Storm:
    """The same exit at the same instruction again and again.

    Parameters
    ----------
    first : SingleExit
        What repeated; `line` and `time_ns` are those of the last repetition seen.
    line : int
        Where it began.
    samples : int
        How many exits.
    """

    first: SingleExit
    line: int
    samples: int


class ExitWatch:
    """Looks out for single exits while a trace is read.

    Parameters
    ----------
    slowest : int
        How many of the slowest exits to keep. HLT is left out: its time is the guest's rest.
    than_ns : int, optional
        Also keep the longest of those exits that took longer, HLT among them.
    storm : int, optional
        So many repetitions are a storm; by default 4 for exits on a page, 32 for others.
    """

    def __init__(
        self, slowest: int = 5, than_ns: int | None = None, storm: int | None = None
    ) -> None:
        self._most = slowest
        self.than_ns = than_ns
        self._storm = storm
        self.slowest: list[Slow] = []
        self.longer: list[SingleExit] = []
        self.longer_counts: dict[str, int] = {}
        self._runs: dict[int, Storm] = {}
        self._last: NDArray[Any] | None = None

    def add(self, records: NDArray[Any], names: Sequence[str]) -> None:
        """Look at a batch of exits."""
        import numpy as np

        numbers = np.asarray([_number(name) for name in names], np.int64)[records["reason"]]
        flags = records["flags"]
        timed = flags & ExitFlag.DURATION != 0
        durations = np.where(timed, records["duration_ns"], np.uint64(0))
        self._continue(records, names)
        self._add_slowest(records, names, durations * (numbers != _IDLE), timed)
        self._add_longer(records, names, durations)
        self._add_runs(records, names, numbers)
        self._last = records[-4096:].copy()

    # ---- The slowest ----------------------------------------------------------------------------

    def _add_slowest(
        self,
        records: NDArray[Any],
        names: Sequence[str],
        durations: NDArray[np.uint64],
        timed: NDArray[np.bool_],
    ) -> None:
        import numpy as np

        if not self._most:
            return
        full = len(self.slowest) == self._most
        bar = self.slowest[-1].exit.duration_ns if full else 0
        candidates = np.flatnonzero(timed & (durations > np.uint64(bar or 0)))
        if len(candidates) > self._most:
            best = np.argpartition(durations[candidates], -self._most)[-self._most :]
            candidates = candidates[best]
        for index in candidates.tolist():
            slow = Slow(single(records[index], names), self._before(records, index, names))
            slow.after = self._after(records, index, names)
            self.slowest.append(slow)
        self.slowest.sort(key=lambda slow: (-(slow.exit.duration_ns or 0), slow.exit.line))
        del self.slowest[self._most :]

    def _before(self, records: NDArray[Any], index: int, names: Sequence[str]) -> list[SingleExit]:
        near = _near(records[max(0, index - 4096) : index], records[index])[-_NEIGHBOURS:]
        if len(near) < _NEIGHBOURS and self._last is not None:
            earlier = _near(self._last, records[index])[len(near) - _NEIGHBOURS :]
            near = [*earlier, *near]
        return [single(record, names) for record in near]

    def _after(self, records: NDArray[Any], index: int, names: Sequence[str]) -> list[SingleExit]:
        near = _near(records[index + 1 : index + 4096], records[index])[:_NEIGHBOURS]
        return [single(record, names) for record in near]

    def _continue(self, records: NDArray[Any], names: Sequence[str]) -> None:
        """Complete the neighbours of exits at the end of the batch before."""
        for slow in self.slowest:
            missing = _NEIGHBOURS - len(slow.after)
            if missing <= 0:
                continue
            thread, vcpu = slow.exit.thread or 0, slow.exit.vcpu
            mine = records[:4096][records["tid"][:4096] == thread]
            if vcpu is not None:
                mine = mine[mine["vcpu"] == vcpu]
            slow.after += [single(record, names) for record in mine[:missing]]

    # ---- Beyond a limit -------------------------------------------------------------------------

    def _add_longer(
        self, records: NDArray[Any], names: Sequence[str], durations: NDArray[np.uint64]
    ) -> None:
        import numpy as np

        if self.than_ns is None:
            return
        found = np.flatnonzero(durations > np.uint64(self.than_ns))
        if not len(found):
            return
        for reason, count in enumerate(np.bincount(records["reason"][found]).tolist()):
            if count:
                name = names[reason]
                self.longer_counts[name] = self.longer_counts.get(name, 0) + count
        if len(found) > _MOST_LONGER:
            best = np.argpartition(durations[found], -_MOST_LONGER)[-_MOST_LONGER:]
            found = found[best]
        self.longer += [single(records[index], names) for index in found.tolist()]
        self.longer.sort(key=lambda one: (-(one.duration_ns or 0), one.line))
        del self.longer[_MOST_LONGER:]

    # ---- Storms ---------------------------------------------------------------------------------

    def _add_runs(
        self, records: NDArray[Any], names: Sequence[str], numbers: NDArray[np.int64]
    ) -> None:
        import numpy as np

        lowest = PAGE_STORM if self._storm is None else self._storm
        if int(records["repeats"].max()) + 1 < lowest:
            return  # as in most batches
        paged = np.isin(numbers, _PAGE_EXITS) & (records["detail_kind"] != 0)
        if self._storm is None:
            least = np.where(paged, PAGE_STORM, STORM)
        else:
            least = np.full(len(records), self._storm)
        found = np.flatnonzero((records["repeats"] + 1 >= least) & (numbers != _IDLE))
        if not len(found):
            return
        # The last exit of each run in this batch: the first of the reversed order.
        _, last = np.unique(records["run_line"][found][::-1], return_index=True)
        for index in found[::-1][last].tolist():
            record = records[index]
            line = int(record["run_line"])
            self._runs[line] = Storm(single(record, names), line, int(record["repeats"]) + 1)
        if len(self._runs) > _MOST_RUNS:
            longest = sorted(self._runs.values(), key=lambda storm: -storm.samples)
            self._runs = {storm.line: storm for storm in longest[: _MOST_RUNS // 2]}

    def storms(self) -> list[Storm]:
        """Return the storms, longest first."""
        return sorted(self._runs.values(), key=lambda storm: (-storm.samples, storm.line))


def _number(name: str) -> int:
    number = reason_number(name)
    return -1 if number is None else number


def _near(records: NDArray[Any], record: Any) -> list[Any]:
    same = (records["tid"] == record["tid"]) & (records["vcpu"] == record["vcpu"])
    return list(records[same])


def single(record: Any, names: Sequence[str]) -> SingleExit:
    """Return one record as an exit in words."""
    flags = int(record["flags"])
    name = names[int(record["reason"])]
    vcpu, thread, userspace = (int(record[key]) for key in ("vcpu", "tid", "userspace"))
    return SingleExit(
        line=int(record["line"]),
        reason=name,
        detail=record_detail(record, reason_number(name)),
        time_ns=int(record["time_ns"]) if flags & ExitFlag.TIME else None,
        duration_ns=int(record["duration_ns"]) if flags & ExitFlag.DURATION else None,
        rip=int(record["rip"]) if flags & ExitFlag.RIP else None,
        vcpu=vcpu if vcpu >= 0 else None,
        thread=thread or None,
        level="L2" if flags & ExitFlag.L2 else "",
        userspace=names[userspace - 1] if userspace else "",
    )
