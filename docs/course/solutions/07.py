"""Lesson 07: a serial port."""

import vtx

SEND, LINE_STATUS, SCRATCH = 0, 5, 7


class Serial:
    """A 16550 that sends in no time and receives nothing."""

    def __init__(self, cpu: vtx.Cpu, base: int) -> None:
        self.base = base
        self.console = bytearray()
        self.scratch = 0
        cpu.exiting.ports = range(base, base + 8)

    def handle(self, cpu: vtx.Cpu, exit: vtx.Exit) -> None:
        """Do the guest's I/O instruction for it."""
        register = exit.io.port - self.base
        if exit.io.is_in:
            value = {LINE_STATUS: 0x60, SCRATCH: self.scratch}.get(register, 0)
            cpu.guest.rax = cpu.guest.rax & ~0xFF | value
        elif exit.io.string:
            count = cpu.guest.rcx if exit.io.rep else 1
            start = exit.guest_linear_address
            for byte in cpu.guest.linear[start : start + count]:
                self.write(register, byte)
            cpu.guest.rsi += count
            if exit.io.rep:
                cpu.guest.rcx = 0
        else:
            self.write(register, cpu.guest.rax & 0xFF)
        cpu.skip(exit)

    def write(self, register: int, byte: int) -> None:
        """Take a byte that the guest writes to a register."""
        if register == SEND:
            self.console.append(byte)
        elif register == SCRATCH:
            self.scratch = byte
