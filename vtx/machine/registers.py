"""The registers of one logical processor (SDM volume 1, "Basic Execution Environment").

Segment and table registers are immutable values: whoever loads one puts a new value in its place,
so that "has this changed since VM entry?" is a comparison and no register needs a guard.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.msrs import Msr

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
    "Registers",
    "Rflags",
    "Segment",
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


class Cr0(IntEnum):
    """Bits of CR0 (SDM, "Control Registers"); a member is a mask."""

    __hash__ = int.__hash__

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntEnum):
    """Bits of CR4 (SDM, "Control Registers"); a member is a mask."""

    __hash__ = int.__hash__

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    KL = 1 << 19
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22
    CET = 1 << 23
    PKS = 1 << 24
    UINTR = 1 << 25
    LAM_SUP = 1 << 28
    FRED = 1 << 32


class Efer(IntEnum):
    """Bits of IA32_EFER (SDM, "Extended Feature Enable Register"); a member is a mask."""

    __hash__ = int.__hash__

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


class Rflags(IntEnum):
    """Bits of RFLAGS (SDM, "EFLAGS Register"); a member is a mask, IOPL of two bits."""

    __hash__ = int.__hash__

    CF = 1 << 0
    RESERVED_1 = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


class AccessRights(IntEnum):
    """Bits of a segment's access rights as the VMCS holds them; fields of several bits as masks."""

    __hash__ = int.__hash__

    TYPE = 0xF
    S = 1 << 4
    DPL = 3 << 5
    P = 1 << 7
    AVL = 1 << 12
    L = 1 << 13
    DB = 1 << 14
    G = 1 << 15
    UNUSABLE = 1 << 16


#: Access rights of a segment register that must not be used.
UNUSABLE = int(AccessRights.UNUSABLE)


class Activity(IntEnum):
    """Activity states (SDM, "Guest Non-Register State")."""

    __hash__ = int.__hash__

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


class Interruptibility(IntEnum):
    """Bits of the interruptibility state (SDM, "Guest Non-Register State"); masks."""

    __hash__ = int.__hash__

    STI = 1 << 0
    MOV_SS = 1 << 1
    SMI = 1 << 2
    NMI = 1 << 3
    ENCLAVE = 1 << 4


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
    msrs : dict of int to int
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
        *SEGMENT_NAMES,
        "activity_state",
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "cr8",
        "dr0",
        "dr1",
        "dr2",
        "dr3",
        "dr6",
        "dr7",
        "gdtr",
        "idtr",
        "interruptibility_state",
        "msrs",
        "pdptes",
        "pending_debug_exceptions",
        "pkru",
        "rflags",
        "rip",
        "ssp",
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

    def __init__(self) -> None:
        for name in GPR_NAMES:
            setattr(self, name, 0)
        self.rip = 0xFFF0
        self.rflags = int(Rflags.RESERVED_1)
        self.cr0 = Cr0.CD | Cr0.NW | Cr0.ET
        self.cr2 = self.cr3 = self.cr4 = self.cr8 = 0
        self.dr0 = self.dr1 = self.dr2 = self.dr3 = 0
        self.dr6 = 0xFFFF_0FF0
        self.dr7 = 0x400
        data = Segment(0, 0, 0xFFFF, 0x93)
        self.es = self.ss = self.ds = self.fs = self.gs = data
        self.cs = Segment(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B)
        self.ldtr = Segment(0, 0, 0xFFFF, 0x82)
        self.tr = Segment(0, 0, 0xFFFF, 0x8B)
        self.gdtr = self.idtr = TableRegister(0, 0xFFFF)
        self.xcr0 = 1
        self.pkru = self.ssp = 0
        self.pdptes: tuple[int, int, int, int] = (0, 0, 0, 0)
        self.msrs: dict[int, int] = {Msr.IA32_PAT: 0x0007_0406_0007_0406}
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
        return self.ss.access_rights >> 5 & 3

    @property
    def in_protected_mode(self) -> bool:
        """CR0.PE is 1 and the processor is not in virtual-8086 mode."""
        return bool(self.cr0 & 1) and not self.rflags & 0x2_0000

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
        return bool(self.cs.access_rights & 0x2000) and self.in_ia32e_mode

    @property
    def in_compatibility_mode(self) -> bool:
        """IA32_EFER.LMA is 1 and CS.L is 0."""
        return self.in_ia32e_mode and not self.cs.access_rights & 0x2000

    @property
    def uses_pae_paging(self) -> bool:
        """CR0.PG and CR4.PAE are 1 outside IA-32e mode: paging starts at the PDPTEs."""
        return bool(self.cr0 & 0x8000_0000 and self.cr4 & 0x20) and not self.in_ia32e_mode

    def copy(self) -> Registers:
        """Return registers of equal content that share nothing with these."""
        twin = Registers()
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.msrs = dict(self.msrs)
        return twin

    def as_dict(self) -> dict[str, int]:
        """Return the general-purpose registers, RIP and RFLAGS by name."""
        return {name: getattr(self, name) for name in (*GPR_NAMES, "rip", "rflags")}

    def __repr__(self) -> str:
        return (
            f"<Registers rip={self.rip:#x} rsp={self.rsp:#x} rflags={self.rflags:#x} "
            f"cr0={self.cr0:#x} cr3={self.cr3:#x} cr4={self.cr4:#x} efer={self.efer:#x}>"
        )
