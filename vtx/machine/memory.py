"""The machine's physical memory: sparse, bounds-checked, as large as a server's.

A 64-GiB memory costs nothing until it is written: it is one private mapping that the operating
system backs on demand, with huge pages where it has them. Everything that walks page tables
(:mod:`vtx.machine.mmu`) reads and writes this same mapping in C.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

from vtx._core import ffi, lib
from vtx.errors import AddressError, InputError, NotSupported

__all__ = ["Memory"]

_MAXIMUM_BYTES = 1 << 46


class Memory:
    """Physical memory of `size_bytes` bytes; reads 0 wherever nothing was written.

    Parameters
    ----------
    size_bytes : int
        Bytes of memory, a multiple of 4096, up to 2**46. The first address beyond is `size_bytes`.
    huge_pages : bool
        Ask the system for huge pages: walks over large tables are faster, and each region of
        2 MiB that is touched costs 2 MiB. Turn it off for tables scattered over terabytes.

    Raises
    ------
    InputError
        The size is not a multiple of 4096 or is out of range.
    NotSupported
        The system refuses a mapping of that size.

    Notes
    -----
    Numbers are little-endian, as the SDM lays them out. The object is a context manager; its memory
    is given back on `close` or when the last reference goes.
    """

    __slots__ = ("__weakref__", "_buffer", "_end", "_handle", "size_bytes")

    def __init__(self, size_bytes: int = 64 << 30, *, huge_pages: bool = True) -> None:
        if size_bytes <= 0 or size_bytes % 4096 or size_bytes > _MAXIMUM_BYTES:
            raise InputError(
                f"a memory of {size_bytes} bytes is impossible",
                hint="its size must be a multiple of 4096, from 4096 to 2**46",
            )
        handle = lib.vtx_memory_new(size_bytes, int(huge_pages))
        if handle == ffi.NULL:
            raise NotSupported(
                f"the system refuses a sparse mapping of {size_bytes} bytes: "
                f"{os.strerror(ffi.errno)}"
            )
        self.size_bytes = size_bytes
        owner: Any = ffi.gc(handle, lib.vtx_memory_free)
        # The mapping must outlive every view of it, so what the buffer keeps alive keeps the
        # handle alive: unmapping happens when the last of them goes.
        base = ffi.gc(lib.vtx_memory_base(handle), lambda _pointer, _owner=owner: None)
        self._handle: Any = owner
        self._buffer: Any = ffi.buffer(base, size_bytes)
        #: Where accesses must end; below all addresses once the memory is closed.
        self._end = size_bytes

    @property
    def handle(self) -> Any:
        """The C handle, for :class:`vtx.machine.mmu.Mmu`; never NULL.

        Raises
        ------
        NotSupported
            The memory has been closed.
        """
        if self._handle is None:
            raise NotSupported("this memory has been closed")
        return self._handle

    def close(self) -> None:
        """Let go of the memory; every later access through this object raises NotSupported.

        The system gets it back when no view of it and no :class:`~vtx.machine.mmu.Mmu` over it is
        left either.
        """
        self._buffer = None
        self._end = -1
        self._handle = None
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Memory of {self.size_bytes:#x} bytes>"

    def _check(self, address: int, length: int) -> None:
        if self._handle is None:
            raise NotSupported("this memory has been closed")
        if address < 0 or length < 0:
            raise InputError(f"physical address {address} or length {length} is negative")
        if address + length > self.size_bytes:
            raise AddressError(max(address, self.size_bytes), self.size_bytes)

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes from physical address `address`.

        Raises
        ------
        AddressError
            The range reaches beyond the memory.
        """
        end = address + length
        if not 0 <= address <= end <= self._end:
            self._check(address, length)
        content: bytes = self._buffer[address:end]
        return content

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        """Write `content` at physical address `address`; all of it or, on an error, nothing.

        Raises
        ------
        AddressError
            The range reaches beyond the memory.
        """
        content = bytes(content)
        end = address + len(content)
        if not 0 <= address <= end <= self._end:
            self._check(address, len(content))
        self._buffer[address:end] = content

    def read_u8(self, address: int) -> int:
        """Return the byte at `address`."""
        return self.read(address, 1)[0]

    def read_u16(self, address: int) -> int:
        """Return the 16-bit number at `address`."""
        return int.from_bytes(self.read(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """Return the 32-bit number at `address`."""
        return int.from_bytes(self.read(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """Return the 64-bit number at `address`."""
        end = address + 8
        if not 0 <= address <= end <= self._end:
            self._check(address, 8)
        return int.from_bytes(self._buffer[address:end], "little")

    def write_u8(self, address: int, value: int) -> None:
        """Write the low 8 bits of `value` at `address`."""
        self.write(address, (value & 0xFF).to_bytes(1, "little"))

    def write_u16(self, address: int, value: int) -> None:
        """Write the low 16 bits of `value` at `address`."""
        self.write(address, (value & 0xFFFF).to_bytes(2, "little"))

    def write_u32(self, address: int, value: int) -> None:
        """Write the low 32 bits of `value` at `address`."""
        self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def write_u64(self, address: int, value: int) -> None:
        """Write the low 64 bits of `value` at `address`."""
        end = address + 8
        if not 0 <= address <= end <= self._end:
            self._check(address, 8)
        self._buffer[address:end] = (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")

    def view(self, address: int, length: int) -> memoryview:
        """Return a writable view of `length` bytes from `address`, without copying."""
        self._check(address, length)
        return memoryview(self._buffer)[address : address + length]

    def clear(self) -> None:
        """Make all memory read 0 again and give its pages back to the system."""
        self._check(0, 0)
        if lib.vtx_memory_clear(self._handle):
            raise NotSupported(f"the system cannot clear the memory: {os.strerror(ffi.errno)}")

    def frames_in_use(self) -> list[int]:
        """Return the addresses of all 4-KByte frames that hold anything but 0, lowest first."""
        self._check(0, 0)
        room = lib.vtx_memory_pages(self._handle, ffi.NULL, 0)
        addresses = ffi.new("uint64_t[]", room)
        lib.vtx_memory_pages(self._handle, addresses, room)
        return list(addresses)

    @property
    def resident_bytes(self) -> int:
        """Bytes that the system really spends on this memory (whole pages)."""
        self._check(0, 0)
        resident: int = lib.vtx_memory_resident(self._handle)
        return resident
