"""What the information of a VM exit says, one small typed view per kind of exit."""

from __future__ import annotations

from typing import NamedTuple

from vtx.bits import bit, bits

__all__ = [
    "ApicAccess",
    "CrAccess",
    "DrAccess",
    "EptAccess",
    "EventInformation",
    "IoAccess",
    "MsrAccess",
    "TaskSwitch",
]

_GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_CR_ACCESSES = ("mov to", "mov from", "clts", "lmsw")
_TASK_SOURCES = ("call", "iret", "jmp", "task gate")


class EventInformation(NamedTuple):
    """An event as an interruption-information field describes it.

    Attributes
    ----------
    vector : int
        Vector.
    type : int
        0 external interrupt, 2 NMI, 3 hardware exception, 4 software interrupt, 5 privileged
        software exception, 6 software exception, 7 other event.
    error_code : int or None
        Its error code, if it has one.
    address : int or None
        Linear address of a page fault that caused the exit.
    nmi_unblocking : bool
        IRET had removed blocking by NMI.
    """

    vector: int
    type: int
    error_code: int | None
    address: int | None = None
    nmi_unblocking: bool = False

    @classmethod
    def decode(cls, information: int, error_code: int) -> EventInformation | None:
        """Take an interruption-information field apart; None if its valid bit is 0."""
        if not information >> 31 & 1:
            return None
        code = error_code if bit(information, 11) else None
        kind = bits(information, 10, 8)
        return cls(information & 0xFF, kind, code, None, bool(bit(information, 12)))


class IoAccess(NamedTuple):
    """IN, OUT, INS or OUTS: port, bytes, direction, and how it was written."""

    port: int
    size: int
    is_in: bool
    string: bool
    rep: bool
    immediate: bool

    @classmethod
    def decode(cls, qualification: int) -> IoAccess:
        """Take the exit qualification apart."""
        return cls(
            bits(qualification, 31, 16),
            bits(qualification, 2, 0) + 1,
            bool(bit(qualification, 3)),
            bool(bit(qualification, 4)),
            bool(bit(qualification, 5)),
            bool(bit(qualification, 6)),
        )


class CrAccess(NamedTuple):
    """MOV to or from a control register, CLTS or LMSW.

    Attributes
    ----------
    number : int
        Control register.
    access : str
        ``"mov to"``, ``"mov from"``, ``"clts"`` or ``"lmsw"``.
    register : str
        General-purpose register of a MOV.
    source : int
        Operand of LMSW.
    memory_operand : bool
        LMSW with an operand in memory.
    """

    number: int
    access: str
    register: str
    source: int
    memory_operand: bool

    @classmethod
    def decode(cls, qualification: int) -> CrAccess:
        """Take the exit qualification apart."""
        return cls(
            bits(qualification, 3, 0),
            _CR_ACCESSES[bits(qualification, 5, 4)],
            _GPR_NAMES[bits(qualification, 11, 8)],
            bits(qualification, 31, 16),
            bool(bit(qualification, 6)),
        )


class DrAccess(NamedTuple):
    """MOV to or from a debug register."""

    number: int
    is_read: bool
    register: str

    @classmethod
    def decode(cls, qualification: int) -> DrAccess:
        """Take the exit qualification apart."""
        return cls(
            bits(qualification, 2, 0),
            bool(bit(qualification, 4)),
            _GPR_NAMES[bits(qualification, 11, 8)],
        )


class _MsrAccess(NamedTuple):
    address: int
    is_write: bool
    value: int


class MsrAccess(_MsrAccess):
    """RDMSR or WRMSR: the MSR's address, and for a write the value."""

    __slots__ = ()

    @property
    def index(self) -> int:  # type: ignore[override]  # a tuple's own index() is of no use here
        """The address, which is what RCX holds."""
        return self.address


class EptAccess(NamedTuple):
    """An EPT violation or misconfiguration.

    Attributes
    ----------
    gpa : int
        Guest-physical address.
    gla : int or None
        Guest linear address, where the exit has one.
    read, write, fetch : bool
        What the access was; all False for a misconfiguration.
    readable, writable, executable : bool
        What the EPT entries allow.
    translated : bool
        The access was to the translation of the linear address, not to a paging-structure entry.
    """

    gpa: int
    gla: int | None
    read: bool
    write: bool
    fetch: bool
    readable: bool
    writable: bool
    executable: bool
    translated: bool

    @classmethod
    def decode(cls, qualification: int, gpa: int, gla: int) -> EptAccess:
        """Take the exit qualification apart."""
        flags = [bool(bit(qualification, position)) for position in range(9)]
        read, write, fetch, readable, writable, executable = flags[:6]
        translated = flags[7] and flags[8]
        linear = gla if flags[7] else None
        return cls(gpa, linear, read, write, fetch, readable, writable, executable, translated)


class TaskSwitch(NamedTuple):
    """A task switch: selector of the new TSS, and who asked for it ("call", "iret" ...)."""

    selector: int
    source: str

    @classmethod
    def decode(cls, qualification: int) -> TaskSwitch:
        """Take the exit qualification apart."""
        return cls(bits(qualification, 15, 0), _TASK_SOURCES[bits(qualification, 31, 30)])


class ApicAccess(NamedTuple):
    """An access to the APIC-access page: offset, type of access, and whether it is asynchronous."""

    offset: int
    type: int
    asynchronous: bool

    @classmethod
    def decode(cls, qualification: int) -> ApicAccess:
        """Take the exit qualification apart."""
        return cls(
            bits(qualification, 11, 0), bits(qualification, 15, 12), bool(bit(qualification, 16))
        )
