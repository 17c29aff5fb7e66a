"""Bytes of a recorded trace from a file, a pipe or standard input, unpacked if they are packed."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from vtx.errors import InputError

__all__ = ["Source", "open_source"]

_HEAD_BYTES = 64 << 10
_GZIP, _XZ, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"PK\x03\x04"
#: Files that are packed otherwise or are no list of references, by their first bytes.
_REFUSED = {
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it: zstd -dc FILE | vtx import -"),
    b"BZh": ("packed with bzip2", "unpack it: bzip2 -dc FILE | vtx import -"),
    b"\x04\x22\x4d\x18": ("packed with lz4", "unpack it: lz4 -dc FILE | vtx import -"),
    b"\xff\x06\x00\x00sNaPpY": ("packed with snappy", "unpack it first"),
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

    Attributes
    ----------
    is_packed : bool
        Whether the bytes that are read differ from those of the file.
    """

    def __init__(self, name: str, packed: BinaryIO, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.is_packed = True
        self._packed = packed
        self._head = b""
        self._head_at = 0
        with self._blame():
            start = _fill(packed, 8)
            if start.startswith(_GZIP):
                self._plain: Any = gzip.GzipFile(fileobj=_Rejoined(start, packed), mode="rb")
            elif start.startswith(_XZ):
                joined = io.BufferedReader(_Rejoined(start, packed))
                self._plain = lzma.LZMAFile(joined)  # noqa: SIM115 - lives with the source
            elif start.startswith(_ZIP):
                self._plain = io.BufferedReader(_Members(packed))
            else:
                self.is_packed = False
                self._plain = packed
                self._head = start
        self._refuse(start)

    def _refuse(self, start: bytes) -> None:
        for magic, (what, hint) in _REFUSED.items():
            if start.startswith(magic[:8]):
                raise InputError(f"this file is {what}", file=self.name, hint=hint)

    @property
    def done_bytes(self) -> int:
        """How many bytes of the file have been read."""
        try:
            return self._packed.tell()
        except (OSError, ValueError):
            return 0  # a pipe does not know

    def peek(self) -> bytes:
        """Return the first bytes, up to 64 KiB, and keep them to be read again."""
        with self._blame():
            self._head += _fill(self._plain, _HEAD_BYTES - len(self._head))
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
        except (lzma.LZMAError, zlib.error, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"the stream {self.name} is damaged: {error}") from None
        except (OSError, RuntimeError, NotImplementedError) as error:
            # gzip's own error is an OSError without a number; zipfile's for encrypted members and
            # for unknown methods are the other two.
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"cannot read the stream {self.name}: {reason}") from None


def _fill(file: Any, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (part := file.read(size - len(parts))):
        parts += part
    return bytes(parts)


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


class _Members(io.RawIOBase):
    """The members of a zip archive one behind the other: the chunks of a drmemtrace."""

    def __init__(self, file: BinaryIO) -> None:
        if not file.seekable():
            raise OSError("a zip archive cannot be read from a pipe")
        self._archive = zipfile.ZipFile(file)
        self._waiting = iter(self._archive.infolist())
        self._member: Any = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not (part := self._member.read(len(target))):
            following = next(self._waiting, None)
            if following is None:
                return 0
            self._member = self._archive.open(following)
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
    with ExitStack() as stack:
        if name == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed")
            file: Any = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
            name, size_bytes = "<stdin>", 0
        else:
            try:
                file = open(name, "rb", buffering=0)  # noqa: SIM115 - closed by the stack
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                if isinstance(error, IsADirectoryError):
                    reason = "it is a directory"
                raise InputError(f"cannot read the stream {name}: {reason}") from None
            status = os.fstat(file.fileno())
            size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
        stack.enter_context(file)
        yield Source(name, file, size_bytes)
