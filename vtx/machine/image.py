"""What a 64-bit guest, and the VMM under it, find in memory before the first VM entry.

The layout is that of a small PC kernel: the first MiB is free for programs, descriptor tables and
stacks follow from 1 MiB, code from 2 MiB, page tables from 3 MiB, and everything from 4 MiB on is
for the guest to hand out. All of it is mapped twice: from linear address 0 (the *low map*, open to
user code, left out for guests whose user programs live there), and for the supervisor alone from
:data:`DIRECT_MAP`, which is how the guest's kernel reaches all of its physical memory.

Under EPT the guest's physical memory is one slot of host memory: host-physical = guest-physical +
:data:`GUEST_BASE`. Without EPT there is nothing between guest-physical and host-physical, so the
same image sits at guest-physical :data:`GUEST_BASE`; `guest_base` tells the two apart below.
Linear addresses are the same in both cases, so a program need not know.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtx.errors import EmulationStopped, InputError
from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.machine.memory import Memory

__all__ = [
    "DIRECT_MAP",
    "GUEST_BASE",
    "HOST_TOP",
    "MAXIMUM_PROCESSORS",
    "TEXT",
    "USER_TEXT",
    "GuestImage",
    "guest_fields",
    "host_fields",
    "write_host",
]

PAGE = 1 << 12
LARGE_PAGE = 1 << 21
GIB = 1 << 30

#: Host-physical address of a guest's memory; the VMM's own structures lie below it.
GUEST_BASE = 1 << 30
#: Linear address at which the guest's kernel sees all guest memory (where Linux has it, too).
DIRECT_MAP = 0xFFFF_8880_0000_0000
#: Logical processors that an image has stacks and task-state segments for.
MAXIMUM_PROCESSORS = 16

# Offsets into the guest's memory.
GDT = 0x10_0000
IDT = 0x10_1000
TSS = 0x10_2000
TSS_STRIDE = 0x80
STACKS = 0x11_0000
STACK_STRIDE = 0x4000
KERNEL_STACK_TOP = 0x2000
DOUBLE_FAULT_STACK_TOP = 0x3000
USER_STACK_TOP = 0x4000
HANDLER_STUBS = 0x18_0000
HANDLER_STRIDE = 0x100
TEXT = 0x20_0000
TEXT_STRIDE = 0x1_0000
PAGE_TABLES = 0x30_0000
FREE = 0x40_0000
MINIMUM_BYTES = 8 << 20
MAXIMUM_BYTES = 63 << 30

#: Linear address of the code that a user program runs between the references of its stream: one
#: page high in the lower half, where Linux puts the vDSO and no program of its own.
USER_TEXT = 0x7FFF_F000_0000
#: First stack pointer of a user program that the guest kernel pages in on demand.
USER_STACK = 0x7FFF_EFFF_FFF0

KERNEL_CS, KERNEL_SS, USER_SS, USER_CS, TR = 0x08, 0x10, 0x1B, 0x23, 0x28
#: Access rights as the VMCS holds them (SDM, "Guest Register State").
CODE64_RIGHTS, DATA_RIGHTS, TSS_RIGHTS, UNUSABLE = 0xA09B, 0xC093, 0x008B, 0x1_0000
USER_RIGHTS = 0x60
TSS_LIMIT = 0x67

#: PE, MP, ET, NE, WP, AM, PG: what a 64-bit kernel runs with, and VMX operation allows.
CR0 = 0x8005_0033
#: PAE, PGE, OSFXSR, OSXMMEXCPT, and VMXE, which VMX operation fixes to 1.
CR4 = 0x26A0
#: SCE, LME, LMA, NXE.
EFER = 0xD01
#: Interrupts enabled; bit 1 is always 1.
RFLAGS = 0x202

#: Vectors whose gates user code may call with INT n: #BP, #OF and the system calls.
USER_VECTORS = frozenset({3, 4, *range(0x80, 0x90)})
DOUBLE_FAULT = 8

# Offsets into the VMM's memory, below GUEST_BASE.
HOST_GDT = 0x10_0000
HOST_IDT = 0x10_1000
HOST_TSS = 0x10_2000
HOST_STACKS = 0x11_0000
HOST_TEXT = 0x18_0000
HOST_PAGE_TABLES = 0x19_0000
#: The VMM's own structures end here; VMX regions, bitmaps and EPT tables come after.
HOST_TOP = 0x20_0000

HOST_CS, HOST_SS, HOST_TR = 0x08, 0x10, 0x18

_PRESENT_WRITABLE, _USER, _ACCESSED, _DIRTY, _LEAF = 0x3, 0x4, 0x20, 0x40, 0x80
_CODE64_DESCRIPTOR, _DATA_DESCRIPTOR = 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF
_DESCRIPTOR_DPL3 = 3 << 45


def _tss_descriptor(base: int) -> tuple[int, int]:
    """Return both halves of the descriptor of a busy 64-bit TSS at `base`."""
    low = TSS_LIMIT | (base & 0xFF_FFFF) << 16 | 0x8B << 40 | (base >> 24 & 0xFF) << 56
    return low, base >> 32


def _gate(vector: int, offset: int) -> bytes:
    """Return the 64-bit interrupt gate of `vector` (SDM, "64-Bit Mode IDT")."""
    stack = 1 if vector == DOUBLE_FAULT else 0
    privilege = 3 if vector in USER_VECTORS else 0
    rights = 0x8E | privilege << 5
    return struct.pack(
        "<HHBBHII",
        offset & 0xFFFF,
        KERNEL_CS,
        stack,
        rights,
        offset >> 16 & 0xFFFF,
        offset >> 32,
        0,
    )


def kernel_stack(processor: int = 0) -> int:
    """Return the first stack pointer of the guest kernel on logical processor `processor`."""
    return DIRECT_MAP + STACKS + processor * STACK_STRIDE + KERNEL_STACK_TOP


def guest_fields(
    *, processor: int = 0, guest_base: int = 0, user: bool = False, low_map: bool = True
) -> dict[Field, int]:
    """Return the guest-state fields of a 64-bit guest that stands at its first instruction.

    Parameters
    ----------
    processor : int
        Logical processor, 0 to 15: each has its own stacks and task-state segment.
    guest_base : int
        0 under EPT, :data:`GUEST_BASE` without it.
    user : bool
        Start at privilege level 3 instead of 0.
    low_map : bool
        Guest memory is mapped from linear address 0, too, and code stands there; without that it
        stands above `DIRECT_MAP` (the kernel's) or at `USER_TEXT` (user programs').
    """
    rights = USER_RIGHTS if user else 0
    code, data = (USER_CS, USER_SS) if user else (KERNEL_CS, KERNEL_SS)
    fields = {
        Field.GUEST_CR0: CR0,
        Field.GUEST_CR3: guest_base + PAGE_TABLES,
        Field.GUEST_CR4: CR4,
        Field.GUEST_DR7: 0x400,
        Field.GUEST_IA32_EFER: EFER,
        Field.GUEST_IA32_PAT: 0x0007_0406_0007_0406,
        Field.GUEST_RFLAGS: RFLAGS,
        Field.GUEST_RIP: entry_point(processor, user=user, low_map=low_map),
        Field.GUEST_RSP: stack_pointer(processor, user=user, low_map=low_map),
        Field.GUEST_GDTR_BASE: DIRECT_MAP + GDT,
        Field.GUEST_GDTR_LIMIT: TR + 16 * MAXIMUM_PROCESSORS - 1,
        Field.GUEST_IDTR_BASE: DIRECT_MAP + IDT,
        Field.GUEST_IDTR_LIMIT: 256 * 16 - 1,
        Field.GUEST_LDTR_ACCESS_RIGHTS: UNUSABLE,
        Field.GUEST_TR_SELECTOR: TR + 16 * processor,
        Field.GUEST_TR_BASE: DIRECT_MAP + TSS + processor * TSS_STRIDE,
        Field.GUEST_TR_LIMIT: TSS_LIMIT,
        Field.GUEST_TR_ACCESS_RIGHTS: TSS_RIGHTS,
        Field.GUEST_CS_SELECTOR: code,
        Field.GUEST_CS_LIMIT: 0xFFFF_FFFF,
        Field.GUEST_CS_ACCESS_RIGHTS: CODE64_RIGHTS | rights,
    }
    for name in ("SS", "DS", "ES", "FS", "GS"):
        fields[Field[f"GUEST_{name}_SELECTOR"]] = data
        fields[Field[f"GUEST_{name}_LIMIT"]] = 0xFFFF_FFFF
        fields[Field[f"GUEST_{name}_ACCESS_RIGHTS"]] = DATA_RIGHTS | rights
    return fields


def entry_point(processor: int = 0, *, user: bool = False, low_map: bool = True) -> int:
    """Return the linear address of a guest's first instruction."""
    offset = processor * TEXT_STRIDE
    if low_map:
        return TEXT + offset
    return (USER_TEXT if user else DIRECT_MAP + TEXT) + offset


def stack_pointer(processor: int = 0, *, user: bool = False, low_map: bool = True) -> int:
    """Return a guest's first stack pointer."""
    if not user:
        return kernel_stack(processor)
    if low_map:
        return STACKS + processor * STACK_STRIDE + USER_STACK_TOP
    return USER_STACK - processor * LARGE_PAGE


def handler_address(vector: int) -> int:
    """Return the linear address that the gate of `vector` leads to in a new image."""
    return DIRECT_MAP + HANDLER_STUBS + vector * HANDLER_STRIDE


def host_fields(processor: int = 0) -> dict[Field, int]:
    """Return the host-state fields of a 64-bit VMM on logical processor `processor`.

    They refer to what :func:`write_host` puts into memory.
    """
    selectors = {Field[f"HOST_{name}_SELECTOR"]: HOST_SS for name in ("SS", "DS", "ES", "FS", "GS")}
    return selectors | {
        Field.HOST_CS_SELECTOR: HOST_CS,
        Field.HOST_TR_SELECTOR: HOST_TR + 16 * processor,
        Field.HOST_CR0: CR0,
        Field.HOST_CR3: HOST_PAGE_TABLES,
        Field.HOST_CR4: CR4,
        Field.HOST_IA32_EFER: EFER,
        Field.HOST_IA32_PAT: 0x0007_0406_0007_0406,
        Field.HOST_TR_BASE: HOST_TSS + processor * TSS_STRIDE,
        Field.HOST_GDTR_BASE: HOST_GDT,
        Field.HOST_IDTR_BASE: HOST_IDT,
        Field.HOST_RSP: HOST_STACKS + processor * STACK_STRIDE + KERNEL_STACK_TOP,
        Field.HOST_RIP: HOST_TEXT,
    }


def write_host(memory: Memory) -> None:
    """Write the VMM's GDT, task-state segments and page tables (identity, 2-MiB pages, 1 GiB)."""
    descriptors = [0, _CODE64_DESCRIPTOR, _DATA_DESCRIPTOR]
    for processor in range(MAXIMUM_PROCESSORS):
        descriptors += _tss_descriptor(HOST_TSS + processor * TSS_STRIDE)
    memory.write(HOST_GDT, struct.pack(f"<{len(descriptors)}Q", *descriptors))
    tables = HOST_PAGE_TABLES
    memory.write_u64(tables, tables + PAGE | _PRESENT_WRITABLE)
    memory.write_u64(tables + PAGE, tables + 2 * PAGE | _PRESENT_WRITABLE)
    _write_large_pages(memory, tables + 2 * PAGE, 0, 512, _PRESENT_WRITABLE | _ACCESSED | _DIRTY)


def _write_large_pages(memory: Memory, table: int, first: int, count: int, flags: int) -> None:
    """Fill the page directory at host-physical `table` with `count` 2-MiB pages from `first`."""
    entries = [first + index * LARGE_PAGE | flags | _LEAF for index in range(count)]
    memory.write(table, struct.pack(f"<{count}Q", *entries))


@dataclass
class GuestImage:
    """A 64-bit guest's tables in memory, and the frames its kernel has not handed out yet.

    Parameters
    ----------
    memory : Memory
        The machine's physical memory.
    size_bytes : int
        The guest's memory: a multiple of 2 MiB from 8 MiB to 63 GiB.
    base : int
        Host-physical address of the guest's memory.
    guest_base : int
        Guest-physical address of the same: 0 under EPT, equal to `base` without it.
    low_map : bool
        Map guest memory from linear address 0, too, and let user code use it.

    Raises
    ------
    InputError
        The size is impossible, or the memory ends before the guest's does.
    """

    memory: Memory
    size_bytes: int = GIB
    base: int = GUEST_BASE
    guest_base: int = 0
    low_map: bool = True

    def __post_init__(self) -> None:
        if self.size_bytes % LARGE_PAGE or not MINIMUM_BYTES <= self.size_bytes <= MAXIMUM_BYTES:
            raise InputError(
                f"a guest memory of {self.size_bytes} bytes is impossible",
                hint="give a multiple of 2 MiB from 8 MiB to 63 GiB",
            )
        if self.base + self.size_bytes > self.memory.size_bytes:
            raise InputError(
                f"a guest memory of {self.size_bytes:#x} bytes at {self.base:#x} does not fit into "
                f"the machine's memory of {self.memory.size_bytes:#x} bytes",
                hint="give the machine more memory, or the guest less",
            )
        self._next_frame = self.guest_base + FREE
        self._next_large = self.guest_base + self.size_bytes

    @property
    def cr3(self) -> int:
        """Guest-physical address of the PML4 table."""
        return self.guest_base + PAGE_TABLES

    def host_physical(self, guest_physical: int) -> int:
        """Return where guest-physical address `guest_physical` lies in the machine's memory.

        Raises
        ------
        InputError
            The address is not in the guest's memory.
        """
        offset = guest_physical - self.guest_base
        if not 0 <= offset < self.size_bytes:
            raise InputError(
                f"guest-physical address {guest_physical:#x} is beyond the guest's memory of "
                f"{self.size_bytes:#x} bytes"
            )
        return self.base + offset

    def kernel_address(self, guest_physical: int) -> int:
        """Return the linear address at which the guest's kernel sees `guest_physical`."""
        return DIRECT_MAP + guest_physical - self.guest_base

    def allocate_frame(self) -> int:
        """Return the guest-physical address of a 4-KiB frame that nothing uses yet.

        Raises
        ------
        EmulationStopped
            The guest's memory is used up.
        """
        frame = self._next_frame
        if frame + PAGE > self._next_large:
            raise self._out_of_memory()
        self._next_frame += PAGE
        return frame

    def allocate_large_frame(self) -> int:
        """Return the guest-physical address of an unused 2-MiB frame (raises as above)."""
        frame = self._next_large - LARGE_PAGE
        if frame < self._next_frame:
            raise self._out_of_memory()
        self._next_large = frame
        return frame

    def _out_of_memory(self) -> EmulationStopped:
        return EmulationStopped(
            f"the guest has used up its memory of {self.size_bytes:#x} bytes; give it more"
        )

    @property
    def frames_used(self) -> int:
        """4-KiB frames that were handed out one by one."""
        return (self._next_frame - self.guest_base - FREE) // PAGE

    def install(self) -> None:
        """Write descriptor tables, task-state segments and page tables into memory."""
        self._write_gdt()
        self._write_idt()
        self._write_task_states()
        self._write_page_tables()

    def handler_address(self, vector: int) -> int:
        """Return the linear address of the first instruction of the handler of `vector`."""
        return handler_address(vector)

    def set_gate(self, vector: int, handler: int) -> None:
        """Let the gate of `vector` lead to linear address `handler`."""
        self.memory.write(self.base + IDT + 16 * vector, _gate(vector, handler))

    def _write_gdt(self) -> None:
        descriptors = [
            0,
            _CODE64_DESCRIPTOR,
            _DATA_DESCRIPTOR,
            _DATA_DESCRIPTOR | _DESCRIPTOR_DPL3,
            _CODE64_DESCRIPTOR | _DESCRIPTOR_DPL3,
        ]
        for processor in range(MAXIMUM_PROCESSORS):
            tss = DIRECT_MAP + TSS + processor * TSS_STRIDE
            descriptors += _tss_descriptor(tss)
        self.memory.write(self.base + GDT, struct.pack(f"<{len(descriptors)}Q", *descriptors))

    def _write_idt(self) -> None:
        gates = b"".join(_gate(vector, self.handler_address(vector)) for vector in range(256))
        self.memory.write(self.base + IDT, gates)

    def _write_task_states(self) -> None:
        """Write RSP0, IST1 (for double faults) and an I/O map base beyond the limit."""
        for processor in range(MAXIMUM_PROCESSORS):
            stacks = DIRECT_MAP + STACKS + processor * STACK_STRIDE
            pointers = [stacks + KERNEL_STACK_TOP, 0, 0, 0, stacks + DOUBLE_FAULT_STACK_TOP]
            state = struct.pack("<I12Q", 0, *pointers, *[0] * 7) + struct.pack("<HH", 0, 0x68)
            self.memory.write(self.base + TSS + processor * TSS_STRIDE, state)

    def _write_page_tables(self) -> None:
        """Write the PML4 table and below it the direct map and, if wanted, the low map."""
        self._next_table = self.cr3
        pml4 = self._new_table()
        for linear in (DIRECT_MAP, 0) if self.low_map else (DIRECT_MAP,):
            flags = _PRESENT_WRITABLE | _ACCESSED | (0 if linear == DIRECT_MAP else _USER)
            pdpt = self._new_table()
            self.memory.write_u64(pml4 + 8 * (linear >> 39 & 511), self._guest(pdpt) | flags)
            for index, start in enumerate(range(0, self.size_bytes, GIB)):
                directory = self._new_table()
                self.memory.write_u64(pdpt + 8 * index, self._guest(directory) | flags)
                pages = min(GIB, self.size_bytes - start) // LARGE_PAGE
                first = self.guest_base + start
                _write_large_pages(self.memory, directory, first, pages, flags | _DIRTY)

    def _new_table(self) -> int:
        """Return the host-physical address of the next page for a table of the image."""
        table = self.host_physical(self._next_table)
        self._next_table += PAGE
        return table

    def _guest(self, host_physical: int) -> int:
        """Return the guest-physical address of a place in the guest's memory."""
        return host_physical - self.base + self.guest_base
