"""A serial port: which ports exit, and what IN, OUT and REP OUTSB do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtx.course.lab import StudentError
from vtx.facts.exits import ExitReason

if TYPE_CHECKING:
    from vtx.course.lab import Lab, Watched
    from vtx.cpu import Cpu

__all__ = ["check"]

_PORTS = 8
_EMPTY = 0x60
_TEXT = 0x5000


def check(lab: Lab) -> None:
    """Let a driver look for the port, send bytes and strings, at a base that differs."""
    serial_class = lab.function("Serial", "Serial(cpu, base): the device")
    base = lab.random.randrange(0x100, 0x7000, 8)
    if lab.random.random() < 0.5:
        base += 0x8000
    cpu = lab.guest()
    serial = serial_class(cpu, base)
    handle = lab.method(serial, "handle", "handle(cpu, exit) does the guest's I/O")
    if _ports(lab, cpu, base):
        _bytes(lab, cpu, handle, serial, base)
        _strings(lab, serial_class, base)


def _ports(lab: Lab, cpu: Cpu, base: int) -> bool:
    """Look at the bitmaps: eight ports and no others."""
    ports = set(cpu.exiting.ports)
    wanted = set(range(base, base + _PORTS))
    missing, more = wanted - ports, ports - wanted
    what = "the eight ports from base exit, and no others"
    if missing:
        return lab.expect(
            False,
            what,
            f"port base + {min(missing) - base} does not; the last is base + 7, and range() does "
            "not include its end",
        )
    if more:
        which = f"base + {min(more) - base}" if min(more) > base else f"{min(more):#x}"
        text = f"port {which} does, too; {len(ports)} ports exit in all"
        return lab.expect(
            False, what, f"{text}: with unconditional exiting all do, until the set is changed"
        )
    return lab.expect(True, what)


def _bytes(lab: Lab, cpu: Cpu, handle: Any, serial: Any, base: int) -> None:
    """Send bytes by OUT; read the status and the scratch register by IN."""
    sent = bytes(lab.random.randrange(0x20, 0x7F) for _ in range(4))
    scratch = lab.random.randrange(1, 0x100)
    high = lab.random.getrandbits(24) << 8 | lab.random.getrandbits(31) << 32
    steps = [f"in al, dx port={base + 5:#x} rax={high:#x}"]
    steps += [f"out dx, al port={base:#x} rax={high | byte:#x}" for byte in sent]
    steps += [f"out dx, al port={base + 7:#x} value={scratch:#x}"]
    steps += [f"in al, dx port={base + 7:#x} rax={high:#x}"]
    steps += [f"in al, dx port={base + 2:#x} rax={high | 0x55:#x}", "hlt"]
    watched = lab.run(cpu, "\n".join(steps), handle)
    lab.equal(watched.count(ExitReason.IO_INSTRUCTION), len(steps) - 1, "each access exits once")
    rax = [registers["rax"] for registers in watched.registers]
    _read(lab, rax[0], high | _EMPTY, "the line status, base + 5, reads as 0x60")
    lab.equal(
        _console(serial),
        sent,
        "what OUT sends to base + 0 is in console, and nothing else is",
        "AL only: RAX & 0xFF; direction bit 1 is IN, 0 is OUT; base + 7 is not the transmitter",
    )
    _read(lab, rax[-2], high | scratch, "the scratch register, base + 7, reads as written")
    _read(lab, rax[-1], high, "base + 2 reads as 0")


def _read(lab: Lab, rax: int, wanted: int, what: str) -> None:
    """Look at what an IN left in RAX: AL, and the bits above it."""
    lab.equal(rax & 0xFF, wanted & 0xFF, what, "IN puts the answer into AL, bits 7:0 of RAX")
    lab.equal(
        rax >> 8,
        wanted >> 8,
        "IN of one byte leaves bits 63:8 of RAX as they are",
        "only AL is written: rax & ~0xFF | value",
    )


def _strings(lab: Lab, serial_class: Any, base: int) -> None:
    """Send by OUTSB, once and repeated, from linear addresses that are not physical ones."""
    text = bytes(lab.random.randrange(0x20, 0x7F) for _ in range(lab.random.randrange(5, 30)))
    cpu = lab.guest()
    serial = serial_class(cpu, base)
    handle = lab.method(serial, "handle", "handle(cpu, exit) does the guest's I/O")
    cpu.guest.memory[_TEXT : _TEXT + len(text)] = text
    linear = 0xFFFF_8880_0000_0000 + _TEXT  # the kernel's mapping of all memory
    steps = f"""
        outsb rsi={linear:#x} rcx=9 rdx={base:#x}
        rep outsb rsi={linear + 1:#x} rcx={len(text) - 1} rdx={base:#x}
        hlt
    """
    watched = lab.run(cpu, steps, handle)
    lab.equal(
        _console(serial),
        text,
        "OUTSB sends one byte, REP OUTSB as many as RCX says, from the guest's memory",
        "exit.guest_linear_address is where they begin, cpu.guest.linear[a:b] reads them; the "
        "count is RCX with REP (exit.io.rep), otherwise 1",
    )
    _registers(lab, watched, linear, len(text))


def _registers(lab: Lab, watched: Watched, linear: int, length: int) -> None:
    """Look at RSI and RCX after each of the two instructions."""
    single = watched.registers[0]
    last = watched.registers[-1]
    lab.equal(single["rcx"], 9, "OUTSB without REP leaves RCX alone", "look at exit.io.rep")
    lab.equal(last["rcx"], 0, "RCX is 0 after REP OUTSB", "the count is used up: set RCX to 0")
    lab.equal(
        (single["rsi"] - linear, last["rsi"] - linear),
        (1, length),
        "RSI has moved on by as many bytes as were sent",
        "cpu.guest.rsi += count",
    )


def _console(serial: Any) -> bytes:
    """Return what was sent."""
    console = getattr(serial, "console", None)
    if not isinstance(console, bytes | bytearray):
        raise StudentError(f"console is {console!r}", "it is the bytes sent: bytes or bytearray")
    return bytes(console)
