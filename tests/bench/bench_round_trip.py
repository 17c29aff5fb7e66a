"""Round trips per second: a VM exit, its handling in Python, and VMRESUME with its checks.

Run it as a program: ``python tests/bench/bench_round_trip.py [round trips]``. The guest executes
CPUID; the handler reads exit reason, instruction length and RIP by VMREAD and writes RIP by
VMWRITE.
"""

from __future__ import annotations

import sys
import time

from vtx.cpu import Cpu
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.assembly import parse_instruction
from vtx.machine.program import Loop, Program
from vtx.machine.vmcs import Vmcs

ENDLESS = 1 << 60


def measure(round_trips: int) -> float:
    """Return round trips per second of processor time."""
    with Cpu(profile="skylake_sp") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest())
        program = Program((parse_instruction("cpuid leaf=1"), Loop(0, ENDLESS)))
        exit = cpu.vmlaunch(program)
        while exit.reason is ExitReason.EPT_VIOLATION:
            cpu.ept.map(exit.ept.gpa, size="2M")
            exit = cpu.vmresume()
        start = time.process_time()
        for _ in range(round_trips):
            assert exit.reason is ExitReason.CPUID
            cpu.vmwrite(Field.GUEST_RIP, exit.rip + exit.instruction_length)
            exit = cpu.vmresume()
        return round_trips / (time.process_time() - start)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    best = max(measure(count) for _ in range(3))
    sys.stdout.write(f"{best:,.0f} round trips/s\n")
