"""What a VM exit records in the VMCS (SDM, "Recording VM-Exit Information ...").

A rule that decides "this exits" returns one of these; :mod:`vtx.rules.transitions` writes it
into the VM-exit information fields.
"""

from __future__ import annotations

from dataclasses import dataclass

from vtx.facts.exits import ExitReason

__all__ = ["ExitInformation"]


@dataclass(slots=True)
class ExitInformation:
    """A VM exit that is about to happen.

    Parameters
    ----------
    reason : ExitReason
        Basic exit reason.
    qualification : int
        Exit qualification; 0 where the reason has none.
    instruction_length : int
        In bytes; 0 where it is not defined.
    instruction_information : int
        VM-exit instruction information; 0 where it is not defined.
    guest_linear_address, guest_physical_address : int
        0 where not defined.
    interruption_information, interruption_error_code : int
        Of an exit caused by an exception, an NMI or an acknowledged interrupt; bit 31 = valid.
    idt_vectoring_information, idt_vectoring_error_code : int
        Of the event whose delivery the exit interrupted; bit 31 = valid.
    pending_debug_exceptions : int or None
        What the guest's field gets; None leaves what the guest state says.
    resume_flag : int or None
        Value of RFLAGS.RF in the saved RFLAGS; None saves it as it is.
    trap : bool
        The instruction completed: the saved RIP references the next one.
    exit_reason_bits : int
        Further bits of the exit-reason field (31 failed entry, 27 enclave, 26 bus lock ...).
    guest_rip : int
        RIP as the guest-state area got it; filled in by the exit, for messages.
    check : str or None
        Id of the VM-entry check that a failed entry broke; for messages, not recorded.
    rule : str
        That check's rule in a sentence; for messages, too.
    """

    reason: ExitReason
    qualification: int = 0
    instruction_length: int = 0
    instruction_information: int = 0
    guest_linear_address: int = 0
    guest_physical_address: int = 0
    interruption_information: int = 0
    interruption_error_code: int = 0
    idt_vectoring_information: int = 0
    idt_vectoring_error_code: int = 0
    pending_debug_exceptions: int | None = None
    resume_flag: int | None = None
    trap: bool = False
    exit_reason_bits: int = 0
    guest_rip: int = 0
    check: str | None = None
    rule: str = ""
