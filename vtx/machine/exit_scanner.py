"""VM-exit traces as text, scanned in C: bytes in, one record for each VM exit out.

The scanner knows the lines of ftrace, ``trace-cmd report``, ``perf script`` and ``xenalyze``; it
joins lines that a mail program broke, and pairs each exit with the entry that follows it in the
same thread. It knows no exit reason: a reason is the index of its name as printed.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from vtx._core import ffi, lib

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EVENT_NAMES", "SKIPPED", "ExitFlag", "ExitScanner", "check_records", "exit_dtype"]


class ExitFlag(IntEnum):
    """Bits of the column ``flags``; the values are masks."""

    __hash__ = int.__hash__

    TIME = lib.VTX_EXIT_TIME
    """``time_ns`` is known."""
    DURATION = lib.VTX_EXIT_DURATION
    """``duration_ns`` is known: an entry of the same vCPU followed, and not before the exit."""
    RIP = lib.VTX_EXIT_RIP
    INFO1 = lib.VTX_EXIT_INFO1
    """``info1`` is known: the exit qualification."""
    INFO2 = lib.VTX_EXIT_INFO2
    INTR_INFO = lib.VTX_EXIT_INTR_INFO
    ERROR_CODE = lib.VTX_EXIT_ERROR_CODE
    ENTERED = lib.VTX_EXIT_ENTERED
    """An entry followed."""
    BACKWARDS = lib.VTX_EXIT_BACKWARDS
    """An entry followed whose stamp lies before the exit's."""
    FAILED = lib.VTX_EXIT_FAILED
    """VM-entry failure: bit 31 of the exit reason."""
    L2 = lib.VTX_EXIT_L2
    """The exit was out of a nested guest."""
    REFLECTED = lib.VTX_EXIT_REFLECTED
    """And its L1 hypervisor was told."""
    WRITE = lib.VTX_EXIT_WRITE
    """The detail is a write."""
    FAULTED = lib.VTX_EXIT_FAULTED
    """The MSR access ended in #GP."""
    INJECTED = lib.VTX_EXIT_INJECTED
    """``vector`` was injected before the entry."""
    OLD_INFO = lib.VTX_EXIT_OLD_INFO
    """``info A B``: ``info2`` is interruption or IDT-vectoring information."""


#: Keys of the reasons why a line was not used, in the order of the C core.
SKIPPED = (
    "blank",
    "comment",
    "other_event",
    "no_event",
    "cut_or_unreadable",
    "too_long",
    "lost_events_note",
)
#: The events of the C core by number.
EVENT_NAMES = (
    "other",
    "kvm_exit",
    "kvm_entry",
    "kvm_page_fault",
    "kvm_msr",
    "kvm_pio",
    "kvm_mmio",
    "kvm_inj_virq",
    "kvm_inj_exception",
    "kvm_nested_vmexit",
    "kvm_nested_vmexit_inject",
    "kvm_userspace_exit",
    "kvm_cpuid",
    "vmexit",
    "vmentry",
)
_CODES = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


@cache
def exit_dtype() -> np.dtype[Any]:
    """Return the NumPy type of one exit: the C structure, member for member."""
    import numpy as np

    members = ffi.typeof("vtx_exit").fields
    codes = [_CODES[ffi.sizeof(member.type)] for _, member in members]
    names = [name for name, _ in members]
    codes[names.index("vcpu")] = "i4"
    return np.dtype(
        {
            "names": names,
            "formats": codes,
            "offsets": [member.offset for _, member in members],
            "itemsize": ffi.sizeof("vtx_exit"),
        }
    )


class ExitScanner:
    """A scanner over one trace.

    Notes
    -----
    Its memory is bounded by the number of threads in the trace, not by its length.
    """

    def __init__(self) -> None:
        handle = lib.vtx_exits_new()
        if handle == ffi.NULL:
            raise MemoryError("no memory for a scanner of traces")
        self._handle: Any = ffi.gc(handle, lib.vtx_exits_free)
        self._names: list[str] = []

    def scan(
        self, data: bytearray | memoryview, length: int, records: NDArray[Any], *, final: bool
    ) -> tuple[int, int]:
        """Scan the first `length` bytes of `data`.

        Parameters
        ----------
        data : bytearray or memoryview
            Text; no-break spaces in it become blanks.
        length : int
            Bytes that are text, at most ``len(data)``.
        records : ndarray of `exit_dtype`, C-contiguous
            Where exits that are over are written.
        final : bool
            Nothing will come behind these bytes.

        Returns
        -------
        consumed, count : int
            Bytes done with, the rest is to be given again with more behind it; and records
            written.
        """
        if not 0 <= length <= len(data):
            raise ValueError(f"{length} bytes of a buffer of {len(data)}")
        check_records(records)
        count = ffi.new("uint64_t *")
        consumed: int = lib.vtx_exits_scan(
            self._handle,
            ffi.from_buffer("char[]", data, require_writable=True),
            length,
            int(final),
            ffi.from_buffer("vtx_exit[]", records, require_writable=True),
            len(records),
            count,
        )
        if consumed > length:
            raise MemoryError("no memory for the threads of the trace")
        return consumed, int(count[0])

    def close(self, records: NDArray[Any]) -> int:
        """Write exits that no entry followed; to be called until it returns 0."""
        check_records(records)
        target = ffi.from_buffer("vtx_exit[]", records, require_writable=True)
        count: int = lib.vtx_exits_close(self._handle, target, len(records))
        return count

    @property
    def names(self) -> list[str]:
        """Exit reasons and user-space exits as printed, by index; grows while scanning."""
        for index in range(len(self._names), lib.vtx_exits_name_count(self._handle)):
            name: bytes = ffi.string(lib.vtx_exits_name(self._handle, index))
            self._names.append(name.decode("ascii"))
        return self._names

    def counts(self) -> dict[str, int]:
        """Return the counters that are one number: read, used, joined, lost_events and so on."""
        counted = lib.vtx_exits_counted(self._handle)
        names = (name for name, _ in ffi.typeof("vtx_exit_counts").fields)
        return {n: int(getattr(counted, n)) for n in names if n not in ("skipped", "events")}

    def skipped(self) -> dict[str, int]:
        """Return how many lines were not used, by reason; reasons that did not occur are absent."""
        counted = lib.vtx_exits_counted(self._handle).skipped
        return {why: int(counted[i]) for i, why in enumerate(SKIPPED) if counted[i]}

    def events(self) -> dict[str, int]:
        """Return how many events of each kind were used."""
        counted = lib.vtx_exits_counted(self._handle).events
        return {name: int(counted[i]) for i, name in enumerate(EVENT_NAMES) if counted[i]}


def check_records(records: NDArray[Any]) -> None:
    """Raise ValueError unless C can take these records."""
    if records.dtype != exit_dtype() or not records.flags.c_contiguous or not len(records):
        raise ValueError("records must be a contiguous array of exit_dtype(), not empty")
