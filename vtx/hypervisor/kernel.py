"""The guest's kernel, as far as a recorded program needs one: it pages memory in on demand.

When a #PF is delivered to the guest, the handler does what an operating system does for memory
that the program may use but does not have yet: it takes a free frame, clears it, and writes the
missing entries of the guest's page tables. All its stores go through the MMU at the addresses of
the kernel's direct map, so they meet EPT violations of their own, and the handler resumes after
each of them with the store that caused it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vtx.machine.image import LARGE_PAGE, PAGE, GuestImage
from vtx.machine.mmu import Access
from vtx.rules.execution_memory import translate, write

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["DemandPaging"]

_USER_TOP = 1 << 47
_PRESENT, _WRITABLE, _USER, _LARGE = 1, 2, 4, 0x80
_ENTRY = _PRESENT | _WRITABLE | _USER
_ADDRESS = (1 << 52) - PAGE
_PROTECTION = 1


@dataclass
class _Fault:
    """A page fault that is being handled, and what is still to do.

    An action is the guest-physical address of an entry and its value, or of 4 KiB to clear and
    None.
    """

    page: int
    actions: deque[tuple[int, int | None]]


@dataclass
class DemandPaging:
    """The page-fault handler of the guest's kernel.

    Parameters
    ----------
    image : GuestImage
        The guest's memory and its free frames.
    large_pages : bool
        Map 2-MiB pages instead of 4-KiB pages.

    Attributes
    ----------
    pages, tables : int
        User pages and page tables that were handed out.
    """

    image: GuestImage
    large_pages: bool = False
    pages: int = 0
    tables: int = 0
    _faults: dict[int, _Fault] = field(default_factory=dict)

    def __call__(self, processor: Processor, linear_address: int, error_code: int) -> bool:
        """Map the page at `linear_address`.

        Returns
        -------
        bool
            False if the program may not have a page there: the address is not in the lower half
            of the linear-address space, or the page is there and does not allow the access.

        Raises
        ------
        ExitTaken
            A store met an EPT violation; called again, the handler goes on with that store.
        EmulationStopped
            The guest's memory is used up.
        """
        if linear_address >= _USER_TOP or error_code & _PROTECTION:
            return False
        page = linear_address & -(LARGE_PAGE if self.large_pages else PAGE)
        fault = self._faults.get(processor.number)
        if fault is None or fault.page != page:
            fault = self._faults[processor.number] = _Fault(page, self._plan(page))
        while fault.actions:
            address, entry = fault.actions[0]
            linear = self.image.kernel_address(address)
            if entry is None:
                # Free frames read 0 already: all that clearing them changes is the MMU's state.
                translate(processor, linear, Access.STORE)
            else:
                write(processor, linear, entry.to_bytes(8, "little"))
            fault.actions.popleft()
        del self._faults[processor.number]
        return True

    def _plan(self, page: int) -> deque[tuple[int, int | None]]:
        """Return what maps `page`: from the root down, each table is cleared, then entered."""
        actions: deque[tuple[int, int | None]] = deque()
        last = 21 if self.large_pages else 12
        image = self.image
        table, read, host_physical = image.cr3, image.memory.read_u64, image.host_physical
        for shift in range(39, last, -9):
            slot = table + 8 * (page >> shift & 511)
            entry = read(host_physical(slot))
            if not entry & _PRESENT:
                entry = image.allocate_frame() | _ENTRY
                self.tables += 1
                actions += [(entry & _ADDRESS, None), (slot, entry)]
            table = entry & _ADDRESS
        slot = table + 8 * (page >> last & 511)
        if not read(host_physical(slot)) & _PRESENT:
            actions += self._new_page(slot)
        return actions

    def _new_page(self, slot: int) -> list[tuple[int, int | None]]:
        """Return what puts a new page of the program into the entry at `slot`."""
        self.pages += 1
        if not self.large_pages:
            frame = self.image.allocate_frame()
            return [(frame, None), (slot, frame | _ENTRY)]
        frame = self.image.allocate_large_frame()
        clear: list[tuple[int, int | None]] = [
            (frame + offset, None) for offset in range(0, LARGE_PAGE, PAGE)
        ]
        return [*clear, (slot, frame | _ENTRY | _LARGE)]
