"""What was read out of a dump: values with their places, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vtx.facts.fields import Field

__all__ = ["Dump", "MsrEntry", "Unreadable", "Verdict"]

_FAILED_ENTRY = 1 << 31


class Unreadable(NamedTuple):
    """A place of the input that ought to hold a value, and does not hold one for certain.

    Attributes
    ----------
    line : int
        Line of the input, from 1.
    what : str
        The field, or the label in the dump.
    why : str
        What is wrong there.
    """

    line: int
    what: str
    why: str


class MsrEntry(NamedTuple):
    """One entry of an MSR area that a dump shows.

    Attributes
    ----------
    position : int
        Place in the area, from 0; -1 if only the processor's refusal is shown.
    msr, value : int
        Bits 63:0 (the MSR's address, and reserved bits that are 0) and 127:64.
    """

    position: int
    msr: int
    value: int


@dataclass(frozen=True)
class Verdict:
    """What the processor said about the VM entry, as far as the input shows it.

    Attributes
    ----------
    kind : str
        ``"entry_failure"`` (exit reason with bit 31), ``"vmfail_valid"`` (VM-instruction error),
        ``"vmexit"`` (the last thing recorded is an ordinary VM exit: the entry succeeded, or it
        failed without leaving a trace in the dump) or ``"none"``.
    error : int or None
        VM-instruction error number.
    exit_reason : int or None
        The exit-reason field, all 32 bits.
    qualification : int or None
        Exit qualification.
    """

    kind: str = "none"
    error: int | None = None
    exit_reason: int | None = None
    qualification: int | None = None

    @property
    def basic_reason(self) -> int | None:
        """Bits 15:0 of the exit reason."""
        return None if self.exit_reason is None else self.exit_reason & 0xFFFF

    @classmethod
    def of_exit(cls, exit_reason: int, qualification: int | None) -> Verdict:
        """Return the verdict that an exit-reason field tells."""
        kind = "entry_failure" if exit_reason & _FAILED_ENTRY else "vmexit"
        return cls(kind, None, exit_reason, qualification)

    @classmethod
    def of_hardware_error(cls, number: int) -> Verdict:
        """Return the verdict in KVM's ``hardware_entry_failure_reason``.

        That is an exit reason with bit 31 set, or a VM-instruction error number.
        """
        if number & _FAILED_ENTRY:
            return cls("entry_failure", None, number)
        return cls("vmfail_valid", number)


@dataclass
class Dump:
    """One VMCS as a text shows it.

    Attributes
    ----------
    form : str
        ``"kvm"``, ``"xen"`` or ``"yaml"``.
    label : str
        Which one of several: ``"VMCS 000000006afb1754"``, ``"d2v0"``; may be empty.
    first_line, last_line : int
        Where it stands in the input.
    values : dict of Field to int
        The fields of which the value is certain.
    lines : dict of Field to int
        On which line each stands.
    unreadable : list of Unreadable
        What is there and cannot be relied on.
    tangled : bool
        Lines of another dump are mixed in: values of different lines may belong to different
        VMCSs.
    verdict : Verdict
        What the processor said.
    msr_load : list of MsrEntry
        Entries of the VM-entry MSR-load area that are shown.
    effective_efer : int or None
        IA32_EFER of the guest where it is not the VMCS field that is shown.
    remarks : list of str
        What else the input tells about this VM entry.
    memory : dict of int to bytes
        Physical memory, where the input gives some.
    profile, maxphyaddr, linear_bits
        The CPU, where the input names it.
    """

    form: str
    label: str = ""
    first_line: int = 1
    last_line: int = 1
    values: dict[Field, int] = field(default_factory=dict)
    lines: dict[Field, int] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    tangled: bool = False
    verdict: Verdict = field(default_factory=Verdict)
    msr_load: list[MsrEntry] = field(default_factory=list)
    effective_efer: int | None = None
    remarks: list[str] = field(default_factory=list)
    memory: dict[int, bytes] = field(default_factory=dict)
    profile: str | None = None
    maxphyaddr: int | None = None
    linear_bits: int | None = None
