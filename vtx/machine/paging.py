"""Builders that write paging structures into memory: a guest's page tables, and EPT.

They write what software would; they know nothing of TLBs, so whoever changes a mapping that may be
cached also invalidates it (:class:`vtx.machine.mmu.Mmu`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vtx.errors import InputError
from vtx.machine import resize
from vtx.machine.memory import Memory
from vtx.machine.tables import ADDRESS, PAGE_NAMES, FrameAllocator, Tables, page_shift

__all__ = ["Ept", "EptMapping", "FrameAllocator", "GuestMapping", "GuestPageTables"]

_P, _W, _U, _A, _D, _G = (1 << bit for bit in (0, 1, 2, 5, 6, 8))
_XD = 1 << 63
_KEY_SHIFT = 59

_EPT_R, _EPT_W, _EPT_X, _EPT_IPAT, _EPT_XU = (1 << bit for bit in (0, 1, 2, 6, 10))
_EPT_TYPE_SHIFT = 3
_EPT_SUPPRESS_VE = 1 << 63
_EPTP_ACCESSED_DIRTY = 1 << 6


class EptMapping(NamedTuple):
    """How EPT maps a guest-physical address: its page, and the leaf entry as it stands."""

    gpa: int
    hpa: int
    size: str
    entry: int

    @property
    def readable(self) -> bool:
        """Bit 0 of the leaf."""
        return bool(self.entry & _EPT_R)

    @property
    def writable(self) -> bool:
        """Bit 1 of the leaf."""
        return bool(self.entry & _EPT_W)

    @property
    def executable(self) -> bool:
        """Bit 2 of the leaf."""
        return bool(self.entry & _EPT_X)

    @property
    def memory_type(self) -> int:
        """Bits 5:3 of the leaf."""
        return self.entry >> _EPT_TYPE_SHIFT & 7

    @property
    def accessed(self) -> bool:
        """Accessed flag for EPT."""
        return bool(self.entry >> 8 & 1)

    @property
    def dirty(self) -> bool:
        """Dirty flag for EPT."""
        return bool(self.entry >> 9 & 1)


class Ept(Tables):
    """EPT paging structures in memory.

    Parameters
    ----------
    memory : Memory
        Where they are written.
    frames : FrameAllocator
        Gives the frames of the tables.
    levels : int
        4, or 5 for 5-level EPT.
    accessed_dirty : bool
        EPTP bit 6: accessed and dirty flags for EPT.
    """

    # R, W, X and XU: non-leaf entries allow all, the leaves decide. XU is ignored without
    # mode-based execute control.
    _table_bits = _EPT_R | _EPT_W | _EPT_X | _EPT_XU
    _present_bits = _EPT_R | _EPT_W | _EPT_X | _EPT_XU
    _space = "guest-physical address"

    def __init__(
        self,
        memory: Memory,
        frames: FrameAllocator,
        *,
        levels: int = 4,
        accessed_dirty: bool = False,
    ) -> None:
        super().__init__(memory, frames, levels, lambda address: address)
        self.accessed_dirty = accessed_dirty

    @property
    def eptp(self) -> int:
        """EPT pointer: write-back structures (6), the walk length, and the A/D bit."""
        flags = _EPTP_ACCESSED_DIRTY if self.accessed_dirty else 0
        return self.root | flags | (self.levels - 1) << 3 | 6

    def map(
        self,
        gpa: int,
        hpa: int,
        size: str = "4K",
        *,
        read: bool = True,
        write: bool = True,
        execute: bool = True,
        user_execute: bool | None = None,
        memory_type: int = 6,
        ignore_pat: bool = False,
        suppress_ve: bool = False,
    ) -> None:
        """Map one page; a page of the same size that is there already is replaced.

        Parameters
        ----------
        gpa, hpa : int
            Guest-physical and host-physical address, aligned to the page.
        size : str
            ``"4K"``, ``"2M"`` or ``"1G"``.
        read, write, execute : bool
            Bits 0 to 2 of the leaf. Combinations that the SDM calls misconfigured are written as
            they are asked for.
        user_execute : bool, optional
            Bit 10, for mode-based execute control; as `execute` by default.
        memory_type : int
            0 UC, 1 WC, 4 WT, 5 WP, 6 WB.
        ignore_pat, suppress_ve : bool
            Bits 6 and 63.

        Raises
        ------
        InputError
            An address is not aligned or too wide, the memory type has no 3 bits, the page lies in
            a larger one, or smaller pages are mapped where it would lie.
        """
        self._check(gpa, size, "guest-physical address")
        self._check(hpa, size, "host-physical address")
        if not 0 <= memory_type <= 7:
            raise InputError(f"an EPT memory type has 3 bits; {memory_type} is impossible")
        leaf = hpa | memory_type << _EPT_TYPE_SHIFT
        leaf |= read * _EPT_R | write * _EPT_W | execute * _EPT_X
        leaf |= (execute if user_execute is None else user_execute) * _EPT_XU
        leaf |= ignore_pat * _EPT_IPAT | suppress_ve * _EPT_SUPPRESS_VE
        self._map(gpa, size, leaf)

    def unmap(self, gpa: int) -> None:
        """Clear the leaf entry that maps `gpa`: the whole page, whatever its size.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        self._unmap(gpa)

    def split(self, gpa: int) -> None:
        """Replace the large page that maps `gpa` by 512 pages of the next smaller size.

        Raises
        ------
        InputError
            The address is not mapped, or by a 4-KByte page.
        """
        resize.split(self, gpa)

    def merge(self, gpa: int) -> None:
        """Replace the 512 pages around `gpa` by one of the next larger size.

        Pages among them that were not mapped are mapped then. The table is given back.

        Raises
        ------
        InputError
            The address is not mapped, the pages differ in rights or memory type, or do not lie
            one behind the other in host memory.
        """
        resize.merge(self, gpa)

    def protect(
        self,
        gpa: int,
        *,
        read: bool | None = None,
        write: bool | None = None,
        execute: bool | None = None,
        user_execute: bool | None = None,
    ) -> None:
        """Change rights of the page that maps `gpa`; None leaves a right as it is.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        place = self._mapped(gpa)
        entry = place.entry
        wishes = ((read, _EPT_R), (write, _EPT_W), (execute, _EPT_X), (user_execute, _EPT_XU))
        for wish, bit in wishes:
            if wish is not None:
                entry = entry | bit if wish else entry & ~bit
        self.memory.write_u64(place.address, entry)

    def lookup(self, gpa: int) -> EptMapping | None:
        """Return how `gpa` is mapped, or None if it is not; no flag is set."""
        place = self._find(gpa)
        if not place.entry & self._present_bits:
            return None
        page = (1 << (3 + 9 * place.level)) - 1
        hpa = (place.entry & ADDRESS & ~page) | (gpa & page)
        return EptMapping(gpa, hpa, PAGE_NAMES[place.level], place.entry)

    def host_physical(self, gpa: int) -> int:
        """Return the host-physical address of `gpa`.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        mapping = self.lookup(gpa)
        if mapping is None:
            raise InputError(f"guest-physical address {gpa:#x} is not mapped by EPT")
        return mapping.hpa


class GuestMapping(NamedTuple):
    """How guest paging maps a linear address: its page, and the leaf entry as it stands."""

    gva: int
    gpa: int
    size: str
    entry: int

    @property
    def writable(self) -> bool:
        """R/W of the leaf."""
        return bool(self.entry & _W)

    @property
    def user(self) -> bool:
        """U/S of the leaf."""
        return bool(self.entry & _U)

    @property
    def executable(self) -> bool:
        """Not XD in the leaf."""
        return not self.entry & _XD

    @property
    def accessed(self) -> bool:
        """Accessed flag of the leaf."""
        return bool(self.entry & _A)

    @property
    def dirty(self) -> bool:
        """Dirty flag of the leaf."""
        return bool(self.entry & _D)


class GuestPageTables(Tables):
    """A guest's 4-level (or 5-level) page tables.

    Parameters
    ----------
    memory : Memory
        The machine's memory.
    frames : FrameAllocator
        Gives guest-physical frames for the tables.
    host_physical : callable, optional
        Where a guest-physical address lies in `memory`, for example :meth:`Ept.host_physical`;
        without one, guest-physical is host-physical.
    levels : int
        4, or 5 with CR4.LA57.
    """

    # Non-leaf entries allow all; their accessed flags are set by the walker.
    _table_bits = _P | _W | _U
    _present_bits = _P
    _space = "linear address"

    def __init__(
        self,
        memory: Memory,
        frames: FrameAllocator,
        host_physical: Callable[[int], int] | None = None,
        *,
        levels: int = 4,
    ) -> None:
        super().__init__(memory, frames, levels, host_physical or (lambda address: address))

    @property
    def cr3(self) -> int:
        """Guest-physical address of the root table, for CR3."""
        return self.root

    def _linear(self, gva: int) -> int:
        """Return `gva` without its sign extension."""
        bits = 12 + 9 * self.levels
        top = gva >> (bits - 1)
        if top not in (0, (1 << (65 - bits)) - 1):
            raise InputError(f"linear address {gva:#x} is not canonical for {bits} bits")
        return gva & ((1 << bits) - 1)

    def map(
        self,
        gva: int,
        gpa: int,
        size: str = "4K",
        *,
        write: bool = True,
        user: bool = True,
        execute: bool = True,
        is_global: bool = False,
        accessed: bool = False,
        dirty: bool = False,
        protection_key: int = 0,
    ) -> None:
        """Map one page; a page of the same size that is there already is replaced.

        Parameters
        ----------
        gva, gpa : int
            Linear address (canonical) and guest-physical address, aligned to the page.
        size : str
            ``"4K"``, ``"2M"`` or ``"1G"``.
        write, user, execute, is_global, accessed, dirty : bool
            R/W, U/S, not XD, G, A and D of the leaf.
        protection_key : int
            0 to 15.

        Raises
        ------
        InputError
            An address is not canonical, not aligned or too wide, the key is impossible, the page
            lies in a larger one, or smaller pages are mapped where it would lie.
        """
        linear = self._linear(gva)
        self._check(linear, size, "linear address")
        if gpa >> 52 or gpa & ((1 << page_shift(size)) - 1):
            raise InputError(f"guest-physical address {gpa:#x} is not that of a {size} page")
        if not 0 <= protection_key <= 15:
            raise InputError(f"protection key {protection_key} is not one of 0 to 15")
        leaf = gpa | _P | write * _W | user * _U | (not execute) * _XD
        leaf |= is_global * _G | accessed * _A | dirty * _D | protection_key << _KEY_SHIFT
        self._map(linear, size, leaf)

    def unmap(self, gva: int) -> None:
        """Clear the leaf entry that maps `gva`: the whole page, whatever its size.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        self._unmap(self._linear(gva))

    def protect(
        self,
        gva: int,
        *,
        write: bool | None = None,
        user: bool | None = None,
        execute: bool | None = None,
    ) -> None:
        """Change rights of the page that maps `gva`; None leaves a right as it is.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        place = self._mapped(self._linear(gva))
        entry = place.entry
        no_execute = None if execute is None else not execute
        for wish, bit in ((write, _W), (user, _U), (no_execute, _XD)):
            if wish is not None:
                entry = entry | bit if wish else entry & ~bit
        self.memory.write_u64(place.address, entry)

    def lookup(self, gva: int) -> GuestMapping | None:
        """Return how `gva` is mapped, or None if it is not; no flag is set."""
        linear = self._linear(gva)
        place = self._find(linear)
        if not place.entry & _P:
            return None
        page = (1 << (3 + 9 * place.level)) - 1
        gpa = (place.entry & ADDRESS & ~page) | (linear & page)
        return GuestMapping(gva, gpa, PAGE_NAMES[place.level], place.entry)

    def entry_address(self, address: int) -> int:
        """Return the host-physical address of the entry that maps linear address `address`.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        return super().entry_address(self._linear(address))
