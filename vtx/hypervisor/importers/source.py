"""Bytes from a file, a pipe or standard input, unpacked if they are packed."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from vtx.errors import InputError

__all__ = ["Source", "open_source"]

_HEAD_BYTES = 256 << 10
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
#: Files that are no text, by their first bytes, and what makes text of them.
_BINARIES = {
    b"\x17\x08\x44tracing": ("a trace.dat of trace-cmd", "make text of it: trace-cmd report"),
    b"PERFILE2": ("a perf.data", "make text of it: perf script, or perf kvm stat report"),
    b"PERFFILE": ("an old perf.data", "make text of it: perf script"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it: zstd -dc FILE | vtx exits -"),
    b"BZh": ("packed with bzip2", "unpack it: bzip2 -dc FILE | vtx exits -"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
}


class Source:
    """Bytes to be read once, in order.

    Parameters
    ----------
    name : str
        For messages.
    packed : BinaryIO
        The file as it is.
    size_bytes : int
        Of the file as it is; 0 if nobody knows.
    """

    def __init__(self, name: str, packed: BinaryIO, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self._packed = packed
        self._head = b""
        self._head_at = 0
        start = self._fill(packed, 6)
        if start.startswith(_GZIP):
            self._plain: Any = gzip.GzipFile(fileobj=_Rejoined(start, packed), mode="rb")
        elif start.startswith(_XZ):
            joined = io.BufferedReader(_Rejoined(start, packed))
            self._plain = lzma.LZMAFile(joined, mode="rb")  # noqa: SIM115 - lives with the source
        else:
            self._plain = packed
            self._head = start

    @property
    def done_bytes(self) -> int:
        """How many bytes of the file have been read."""
        try:
            return self._packed.tell()
        except (OSError, ValueError):
            return 0  # a pipe does not know

    @staticmethod
    def _fill(file: Any, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size and (part := file.read(size - len(parts))):
            parts += part
        return bytes(parts)

    def peek(self) -> bytes:
        """Return the first bytes, up to 256 KiB, and keep them to be read again."""
        with self._blame():
            self._head += self._fill(self._plain, _HEAD_BYTES - len(self._head))
        return self._head

    def readinto(self, target: memoryview) -> int:
        """Read some bytes, and return how many; 0 at the end."""
        if self._head_at < len(self._head):
            part = self._head[self._head_at : self._head_at + len(target)]
            target[: len(part)] = part
            self._head_at += len(part)
            return len(part)
        with self._blame():
            return int(self._plain.readinto(target) or 0)

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"the packed file is damaged: {error}", file=self.name) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read the trace: {reason}", file=self.name) from None

    def refuse_binaries(self) -> None:
        """Raise InputError if the first bytes are those of a file that is no text."""
        for magic, (what, hint) in _BINARIES.items():
            if self.peek().startswith(magic):
                raise InputError(f"this is {what}, not text", file=self.name, hint=hint)


class _Rejoined(io.RawIOBase):
    """A file whose first bytes have been read already."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        part = self._start[: len(target)] or self._rest.read(len(target))
        self._start = self._start[len(part) :] if self._start else b""
        target[: len(part)] = part
        return len(part)


@contextmanager
def open_source(name: str) -> Iterator[Source]:
    """Open a trace by file name; ``-`` is standard input.

    Raises
    ------
    InputError
        It cannot be read.
    """
    if name == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed")
        # Unbuffered: a thread that waits in a buffer's lock could not be left behind.
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as file:
            yield Source("<stdin>", file, 0)
        return
    try:
        file = open(name, "rb", buffering=0)  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the trace: {reason}", file=name) from None
    with file:
        status = os.fstat(file.fileno())
        try:
            source = Source(name, file, status.st_size if stat.S_ISREG(status.st_mode) else 0)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read the trace: {reason}", file=name) from None
        yield source
