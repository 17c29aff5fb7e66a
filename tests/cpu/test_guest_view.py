"""The guest by name: registers, memory, what exits as sets, details of an exit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vtx
from vtx import Cpu, ExitReason, Field, Msr, Proc1, Proc2, Vmcs
from vtx.errors import InputError, NotSupported, UnknownName, UsageError
from vtx.facts.exits import EXITS
from vtx.facts.vectors import EXCEPTIONS, exception_name, find_exception
from vtx.machine.exit_details import Details, exit_layouts
from vtx.machine.guest_memory import NotMapped, guest_physical
from vtx.machine.image import DIRECT_MAP, GUEST_BASE
from vtx.machine.program import Instruction, Program
from vtx.machine.registers import Segment


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu("ice_lake_sp") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        yield cpu


def run(cpu: Cpu, *steps: tuple[str, dict[str, int]]) -> vtx.Exit:
    return cpu.vmlaunch(Program([Instruction(name, operands) for name, operands in steps]))


def resume(cpu: Cpu) -> vtx.Exit:
    """Enter the guest again, its pages mapped whenever it needs one."""
    exit = cpu.vmresume()
    while exit.reason is ExitReason.EPT_VIOLATION:
        cpu.ept.map(exit.ept.gpa)
        exit = cpu.vmresume()
    return exit


def launch(cpu: Cpu, *steps: tuple[str, dict[str, int]]) -> vtx.Exit:
    exit = run(cpu, *steps)
    if exit.reason is ExitReason.EPT_VIOLATION:
        cpu.ept.map(exit.ept.gpa)
        exit = resume(cpu)
    return exit


def test_registers_are_the_processors_or_the_vmcss(cpu: Cpu) -> None:
    cpu.guest.rbx = 7
    assert cpu.regs.rbx == 7
    cpu.guest.rip = 0xFFFF_8880_0020_0000
    assert cpu.vmread(Field.GUEST_RIP) == 0xFFFF_8880_0020_0000
    cpu.guest.rsp = 0x1234
    assert (cpu.vmread(Field.GUEST_RSP), cpu.guest.rsp) == (0x1234, 0x1234)
    assert cpu.regs.rsp != 0x1234
    assert cpu.guest.cr0 == cpu.vmread(Field.GUEST_CR0)
    assert cpu.guest.efer & 0x400


def test_reading_a_field_of_the_guest_counts_as_a_vmread(cpu: Cpu) -> None:
    from vtx.machine.events import Event

    before = cpu.events.total(Event.VMREAD)
    assert cpu.guest.rip
    cpu.guest.rip = 5
    assert cpu.events.total(Event.VMREAD) == before + 1


def test_segments(cpu: Cpu) -> None:
    assert cpu.guest.cs.selector == 8
    cpu.guest.fs.base = 0x7000
    assert cpu.vmread(Field.GUEST_FS_BASE) == 0x7000
    cpu.guest.gs = Segment(0x10, 0x9000, 0xFFFF, 0xC093)
    assert cpu.vmread(Field.GUEST_GS_LIMIT) == 0xFFFF
    assert cpu.guest.gs.access_rights == 0xC093
    with pytest.raises(AttributeError, match="selector, base, limit"):
        _ = cpu.guest.cs.flags


def test_a_misspelt_register_says_what_may_have_been_meant(cpu: Cpu) -> None:
    with pytest.raises(AttributeError, match="did you mean rflags"):
        _ = cpu.guest.rflag
    with pytest.raises(AttributeError, match="did you mean rax"):
        cpu.guest.raxx = 1
    with pytest.raises(UsageError, match="64 bits"):
        cpu.guest.rax = 1 << 64


def test_a_guest_needs_a_current_vmcs() -> None:
    with Cpu() as cpu:
        cpu.vmxon()
        for view in ("guest", "exiting"):
            with pytest.raises(UsageError, match="VMPTRLD"):
                getattr(cpu, view)


def test_physical_memory_in_slices(cpu: Cpu) -> None:
    cpu.guest.memory[0x5000:0x5004] = b"abcd"
    assert cpu.memory.read(GUEST_BASE + 0x5000, 4) == b"abcd"
    assert cpu.guest.memory[0x5001] == ord("b")
    cpu.guest.memory[0x5001] = 0x42
    assert cpu.guest.memory[0x5000:0x5004] == b"aBcd"
    cpu.ept.map(0x6000, 0x80_0000)
    cpu.guest.memory[0x5FFE:] = b"wxyz"
    assert cpu.memory.read(0x80_0000, 2) == b"yz"
    assert cpu.guest.memory[0x5FFE:0x6002] == b"wxyz"


def test_slices_that_make_no_sense(cpu: Cpu) -> None:
    memory = cpu.guest.memory
    for bad in (slice(None, 5), slice(5, None), slice(0, 8, 2)):
        with pytest.raises(UsageError, match="slice"):
            memory[bad]
    with pytest.raises(UsageError, match="4 bytes of memory cannot be set to 3"):
        memory[0:4] = b"abc"
    with pytest.raises(UsageError, match="not to a number"):
        memory[0:4] = 7
    with pytest.raises(UsageError, match="negative"):
        memory[-1]


def test_linear_memory_goes_through_the_guests_tables(cpu: Cpu) -> None:
    cpu.guest.memory[0x5000:0x5003] = b"abc"
    assert cpu.guest.linear[DIRECT_MAP + 0x5000 : DIRECT_MAP + 0x5003] == b"abc"
    assert cpu.guest.linear.physical(DIRECT_MAP + 0x5000) == 0x5000
    cpu.guest.linear[0x5001] = 0x7A
    assert cpu.guest.memory[0x5000:0x5003] == b"azc"
    with pytest.raises(NotMapped, match="0x7fff00000000"):
        cpu.guest.linear[0x7FFF_0000_0000]


class _Modes:
    """Paging registers, and page tables in a dictionary."""

    def __init__(self, cr0: int, cr4: int, efer: int) -> None:
        self.cr0, self.cr3, self.cr4, self.efer = cr0, 0x1000, cr4, efer
        self.entries: dict[int, int] = {}

    def read(self, address: int, size: int) -> int:
        return self.entries.get(address, 0) & ((1 << 8 * size) - 1)


def test_32_bit_paging() -> None:
    modes = _Modes(1 << 31, 0x10, 0)
    modes.entries = {0x1000 + 4 * 1: 0x2001, 0x2000 + 4 * 3: 0x7001, 0x1000 + 4 * 2: 0x40_2081}
    assert guest_physical(modes, modes.read, 0x40_3123) == 0x7123
    # A 4-MByte page: bits 20:13 of the entry are bits 39:32 of the address.
    assert guest_physical(modes, modes.read, 0x80_0123) == 0x1_0040_0123
    with pytest.raises(NotMapped):
        guest_physical(modes, modes.read, 0xC0_0000)
    modes.cr4 = 0
    with pytest.raises(NotMapped):  # without PSE, bit 7 means nothing and the table is empty
        guest_physical(modes, modes.read, 0x80_0123)


def test_pae_paging() -> None:
    modes = _Modes(1 << 31, 0x20, 0)
    modes.entries = {0x1000 + 8: 0x2001, 0x2000 + 8 * 2: 0x3001, 0x3000: 0x5_0000_4001}
    assert guest_physical(modes, modes.read, 0x4040_0005) == 0x5_0000_4005
    modes.entries[0x2000 + 8 * 2] = 0x60_0081
    assert guest_physical(modes, modes.read, 0x4040_0005) == 0x60_0005
    with pytest.raises(NotMapped):
        guest_physical(modes, modes.read, 0)


def test_no_paging_and_five_levels() -> None:
    modes = _Modes(0, 0, 0)
    assert guest_physical(modes, modes.read, 0x1_2345_6789) == 0x2345_6789
    modes = _Modes(1 << 31, 0x1020, 0x500)
    gva = 1 << 48 | 2 << 39 | 3 << 30 | 5
    modes.entries = {0x1008: 0x2001, 0x2010: 0x3001, 0x3018: 0x4000_0081}
    assert guest_physical(modes, modes.read, gva) == 0x4000_0005


@settings(max_examples=25, deadline=None)
@given(st.integers(0, (1 << 30) - 1))
def test_the_software_walk_agrees_with_the_processors(gpa: int) -> None:
    with Cpu("skylake_sp") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        with pytest.raises(vtx.EndOfTrace):
            cpu.ept.map(0, size="1G")
            run(cpu, ("nop", {}))
        walk = cpu.mmu.translate(cpu.context, DIRECT_MAP + gpa, 1)
        cpu.non_root = False
        assert GUEST_BASE + cpu.guest.linear.physical(DIRECT_MAP + gpa) == walk.hpa


# ---- What exits, as sets ------------------------------------------------------------------------


def test_the_first_port_turns_the_bitmaps_on(cpu: Cpu) -> None:
    assert 0x80 in cpu.exiting.ports  # unconditional I/O exiting
    assert len(cpu.exiting.ports) == 0x1_0000
    cpu.exiting.ports.add(0x3F8)
    assert cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS) & Proc1.USE_IO_BITMAPS
    assert set(cpu.exiting.ports) == {0x3F8}
    cpu.exiting.ports |= {0x8000, 0xFFFF}
    page_b = cpu.vmread(Field.IO_BITMAP_B)
    assert cpu.memory.read_u8(page_b) == 1
    assert cpu.memory.read_u8(page_b + 4095) == 0x80
    cpu.exiting.ports.discard(0x3F8)
    assert sorted(cpu.exiting.ports) == [0x8000, 0xFFFF]
    cpu.exiting.ports = {0x70}
    assert set(cpu.exiting.ports) == {0x70}
    assert "0x70" in repr(cpu.exiting.ports)


def test_the_guest_exits_where_the_set_says_so(cpu: Cpu) -> None:
    cpu.exiting.ports = {0x61}
    cpu.exiting.msr_reads = {"IA32_EFER"}
    exit = launch(
        cpu,
        ("rdmsr", {"msr": Msr.IA32_PAT}),
        ("out", {"port": 0x80, "value": 1, "size": 1}),
        ("in", {"port": 0x61, "size": 1}),
        ("rdmsr", {"msr": Msr.IA32_EFER}),
        ("hlt", {}),
    )
    assert exit.reason is ExitReason.IO_INSTRUCTION
    assert exit.io.port == exit.details.port == 0x61
    cpu.skip(exit)
    exit = resume(cpu)
    assert exit.reason is ExitReason.RDMSR
    assert exit.msr.index == exit.msr.address == Msr.IA32_EFER


def test_msr_bitmaps_have_four_quarters(cpu: Cpu) -> None:
    cpu.exiting.msr_reads |= {0x10, 0xC000_0080}
    cpu.exiting.msr_writes |= {"IA32_PAT", 0xC000_0081}
    base = cpu.vmread(Field.MSR_BITMAP)
    assert cpu.memory.read_u8(base + 0x10 // 8) == 1
    assert cpu.memory.read_u8(base + 1024 + 0x80 // 8) == 1
    assert cpu.memory.read_u8(base + 2048 + 0x277 // 8) == 1 << 0x277 % 8
    assert cpu.memory.read_u8(base + 3072 + 0x80 // 8) == 2
    cpu.exiting.msr_reads.clear()
    assert set(cpu.exiting.msr_reads) == set()
    assert set(cpu.exiting.msr_writes) == {0x277, 0xC000_0081}
    for outside in (0x2000, 0x4000_0000, 0xC000_2000, -1):
        assert outside not in cpu.exiting.msr_reads
        with pytest.raises(InputError, match=r"exit|bitmap"):
            cpu.exiting.msr_reads.add(outside)


def test_exceptions_by_name(cpu: Cpu) -> None:
    cpu.exiting.exceptions |= {"#PF", "gp", 6}
    assert cpu.vmread(Field.EXCEPTION_BITMAP) == 1 << 14 | 1 << 13 | 1 << 6
    assert "#GP" in cpu.exiting.exceptions
    cpu.exiting.exceptions.remove("#GP")
    assert cpu.exiting.exceptions | {1} == {1, 6, 14}
    with pytest.raises(UnknownName, match="#PF"):
        cpu.exiting.exceptions.add("#PG")
    with pytest.raises(InputError):
        cpu.exiting.exceptions.add(32)


def test_shadowed_fields_and_eois(cpu: Cpu) -> None:
    cpu.exiting.vmreads.add("guest_rip")
    assert cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS) & Proc2.VMCS_SHADOWING
    assert set(cpu.exiting.vmreads) == {int(Field.GUEST_RIP)}
    assert len(cpu.exiting.vmwrites) == 1 << 15  # goes on exiting always
    cpu.exiting.eois |= {0x41, 0xFF}
    assert cpu.vmread(Field.EOI_EXIT_BITMAP_1) == 2
    assert set(cpu.exiting.eois) == {0x41, 0xFF}


def test_a_set_that_is_none(cpu: Cpu) -> None:
    with pytest.raises(AttributeError, match="did you mean ports"):
        _ = cpu.exiting.port


def test_a_cpu_without_the_control() -> None:
    with Cpu("sandy_bridge") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        with pytest.raises(NotSupported, match="vmcs shadowing"):
            cpu.exiting.vmreads.add(Field.GUEST_RIP)


# ---- Events by name, details --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [("#GP", 0x8000_0B0D), ("NMI", 0x8000_0202), ("#UD", 0x8000_0306), ("bp", 0x8000_0603)],
)
def test_events_are_injected_by_name(cpu: Cpu, name: str, word: int) -> None:
    cpu.inject(name)
    assert cpu.vmread(Field.VM_ENTRY_INTERRUPTION_INFORMATION) == word


def test_an_exception_that_does_not_exist(cpu: Cpu) -> None:
    with pytest.raises(UnknownName, match="exception"):
        cpu.inject("#XX")


def test_names_and_vectors_of_exceptions() -> None:
    assert all(find_exception(name) == vector for vector, name in EXCEPTIONS.items())
    assert find_exception("#PF(0x2)") == 14
    assert exception_name(32) == "vector 32"


def test_details_are_named_parts(cpu: Cpu) -> None:
    exit = launch(cpu, ("cpuid", {}), ("hlt", {}))
    assert exit.reason is ExitReason.CPUID
    assert dict(exit.details) == {}
    with pytest.raises(AttributeError, match="detail of this exit"):
        _ = exit.details.port


@given(st.sampled_from(list(EXITS)), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_any_exit_has_details(reason: ExitReason, qualification: int, information: int) -> None:
    layouts = exit_layouts(reason, None, nmi=False)
    words = [
        (layout, word)
        for layout, word in zip(layouts, (qualification, information), strict=True)
        if layout
    ]
    details = Details(words)
    for name, value in details.items():
        assert getattr(details, name) == value
        assert details.meaning(name)
    assert repr(details).startswith("<")


def test_registers_by_name(cpu: Cpu) -> None:
    cpu.guest["rbx"] = 7
    cpu.guest["rsp"] = 0x9000
    assert (cpu.guest.rbx, cpu.guest["rsp"], cpu.vmread(Field.GUEST_RSP)) == (7, 0x9000, 0x9000)
    with pytest.raises(UnknownName, match="did you mean rax"):
        cpu.guest["eax"]
    with pytest.raises(UnknownName):
        cpu.guest["memory"] = b""


def test_one_element_is_no_set(cpu: Cpu) -> None:
    with pytest.raises(InputError, match=r"one element.*write \{'#PF'\}"):
        cpu.exiting.exceptions = "#PF"
    with pytest.raises(InputError, match="one element"):
        cpu.exiting.ports |= 5
    with pytest.raises(InputError, match=r"not one I/O port.*update"):
        cpu.exiting.ports.add(range(8))
    assert not cpu.exiting.exceptions
