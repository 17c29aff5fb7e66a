"""A guest's memory as a VMM reaches it: slices by guest-physical and by linear address.

These are accesses of software: no TLB is filled, no accessed or dirty flag set, no event counted,
and no right looked at. What the processor itself does is :mod:`vtx.machine.mmu`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from vtx.bits import MASK32, MASK64
from vtx.errors import InputError, UsageError
from vtx.machine.registers import Cr0, Cr4, Efer

if TYPE_CHECKING:
    from vtx.machine.guest_ept import GuestEpt
    from vtx.machine.memory import Memory

__all__ = ["GuestLinear", "GuestPhysical", "NotMapped", "guest_physical"]

_PAGE = 4096
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = (1 << 52) - _PAGE
_PAE_CR3 = 0xFFFF_FFE0
_PSE_HIGH_BITS = 0xFF


class NotMapped(InputError):
    """The guest's page tables do not map a linear address.

    Attributes
    ----------
    linear : int
        The address.
    """

    def __init__(self, linear: int) -> None:
        self.linear = linear
        super().__init__(f"the guest's page tables do not map linear address {linear:#x}")


class _Registers(Protocol):
    """What decides how a guest's linear addresses are translated."""

    @property
    def cr0(self) -> int: ...
    @property
    def cr3(self) -> int: ...
    @property
    def cr4(self) -> int: ...
    @property
    def efer(self) -> int: ...


def guest_physical(registers: _Registers, read: Callable[[int, int], int], linear: int) -> int:
    """Translate a linear address as the guest's page tables do, in every paging mode.

    Parameters
    ----------
    registers : object
        With the guest's `cr0`, `cr3`, `cr4` and `efer`.
    read : callable
        ``read(guest_physical_address, size)``: an entry of 4 or 8 bytes.
    linear : int
        Linear address.

    Returns
    -------
    int
        Guest-physical address.

    Raises
    ------
    NotMapped
        An entry on the way is not present.
    """
    if not registers.cr0 & Cr0.PG:
        return linear & MASK32
    cr4, long_mode = registers.cr4, registers.efer & Efer.LMA
    if not long_mode and not cr4 & Cr4.PAE:
        return _legacy(registers.cr3, bool(cr4 & Cr4.PSE), read, linear & MASK32)
    if long_mode:
        table, top = registers.cr3 & _ADDRESS, 48 if cr4 & Cr4.LA57 else 39
    else:
        linear &= MASK32
        entry = read((registers.cr3 & _PAE_CR3) + 8 * (linear >> 30), 8)
        if not entry & _PRESENT:
            raise NotMapped(linear)
        table, top = entry & _ADDRESS, 21
    for shift in range(top, 11, -9):
        entry = read(table + 8 * (linear >> shift & 511), 8)
        if not entry & _PRESENT:
            raise NotMapped(linear)
        if shift == 12 or (entry & _LARGE and shift <= 30):
            offset = (1 << shift) - 1
            return entry & _ADDRESS & ~offset | linear & offset
        table = entry & _ADDRESS
    raise AssertionError  # the last level is always a page


def _legacy(cr3: int, pse: bool, read: Callable[[int, int], int], linear: int) -> int:
    """Translate by 32-bit paging (SDM, "32-Bit Paging")."""
    entry = read((cr3 & MASK32 & ~(_PAGE - 1)) + 4 * (linear >> 22), 4)
    if not entry & _PRESENT:
        raise NotMapped(linear)
    if entry & _LARGE and pse:
        high = (entry >> 13 & _PSE_HIGH_BITS) << 32
        return high | entry & 0xFFC0_0000 | linear & 0x3F_FFFF
    entry = read((entry & 0xFFFF_F000) + 4 * (linear >> 12 & 1023), 4)
    if not entry & _PRESENT:
        raise NotMapped(linear)
    return entry & 0xFFFF_F000 | linear & (_PAGE - 1)


class _Bytes(ABC):
    """Bytes by address: an index gives one, a slice as many as it spans."""

    _kind: str

    @abstractmethod
    def _host(self, address: int) -> tuple[Memory, int]: ...

    def __getitem__(self, where: int | slice) -> int | bytes:
        if isinstance(where, slice):
            start, size = self._span(where)
            return self.read(start, size)
        return self.read(where, 1)[0]

    def __setitem__(self, where: int | slice, value: int | bytes | bytearray | memoryview) -> None:
        if isinstance(where, slice):
            if isinstance(value, int):
                raise UsageError("a slice of memory is set to bytes, not to a number")
            start, size = self._span(where, len(value))
            if size != len(value):
                raise UsageError(f"{size} bytes of memory cannot be set to {len(value)} bytes")
            self.write(start, bytes(value))
        else:
            self.write(where, bytes([value]) if isinstance(value, int) else bytes(value))

    def _span(self, where: slice, length: int | None = None) -> tuple[int, int]:
        start = where.start
        stop = where.stop
        if stop is None and length is not None and start is not None:
            stop = start + length
        if start is None or stop is None or where.step not in (None, 1):
            raise UsageError(f"a slice of {self._kind} memory is memory[first:last + 1]")
        return start, stop - start

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes from `address`.

        Raises
        ------
        NotMapped
            The guest's page tables do not map all of it (linear addresses).
        AddressError
            It lies beyond the machine's memory.
        """
        return b"".join(memory.read(at, n) for memory, at, n in self._pieces(address, size))

    def write(self, address: int, content: bytes) -> None:
        """Write `content` at `address`; nothing is written if some of it cannot be."""
        done = 0
        for memory, at, count in list(self._pieces(address, len(content))):
            memory.write(at, content[done : done + count])
            done += count

    def _pieces(self, address: int, size: int) -> Iterator[tuple[Memory, int, int]]:
        """Split an access at page boundaries and translate each part."""
        if address < 0 or size < 0:
            raise UsageError(f"{self._kind} address {address} or size {size} is negative")
        while size:
            count = min(size, _PAGE - address % _PAGE)
            memory, at = self._host(address)
            yield memory, at, count
            address, size = address + count & MASK64, size - count


class GuestPhysical(_Bytes):
    """A guest's memory by guest-physical address.

    Parameters
    ----------
    memory : Memory
        The machine's memory.
    ept : GuestEpt or None
        Where it maps an address, that is what the address means.
    base : int
        Host-physical address of the guest's memory for what EPT does not map (yet).
    """

    _kind = "guest-physical"

    def __init__(self, memory: Memory, ept: GuestEpt | None, base: int) -> None:
        self._memory = memory
        self._ept = ept
        self._base = base

    def _host(self, address: int) -> tuple[Memory, int]:
        if self._ept is not None:
            mapping = self._ept.lookup(address)
            if mapping is not None:
                return self._memory, mapping.hpa
        return self._memory, self._base + address


class GuestLinear(_Bytes):
    """A guest's memory by linear address, translated by the guest's own page tables.

    Parameters
    ----------
    guest : GuestView
        Whose registers and guest-physical memory they are.
    """

    _kind = "linear"

    def __init__(self, guest: _GuestLike) -> None:
        self._guest = guest

    def _host(self, address: int) -> tuple[Memory, int]:
        return self._guest.memory._host(self.physical(address))

    def physical(self, address: int) -> int:
        """Return the guest-physical address that a linear address is mapped to.

        Raises
        ------
        NotMapped
            It is not mapped.
        """
        return guest_physical(self._guest, self._entry, address)

    def _entry(self, address: int, size: int) -> int:
        return int.from_bytes(self._guest.memory.read(address, size), "little")


class _GuestLike(_Registers, Protocol):
    @property
    def memory(self) -> GuestPhysical: ...
