"""Exits without progress: the same exit again and again, and nothing has changed in between.

The most frequent mistake in a VMM's handler is to change nothing: RIP stays at the instruction, the
page stays unmapped, and the guest exits as before, for ever. :class:`Progress` notices that and
says what was forgotten.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from vtx.errors import EXCEPTIONS, EmulationStopped
from vtx.facts.exits import EXITS, ExitKind, ExitReason
from vtx.facts.fields import Field
from vtx.machine.exit_views import EptAccess
from vtx.machine.registers import GPR_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.paging import Ept
    from vtx.machine.processor import Processor

__all__ = ["Progress"]

#: So many exits of one reason at one RIP, for one address, must come before the whole state is
#: looked at ...
_SUSPICIOUS = 8
#: ... and so many times in a row it must be the same before the guest is stopped. A guest whose
#: own handler changes nothing is found out before, by its kernel, which can say more.
_PATIENCE = 32
_NOWHERE = (-1, -1, -1)

_GENERAL_REGISTERS = attrgetter(*GPR_NAMES)

#: What makes an exit happen again, by reason, where it is not RIP.
_CAUSES: Final[Mapping[ExitReason, str]] = {
    ExitReason.EPT_MISCONFIGURATION: "the handler did not correct the EPT entry: write it anew "
    "with cpu.ept.map",
    ExitReason.EXCEPTION_OR_NMI: "the handler neither injected the exception (cpu.inject) nor "
    "removed its cause",
    ExitReason.EXTERNAL_INTERRUPT: "the handler did not acknowledge the interrupt: set "
    '"acknowledge interrupt on exit", or take it from cpu.pending.interrupts',
    ExitReason.INTERRUPT_WINDOW: 'the handler did not turn "interrupt-window exiting" off',
    ExitReason.NMI_WINDOW: 'the handler did not turn "NMI-window exiting" off',
    ExitReason.VMX_PREEMPTION_TIMER_EXPIRED: "the handler did not set the VMX-preemption timer "
    "again",
    ExitReason.PAGE_MODIFICATION_LOG_FULL: "the handler did not reset the PML index",
    ExitReason.TPR_BELOW_THRESHOLD: "the handler neither lowered the TPR threshold nor injected "
    "the interrupt",
    ExitReason.TRIPLE_FAULT: "after a triple fault the guest has to be reset: its state still is "
    "that of the fault",
}
_RIP_STAYED = (
    "the handler did not advance RIP, which a fault-like exit leaves at the instruction: call "
    "cpu.skip(exit)"
)


class Progress:
    """Watches the exits of one logical processor."""

    __slots__ = ("_place", "_repeats", "_same", "_state")

    def __init__(self) -> None:
        self._place: tuple[int, int, int] = _NOWHERE
        self._repeats = self._same = 0
        self._state: object = None

    def see(self, processor: Processor, info: ExitInformation, ept: Ept | None) -> None:
        """Take note of an exit.

        Parameters
        ----------
        processor : Processor
            After the exit.
        info : ExitInformation
            The exit.
        ept : Ept or None
            The guest's EPT, to tell what is missing in it.

        Raises
        ------
        EmulationStopped
            The same exit has come too often with nothing changed in between.
        """
        place = (info.reason, info.guest_rip, info.guest_physical_address)
        if place != self._place:
            self._place, self._repeats, self._same, self._state = place, 0, 0, None
            return
        self._repeats += 1
        if self._repeats < _SUSPICIOUS:
            return
        state = _state(processor)
        if state != self._state:
            self._state, self._same = state, 0
            return
        self._same += 1
        if self._same >= _PATIENCE:
            self._place = _NOWHERE
            raise EmulationStopped(_sentence(info, ept))


def _state(processor: Processor) -> object:
    """Return what would differ if anything had happened between two exits."""
    vmcs = processor.vmcs
    assert vmcs is not None
    values, cursor = vmcs.values, processor.cursors[0] if processor.cursors else None
    return (
        values[Field.EXIT_REASON],
        values[Field.GUEST_RIP],
        values[Field.EXIT_QUALIFICATION],
        values[Field.GUEST_PHYSICAL_ADDRESS],
        values[Field.GUEST_RFLAGS],
        len(processor.pending.interrupts),
        cursor and (cursor.index, cursor.record, tuple(cursor.iterations.items())),
        _GENERAL_REGISTERS(processor.regs),
    )


def _sentence(info: ExitInformation, ept: Ept | None) -> str:
    """Say why the same exit keeps coming, and what helps."""
    row = EXITS[info.reason]
    if info.reason is ExitReason.EPT_VIOLATION:
        cause = _ept_violation(info, ept)
    elif row.kind is ExitKind.ENTRY_FAILURE:
        rule = f" {info.rule}" if info.rule else ""
        cause = f"the VMCS still breaks the rule{rule or ' ' + str(info.check or '')}"
    elif info.reason is ExitReason.EXCEPTION_OR_NMI and info.idt_vectoring_information >> 31:
        cause = _exception_in_delivery(info)
    else:
        cause = _CAUSES.get(info.reason, _RIP_STAYED)
    return (
        f"the exit {row.sdm_title!r} at RIP {info.guest_rip:#x} happens again and again, and "
        f"nothing changes in between; {cause}"
    )


def _exception_in_delivery(info: ExitInformation) -> str:
    """Say what two exceptions, the second met while the first was delivered, come to."""
    first, second = (
        EXCEPTIONS.get(word & 0xFF, f"vector {word & 0xFF}")
        for word in (info.idt_vectoring_information, info.interruption_information)
    )
    return (
        f"{second} arises while {first} is delivered (IDT-vectoring information): what is injected "
        'cannot be delivered; where the two make a double fault, inject #DF: cpu.inject("#DF")'
    )


def _ept_violation(info: ExitInformation, ept: Ept | None) -> str:
    """Say what EPT still lacks."""
    access = EptAccess.decode(
        info.qualification, info.guest_physical_address, info.guest_linear_address
    )
    mapping = ept.lookup(access.gpa) if ept is not None else None
    if mapping is None:
        linear = access.gla
        if linear and linear != access.gpa and ept is not None and _is_mapped(ept, linear):
            return (
                f"the handler mapped the guest-linear address {linear:#x}, but EPT translates "
                f"guest-physical addresses: call cpu.ept.map(exit.ept.gpa), here {access.gpa:#x}"
            )
        return f"the handler did not map the page: call cpu.ept.map(exit.ept.gpa), {access.gpa:#x}"
    wanted = {"read": access.read, "write": access.write, "execute": access.fetch}
    given = {
        "read": mapping.readable, "write": mapping.writable, "execute": mapping.executable,
    }  # fmt: skip
    missing = [right for right, needed in wanted.items() if needed and not given[right]]
    if missing:
        rights = ", ".join(f"{right}=True" for right in missing)
        return (
            f"EPT maps guest-physical address {access.gpa:#x} without permission to "
            f"{' and '.join(missing)}: call cpu.ept.map(exit.ept.gpa, {rights})"
        )
    return (
        f"cpu.ept maps guest-physical address {access.gpa:#x}, but the EPT pointer of the VMCS "
        "leads elsewhere, or the access has to be emulated and skipped"
    )


def _is_mapped(ept: Ept, address: int) -> bool:
    return address < 1 << (12 + 9 * ept.levels) and ept.lookup(address) is not None
