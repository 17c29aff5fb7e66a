"""Round trips per second: a VM exit, a handler in Python, and VMRESUME with all its checks.

The handler is the smallest that hypervisors have: it reads exit reason, instruction length and RIP,
and writes RIP. The ceiling is the same loop in Python over a dict instead of a processor.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

from vtx.bench.registry import Result, benchmark
from vtx.bench.timing import best, seconds
from vtx.cpu import Cpu
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.program import Loop, Program
from vtx.machine.vmcs import Vmcs

__all__ = ["round_trips"]

_ENDLESS = 1 << 60
_ROUND_TRIPS, _QUICK_ROUND_TRIPS = 4_000, 1_000
#: Guest-physical address that no EPT entry maps.
_UNMAPPED = 0x3000_0000
_RIP = Field.GUEST_RIP


def _at_first_exit(cpu: Cpu, line: str, reason: ExitReason) -> Exit:
    """Start a guest that executes `line` for ever, and map what it needs until it exits so."""
    cpu.vmxon()
    cpu.load(Vmcs.for_64bit_guest())
    exit = cpu.vmlaunch(Program((parse_instruction(line), Loop(0, _ENDLESS))))
    while exit.reason is not reason or (
        reason is ExitReason.EPT_VIOLATION and exit.ept.gpa != _UNMAPPED
    ):
        assert exit.reason is ExitReason.EPT_VIOLATION, exit
        cpu.ept.map(exit.ept.gpa, size="2M")
        exit = cpu.vmresume()
    return exit


def _handle(cpu: Cpu, exit: Exit, reason: ExitReason, times: int, length: int = 0) -> Exit:
    """Handle exits; `length` is that of the instruction where the exit does not report one."""
    for _ in repeat(None, times):
        assert exit.reason is reason
        cpu.vmwrite(_RIP, exit.rip + exit.instruction_length + length)
        exit = cpu.vmresume()
    return exit


def _ceiling(times: int) -> None:
    """Do what the handler does with a dict for a processor."""
    fields = {_RIP: 0, Field.EXIT_REASON: 10, Field.VM_EXIT_INSTRUCTION_LENGTH: 2}
    read, write = fields.__getitem__, fields.__setitem__
    reasons = {10: ExitReason.CPUID}
    for _ in repeat(None, times):
        assert reasons[read(Field.EXIT_REASON)] is ExitReason.CPUID
        write(_RIP, read(_RIP) + read(Field.VM_EXIT_INSTRUCTION_LENGTH) & 0xFFFF)


def round_trips(line: str, reason: ExitReason, *, quick: bool) -> Result:
    """Return the round trips per second of a guest that executes `line` for ever.

    Parameters
    ----------
    line : str
        An instruction of a listing.
    reason : ExitReason
        What it exits with.
    quick : bool
        See :func:`vtx.bench.timing.best`.
    """
    times = _QUICK_ROUND_TRIPS if quick else _ROUND_TRIPS
    with Cpu(profile="skylake_sp") as cpu:
        exit = _at_first_exit(cpu, line, reason)
        length = 0 if exit.instruction_length else parse_instruction(line).length

        def run() -> None:
            nonlocal exit
            exit = _handle(cpu, exit, reason, times, length)

        run()
        value, ceiling = best(_rate(run, times), _rate(lambda: _ceiling(times), times), quick=quick)
    return Result(value, ceiling)


def _rate(work: Callable[[], object], times: int) -> Callable[[], float]:
    return lambda: times / seconds(work)


@benchmark("exits", unit="round trips/s")
def exits(quick: bool) -> Result:
    """Round trips with CPUID: exit, Python reads three fields and writes RIP, VMRESUME."""
    return round_trips("cpuid leaf=1", ExitReason.CPUID, quick=quick)


@benchmark("exits.vmcall", unit="round trips/s")
def exits_vmcall(quick: bool) -> Result:
    """Round trips with VMCALL."""
    return round_trips("vmcall", ExitReason.VMCALL, quick=quick)


@benchmark("exits.rdmsr", unit="round trips/s")
def exits_rdmsr(quick: bool) -> Result:
    """Round trips with RDMSR."""
    return round_trips("rdmsr msr=0x1b", ExitReason.RDMSR, quick=quick)


@benchmark("exits.io", unit="round trips/s")
def exits_io(quick: bool) -> Result:
    """Round trips with OUT."""
    return round_trips("out dx, al port=0x3f8 value=0x41", ExitReason.IO_INSTRUCTION, quick=quick)


@benchmark("exits.ept_violation", unit="round trips/s")
def exits_ept_violation(quick: bool) -> Result:
    """Round trips with a store to memory that EPT does not map."""
    line = f"store {_UNMAPPED:#x} value=1"
    return round_trips(line, ExitReason.EPT_VIOLATION, quick=quick)
