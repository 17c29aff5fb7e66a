"""What one translation costs: the two-dimensional walk, and what is cached of it."""

import vtx
from vtx.machine.image import GUEST_BASE
from vtx.machine.mmu import Access
from vtx.machine.paging import FrameAllocator, GuestPageTables

PAGE, LARGE, HUGE = 0x1000, 0x20_0000, 0x4000_0000
DATA = 0x80_0000_0000  # linear: 512 GBytes
LEVELS = {"4K": 4, "2M": 3, "1G": 2}


def start(ept_size: str) -> vtx.Cpu:
    """Return a processor whose guest has run once, under EPT pages of a size."""
    cpu = vtx.Cpu("skylake_sp")
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    for gpa in range(0, HUGE, {"4K": HUGE, "2M": LARGE, "1G": HUGE}[ept_size]):
        cpu.ept.map(gpa, size="1G" if ept_size == "4K" else ept_size)
    if ept_size == "4K":
        cpu.ept.split(0)
        for gpa in range(0, 32 * LARGE, LARGE):
            cpu.ept.split(gpa)
    return cpu


def map_guest(cpu: vtx.Cpu, size: str, pages: list[int]) -> None:
    """Give the guest page tables of its own that map these linear addresses, and run it once."""
    frames = FrameAllocator(0x40_0000, 0x100_0000)
    tables = GuestPageTables(cpu.memory, frames, lambda gpa: GUEST_BASE + gpa)
    tables.map(0, 0, "2M")
    tables.map(LARGE, LARGE, "2M")
    for number, gva in enumerate(pages):
        step = {"4K": PAGE, "2M": LARGE, "1G": 0}[size]
        tables.map(gva, (0 if size == "1G" else 0x100_0000) + number * step, size)
    cpu.guest.cr3 = tables.cr3
    cpu.vmlaunch(vtx.program("hlt"))
    cpu.mmu.flush_all()


def from_the_roots() -> None:
    """Walks that find nothing cached, for every pair of page sizes."""
    print("References of a walk from the roots")
    print("  guest  EPT   measured  (g+1)(h+1)-1")
    for guest_size in LEVELS:
        for ept_size in LEVELS:
            with start(ept_size) as cpu:
                map_guest(cpu, guest_size, [DATA])
                walk = cpu.mmu.walk(cpu.context, DATA, Access.LOAD)
                formula = (LEVELS[guest_size] + 1) * (LEVELS[ept_size] + 1) - 1
                print(f"  {guest_size:<6} {ept_size:<5} {walk.references:>8}  {formula:>12}")


def with_caches() -> None:
    """A few loads, one after the other, with everything that is cached."""
    print("References of loads, one after the other")
    pages = [DATA, DATA + PAGE, DATA + LARGE, DATA + HUGE, 2 * DATA]
    loads = [
        ("the first load", pages[0]),
        ("the same page again", pages[0]),
        ("the next page", pages[1]),
        ("another table of pages", pages[2]),
        ("another directory", pages[3]),
        ("another 512 GBytes", pages[4]),
    ]
    with start("4K") as cpu:
        map_guest(cpu, "4K", pages)
        for what, gva in loads:
            walk = cpu.mmu.translate(cpu.context, gva, Access.LOAD, record=True)
            print(f"  {what:<24} {walk.references:>2}  from {walk.source.name}")


def sweep() -> None:
    """Two thousand pages, one load in each, twice."""
    print("2 x 2048 pages of 4 KBytes, one load each")
    print("  guest  EPT   walks  references  for each walk")
    for guest_size, ept_size in (("4K", "4K"), ("4K", "2M"), ("2M", "4K"), ("2M", "2M")):
        with start(ept_size) as cpu:
            step = PAGE if guest_size == "4K" else LARGE
            map_guest(cpu, guest_size, [DATA + at for at in range(0, 2048 * PAGE, step)])
            cpu.mmu.reset_counters()
            for _ in range(2):
                for number in range(2048):
                    cpu.mmu.translate(cpu.context, DATA + number * PAGE, Access.LOAD)
            counts = cpu.mmu.counters()
            made = sum(
                count
                for name, count in counts.items()
                if name.startswith(("guest_references", "ept_references"))
            )
            walks = counts["walks"]
            print(f"  {guest_size:<6} {ept_size:<5} {walks:>5}  {made:>10}  {made / walks:>13.2f}")


from_the_roots()
with_caches()
sweep()
