"""VM-entry checks on guest segment registers: selectors, virtual-8086 mode, base addresses.

First part of the SDM's section "Checks on Guest Segment Registers". A rule for several registers
is written once and defined for each of them.
"""

from __future__ import annotations

from vtx.bits import MASK64
from vtx.facts.controls import Proc2
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import AccessRights as Ar
from vtx.machine.registers import Rflags
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import SEGMENTS
from vtx.rules.declaration import Checks, only
from vtx.rules.entry_host import LINEAR_WIDTH, define_canonical
from vtx.rules.limits import canonical

__all__ = [
    "CODE_AND_DATA",
    "VIRTUAL_8086",
    "access_rights",
    "base",
    "in_v8086",
    "is_unrestricted",
    "limit",
    "selector",
]

check = Checks()

#: Segment registers in the order in which the checks come.
CODE_AND_DATA = ("cs", "ss", "ds", "es", "fs", "gs")
_ABOVE_32 = ~0xFFFF_FFFF & MASK64
_CANONICAL_BITS = ~0x7FFF_FFFF_FFFF & MASK64
VIRTUAL_8086 = only(F.GUEST_RFLAGS, Rflags.VM)
_RFLAGS, _VM = VIRTUAL_8086
_UNRESTRICTED = int(Proc2.UNRESTRICTED_GUEST)
_V8086_ACCESS_RIGHTS = 0xF3


def selector(name: str) -> F:
    """Return the field of a guest segment's selector."""
    return F[f"GUEST_{name.upper()}_SELECTOR"]


def base(name: str) -> F:
    """Return the field of a guest segment's base address."""
    return F[f"GUEST_{name.upper()}_BASE"]


def limit(name: str) -> F:
    """Return the field of a guest segment's limit."""
    return F[f"GUEST_{name.upper()}_LIMIT"]


def access_rights(name: str) -> F:
    """Return the field of a guest segment's access rights."""
    return F[f"GUEST_{name.upper()}_ACCESS_RIGHTS"]


def in_v8086(vmcs: Vmcs) -> int:
    """Return RFLAGS.VM of the guest (not shifted)."""
    return vmcs[_RFLAGS] & _VM


def is_unrestricted(vmcs: Vmcs) -> int:
    """Return "unrestricted guest" (not shifted)."""
    return vmcs.proc2 & _UNRESTRICTED


# Selectors


@check("guest.tr.selector_ti", SEGMENTS, only(F.GUEST_TR_SELECTOR, 4))
def tr_selector_refers_to_the_gdt(vmcs: Vmcs, processor: Processor) -> bool:
    """Bit 2 (TI) of the guest TR selector is 0."""
    return not vmcs[F.GUEST_TR_SELECTOR] & 4


@check(
    "guest.ldtr.selector_ti",
    SEGMENTS,
    only(F.GUEST_LDTR_SELECTOR, 4),
    only(F.GUEST_LDTR_ACCESS_RIGHTS, Ar.UNUSABLE),
)
def ldtr_selector_refers_to_the_gdt(vmcs: Vmcs, processor: Processor) -> bool:
    """If LDTR is usable, bit 2 (TI) of the guest LDTR selector is 0."""
    return (
        bool(vmcs[F.GUEST_LDTR_ACCESS_RIGHTS] & Ar.UNUSABLE) or not vmcs[F.GUEST_LDTR_SELECTOR] & 4
    )


@check(
    "guest.ss.selector_rpl_eq_cs",
    SEGMENTS,
    VIRTUAL_8086,
    Proc2.UNRESTRICTED_GUEST,
    only(F.GUEST_SS_SELECTOR, 3),
    only(F.GUEST_CS_SELECTOR, 3),
    note="applies even if SS is unusable",
)
def ss_and_cs_selectors_have_one_rpl(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode and if "unrestricted guest" is 0, the RPL of the SS selector equals
    the RPL of the CS selector."""
    return (
        bool(in_v8086(vmcs) or is_unrestricted(vmcs))
        or not (vmcs[F.GUEST_SS_SELECTOR] ^ vmcs[F.GUEST_CS_SELECTOR]) & 3
    )


# Virtual-8086 mode


def _define_v8086(name: str) -> None:
    """Define what a segment register must hold in a virtual-8086 guest."""
    register = name.upper()
    base_field, selector_field = base(name), selector(name)
    limit_field, rights_field = limit(name), access_rights(name)

    @check(
        f"guest.{name}.base.v8086",
        SEGMENTS,
        VIRTUAL_8086,
        base_field,
        selector_field,
        title=f"{register} base of a virtual-8086 guest is 16 times its selector",
        rule=f"In virtual-8086 mode the {register} base is the {register} selector shifted left 4.",
    )
    def base_is_16_times_the_selector(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[_RFLAGS] & _VM or vmcs[base_field] == vmcs[selector_field] << 4

    @check(
        f"guest.{name}.limit.v8086",
        SEGMENTS,
        VIRTUAL_8086,
        limit_field,
        title=f"{register} limit of a virtual-8086 guest is 64 KiB",
        rule=f"In virtual-8086 mode the {register} limit is 0000FFFFH.",
    )
    def limit_is_64_kib(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[_RFLAGS] & _VM or vmcs[limit_field] == 0xFFFF

    @check(
        f"guest.{name}.ar.v8086",
        SEGMENTS,
        VIRTUAL_8086,
        rights_field,
        title=f"{register} access rights of a virtual-8086 guest are F3H",
        rule=(
            f"In virtual-8086 mode the {register} access rights are 000000F3H: type 3, S 1, DPL "
            "3, P 1, all else 0."
        ),
    )
    def access_rights_are_those_of_a_v8086_segment(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[_RFLAGS] & _VM or vmcs[rights_field] == _V8086_ACCESS_RIGHTS


for _name in CODE_AND_DATA:
    _define_v8086(_name)

# Base addresses

for _name in ("tr", "fs", "gs"):
    define_canonical(
        check,
        f"guest.{_name}.base_canonical",
        SEGMENTS,
        base(_name),
        note=None if _name == "tr" else "applies even if the register is unusable",
    )


@check(
    "guest.ldtr.base_canonical",
    SEGMENTS,
    only(F.GUEST_LDTR_ACCESS_RIGHTS, Ar.UNUSABLE),
    only(F.GUEST_LDTR_BASE, _CANONICAL_BITS),
    capability=LINEAR_WIDTH,
)
def ldtr_base_is_canonical(vmcs: Vmcs, processor: Processor) -> bool:
    """If LDTR is usable, its base is canonical."""
    return bool(vmcs[F.GUEST_LDTR_ACCESS_RIGHTS] & Ar.UNUSABLE) or canonical(
        vmcs[F.GUEST_LDTR_BASE], processor.shape
    )


def _define_32bit_base(name: str) -> None:
    """Define the check that a segment base has 32 bits."""
    field, rights = base(name), access_rights(name)
    unusable = 0 if name == "cs" else int(Ar.UNUSABLE)
    when = f"If {name.upper()} is usable, bits" if unusable else "Bits"

    @check(
        f"guest.{name}.base_high",
        SEGMENTS,
        only(field, _ABOVE_32),
        *((only(rights, unusable),) if unusable else ()),
        title=f"{name.upper()} base has 32 bits",
        rule=f"{when} 63:32 of the {name.upper()} base are 0.",
        note=None if unusable else "whether or not CS is marked unusable",
    )
    def base_has_32_bits(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[field] >> 32 or bool(unusable and vmcs[rights] & unusable)


for _name in ("cs", "ss", "ds", "es"):
    _define_32bit_base(_name)
