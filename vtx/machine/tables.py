"""What the builders of page tables and of EPT share: frames, and a tree of 512-entry tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vtx.errors import InputError, UnknownName
from vtx.machine.memory import Memory

__all__ = ["ADDRESS", "PAGE_NAMES", "FrameAllocator", "Place", "Tables", "page_shift"]

_SHIFTS = {"4K": 12, "2M": 21, "1G": 30}
#: Page sizes by the level of the entry that maps them.
PAGE_NAMES = {1: "4K", 2: "2M", 3: "1G"}
#: Address bits of an entry.
ADDRESS = 0x000F_FFFF_FFFF_F000
_PAGE_SIZE = 1 << 7


def page_shift(size: str) -> int:
    """Return the base-2 logarithm of the bytes of a ``"4K"``, ``"2M"`` or ``"1G"`` page."""
    if size not in _SHIFTS:
        raise UnknownName("page size", size, _SHIFTS)
    return _SHIFTS[size]


class FrameAllocator:
    """Hands out page frames of a range of physical addresses, lowest first.

    Parameters
    ----------
    start, stop : int
        The range; `stop` is excluded.
    """

    def __init__(self, start: int, stop: int) -> None:
        if not 0 <= start < stop:
            raise InputError(f"frames from {start:#x} to {stop:#x}: the range is empty")
        self.start = start
        self.stop = stop
        self._next = (start + 4095) & ~4095
        self._freed: list[int] = []

    def allocate(self, size: str = "4K") -> int:
        """Return the address of a free frame, aligned to its size.

        Raises
        ------
        InputError
            There is none left.
        """
        bytes_ = 1 << page_shift(size)
        if size == "4K" and self._freed:
            return self._freed.pop()
        frame = (self._next + bytes_ - 1) & -bytes_
        if frame + bytes_ > self.stop:
            raise InputError(
                f"no {size} frame is left between {self.start:#x} and {self.stop:#x}",
                hint="give the allocator a larger range",
            )
        self._freed.extend(range(self._next, frame, 4096))
        self._next = frame + bytes_
        return frame

    def free(self, frame: int) -> None:
        """Take a 4-KiB frame back."""
        if not self.start <= frame < self._next or frame % 4096 or frame in self._freed:
            raise InputError(f"frame {frame:#x} is not one that this allocator handed out")
        self._freed.append(frame)

    def state(self) -> tuple[int, tuple[int, ...]]:
        """Return which frames are handed out, for :meth:`restore`."""
        return self._next, tuple(self._freed)

    def restore(self, state: tuple[int, tuple[int, ...]]) -> None:
        """Make the frames that were handed out at :meth:`state` those that are handed out."""
        self._next, self._freed = state[0], list(state[1])

    @property
    def used(self) -> int:
        """Bytes handed out and not taken back, alignment gaps aside."""
        return self._next - ((self.start + 4095) & ~4095) - 4096 * len(self._freed)


class Place(NamedTuple):
    """Where a walk of the builders ended."""

    address: int  # host-physical, of the entry
    entry: int
    level: int


class Tables:
    """What guest page tables and EPT share: a radix tree of 512-entry tables."""

    #: What an entry that names a table holds besides the address.
    _table_bits: int
    #: An entry with none of these bits is not present.
    _present_bits: int
    #: What addresses are called, for messages.
    _space: str

    def __init__(
        self, memory: Memory, frames: FrameAllocator, levels: int, to_host: Callable[[int], int]
    ) -> None:
        if levels not in (4, 5):
            raise InputError(f"paging structures have 4 or 5 levels, not {levels}")
        self.memory = memory
        self.frames = frames
        self.levels = levels
        self._to_host = to_host
        self.root = self._new_table()

    def _new_table(self) -> int:
        frame = self.frames.allocate()
        self.memory.write(self._to_host(frame), bytes(4096))
        return frame

    def _check(self, address: int, size: str, what: str) -> None:
        if not 0 <= address < 1 << (12 + 9 * self.levels):
            raise InputError(
                f"{what} {address:#x} does not fit the {12 + 9 * self.levels} bits "
                f"that {self.levels} levels translate"
            )
        if address & ((1 << page_shift(size)) - 1):
            raise InputError(f"{what} {address:#x} is not aligned to a {size} page")

    def _find(self, address: int) -> Place:
        """Follow the tables for `address` to its leaf, or to the entry that is not present."""
        table = self.root
        level = self.levels
        to_host, read, present = self._to_host, self.memory.read_u64, self._present_bits
        while True:
            place = to_host(table) + (address >> (3 + 9 * level) & 511) * 8
            entry = read(place)
            if not entry & present or level == 1 or entry & _PAGE_SIZE:
                return Place(place, entry, level)
            table = entry & ADDRESS
            level -= 1

    def _parent(self, address: int, level: int) -> int:
        """Return where the entry is that names the table of `level` for `address`."""
        table = self.root
        for above in range(self.levels, level, -1):
            place = self._to_host(table) + 8 * (address >> (3 + 9 * above) & 511)
            table = self.memory.read_u64(place) & ADDRESS
        return place

    def _map(self, address: int, size: str, leaf: int) -> None:
        """Write the leaf entry for `address`, and the tables on the way to it."""
        wanted = (page_shift(size) - 3) // 9
        place = self._find(address)
        while place.level > wanted:
            if place.entry & self._present_bits:
                raise InputError(
                    f"{self._space} {address:#x} lies in a {PAGE_NAMES[place.level]} page, "
                    f"which is not split",
                    hint="unmap the large page first",
                )
            table = self._new_table()
            self.memory.write_u64(place.address, table | self._table_bits)
            place = self._find(address)
        if place.level < wanted:
            raise InputError(
                f"{self._space} {address:#x} is mapped by smaller pages than {size}",
                hint="the merge method of EPT replaces a table by a page",
            )
        self.memory.write_u64(place.address, leaf | (_PAGE_SIZE if wanted > 1 else 0))

    def _mapped(self, address: int) -> Place:
        place = self._find(address)
        if not place.entry & self._present_bits:
            raise InputError(f"{self._space} {address:#x} is not mapped")
        return place

    def _unmap(self, address: int) -> None:
        self.memory.write_u64(self._mapped(address).address, 0)

    def entry_address(self, address: int) -> int:
        """Return the host-physical address of the entry that maps `address`.

        Raises
        ------
        InputError
            The address is not mapped.
        """
        return self._mapped(address).address
