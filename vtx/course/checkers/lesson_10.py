"""EPT: map on demand, and know which pages the guest has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.exits import ExitReason

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["check"]

_PAGE = 0x1000
_DATA = range(0x80_0000, 0xC0_0000, _PAGE)
#: Where the guest's kernel sees its memory: linear and guest-physical addresses differ.
_KERNEL = 0xFFFF_8880_0000_0000
_PAGES = 12


def check(lab: Lab) -> None:
    """Run a guest that reads and writes in two rounds, with clean() between them."""
    handle = lab.function("handle", "the handler: handle(cpu, exit, dirty)")
    clean = lab.function("clean", "what begins a new round: clean(cpu, dirty)")
    pages = lab.random.sample(_DATA, _PAGES)
    read, first, again, later = pages[:3], pages[3:7], pages[5:9], pages[9:]
    value = lab.random.randrange(1, 1 << 30)
    steps = [f"load {_KERNEL + page + 8:#x}" for page in read + again + later]
    steps += [f"store {_KERNEL + page + 16:#x} value={value}" for page in first]
    steps += ["vmcall number=1"]
    steps += [f"store {_KERNEL + page + 24:#x} value={value}" for page in again]
    steps += [f"modify {_KERNEL + page + 32:#x} value={value}" for page in later]
    steps += [f"load {_KERNEL + page:#x}" for page in read]
    dirty: set[int] = set()
    rounds: list[set[int]] = []
    mapped: dict[int, str] = {}

    def answer(cpu: Cpu, exit: Exit) -> None:
        if exit.information.reason is not ExitReason.VMCALL:
            handle(cpu, exit, dirty)
            mapped.update(_sizes(cpu, exit.information.guest_physical_address))
            return
        rounds.append(set(dirty))
        clean(cpu, dirty)
        lab.equal(dirty, set(), "after clean() no page is dirty", "empty the set in place: clear()")
        cpu.skip(exit)

    watched = lab.run(lab.guest(mapped=False), "\n".join([*steps, "hlt"]), answer)
    rounds.append(set(dirty))
    _look(lab, rounds, [set(first), {*again, *later}], set(read))
    memory = watched.cpu.guest.memory
    lab.expect(
        all(memory[page + 16] == value & 0xFF for page in first),
        "what the guest stored is in its memory",
        "an EPT violation is fault-like: once the page may be written, the guest executes the "
        "store itself; do not skip it",
    )
    lab.expect(
        set(mapped.values()) == {"4K"},
        "pages are mapped by 4K, so that a write makes one page dirty and not 512",
        'cpu.ept.map(page, size="4K", ...)',
    )


def _sizes(cpu: Cpu, gpa: int) -> dict[int, str]:
    mapping = cpu.ept.lookup(gpa)
    return (
        {gpa: mapping.size} if mapping is not None and gpa in range(_DATA.start, _DATA.stop) else {}
    )


def _look(lab: Lab, rounds: list[set[int]], wanted: list[set[int]], read: set[int]) -> None:
    """Compare the pages that were found dirty with those that the guest wrote."""
    found = [{page for page in pages if page in range(_DATA.start, _DATA.stop)} for pages in rounds]
    lab.expect(
        all(page % _PAGE == 0 for pages in rounds for page in pages),
        "dirty holds addresses of pages",
        f"exit.ept.gpa is the address of the access; its page begins at gpa & ~{_PAGE - 1:#x}",
    )
    lab.expect(
        wanted[0] <= found[0],
        "every page that the guest writes in the first round is dirty",
        f"{_listed(wanted[0] - found[0])}: written, but not in the set. A page that is mapped "
        "writable when the guest reads it can be written without an EPT violation",
    )
    lab.expect(
        not read & (found[0] | found[-1]),
        "pages that the guest only reads are not dirty",
        f"{_listed(read & (found[0] | found[-1]))}: only read; look at exit.ept.write",
    )
    lab.expect(
        wanted[1] <= found[-1],
        "every page that it writes after clean() is dirty again",
        f"{_listed(wanted[1] - found[-1])}: written again, but not in the set. Are all pages "
        "write-protected again? Then it was a cached translation that let the guest write: after "
        "taking rights away, INVEPT (vtx explain invept)",
    )
    lab.expect(
        found[0] <= wanted[0] | read and found[-1] <= wanted[1],
        "no other page is dirty",
        f"{_listed((found[0] - wanted[0]) | (found[-1] - wanted[1]))}: not written in that round",
    )


def _listed(pages: set[int]) -> str:
    return ", ".join(f"{page:#x}" for page in sorted(pages)[:3]) or "none"
