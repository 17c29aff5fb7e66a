"""The registers of one logical processor (SDM volume 1, "Basic Execution Environment").

Segment and table registers are immutable values: whoever loads one puts a new value in its place.
So are the system registers together (:class:`SystemRegisters`): VM entry and VM exit exchange them
as one, and "has the guest changed any?" is a comparison of two references.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vtx.errors import misspelt
from vtx.facts.msrs import Msr
from vtx.machine.register_bits import (
    UNUSABLE,
    AccessRights,
    Activity,
    Cr0,
    Cr4,
    Efer,
    Interruptibility,
    Rflags,
)

if TYPE_CHECKING:
    from vtx.machine.shape import Shape

__all__ = [
    "GPR_NAMES",
    "SEGMENT_NAMES",
    "UNUSABLE",
    "AccessRights",
    "Activity",
    "Cr0",
    "Cr4",
    "Efer",
    "Interruptibility",
    "MsrFile",
    "Registers",
    "Rflags",
    "Segment",
    "SystemRegisters",
    "TableRegister",
]

#: General-purpose registers in the order of their numbers in machine code and in the VM-exit
#: qualification ("0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP ...").
GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip

#: Segment registers, LDTR and TR, in the order of their VMCS fields.
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")

#: Where the parts of 64-bit registers are that have names of their own.
_PARTS = {
    "eip": "rip & 0xFFFFFFFF",
    "eflags": "rflags & 0xFFFFFFFF",
    **{f"e{name[1:]}": f"{name} & 0xFFFFFFFF" for name in GPR_NAMES[:8]},
    **{f"{name}d": f"{name} & 0xFFFFFFFF" for name in GPR_NAMES[8:]},
    **{name[1:]: f"{name} & 0xFFFF" for name in GPR_NAMES[:8]},
    **{f"{name}l": f"r{name}x & 0xFF" for name in "acdb"},
    **{f"{name}h": f"r{name}x >> 8 & 0xFF" for name in "acdb"},
}


class Segment(NamedTuple):
    """A segment register with its hidden part, LDTR or TR.

    Attributes
    ----------
    selector : int
        16 bits.
    base : int
        Linear address.
    limit : int
        In bytes, 32 bits.
    access_rights : int
        In the format of the VMCS (:class:`AccessRights`): bits 3:0 type, 4 S, 6:5 DPL, 7 P, 13 L,
        14 D/B, 15 G, 16 unusable.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0
    access_rights: int = UNUSABLE

    @property
    def usable(self) -> bool:
        """Whether bit 16 of the access rights is 0."""
        return not self.access_rights & 0x1_0000

    @property
    def type(self) -> int:
        """Bits 3:0 of the access rights."""
        return self.access_rights & 0xF

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.access_rights >> 5 & 3


class TableRegister(NamedTuple):
    """GDTR or IDTR: linear address of the table, and its limit in bytes."""

    base: int = 0
    limit: int = 0


class SystemRegisters(NamedTuple):
    """The registers that every VM entry and VM exit exchange, whatever the controls say.

    DR7 and SSP are among them although controls decide whether they are loaded: they are exchanged
    all the same, for what they were before.
    """

    cr0: int
    cr3: int
    cr4: int
    dr7: int
    ssp: int
    es: Segment
    cs: Segment
    ss: Segment
    ds: Segment
    fs: Segment
    gs: Segment
    ldtr: Segment
    tr: Segment
    gdtr: TableRegister
    idtr: TableRegister

    def with_code_and_stack(self, cs: Segment, ss: Segment) -> SystemRegisters:
        """Return them with other CS and SS, which events and returns load together."""
        return SystemRegisters._make((*self[:6], cs, ss, *self[8:]))


class MsrFile(dict[int, int]):
    """MSRs by address; remembers whether any was written.

    Attributes
    ----------
    changed : bool
        Something was written by indexing or by a method of dict; VM entry and VM exit reset it.
    """

    __slots__ = ("changed",)

    def __init__(self, values: Mapping[Any, int] | Iterable[tuple[int, int]] = ()) -> None:
        super().__init__(values)
        self.changed = True

    def __setitem__(self, address: int, value: int) -> None:
        self.changed = True
        super().__setitem__(address, value)

    def update(self, *values: Any, **named: Any) -> None:
        """Write several MSRs."""
        self.changed = True
        super().update(*values, **named)

    def pop(self, *arguments: Any) -> Any:
        """Forget an MSR."""
        self.changed = True
        return super().pop(*arguments)


_DATA_AFTER_RESET = Segment(0, 0, 0xFFFF, 0x93)
_TABLE_AFTER_RESET = TableRegister(0, 0xFFFF)
_AFTER_RESET = SystemRegisters(
    cr0=Cr0.CD | Cr0.NW | Cr0.ET,
    cr3=0,
    cr4=0,
    dr7=0x400,
    ssp=0,
    es=_DATA_AFTER_RESET,
    cs=Segment(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B),
    ss=_DATA_AFTER_RESET,
    ds=_DATA_AFTER_RESET,
    fs=_DATA_AFTER_RESET,
    gs=_DATA_AFTER_RESET,
    ldtr=Segment(0, 0, 0xFFFF, 0x82),
    tr=Segment(0, 0, 0xFFFF, 0x8B),
    gdtr=_TABLE_AFTER_RESET,
    idtr=_TABLE_AFTER_RESET,
)


class Registers:
    """All registers of one logical processor, and its non-register state.

    A new object holds the state after power-up or RESET (SDM, "Processor State After Reset").

    Attributes
    ----------
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 ... r15, rip, rflags : int
        64 bits each.
    cr0, cr2, cr3, cr4, cr8, dr0, dr1, dr2, dr3, dr6, dr7, xcr0, pkru, ssp : int
        Control, debug and extended-state registers.
    es, cs, ss, ds, fs, gs, ldtr, tr : Segment
        Replace the whole value to change one: ``regs.fs = regs.fs._replace(base=0x1000)``.
    gdtr, idtr : TableRegister
        Likewise.
    pdptes : tuple of int
        The four page-directory-pointer-table entries of PAE paging.
    system : SystemRegisters
        The registers above that VM entry and VM exit exchange, as one value.
    msrs : MsrFile
        Model-specific registers by address; an address that is missing reads 0.
        IA32_FS_BASE and IA32_GS_BASE are not here: they are the bases of FS and GS
        (:meth:`read_msr` and :meth:`write_msr` know).
    activity_state : int
        :class:`Activity`.
    interruptibility_state : int
        Mask of :class:`Interruptibility`; NMI is virtual-NMI blocking where "virtual NMIs" is 1.
    pending_debug_exceptions : int
        In the format of the guest's VMCS field.
    """

    __slots__ = (
        *GPR_NAMES,
        "activity_state",
        "cr2",
        "cr8",
        "dr0",
        "dr1",
        "dr2",
        "dr3",
        "dr6",
        "interruptibility_state",
        "msrs",
        "pdptes",
        "pending_debug_exceptions",
        "pkru",
        "rflags",
        "rip",
        "system",
        "xcr0",
    )

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    if TYPE_CHECKING:  # properties over `system`, made below
        cr0: int
        cr3: int
        cr4: int
        dr7: int
        ssp: int
        es: Segment
        cs: Segment
        ss: Segment
        ds: Segment
        fs: Segment
        gs: Segment
        ldtr: Segment
        tr: Segment
        gdtr: TableRegister
        idtr: TableRegister

    def __init__(self) -> None:
        for name in GPR_NAMES:
            setattr(self, name, 0)
        self.rip = 0xFFF0
        self.rflags = int(Rflags.RESERVED_1)
        self.system = _AFTER_RESET
        self.cr2 = self.cr8 = 0
        self.dr0 = self.dr1 = self.dr2 = self.dr3 = 0
        self.dr6 = 0xFFFF_0FF0
        self.xcr0 = 1
        self.pkru = 0
        self.pdptes: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.msrs = MsrFile({Msr.IA32_PAT: 0x0007_0406_0007_0406})
        self.activity_state = 0
        self.interruptibility_state = 0
        self.pending_debug_exceptions = 0

    @classmethod
    def for_64bit_host(cls, shape: Shape | None = None) -> Registers:
        """Return the registers of a 64-bit VMM at CPL 0 that may execute VMXON.

        Parameters
        ----------
        shape : Shape, optional
            CR0 and CR4 get the bits that this CPU fixes to 1 in VMX operation.
        """
        regs = cls()
        regs.cr0 = Cr0.PG | Cr0.WP | Cr0.NE | Cr0.ET | Cr0.MP | Cr0.PE
        regs.cr4 = Cr4.PAE | Cr4.PGE | Cr4.VMXE
        if shape is not None:
            regs.cr0 |= shape.msr(Msr.IA32_VMX_CR0_FIXED0)
            regs.cr4 |= shape.msr(Msr.IA32_VMX_CR4_FIXED0)
        regs.cr3 = 0x1000
        regs.cs = Segment(0x08, 0, 0xFFFF_FFFF, 0xA09B)
        regs.es = regs.ss = regs.ds = regs.fs = regs.gs = Segment(0x10, 0, 0xFFFF_FFFF, 0xC093)
        regs.tr = Segment(0x18, 0, 0x67, 0x8B)
        regs.ldtr = Segment()
        regs.msrs[Msr.IA32_EFER] = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE
        # Firmware locks the MSR with VMX enabled outside SMX operation.
        regs.msrs[Msr.IA32_FEATURE_CONTROL] = 0b101
        return regs

    def gpr(self, number: int) -> int:
        """Return the general-purpose register with this number (0 RAX ... 15 R15)."""
        value: int = getattr(self, GPR_NAMES[number])
        return value

    def set_gpr(self, number: int, value: int) -> None:
        """Set the general-purpose register with this number (0 RAX ... 15 R15)."""
        setattr(self, GPR_NAMES[number], value & 0xFFFF_FFFF_FFFF_FFFF)

    def read_msr(self, address: int) -> int:
        """Return the MSR at `address`, 0 if it was never written."""
        if address == Msr.IA32_FS_BASE:
            return self.fs.base
        if address == Msr.IA32_GS_BASE:
            return self.gs.base
        return self.msrs.get(address, 0)

    def write_msr(self, address: int, value: int) -> None:
        """Set the MSR at `address` to a 64-bit value, with no check of its own."""
        if address == Msr.IA32_FS_BASE:
            self.fs = self.fs._replace(base=value)
        elif address == Msr.IA32_GS_BASE:
            self.gs = self.gs._replace(base=value)
        else:
            self.msrs[address] = value

    @property
    def efer(self) -> int:
        """IA32_EFER."""
        return self.msrs.get(0xC000_0080, 0)

    @efer.setter
    def efer(self, value: int) -> None:
        self.msrs[Msr.IA32_EFER] = value

    @property
    def cpl(self) -> int:
        """Current privilege level: the DPL of SS (SDM, "Guest Register State")."""
        return self.system.ss.access_rights >> 5 & 3

    @property
    def in_protected_mode(self) -> bool:
        """CR0.PE is 1 and the processor is not in virtual-8086 mode."""
        return bool(self.system.cr0 & 1) and not self.rflags & 0x2_0000

    @property
    def in_virtual_8086_mode(self) -> bool:
        """RFLAGS.VM is 1."""
        return bool(self.rflags & 0x2_0000)

    @property
    def in_ia32e_mode(self) -> bool:
        """IA32_EFER.LMA is 1."""
        return bool(self.msrs.get(0xC000_0080, 0) & 0x400)

    @property
    def in_64bit_mode(self) -> bool:
        """IA32_EFER.LMA and CS.L are 1."""
        return bool(self.system.cs.access_rights & 0x2000) and self.in_ia32e_mode

    @property
    def in_compatibility_mode(self) -> bool:
        """IA32_EFER.LMA is 1 and CS.L is 0."""
        return self.in_ia32e_mode and not self.system.cs.access_rights & 0x2000

    @property
    def uses_pae_paging(self) -> bool:
        """CR0.PG and CR4.PAE are 1 outside IA-32e mode: paging starts at the PDPTEs."""
        return bool(self.cr0 & 0x8000_0000 and self.cr4 & 0x20) and not self.in_ia32e_mode

    def copy(self) -> Registers:
        """Return registers of equal content that share nothing with these."""
        twin = Registers()
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.msrs = MsrFile(self.msrs)
        return twin

    def as_dict(self) -> dict[str, int]:
        """Return the general-purpose registers, RIP and RFLAGS by name."""
        return {name: getattr(self, name) for name in (*GPR_NAMES, "rip", "rflags")}

    def __repr__(self) -> str:
        return (
            f"<Registers rip={self.rip:#x} rsp={self.rsp:#x} rflags={self.rflags:#x} "
            f"cr0={self.cr0:#x} cr3={self.cr3:#x} cr4={self.cr4:#x} efer={self.efer:#x}>"
        )


def _member(name: str) -> property:
    """Return the property of :class:`Registers` that reads and replaces a system register."""

    def replace(self: Registers, value: Any) -> None:
        self.system = self.system._replace(**{name: value})

    return property(attrgetter(f"system.{name}"), replace)


def _elsewhere(name: str) -> property:
    """Return a property that says where the part of a register is, whoever reads or sets it."""

    def refuse(self: Registers, value: object = None) -> NoReturn:
        raise misspelt("register", name, (), _PARTS)

    return property(refuse, refuse)


for _name in SystemRegisters._fields:
    setattr(Registers, _name, _member(_name))
for _name in _PARTS:
    setattr(Registers, _name, _elsewhere(_name))
