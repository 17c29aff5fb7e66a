"""The state of one logical processor, shared by the rules that read and change it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vtx.machine.events import EventLog
from vtx.machine.mmu import Context, Mmu
from vtx.machine.registers import Registers, SystemRegisters

if TYPE_CHECKING:
    from vtx.machine.exit import Exit
    from vtx.machine.memory import Memory
    from vtx.machine.program import Cursor
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = ["NO_VMCS", "PendingEvents", "Processor"]

#: The current-VMCS pointer when there is no current VMCS.
NO_VMCS = 0xFFFF_FFFF_FFFF_FFFF


@dataclass
class PendingEvents:
    """Events that wait for an instruction boundary (SDM, "Interrupt and Exception Handling").

    Attributes
    ----------
    interrupts : deque of int
        Vectors of external interrupts at the local APIC, first come first.
    nmi, init, mtf, smi, machine_check : bool
        A non-maskable interrupt, an INIT signal, a monitor-trap-flag exit, an SMI, a machine
        check is pending.
    sipi : int or None
        Vector of a start-up IPI.
    """

    interrupts: deque[int] = field(default_factory=deque)
    nmi: bool = False
    init: bool = False
    mtf: bool = False
    smi: bool = False
    machine_check: bool = False
    sipi: int | None = None


class Processor:
    """One logical processor: registers, VMX state, translation, pending events.

    Parameters
    ----------
    shape : Shape
        What CPU this is.
    memory : Memory
        The machine's physical memory, shared by all its logical processors.
    number : int
        Which of the machine's logical processors this is.
    events : EventLog, optional
        Where events are counted; a new log by default.

    Attributes
    ----------
    regs : Registers
        The register state of the current mode: the guest's in VMX non-root operation, the
        host's in VMX root operation (general-purpose registers are shared, as on silicon).
    in_vmx : bool
        VMXON has executed.
    non_root : bool
        In VMX non-root operation.
    vmxon_pointer, current_vmcs_pointer : int
        Physical addresses; :data:`NO_VMCS` when there is none.
    vmcs : Vmcs or None
        Data of the current VMCS.
    link_vmcs : Vmcs or None
        Data of the VMCS that the VMCS link pointer references, for VMCS shadowing.
    active_vmcss : dict of int to Vmcs
        Data of all active VMCSs by the physical address of their regions.
    vmx_session : int
        How often VMXON has succeeded.
    in_smx, in_seam, smm, dual_monitor_active, a20m : bool
        In SMX operation, in SEAM root operation, in system-management mode, under the
        dual-monitor treatment of SMIs and SMM, in A20M mode. The machine never sets them itself:
        they are there for the rules that look at them.
    init_blocked, smi_blocked, a20m_blocked : bool
        INIT signals, SMIs, and A20M mode are blocked.
    nmi_blocked : bool
        NMIs are blocked (not virtual NMIs: those are in the interruptibility state).
    monitor_armed : bool
        MONITOR has armed address-range monitoring.
    preemption_timer : int or None
        Value of the VMX-preemption timer; None while it does not run.
    context : Context
        What translation depends on, kept equal to registers and VMCS in VMX non-root operation.
    context_vmcs : Vmcs or None
        Whose guest `context` belongs to.
    root_system : SystemRegisters or None
        Values of the system registers under which the processor is known to be in VMX root
        operation with a current VMCS, at CPL 0 of 64-bit mode: what VMX instructions ask for.
    tsc : int
        Time-stamp counter of the model: it counts guest steps, so that runs repeat exactly.
    delivered : tuple of (int, int or None), or None
        Vector and error code of the event that took the guest to where RIP is, until the run loop
        has seen it.
    pushed_bytes : int
        Bytes of each item that this delivery pushed: 8, 4 or 2.
    watched : list of (int, int, int) or None
        Linear address, bytes and kind of the data accesses of the current instruction, while
        DR7 enables a breakpoint.
    same_fault : tuple of (object, int)
        The last exception that was delivered and where the guest's program stood, and how often
        that has repeated itself.
    pause_loop : tuple of int, or None
        When the first and the last PAUSE of the current loop executed, for PAUSE-loop exiting.
    apic_write : int or None
        Offset in the virtual-APIC page that the current instruction has written, if any.
    cursors : list of Cursor
        The guest's program, and on top of it the handlers it is in.
    observer : callable or None
        Called with the processor before every step of its guest; slow, for steppers.
    last_exit : Exit or None
        The VM exit that the VMCS tells of.
    """

    def __init__(
        self,
        shape: Shape,
        memory: Memory,
        number: int = 0,
        events: EventLog | None = None,
        mmu: Mmu | None = None,
    ) -> None:
        self.shape = shape
        self.memory = memory
        self.number = number
        self.events = events if events is not None else EventLog()
        #: The VMCS fields that the CPU has, and those that VMWRITE may write.
        self.fields = shape.fields
        self.writable_fields = shape.writable_fields
        self.regs = Registers()
        self.mmu = Mmu(memory, shape) if mmu is None else mmu
        self.context = Context()
        self.in_vmx = False
        self.non_root = False
        self.smm = False
        self.vmxon_pointer = NO_VMCS
        self.current_vmcs_pointer = NO_VMCS
        self.active_vmcss: dict[int, Vmcs] = {}
        self.vmx_session = 0
        self.in_smx = False
        self.in_seam = False
        self.dual_monitor_active = False
        self.a20m = False
        self.init_blocked = False
        self.smi_blocked = False
        self.a20m_blocked = False
        self.context_vmcs: Vmcs | None = None
        self.root_system: SystemRegisters | None = None
        self.vmcs: Vmcs | None = None
        self.link_vmcs: Vmcs | None = None
        self.pending = PendingEvents()
        self.nmi_blocked = False
        self.monitor_armed = False
        self.delivered: tuple[int, int | None] | None = None
        self.pushed_bytes = 8
        self.watched: list[tuple[int, int, int]] | None = None
        self.same_fault: tuple[object, int] = (None, 0)
        self.pause_loop: tuple[int, int] | None = None
        self.apic_write: int | None = None
        self.preemption_timer: int | None = None
        self.tsc = 0
        self.steps = 0
        self.cursors: list[Cursor] = []
        self.observer: Callable[[Processor], None] | None = None
        self.last_exit: Exit | None = None

    @property
    def peers(self) -> Sequence[Processor]:
        """The machine's logical processors, this one among them: whom its interrupts can reach."""
        return (self,)
