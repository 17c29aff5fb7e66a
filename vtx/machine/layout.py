"""Where things stand in the physical memory of a machine that vtx sets up itself.

Host-physical memory below :data:`GUEST_BASE` belongs to the VMM: its VMX regions, its EPT tables.
A guest's physical memory begins there: guest-physical 0 is host-physical ``GUEST_BASE`` under EPT.
The addresses of the guest's own tables are guest-physical, and linear too: its kernel maps memory
one to one.
"""

from __future__ import annotations

__all__ = [
    "CODE_SELECTOR",
    "DATA_SELECTOR",
    "GDT_ADDRESS",
    "GDT_BYTES",
    "GUEST_BASE",
    "GUEST_CR3",
    "GUEST_ENTRY",
    "GUEST_STACK_TOP",
    "HOST_CR3",
    "HOST_GDT",
    "HOST_IDT",
    "HOST_RIP",
    "HOST_STACK_TOP",
    "HOST_TSS",
    "IDT_ADDRESS",
    "IDT_BYTES",
    "TSS_ADDRESS",
    "TSS_BYTES",
    "TSS_SELECTOR",
    "USER_CODE_SELECTOR",
    "USER_DATA_SELECTOR",
    "VMM_FRAMES",
]

#: Host-physical address of guest-physical address 0.
GUEST_BASE = 1 << 30

# The VMM's own addresses. The VMM is Python: nothing is fetched from them.
HOST_CR3 = 0x1000
HOST_GDT = 0x2000
HOST_IDT = 0x3000
HOST_TSS = 0x4000
HOST_STACK_TOP = 0x8000
HOST_RIP = 0x9000
#: First host-physical frame that the VMM hands out (VMX regions, EPT tables, bitmaps).
VMM_FRAMES = 0x10_0000

# The guest's segments: ring 0 first, then the order that SYSRET wants.
CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
USER_DATA_SELECTOR = 0x1B
USER_CODE_SELECTOR = 0x23
TSS_SELECTOR = 0x28

# The guest's tables, guest-physical.
GDT_ADDRESS = 0x1000
#: Null, ring-0 code and data, ring-3 data and code, and a TSS descriptor of 16 bytes.
GDT_BYTES = 0x38
TSS_ADDRESS = 0x2000
#: A 64-bit TSS without I/O bitmap.
TSS_BYTES = 0x68
IDT_ADDRESS = 0x3000
#: 256 gates of 16 bytes.
IDT_BYTES = 0x1000
GUEST_STACK_TOP = 0x8000
GUEST_CR3 = 0x1_0000
GUEST_ENTRY = 0x10_0000
