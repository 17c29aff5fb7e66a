"""How far a price may be off: bounds from its provenance."""

from __future__ import annotations

from dataclasses import dataclass

from vtx.lab.profile import Profile, Status

__all__ = ["UNCERTAINTY", "Bounds", "price_ns"]

#: A price may be off by this part of itself. Runs of one microbenchmark on parts of one generation
#: differ by about a tenth; ratios carried over from other CPUs by much more.
UNCERTAINTY = {Status.MEASURED: 0.10, Status.DERIVED: 0.25, Status.ESTIMATED: 0.50}


@dataclass(frozen=True)
class Bounds:
    """A figure between two bounds."""

    low: float
    value: float
    high: float

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.low + other.low, self.value + other.value, self.high + other.high)

    def __sub__(self, other: Bounds) -> Bounds:
        return Bounds(self.low - other.high, self.value - other.value, self.high - other.low)

    def times(self, factor: float) -> Bounds:
        """Return the figure times a number that is not negative."""
        return Bounds(self.low * factor, self.value * factor, self.high * factor)

    def as_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


NOTHING = Bounds(0.0, 0.0, 0.0)


def price_ns(profile: Profile, name: str) -> Bounds | None:
    """Return a price in nanoseconds at the nominal clock; None if the profile has none."""
    price = profile.prices[name]
    if price.cycles is None or price.status is None:
        return None
    ns, off = float(profile.ns(price.cycles)), UNCERTAINTY[price.status]
    return Bounds(ns * (1 - off), ns, ns * (1 + off))
