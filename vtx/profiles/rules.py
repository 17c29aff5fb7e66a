"""What no CPU can be: rules that hold across the parts of a profile.

Source of the rules on capability MSRs: SDM, appendix "VMX Capability Reporting Facility".
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from vtx.facts.msrs import Msr
from vtx.profiles.schema import PRICES, WALK_PRICES, Part

__all__ = ["check_profile"]

#: MSRs that every CPU with VMX has.
_ALWAYS = (
    "IA32_VMX_BASIC", "IA32_VMX_PINBASED_CTLS", "IA32_VMX_PROCBASED_CTLS", "IA32_VMX_EXIT_CTLS",
    "IA32_VMX_ENTRY_CTLS", "IA32_VMX_MISC", "IA32_VMX_CR0_FIXED0", "IA32_VMX_CR0_FIXED1",
    "IA32_VMX_CR4_FIXED0", "IA32_VMX_CR4_FIXED1", "IA32_VMX_VMCS_ENUM",
)  # fmt: skip
_TRUE = {
    "IA32_VMX_TRUE_PINBASED_CTLS": "IA32_VMX_PINBASED_CTLS",
    "IA32_VMX_TRUE_PROCBASED_CTLS": "IA32_VMX_PROCBASED_CTLS",
    "IA32_VMX_TRUE_EXIT_CTLS": "IA32_VMX_EXIT_CTLS",
    "IA32_VMX_TRUE_ENTRY_CTLS": "IA32_VMX_ENTRY_CTLS",
}
#: MSR, the MSR and the bits of it (any of them) that make it exist.
_DEPENDENT = (
    ("IA32_VMX_PROCBASED_CTLS2", "IA32_VMX_PROCBASED_CTLS", (63,)),
    ("IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_PROCBASED_CTLS", (49,)),
    ("IA32_VMX_EXIT_CTLS2", "IA32_VMX_EXIT_CTLS", (63,)),
    ("IA32_VMX_EPT_VPID_CAP", "IA32_VMX_PROCBASED_CTLS2", (33, 37)),
    ("IA32_VMX_VMFUNC", "IA32_VMX_PROCBASED_CTLS2", (45,)),
)
_FIXED = (
    ("IA32_VMX_CR0_FIXED0", "IA32_VMX_CR0_FIXED1"),
    ("IA32_VMX_CR4_FIXED0", "IA32_VMX_CR4_FIXED1"),
)
_LA57, _SHAPE_PARTS = 1 << 12, ("address_widths", "features", "arrays")


def check_profile(parts: Mapping[str, Part]) -> None:
    """Check a whole profile, inherited parts included.

    Raises
    ------
    InputError
        Something is missing or impossible.
    """
    _check_complete(parts)
    _check_msrs(parts)
    _check_widths(parts)
    _check_round_trip(parts)


def _check_complete(parts: Mapping[str, Part]) -> None:
    prices = (*PRICES, *(f"walk.{key}" for key in WALK_PRICES))
    wanted = [
        "name", "microarchitecture", "nominal_ghz", *_SHAPE_PARTS, "paging_structure_caches",
        "guest_physical", *(f"price {name}" for name in prices), *(f"msr {n}" for n in _ALWAYS),
    ]  # fmt: skip
    missing = [name for name in wanted if name not in parts]
    if missing:
        raise parts["document"].item.error(
            f"the profile has no {missing[0].removeprefix('msr ')!r}",
            hint="give it, or inherit from a profile that has it ('inherits: skylake_sp')",
        )
    if not parts["arrays"].value:
        raise parts["arrays"].item.error("a CPU has at least one TLB array")


def _check_msrs(parts: Mapping[str, Part]) -> None:
    basic = parts["msr IA32_VMX_BASIC"]
    if basic.value["value"] >> 31 & 1:
        raise basic.item.error("bit 31 of IA32_VMX_BASIC is always 0")
    if not 1 <= basic.value["value"] >> 32 & 0x1FFF <= 4096:
        raise basic.item.error("IA32_VMX_BASIC[44:32], the VMCS region size, is from 1 to 4096")
    for name in (*_TRUE.values(), "IA32_VMX_PROCBASED_CTLS2"):
        _check_allowed(parts, name)
    for fixed0, fixed1 in _FIXED:
        _check_fixed(parts, fixed0, fixed1)
    for name, plain in _TRUE.items():
        _check_exists(parts, name, bool(basic.value["value"] >> 55 & 1), "IA32_VMX_BASIC[55]")
        _check_allowed(parts, name)
        _check_true(parts, name, plain)
    for name, owner, positions in _DEPENDENT:
        value = _value(parts, owner)
        bits = " or ".join(f"{owner}[{position}]" for position in positions)
        _check_exists(parts, name, any(value >> position & 1 for position in positions), bits)


def _value(parts: Mapping[str, Part], name: str) -> int:
    part = parts.get(f"msr {name}")
    return int(part.value["value"]) if part else 0


def _check_allowed(parts: Mapping[str, Part], name: str) -> None:
    """Require that a control that must be 1 (low half) may be 1 (high half)."""
    value = _value(parts, name)
    wrong = value & 0xFFFF_FFFF & ~(value >> 32)
    if wrong:
        raise parts[f"msr {name}"].item.error(
            f"{name} requires bit {wrong.bit_length() - 1} to be 1 but does not allow it",
            hint="bits 31:0 must be a subset of bits 63:32",
        )


def _check_fixed(parts: Mapping[str, Part], fixed0: str, fixed1: str) -> None:
    wrong = _value(parts, fixed0) & ~_value(parts, fixed1)
    if wrong:
        raise parts[f"msr {fixed0}"].item.error(
            f"{fixed0} requires bit {wrong.bit_length() - 1} to be 1, {fixed1} requires it to be 0"
        )


def _check_true(parts: Mapping[str, Part], name: str, plain: str) -> None:
    """Require that the TRUE MSR allows the same 1-settings and requires no more of them."""
    if f"msr {name}" not in parts:
        return
    true, other = _value(parts, name), _value(parts, plain)
    if true >> 32 != other >> 32 or true & 0xFFFF_FFFF & ~other:
        raise parts[f"msr {name}"].item.error(
            f"{name} contradicts {plain}",
            hint="bits 63:32 are equal, and bits 31:0 of the TRUE MSR are a subset of the other's",
        )


def _check_exists(parts: Mapping[str, Part], name: str, exists: bool, condition: str) -> None:
    part = parts.get(f"msr {name}")
    if exists and part is None:
        raise parts["document"].item.error(f"{condition} is 1, but the profile has no {name}")
    if part is not None and not exists:
        raise part.item.error(f"{name} ({Msr[name]:#x}) exists only if {condition} is 1")


def _check_widths(parts: Mapping[str, Part]) -> None:
    widths = parts["address_widths"]
    la57 = bool(_value(parts, "IA32_VMX_CR4_FIXED1") & _LA57)
    if la57 != (widths.value["linear_bits"] == 57):
        raise widths.item.error(
            f"linear_bits is {widths.value['linear_bits']}, but CR4.LA57 (bit 12) is "
            f"{'allowed' if la57 else 'not allowed'} by IA32_VMX_CR4_FIXED1"
        )


def _check_round_trip(parts: Mapping[str, Part]) -> None:
    entry, leave, both = (
        parts[f"price {name}"].value["cycles"] for name in ("entry", "exit", "round_trip")
    )
    known = [cycles is not None for cycles in (entry, leave, both)]
    item = parts["price round_trip"].item
    if not any(known):
        return
    if not all(known):
        raise item.error("entry, exit and round_trip are given together or not at all")
    if Fraction(str(entry)) + Fraction(str(leave)) != Fraction(str(both)):
        raise item.error(
            f"entry {entry} and exit {leave} do not add up to round_trip {both}",
            hint="give all three when one of them changes",
        )
