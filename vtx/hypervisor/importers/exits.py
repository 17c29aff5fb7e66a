"""VM-exit traces, read in pieces: memory does not grow with the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError
from vtx.hypervisor.importers.ahead import Ahead
from vtx.lab.exit_reasons import is_amd, printed_name
from vtx.lab.exit_rows import Lines
from vtx.lab.report import counted
from vtx.machine.exit_scanner import ExitScanner, exit_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vtx.hypervisor.importers.source import Source

__all__ = ["ExitReader"]

_BUFFER_BYTES = 4 << 20
_BATCH = 1 << 15
#: Batches that wait for the statistics, and the room that a batch keeps for one more scan.
_QUEUE = 2
_ROOM = 1 << 13


class ExitReader:
    """The VM exits of one trace, in batches.

    Parameters
    ----------
    source : Source
        The trace: text of ftrace, ``trace-cmd report``, ``perf script``, ``xenalyze``,
        ``acrntrace`` or kvmtrace.
    progress : callable, optional
        Called with bytes done and bytes in all, a few times a second.
    """

    def __init__(self, source: Source, progress: Callable[[int, int], None] | None = None) -> None:
        self.source = source
        self.scanner = ExitScanner()
        self._progress = progress
        self._checked = 0
        self._bytes = 0
        #: Exit reasons as printed; the column ``reason`` holds indices of it.
        self.names: list[str] = []
        #: The trace is xenalyze's: the column ``tid`` holds domains.
        self.xen = False

    def lines(self) -> Lines:
        """Return what became of the lines so far."""
        counts = self.scanner.counts()
        return Lines(counts["read"], counts["used"], self.scanner.skipped())

    def batches(self) -> Iterator[NDArray[Any]]:
        """Read the trace to its end.

        Yields
        ------
        ndarray of exit_dtype, shape (n,)
            Exits in the order in which they ended; the array is used again for the next batch.

        Raises
        ------
        InputError
            The trace cannot be read, is of an AMD host, or has no VM exit in it.
        """
        self.source.refuse_binaries()
        found = 0
        for records, count in Ahead(self._scan, _QUEUE):
            found += count
            yield self._checked_batch(records[:count])
            self._tell()
        if not found:
            raise self._nothing()

    def _scan(self) -> Iterator[tuple[NDArray[Any], int]]:
        """Scan the trace; runs in a thread of its own, beside the statistics."""
        import numpy as np

        arrays = [np.zeros(_BATCH, exit_dtype()) for _ in range(_QUEUE + 2)]
        buffer = bytearray(_BUFFER_BYTES)
        view = memoryview(buffer)
        have = filled = turn = 0
        final = False
        while not final or have:
            if not final:
                got = self.source.readinto(view[have:])
                final = got == 0
                have += got
                self._bytes += got
            records = arrays[turn]
            done, count = self.scanner.scan(view, have, records[filled:], final=final)
            view[: have - done] = view[done:have]
            have -= done
            filled += count
            if filled > _BATCH - _ROOM:
                self._note()
                yield records, filled
                filled, turn = 0, (turn + 1) % len(arrays)
        while True:
            count = self.scanner.close(arrays[turn][filled:])
            if filled + count:
                self._note()
                yield arrays[turn], filled + count
            if not count:
                return
            filled, turn = 0, (turn + 1) % len(arrays)

    def _note(self) -> None:
        """Say what the statistics may know of the batch that goes to them."""
        self.names = [printed_name(name) for name in self.scanner.names]
        self.xen = "vmexit" in self.scanner.events()

    def _tell(self) -> None:
        if self._progress is not None and self.source.size_bytes:
            self._progress(self.source.done_bytes, self.source.size_bytes)

    def _checked_batch(self, records: NDArray[Any]) -> NDArray[Any]:
        """Refuse the exits of an AMD host, as soon as one is seen."""
        names = self.names
        for index in range(self._checked, len(names)):
            if is_amd(names[index]):
                first = records[records["reason"] == index]
                where = int(first["line"].min()) if len(first) else None
                if where is None:
                    continue  # the reason of a user-space exit
                raise InputError(
                    f"this trace is of an AMD host: {names[index]!r} is an exit of AMD-V",
                    file=self.source.name,
                    line=where,
                    hint="vtx models Intel VT-x",
                )
        self._checked = len(names)
        return records

    def _nothing(self) -> InputError:
        """Say why a trace without exits is none."""
        lines, events = self.lines(), self.scanner.events()
        name = self.source.name
        if not self._bytes:
            return InputError("the trace is empty", file=name)
        if events:
            seen = ", ".join(f"{count:,} {event}" for event, count in events.items())
            return InputError(
                f"the trace has no kvm_exit ({seen})",
                file=name,
                hint="record kvm:kvm_exit together with kvm:kvm_entry",
            )
        cut = lines.skipped.get("cut_or_unreadable", 0)
        if cut:
            return InputError(
                f"no event can be read: {counted(cut, 'line')} of KVM events, all cut", file=name
            )
        if lines.skipped.get("other_event"):
            return InputError(
                "the trace has no event of KVM's "
                f"({counted(lines.skipped['other_event'], 'other event')})",
                file=name,
                hint="record kvm:kvm_exit and kvm:kvm_entry",
            )
        return InputError(
            f"this is no trace of VM exits: no event in {counted(lines.read, 'line')}",
            file=name,
            hint="it wants text of ftrace, trace-cmd, perf script, perf kvm stat or xenalyze",
        )
