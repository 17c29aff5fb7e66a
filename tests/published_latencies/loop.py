"""The loop that vmlatency measures, run on a profile's shape and priced with its prices."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import vtx
from vtx.facts.exits import ExitReason
from vtx.hypervisor.setup import make_guest, make_machine
from vtx.lab.categories import Category
from vtx.lab.ledger import Ledger, Row, price
from vtx.lab.profile import Profile, Status, load_profiles
from vtx.machine.events import EventLog

__all__ = ["LOOPS", "Priced", "priced", "profiles"]

TRACE = Path(__file__).parents[2] / "traces" / "09-vmlatency.yaml"
#: Loops of 64 iterations or more are those from which the published figures are taken.
LOOPS = 64


class Priced(NamedTuple):
    """What one iteration takes, in cycles."""

    low: float
    value: float
    high: float
    #: Exit and entry alone.
    round_trip: float
    vmwrite: float
    #: The guest's own walks: VPID is off, so each transition empties its TLBs.
    refill: float
    status: Status | None


@cache
def profiles() -> dict[str, Profile]:
    """The profiles that have prices."""
    return {profile.id: profile for profile in load_profiles() if profile.has_prices}


@cache
def priced(profile: str) -> Priced:
    """Price the loop for a profile: {VMWRITE HOST_RSP; VMRESUME; CPUID in the guest; VM exit}."""
    ledger = price(_run(profile), profiles()[profile])
    row = next(row for row in ledger.rows if row.reason == ExitReason.CPUID)
    low, high = (float(bound) / LOOPS for bound in row.bounds)
    round_trip = _cycles(row, Category.EXIT) + _cycles(row, Category.ENTRY)
    refill = float(_translation(ledger)) / LOOPS
    status = profiles()[profile].prices["round_trip"].status
    vmwrite = _cycles(row, Category.VMWRITE)
    return Priced(low, float(row.cycles) / LOOPS, high, round_trip, vmwrite, refill, status)


def _cycles(row: Row, category: Category) -> float:
    return float(sum(cell.cycles for cell in row.cells if cell.category is category)) / LOOPS


def _translation(ledger: Ledger) -> float:
    return float(ledger.translation_cycles)


class _Run(NamedTuple):
    events: EventLog
    translation: dict[str, int]


def _run(profile: str) -> _Run:
    """Run the loop; only what happens inside it is counted."""
    trace = vtx.load_trace(TRACE)
    header = trace.header
    with make_machine(header, profiles()[profile].shape) as machine:
        make_guest(header, machine, trace.name, {})
        cpu = machine.cpus[0]
        stack = cpu.vmread(vtx.Field.HOST_RSP)
        cpu.vmlaunch(trace)
        assert cpu.vmcs is not None
        begun, before = cpu.events.copy(), cpu.mmu.counters()
        for _ in range(LOOPS):
            # vmlatency leaves RIP at its CPUID; this guest has a row of them.
            cpu.vmcs[vtx.Field.GUEST_RIP] += 2
            cpu.vmwrite(vtx.Field.HOST_RSP, stack)
            exit = cpu.vmresume()
            assert exit.information.reason == ExitReason.CPUID
        after = cpu.mmu.counters()
        counted = {name: after[name] - before[name] for name in after}
        log = EventLog()
        for reason, row in cpu.events.counts.items():
            first = begun.counts.get(reason, [0] * len(row))
            log.counts[reason] = [now - then for now, then in zip(row, first, strict=True)]
        return _Run(log, counted)
