"""Streams of references: opened by what their file is, and read in chunks."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError, UnknownName, UsageError
from vtx.streams.column import HEADER_BYTES, Header, is_column, read_header
from vtx.streams.formats import FORMATS, Format, detect
from vtx.streams.reader import Options, read_plain, scan
from vtx.streams.record import RECORD_BYTES, check_records
from vtx.streams.source import Source, open_source
from vtx.streams.summary import Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAXIMUM_UNPACKED_BYTES", "Stream", "open_stream"]

#: :meth:`Stream.array` holds at most so much of a stream that cannot be mapped.
MAXIMUM_UNPACKED_BYTES = 2 << 30
_NPY = b"\x93NUMPY"
_CHUNK_RECORDS = 1 << 20


class Stream:
    """References in order; made by :func:`open_stream`.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    format : Format
        What it is in.
    count : int or None
        Number of records; None if only reading it to the end tells.
    size_bytes : int
        Of the file as it is; 0 if nobody knows.
    summary : Summary
        Of the last reading, as far as it has come.
    """

    def __init__(self, name: str, form: Format, size_bytes: int, options: Options) -> None:
        self.name = name
        self.format = form
        self.count: int | None = None
        self.size_bytes = size_bytes
        self.summary = Summary(form.unit)
        self._options = options
        self._mapped: NDArray[np.uint64] | None = None
        self._header: Header | None = None
        self._once: Source | None = None
        self._source: Source | None = None
        self._open: ExitStack | None = None  # what keeps a pipe open

    @property
    def is_mapped(self) -> bool:
        """Whether the records are memory-mapped, and none is copied."""
        return self._mapped is not None

    @property
    def done_bytes(self) -> int:
        """How many bytes of the file have been read."""
        if self._mapped is not None:
            return self.summary.read * RECORD_BYTES
        return 0 if self._source is None else self._source.done_bytes

    def chunks(self, records: int = _CHUNK_RECORDS) -> Iterator[NDArray[np.uint64]]:
        """Yield the records in order, `records` at a time.

        Parameters
        ----------
        records : int
            At most so many at once; at least 64.

        Yields
        ------
        ndarray of uint64, shape (n,)
            Read-only and C-contiguous, 0 < n <= `records`; a view where the file is mapped.

        Raises
        ------
        InputError
            The file is damaged, holds no reference, or is a pipe that has been read.
        UsageError
            `records` is too small.

        Notes
        -----
        What is held in memory does not grow with the stream.
        """
        if records < 64:
            raise UsageError(f"chunks of a stream have at least 64 records, not {records}")
        self.summary = Summary(self.format.unit)
        if self._mapped is not None:
            return self._mapped_chunks(self._mapped, records)
        return self._read_chunks(records)

    def __iter__(self) -> Iterator[NDArray[np.uint64]]:
        return self.chunks()

    def array(self) -> NDArray[np.uint64]:
        """Return all records at once: memory-mapped, or else held in memory up to 2 GiB.

        Returns
        -------
        ndarray of uint64, shape (n,)
            n >= 1; read-only.

        Raises
        ------
        InputError
            As :meth:`chunks`; or the stream is too large.
        """
        import numpy as np

        if self._mapped is not None:
            for _ in self.chunks():
                pass  # every record is checked
            return self._mapped
        parts, held = [], 0
        for chunk in self.chunks():
            parts.append(chunk)
            held += chunk.nbytes
            if held > MAXIMUM_UNPACKED_BYTES:
                raise InputError(
                    f"the stream {self.name} unpacks to more than "
                    f"{MAXIMUM_UNPACKED_BYTES >> 30} GiB",
                    hint="vtx import makes a column file of it, which is memory-mapped",
                )
        array = np.concatenate(parts)
        array.flags.writeable = False
        return array

    def _mapped_chunks(
        self, mapped: NDArray[np.uint64], records: int
    ) -> Iterator[NDArray[np.uint64]]:
        summary = self.summary
        if self._header is not None:
            summary.kinds = list(self._header.kinds)
        for first in range(0, len(mapped), records):
            chunk = mapped[first : first + records]
            check_records(chunk, first, self.name, None)
            summary.read = summary.used = first + len(chunk)
            yield chunk

    def _read_chunks(self, records: int) -> Iterator[NDArray[np.uint64]]:
        with ExitStack() as stack:
            if self._once is not None:
                source, self._once = self._once, None
            elif self._source is not None and not os.path.isfile(self.name):
                raise InputError(f"{self.name} can be read only once")
            else:
                source = stack.enter_context(open_source(self.name))
            self._source = source
            if self.format.number >= 0:
                yield from scan(source, self.format, records, self._options, self.summary)
                return
            skip = HEADER_BYTES if self._header is not None else 0
            count = self._header.count if self._header is not None else None
            yield from read_plain(source, skip, count, records, self.summary)

    def __repr__(self) -> str:
        count = "?" if self.count is None else f"{self.count:,}"
        return f"<Stream {self.name}: {count} records, {self.format.name}>"


def open_stream(
    path: str | Path,
    *,
    format: str | None = None,
    pid: int | None = None,
    tid: int | None = None,
    skip_malformed: bool = False,
) -> Stream:
    """Open a stream of references.

    Parameters
    ----------
    path : str or Path
        A column file of ``vtx import``, an array file (``.npy``), raw records (``.u64``), or a
        trace of one of the other :data:`~vtx.streams.FORMATS`; packed with xz or gzip or not, by
        its first bytes. ``"-"`` is standard input.
    format : str, optional
        What the file is in; told by its first bytes and its name if not given.
    pid, tid : int, optional
        Only the references of this process or thread (drmemtrace).
    skip_malformed : bool
        Count damaged lines and entries instead of stopping at the first.

    Raises
    ------
    InputError
        The file is missing, truncated, empty, damaged, or of another kind.
    UnknownName
        There is no such format.
    UsageError
        A process or thread is asked for that the format does not name.
    """
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise UnknownName("format of streams", format, FORMATS)
    options = Options(pid, tid, skip_malformed)
    stack = ExitStack()
    source = stack.enter_context(open_source(name))
    with ExitStack() as closing:
        closing.push(stack)
        head = source.peek()
        stream = _open(source, name, head, format, options)
        regular = name != "-" and stat.S_ISREG(os.stat(name).st_mode)
        if not regular:
            stream._once = stream._source = source
            stream._open = closing.pop_all()
    return stream


def _open(source: Source, name: str, head: bytes, asked: str | None, options: Options) -> Stream:
    form = _format_of(source, name, head, asked)
    if form.name != "drmemtrace" and (options.pid, options.tid) != (None, None):
        raise UsageError(f"{form.name} traces name no process and no thread")
    stream = Stream(source.name if name == "-" else name, form, source.size_bytes, options)
    if form.name != "u64":
        return stream
    if head.startswith(_NPY) and not source.is_packed:
        stream._mapped = _map_npy(name)
        stream.count = len(stream._mapped)
        return stream
    if is_column(head):
        stream._header = read_header(head, stream.name)
        stream.count = stream._header.count
        _check_count(stream._header, stream.name)
    if source.is_packed or not source.size_bytes:
        if not source.is_packed and name != "-" and stat.S_ISREG(os.stat(name).st_mode):
            raise InputError(f"the stream {name} is empty")
        return stream
    stream._mapped = _map_records(stream, source.size_bytes)
    stream.count = len(stream._mapped)
    return stream


def _format_of(source: Source, name: str, head: bytes, asked: str | None) -> Format:
    if is_column(head) or head.startswith(_NPY):
        found = FORMATS["u64"]
    elif asked is None:
        found = detect(source.name, head)
    else:
        return FORMATS[asked]
    if asked not in (None, found.name):
        raise InputError(f"{name} holds records of vtx, not a trace of {asked}")
    return found


def _check_count(header: Header, name: str) -> None:
    if not header.count:
        raise InputError(f"the stream {name} is empty")


def _map_records(stream: Stream, size_bytes: int) -> NDArray[np.uint64]:
    import numpy as np

    offset = HEADER_BYTES if stream._header is not None else 0
    held = size_bytes - offset
    if held % RECORD_BYTES:
        raise InputError(
            f"the stream {stream.name} is truncated: its {held} bytes are no multiple of 8",
            hint="a record has 8 bytes",
        )
    if stream._header is not None and held // RECORD_BYTES != stream._header.count:
        raise InputError(
            f"the stream {stream.name} is damaged: it has {held // RECORD_BYTES} records, "
            f"and its header says {stream._header.count}"
        )
    with open(stream.name, "rb") as file:
        mapping = mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        mapping.madvise(mmap.MADV_SEQUENTIAL)
    array = np.frombuffer(mapping, dtype="<u8", offset=offset)
    # On a big-endian host the run loop cannot use the file's own bytes.
    return array.astype(np.uint64, copy=False)


def _map_npy(name: str) -> NDArray[np.uint64]:
    import numpy as np

    try:
        array: Any = np.load(name, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"the stream {name} is not a readable array: {error}") from None
    if array.ndim != 1 or array.dtype != np.dtype("<u8"):
        raise InputError(
            f"the stream {name} is a {array.ndim}-dimensional {array.dtype} array",
            hint="save a one-dimensional little-endian uint64 array",
        )
    if not len(array):
        raise InputError(f"the stream {name} is empty")
    plain = np.asarray(array).astype(np.uint64, copy=False)
    return np.ascontiguousarray(plain)
