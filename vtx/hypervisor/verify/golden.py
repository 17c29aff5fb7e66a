"""What corpora that say only its name take for granted: one CPU, one guest and its memory."""

from __future__ import annotations

import struct
from typing import Any

from vtx.bits import MASK32

__all__ = [
    "CODE", "GUEST_64", "HANDLERS", "HANDLER_BYTES", "TIGER_LAKE", "VMCS_REGION", "VMXON_REGION",
    "guest_memory",
]  # fmt: skip

VMXON_REGION, VMCS_REGION = 0x1000, 0x2000
CODE, HANDLERS, _STACK = 0x6_0000, 0x6_1000, 0x6_6000
#: Handler of vector 0 stands first, that of vector 1 so far behind it.
HANDLER_BYTES = 16
_SHADOW_BIT = 1 << 31
_EPT, _EPT_PDPT, _EPT_PD = 0x3_0000, 0x3_1000, 0x3_2000
_PML4, _PDPT, _PD, _PAGE_DIRECTORY_32 = 0x4_0000, 0x4_1000, 0x4_2000, 0x4_3000
_PAE_PDPT, _PAE_PD = 0x4_4000, 0x4_5000
_GDT, _IDT_64, _IDT_32, _TSS_64, _TSS_32 = 0x5_0000, 0x5_2000, 0x5_3000, 0x5_4000, 0x5_5000
_CPUID = b"\x0f\xa2"

#: Capability MSRs and CPUID leaves (EAX, EBX, ECX, EDX) of the Tiger Lake that Bochs models.
TIGER_LAKE: dict[str, Any] = {
    "IA32_VMX_BASIC": 0xD8100000000004,
    "IA32_VMX_PINBASED_CTLS": 0xFF00000016,
    "IA32_VMX_PROCBASED_CTLS": 0xFFF9FFFE0401E172,
    "IA32_VMX_EXIT_CTLS": 0x407FFFFF00036DFF,
    "IA32_VMX_ENTRY_CTLS": 0xFFFF000011FF,
    "IA32_VMX_MISC": 0x600401E0,
    "IA32_VMX_CR0_FIXED0": 0x80000021,
    "IA32_VMX_CR0_FIXED1": 0xFFFFFFFF,
    "IA32_VMX_CR4_FIXED0": 0x2000,
    "IA32_VMX_CR4_FIXED1": 0x372FFF,
    "IA32_VMX_VMCS_ENUM": 0x50,
    "IA32_VMX_PROCBASED_CTLS2": 0x2D77FFF00000000,
    "IA32_VMX_EPT_VPID_CAP": 0xF0106734141,
    "IA32_VMX_TRUE_PINBASED_CTLS": 0xFF00000016,
    "IA32_VMX_TRUE_PROCBASED_CTLS": 0xFFF9FFFE04006172,
    "IA32_VMX_TRUE_EXIT_CTLS": 0x407FFFFF00036DFB,
    "IA32_VMX_TRUE_ENTRY_CTLS": 0xFFFF000011FB,
    "IA32_VMX_VMFUNC": 0x1,
    "IA32_VMX_PROCBASED_CTLS3": None,
    "IA32_VMX_EXIT_CTLS2": None,
    "CPUID.1": [0x806C1, 0x10800, 0x77FAF3BF, 0xAFEBFBFF],
    "CPUID.7.0": [0x0, 0xF1BF27EB, 0x18405F46, 0xFC000510],
    "CPUID.80000001": [0x0, 0x0, 0x121, 0x2C100800],
    "CPUID.80000008": [0x3028, 0x200, 0x0, 0x0],
}

#: The 64-bit guest with EPT and VPID, IA32_EFER and IA32_PAT switched: fields by encoding.
GUEST_64: dict[int, int] = {
    0x0000: 0x1,
    0x0800: 0x10,
    0x0802: 0x8,
    0x0804: 0x10,
    0x0806: 0x10,
    0x0808: 0x10,
    0x080A: 0x10,
    0x080E: 0x20,
    0x0C00: 0x10,
    0x0C02: 0x8,
    0x0C04: 0x10,
    0x0C06: 0x10,
    0x0C08: 0x10,
    0x0C0A: 0x10,
    0x0C0C: 0x18,
    0x2000: 0x6000,
    0x2002: 0x7000,
    0x2004: 0x5000,
    0x2006: 0xA400,
    0x2008: 0xA800,
    0x200A: 0xA000,
    0x200E: 0xE000,
    0x2012: 0x8000,
    0x2014: 0x9000,
    0x2016: 0x10000,
    0x201A: 0x3001E,
    0x2024: 0xF000,
    0x2026: 0xB000,
    0x2028: 0xC000,
    0x202A: 0xD000,
    0x2800: 0xFFFFFFFFFFFFFFFF,
    0x2804: 0x7040600070406,
    0x2806: 0xD00,
    0x2C00: 0x7040600070406,
    0x2C02: 0xD00,
    0x4000: 0x16,
    0x4002: 0x840061F2,
    0x400C: 0x3F6FFB,
    0x4012: 0xD3FB,
    0x401E: 0x22,
    0x4800: 0xFFFFFFFF,
    0x4802: 0xFFFFFFFF,
    0x4804: 0xFFFFFFFF,
    0x4806: 0xFFFFFFFF,
    0x4808: 0xFFFFFFFF,
    0x480A: 0xFFFFFFFF,
    0x480E: 0x67,
    0x4810: 0x5F,
    0x4812: 0xFFF,
    0x4814: 0xC093,
    0x4816: 0xA09B,
    0x4818: 0xC093,
    0x481A: 0xC093,
    0x481C: 0xC093,
    0x481E: 0xC093,
    0x4820: 0x10000,
    0x4822: 0x8B,
    0x6800: 0x80050033,
    0x6802: 0x40000,
    0x6804: 0x2020,
    0x6814: 0x54000,
    0x6816: 0x50000,
    0x6818: 0x52000,
    0x681A: 0x400,
    0x681C: 0x66000,
    0x681E: 0x60000,
    0x6820: 0x2,
    0x6C00: 0x80000031,
    0x6C02: 0x20000,
    0x6C04: 0x2020,
    0x6C0A: 0x11800,
    0x6C0C: 0x11000,
    0x6C0E: 0x12000,
    0x6C14: 0x98000,
    0x6C16: 0x80010,
}


def _tss_descriptor(base: int, limit: int) -> int:
    return limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | 0x8B << 40 | base >> 24 << 56


def _descriptor_tables() -> dict[int, bytes]:
    gdt = (
        0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_9B00_0000_FFFF,
        _tss_descriptor(_TSS_64, 0x67), 0, 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF,
        0x00CF_FB00_0000_FFFF, _tss_descriptor(_TSS_32, 0x2067), 0x0000_9B00_0000_FFFF,
        0x0000_9300_0000_FFFF,
    )  # fmt: skip
    gates_64, gates_32 = b"", b""
    for vector in range(256):
        handler = HANDLERS + HANDLER_BYTES * vector
        low, high = handler & 0xFFFF, handler >> 16
        gates_64 += struct.pack("<HHBBHII", low, 0x08, 0, 0xEE, high, 0, 0)
        gates_32 += struct.pack("<HHBBH", low, 0x18, 0, 0xEE, high)
    tss_64, tss_32 = bytearray(0x68), bytearray(0x2069)
    struct.pack_into("<Q", tss_64, 4, _STACK - 0x800)
    struct.pack_into("<II", tss_32, 4, _STACK - 0x800, 0x10)
    struct.pack_into("<H", tss_64, 0x66, 0x68)
    struct.pack_into("<H", tss_32, 0x66, 0x68)
    tss_32[0x2068] = 0xFF
    return {
        _GDT: struct.pack("<12Q", *gdt),
        _IDT_64: gates_64,
        _IDT_32: gates_32,
        _TSS_64: bytes(tss_64),
        _TSS_32: bytes(tss_32),
    }


def guest_memory(revision: int) -> dict[int, bytes]:
    """Return the memory of the corpora's guests: tables, and CPUID wherever code may be.

    Parameters
    ----------
    revision : int
        VMCS revision identifier.
    """
    large = struct.pack("<512Q", *[n << 21 | 0x87 for n in range(512)])
    return {
        0: b"".join(struct.pack("<HH", 16 * n, HANDLERS >> 4) for n in range(256)),
        0x3000: struct.pack("<I", revision),
        0x4000: struct.pack("<I", revision | _SHADOW_BIT),
        _EPT: struct.pack("<Q", _EPT_PDPT | 7),
        _EPT_PDPT: struct.pack("<Q", _EPT_PD | 7),
        _EPT_PD: struct.pack("<512Q", *[n << 21 | 0xB7 for n in range(512)]),
        _PML4: struct.pack("<Q", _PDPT | 7),
        _PDPT: struct.pack("<Q", _PD | 7),
        _PD: large,
        _PAGE_DIRECTORY_32: struct.pack(
            "<1024I", *[(n << 22 | 0x87) & MASK32 for n in range(1024)]
        ),
        _PAE_PDPT: struct.pack("<4Q", _PAE_PD | 1, 0, 0, 0),
        _PAE_PD: large,
        **_descriptor_tables(),
        CODE: _CPUID * 2048,
        HANDLERS: _CPUID * 2048,
    }
