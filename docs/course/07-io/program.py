"""A guest prints through a serial port that is a few lines of Python."""

import vtx
from vtx import ExitReason

BASE = 0x3F8
GUEST = """
    in al, dx port=0x3fd              # line status
    out dx, al port=0x3f8 value=0x48
    rep outsb rsi=0x5000 rcx=10 rdx=0x3f8
    in al, dx port=0x60 rax=0x1234    # in no bitmap
    hlt
"""
console = bytearray()


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Be the serial port."""
    io = exit.io
    print(f"{'IN ' if io.is_in else 'OUT'} port {io.port:#x}, {io.size} byte", end="")
    if io.is_in:
        cpu.guest.rax = cpu.guest.rax & ~0xFF | 0x60
    elif io.string:
        start, count = exit.guest_linear_address, cpu.guest.rcx if io.rep else 1
        console.extend(cpu.guest.linear[start : start + count])
        cpu.guest.rsi += count
        cpu.guest.rcx = 0
        print(f", string of {count} at {start:#x}", end="")
    else:
        console.append(cpu.guest.rax & 0xFF)
    print(f", qualification {exit.qualification:#x}")
    cpu.skip(exit)


with vtx.Cpu("skylake_sp") as cpu:
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0, size="1G")
    cpu.exiting.ports |= range(BASE, BASE + 8)
    cpu.guest.memory[0x5000:0x500A] = b"ello world"
    exit = cpu.vmlaunch(vtx.program(GUEST))
    while exit.reason is ExitReason.IO_INSTRUCTION:
        handle(cpu, exit)
        exit = cpu.vmresume()
    print(console.decode())
