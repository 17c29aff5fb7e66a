"""VPID: what VM entries and exits forget without it, and what goes wrong without INVVPID."""

import vtx
from vtx import ExitReason, Field, Proc2
from vtx.machine.image import GUEST_BASE
from vtx.machine.mmu import Access
from vtx.machine.paging import FrameAllocator, GuestPageTables

LARGE = 0x20_0000
DATA, OTHER = 0x80_0000_0000, 0x80_0000_1000  # linear
OLD, NEW = 0x100_0000, 0x100_1000  # guest-physical
ONE_ADDRESS, ONE_CONTEXT, ALL_CONTEXTS, ONE_CONTEXT_BUT_GLOBAL = 0, 1, 2, 3


def start() -> vtx.Cpu:
    """Return a processor with a guest in all of its memory; the VPID is 1."""
    cpu = vtx.Cpu("skylake_sp")
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    return cpu


def guest_tables(cpu: vtx.Cpu) -> GuestPageTables:
    """Give the guest page tables of its own: its code, and two pages of data."""
    tables = GuestPageTables(
        cpu.memory, FrameAllocator(0x40_0000, 0x50_0000), lambda gpa: GUEST_BASE + gpa
    )
    tables.map(LARGE, LARGE, "2M")
    tables.map(DATA, OLD)
    tables.map(OTHER, NEW, is_global=True)
    cpu.guest.cr3 = tables.cr3
    return tables


def what_transitions_forget() -> None:
    """A loop with 16 loads and one VM exit."""
    print("10 rounds of 16 loads and one VM exit")
    loads = "\n".join(f"load {4 * LARGE + number * LARGE:#x}" for number in range(16))
    program = vtx.program(f"repeat 10\n{loads}\ncpuid\nend\nhlt")
    for vpid in (1, 0):
        with start() as cpu:
            if not vpid:
                controls = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
                controls &= ~Proc2.ENABLE_VPID
                cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, controls)
            cpu.mmu.reset_counters()
            exit = cpu.vmlaunch(program)
            while exit.reason is ExitReason.CPUID:
                cpu.skip(exit)
                exit = cpu.vmresume()
            counts = cpu.mmu.counters()
            print(
                f"  VPID {'on ' if vpid else 'off'}: {counts['walks']:>3} walks, "
                f"{counts['invalidated']:>3} entries forgotten"
            )


def a_missing_invalidation() -> None:
    """The VMM changes the guest's page table; who notices?"""
    print("The VMM moves a page of the guest from 'old' to 'new'")
    program = vtx.program(f"load rax, [rdi] rdi={DATA:#x}\ncpuid\nload rbx, [rdi]\nhlt")
    for invalidate in (False, True):
        with start() as cpu:
            tables = guest_tables(cpu)
            cpu.guest.memory[OLD : OLD + 8] = b"old     "
            cpu.guest.memory[NEW : NEW + 8] = b"new     "
            exit = cpu.vmlaunch(program)
            tables.map(DATA, NEW)
            if invalidate:
                cpu.invvpid(ONE_ADDRESS, DATA << 64 | cpu.vmread(Field.VPID))
            cpu.regs.rdi = DATA
            cpu.skip(exit)
            cpu.vmresume()
            seen = cpu.guest.rbx.to_bytes(8, "little").decode().strip()
            print(f"  {'with   ' if invalidate else 'without'} INVVPID the guest reads {seen!r}")


def the_four_types() -> None:
    """What each type of INVVPID leaves in the TLB."""
    print("What is still cached after INVVPID?")
    print("  type  one page  global page  of another VPID")
    kinds = (ONE_ADDRESS, ONE_CONTEXT, ALL_CONTEXTS, ONE_CONTEXT_BUT_GLOBAL)
    for kind in kinds:
        with start() as cpu:
            guest_tables(cpu)
            cpu.vmlaunch(vtx.program("hlt"))
            mine, others = cpu.context, cpu.context.copy()
            others.vpid = 2
            wanted = ((mine, DATA), (mine, OTHER), (others, DATA))
            for context, gva in wanted:
                cpu.mmu.translate(context, gva, Access.LOAD)
            cpu.invvpid(kind, DATA << 64 | 1)
            cached = [
                cpu.mmu.translate(context, gva, Access.LOAD).source.name != "WALK"
                for context, gva in wanted
            ]
            print("  {:>4}  {!s:>8}  {!s:>11}  {!s:>15}".format(kind, *cached))


what_transitions_forget()
a_missing_invalidation()
the_four_types()
