"""I/O instructions: a serial port that writes to the console, and nothing else behind the ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import bits
from vtx.errors import EmulationStopped
from vtx.facts.controls import Entry
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.emulation.linear import LinearMemory
from vtx.hypervisor.vmm import on
from vtx.machine.registers import AccessRights, Rflags

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit
    from vtx.machine.exit_views import IoAccess

__all__ = ["COM1", "Ports"]

#: The first serial port: data at +0, line status at +5.
COM1 = 0x3F8
_LINE_STATUS, _READY_TO_SEND = COM1 + 5, 0x60
_MASK32 = 0xFFFF_FFFF
#: More iterations of a REP than this are a mistake: they would take hours.
_MOST_ITERATIONS = 10_000_000


class Ports(LinearMemory):
    """Handles IN, OUT, INS and OUTS."""

    def read_port(self, cpu: Cpu, port: int, size: int) -> int:
        """Return what reading `size` bytes from `port` gives: all ones where nothing is."""
        if port == _LINE_STATUS:
            return _READY_TO_SEND
        return (1 << 8 * size) - 1

    def write_port(self, cpu: Cpu, port: int, size: int, value: int) -> None:
        """Write `size` bytes to `port`; what goes to the serial port goes to the console."""
        if port == COM1:
            self.guest.console.append(value & 0xFF)

    @on(ExitReason.IO_INSTRUCTION)
    def io_instruction(self, cpu: Cpu, exit: Exit) -> None:
        """Read or write a port."""
        io = exit.io
        if io.string:
            self._string(cpu, exit, io)
            return
        regs = cpu.regs
        mask = (1 << 8 * io.size) - 1
        if not io.is_in:
            self.write_port(cpu, io.port, io.size, regs.rax & mask)
        elif io.size == 4:
            regs.rax = self.read_port(cpu, io.port, 4) & _MASK32
        else:
            regs.rax = regs.rax & ~mask | self.read_port(cpu, io.port, io.size) & mask
        cpu.skip(exit)

    def _string(self, cpu: Cpu, exit: Exit, io: IoAccess) -> None:
        """Do one iteration of INS or OUTS; the last one steps over the instruction."""
        regs = cpu.regs
        width = self._address_bits(cpu, exit)
        count = regs.rcx & (1 << width) - 1
        if io.rep and count > _MOST_ITERATIONS:
            raise EmulationStopped(
                f"the guest repeats an I/O instruction {count:#x} times, and exits each time"
            )
        linear = exit.guest_linear_address
        if io.is_in:
            value = self.read_port(cpu, io.port, io.size)
            self.write_guest(cpu, linear, value.to_bytes(io.size, "little"))
        else:
            value = int.from_bytes(self.read_guest(cpu, linear, io.size), "little")
            self.write_port(cpu, io.port, io.size, value)
        register = "rdi" if io.is_in else "rsi"
        down = cpu.vmread(Field.GUEST_RFLAGS) & Rflags.DF
        step = -io.size if down else io.size
        setattr(regs, register, _advanced(getattr(regs, register), step, width))
        if io.rep:
            regs.rcx = _advanced(regs.rcx, -1, width)
        if not io.rep or count == 1:
            cpu.skip(exit)

    def _address_bits(self, cpu: Cpu, exit: Exit) -> int:
        """Return the width of RSI, RDI and RCX as INS or OUTS uses them.

        Where the CPU does not report it, the instruction counts as one without a prefix.
        """
        if cpu.shape.msr(Msr.IA32_VMX_BASIC) >> 54 & 1:
            return 16 << bits(exit.instruction_information, 9, 7)
        rights = cpu.vmread(Field.GUEST_CS_ACCESS_RIGHTS)
        if rights & AccessRights.L and cpu.vmread(Field.VM_ENTRY_CONTROLS) & Entry.IA32E_MODE_GUEST:
            return 64
        return 32 if rights & AccessRights.DB else 16


def _advanced(value: int, step: int, width: int) -> int:
    """Return a register moved by `step` in its low bits; 32 bits clear those above, 16 do not."""
    low = value + step & (1 << width) - 1
    return low if width >= 32 else value & ~0xFFFF | low
