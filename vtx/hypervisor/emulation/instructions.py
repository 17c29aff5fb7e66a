"""Instructions that exit and need little: time, randomness, hints, caches, and those refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bits
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.hypervisor.emulation.msrs import MsrAccesses
from vtx.hypervisor.vmm import on
from vtx.machine.registers import Rflags

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["Instructions"]

#: What an unknown hypercall returns: -ENOSYS, as KVM has it.
_UNKNOWN_HYPERCALL = -1000
_STATUS_FLAGS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
_OPERAND_BYTES = (2, 4, 8)
_INDIVIDUAL_ADDRESS = 0


class Instructions(MsrAccesses):
    """Handles the instructions that no other part of the VMM is about."""

    @on(ExitReason.VMCALL)
    def vmcall(self, cpu: Cpu, exit: Exit) -> None:
        """Answer a hypercall: there are none."""
        cpu.regs.rax = _UNKNOWN_HYPERCALL & MASK64
        cpu.skip(exit)

    @on(
        ExitReason.GETSEC,
        ExitReason.RSM,
        ExitReason.VMCLEAR,
        ExitReason.VMLAUNCH,
        ExitReason.VMPTRLD,
        ExitReason.VMPTRST,
        ExitReason.VMREAD,
        ExitReason.VMRESUME,
        ExitReason.VMWRITE,
        ExitReason.VMXOFF,
        ExitReason.VMXON,
        ExitReason.INVEPT,
        ExitReason.INVVPID,
        ExitReason.VMFUNC,
        ExitReason.ENCLS,
        ExitReason.ENCLV,
        ExitReason.PCONFIG,
        ExitReason.LOADIWKEY,
        ExitReason.SEAMCALL,
        ExitReason.TDCALL,
        ExitReason.RDMSRLIST,
        ExitReason.WRMSRLIST,
        ExitReason.URDMSR,
        ExitReason.UWRMSR,
    )
    def hidden(self, cpu: Cpu, exit: Exit) -> None:
        """Let the guest see #UD: CPUID does not tell it of this instruction."""
        self.invalid_opcode(cpu)

    @on(
        ExitReason.INVD,
        ExitReason.WBINVD_OR_WBNOINVD,
        ExitReason.PAUSE,
        ExitReason.MONITOR,
        ExitReason.MWAIT,
        ExitReason.UMWAIT,
        ExitReason.TPAUSE,
        ExitReason.XSAVES,
        ExitReason.XRSTORS,
    )
    def skipped(self, cpu: Cpu, exit: Exit) -> None:
        """Step over an instruction that has no effect the model could show."""
        cpu.skip(exit)

    @on(ExitReason.RDPMC)
    def rdpmc(self, cpu: Cpu, exit: Exit) -> None:
        """Let the guest see #GP(0): it has no performance counters."""
        self.general_protection(cpu)

    @on(ExitReason.RDTSC)
    def rdtsc(self, cpu: Cpu, exit: Exit) -> None:
        """Return the time-stamp counter in EDX:EAX."""
        value = self.read_msr(cpu, Msr.IA32_TIME_STAMP_COUNTER) or 0
        cpu.regs.rax, cpu.regs.rdx = value & MASK32, value >> 32
        cpu.skip(exit)

    @on(ExitReason.RDTSCP)
    def rdtscp(self, cpu: Cpu, exit: Exit) -> None:
        """Return the time-stamp counter in EDX:EAX and IA32_TSC_AUX in ECX."""
        cpu.regs.rcx = cpu.regs.read_msr(Msr.IA32_TSC_AUX) & MASK32
        self.rdtsc(cpu, exit)

    @on(ExitReason.RDRAND, ExitReason.RDSEED)
    def random(self, cpu: Cpu, exit: Exit) -> None:
        """Return a number from a generator that gives the same sequence in every run."""
        information = exit.instruction_information
        register = GENERAL_REGISTERS[bits(information, 6, 3)]
        size = _OPERAND_BYTES[min(bits(information, 12, 11), 2)]
        mask = (1 << 8 * size) - 1
        kept = 0 if size >= 4 else self.gpr(cpu, register) & ~mask
        self.set_gpr(cpu, register, kept | self._next_random(cpu) & mask)
        flags = cpu.vmread(Field.GUEST_RFLAGS) & ~_STATUS_FLAGS
        cpu.vmwrite(Field.GUEST_RFLAGS, flags | Rflags.CF)
        cpu.skip(exit)

    def _next_random(self, cpu: Cpu) -> int:
        """Step a 64-bit xorshift generator (Marsaglia, "Xorshift RNGs")."""
        vcpu = self.vcpu(cpu)
        state = vcpu.random
        state ^= state << 13 & MASK64
        state ^= state >> 7
        state ^= state << 17 & MASK64
        vcpu.random = state
        return state

    @on(ExitReason.INVLPG)
    def invlpg(self, cpu: Cpu, exit: Exit) -> None:
        """Forget the translation of one page in the guest's VPID."""
        if self.uses_vpid(cpu):
            vpid, address = cpu.vmread(Field.VPID), exit.qualification
            if cpu.shape.ept_vpid_cap(40):
                cpu.invvpid(_INDIVIDUAL_ADDRESS, address << 64 | vpid)
            else:
                self.flush_guest(cpu)
        cpu.skip(exit)

    @on(ExitReason.INVPCID)
    def invpcid(self, cpu: Cpu, exit: Exit) -> None:
        """Forget all translations of the guest's VPID, which is more than it asked for."""
        self.flush_guest(cpu)
        cpu.skip(exit)
