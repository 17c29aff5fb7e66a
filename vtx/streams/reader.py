"""Records out of bytes: columns that are read from a pipe, and the formats of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx._core import ffi, lib
from vtx.errors import InputError
from vtx.streams.formats import Format, entry_bytes_of
from vtx.streams.record import RECORD_BYTES, check_records
from vtx.streams.summary import SKIPPED, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vtx.streams.source import Source

__all__ = ["Options", "read_plain", "scan"]

_BUFFER_BYTES = 1 << 20
_LEAST_RECORDS = 64
_KEYS = tuple(SKIPPED)
_UNITS = {"lackey": "line", "drmemtrace": "entry"}
_DEFAULT_ENTRY_BYTES = 12


class Options(NamedTuple):
    """What of a trace is wanted.

    Attributes
    ----------
    pid, tid : int or None
        Only the references of this process, of this thread (drmemtrace).
    skip_malformed : bool
        Count lines and entries that are damaged instead of stopping at the first.
    """

    pid: int | None = None
    tid: int | None = None
    skip_malformed: bool = False


def read_plain(
    source: Source, skip: int, count: int | None, records: int, summary: Summary
) -> Iterator[NDArray[np.uint64]]:
    """Yield the records of a source that holds records, `records` at a time.

    Parameters
    ----------
    source : Source
        Its bytes.
    skip : int
        Bytes before the first record.
    count : int or None
        Number of records that there must be; None if nobody has said.
    records : int
        At most so many at once.
    summary : Summary
        To be filled.
    """
    import numpy as np

    _discard(source, skip)
    first = 0
    while True:
        chunk = np.empty(records, dtype="<u8")
        have = _fill(source, chunk.data.cast("B"))
        whole, odd = divmod(have, RECORD_BYTES)
        if odd:
            total = first * RECORD_BYTES + have
            raise InputError(
                f"the stream {source.name} is truncated: its {total} bytes are no multiple of 8",
                hint="a record has 8 bytes",
            )
        if not whole:
            break
        native = chunk[:whole].astype(np.uint64, copy=False)
        check_records(native, first, source.name, summary.kinds)
        first += whole
        summary.read = summary.used = first
        native.flags.writeable = False
        yield native
    if not first and not count:
        raise InputError(f"the stream {source.name} is empty")
    if count is not None and first != count:
        raise InputError(
            f"the stream {source.name} is truncated: it has {first} records of {count}"
        )


def _discard(source: Source, count: int) -> None:
    rest = memoryview(bytearray(count))
    while rest and (got := source.readinto(rest)):
        rest = rest[got:]


def _fill(source: Source, target: memoryview) -> int:
    have = 0
    while have < len(target) and (got := source.readinto(target[have:])):
        have += got
    return have


def scan(
    source: Source, form: Format, records: int, options: Options, summary: Summary
) -> Iterator[NDArray[np.uint64]]:
    """Yield the references of a trace of another tool, at most `records` at a time.

    Parameters
    ----------
    source : Source
        Its bytes.
    form : Format
        What it is in.
    records : int
        At most so many at once, but at least 64.
    options : Options
        What is wanted of it.
    summary : Summary
        To be filled.

    Raises
    ------
    InputError
        A line or an entry is malformed; nothing in the file is a reference.
    """
    import numpy as np

    scanner = _Scanner(source, form, options)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    room = max(records, _LEAST_RECORDS)
    out = np.empty(room, dtype=np.uint64)
    have, kept, final = 0, 0, False
    while not final or have:
        got = 0 if final else source.readinto(buffer[have:])
        final = final or not got
        have += got
        done, count = scanner.scan(buffer, have, out[kept:], final)
        scanner.tell(summary)
        have -= done
        buffer[:have] = buffer[done : done + have]
        kept += count
        if kept and (room - kept < _LEAST_RECORDS // 2 or (final and not have)):
            chunk = out[:kept]
            chunk.flags.writeable = False
            yield chunk
            out, kept = np.empty(room, dtype=np.uint64), 0
    if not summary.references:
        raise InputError(
            f"the stream {source.name} has no reference of {form.title}", hint=str(summary)
        )


class _Scanner:
    """A scanner of the C core over one source."""

    def __init__(self, source: Source, form: Format, options: Options) -> None:
        entry_bytes = 0
        if form.name == "drmemtrace":
            entry_bytes = entry_bytes_of(source.peek()) or _DEFAULT_ENTRY_BYTES
        handle = lib.vtx_scanner_new(form.number, entry_bytes)
        if handle == ffi.NULL:
            raise MemoryError("no memory for a reader of streams")
        self._handle: Any = ffi.gc(handle, lib.vtx_scanner_free)
        self._counts: Any = lib.vtx_scanner_counted(handle)
        self._name = source.name
        self._unit = _UNITS.get(form.name, "")
        self._strict = not options.skip_malformed
        if options.pid is not None:
            lib.vtx_scanner_only_pid(handle, options.pid)
        if options.tid is not None:
            lib.vtx_scanner_only_tid(handle, options.tid)

    def scan(
        self, buffer: memoryview, length: int, out: NDArray[np.uint64], final: bool
    ) -> tuple[int, int]:
        """Scan; return how many bytes are done with and how many records there are."""
        count = ffi.new("uint64_t *")
        done = lib.vtx_scanner_scan(
            self._handle,
            ffi.from_buffer("char[]", buffer),
            length,
            final,
            self._strict,
            ffi.from_buffer("uint64_t[]", out, require_writable=True),
            len(out),
            count,
        )
        if self._strict and self._counts.malformed:
            self._refuse(buffer, done)
        return done, count[0]

    def _refuse(self, buffer: memoryview, done: int) -> None:
        number = self._counts.malformed
        hint = "--skip-malformed counts such ones instead"
        if self._unit == "line":
            lines = bytes(buffer[:done]).splitlines()
            text = lines[-1][:60].decode("ascii", "backslashreplace") if lines else ""
            raise InputError(
                f"this line begins as a reference and is none: {text!r}",
                file=self._name,
                line=number,
                hint=hint,
            )
        raise InputError(
            f"entry {number} of the stream {self._name} is none that DynamoRIO writes", hint=hint
        )

    def tell(self, summary: Summary) -> None:
        """Bring a summary up to date."""
        counts = self._counts
        summary.read, summary.used = counts.read, counts.used
        summary.kinds = list(counts.kinds)
        summary.skipped = {
            key: number for key, number in zip(_KEYS, counts.skipped, strict=True) if number
        }
        summary.dropped, summary.split = counts.dropped, counts.split
        summary.threads = counts.threads
        summary.first_malformed = counts.malformed
