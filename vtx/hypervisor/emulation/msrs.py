"""RDMSR and WRMSR: which MSRs the guest has, and where the VMM keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bits
from vtx.facts.controls import Entry, Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.hypervisor.emulation.registers import RegisterAccesses
from vtx.hypervisor.vmm import on
from vtx.machine.registers import Efer
from vtx.rules.execution_msrs import host_tsc, scaled_tsc
from vtx.rules.ipi import arrive, destinations, logical_id
from vtx.rules.msr_values import wrmsr_fault

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["MsrAccesses"]

#: MSRs that VM entry always loads from the VMCS.
IN_VMCS: dict[int, Field] = {
    Msr.IA32_DEBUGCTL: Field.GUEST_IA32_DEBUGCTL,
    Msr.IA32_SYSENTER_CS: Field.GUEST_IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP: Field.GUEST_IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP: Field.GUEST_IA32_SYSENTER_EIP,
    Msr.IA32_FS_BASE: Field.GUEST_FS_BASE,
    Msr.IA32_GS_BASE: Field.GUEST_GS_BASE,
}
#: MSRs that VM entry and VM exit leave alone, IA32_PAT on some CPUs: the values stay in the CPU.
IN_CPU = frozenset(
    {
        Msr.IA32_STAR,
        Msr.IA32_LSTAR,
        Msr.IA32_CSTAR,
        Msr.IA32_FMASK,
        Msr.IA32_KERNEL_GS_BASE,
        Msr.IA32_TSC_AUX,
        Msr.IA32_PAT,
    }
)
#: MSRs that the VMM makes up, with their values at the start.
EMULATED: dict[int, int] = {
    Msr.IA32_FEATURE_CONTROL: 1,
    Msr.IA32_TSC_ADJUST: 0,
    Msr.IA32_BIOS_SIGN_ID: 0,
    Msr.IA32_MTRRCAP: 0,
    Msr.IA32_MTRR_DEF_TYPE: 0x806,
    Msr.IA32_MISC_ENABLE: 1,
    Msr.IA32_APIC_BASE: 0xFEE0_0C00,
    Msr.IA32_TSC_DEADLINE: 0,
}
_BOOTSTRAP_PROCESSOR = 1 << 8
_READ_ONLY = frozenset({Msr.IA32_FEATURE_CONTROL, Msr.IA32_MTRRCAP})
_X2APIC = range(0x800, 0x900)
_X2APIC_ID, _X2APIC_VERSION, _X2APIC_LOGICAL_ID = 0x802, 0x803, 0x80D
_X2APIC_FIXED = {_X2APIC_VERSION: 0x0005_0014}
_X2APIC_READ_ONLY = frozenset({_X2APIC_ID, _X2APIC_VERSION, _X2APIC_LOGICAL_ID})
_X2APIC_WRITE_ONLY = frozenset({int(Msr.IA32_X2APIC_EOI), int(Msr.IA32_X2APIC_SELF_IPI)})
_FIXED_DELIVERY, _NMI_DELIVERY = 0, 4
#: INIT and start-up IPI.
_STARTING = frozenset({5, 6})
_LOWEST_INTERRUPT = 16


class MsrAccesses(RegisterAccesses):
    """Handles RDMSR and WRMSR in all their forms."""

    @on(ExitReason.RDMSR)
    def rdmsr(self, cpu: Cpu, exit: Exit) -> None:
        """Read an MSR into EDX:EAX."""
        value = self.read_msr(cpu, cpu.regs.rcx & MASK32)
        if value is None:
            self.general_protection(cpu)
            return
        cpu.regs.rax, cpu.regs.rdx = value & MASK32, value >> 32
        cpu.skip(exit)

    @on(ExitReason.WRMSR)
    def wrmsr(self, cpu: Cpu, exit: Exit) -> None:
        """Write EDX:EAX into an MSR."""
        regs = cpu.regs
        value = (regs.rdx & MASK32) << 32 | regs.rax & MASK32
        if self.write_msr(cpu, regs.rcx & MASK32, value):
            cpu.skip(exit)
        else:
            self.general_protection(cpu)

    @on(ExitReason.RDMSR_IMMEDIATE)
    def rdmsr_immediate(self, cpu: Cpu, exit: Exit) -> None:
        """Read the MSR that the qualification names into a register."""
        value = self.read_msr(cpu, exit.qualification & MASK32)
        if value is None:
            self.general_protection(cpu)
            return
        self.set_gpr(cpu, _register(exit), value)
        cpu.skip(exit)

    @on(ExitReason.WRMSRNS_IMMEDIATE)
    def wrmsrns_immediate(self, cpu: Cpu, exit: Exit) -> None:
        """Write a register into the MSR that the qualification names."""
        value = self.gpr(cpu, _register(exit))
        if self.write_msr(cpu, exit.qualification & MASK32, value):
            cpu.skip(exit)
        else:
            self.general_protection(cpu)

    # ---- The guest's MSRs ---------------------------------------------------------------------

    def read_msr(self, cpu: Cpu, index: int) -> int | None:
        """Return an MSR as the guest sees it; None if it has no such MSR."""
        if index in IN_VMCS:
            return cpu.vmread(IN_VMCS[index])
        if index == Msr.IA32_EFER:
            return self.guest_efer(cpu)
        if index == Msr.IA32_PAT and self._switches_pat(cpu):
            return cpu.vmread(Field.GUEST_IA32_PAT)
        if index in IN_CPU:
            return cpu.regs.read_msr(index)
        if index == Msr.IA32_TIME_STAMP_COUNTER:
            return self._guest_tsc(cpu)
        if index in _X2APIC:
            return self._read_apic(cpu, index)
        if index not in EMULATED:
            return None
        value = self.vcpu(cpu).msrs.get(index, EMULATED[index])
        if index == Msr.IA32_APIC_BASE and cpu.number == 0:
            value |= _BOOTSTRAP_PROCESSOR
        return value

    def write_msr(self, cpu: Cpu, index: int, value: int) -> bool:
        """Write an MSR for the guest; return False if it gets #GP(0) instead."""
        if index in _X2APIC:
            return self._write_apic(cpu, index, value)
        if wrmsr_fault(cpu, index, value) is not None:
            return False
        if index == Msr.IA32_EFER:
            return self._write_efer(cpu, value)
        if index in IN_VMCS:
            cpu.vmwrite(IN_VMCS[index], value)
        elif index == Msr.IA32_PAT and self._switches_pat(cpu):
            cpu.vmwrite(Field.GUEST_IA32_PAT, value)
        elif index in IN_CPU:
            cpu.regs.write_msr(index, value)
        elif index == Msr.IA32_TIME_STAMP_COUNTER:
            self._move_tsc(cpu, value - self._guest_tsc(cpu))
        elif index == Msr.IA32_TSC_ADJUST:
            self._move_tsc(cpu, value - self.vcpu(cpu).msrs.get(index, 0))
        elif index in EMULATED and index not in _READ_ONLY:
            self.vcpu(cpu).msrs[index] = value
        else:
            return False
        return True

    def _write_efer(self, cpu: Cpu, value: int) -> bool:
        old = self.guest_efer(cpu)
        if (value ^ old) & Efer.LME and cpu.vmread(Field.GUEST_CR0) >> 31 & 1:
            return False
        self.set_guest_efer(cpu, value & ~Efer.LMA | old & Efer.LMA)
        return True

    def _switches_pat(self, cpu: Cpu) -> bool:
        return bool(cpu.vmread(Field.VM_ENTRY_CONTROLS) & Entry.LOAD_IA32_PAT)

    def _guest_tsc(self, cpu: Cpu) -> int:
        """Return the time-stamp counter as RDTSC reads it in the guest."""
        value = host_tsc(cpu)
        controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
        if not controls & Proc1.USE_TSC_OFFSETTING:
            return value
        if controls & Proc1.ACTIVATE_SECONDARY_CONTROLS:
            secondary = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
            if secondary & Proc2.USE_TSC_SCALING:
                value = scaled_tsc(value, cpu.vmread(Field.TSC_MULTIPLIER))
        return value + cpu.vmread(Field.TSC_OFFSET) & MASK64

    def _move_tsc(self, cpu: Cpu, ticks: int) -> None:
        """Move the guest's time-stamp counter; IA32_TSC_ADJUST moves with it, as on silicon."""
        msrs = self.vcpu(cpu).msrs
        msrs[Msr.IA32_TSC_ADJUST] = msrs.get(Msr.IA32_TSC_ADJUST, 0) + ticks & MASK64
        controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
        offset = cpu.vmread(Field.TSC_OFFSET)
        if not controls & Proc1.USE_TSC_OFFSETTING:
            offset = 0
            cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, controls | Proc1.USE_TSC_OFFSETTING)
            if controls & Proc1.ACTIVATE_SECONDARY_CONTROLS:
                # Scaling had no effect without an offset, and shall have none now.
                secondary = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
                if secondary & Proc2.USE_TSC_SCALING:
                    cpu.vmwrite(
                        Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
                        secondary & ~Proc2.USE_TSC_SCALING,
                    )
        cpu.vmwrite(Field.TSC_OFFSET, offset + ticks & MASK64)

    # ---- The local APIC in x2APIC mode --------------------------------------------------------

    def _read_apic(self, cpu: Cpu, index: int) -> int | None:
        if index in _X2APIC_WRITE_ONLY:
            return None
        if index == _X2APIC_ID:
            return cpu.number
        if index == _X2APIC_LOGICAL_ID:
            return logical_id(cpu.number)
        if index == Msr.IA32_X2APIC_TPR:
            return cpu.regs.cr8 << 4
        if index in _X2APIC_FIXED:
            return _X2APIC_FIXED[index]
        return self.vcpu(cpu).msrs.get(index, 0)

    def _write_apic(self, cpu: Cpu, index: int, value: int) -> bool:
        if index in _X2APIC_READ_ONLY or (value >> 32 and index != Msr.IA32_X2APIC_ICR):
            return False
        if index == Msr.IA32_X2APIC_EOI:
            return value == 0
        if index == Msr.IA32_X2APIC_TPR:
            if value > 0xFF:
                return False
            cpu.regs.cr8 = value >> 4
        elif index == Msr.IA32_X2APIC_SELF_IPI:
            if not _LOWEST_INTERRUPT <= value <= 0xFF:
                return False
            self.raise_interrupt(cpu, value)
        elif index == Msr.IA32_X2APIC_ICR:
            self._send_ipi(cpu, value)
        else:
            self.vcpu(cpu).msrs[index] = value
        return True

    def _send_ipi(self, cpu: Cpu, command: int) -> None:
        """Send what the interrupt command register says to the processors that it names."""
        vector, mode = bits(command, 7, 0), bits(command, 10, 8)
        cpus = {vcpu.cpu.number: vcpu.cpu for vcpu in self.guest.vcpus.values() if vcpu.cpu}
        for number in destinations(cpu.number, command, cpus):
            target = cpus[number]
            if mode == _FIXED_DELIVERY and vector >= _LOWEST_INTERRUPT:
                self.raise_interrupt(target, vector)
            elif mode == _NMI_DELIVERY:
                self.raise_nmi(target)
            else:
                # INIT and start-up IPI reach the logical processor itself, and exit there.
                if mode in _STARTING:
                    arrive(target, mode, vector)
                continue
            self.kick(target)


def _register(exit: Exit) -> str:
    """Return the register that the instruction information of an immediate form names."""
    return GENERAL_REGISTERS[bits(exit.instruction_information, 6, 3)]
