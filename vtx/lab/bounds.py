"""How far a price may be off: bounds from its provenance."""

from __future__ import annotations

from dataclasses import dataclass

from vtx.lab.profile import UNCERTAINTY, Profile

__all__ = ["UNCERTAINTY", "Bounds", "price_ns"]


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
    if price.cycles is None:
        return None
    low, high = price.bounds
    return Bounds(*(float(profile.ns(cycles)) for cycles in (low, price.cycles, high)))
