"""Exits as a trace in Google's Trace Event Format, which Perfetto's and Chrome's viewers load.

One process with a track for each vCPU; exits are complete events (phase X), or instants (i) where
their duration is not known; a counter (C) tells how many there were. Times are in microseconds with
nanoseconds behind the point. Events are written as they come, so that memory does not grow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import IO, TYPE_CHECKING, Any

from vtx.errors import InputError
from vtx.lab.exit_details import record_detail
from vtx.lab.exit_reasons import reason_number
from vtx.lab.ledger import Category, reason_name
from vtx.lab.profile import Profile
from vtx.machine.events import Event
from vtx.machine.exit_scanner import ExitFlag
from vtx.report.pricing import exit_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vtx.report.recorder import Recorded

__all__ = ["RecordedTrace", "ReplayTrace"]

_PROCESS = 1
#: Exits are counted over stretches of so many nanoseconds.
_STRETCH = 10_000_000


class _Writer:
    """Writes events one by one into an array of JSON.

    Parameters
    ----------
    file : file of text
        Where to.
    process : str
        Name of the one process.
    """

    def __init__(self, file: IO[str], process: str) -> None:
        self._file = file
        self._tracks: dict[object, int] = {}
        #: Where the last slice of each track ends, in nanoseconds.
        self._ends: dict[int, int] = {}
        self._first = True
        file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        self._metadata("process_name", 0, {"name": process})

    def track(self, key: object, name: str) -> int:
        """Return the number of a track, which gets its name when it is first used."""
        number = self._tracks.get(key)
        if number is None:
            # Thread 0 means the idle task to viewers.
            number = self._tracks[key] = len(self._tracks) + 1
            self._metadata("thread_name", number, {"name": name})
            self._metadata("thread_sort_index", number, {"sort_index": number})
        return number

    def slice(self, track: int, name: str, at: int, length: int, args: Mapping[str, Any]) -> None:
        """Write an exit of known duration; slices of one track never overlap in part."""
        if at < self._ends.get(track, 0):
            self.instant(track, name, at, {**args, "duration_us": length / 1000})
            return
        self._ends[track] = at + length
        self._slice(track, name, at, length, args)

    def part(self, track: int, name: str, at: int, length: int) -> None:
        """Write a part of the slice that was written last."""
        self._slice(track, name, at, length, {})

    def _slice(self, track: int, name: str, at: int, length: int, args: Mapping[str, Any]) -> None:
        self._event(
            f'"ph":"X","cat":"exit","pid":{_PROCESS},"tid":{track},"ts":{_us(at)},'
            f'"dur":{_us(length)}',
            name,
            args,
        )

    def instant(self, track: int, name: str, at: int, args: Mapping[str, Any]) -> None:
        """Write an exit whose duration is not known, or cannot be drawn."""
        self._event(
            f'"ph":"i","s":"t","cat":"exit","pid":{_PROCESS},"tid":{track},"ts":{_us(at)}',
            name,
            args,
        )

    def counter(self, name: str, at: int, args: Mapping[str, float]) -> None:
        """Write the value of a counter from a time on."""
        self._event(f'"ph":"C","cat":"exit","pid":{_PROCESS},"tid":0,"ts":{_us(at)}', name, args)

    def _metadata(self, name: str, track: int, args: Mapping[str, Any]) -> None:
        self._event(f'"ph":"M","pid":{_PROCESS},"tid":{track},"ts":0', name, args)

    def _event(self, fields: str, name: str, args: Mapping[str, Any]) -> None:
        comma = "" if self._first else ",\n"
        self._first = False
        self._file.write(f'{comma}{{"name":{json.dumps(name)},{fields},"args":{json.dumps(args)}}}')

    def close(self, about: Mapping[str, Any]) -> None:
        """End the array, and say what the trace is."""
        self._file.write(f'\n],"otherData":{json.dumps(about)}}}\n')


def _us(ns: int) -> str:
    """Return whole nanoseconds as microseconds."""
    return f"{ns // 1000}.{ns % 1000:03d}"


class _Counter:
    """Counts exits in stretches of time that follow each other."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer
        self._stretch: int | None = None
        self._count = 0

    def add(self, at: int) -> None:
        """Count an exit; those that come late count in the current stretch."""
        stretch = at // _STRETCH
        if self._stretch is None:
            self._stretch = stretch
        if stretch > self._stretch:
            self.flush()
            if stretch > self._stretch + 1:
                self._write(self._stretch + 1, 0)
            self._stretch, self._count = stretch, 0
        self._count += 1

    def flush(self) -> None:
        """Write the current stretch."""
        if self._stretch is not None:
            self._write(self._stretch, self._count)

    def _write(self, stretch: int, count: int) -> None:
        name = f"VM exits in {_STRETCH // 1_000_000} ms"
        self._writer.counter(name, stretch * _STRETCH, {"exits": count})


class RecordedTrace:
    """Recorded exits, written while they are read.

    It is a :class:`vtx.hypervisor.importers.analysis.Tap`.

    Parameters
    ----------
    file : file of text
        Where to.
    name : str
        Of the recording.
    """

    def __init__(self, file: IO[str], name: str) -> None:
        self._writer = _Writer(file, f"guest of {name}")
        self._counter = _Counter(self._writer)
        self._name = name
        self._numbers: list[int | None] = []
        self._written = self._timeless = 0

    def add(self, records: NDArray[Any], names: Sequence[str], *, xen: bool = False) -> None:
        """Write a batch of exits."""
        for name in names[len(self._numbers) :]:
            self._numbers.append(reason_number(name))
        for record in records:
            flags = int(record["flags"])
            if not flags & ExitFlag.TIME:
                self._timeless += 1
                continue
            self._written += 1
            self._add(record, flags, names, xen)

    def _add(self, record: Any, flags: int, names: Sequence[str], xen: bool) -> None:
        thread, vcpu = int(record["tid"]), int(record["vcpu"])
        track = self._writer.track((thread, vcpu), _track_name(thread, vcpu, xen))
        reason, at = int(record["reason"]), int(record["time_ns"])
        args = self._arguments(record, flags, reason, names)
        length = int(record["duration_ns"]) if flags & ExitFlag.DURATION else None
        if length is None:
            self._writer.instant(track, names[reason], at, args)
        else:
            self._writer.slice(track, names[reason], at, length, args)
        self._counter.add(at + (length or 0))

    def _arguments(
        self, record: Any, flags: int, reason: int, names: Sequence[str]
    ) -> dict[str, Any]:
        args: dict[str, Any] = {"line": int(record["line"])}
        detail = record_detail(record, self._numbers[reason])
        if detail:
            args["detail"] = detail
        for name, flag in _WORDS.items():
            if flags & flag:
                args[name] = hex(record[name])
        if flags & ExitFlag.L2:
            args["level"] = "L2"
        if record["userspace"]:
            args["userspace"] = names[int(record["userspace"]) - 1]
        return args

    def close(self) -> None:
        """End the trace.

        Raises
        ------
        InputError
            No exit has a time.
        """
        if not self._written:
            raise InputError(
                "no exit has a time stamp, so that there is nothing to draw over time",
                file=self._name,
            )
        self._counter.flush()
        self._writer.close({"recording": self._name, "exits_without_time": self._timeless})


_WORDS = {
    "rip": ExitFlag.RIP,
    "info1": ExitFlag.INFO1,
    "info2": ExitFlag.INFO2,
    "intr_info": ExitFlag.INTR_INFO,
    "error_code": ExitFlag.ERROR_CODE,
}


def _track_name(thread: int, vcpu: int, xen: bool) -> str:
    if xen:
        return f"d{thread} v{vcpu}"
    name = f"vCPU {vcpu}" if vcpu >= 0 else "vCPU ?"
    return f"{name} (thread {thread})" if thread else name


_PARTS: Mapping[str, frozenset[Category]] = {
    "exit transition": frozenset({Category.EXIT, Category.FAULT}),
    "entry transition": frozenset({Category.ENTRY, Category.INJECTION}),
}


class ReplayTrace:
    """The exits of a replay, written while it runs (told by a recorder's `each`).

    A replay has no clock: an exit lasts as long as the profile prices it, and a step of the guest
    lasts one nominal cycle, so that its place is seen.

    Parameters
    ----------
    file : file of text
        Where to.
    name : str
        Of the trace.
    profile : Profile
        Whose prices.

    Raises
    ------
    InputError
        The profile has no prices.
    """

    def __init__(self, file: IO[str], name: str, profile: Profile) -> None:
        if not profile.has_prices:
            why = profile.prices["round_trip"].source
            raise InputError(f"{profile.id} has no prices to draw exits over time with: {why}")
        self._writer = _Writer(file, f"{name} on {profile.id}")
        self._counter = _Counter(self._writer)
        self._name, self._profile = name, profile
        self._exits_ns = 0
        self._steps: dict[int, int] = {}
        self._parts: dict[tuple[int, tuple[int, ...]], list[tuple[str, int]]] = {}

    def each(self, sequence: int, recorded: Recorded, counts: Sequence[int]) -> None:
        """Write one exit."""
        self._steps[recorded.processor] = recorded.step
        guest = round(self._profile.ns(Fraction(sum(self._steps.values()))))
        at = guest + self._exits_ns
        parts = self._parts_of(recorded.reason, tuple(counts))
        length = sum(ns for _, ns in parts)
        track = self._writer.track(recorded.processor, f"logical processor {recorded.processor}")
        args = {
            "exit": sequence + 1,
            "guest_step": recorded.step,
            "qualification": hex(recorded.qualification),
            "rip": hex(recorded.rip),
            "guest_physical_address": hex(recorded.guest_physical_address),
            "vmreads": counts[Event.VMREAD],
            "vmwrites": counts[Event.VMWRITE],
        }
        self._writer.slice(track, reason_name(recorded.reason), at, length, args)
        start = at
        for name, ns in parts:
            if ns:
                self._writer.part(track, name, start, ns)
            start += ns
        self._exits_ns += length
        self._counter.add(at + length)

    def _parts_of(self, reason: int, counts: tuple[int, ...]) -> list[tuple[str, int]]:
        """Return what an exit consists of, in order, in whole nanoseconds."""
        found = self._parts.get((reason, counts))
        if found is None:
            sums = dict.fromkeys(("exit transition", "handling", "entry transition"), 0.0)
            for cell in exit_row(self._profile, reason, counts).cells:
                names = [name for name, some in _PARTS.items() if cell.category in some]
                sums[names[0] if names else "handling"] += float(self._profile.ns(cell.cycles))
            found = [(name, round(ns)) for name, ns in sums.items()]
            self._parts[reason, counts] = found
        return found

    def close(self) -> None:
        """End the trace."""
        self._counter.flush()
        profile = self._profile
        note = (
            "Exits last as long as the profile prices them at its nominal clock; a step of the "
            "guest, which is not priced, is drawn as one cycle."
        )
        self._writer.close({"trace": self._name, **profile.summary(), "note": note})
