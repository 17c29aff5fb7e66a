"""The loop of VMX non-root operation: boundary, instruction, boundary, until a VM exit."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vtx.errors import EmulationStopped, EndOfTrace, GuestFault, InputError
from vtx.facts.controls import Proc1
from vtx.facts.msrs import Msr
from vtx.machine.events import Event as Counted
from vtx.machine.exit_information import ExitInformation
from vtx.machine.mmu import Access, WalkStatus
from vtx.machine.program import Instruction, Stream
from vtx.machine.registers import Activity, Rflags
from vtx.nonroot.fetch import fetch_address, is_flat
from vtx.nonroot.kernel import NEEDS_RIP, arrive, enter_handler, page_in
from vtx.nonroot.position import at_record, is_fetch, jump, resume, stand
from vtx.rules.boundary import after_vm_entry, at_boundary, is_quiet, steps_to_timer, tick
from vtx.rules.breakpoints import ARMED, before_instruction, conditions_of
from vtx.rules.delivery import exception, fault_event
from vtx.rules.execution import execute
from vtx.rules.execution_apic_page import reference
from vtx.rules.execution_flags import check_virtual_interrupt
from vtx.rules.execution_flow import TRANSFERS
from vtx.rules.execution_memory import ExitTaken, access, stopped
from vtx.rules.exiting import decide

if TYPE_CHECKING:
    from vtx.machine.mmu import RunResult
    from vtx.machine.processor import Processor
    from vtx.machine.program import Cursor

__all__ = ["Guest"]

_TF, _RF = int(Rflags.TF), int(Rflags.RF)
_STI_OR_MOV_SS = 3
#: VIF and VIP.
_VIRTUAL_INTERRUPT = 3 << 19
_SINGLE_STEP = 1 << 14
#: Pending debug exceptions that are more than notes: bus lock, enabled breakpoint, BS, RTM.
_DELIVERED = 1 << 11 | 1 << 12 | _SINGLE_STEP | 1 << 16
#: Single-step on branches, in IA32_DEBUGCTL.
_BTF = 1 << 1
_FETCH = Access.FETCH
_MAX_JUMPS = 100_000


@cache
def _dispositions(count: int) -> Any:
    """Return the array that hands every instruction record of a stream to Python."""
    import numpy as np

    return np.zeros(count, dtype=np.uint8)


class Guest:
    """One stay of a logical processor in VMX non-root operation.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    """

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.regs = processor.regs
        vmcs = processor.vmcs
        assert vmcs is not None
        self.quiet = is_quiet(processor)
        self.traps = bool(not self.quiet and vmcs.proc1 & Proc1.MONITOR_TRAP_FLAG)
        self.jumps = 0

    def enter(self, *, entered: bool) -> ExitInformation | None:
        """Find the step that RIP references; return the exit that VM entry itself leads to."""
        processor = self.processor
        processor.apic_write = None
        exits = None
        if entered:
            processor.pause_loop = None
            exits = after_vm_entry(processor)
        if processor.delivered is not None:
            enter_handler(processor)
        else:
            resume(self.regs, processor.cursors[-1])
        return exits

    def go(self) -> ExitInformation:
        """Execute until a VM exit."""
        processor = self.processor
        while True:
            cursor = processor.cursors[-1]
            operation = cursor.operation
            if isinstance(operation, Instruction):
                if not operation.length:
                    exits = self._arrive(cursor, operation)
                elif self._boundary(cursor):
                    exits = self._waiting_event(cursor)
                else:
                    exits = self._step(cursor, operation)
            elif self._boundary(cursor):
                exits = self._waiting_event(cursor)
            elif operation is not None:
                exits = self._run_stream(cursor, operation)
            else:
                raise _end(cursor)
            if exits is not None:
                return exits

    # ---- Boundaries -----------------------------------------------------------------------------

    def _boundary(self, cursor: Cursor) -> bool:
        """Let RIP reference the next instruction; tell whether anything may happen before it."""
        regs, pending = self.regs, self.processor.pending
        stand(regs, cursor)
        return (
            bool(
                not self.quiet
                or regs.activity_state
                or regs.pending_debug_exceptions
                or pending.interrupts
                or pending.nmi
                or pending.init
                or pending.smi
                or pending.mtf
                or pending.sipi is not None
            )
            and self._has_event()
        )

    def _has_event(self) -> bool:
        """Ask the boundary's rules; keep the exit they return for :meth:`_waiting_event`."""
        self.exits = at_boundary(self.processor)
        return bool(
            self.exits is not None
            or self.processor.delivered is not None
            or self.regs.activity_state
        )

    def _waiting_event(self, cursor: Cursor) -> ExitInformation | None:
        """Do what the boundary's rules said: exit, enter a handler, or wait."""
        if self.exits is not None:
            return self.exits
        if self.processor.delivered is not None:
            self._enter_handler()
        else:
            self._sleep(cursor)
        return None

    def _arrive(self, cursor: Cursor, event: Instruction) -> ExitInformation | None:
        """Let an event arrive that the listing names before the next instruction."""
        cursor.advance()
        if event.name in NEEDS_RIP:
            stand(self.regs, cursor)
        exits = arrive(self.processor, event)
        if self.processor.delivered is not None:
            self._enter_handler()
        return exits

    def _enter_handler(self) -> None:
        enter_handler(self.processor)
        if self.traps:
            self.processor.pending.mtf = True

    def _sleep(self, cursor: Cursor) -> None:
        """Let time pass for a guest that waits, up to the event that wakes it.

        Raises
        ------
        EmulationStopped
            Nothing can wake it.
        """
        timer = steps_to_timer(self.processor)
        if timer is not None and self.regs.activity_state != Activity.WAIT_FOR_SIPI:
            tick(self.processor, timer)
            return
        state, operation = Activity(self.regs.activity_state).name, cursor.current()
        if operation is None:
            raise EndOfTrace(f"the program ended with the guest in the {state} state")
        step = f" before {operation}" if isinstance(operation, Instruction) else ""
        raise EmulationStopped(
            f"the guest is in the {state} state and nothing wakes it: let an event arrive{step}, "
            "such as external_interrupt vector=32"
        )

    # ---- Steps ----------------------------------------------------------------------------------

    def _step(self, cursor: Cursor, instruction: Instruction) -> ExitInformation | None:
        """Execute one instruction of a listing, and find the next."""
        exits = self._execute(cursor, instruction)
        if exits is not None:
            if exits.trap:
                cursor.advance()
                stand(self.regs, cursor)
            return exits
        rip = self.regs.rip
        if self.processor.delivered is not None:
            self._enter_handler()
        elif instruction.name == "iret" and cursor.vector is not None:
            self.processor.cursors.pop()
            resume(self.regs, self.processor.cursors[-1])
        elif rip == instruction.end:
            cursor.advance()
            cursor.address = rip
        else:
            self._jump(cursor, rip)
        return None

    def _jump(self, cursor: Cursor, rip: int) -> None:
        """Go on at the step at `rip`; stop a guest that runs in circles with nothing to stop it."""
        self.jumps += 1
        if self.jumps > _MAX_JUMPS and steps_to_timer(self.processor) is None:
            raise EmulationStopped(
                f"the guest jumped {_MAX_JUMPS} times without a VM exit, last to {rip:#x}: "
                "it would run for ever"
            )
        jump(cursor, rip)

    def _execute(self, cursor: Cursor, instruction: Instruction) -> ExitInformation | None:
        """Fetch, decide, execute; let a fault become the guest's exception."""
        processor, regs = self.processor, self.regs
        if not cursor.reached:
            for name, value in instruction.sets:
                setattr(regs, name, value)
            cursor.reached = True
        blocking = regs.interruptibility_state & _STI_OR_MOV_SS
        flags = regs.rflags
        try:
            self._fetch(instruction, flags)
            if cursor.page_fault is not None:
                page_in(processor, cursor)
            exits = decide(processor, instruction)
            if exits is not None:
                return exits
            exits = execute(processor, instruction)
        except GuestFault as fault:
            processor.apic_write = None
            tick(processor)
            return exception(processor, fault_event(fault))
        except ExitTaken as taken:
            processor.apic_write = None
            return taken.information
        if exits is None or exits.trap:
            self._complete(instruction, blocking, flags)
        return exits

    def _fetch(self, instruction: Instruction, flags: int) -> None:
        """Do what comes before an instruction is decoded: breakpoint, then its bytes."""
        processor, regs = self.processor, self.regs
        if flags & _VIRTUAL_INTERRUPT == _VIRTUAL_INTERRUPT:
            check_virtual_interrupt(regs)
        rip = regs.rip if is_flat(regs) else fetch_address(regs, instruction.length)
        if regs.system.dr7 & ARMED:
            before_instruction(processor, rip)
        access(processor, rip, instruction.length, _FETCH)

    def _single_steps(self, instruction: Instruction) -> bool:
        """Tell whether TF traps here: after branches only with IA32_DEBUGCTL.BTF."""
        regs = self.regs
        if not regs.msrs.get(Msr.IA32_DEBUGCTL, 0) & _BTF:
            return True
        return instruction.name in TRANSFERS and regs.rip != instruction.end

    def _complete(self, instruction: Instruction, blocking: int, flags: int) -> None:
        """Do what follows every instruction that neither faulted nor exited."""
        processor, regs = self.processor, self.regs
        tick(processor)
        processor.events.count(Counted.GUEST_INSTRUCTION)
        if blocking:
            regs.interruptibility_state &= ~blocking
        if not regs.pending_debug_exceptions & _DELIVERED:
            regs.pending_debug_exceptions = 0  # breakpoints that were not enabled
        if processor.watched is not None:
            regs.pending_debug_exceptions |= conditions_of(processor, instruction)
        if flags & (_TF | _RF) and processor.delivered is None:
            if flags & _TF and self._single_steps(instruction):
                regs.pending_debug_exceptions |= _SINGLE_STEP
            if instruction.name not in TRANSFERS:
                regs.rflags &= ~_RF
        if self.traps:
            processor.pending.mtf = True

    # ---- Streams --------------------------------------------------------------------------------

    def _run_stream(self, cursor: Cursor, stream: Stream) -> ExitInformation | None:
        """Run records of a stream until its end, an instruction record, or a fault."""
        processor, regs = self.processor, self.regs
        start = cursor.record
        traced = regs.rflags & _TF
        singly = bool(traced or self.traps or regs.interruptibility_state & _STI_OR_MOV_SS)
        stop = self._stream_stop(stream, start, singly=singly)
        count = len(stream.instructions)
        dispositions = _dispositions(count) if count else None
        result = processor.mmu.run(processor.context, stream.records, start, stop, dispositions)
        if result.index > start:
            tick(processor, result.index - start)
            regs.interruptibility_state &= ~_STI_OR_MOV_SS
            regs.rflags &= ~_RF
            at_record(cursor, stream, result.index)
            if singly and result.status == WalkStatus.END:
                if traced:
                    regs.pending_debug_exceptions |= _SINGLE_STEP
                processor.pending.mtf |= self.traps
        if result.status == WalkStatus.END:
            return None
        return self._stream_event(cursor, stream, result)

    def _stream_stop(self, stream: Stream, start: int, *, singly: bool) -> int:
        """Return where the window of records must end, so that events hit their boundary."""
        stop = stream.stop
        timer = steps_to_timer(self.processor)
        if timer is not None:
            stop = min(stop, start + timer)
        if singly:
            index = start + 1
            while index < stop and not is_fetch(int(stream.records[index])):
                index += 1
            stop = min(stop, index)
        return stop

    def _stream_event(
        self, cursor: Cursor, stream: Stream, result: RunResult
    ) -> ExitInformation | None:
        """Deal with what stopped a run of records before the end of its window."""
        stand(self.regs, cursor)
        if result.status == WalkStatus.BAD_RECORD:
            raise InputError(
                f"record {result.index} of the stream refers to instruction {result.operand}, "
                f"but there are {len(stream.instructions)}"
            )
        if result.status == WalkStatus.INSTRUCTION:
            return self._stream_instruction(cursor, stream, stream.instructions[result.operand])
        assert result.walk is not None
        if result.status == WalkStatus.APIC_ACCESS:
            return self._apic_reference(cursor, stream, result.walk.gva)
        why = stopped(self.processor, result.walk)
        if isinstance(why, ExitTaken):
            return why.information
        if not isinstance(why, GuestFault):
            raise why
        exits = exception(self.processor, fault_event(why))
        if exits is None:
            self._enter_handler()
        return exits

    def _apic_reference(
        self, cursor: Cursor, stream: Stream, linear: int
    ) -> ExitInformation | None:
        """Do a reference to the APIC-access page, which may be virtualized."""
        index = cursor.record
        record = int(stream.records[index])
        size = min(record >> 48 & 0x3FFF, 0x1000 - (linear & 0xFFF))
        exits = reference(self.processor, linear, size, record >> 62)
        if exits is not None and not exits.trap:
            return exits
        tick(self.processor)
        at_record(cursor, stream, index + 1)
        stand(self.regs, cursor)
        if index + 1 >= stream.stop or is_fetch(int(stream.records[index + 1])):
            # The instruction that the reference belongs to is done.
            if self.regs.rflags & _TF:
                self.regs.pending_debug_exceptions |= _SINGLE_STEP
            self.processor.pending.mtf |= self.traps
        return exits

    def _stream_instruction(
        self, cursor: Cursor, stream: Stream, instruction: Instruction
    ) -> ExitInformation | None:
        """Execute an instruction that stands in a stream."""
        if not instruction.length:
            at_record(cursor, stream, cursor.record + 1)
            exits = arrive(self.processor, instruction)
        else:
            exits = self._execute(cursor, instruction)
            if exits is not None and not exits.trap:
                return exits
            if self.processor.delivered is None:
                at_record(cursor, stream, cursor.record + 1)
                stand(self.regs, cursor)
        if self.processor.delivered is not None:
            self._enter_handler()
        return exits


def _end(cursor: Cursor) -> EmulationStopped:
    """Return what to raise at the end of a program."""
    if cursor.vector is None:
        name = f" {cursor.program.name}" if cursor.program.name else ""
        return EndOfTrace(f"the program{name} has no further step")
    return EmulationStopped(f"the guest's handler of vector {cursor.vector} ends without iret")
