"""Address spaces for the benchmarks of the core: 4-KByte pages in both dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtx.machine.memory import Memory
from vtx.machine.mmu import Context
from vtx.machine.shape import Shape, TlbGeometry

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SKYLAKE_SP", "UNCACHED", "guest_over_ept"]

_EPT_VPID_CAP = {0x48C: 0x0F01_0673_4141}
#: Address widths and TLBs of Skylake-SP, and the same without any cache.
SKYLAKE_SP = Shape("skylake_sp", _EPT_VPID_CAP, 46, 48, frozenset({"page_1g"}))
UNCACHED = Shape("uncached", _EPT_VPID_CAP, 46, 48, frozenset(), TlbGeometry((), 0, 0, 0, 0, 0))

#: Guest-physical memory: tables from 1 MiB, data from 1 GiB; all of it at this host address on.
_GUEST_TABLES, _GUEST_DATA, _HOST = 0x10_0000, 0x4000_0000, 0x8_0000_0000
_EPT_TABLES = 0x100_0000
_GUEST_LINK, _GUEST_LEAF = 0x27, 0x67  # present, writable, user, accessed; dirty
_EPT_LINK, _EPT_LEAF = 0x7, 0x37  # read, write, execute; write-back


def _write(memory: Memory, address: int, entries: np.ndarray[Any, Any]) -> None:
    import numpy as np

    view = memory.view(address, 8 * len(entries))
    np.frombuffer(view, dtype=np.uint64)[:] = entries


def _tables(
    memory: Memory, numbers: np.ndarray[Any, Any], leaves: Any, link: int, at: int, host: int
) -> tuple[int, int]:
    """Write 4-level tables for sorted page numbers; return the root's address and the end."""
    import numpy as np

    entries = leaves
    for _ in range(4):
        tables, which = np.unique(numbers >> np.uint64(9), return_inverse=True)
        rows = np.zeros(512 * len(tables), dtype=np.uint64)
        rows[which * 512 + (numbers & np.uint64(511)).astype(np.int64)] = entries
        _write(memory, at + host, rows)
        entries = at + 4096 * np.arange(len(tables), dtype=np.uint64) | np.uint64(link)
        root, at, numbers = at, at + 4096 * len(tables), tables
    return root, at


def guest_over_ept(memory: Memory, pages: np.ndarray[Any, Any]) -> Context:
    """Map pages of a 64-bit guest under EPT, flags set; return what user mode runs under.

    Parameters
    ----------
    memory : Memory
        Written from 16 MiB on.
    pages : array of uint64
        Linear page numbers (48-bit addresses), sorted, each once.
    """
    import numpy as np

    frames = _GUEST_DATA + (np.arange(len(pages), dtype=np.uint64) << np.uint64(12))
    cr3, end = _tables(
        memory, pages, frames | np.uint64(_GUEST_LEAF), _GUEST_LINK, _GUEST_TABLES, _HOST
    )
    assert end <= _GUEST_DATA, "too many pages"
    used = np.concatenate([np.arange(0, end, 4096, dtype=np.uint64), frames])
    leaves = used + np.uint64(_HOST) | np.uint64(_EPT_LEAF)
    root, _ = _tables(memory, used >> np.uint64(12), leaves, _EPT_LINK, _EPT_TABLES, 0)
    return Context(cr0=0x8001_0001, cr3=cr3, cr4=0xA0, efer=0xD00, cpl=3, eptp=root | 0x1E, vpid=1)
