"""Tallies of VM exits, kept in C: by reason, by what they were about, by vCPU, by slice of time."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx._core import ffi, lib
from vtx.machine.exit_scanner import check_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "OTHERS",
    "ExitTally",
    "Percentiles",
    "Subject",
    "TallyEntry",
    "TallyTable",
    "subject_of",
]


class Subject(IntEnum):
    """What the exits of a reason are about."""

    NONE = lib.VTX_SUBJECT_NONE
    PORT = lib.VTX_SUBJECT_PORT
    MSR = lib.VTX_SUBJECT_MSR
    CR = lib.VTX_SUBJECT_CR
    DR = lib.VTX_SUBJECT_DR
    REGION = lib.VTX_SUBJECT_REGION
    """2 MBytes of guest-physical addresses."""
    VECTOR = lib.VTX_SUBJECT_VECTOR
    EXCEPTION = lib.VTX_SUBJECT_EXCEPTION
    LEAF = lib.VTX_SUBJECT_LEAF
    APIC = lib.VTX_SUBJECT_APIC
    EOI = lib.VTX_SUBJECT_EOI


class TallyTable(IntEnum):
    """The tables, and the keys and parts of their tallies."""

    ROWS = lib.VTX_TALLY_ROWS
    """Key: the row."""
    DETAILS = lib.VTX_TALLY_DETAILS
    """Key: the row; part: the subject, and in bit 0 whether a nested guest ran."""
    VCPUS = lib.VTX_TALLY_VCPUS
    """Key: thread or domain in bits 63:32, vCPU in bits 31:0 where needed; part: the row."""
    SLICES = lib.VTX_TALLY_SLICES
    """Key: number of the slice; part: the row."""


#: Stands for all subjects beyond the limit.
OTHERS: int = lib.VTX_SUBJECT_OTHERS
_EXACT = 64


class TallyEntry(NamedTuple):
    """One tally: the members of ``vtx_tally_entry``, durations in nanoseconds."""

    key: int
    part: int
    samples: int
    timed: int
    """Exits whose duration is known; the rest is of these."""
    total: int
    least: int
    most: int
    mean: float
    squares: float
    vcpu: int
    """The last that an exit named, or -1."""


class Percentiles(NamedTuple):
    """Nearest-rank percentiles.

    Parameters
    ----------
    values : dict of int to int
        Nanoseconds by percent; empty if no duration is known.
    within : float
        How far each may be from the duration of that rank, relative; 0 if they are exact.
    """

    values: dict[int, int]
    within: float


class ExitTally:
    """Tallies over the exits that it is given.

    Parameters
    ----------
    slice_ns : int
        Length of a slice of time; 0 for none.
    per_vcpu : bool
        Whether to keep vCPUs apart.

    Notes
    -----
    Percentiles are exact while a reason has no more than 65,536 different durations, and a part
    4,096; beyond that durations are kept by their leading bits, so memory is bounded.
    """

    def __init__(self, slice_ns: int = 0, *, per_vcpu: bool = False) -> None:
        handle = lib.vtx_tally_new(slice_ns, int(per_vcpu))
        if handle == ffi.NULL:
            raise MemoryError("no memory for tallies of exits")
        self._handle: Any = ffi.gc(handle, lib.vtx_tally_free)

    def add(
        self,
        records: NDArray[Any],
        rows: NDArray[Any],
        subjects: NDArray[Any],
        *,
        xen: bool = False,
    ) -> None:
        """Take in exits.

        Parameters
        ----------
        records : ndarray of exit_dtype, shape (n,)
            The exits.
        rows : ndarray of uint16
            The row of each reason.
        subjects : ndarray of uint8
            The `Subject` of each reason.
        xen : bool
            The column ``tid`` holds domains.
        """
        check_records(records)
        highest = int(records["reason"].max())
        if len(rows) <= highest or len(subjects) <= highest:
            raise ValueError(f"no row or subject for reason {highest}")
        done = lib.vtx_tally_add(
            self._handle,
            ffi.from_buffer("vtx_exit[]", records),
            len(records),
            ffi.from_buffer("uint16_t[]", rows),
            ffi.from_buffer("uint8_t[]", subjects),
            int(xen),
        )
        if not done:
            raise MemoryError("no memory for tallies of exits")

    @property
    def summary(self) -> Any:
        """``samples``, ``flags`` of all exits together, ``first_ns`` and ``last_ns``."""
        return lib.vtx_tally_summarised(self._handle)

    def entries(self, table: TallyTable) -> list[TallyEntry]:
        """Return the tallies of a table; an index of this list names one to `percentiles`."""
        entry = ffi.new("vtx_tally_entry *")
        found = []
        for index in range(lib.vtx_tally_count(self._handle, table)):
            lib.vtx_tally_at(self._handle, table, index, entry)
            found.append(TallyEntry(*(getattr(entry, name) for name in TallyEntry._fields)))
        return found

    def percentiles(
        self, table: TallyTable, indices: Sequence[int], percents: Sequence[int]
    ) -> Percentiles:
        """Return percentiles of some tallies together."""
        out, bits = ffi.new("uint64_t[]", len(percents)), ffi.new("uint32_t *")
        state = lib.vtx_tally_percentiles(
            self._handle,
            table,
            ffi.new("uint64_t[]", list(indices)),
            len(indices),
            ffi.new("uint32_t[]", list(percents)),
            len(percents),
            out,
            bits,
        )
        if not state:
            raise MemoryError("no memory for percentiles")
        values = dict(zip(percents, map(int, out), strict=True)) if state == 2 else {}
        return Percentiles(values, 0.0 if bits[0] == _EXACT else 2.0 ** -bits[0])

    def below(self, table: TallyTable, index: int, limit_ns: int) -> tuple[int, int]:
        """Return how many exits of a tally took less than `limit_ns`, and how long together."""
        count, total = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        if not lib.vtx_tally_below(self._handle, table, index, limit_ns, count, total):
            raise IndexError(f"table {table.name} has no tally {index}")
        return int(count[0]), int(total[0])


def subject_of(record: Any, subject: Subject) -> int:
    """Return what one exit was about: kind in bits 51:48, value in bits 47:1; 0 if not known."""
    one = ffi.from_buffer("vtx_exit[]", record.tobytes())
    key: int = lib.vtx_exit_subject_of(one, subject)
    return key
