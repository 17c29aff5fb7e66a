"""I/O instructions: a serial port that writes to the console, and nothing else behind the ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import EmulationStopped
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.emulation.linear import LinearMemory
from vtx.hypervisor.vmm import on
from vtx.machine.registers import Rflags

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
        if io.rep and regs.rcx > _MOST_ITERATIONS:
            raise EmulationStopped(
                f"the guest repeats an I/O instruction {regs.rcx:#x} times, and exits each time"
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
        setattr(regs, register, getattr(regs, register) + step & (1 << 64) - 1)
        if io.rep:
            regs.rcx = regs.rcx - 1 & (1 << 64) - 1
        if not io.rep or regs.rcx == 0:
            cpu.skip(exit)
