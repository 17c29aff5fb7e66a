"""INIT and start-up IPIs: a processor of the guest begins anew, in real-address mode.

SDM, "Multiple-Processor (MP) Initialization" and "IA-32 and Intel 64 Processor States Following
Power-up, Reset, or INIT". Real-address mode needs "unrestricted guest".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Entry, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.emulation.identification import cpuid
from vtx.hypervisor.emulation.registers import RegisterAccesses
from vtx.hypervisor.vmm import on
from vtx.machine.registers import GPR_NAMES, SEGMENT_NAMES, Activity, Cr0

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["Startup"]

#: Access rights after INIT: writable data, also in CS; LDT; busy 32-bit TSS.
_DATA, _LDT, _TSS = 0x93, 0x82, 0x8B
_LIMIT = 0xFFFF
_CR0, _CS, _CS_BASE, _IP = 0x6000_0010, 0xF000, 0xFFFF_0000, 0xFFF0
_DR6, _DR7 = 0xFFFF_0FF0, 0x400
_WAIT_FOR_SIPI_IN_MISC = 8
_CR0_BY_UNRESTRICTED_GUEST = Cr0.PE | Cr0.PG


class Startup(RegisterAccesses):
    """Handles INIT signals and start-up IPIs."""

    @on(ExitReason.INIT_SIGNAL)
    def init_signal(self, cpu: Cpu, exit: Exit) -> None:
        """Give the guest's processor its state after INIT, and let it wait for a start-up IPI."""
        if not self._has_real_mode(cpu):
            self.stop(
                "shutdown",
                f"an INIT signal at RIP {exit.rip:#x}: what follows is real-address mode, which "
                'needs the control "unrestricted guest" and the wait-for-SIPI state',
            )
            return
        vcpu = self.vcpu(cpu)
        vcpu.event, vcpu.nmi, vcpu.halted = None, False, False
        vcpu.interrupts.clear()
        self._reset_registers(cpu)
        self._reset_segments(cpu)
        self._reset_control_registers(cpu)
        cpu.vmwrite(Field.GUEST_ACTIVITY_STATE, Activity.WAIT_FOR_SIPI)
        cpu.vmwrite(Field.GUEST_INTERRUPTIBILITY_STATE, 0)
        cpu.vmwrite(Field.GUEST_PENDING_DEBUG_EXCEPTIONS, 0)
        self.flush_guest(cpu)

    @on(ExitReason.STARTUP_IPI)
    def startup_ipi(self, cpu: Cpu, exit: Exit) -> None:
        """Let the guest's processor begin at the 4-KByte page that the vector names."""
        vector = exit.qualification & 0xFF
        cpu.vmwrite(Field.GUEST_CS_SELECTOR, vector << 8)
        cpu.vmwrite(Field.GUEST_CS_BASE, vector << 12)
        cpu.vmwrite(Field.GUEST_RIP, 0)
        cpu.vmwrite(Field.GUEST_ACTIVITY_STATE, Activity.ACTIVE)

    def _has_real_mode(self, cpu: Cpu) -> bool:
        secondary = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
        return bool(
            cpu.shape.misc(_WAIT_FOR_SIPI_IN_MISC)
            and cpu.shape.supports(Proc2.UNRESTRICTED_GUEST)
            and secondary & Proc2.UNRESTRICTED_GUEST
        )

    def _reset_registers(self, cpu: Cpu) -> None:
        regs = cpu.regs
        for name in GPR_NAMES:
            if name != "rsp":
                setattr(regs, name, 0)
        # The signature that CPUID returns.
        regs.rdx = cpuid(cpu.shape, 1).eax
        regs.cr2 = 0
        regs.cr8 = 0
        regs.dr0 = regs.dr1 = regs.dr2 = regs.dr3 = 0
        regs.dr6 = _DR6
        cpu.vmwrite(Field.GUEST_DR7, _DR7)
        cpu.vmwrite(Field.GUEST_RSP, 0)
        cpu.vmwrite(Field.GUEST_RIP, _IP)
        cpu.vmwrite(Field.GUEST_RFLAGS, 2)

    def _reset_segments(self, cpu: Cpu) -> None:
        for name in SEGMENT_NAMES:
            rights = {"ldtr": _LDT, "tr": _TSS}.get(name, _DATA)
            parts = {"SELECTOR": 0, "BASE": 0, "LIMIT": _LIMIT, "ACCESS_RIGHTS": rights}
            if name == "cs":
                parts |= {"SELECTOR": _CS, "BASE": _CS_BASE}
            for part, value in parts.items():
                cpu.vmwrite(Field[f"GUEST_{name.upper()}_{part}"], value)
        for name in ("GDTR", "IDTR"):
            cpu.vmwrite(Field[f"GUEST_{name}_BASE"], 0)
            cpu.vmwrite(Field[f"GUEST_{name}_LIMIT"], _LIMIT)

    def _reset_control_registers(self, cpu: Cpu) -> None:
        """Leave IA-32e mode; what VMX operation fixes stays 1 behind the read shadows."""
        fixed0 = cpu.shape.msr(Msr.IA32_VMX_CR0_FIXED0) & ~_CR0_BY_UNRESTRICTED_GUEST
        cpu.vmwrite(Field.GUEST_CR0, _CR0 | fixed0)
        cpu.vmwrite(Field.CR0_READ_SHADOW, _CR0)
        cpu.vmwrite(Field.GUEST_CR3, 0)
        cpu.vmwrite(Field.GUEST_CR4, cpu.shape.msr(Msr.IA32_VMX_CR4_FIXED0))
        cpu.vmwrite(Field.CR4_READ_SHADOW, 0)
        controls = cpu.vmread(Field.VM_ENTRY_CONTROLS)
        cpu.vmwrite(Field.VM_ENTRY_CONTROLS, controls & ~Entry.IA32E_MODE_GUEST)
        self.set_guest_efer(cpu, 0)
