"""A CPU profile: what the CPU is (its shape) and what its events cost (its prices).

Prices carry how well they are founded, so that every total can say on what it rests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from vtx.facts.msrs import Msr
from vtx.machine.shape import Shape
from vtx.profiles import load_raw, names
from vtx.profiles.schema import OPTIONAL_PRICES, OPTIONAL_WALK_PRICES

__all__ = [
    "UNCERTAINTY",
    "Price",
    "Profile",
    "Status",
    "load_profile",
    "load_profiles",
    "plain_number",
]

#: Prices that a profile need not have; without one the event is counted and not priced.
_NO_FIGURE = "no published figure is known"


class Status(StrEnum):
    """How well a price is founded, best first."""

    MEASURED = "measured"
    """Read from a measurement of this CPU or this generation, or a constant of the vendor."""
    DERIVED = "derived"
    """Computed from measurements (a difference, a median)."""
    ESTIMATED = "estimated"
    """Assumed, for a reason that the profile gives."""


#: A price whose source gives no range may be off by this part of itself. Runs of one
#: microbenchmark on parts of one generation differ by about a tenth; ratios carried over from
#: other CPUs by much more.
UNCERTAINTY = {
    Status.MEASURED: Fraction(1, 10),
    Status.DERIVED: Fraction(1, 4),
    Status.ESTIMATED: Fraction(1, 2),
}


def plain_number(value: Fraction) -> int | float:
    """Return a number for output: an int where the fraction is whole."""
    return value.numerator if value.denominator == 1 else float(value)


@dataclass(frozen=True)
class Price:
    """What one event costs.

    Parameters
    ----------
    name : str
        ``"exit"``, ``"vmread"``, ``"walk.reference"`` ...
    cycles : Fraction or None
        Exact; None if there is no data.
    status : Status or None
        None if there is no data.
    source : str
        Where the figure comes from; for an estimate, its reason.
    span : tuple of Fraction, optional
        Low and high, if the source gives them.
    """

    name: str
    cycles: Fraction | None
    status: Status | None
    source: str
    span: tuple[Fraction, Fraction] | None = None

    @property
    def known(self) -> bool:
        """Whether there is a figure."""
        return self.cycles is not None

    @property
    def bounds(self) -> tuple[Fraction, Fraction]:
        """Low and high: those of the source, or what :data:`UNCERTAINTY` makes of the status.

        Both are 0 where there is no figure.
        """
        if self.span is not None:
            return self.span
        if self.cycles is None or self.status is None:
            return Fraction(0), Fraction(0)
        off = self.cycles * UNCERTAINTY[self.status]
        return self.cycles - off, self.cycles + off

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.cycles is None:
            return {"cycles": None, "status": self.status, "source": self.source}
        low, high = map(plain_number, self.bounds)
        cycles = plain_number(self.cycles)
        figures = {"cycles": cycles, "low": low, "high": high}
        return {**figures, "status": self.status, "source": self.source}


@dataclass(frozen=True)
class Profile:
    """A CPU: shape and prices, with the provenance of both.

    Parameters
    ----------
    id, name, microarchitecture : str
        Short name, the part it stands for, and what it is an example of.
    nominal_ghz : float
        Clock that turns cycles into time.
    shape : Shape
        What changes behaviour.
    prices : mapping of str to Price
        By name, optional ones included.
    provenance : mapping
        Status and source of the parts of the shape, and of the clock.
    file : str
        The file it was read from.
    """

    id: str
    name: str
    microarchitecture: str
    nominal_ghz: float
    shape: Shape
    prices: Mapping[str, Price]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)
    file: str = field(default="", compare=False)

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Profile:
        """Return the profile that :func:`vtx.profiles.load_raw` has read."""
        prices = {name: _price(name, entry) for name, entry in raw["prices"].items()}
        for name in (*OPTIONAL_PRICES, *(f"walk.{key}" for key in OPTIONAL_WALK_PRICES)):
            prices.setdefault(name, Price(name, None, None, _NO_FIGURE))
        ghz = raw["nominal_ghz"]
        clock = {"status": ghz["status"], "source": ghz["source"]}
        return cls(
            id=raw["id"],
            name=raw["name"],
            microarchitecture=raw["microarchitecture"],
            nominal_ghz=ghz["value"],
            shape=Shape.from_raw(raw),
            prices=prices,
            provenance={**raw["provenance"], "nominal_ghz": clock},
            file=raw["file"],
        )

    @property
    def has_prices(self) -> bool:
        """Whether VM transitions have a figure; without one nothing is priced."""
        return all(self.prices[name].known for name in ("entry", "exit", "round_trip"))

    @property
    def shape_key(self) -> tuple[object, ...]:
        """What two profiles have in common if one run serves both (names do not matter)."""
        shape = self.shape
        msrs = frozenset(shape.msrs.items())
        widths = shape.maxphyaddr, shape.linear_bits
        return msrs, widths, shape.features, shape.tlb, shape.data_caches

    def ns(self, cycles: Fraction) -> Fraction:
        """Return `cycles` in nanoseconds at the nominal clock."""
        return cycles / Fraction(str(self.nominal_ghz))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: everything, with its provenance."""
        shape, tlb = self.shape, self.shape.tlb
        origin = self.provenance
        msrs = self.msrs_by_name()
        arrays = [
            {
                "level": array.level,
                "kind": array.kind,
                "pages": list(array.pages),
                "entries": array.entries,
                "ways": array.ways,
                "replacement": array.replacement,
                **source,
            }
            for array, source in zip(tlb.arrays, origin["tlb"]["arrays"], strict=True)
        ]
        caches = {"pml5": tlb.pml5, "pml4": tlb.pml4, "pdpt": tlb.pdpt, "pd": tlb.pd}
        return {
            **self.summary(),
            "nominal_ghz": {"value": self.nominal_ghz, **origin["nominal_ghz"]},
            "shape": {
                "capability_msrs": {
                    name: {"value": value, **origin["capability_msrs"][name]}
                    for name, value in msrs.items()
                },
                "address_widths": {
                    "maxphyaddr": shape.maxphyaddr,
                    "linear_bits": shape.linear_bits,
                    **origin["address_widths"],
                },
                "features": {"values": sorted(shape.features), **origin["features"]},
                "tlb": {
                    "note": origin["tlb"]["note"],
                    "arrays": arrays,
                    "paging_structure_caches": {
                        **caches,
                        **origin["tlb"]["paging_structure_caches"],
                    },
                    "guest_physical": {
                        "entries": tlb.guest_physical,
                        **origin["tlb"]["guest_physical"],
                    },
                },
                "data_caches": [
                    {
                        "size_bytes": cache.size_bytes,
                        "ways": cache.ways,
                        "replacement": cache.replacement,
                        **source,
                    }
                    for cache, source in zip(shape.data_caches, origin["data_caches"], strict=True)
                ],
            },
            "prices": {name: price.as_dict() for name, price in self.prices.items()},
        }

    def msrs_by_name(self) -> dict[str, int]:
        """Return the capability MSRs of the shape by name, in the order of their addresses."""
        return {Msr(address).name: value for address, value in sorted(self.shape.msrs.items())}

    def summary(self) -> dict[str, Any]:
        """Return what identifies the profile in a result."""
        return {
            "id": self.id,
            "name": self.name,
            "microarchitecture": self.microarchitecture,
            "nominal_ghz": self.nominal_ghz,
        }


def _price(name: str, entry: Mapping[str, Any]) -> Price:
    if entry["cycles"] is None:
        return Price(name, None, None, entry["source"])
    # A figure written 0.1 is one tenth, exactly: sums over the ledger must not drift.
    cycles, status = Fraction(str(entry["cycles"])), Status(entry["status"])
    span = None
    if "low" in entry:
        span = Fraction(str(entry["low"])), Fraction(str(entry["high"]))
    return Price(name, cycles, status, entry["source"], span)


def load_profile(name: str) -> Profile:
    """Return a profile by its name, or from the YAML file at this path.

    Raises
    ------
    UnknownName
        There is no such profile; the nearest names are given.
    InputError
        The file is malformed or describes an impossible CPU.
    """
    return Profile.from_raw(load_raw(name))


def load_profiles(which: str = "all") -> list[Profile]:
    """Return several profiles: names or paths with commas between, or ``"all"``."""
    wanted = names() if which == "all" else tuple(part.strip() for part in which.split(","))
    return [load_profile(name) for name in dict.fromkeys(wanted)]
