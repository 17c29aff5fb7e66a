"""What one VM exit costs, on CPUs from 2005 to today, and of what the figure consists."""

from pathlib import Path

import vtx
from vtx.lab.ledger import Ledger, Row

TRACE = Path(__file__).with_name("guest.yaml")
CPUS = (
    "prescott_p4_672", "merom_core2", "nehalem", "sandy_bridge", "haswell_ep", "broadwell_ep",
    "skylake_sp", "cascade_lake_sp", "ice_lake_sp", "granite_rapids",
)  # fmt: skip


def row_of(ledger: Ledger, name: str) -> Row:
    """Return the ledger's row of an exit reason."""
    return next(row for row in ledger.rows if row.name == name)


def cpuid(ledger: Ledger) -> tuple[int, float, str]:
    """Return the transitions of one CPUID exit: cycles, nanoseconds, and how that is known."""
    cells = [cell for cell in row_of(ledger, "CPUID").cells if "transition" in cell.category]
    cycles = sum(cell.cycles / cell.count for cell in cells if cell.count)
    trip = ledger.profile.prices["round_trip"]
    return int(cycles), float(ledger.profile.ns(cycles)), trip.status.value


def main() -> None:
    """Run the trace once for each kind of CPU, and price it."""
    comparison = vtx.compare(TRACE, CPUS)
    print("One CPUID exit and the entry after it")
    print("  CPU                 cycles     ns   known how")
    for outcome in comparison.outcomes:
        cycles, ns, status = cpuid(outcome.ledger)
        print(f"  {outcome.profile.id:<18} {cycles:>7}  {ns:>5.0f}   {status}")
    run = vtx.replay(TRACE, profile="skylake_sp")
    print("\nHow often the guest exited, in 20 rounds")
    for reason, count in sorted(run.exits.items()):
        print(f"  {reason.name:<20} {count}")
    print("\nOne exit is one exit: what the handler adds on skylake_sp")
    ledger = vtx.compare(run, ["skylake_sp"]).outcomes[0].ledger
    for name in ("CPUID", "IO_INSTRUCTION"):
        for cell in row_of(ledger, name).cells:
            if cell.count and cell.price.cycles is not None:
                status = cell.price.status.value
                print(
                    f"  {name:<15} {cell.category.value:<18} {cell.count / 20:>4.1f} x "
                    f"{float(cell.price.cycles):>4.0f} cycles, {status}"
                )


main()
