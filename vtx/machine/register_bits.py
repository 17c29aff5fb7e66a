"""Bits of the control registers, flags and segment attributes, as masks."""

from __future__ import annotations

from enum import IntEnum

from vtx.facts.members import plain_members

__all__ = [
    "UNUSABLE",
    "AccessRights",
    "Activity",
    "Cr0",
    "Cr4",
    "Efer",
    "Interruptibility",
    "Rflags",
]


@plain_members
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


@plain_members
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


@plain_members
class Efer(IntEnum):
    """Bits of IA32_EFER (SDM, "Extended Feature Enable Register"); a member is a mask."""

    __hash__ = int.__hash__

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


@plain_members
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


@plain_members
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


@plain_members
class Activity(IntEnum):
    """Activity states (SDM, "Guest Non-Register State")."""

    __hash__ = int.__hash__

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3


@plain_members
class Interruptibility(IntEnum):
    """Bits of the interruptibility state (SDM, "Guest Non-Register State"); masks."""

    __hash__ = int.__hash__

    STI = 1 << 0
    MOV_SS = 1 << 1
    SMI = 1 << 2
    NMI = 1 << 3
    ENCLAVE = 1 << 4
