"""What a guest outside IA-32e mode finds in memory: tables, stacks and code of four modes.

==================  ===============================================================================
``protected``       32-bit protected mode, 32-bit paging with 4-MiB pages
``pae``             32-bit protected mode, PAE paging with 2-MiB pages
``virtual_8086``    an 8086 program in virtual-8086 mode (IOPL 3) over the tables of ``protected``
``real``            real-address mode without paging, for CPUs with unrestricted guests
==================  ===============================================================================

Memory is mapped from linear address 0 for kernel and user alike. GDT, IDT and TSS stand where the
64-bit image has them (:mod:`vtx.machine.image`), with the same selectors; handlers of interrupts
too, but those of a real-address guest at ``1000:0100`` and every 128 bytes from there. 8086
programs begin at ``0000:8000`` with their stack below ``0000:7000``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vtx.facts.fields import Field
from vtx.machine import image as layout

if TYPE_CHECKING:
    from vtx.machine.image import GuestImage

__all__ = ["MODES", "code_bits", "entry_point", "guest_fields", "handler_bits", "install"]

#: Modes of a guest by the name that traces use; ``long`` is the 64-bit image's.
MODES = ("long", "protected", "pae", "virtual_8086", "real")

MAXIMUM_BYTES = 2 << 30
_TEXT_8086, _TEXT_8086_STRIDE = 0x8000, 0x800
_STACK_8086, _STACK_8086_STRIDE = 0x7000, 0x400
_HANDLERS_8086, _FIRST_HANDLER_8086, _STRIDE_8086 = 0x1000, 0x100, 0x80
_REAL_TABLE_BYTES = 0x400
_CODE32, _DATA32, _DPL3 = 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 3 << 45
_CODE32_RIGHTS, _DATA32_RIGHTS, _USER_RIGHTS = 0xC09B, 0xC093, 0x60
_RIGHTS_8086, _REAL_CODE_RIGHTS, _REAL_DATA_RIGHTS = 0xF3, 0x9B, 0x93
_FLAT, _SEGMENT_8086 = 0xFFFF_FFFF, 0xFFFF
#: PE, MP, ET, NE, WP, AM, PG; ET and NE alone in real-address mode.
_CR0, _REAL_CR0 = 0x8005_0033, 0x30
_PSE, _PAE, _VMXE = 0x10, 0x20, 0x2000
_IF_AND_IOPL3_AND_VM = 0x2_3202
_IF = 0x202
_MAPPED_LARGE = 0xE7  # present, writable, user, accessed, dirty, large
_PRESENT = 1
_4_MIB = 4 << 20
_PDPTES = 4
_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS")


def code_bits(mode: str) -> int:
    """Return the width of the program's code in a mode: 16, 32 or 64."""
    return {"long": 64, "real": 16, "virtual_8086": 16}.get(mode, 32)


def handler_bits(mode: str) -> int:
    """Return the width of the code of interrupt handlers in a mode."""
    return {"long": 64, "real": 16}.get(mode, 32)


def entry_point(mode: str, processor: int = 0) -> int:
    """Return RIP of a guest's first instruction."""
    if code_bits(mode) == 16:
        return _TEXT_8086 + processor * _TEXT_8086_STRIDE
    return layout.TEXT + processor * layout.TEXT_STRIDE


def install(image: GuestImage, mode: str) -> None:
    """Write the tables of a mode into the memory of a guest."""
    if mode == "real":
        entries = [
            _HANDLERS_8086 << 16 | _FIRST_HANDLER_8086 + vector * _STRIDE_8086
            for vector in range(256)
        ]
        image.memory.write(image.base, struct.pack("<256I", *entries))
        return
    _write_descriptors(image)
    if mode == "pae":
        _write_pae_tables(image)
    else:
        pages = range(0, image.size_bytes, _4_MIB)
        entries = [image.guest_base + page | _MAPPED_LARGE for page in pages]
        table = struct.pack(f"<{len(entries)}I", *entries)
        image.memory.write(image.base + layout.PAGE_TABLES, table)


def _write_descriptors(image: GuestImage) -> None:
    """Write GDT, IDT and the task-state segments."""
    descriptors = [0, _CODE32, _DATA32, _DATA32 | _DPL3, _CODE32 | _DPL3]
    for processor in range(layout.MAXIMUM_PROCESSORS):
        base = layout.TSS + processor * layout.TSS_STRIDE
        low, high = base & 0xFF_FFFF, base >> 24
        descriptors += [layout.TSS_LIMIT | low << 16 | 0x8B << 40 | high << 56, 0]
        stack = layout.STACKS + processor * layout.STACK_STRIDE + layout.KERNEL_STACK_TOP
        state = struct.pack("<III", 0, stack, layout.KERNEL_SS).ljust(0x66, b"\0")
        state += struct.pack("<H", layout.TSS_LIMIT + 1)
        image.memory.write(image.base + base, state)
    gdt = struct.pack(f"<{len(descriptors)}Q", *descriptors)
    image.memory.write(image.base + layout.GDT, gdt)
    image.memory.write(image.base + layout.IDT, b"".join(map(_gate, range(256))))


def _gate(vector: int) -> bytes:
    """Return the 32-bit interrupt gate of a vector."""
    offset = layout.HANDLER_STUBS + vector * layout.HANDLER_STRIDE
    rights = 0xEE if vector in layout.USER_VECTORS else 0x8E
    low, high = offset & 0xFFFF, offset >> 16
    return struct.pack("<HHBBH", low, layout.KERNEL_CS, 0, rights, high)


def _directory(image: GuestImage, index: int) -> int:
    """Return the guest-physical address of a page directory of PAE paging."""
    return image.guest_base + layout.PAGE_TABLES + layout.PAGE * (1 + index)


def _write_pae_tables(image: GuestImage) -> None:
    pointers = [_directory(image, index) | _PRESENT for index in range(_PDPTES)]
    table = struct.pack(f"<{_PDPTES}Q", *pointers)
    image.memory.write(image.base + layout.PAGE_TABLES, table)
    pages = range(0, image.size_bytes, layout.LARGE_PAGE)
    entries = [image.guest_base + page | _MAPPED_LARGE for page in pages]
    directories = image.base + layout.PAGE_TABLES + layout.PAGE
    image.memory.write(directories, struct.pack(f"<{len(entries)}Q", *entries))


def guest_fields(
    mode: str, *, processor: int = 0, guest_base: int = 0, user: bool = False
) -> dict[Field, int]:
    """Return the guest-state fields of a guest that stands at its first instruction.

    Parameters
    ----------
    mode : str
        One of :data:`MODES` but ``long``.
    processor : int
        Logical processor, 0 to 15.
    guest_base : int
        0 under EPT, :data:`vtx.machine.image.GUEST_BASE` without it.
    user : bool
        Start at privilege level 3; 8086 programs have theirs from the mode.
    """
    fields = _system_fields(mode, processor, guest_base) | {
        Field.GUEST_RIP: entry_point(mode, processor),
        Field.GUEST_IA32_EFER: 0,
    }
    if code_bits(mode) == 16:
        fields[Field.GUEST_RSP] = _STACK_8086 - processor * _STACK_8086_STRIDE
        for name in _SEGMENTS:
            rights = _REAL_CODE_RIGHTS if name == "CS" else _REAL_DATA_RIGHTS
            rights = rights if mode == "real" else _RIGHTS_8086
            fields |= _segment(name, 0, _SEGMENT_8086, rights)
        return fields
    top = layout.USER_STACK_TOP if user else layout.KERNEL_STACK_TOP
    fields[Field.GUEST_RSP] = layout.STACKS + processor * layout.STACK_STRIDE + top
    code, data = (layout.USER_CS, layout.USER_SS) if user else (layout.KERNEL_CS, layout.KERNEL_SS)
    for name in _SEGMENTS:
        rights = _CODE32_RIGHTS if name == "CS" else _DATA32_RIGHTS
        rights |= _USER_RIGHTS if user else 0
        fields |= _segment(name, code if name == "CS" else data, _FLAT, rights)
    return fields


def _segment(name: str, selector: int, limit: int, rights: int) -> dict[Field, int]:
    values = {"SELECTOR": selector, "BASE": 0, "LIMIT": limit, "ACCESS_RIGHTS": rights}
    return {Field[f"GUEST_{name}_{part}"]: value for part, value in values.items()}


def _system_fields(mode: str, processor: int, guest_base: int) -> dict[Field, int]:
    """Return control registers, flags, and the system tables' registers."""
    if mode == "real":
        return {
            Field.GUEST_CR0: _REAL_CR0,
            Field.GUEST_CR3: 0,
            Field.GUEST_CR4: _VMXE,
            Field.GUEST_RFLAGS: _IF,
            Field.GUEST_GDTR_BASE: 0,
            Field.GUEST_GDTR_LIMIT: _SEGMENT_8086,
            Field.GUEST_IDTR_BASE: 0,
            Field.GUEST_IDTR_LIMIT: _REAL_TABLE_BYTES - 1,
            **_segment("TR", 0, _SEGMENT_8086, layout.TSS_RIGHTS),
        }
    paging = _PAE if mode == "pae" else _PSE
    fields = {
        Field.GUEST_CR0: _CR0,
        Field.GUEST_CR3: guest_base + layout.PAGE_TABLES,
        Field.GUEST_CR4: _VMXE | paging,
        Field.GUEST_RFLAGS: _IF_AND_IOPL3_AND_VM if mode == "virtual_8086" else _IF,
        Field.GUEST_GDTR_BASE: layout.GDT,
        Field.GUEST_GDTR_LIMIT: layout.TR + 16 * layout.MAXIMUM_PROCESSORS - 1,
        Field.GUEST_IDTR_BASE: layout.IDT,
        Field.GUEST_IDTR_LIMIT: 256 * 8 - 1,
        **_segment("TR", layout.TR + 16 * processor, layout.TSS_LIMIT, layout.TSS_RIGHTS),
        Field.GUEST_TR_BASE: layout.TSS + processor * layout.TSS_STRIDE,
    }
    if mode == "pae":
        for index in range(_PDPTES):
            directory = guest_base + layout.PAGE_TABLES + layout.PAGE * (1 + index)
            fields[Field[f"GUEST_PDPTE{index}"]] = directory | _PRESENT
    return fields
