"""The state of one logical processor, shared by the rules that read and change it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vtx.machine.events import EventLog
from vtx.machine.mmu import Context, Mmu
from vtx.machine.registers import Registers

if TYPE_CHECKING:
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
    nmi, init, mtf, smi : bool
        A non-maskable interrupt, an INIT signal, a monitor-trap-flag exit, an SMI is pending.
    sipi : int or None
        Vector of a start-up IPI.
    """

    interrupts: deque[int] = field(default_factory=deque)
    nmi: bool = False
    init: bool = False
    mtf: bool = False
    smi: bool = False
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
    context : Context
        What translation depends on, kept equal to registers and VMCS.
    tsc : int
        Time-stamp counter of the model: it counts guest steps, so that runs repeat exactly.
    cursors : list of Cursor
        The guest's program, and on top of it the handlers it is in.
    """

    def __init__(
        self, shape: Shape, memory: Memory, number: int = 0, events: EventLog | None = None
    ) -> None:
        self.shape = shape
        self.memory = memory
        self.number = number
        self.events = events if events is not None else EventLog()
        self.regs = Registers()
        self.mmu = Mmu(memory, shape)
        self.context = Context()
        self.in_vmx = False
        self.non_root = False
        self.smm = False
        self.vmxon_pointer = NO_VMCS
        self.current_vmcs_pointer = NO_VMCS
        self.vmcs: Vmcs | None = None
        self.link_vmcs: Vmcs | None = None
        self.pending = PendingEvents()
        self.nmi_blocked = False
        self.monitor_armed = False
        self.preemption_timer: int | None = None
        self.tsc = 0
        self.steps = 0
        self.cursors: list[Cursor] = []
