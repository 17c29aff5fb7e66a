"""VM-entry checks on TR, LDTR, GDTR and IDTR of the guest.

Last part of the SDM's section "Checks on Guest Segment Registers", and its section "Checks on
Guest Descriptor-Table Registers".
"""

from __future__ import annotations

from collections.abc import Callable

from vtx.facts.controls import Entry
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.registers import AccessRights as Ar
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import DESCRIPTOR_TABLES, SEGMENTS
from vtx.rules.declaration import Checks, Read, only
from vtx.rules.entry_guest_segments import access_rights, limit
from vtx.rules.entry_host import define_canonical

check = Checks()

Rule = Callable[[Vmcs], bool]

_RESERVED_LOW = 0xF00
_RESERVED_HIGH = 0xFFFE_0000
_BUSY_TSS_16, _BUSY_TSS_32_OR_64, _LDT = 3, 11, 2
_TR_TYPE = only(F.GUEST_TR_ACCESS_RIGHTS, Ar.TYPE)


@check("guest.tr.type.legacy", SEGMENTS, Entry.IA32E_MODE_GUEST, _TR_TYPE)
def tr_is_a_busy_tss(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 0, the TR type is 3 (16-bit busy TSS) or 11 (32-bit busy TSS)."""
    kind = vmcs[F.GUEST_TR_ACCESS_RIGHTS] & Ar.TYPE
    return bool(vmcs.entry & Entry.IA32E_MODE_GUEST) or kind in (
        _BUSY_TSS_16,
        _BUSY_TSS_32_OR_64,
    )


@check("guest.tr.type.ia32e", SEGMENTS, Entry.IA32E_MODE_GUEST, _TR_TYPE)
def tr_is_a_busy_64bit_tss(vmcs: Vmcs, processor: Processor) -> bool:
    """If "IA-32e mode guest" is 1, the TR type is 11 (64-bit busy TSS)."""
    kind = vmcs[F.GUEST_TR_ACCESS_RIGHTS] & Ar.TYPE
    return not vmcs.entry & Entry.IA32E_MODE_GUEST or kind == _BUSY_TSS_32_OR_64


def _define(
    id: str,
    name: str,
    reads: tuple[Read, ...],
    title: str,
    rule: str,
    holds: Rule,
    *,
    cause: str | None = None,
) -> None:
    """Define a check on TR, or on LDTR if it is usable."""
    register = name.upper()
    rights = access_rights(name)
    unusable = int(Ar.UNUSABLE) if name == "ldtr" else 0
    condition = f"If {register} is usable, " if unusable else ""
    sentence = f"{condition}{rule}" if condition else rule[0].upper() + rule[1:]

    @check(
        id,
        SEGMENTS,
        *((only(rights, unusable),) if unusable else ()),
        *reads,
        title=f"{register} {title}",
        rule=sentence,
        cause=cause,
    )
    def system_segment_keeps_the_rule(vmcs: Vmcs, processor: Processor) -> bool:
        return bool(unusable and vmcs[rights] & unusable) or holds(vmcs)


def _define_s_and_p(name: str) -> None:
    rights, register = access_rights(name), name.upper()
    _define(
        f"guest.{name}.s",
        name,
        (only(rights, Ar.S),),
        "is a system segment",
        f"bit 4 (S) of the {register} access rights is 0.",
        lambda vmcs: not vmcs[rights] & Ar.S,
    )
    _define(
        f"guest.{name}.present",
        name,
        (only(rights, Ar.P),),
        "is present",
        f"bit 7 (P) of the {register} access rights is 1.",
        lambda vmcs: bool(vmcs[rights] & Ar.P),
    )


def _define_reserved(suffix: str, name: str, mask: int, words: str) -> None:
    rights = access_rights(name)
    _define(
        f"guest.{name}.{suffix}",
        name,
        (only(rights, mask),),
        f"access rights have {words} 0",
        f"{words} of the {name.upper()} access rights are 0.",
        lambda vmcs: not vmcs[rights] & mask,
    )


def _define_granularity(name: str) -> None:
    limit_field, rights, register = limit(name), access_rights(name), name.upper()
    _define(
        f"guest.{name}.granularity.must_be_0",
        name,
        (only(limit_field, 0xFFF), only(rights, Ar.G)),
        "limit that is not a whole number of pages is in bytes",
        f"G of {register} is 0 if any of bits 11:0 of its limit is 0.",
        lambda vmcs: vmcs[limit_field] & 0xFFF == 0xFFF or not vmcs[rights] & Ar.G,
    )
    _define(
        f"guest.{name}.granularity.must_be_1",
        name,
        (only(limit_field, 0xFFF0_0000), only(rights, Ar.G)),
        "limit of 1 MiB or more is in pages",
        f"G of {register} is 1 if any of bits 31:20 of its limit is 1.",
        lambda vmcs: not vmcs[limit_field] >> 20 or bool(vmcs[rights] & Ar.G),
    )


_define_s_and_p("tr")
_define_reserved("ar_reserved_low", "tr", _RESERVED_LOW, "bits 11:8")
_define_granularity("tr")
_define(
    "guest.tr.unusable",
    "tr",
    (only(F.GUEST_TR_ACCESS_RIGHTS, Ar.UNUSABLE),),
    "is usable",
    "bit 16 (unusable) of the TR access rights is 0.",
    lambda vmcs: not vmcs[F.GUEST_TR_ACCESS_RIGHTS] & Ar.UNUSABLE,
    cause="a guest needs a task register even if it never uses one: a busy TSS of type 11",
)
_define_reserved("ar_reserved_high", "tr", _RESERVED_HIGH, "bits 31:17")

_define(
    "guest.ldtr.type",
    "ldtr",
    (only(F.GUEST_LDTR_ACCESS_RIGHTS, Ar.TYPE),),
    "is an LDT",
    "the LDTR type is 2 (LDT).",
    lambda vmcs: vmcs[F.GUEST_LDTR_ACCESS_RIGHTS] & Ar.TYPE == _LDT,
    cause="an LDTR that is not used must be marked unusable (access rights 10000H)",
)
_define_s_and_p("ldtr")
_define_reserved("ar_reserved_low", "ldtr", _RESERVED_LOW, "bits 11:8")
_define_granularity("ldtr")
_define_reserved("ar_reserved_high", "ldtr", _RESERVED_HIGH, "bits 31:17")


def _define_table(name: str, base: F, limit_field: F) -> None:
    """Define the two checks on GDTR or IDTR."""
    register = name.upper()
    define_canonical(check, f"guest.{name}.base_canonical", DESCRIPTOR_TABLES, base)

    @check(
        f"guest.{name}.limit_high",
        DESCRIPTOR_TABLES,
        only(limit_field, 0xFFFF_0000),
        title=f"{register} limit has 16 bits",
        rule=f"Bits 31:16 of the guest {register} limit are 0.",
    )
    def limit_has_16_bits(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[limit_field] >> 16


_define_table("gdtr", F.GUEST_GDTR_BASE, F.GUEST_GDTR_LIMIT)
_define_table("idtr", F.GUEST_IDTR_BASE, F.GUEST_IDTR_LIMIT)
