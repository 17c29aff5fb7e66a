"""The CPUs that corpora were made on, and their memory."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from vtx.errors import InputError
from vtx.facts.msrs import Msr
from vtx.hypervisor.verify.golden import TIGER_LAKE
from vtx.machine.memory import Memory
from vtx.machine.shape import Shape

__all__ = ["PHYSICAL_BYTES", "host_memory", "new_memory", "shape_of"]

#: Every physical address of a CPU with 40 bits exists.
PHYSICAL_BYTES = 1 << 40
_HOST_TABLES = 0x2_0000
_GIB_PAGES = 512

#: CPUID leaf, register and bit of the features that the rules ask for.
_FEATURES = {
    ("CPUID.80000001", 3, 20): "nx",
    ("CPUID.80000001", 3, 26): "page_1g",
    ("CPUID.80000001", 3, 27): "rdtscp",
    ("CPUID.1", 2, 17): "pcid",
    ("CPUID.1", 2, 21): "x2apic",
    ("CPUID.1", 2, 26): "xsave",
    ("CPUID.7.0", 1, 2): "sgx",
    ("CPUID.7.0", 1, 10): "invpcid",
    ("CPUID.7.0", 1, 11): "rtm",
    ("CPUID.7.0", 2, 16): "la57",
    ("CPUID.7.0", 2, 24): "bus_lock_detect",
}


def shape_of(header: Mapping[str, Any], file: str) -> Shape:
    """Return the CPU that a header describes by its capabilities, or names.

    Raises
    ------
    InputError
        It does neither.
    """
    model = str(header.get("cpu_model", ""))
    caps = header.get("caps")
    if caps is None:
        if model != "tigerlake":
            hint = 'give its capabilities as "caps"'
            raise InputError(f"unknown CPU model {model!r}", file=file, line=1, hint=hint)
        caps = TIGER_LAKE
    try:
        msrs: dict[int, int] = {
            Msr[name]: int(caps[name]) for name in caps if name in Msr.__members__ and caps[name]
        }
        widths = caps["CPUID.80000008"][0]
        features = {
            name
            for (leaf, register, bit), name in _FEATURES.items()
            if caps[leaf][register] >> bit & 1
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"malformed capabilities: {error!r}", file=file, line=1) from None
    msrs.pop(Msr.IA32_FEATURE_CONTROL, None)
    return Shape(model, msrs, widths & 0xFF, widths >> 8 & 0xFF, frozenset(features))


def new_memory() -> Memory:
    """Return memory at every physical address, all 0."""
    return Memory(PHYSICAL_BYTES, huge_pages=False)


def host_memory() -> dict[int, bytes]:
    """Return the host's page tables: the first TiB one to one."""
    tables = {
        _HOST_TABLES: struct.pack("<QQ", _HOST_TABLES + 0x1000 | 7, _HOST_TABLES + 0x2000 | 7)
    }
    first = [n << 30 | 0x87 for n in range(_GIB_PAGES)]
    first[0] = _HOST_TABLES + 0x3000 | 7
    tables[_HOST_TABLES + 0x1000] = struct.pack("<512Q", *first)
    second = [n << 30 | 0x87 for n in range(_GIB_PAGES, 2 * _GIB_PAGES)]
    tables[_HOST_TABLES + 0x2000] = struct.pack("<512Q", *second)
    tables[_HOST_TABLES + 0x3000] = struct.pack("<512Q", *[n << 21 | 0x87 for n in range(512)])
    return tables
