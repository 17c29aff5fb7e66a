"""CPUID, as a VMM answers it: the CPU's features less those that the guest cannot use."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.hypervisor.vmm import VmmLoop, on
from vtx.machine.registers import Cr4

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit
    from vtx.machine.shape import Shape

__all__ = ["CpuidValues", "Identification", "cpuid"]

_HIGHEST_BASIC, _HIGHEST_EXTENDED, _HIGHEST_HYPERVISOR = 0x16, 0x8000_0008, 0x4000_0000
_OSXSAVE = 27
#: EBX, ECX, EDX: "GenuineIntel" in the order EBX, EDX, ECX, and "vtxvtxvtxvtx" in plain order.
_VENDOR, _VMM = (
    tuple(int.from_bytes(word, "little") for word in words)
    for words in ((b"Genu", b"ntel", b"ineI"), (b"vtxv", b"txvt", b"xvtx"))
)

#: Feature bits of leaf 1 that every CPU with VMX has: SSE3, CX16, and hypervisor present.
_LEAF_1_ECX = 1 << 0 | 1 << 13 | 1 << 31
#: FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE-36, CLFSH, MMX,
#: FXSR, SSE, SSE2.
_LEAF_1_EDX = 0x078B_FBFD
#: SYSCALL and Intel 64.
_LEAF_80000001_EDX = 1 << 11 | 1 << 29

#: Where the features of a shape are reported: leaf, register (0 EAX to 3 EDX), bit.
_FEATURES: dict[str, tuple[int, int, int]] = {
    "pcid": (1, 2, 17),
    "x2apic": (1, 2, 21),
    "tsc_deadline": (1, 2, 24),
    "xsave": (1, 2, 26),
    "fsgsbase": (7, 1, 0),
    "smep": (7, 1, 7),
    "invpcid": (7, 1, 10),
    "smap": (7, 1, 20),
    "umip": (7, 2, 2),
    "pku": (7, 2, 3),
    "la57": (7, 2, 16),
    "nx": (0x8000_0001, 3, 20),
    "page_1g": (0x8000_0001, 3, 26),
    "rdtscp": (0x8000_0001, 3, 27),
}
#: Features that the guest has only if a control lets it.
_NEEDS: dict[str, Proc2] = {
    "rdtscp": Proc2.ENABLE_RDTSCP,
    "invpcid": Proc2.ENABLE_INVPCID,
}


class CpuidValues(NamedTuple):
    """What CPUID returns."""

    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def cpuid(shape: Shape, leaf: int, apic_id: int = 0) -> CpuidValues:
    """Return what CPUID tells the guest of a CPU of this shape.

    Of VMX, which the VMM keeps for itself, it says nothing; bit 31 of leaf 1's ECX and leaf
    0x40000000 tell of the VMM. Leaves that are not listed read 0.

    Parameters
    ----------
    shape : Shape
        The CPU.
    leaf : int
        EAX.
    apic_id : int
        Of the logical processor.
    """
    if leaf == 0:
        return CpuidValues(_HIGHEST_BASIC, *_VENDOR)
    if leaf == 1:
        values = [0x0000_06F0, apic_id << 24 | 1 << 16 | 8 << 8, _LEAF_1_ECX, _LEAF_1_EDX]
    elif leaf == 0x4000_0000:
        return CpuidValues(_HIGHEST_HYPERVISOR, *_VMM)
    elif leaf == 0x8000_0000:
        return CpuidValues(_HIGHEST_EXTENDED)
    elif leaf == 0x8000_0001:
        values = [0, 0, 1, _LEAF_80000001_EDX]
    elif leaf == 0x8000_0008:
        return CpuidValues(shape.linear_bits << 8 | shape.maxphyaddr)
    else:
        values = [0, 0, 0, 0]
    for feature in shape.features:
        home = _FEATURES.get(feature)
        if home is not None and home[0] == leaf and _usable(shape, feature):
            values[home[1]] |= 1 << home[2]
    return CpuidValues(*values)


def _usable(shape: Shape, feature: str) -> bool:
    """Tell whether the guest may use a feature; the starting VMCS enables what the CPU allows."""
    control = _NEEDS.get(feature)
    return control is None or shape.supports(control)


class Identification(VmmLoop):
    """Handles CPUID."""

    @on(ExitReason.CPUID)
    def cpuid(self, cpu: Cpu, exit: Exit) -> None:
        """Answer CPUID from the CPU's shape."""
        regs = cpu.regs
        leaf = regs.rax & 0xFFFF_FFFF
        values = cpuid(cpu.shape, leaf, cpu.number)
        regs.rax, regs.rbx, regs.rcx, regs.rdx = values
        if leaf == 1 and regs.rcx >> 26 & 1 and self.guest_cr4(cpu) & Cr4.OSXSAVE:
            regs.rcx |= 1 << _OSXSAVE
        cpu.skip(exit)

    def guest_cr4(self, cpu: Cpu) -> int:
        """Return the guest's CR4."""
        from vtx.facts.fields import Field

        return cpu.vmread(Field.GUEST_CR4)
