"""A processor inside its guest that each example sets up anew."""

from __future__ import annotations

from tests.nonroot.guests import GuestCpu
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1
from vtx.facts.fields import Field as F
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit_information import ExitInformation
from vtx.machine.processor import Processor
from vtx.machine.registers import Segment
from vtx.machine.vmcs import Vmcs
from vtx.rules.execution import execute
from vtx.rules.execution_context import refresh

__all__ = ["ACTIVATE", "GUEST", "Bench", "execution", "fault_of"]

#: Host-physical address of the guest's physical memory.
GUEST = 1 << 30
#: Free memory of the VMM, for bitmaps.
PAGES = [0x90_0000 + 0x1000 * n for n in range(8)]
ACTIVATE = Proc1.ACTIVATE_SECONDARY_CONTROLS | Proc1.ACTIVATE_TERTIARY_CONTROLS


class Bench:
    """One processor inside a guest, set up anew for each example."""

    def __init__(self, cpu: GuestCpu) -> None:
        self.cpu = cpu
        assert cpu.vmcs is not None
        self.vmcs: Vmcs = cpu.vmcs
        self._registers = cpu.regs.copy()
        #: The VMCS's fields before any example.
        self.initial = dict(cpu.vmcs.values)

    def __call__(
        self, fields: dict[F, int] | None = None, cpl: int = 0, **registers: int
    ) -> Processor:
        cpu = self.cpu
        cpu.regs = self._registers.copy()
        cpu.pause_loop = cpu.delivered = cpu.apic_write = None
        cpu.nmi_blocked = cpu.monitor_armed = False
        self.vmcs.values.update(self.initial)
        self.vmcs[F.PRIMARY_PROCESSOR_BASED_CONTROLS] = ACTIVATE
        self.vmcs[F.SECONDARY_PROCESSOR_BASED_CONTROLS] = 0
        for field, value in (fields or {}).items():
            self.vmcs[field] = value
        for name, value in registers.items():
            setattr(cpu.regs, name, value)
        cpu.regs.ss = Segment(0x10 | cpl, 0, 0xFFFF_FFFF, 0xC093 | cpl << 5)
        refresh(cpu)
        return cpu

    def page(self, number: int, *bits: int) -> int:
        """Return the address of a page with these bits set and all others 0."""
        memory = self.cpu.memory
        memory.write(PAGES[number], bytes(4096))
        for bit in bits:
            at = PAGES[number] + bit // 8
            memory.write_u8(at, memory.read_u8(at) | 1 << bit % 8)
        return PAGES[number]


def execution(processor: Processor, text: str) -> ExitInformation | None:
    """Execute one line; its values go into the registers first."""
    step = parse_instruction(text)
    for name, value in step.sets:
        setattr(processor.regs, name, value)
    return execute(processor, step)


def fault_of(processor: Processor, text: str) -> tuple[int, int | None]:
    """Return vector and error code of the fault that one line raises."""
    try:
        execution(processor, text)
    except GuestFault as fault:
        return fault.vector, fault.error_code
    raise AssertionError(f"{text} raises no fault")
