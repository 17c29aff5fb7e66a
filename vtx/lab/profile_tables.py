"""Profiles as tables: every figure with its status and its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vtx.lab.profile import Price, Profile
from vtx.lab.report import ESTIMATE_MARK, cycles_text, price_text
from vtx.lab.table import Column, Table

__all__ = ["prices_table", "profiles_table", "shape_table", "tlb_table"]

_PROFILE_PRICES = ("round_trip", "entry", "exit", "vmread", "vmwrite", "fault_exit_extra")


def profiles_table(profiles: Sequence[Profile]) -> Table:
    """Return one line for each profile: clock, what it can do, what its transitions cost."""
    columns = (
        Column("profile"),
        Column("CPU"),
        Column("GHz", True),
        Column("EPT"),
        Column("VPID"),
        *(Column(name, True) for name in _PROFILE_PRICES),
    )
    rows = [
        [
            profile.id,
            profile.name,
            f"{profile.nominal_ghz:g}",
            "yes" if profile.shape.has_ept else "no",
            "yes" if profile.shape.has_vpid else "no",
            *(price_text(profile.prices[name]) for name in _PROFILE_PRICES),
        ]
        for profile in profiles
    ]
    remarks = (
        f"Prices in cycles; {ESTIMATE_MARK} is an estimate, the others are measured or derived.",
        "'vtx profiles NAME' gives status and source of every figure.",
    )
    return Table("", columns, rows, remarks)


def prices_table(profile: Profile) -> Table:
    """Return the prices of one profile with their provenance."""
    figures = (Column(heading, True) for heading in ("cycles", "low", "high"))
    columns = (Column("price"), *figures, Column("status"), Column("source"))
    rows = [
        [
            name,
            price_text(price),
            *_price_bounds(price),
            price.status.value if price.status else "-",
            price.source,
        ]
        for name, price in profile.prices.items()
    ]
    return Table("", columns, rows)


def _price_bounds(price: Price) -> list[str]:
    return [cycles_text(bound) if price.known else "-" for bound in price.bounds]


def tlb_table(profile: Profile) -> Table:
    """Return the TLB arrays and paging-structure caches of one profile with their provenance."""
    tlb, origin = profile.shape.tlb, profile.provenance["tlb"]
    columns = (
        Column("translation cache"),
        Column("pages"),
        Column("entries", True),
        Column("ways", True),
        Column("status"),
        Column("source"),
    )
    notes = _Footnotes()
    rows = [
        [
            f"L{array.level} {array.kind}",
            ", ".join(array.pages),
            str(array.entries),
            str(array.ways),
            *notes.cells(source),
        ]
        for array, source in zip(tlb.arrays, origin["arrays"], strict=True)
    ]
    caches = notes.cells(origin["paging_structure_caches"])
    for name in ("pml5", "pml4", "pdpt", "pd"):
        rows.append([f"{name} cache", "-", str(getattr(tlb, name)), "-", *caches])
    nested = notes.cells(origin["guest_physical"])
    rows.append(["guest-physical TLB", "-", str(tlb.guest_physical), "-", *nested])
    remarks = (f"Note: {origin['note']}.",) if origin["note"] else ()
    return Table("", columns, rows, (*notes.lines, *remarks))


def shape_table(profile: Profile) -> Table:
    """Return capability MSRs, widths and features of one profile with their provenance."""
    origin = profile.provenance
    columns = (Column("shape"), Column("value"), Column("status"), Column("source"))
    notes = _Footnotes()
    rows = [
        [name, f"{value:#018x}", *notes.cells(origin["capability_msrs"][name])]
        for name, value in profile.msrs_by_name().items()
    ]
    widths = notes.cells(origin["address_widths"])
    rows.append(["MAXPHYADDR", str(profile.shape.maxphyaddr), *widths])
    rows.append(["linear address bits", str(profile.shape.linear_bits), *widths])
    features = notes.cells(origin["features"])
    rows += [[f"feature {name}", "yes", *features] for name in sorted(profile.shape.features)]
    return Table("", columns, rows, notes.lines)


class _Footnotes:
    """Numbers for sources that many rows share, and the lines that spell them out."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cells(self, origin: Mapping[str, str]) -> tuple[str, str]:
        """Return the cells for status and source."""
        number = self._numbers.setdefault(origin["source"], len(self._numbers) + 1)
        return origin["status"], f"[{number}]"

    @property
    def lines(self) -> tuple[str, ...]:
        """The sources, in the order of their numbers."""
        return tuple(f"[{number}] {source}" for source, number in self._numbers.items())
