"""VM-entry checks on the access rights of CS, SS, DS, ES, FS and GS of the guest.

Second part of the SDM's section "Checks on Guest Segment Registers", in its order.
"""

from __future__ import annotations

from collections.abc import Callable

from vtx.facts.controls import Entry, Proc2
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import AccessRights as Ar
from vtx.machine.registers import Cr0, Cr4, Interruptibility, Rflags
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import SEGMENTS
from vtx.rules.declaration import Checks, Read, only
from vtx.rules.entry_guest_segments import (
    CODE_AND_DATA,
    VIRTUAL_8086,
    access_rights,
    in_v8086,
    is_unrestricted,
    limit,
    selector,
)

check = Checks()

Rule = Callable[[Vmcs], bool]

_RFLAGS, _VM = VIRTUAL_8086
_CS, _SS = F.GUEST_CS_ACCESS_RIGHTS, F.GUEST_SS_ACCESS_RIGHTS
_DATA = ("ds", "es", "fs", "gs")
_CODE, _READABLE, _ACCESSED = 8, 2, 1
_REAL_MODE_CODE = 3
_ACCESSED_CODE = frozenset({9, 11, 13, 15})
_NONCONFORMING, _CONFORMING = frozenset({9, 11}), frozenset({13, 15})
_RESERVED_LOW = 0xF00
_RESERVED_HIGH = 0xFFFE_0000


def _type(vmcs: Vmcs, rights: F) -> int:
    return vmcs[rights] & 0xF


def _dpl(vmcs: Vmcs, rights: F) -> int:
    return vmcs[rights] >> 5 & 3


def _define_for_usable(
    id: str, name: str, reads: tuple[Read, ...], title: str, rule: str, holds: Rule
) -> None:
    """Define a check that a usable segment must pass in a guest outside virtual-8086 mode.

    CS counts as usable whatever its bit 16 says.
    """
    rights = access_rights(name)
    unusable = 0 if name == "cs" else int(Ar.UNUSABLE)
    condition = "Outside virtual-8086 mode, "
    if unusable:
        condition = f"Outside virtual-8086 mode and if {name.upper()} is usable, "

    @check(
        id,
        SEGMENTS,
        VIRTUAL_8086,
        *((only(rights, unusable),) if unusable else ()),
        *reads,
        title=f"{name.upper()} {title}",
        rule=f"{condition}{rule}",
    )
    def usable_segment_keeps_the_rule(vmcs: Vmcs, processor: Processor) -> bool:
        return bool(vmcs[_RFLAGS] & _VM or vmcs[rights] & unusable) or holds(vmcs)


# Access rights: type

_CS_TYPE = only(_CS, Ar.TYPE)


@check("guest.cs.type.restricted", SEGMENTS, VIRTUAL_8086, Proc2.UNRESTRICTED_GUEST, _CS_TYPE)
def cs_is_accessed_code(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode and if "unrestricted guest" is 0, the CS type is 9, 11, 13 or 15
    (accessed code)."""
    return bool(in_v8086(vmcs) or is_unrestricted(vmcs)) or _type(vmcs, _CS) in _ACCESSED_CODE


@check("guest.cs.type.unrestricted", SEGMENTS, VIRTUAL_8086, Proc2.UNRESTRICTED_GUEST, _CS_TYPE)
def cs_is_accessed_code_or_real_mode_data(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode and if "unrestricted guest" is 1, the CS type is 3 (read/write
    accessed data), 9, 11, 13 or 15."""
    if in_v8086(vmcs) or not is_unrestricted(vmcs):
        return True
    return _type(vmcs, _CS) in _ACCESSED_CODE or _type(vmcs, _CS) == _REAL_MODE_CODE


_define_for_usable(
    "guest.ss.type",
    "ss",
    (only(_SS, Ar.TYPE),),
    "is accessed read/write data",
    "the SS type is 3 or 7 (accessed read/write data).",
    lambda vmcs: vmcs[_SS] & Ar.TYPE in (3, 7),
)


def _define_data_type(name: str) -> None:
    """Define what the type of DS, ES, FS or GS must be."""
    rights, register = access_rights(name), name.upper()
    _define_for_usable(
        f"guest.{name}.type.accessed",
        name,
        (only(rights, _ACCESSED),),
        "is accessed",
        f"bit 0 (accessed) of the {register} type is 1.",
        lambda vmcs: bool(vmcs[rights] & _ACCESSED),
    )
    _define_for_usable(
        f"guest.{name}.type.readable_code",
        name,
        (only(rights, _CODE | _READABLE),),
        "is readable if it is code",
        f"bit 1 (readable) of the {register} type is 1 if bit 3 (code) is 1.",
        lambda vmcs: not vmcs[rights] & _CODE or bool(vmcs[rights] & _READABLE),
    )


for _name in _DATA:
    _define_data_type(_name)

# Access rights: S


def _define_bit_is_1(suffix: str, name: str, bit: Ar, title: str, rule: str) -> None:
    rights = access_rights(name)
    _define_for_usable(
        f"guest.{name}.{suffix}",
        name,
        (only(rights, bit),),
        title,
        rule,
        lambda vmcs: bool(vmcs[rights] & bit),
    )


for _name in CODE_AND_DATA:
    _define_bit_is_1(
        "s", _name, Ar.S, "is code or data", f"bit 4 (S) of the {_name.upper()} access rights is 1."
    )

# Access rights: DPL


@check(
    "guest.cs.dpl.type3",
    SEGMENTS,
    VIRTUAL_8086,
    only(_CS, Ar.TYPE | Ar.DPL),
    note='type 3 is possible only with "unrestricted guest"',
)
def cs_of_type_3_has_dpl_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode, the DPL of CS is 0 if its type is 3."""
    return bool(in_v8086(vmcs)) or _type(vmcs, _CS) != _REAL_MODE_CODE or _dpl(vmcs, _CS) == 0


@check(
    "guest.cs.dpl.nonconforming",
    SEGMENTS,
    VIRTUAL_8086,
    only(_CS, Ar.TYPE | Ar.DPL),
    only(_SS, Ar.DPL),
    note="the DPL of SS counts even if SS is unusable",
)
def nonconforming_cs_has_the_dpl_of_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode, the DPL of CS equals the DPL of SS if the CS type is 9 or 11
    (nonconforming code)."""
    return (
        bool(in_v8086(vmcs))
        or _type(vmcs, _CS) not in _NONCONFORMING
        or _dpl(vmcs, _CS) == _dpl(vmcs, _SS)
    )


@check(
    "guest.cs.dpl.conforming",
    SEGMENTS,
    VIRTUAL_8086,
    only(_CS, Ar.TYPE | Ar.DPL),
    only(_SS, Ar.DPL),
    note="the DPL of SS counts even if SS is unusable",
)
def conforming_cs_has_no_dpl_above_that_of_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode, the DPL of CS is not greater than the DPL of SS if the CS type is
    13 or 15 (conforming code)."""
    return (
        bool(in_v8086(vmcs))
        or _type(vmcs, _CS) not in _CONFORMING
        or _dpl(vmcs, _CS) <= _dpl(vmcs, _SS)
    )


_SS_DPL = only(_SS, Ar.DPL)


@check(
    "guest.ss.dpl.eq_rpl",
    SEGMENTS,
    VIRTUAL_8086,
    Proc2.UNRESTRICTED_GUEST,
    _SS_DPL,
    only(F.GUEST_SS_SELECTOR, 3),
    note="the manual makes no exception for an unusable SS",
)
def ss_dpl_is_its_rpl(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode and if "unrestricted guest" is 0, the DPL of SS equals the RPL of
    its selector."""
    return (
        bool(in_v8086(vmcs) or is_unrestricted(vmcs))
        or _dpl(vmcs, _SS) == vmcs[F.GUEST_SS_SELECTOR] & 3
    )


@check("guest.ss.dpl.cs_type3", SEGMENTS, VIRTUAL_8086, _SS_DPL, _CS_TYPE)
def ss_dpl_is_0_beside_cs_of_type_3(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode, the DPL of SS is 0 if the CS type is 3."""
    return bool(in_v8086(vmcs)) or _type(vmcs, _CS) != _REAL_MODE_CODE or _dpl(vmcs, _SS) == 0


@check("guest.ss.dpl.real_mode", SEGMENTS, VIRTUAL_8086, _SS_DPL, only(F.GUEST_CR0, Cr0.PE))
def ss_dpl_is_0_in_real_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode, the DPL of SS is 0 if CR0.PE of the guest is 0."""
    return bool(in_v8086(vmcs) or vmcs[F.GUEST_CR0] & Cr0.PE) or _dpl(vmcs, _SS) == 0


# Access rights: with FRED transitions

_FRED = only(F.GUEST_CR4, Cr4.FRED)


def _fred_ring(vmcs: Vmcs) -> int | None:
    """Return the privilege level at which a guest with FRED starts, None without FRED."""
    return _dpl(vmcs, _SS) if vmcs[F.GUEST_CR4] & Cr4.FRED else None


@check("guest.ss.dpl.fred", SEGMENTS, _FRED, _SS_DPL)
def fred_guest_starts_in_ring_0_or_3(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.FRED of the guest is 1, the DPL of SS is 0 or 3."""
    return _fred_ring(vmcs) in (None, 0, 3)


@check("guest.cs.l.fred_ring0", SEGMENTS, _FRED, _SS_DPL, only(_CS, Ar.L))
def fred_ring_0_is_64bit(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.FRED of the guest is 1 and the DPL of SS is 0, CS.L is 1."""
    return _fred_ring(vmcs) != 0 or bool(vmcs[_CS] & Ar.L)


@check("guest.rflags.iopl.fred_ring3", SEGMENTS, _FRED, _SS_DPL, only(F.GUEST_RFLAGS, Rflags.IOPL))
def fred_ring_3_has_iopl_0(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.FRED of the guest is 1 and the DPL of SS is 3, RFLAGS.IOPL is 0."""
    return _fred_ring(vmcs) != 3 or not vmcs[F.GUEST_RFLAGS] & Rflags.IOPL


@check(
    "guest.interruptibility.sti.fred_ring3",
    SEGMENTS,
    _FRED,
    _SS_DPL,
    only(F.GUEST_INTERRUPTIBILITY_STATE, Interruptibility.STI),
)
def fred_ring_3_is_not_blocked_by_sti(vmcs: Vmcs, processor: Processor) -> bool:
    """If CR4.FRED of the guest is 1 and the DPL of SS is 3, there is no blocking by STI."""
    return _fred_ring(vmcs) != 3 or not vmcs[F.GUEST_INTERRUPTIBILITY_STATE] & Interruptibility.STI


# Access rights: DPL of data segments


def _define_data_dpl(name: str) -> None:
    """Define the check of the DPL of DS, ES, FS or GS against the RPL of its selector."""
    rights, selector_field, register = access_rights(name), selector(name), name.upper()

    @check(
        f"guest.{name}.dpl",
        SEGMENTS,
        VIRTUAL_8086,
        Proc2.UNRESTRICTED_GUEST,
        only(rights, Ar.UNUSABLE | Ar.TYPE | Ar.DPL),
        only(selector_field, 3),
        title=f"{register} DPL is not less than its RPL",
        rule=(
            f'Outside virtual-8086 mode and if "unrestricted guest" is 0 and {register} is usable '
            f"with a type of 11 or less, the DPL of {register} is not less than the RPL of its "
            "selector."
        ),
    )
    def data_dpl_is_not_less_than_its_rpl(vmcs: Vmcs, processor: Processor) -> bool:
        value = vmcs[rights]
        if in_v8086(vmcs) or is_unrestricted(vmcs):
            return True
        if value & Ar.UNUSABLE or value & Ar.TYPE > 11:
            return True
        return (value & Ar.DPL) >> 5 >= vmcs[selector_field] & 3


for _name in _DATA:
    _define_data_dpl(_name)

# Access rights: P, reserved bits, D/B, G


def _define_bits_are_0(suffix: str, name: str, mask: int, words: str) -> None:
    rights = access_rights(name)
    _define_for_usable(
        f"guest.{name}.{suffix}",
        name,
        (only(rights, mask),),
        f"access rights have {words} 0",
        f"{words} of the {name.upper()} access rights are 0.",
        lambda vmcs: not vmcs[rights] & mask,
    )


for _name in CODE_AND_DATA:
    _rule = f"bit 7 (P) of the {_name.upper()} access rights is 1."
    _define_bit_is_1("present", _name, Ar.P, "is present", _rule)
for _name in CODE_AND_DATA:
    _define_bits_are_0("ar_reserved_low", _name, _RESERVED_LOW, "bits 11:8")
for _name in CODE_AND_DATA:
    _define_bits_are_0("ar_reserved_high", _name, _RESERVED_HIGH, "bits 31:17")


@check(
    "guest.cs.db_l",
    SEGMENTS,
    VIRTUAL_8086,
    Entry.IA32E_MODE_GUEST,
    only(_CS, Ar.L | Ar.DB),
)
def cs_is_not_both_64bit_and_32bit(vmcs: Vmcs, processor: Processor) -> bool:
    """Outside virtual-8086 mode and if "IA-32e mode guest" is 1, CS.D is 0 if CS.L is 1."""
    both = Ar.L | Ar.DB
    return (
        bool(in_v8086(vmcs)) or not vmcs.entry & Entry.IA32E_MODE_GUEST or vmcs[_CS] & both != both
    )


def _define_granularity(name: str) -> None:
    """Define the two checks of a code or data segment's G bit against its limit."""
    limit_field, rights, register = limit(name), access_rights(name), name.upper()
    _define_for_usable(
        f"guest.{name}.granularity.must_be_0",
        name,
        (only(limit_field, 0xFFF), only(rights, Ar.G)),
        "limit that is not a whole number of pages is in bytes",
        f"G of {register} is 0 if any of bits 11:0 of its limit is 0.",
        lambda vmcs: vmcs[limit_field] & 0xFFF == 0xFFF or not vmcs[rights] & Ar.G,
    )
    _define_for_usable(
        f"guest.{name}.granularity.must_be_1",
        name,
        (only(limit_field, 0xFFF0_0000), only(rights, Ar.G)),
        "limit of 1 MiB or more is in pages",
        f"G of {register} is 1 if any of bits 31:20 of its limit is 1.",
        lambda vmcs: not vmcs[limit_field] >> 20 or bool(vmcs[rights] & Ar.G),
    )


for _name in CODE_AND_DATA:
    _define_granularity(_name)
