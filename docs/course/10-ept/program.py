"""EPT: demand mapping, page sizes, write protection, accessed and dirty flags, a wrong entry."""

import vtx
from vtx import ExitReason, Field

PAGE, LARGE = 0x1000, 0x20_0000
KERNEL = 0xFFFF_8880_0000_0000  # where the guest's kernel sees its memory
DATA = 0x80_0000  # guest-physical


def start() -> vtx.Cpu:
    """Return a processor with a guest of which EPT maps nothing."""
    cpu = vtx.Cpu("skylake_sp")
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    return cpu


def violations() -> None:
    """One store to a guest that has nothing yet."""
    print("Every EPT violation of one store")
    with start() as cpu:
        exit = cpu.vmlaunch(vtx.program(f"store {KERNEL + DATA:#x} value=7\nhlt"))
        while exit.reason is ExitReason.EPT_VIOLATION:
            access = exit.ept
            kind = "fetch" if access.fetch else "write" if access.write else "read"
            what = "the address itself" if access.translated else "a guest paging-structure entry"
            print(f"  {access.gpa:#9x} {kind:<6} {what}")
            cpu.ept.map(access.gpa, size="4K")
            exit = cpu.vmresume()


def sizes() -> None:
    """The same guest with three sizes of EPT page."""
    print("Exits of a guest that writes 64 pages")
    stores = "\n".join(f"store {DATA + number * PAGE:#x} value=1" for number in range(64))
    for size in ("4K", "2M", "1G"):
        with start() as cpu:
            exit = cpu.vmlaunch(vtx.program(stores + "\nhlt"))
            while exit.reason is ExitReason.EPT_VIOLATION:
                cpu.ept.map(exit.ept.gpa, size=size)
                exit = cpu.vmresume()
            print(f"  pages of {size}, EPT violations: {cpu.machine.events.exit_count - 1}")


def merging() -> None:
    """Sixteen small pages become one large page."""
    print("From 4K to 2M")
    stores = "\n".join(f"store {DATA + number * PAGE:#x} value=1" for number in range(64))
    touched = 0
    with start() as cpu:
        exit = cpu.vmlaunch(vtx.program(stores + "\nhlt"))
        while exit.reason is ExitReason.EPT_VIOLATION:
            cpu.ept.map(exit.ept.gpa, size="4K")
            touched += exit.ept.gpa >= DATA
            if touched == 16:
                cpu.ept.merge(exit.ept.gpa)
                cpu.invept(1, cpu.ept.eptp)
                print(f"  at {exit.ept.gpa:#x}: the table becomes one page of 2M")
            exit = cpu.vmresume()
        print(f"  EPT violations: {cpu.machine.events.exit_count - 1}")


def dirty() -> None:
    """Which pages did the guest write? Two ways to know."""
    print("Who was written?")
    guest = f"load {DATA:#x}\nstore {DATA + PAGE:#x} value=1\nstore {DATA + PAGE:#x} value=2\nhlt"
    pages = (DATA, DATA + PAGE)
    with start() as cpu:
        cpu.ept.map(0, size="1G")
        cpu.ept.split(DATA)
        cpu.ept.split(DATA)
        for page in pages:
            cpu.ept.protect(page, write=False)
        exit = cpu.vmlaunch(vtx.program(guest))
        while exit.reason is ExitReason.EPT_VIOLATION:
            print(f"  write protection: EPT violation at {exit.ept.gpa:#x}")
            cpu.ept.protect(exit.ept.gpa, write=True)
            exit = cpu.vmresume()
    with start() as cpu:
        cpu.ept.map(0, size="1G")
        cpu.ept.split(DATA)
        cpu.ept.split(DATA)
        cpu.ept.accessed_dirty = True
        cpu.vmwrite(Field.EPT_POINTER, cpu.ept.eptp)
        cpu.vmlaunch(vtx.program(guest))
        for page in pages:
            entry = cpu.ept.lookup(page)
            print(f"  flags: {page:#x} accessed {entry.accessed}, dirty {entry.dirty}")


def misconfiguration() -> None:
    """An entry that allows writes and no reads."""
    print("An entry that no processor understands")
    with start() as cpu:
        cpu.ept.map(0, size="1G")
        cpu.ept.split(DATA)
        cpu.ept.protect(DATA, read=False, execute=False)
        exit = cpu.vmlaunch(vtx.program(f"load {DATA:#x}\nhlt"))
        print(f"  {exit.reason.name} at {exit.ept.gpa:#x}")


violations()
sizes()
merging()
dirty()
misconfiguration()
