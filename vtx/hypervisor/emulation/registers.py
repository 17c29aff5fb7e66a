"""Accesses to control, debug and extended control registers that the VMM has kept for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Entry, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.emulation.events import Events
from vtx.hypervisor.vmm import on
from vtx.machine.registers import AccessRights, Cr0, Cr4, Efer
from vtx.rules.control_registers import CR0_FIXED_IN_PLACE, ControlState, cr0_fault, cr4_fault

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit
    from vtx.machine.exit_views import CrAccess

__all__ = ["RegisterAccesses"]

_DR7_FIXED_1, _DR6_FIXED_1 = 1 << 10, 0xFFFF_0FF0
_LMSW_BITS = 0xF
_LONG_MODE = Efer.LME | Efer.LMA
_SINGLE_CONTEXT = 1
_XCR0_X87, _XCR0_SSE, _XCR0_AVX = 1, 2, 4
_RETAINING_GLOBALS = 3


class RegisterAccesses(Events):
    """Handles MOV CR, CLTS, LMSW, MOV DR and XSETBV."""

    def gpr(self, cpu: Cpu, name: str) -> int:
        """Return one of the guest's general-purpose registers; RSP is in the VMCS."""
        if name == "rsp":
            return cpu.vmread(Field.GUEST_RSP)
        value: int = getattr(cpu.regs, name)
        return value

    def set_gpr(self, cpu: Cpu, name: str, value: int) -> None:
        """Set one of the guest's general-purpose registers."""
        if name == "rsp":
            cpu.vmwrite(Field.GUEST_RSP, value)
        else:
            setattr(cpu.regs, name, value)

    # ---- Control registers --------------------------------------------------------------------

    @on(ExitReason.CONTROL_REGISTER_ACCESS)
    def control_register_access(self, cpu: Cpu, exit: Exit) -> None:
        """Do what the guest's instruction would have done to the register that it believes in."""
        access = exit.cr
        if access.access == "mov from":
            self._read_cr(cpu, access)
            cpu.skip(exit)
            return
        if access.access == "clts":
            done = self._write_cr0(cpu, self.visible_cr0(cpu) & ~Cr0.TS)
        elif access.access == "lmsw":
            old = self.visible_cr0(cpu)
            word = access.source & _LMSW_BITS | old & Cr0.PE
            done = self._write_cr0(cpu, old & ~_LMSW_BITS | word)
        else:
            done = self._write_cr(cpu, access.number, self.gpr(cpu, access.register))
        if done:
            cpu.skip(exit)
        else:
            self.general_protection(cpu)

    def visible_cr0(self, cpu: Cpu) -> int:
        """Return CR0 as the guest reads it: bits of the mask come from the shadow."""
        mask = cpu.vmread(Field.CR0_GUEST_HOST_MASK)
        shadow = cpu.vmread(Field.CR0_READ_SHADOW)
        return cpu.vmread(Field.GUEST_CR0) & ~mask | shadow & mask

    def _read_cr(self, cpu: Cpu, access: CrAccess) -> None:
        value = cpu.vmread(Field.GUEST_CR3) if access.number == 3 else cpu.regs.cr8
        self.set_gpr(cpu, access.register, value)

    def _write_cr(self, cpu: Cpu, number: int, value: int) -> bool:
        """Load a control register; return False if the guest gets #GP(0) instead."""
        if number == 0:
            return self._write_cr0(cpu, value)
        if number == 3:
            return self._write_cr3(cpu, value)
        if number == 4:
            return self._write_cr4(cpu, value)
        if value >> 4:
            return False
        cpu.regs.cr8 = value
        return True

    def _write_cr0(self, cpu: Cpu, value: int) -> bool:
        state = self._control_state(cpu)
        if cr0_fault(value, state):
            return False
        fixed0 = cpu.shape.msr(Msr.IA32_VMX_CR0_FIXED0)
        if cpu.vmcs is not None and cpu.vmcs.proc2 & Proc2.UNRESTRICTED_GUEST:
            fixed0 &= ~(Cr0.PE | Cr0.PG)
        elif fixed0 & ~value & (Cr0.PE | Cr0.PG):
            return False
        value = value & ~CR0_FIXED_IN_PLACE | Cr0.ET
        self._switch_mode(cpu, value, state.efer)
        cpu.vmwrite(Field.GUEST_CR0, value | fixed0)
        cpu.vmwrite(Field.CR0_READ_SHADOW, value)
        if state.cr0 & ~value & Cr0.PG:
            self.flush_guest(cpu)
        return True

    def _control_state(self, cpu: Cpu) -> ControlState:
        """Return what decides which values the guest's control registers take."""
        return ControlState(
            cpu.vmread(Field.GUEST_CR0),
            cpu.vmread(Field.GUEST_CR3),
            cpu.vmread(Field.GUEST_CR4),
            self.guest_efer(cpu),
            bool(cpu.vmread(Field.GUEST_CS_ACCESS_RIGHTS) & AccessRights.L),
        )

    def _switch_mode(self, cpu: Cpu, cr0: int, efer: int) -> None:
        """Enter or leave IA-32e mode as paging goes on or off."""
        paging = bool(cr0 & Cr0.PG)
        if not efer & Efer.LME or paging == bool(efer & Efer.LMA):
            return
        self.set_guest_efer(cpu, efer | Efer.LMA if paging else efer & ~Efer.LMA)
        controls = cpu.vmread(Field.VM_ENTRY_CONTROLS)
        mode = Entry.IA32E_MODE_GUEST
        cpu.vmwrite(Field.VM_ENTRY_CONTROLS, controls | mode if paging else controls & ~mode)

    def guest_efer(self, cpu: Cpu) -> int:
        """Return the guest's IA32_EFER.

        A CPU that does not switch the MSR between guest and host has one for both, but for the
        mode, which VM entry makes what the controls say.
        """
        return cpu.guest.efer

    def set_guest_efer(self, cpu: Cpu, value: int) -> None:
        """Set the guest's IA32_EFER."""
        if cpu.vmread(Field.VM_ENTRY_CONTROLS) & Entry.LOAD_IA32_EFER:
            cpu.vmwrite(Field.GUEST_IA32_EFER, value)
        else:
            cpu.regs.efer = value & ~_LONG_MODE | cpu.regs.efer & _LONG_MODE

    def uses_vpid(self, cpu: Cpu) -> bool:
        """Tell whether the guest runs under a VPID."""
        return cpu.shape.has_vpid and bool(
            cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS) & Proc2.ENABLE_VPID
        )

    def _write_cr3(self, cpu: Cpu, value: int) -> bool:
        pcide = cpu.vmread(Field.GUEST_CR4) & Cr4.PCIDE
        keep = bool(pcide and value >> 63)
        value &= ~(1 << 63) if pcide else -1
        if value >> cpu.shape.maxphyaddr:
            return False
        cpu.vmwrite(Field.GUEST_CR3, value)
        if not keep:
            self.flush_guest(cpu, globals=False)
        return True

    def flush_guest(self, cpu: Cpu, *, globals: bool = True) -> None:
        """Forget the guest's cached translations; without VPIDs the next VM entry does."""
        if not self.uses_vpid(cpu):
            return
        kind = _SINGLE_CONTEXT if globals else _RETAINING_GLOBALS
        if not cpu.shape.ept_vpid_cap(40 + kind):
            kind = _SINGLE_CONTEXT
        cpu.invvpid(kind, cpu.vmread(Field.VPID))

    def _write_cr4(self, cpu: Cpu, value: int) -> bool:
        allowed = cpu.shape.msr(Msr.IA32_VMX_CR4_FIXED1) & ~(Cr4.VMXE | Cr4.SMXE)
        if value & ~allowed:
            return False
        state = self._control_state(cpu)
        if cr4_fault(value, state):
            return False
        cpu.vmwrite(Field.GUEST_CR4, value | cpu.shape.msr(Msr.IA32_VMX_CR4_FIXED0))
        cpu.vmwrite(Field.CR4_READ_SHADOW, value)
        if (value ^ state.cr4) & (Cr4.PGE | Cr4.PAE | Cr4.PCIDE | Cr4.SMEP):
            self.flush_guest(cpu)
        return True

    # ---- Debug registers ----------------------------------------------------------------------

    @on(ExitReason.MOV_DR)
    def mov_dr(self, cpu: Cpu, exit: Exit) -> None:
        """Read or write a debug register; DR7 is in the VMCS, the others are not switched."""
        access = exit.dr
        number = access.number
        if number in (4, 5):
            if cpu.vmread(Field.GUEST_CR4) & Cr4.DE:
                self.invalid_opcode(cpu)
                return
            number += 2
        if self._cpl(cpu):
            self.general_protection(cpu)
            return
        if access.is_read:
            value = cpu.vmread(Field.GUEST_DR7) if number == 7 else getattr(cpu.regs, f"dr{number}")
            self.set_gpr(cpu, access.register, value)
        else:
            value = self.gpr(cpu, access.register)
            if number >= 6 and value >> 32:
                self.general_protection(cpu)
                return
            self._write_dr(cpu, number, value)
        cpu.skip(exit)

    def _write_dr(self, cpu: Cpu, number: int, value: int) -> None:
        if number == 7:
            cpu.vmwrite(Field.GUEST_DR7, value & 0xFFFF_2FFF | _DR7_FIXED_1)
        elif number == 6:
            cpu.regs.dr6 = value & 0x1_E00F | _DR6_FIXED_1
        else:
            setattr(cpu.regs, f"dr{number}", value)

    def _cpl(self, cpu: Cpu) -> int:
        """Return the guest's privilege level: the DPL of SS."""
        return cpu.vmread(Field.GUEST_SS_ACCESS_RIGHTS) >> 5 & 3

    # ---- Extended state -----------------------------------------------------------------------

    @on(ExitReason.XSETBV)
    def xsetbv(self, cpu: Cpu, exit: Exit) -> None:
        """Load XCR0 with x87, SSE and AVX state, as far as they go together."""
        regs = cpu.regs
        value = (regs.rdx & 0xFFFF_FFFF) << 32 | regs.rax & 0xFFFF_FFFF
        wrong = value & ~(_XCR0_X87 | _XCR0_SSE | _XCR0_AVX) or not value & _XCR0_X87
        wrong = wrong or (value & _XCR0_AVX and not value & _XCR0_SSE)
        if self._cpl(cpu) or regs.rcx & 0xFFFF_FFFF or wrong:
            self.general_protection(cpu)
            return
        regs.xcr0 = value
        cpu.skip(exit)
