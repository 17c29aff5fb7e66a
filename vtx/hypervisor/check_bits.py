"""The bits of a field that a rule looks at, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from vtx.facts.controls import GROUPS
from vtx.facts.fields import FieldInfo, mask
from vtx.facts.qualifications import decode, field_layout
from vtx.machine.register_bits import Cr0, Cr4, Efer, Rflags

__all__ = ["bits_that_matter", "hexadecimal", "short"]

_FEW_BITS = 8

_REGISTERS: dict[str, type[IntEnum]] = {
    "cr0": Cr0,
    "cr4": Cr4,
    "rflags": Rflags,
    "ia32_efer": Efer,
}
_CONTROLS = {group.field: group for group in GROUPS.values()}


def hexadecimal(info: FieldInfo, value: int) -> str:
    """Return a value with all digits of its field."""
    return f"{value:#0{info.width.bits // 4 + 2}x}"


def _named_bits(info: FieldInfo, value: int, bits: int) -> Iterator[str]:
    """Return what the bits `bits` of a field are called, and what they hold."""
    if group := _CONTROLS.get(info.field):
        for control in group.controls:
            if bits & control.control:
                yield f'"{control.sdm_name}" {int(bool(value & control.control))}'
    elif info.layout is not None:
        for decoded in decode(field_layout(info.layout), value):
            row = decoded.range
            if bits >> row.low & ((1 << (row.high - row.low + 1)) - 1):
                meaning = (row.values or {}).get(decoded.value)
                words = f" ({meaning})" if meaning else ""
                yield f"{row.name} {short(decoded.value)}{words}"
    else:
        register = info.name.removeprefix("guest_").removeprefix("host_")
        for member in _REGISTERS.get(register, ()):
            if bits & member:
                yield f"{member.name} {(value & member) // (member & -member)}"


def short(value: int) -> str:
    """Return a number in decimal if that is one digit, else in hexadecimal."""
    return str(value) if value < 10 else f"{value:#x}"


def _positions(bits: int) -> str:
    """Return bit positions as the manual writes them: ``63:32, 5, 3``."""
    ranges: list[str] = []
    while bits:
        high = bits.bit_length() - 1
        low = high
        while low and bits >> (low - 1) & 1:
            low -= 1
        ranges.append(str(high) if high == low else f"{high}:{low}")
        bits &= (1 << low) - 1
    return ", ".join(ranges)


def bits_that_matter(info: FieldInfo, value: int, bits: int) -> str:
    """Describe the bits of a value that a rule looks at; nothing if it looks at all of them."""
    if bits == mask(info.field):
        return ""
    names = list(_named_bits(info, value, bits))
    if 0 < len(names) <= _FEW_BITS:
        return ", ".join(names)
    set_ = value & bits
    shown, words = (set_, "1") if set_ else (bits, "0")
    if shown.bit_count() == 1:
        return f"bit {_positions(shown)} is {words}"
    return f"bits {_positions(shown)} are {words}"
