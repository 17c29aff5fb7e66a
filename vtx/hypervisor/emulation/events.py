"""Events on their way into the guest, and the exits that have to do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Pin, Proc1
from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.vmm import VmmLoop, on
from vtx.machine.registers import Interruptibility, Rflags
from vtx.rules.delivery import Event, makes_double_fault
from vtx.rules.injected import DELIVER_ERROR_CODE, VALID, EventType

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.hypervisor.vmm import Vcpu
    from vtx.machine.exit import Exit

__all__ = ["KICK_VECTOR", "Events"]

#: The interrupt that makes another processor leave its guest; it is not passed on.
KICK_VECTOR = 0xF2

TYPE_SHIFT = 8
_NMI_UNBLOCKING = 1 << 12
_UD, _DF, _GP, _PF, NMI_VECTOR = 6, 8, 13, 14, 2
_DOUBLE_FAULT = VALID | DELIVER_ERROR_CODE | EventType.HARDWARE_EXCEPTION << TYPE_SHIFT | _DF
_BLOCKED = Interruptibility.STI | Interruptibility.MOV_SS

#: Exits during which an event may have been on its way to the guest.
_DURING_DELIVERY = frozenset(
    reason for reason, info in EXITS.items() if info.idt_vectoring_possible
)


_SOFTWARE = frozenset(
    {
        EventType.SOFTWARE_INTERRUPT,
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        EventType.SOFTWARE_EXCEPTION,
    }
)


def _event(information: int) -> Event:
    """Return the event that interruption information names."""
    return Event(information & 0xFF, EventType(information >> TYPE_SHIFT & 7))


class Events(VmmLoop):
    """Queues events for the guest, injects them at VM entry, and handles the exits around them."""

    # ---- Queueing -----------------------------------------------------------------------------

    def raise_interrupt(self, cpu: Cpu, vector: int) -> None:
        """Queue an external interrupt for the guest on `cpu`; it gets it when it can take it."""
        self.vcpu(cpu).interrupts.append(vector)

    def raise_nmi(self, cpu: Cpu) -> None:
        """Queue an NMI for the guest on `cpu`."""
        self.vcpu(cpu).nmi = True

    def raise_exception(self, cpu: Cpu, vector: int, error_code: int | None = None) -> None:
        """Let the guest's current instruction end in an exception."""
        information = VALID | EventType.HARDWARE_EXCEPTION << TYPE_SHIFT | vector
        if error_code is not None:
            information |= DELIVER_ERROR_CODE
        self._queue(cpu, information, error_code or 0)

    def _queue(self, cpu: Cpu, information: int, error_code: int, length: int = 0) -> None:
        """Queue an exception; with one whose delivery it interrupted it may become #DF.

        As on a processor without a VMM: a fault in delivery of #DF shuts the guest down.
        """
        vcpu = self.vcpu(cpu)
        nested = _event(information)
        if vcpu.event is not None and nested.type == EventType.HARDWARE_EXCEPTION:
            interrupted = _event(vcpu.event[0])
            if interrupted.vector == _DF and interrupted.type == EventType.HARDWARE_EXCEPTION:
                self._shut_down(cpu.vmread(Field.GUEST_RIP))
                return
            if makes_double_fault(interrupted, nested):
                information, error_code = _DOUBLE_FAULT, 0
        vcpu.event = (information, error_code, length)

    def _shut_down(self, rip: int) -> None:
        self.stop("shutdown", f"the guest has shut down (triple fault) at RIP {rip:#x}")

    def invalid_opcode(self, cpu: Cpu) -> None:
        """Let the guest's current instruction end in #UD."""
        self.raise_exception(cpu, _UD)

    def general_protection(self, cpu: Cpu) -> None:
        """Let the guest's current instruction end in #GP(0)."""
        self.raise_exception(cpu, _GP, 0)

    def kick(self, cpu: Cpu) -> None:
        """Make another processor leave its guest, so that its queue is looked at."""
        if cpu.non_root:
            cpu.pending.interrupts.append(KICK_VECTOR)

    # ---- Injection ----------------------------------------------------------------------------

    def handle(self, cpu: Cpu, exit: Exit) -> None:
        """Keep the event that the exit interrupted, then handle the exit."""
        vcpu = self.vcpu(cpu)
        vcpu.halted = False
        if exit.reason in _DURING_DELIVERY:
            self._keep_interrupted_event(cpu, vcpu)
        super().handle(cpu, exit)

    def _keep_interrupted_event(self, cpu: Cpu, vcpu: Vcpu) -> None:
        """Remember what was being delivered: VM entry has to begin its delivery again."""
        information = cpu.vmread(Field.IDT_VECTORING_INFORMATION)
        if not information & VALID:
            return
        error_code = length = 0
        if information & DELIVER_ERROR_CODE:
            error_code = cpu.vmread(Field.IDT_VECTORING_ERROR_CODE)
        if information >> TYPE_SHIFT & 7 in _SOFTWARE:
            length = cpu.vmread(Field.VM_EXIT_INSTRUCTION_LENGTH)
        if information >> TYPE_SHIFT & 7 == EventType.NMI:
            self._unblock_nmis(cpu)
        vcpu.event = (information & ~_NMI_UNBLOCKING, error_code, length)

    def before_entry(self, cpu: Cpu) -> None:
        """Inject what waits, or ask for an exit as soon as the guest can take it."""
        vcpu = self.vcpu(cpu)
        if not (vcpu.event or vcpu.nmi or vcpu.interrupts):
            return
        taken = bool(cpu.vmread(Field.VM_ENTRY_INTERRUPTION_INFORMATION) & VALID)
        if vcpu.event is not None and not taken:
            self._inject(cpu, *vcpu.event)
            vcpu.event = None
            taken = True
        if vcpu.nmi:
            taken |= self._inject_nmi(cpu, vcpu, taken)
        if vcpu.interrupts:
            self._inject_interrupt(cpu, vcpu, taken)

    def _inject(self, cpu: Cpu, information: int, error_code: int = 0, length: int = 0) -> None:
        if information & DELIVER_ERROR_CODE:
            cpu.vmwrite(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, error_code)
        if information >> TYPE_SHIFT & 7 in _SOFTWARE:
            cpu.vmwrite(Field.VM_ENTRY_INSTRUCTION_LENGTH, length)
        cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFORMATION, information)

    def _inject_nmi(self, cpu: Cpu, vcpu: Vcpu, taken: bool) -> bool:
        """Inject an NMI if the guest can take one; tell whether it was injected."""
        blocked = cpu.vmread(Field.GUEST_INTERRUPTIBILITY_STATE)
        if taken or blocked & (_BLOCKED | Interruptibility.NMI):
            if cpu.vmread(Field.PIN_BASED_CONTROLS) & Pin.VIRTUAL_NMIS:
                self._window(cpu, Proc1.NMI_WINDOW_EXITING, on=True)
            return False
        self._inject(cpu, VALID | EventType.NMI << TYPE_SHIFT | NMI_VECTOR)
        vcpu.nmi = False
        return True

    def _inject_interrupt(self, cpu: Cpu, vcpu: Vcpu, taken: bool) -> None:
        """Inject the next interrupt if the guest can take one; ask for a window for the rest."""
        if not taken and self._accepts_interrupts(cpu):
            self._inject(cpu, VALID | vcpu.interrupts.popleft())
        if vcpu.interrupts:
            self._window(cpu, Proc1.INTERRUPT_WINDOW_EXITING, on=True)

    def _accepts_interrupts(self, cpu: Cpu) -> bool:
        if not cpu.vmread(Field.GUEST_RFLAGS) & Rflags.IF:
            return False
        return not cpu.vmread(Field.GUEST_INTERRUPTIBILITY_STATE) & _BLOCKED

    def _window(self, cpu: Cpu, control: Proc1, *, on: bool) -> None:
        """Set or clear interrupt-window or NMI-window exiting."""
        word = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
        wanted = word | control if on else word & ~control
        if wanted != word:
            cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, wanted)

    def _unblock_nmis(self, cpu: Cpu) -> None:
        """Clear blocking by NMI, which delivery of the interrupted NMI has begun."""
        state = cpu.vmread(Field.GUEST_INTERRUPTIBILITY_STATE)
        if state & Interruptibility.NMI:
            cpu.vmwrite(Field.GUEST_INTERRUPTIBILITY_STATE, state & ~Interruptibility.NMI)

    # ---- Exits --------------------------------------------------------------------------------

    @on(ExitReason.EXCEPTION_OR_NMI)
    def exception_or_nmi(self, cpu: Cpu, exit: Exit) -> None:
        """Give an NMI and an exception to the guest, as if the VMM had not asked for them."""
        information = cpu.vmread(Field.VM_EXIT_INTERRUPTION_INFORMATION)
        vector, kind = information & 0xFF, information >> TYPE_SHIFT & 7
        if kind == EventType.NMI:
            # The exit blocks NMIs; the IRET at the end of the VMM's own handler unblocks them.
            cpu.nmi_blocked = False
            self.raise_nmi(cpu)
            return
        if vector == _PF:
            cpu.regs.cr2 = exit.qualification
        error_code = length = 0
        if information & DELIVER_ERROR_CODE:
            error_code = cpu.vmread(Field.VM_EXIT_INTERRUPTION_ERROR_CODE)
        if kind in _SOFTWARE:
            length = cpu.vmread(Field.VM_EXIT_INSTRUCTION_LENGTH)
        self._queue(cpu, information & ~_NMI_UNBLOCKING, error_code, length)

    @on(ExitReason.EXTERNAL_INTERRUPT)
    def external_interrupt(self, cpu: Cpu, exit: Exit) -> None:
        """Acknowledge the interrupt, if the exit did not, and pass it on to the guest."""
        information = cpu.vmread(Field.VM_EXIT_INTERRUPTION_INFORMATION)
        acknowledged = bool(information & VALID)
        vector = information & 0xFF if acknowledged else cpu.pending.interrupts.popleft()
        if vector != KICK_VECTOR:
            self.raise_interrupt(cpu, vector)

    @on(ExitReason.INTERRUPT_WINDOW)
    def interrupt_window(self, cpu: Cpu, exit: Exit) -> None:
        """Close the window; the next VM entry injects what waits."""
        self._window(cpu, Proc1.INTERRUPT_WINDOW_EXITING, on=False)

    @on(ExitReason.NMI_WINDOW)
    def nmi_window(self, cpu: Cpu, exit: Exit) -> None:
        """Close the window; the next VM entry injects the NMI that waits."""
        self._window(cpu, Proc1.NMI_WINDOW_EXITING, on=False)

    @on(ExitReason.VMX_PREEMPTION_TIMER_EXPIRED)
    def preemption_timer(self, cpu: Cpu, exit: Exit) -> None:
        """Set the timer again, or stop it if nobody set it."""
        if self.guest.preemption_timer is not None:
            cpu.vmwrite(Field.VMX_PREEMPTION_TIMER_VALUE, self.guest.preemption_timer)
            return
        word = cpu.vmread(Field.PIN_BASED_CONTROLS)
        cpu.vmwrite(Field.PIN_BASED_CONTROLS, word & ~Pin.ACTIVATE_VMX_PREEMPTION_TIMER)

    @on(ExitReason.HLT)
    def hlt(self, cpu: Cpu, exit: Exit) -> None:
        """Let the guest wait: what comes next in its program is what wakes it."""
        self.vcpu(cpu).halted = True
        cpu.skip(exit)

    @on(ExitReason.TRIPLE_FAULT)
    def triple_fault(self, cpu: Cpu, exit: Exit) -> None:
        """Stop: a PC would reset."""
        self._shut_down(exit.rip)

    @on(
        ExitReason.ENTRY_FAILURE_GUEST_STATE,
        ExitReason.ENTRY_FAILURE_MSR_LOADING,
        ExitReason.ENTRY_FAILURE_MACHINE_CHECK,
    )
    def entry_failure(self, cpu: Cpu, exit: Exit) -> None:
        """Stop: the VMCS is wrong, and trying again changes nothing."""
        self.check = exit.information.check or ""
        self.stop("entry_failure", exit.explain())

    @on(
        ExitReason.MONITOR_TRAP_FLAG,
        ExitReason.TPR_BELOW_THRESHOLD,
        ExitReason.VIRTUALIZED_EOI,
        ExitReason.APIC_WRITE,
        ExitReason.BUS_LOCK,
    )
    def notified(self, cpu: Cpu, exit: Exit) -> None:
        """Resume: the guest's instruction is done, and there was nothing to emulate."""

    @on(ExitReason.INSTRUCTION_TIMEOUT)
    def instruction_timeout(self, cpu: Cpu, exit: Exit) -> None:
        """Resume, unless the guest's context is lost."""
        if exit.qualification & 1:
            self.stop("shutdown", "the guest's context was lost in an instruction timeout")
