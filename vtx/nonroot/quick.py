"""The quick way of a round trip: VMRESUME, one instruction that exits, and the VM exit.

Most round trips change nothing but RIP. The rules have then nothing to decide that they have not
decided before: every check would look at the same bits, entry and exit would exchange the same two
values, the instruction would exit with the same information. :class:`QuickPath` remembers what the
rules said, tests that nothing they look at has changed, and does what remains: one instruction
fetch through the TLB, the exit's record, the counts.

Nothing here says what VT-x does. What an instruction's exit reports comes from
:func:`vtx.rules.exiting.decide`, asked once on a stand-in for the processor that has only what
cannot change unseen (:class:`_Steady`); what checks look at, from their registry; what transitions
exchange, from :mod:`vtx.rules.transitions_synced`. Whenever in doubt :meth:`QuickPath.round_trip`
does nothing, and the full way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field
from vtx.machine.events import Event
from vtx.machine.program import Instruction
from vtx.machine.registers import (
    GPR_NAMES,
    AccessRights,
    MsrFile,
    Registers,
    Rflags,
    SystemRegisters,
)
from vtx.machine.vmcs import Vmcs
from vtx.rules.boundary import is_quiet
from vtx.rules.breakpoints import ARMED
from vtx.rules.check import rip_judged
from vtx.rules.exiting import decide
from vtx.rules.transitions import record_information
from vtx.rules.transitions_synced import Synced

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor

__all__ = ["QuickPath", "learn"]

_RIP = Field.GUEST_RIP
_MOVED = frozenset({_RIP})
_VM_ENTRY, _VM_EXIT = int(Event.VM_ENTRY), int(Event.VM_EXIT)
_VM = int(Rflags.VM)
_PAGE = 4096

#: Fields that a decision must not depend on: they may change between round trips.
_VOLATILE = frozenset(
    {
        _RIP,
        Field.GUEST_RSP,
        Field.GUEST_INTERRUPTIBILITY_STATE,
        Field.GUEST_ACTIVITY_STATE,
        Field.GUEST_PENDING_DEBUG_EXCEPTIONS,
        Field.VM_ENTRY_INTERRUPTION_INFORMATION,
        Field.VM_ENTRY_EXCEPTION_ERROR_CODE,
        Field.VM_ENTRY_INSTRUCTION_LENGTH,
        *(field for field, info in FIELDS.items() if info.area is Area.READ_ONLY),
    }
)
#: Fields that must be 0 in a guest that enters and exits without anything else happening.
_ZERO = (
    Field.VM_ENTRY_MSR_LOAD_COUNT,
    Field.VM_EXIT_MSR_STORE_COUNT,
    Field.VM_EXIT_MSR_LOAD_COUNT,
    Field.GUEST_ACTIVITY_STATE,
    Field.GUEST_INTERRUPTIBILITY_STATE,
    Field.GUEST_PENDING_DEBUG_EXCEPTIONS,
)
#: Exits that :func:`vtx.rules.exiting.decide` has no say in: accesses to memory, and events.
_UNDECIDED = frozenset(
    {
        ExitReason.EPT_VIOLATION,
        ExitReason.EPT_MISCONFIGURATION,
        ExitReason.EXCEPTION_OR_NMI,
        ExitReason.EXTERNAL_INTERRUPT,
        ExitReason.PAGE_MODIFICATION_LOG_FULL,
        ExitReason.SPP_RELATED_EVENT,
        ExitReason.VMX_PREEMPTION_TIMER_EXPIRED,
    }
)
#: So many round trips in a row must have changed only RIP before decisions are remembered.
_PATIENCE = 3
_INJECTED = Field.VM_ENTRY_INTERRUPTION_INFORMATION
_RFLAGS = Field.GUEST_RFLAGS
_TRACED = Rflags.RF | Rflags.TF | Rflags.VM | Rflags.VIP
_PROC1 = Field.PRIMARY_PROCESSOR_BASED_CONTROLS

#: Registers that stay as they are while only RIP changes, and what is made of them.
_STEADY_REGISTERS = frozenset(
    {*SystemRegisters._fields, "system", "rip", "rflags", "msrs", "read_msr", "efer", "cpl"}
    | {"in_protected_mode", "in_virtual_8086_mode", "in_ia32e_mode", "in_64bit_mode"}
    | {"in_compatibility_mode", "uses_pae_paging"}
)


class _Unsteady(Exception):
    """A decision looked at something that can change unseen."""


class _SteadyRegisters:
    """The registers of a guest of which only those can be read that are sure to be the same."""

    def __init__(self, regs: Registers, known: frozenset[str]) -> None:
        self._regs = regs
        self._known = known

    def __getattr__(self, name: str) -> Any:
        if name not in _STEADY_REGISTERS and name not in self._known:
            raise _Unsteady(name)
        return getattr(self._regs, name)

    def gpr(self, number: int) -> int:
        """Return the general-purpose register with this number, if the instruction sets it."""
        value: int = getattr(self, GPR_NAMES[number])
        return value


class _Steady:
    """What stands in for a processor: its CPU, its VMCS without what changes, steady registers."""

    def __init__(self, processor: Processor, known: Synced, instruction: Instruction) -> None:
        assert processor.vmcs is not None
        assert known.guest is not None
        self.shape = processor.shape
        self.vmcs = processor.vmcs.copy()
        regs = Registers()
        regs.system = known.guest
        regs.msrs = MsrFile(dict(processor.regs.msrs) | known.to_guest)
        regs.rflags = self.vmcs.values[_RFLAGS]
        regs.rip = instruction.rip
        for name, value in instruction.sets:
            setattr(regs, name, value)
        self.regs = _SteadyRegisters(regs, frozenset(name for name, _ in instruction.sets))
        for field in _VOLATILE:
            del self.vmcs.values[field]

    def __getattr__(self, name: str) -> Any:
        raise _Unsteady(name)


@dataclass(slots=True)
class _Decision:
    """An instruction that always exits the same way, while only RIP changes.

    Attributes
    ----------
    instruction : Instruction
    information : ExitInformation
        Of its exit; shared by all exits, so nobody may change it.
    rip, end : int
        Where the instruction stands.
    sets : tuple of (str, int)
        What it puts into registers when it is first reached.
    fetch : callable
        Fetches it (:meth:`vtx.machine.mmu.Mmu.fetcher`).
    """

    instruction: Instruction
    information: ExitInformation
    rip: int
    end: int
    sets: tuple[tuple[str, int], ...]
    fetch: Callable[[], int]


def _decision(
    processor: Processor, known: Synced, instruction: Instruction, info: ExitInformation
) -> _Decision | None:
    """Return how `instruction` exits whenever it is executed; None if that is not sure."""
    if instruction.rip % _PAGE + instruction.length > _PAGE:
        return None
    if any(name == "rsp" or name not in GPR_NAMES for name, _ in instruction.sets):
        return None
    steady = _Steady(processor, known, instruction)
    try:
        decided = decide(cast("Processor", steady), instruction)
    except (_Unsteady, KeyError, GuestFault):
        return None
    if decided is None or decided.trap or decided.pending_debug_exceptions is not None:
        return None
    decided.guest_rip = instruction.rip
    if decided != info or decided.interruption_information:
        return None
    return _Decision(
        instruction,
        decided,
        instruction.rip,
        instruction.end,
        instruction.sets,
        processor.mmu.fetcher(processor.context, instruction.rip),
    )


class QuickPath:
    """What is known of a VMCS that is entered again and again on one logical processor.

    Parameters
    ----------
    processor : Processor
        In VMX root operation, right after a VM exit.
    vmcs : Vmcs
        Its current VMCS.
    known : Synced
        What both have in common.
    """

    __slots__ = (
        "calm",
        "decisions",
        "host",
        "host_rip",
        "host_rsp",
        "judged_rip",
        "known",
        "last",
        "processor",
        "ready",
        "recorded",
        "to_guest",
        "values",
        "vmcs",
        "watched_rip",
    )

    def __init__(self, processor: Processor, vmcs: Vmcs, known: Synced) -> None:
        self.processor = processor
        self.vmcs = vmcs
        self.values = vmcs.values
        self.known = known
        self.to_guest = known.to_guest
        self.host = known.host
        self.host_rip = vmcs.values[Field.HOST_RIP]
        self.host_rsp = vmcs.values[Field.HOST_RSP]
        self.decisions: dict[int, _Decision | None] = {}
        #: That of the instruction at which the guest stands.
        self.last: _Decision | None = None
        self.judged_rip = self.watched_rip = 0
        self.recorded: ExitInformation | None = None
        self.ready = False
        self.calm = 0

    def round_trip(self) -> ExitInformation | None:
        """Enter the guest and leave it again, if that is known to be like the last time.

        Returns
        -------
        ExitInformation or None
            The VM exit, which is complete; None: nothing has happened.
        """
        processor, decision = self.processor, self.last
        if decision is None or not self.ready or self._has_changed(processor):
            self._decline()
            return None
        cursor, values = processor.cursors[-1], self.values
        # An instruction that is to exit again with RIP unmoved is for the full way, which notices
        # exits without progress.
        if (
            cursor.operation is not decision.instruction
            or values[_RIP] != decision.end
            or cursor.address is None
        ):
            self._decline()
            return None
        # As the full way begins, too: it will find the cursor where it left it.
        cursor.advance()
        cursor.address = decision.end
        if cursor.operation is not decision.instruction:
            decision = self.last = self.decisions.get(id(cursor.operation))
        if decision is None or not decision.fetch():
            self._decline()
            return None
        cursor.reached = True
        rip = cursor.address = decision.rip
        regs = processor.regs
        for name, value in decision.sets:
            setattr(regs, name, value)
        self._exit(processor, decision.information, rip)
        regs.rip = self.host_rip
        regs.rsp = self.host_rsp
        regs.rflags = 2
        return decision.information

    def _has_changed(self, processor: Processor) -> bool:
        """Tell whether anything but RIP may have changed since the last exit."""
        regs, vmcs, pending = processor.regs, self.vmcs, processor.pending
        system = regs.system
        return bool(
            not vmcs.dirty <= _MOVED
            or (self.values[_RIP] ^ self.judged_rip) & self.watched_rip
            or system is not self.host
            or system is not processor.root_system
            or regs.msrs.changed
            or regs.rflags & _VM
            or regs.interruptibility_state
            or regs.activity_state
            or regs.pending_debug_exceptions
            or processor.context_vmcs is not vmcs
            or processor.vmx_session != vmcs.session
            or processor.smm
            or processor.in_seam
            or processor.delivered is not None
            or pending.interrupts
            or pending.nmi
            or pending.init
            or pending.mtf
            or pending.smi
            or pending.machine_check
            or pending.sipi is not None
            or not processor.cursors
            or processor.cursors[-1].page_fault is not None
        )

    def _exit(self, processor: Processor, info: ExitInformation, rip: int) -> None:
        """Leave behind what entry and exit do to counts, the record and fields."""
        values, dirty, events = self.values, self.vmcs.dirty, processor.events
        dirty.clear()
        if values[_RIP] != rip:
            values[_RIP] = rip
            dirty.add(_RIP)
        if info is not self.recorded:
            record_information(self.vmcs, info)
            self.recorded = info
            processor.pause_loop = processor.apic_write = None
        processor.nmi_blocked = False
        events.row[_VM_ENTRY] += 1
        reason = info.reason
        if reason is not events.reason:
            events.handle(reason)
        events.row[_VM_EXIT] += 1
        number = events.exit_count
        events.exit_count = number + 1
        events.keep(
            (
                number,
                processor.number,
                processor.steps,
                reason,
                info.qualification,
                rip,
                info.guest_physical_address,
                0,
            )
        )

    def _decline(self) -> None:
        """Prepare for a VM entry on the full way."""
        self.ready = False
        dirty = self.vmcs.dirty
        if dirty <= _MOVED:
            self.calm += 1
            return
        self.calm = 0
        if not dirty <= _VOLATILE:
            self.decisions.clear()

    def learn(self, processor: Processor, info: ExitInformation) -> None:
        """Remember what a round trip on the full way has shown.

        Parameters
        ----------
        processor : Processor
            In VMX root operation, right after the exit.
        info : ExitInformation
            The exit.
        """
        judged = rip_judged(self.vmcs, processor)
        if judged is None or not _is_settled(processor, self.vmcs):
            return
        self.judged_rip, self.watched_rip = judged
        self.recorded = None
        self.ready = True
        operation = processor.cursors[-1].operation if processor.cursors else None
        if (
            self.calm > _PATIENCE
            and isinstance(operation, Instruction)
            and id(operation) not in self.decisions
            and operation.rip == info.guest_rip
        ):
            self.decisions[id(operation)] = _decision(processor, self.known, operation, info)
        self.last = self.decisions.get(id(operation))


def learn(processor: Processor, info: ExitInformation) -> None:
    """Remember a round trip on the full way, so that the next one may be quick.

    Parameters
    ----------
    processor : Processor
        After the VM exit of a VMRESUME.
    info : ExitInformation
        The exit.
    """
    vmcs = processor.vmcs
    if vmcs is None or info.exit_reason_bits:
        return
    if info.reason in _UNDECIDED:
        # No instruction exits so whatever happens: there is nothing to remember.
        if type(vmcs.quick) is QuickPath:
            vmcs.quick.ready = False
        return
    known = vmcs.synced
    if type(known) is not Synced or not known.paired or not known.plain or known.fresh:
        vmcs.quick = None
        return
    quick = vmcs.quick
    if (
        not isinstance(quick, QuickPath)
        or quick.processor is not processor
        or quick.known is not known
        or quick.to_guest is not known.to_guest
        or quick.host is not known.host
    ):
        quick = vmcs.quick = QuickPath(processor, vmcs, known)
    quick.learn(processor, info)


def _is_settled(processor: Processor, vmcs: Vmcs) -> bool:
    """Tell whether the fields of a VMCS rule out all that a quick round trip leaves out."""
    known, values = vmcs.synced, vmcs.values
    assert isinstance(known, Synced)
    return (
        known.plan.host_64bit
        and known.plan.ia32e_guest
        and (known.guest is known.left or known.guest == known.left)
        and not any(values[field] for field in _ZERO)
        and not values[_INJECTED] >> 31
        and not values[Field.GUEST_DR7] & ARMED
        # Code is fetched from RIP itself, and no virtual interrupt can be waiting.
        and bool(values[Field.GUEST_CS_ACCESS_RIGHTS] & AccessRights.L)
        and not values[_RFLAGS] & _TRACED
        and not values[_PROC1] & Proc1.USE_TPR_SHADOW
        and not known.proc2 & Proc2.VIRTUALIZE_APIC_ACCESSES
        and is_quiet(processor)
    )
