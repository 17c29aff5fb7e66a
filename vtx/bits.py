"""Bit slices and the address arithmetic that every room needs."""

from __future__ import annotations

__all__ = ["MASK32", "MASK64", "bit", "bits", "is_canonical", "sign_extend", "with_bits"]

MASK32 = 0xFFFF_FFFF
MASK64 = 0xFFFF_FFFF_FFFF_FFFF


def bit(value: int, position: int) -> int:
    """Return bit `position` of `value` as 0 or 1."""
    return value >> position & 1


def bits(value: int, high: int, low: int) -> int:
    """Return bits `high`:`low` of `value`, both included, as the SDM writes them."""
    return value >> low & ((1 << (high - low + 1)) - 1)


def with_bits(value: int, high: int, low: int, field: int) -> int:
    """Return `value` with bits `high`:`low` replaced by `field`."""
    mask = ((1 << (high - low + 1)) - 1) << low
    return value & ~mask | field << low & mask


def sign_extend(value: int, width: int) -> int:
    """Return the low `width` bits of `value` sign-extended to 64 bits."""
    sign = 1 << (width - 1)
    return ((value & ((1 << width) - 1)) ^ sign) - sign & MASK64


def is_canonical(address: int, linear_bits: int) -> bool:
    """Tell whether a 64-bit linear address is canonical for `linear_bits` (48 or 57)."""
    top = address >> (linear_bits - 1)
    return top == 0 or top == (1 << (65 - linear_bits)) - 1
