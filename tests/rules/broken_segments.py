"""Counter-examples of the checks on guest segment registers."""

from __future__ import annotations

from .entry_support import NOT_CANONICAL, Broken

CODE_AND_DATA = ("cs", "ss", "ds", "es", "fs", "gs")
DATA = ("ds", "es", "fs", "gs")
URG = {"proc2.unrestricted_guest": 1}
#: Access rights that the guest has, and what is broken about them.
CODE, STACK = 0xA09B, 0xC093
RIGHTS = {"cs": CODE, **dict.fromkeys(("ss", *DATA), STACK), "tr": 0x8B, "ldtr": 0x82}
TYPE, S, PRESENT, GRANULAR, UNUSABLE = 0xF, 1 << 4, 1 << 7, 1 << 15, 1 << 16
DPL_3 = 3 << 5


def rights(name: str, value: int) -> dict[str, int]:
    """Return the change that gives a segment these access rights."""
    return {f"guest_{name}_access_rights": value}


def _mode(name: str) -> str:
    return "ldt" if name == "ldtr" else "ia32e"


def _bits(
    suffix: str, clear: int = 0, set: int = 0, names: tuple[str, ...] = CODE_AND_DATA
) -> list[Broken]:
    """Return a counter-example for each register: some bits of its access rights are wrong."""
    return [
        Broken(
            f"guest.{name}.{suffix}", rights(name, RIGHTS[name] & ~clear | set), mode=_mode(name)
        )
        for name in names
    ]


def _granularity(name: str) -> list[Broken]:
    value, mode = RIGHTS[name], _mode(name)
    limit = f"guest_{name}_limit"
    return [
        Broken(
            f"guest.{name}.granularity.must_be_0",
            {**rights(name, value | GRANULAR), limit: 0x000F_F7FF},
            mode=mode,
        ),
        Broken(
            f"guest.{name}.granularity.must_be_1",
            {**rights(name, value & ~GRANULAR), limit: 0x0010_0FFF},
            mode=mode,
        ),
    ]


SELECTORS = (
    Broken("guest.tr.selector_ti", {"guest_tr_selector": 0x1C}),
    Broken("guest.ldtr.selector_ti", {"guest_ldtr_selector": 0x1C}, mode="ldt"),
    Broken("guest.ss.selector_rpl_eq_cs", {"guest_cs_selector": 0xB}),
)

V8086 = tuple(
    case
    for name in CODE_AND_DATA
    for case in (
        Broken(f"guest.{name}.base.v8086", {f"guest_{name}_base": 0x1001}, mode="v8086"),
        Broken(f"guest.{name}.limit.v8086", {f"guest_{name}_limit": 0xFFFFF}, mode="v8086"),
        Broken(f"guest.{name}.ar.v8086", rights(name, 0x1_00F3), mode="v8086"),
    )
)

BASES = (
    *(
        Broken(f"guest.{name}.base_canonical", {f"guest_{name}_base": NOT_CANONICAL})
        for name in ("tr", "fs", "gs")
    ),
    Broken("guest.ldtr.base_canonical", {"guest_ldtr_base": NOT_CANONICAL}, mode="ldt"),
    *(
        Broken(f"guest.{name}.base_high", {f"guest_{name}_base": 1 << 32})
        for name in ("cs", "ss", "ds", "es")
    ),
)

TYPES = (
    Broken("guest.cs.type.restricted", rights("cs", CODE & ~TYPE | 8)),
    Broken("guest.cs.type.unrestricted", rights("cs", CODE & ~TYPE | 2), URG),
    Broken("guest.ss.type", rights("ss", STACK & ~TYPE | 1)),
    *(
        case
        for name in DATA
        for case in (
            Broken(f"guest.{name}.type.accessed", rights(name, STACK & ~TYPE | 2)),
            Broken(f"guest.{name}.type.readable_code", rights(name, STACK & ~TYPE | 9)),
        )
    ),
    *_bits("s", clear=S),
)

FRED_RING_1 = {
    "guest_ss_selector": 0x11,
    "guest_cs_selector": 0x9,
    **rights("ss", STACK | 1 << 5),
    **rights("cs", CODE | 1 << 5),
}
DPL = (
    Broken("guest.cs.dpl.type3", rights("cs", CODE & ~TYPE | 3 | DPL_3), URG),
    Broken("guest.cs.dpl.nonconforming", rights("cs", CODE | DPL_3)),
    Broken("guest.cs.dpl.conforming", rights("cs", CODE & ~TYPE | 15 | DPL_3)),
    Broken("guest.ss.dpl.eq_rpl", {**rights("ss", STACK | DPL_3), **rights("cs", CODE | DPL_3)}),
    Broken(
        "guest.ss.dpl.cs_type3",
        rights("ss", STACK | DPL_3),
        {**URG, **rights("cs", CODE & ~TYPE | 3)},
    ),
    Broken(
        "guest.ss.dpl.real_mode",
        {**rights("ss", STACK | DPL_3), **rights("cs", 0xC09B | DPL_3)},
        mode="real",
    ),
    Broken("guest.ss.dpl.fred", FRED_RING_1, mode="fred"),
    Broken("guest.cs.l.fred_ring0", {**rights("cs", 0xC09B), "guest_rip": 0x1000}, mode="fred"),
    Broken("guest.rflags.iopl.fred_ring3", {"guest_rflags": 0x3002}, mode="fred user"),
    Broken(
        "guest.interruptibility.sti.fred_ring3",
        {"guest_interruptibility_state": 1},
        {"guest_rflags": 0x202},
        "fred user",
    ),
    *(Broken(f"guest.{name}.dpl", {f"guest_{name}_selector": 0x13}) for name in DATA),
)

OTHER_RIGHTS = (
    *_bits("present", clear=PRESENT),
    *_bits("ar_reserved_low", set=1 << 8),
    *_bits("ar_reserved_high", set=1 << 17),
    Broken("guest.cs.db_l", rights("cs", CODE | 1 << 14)),
    *(case for name in CODE_AND_DATA for case in _granularity(name)),
)

SYSTEM = (
    Broken("guest.tr.type.legacy", rights("tr", 0x89), mode="legacy"),
    Broken("guest.tr.type.ia32e", rights("tr", 0x83)),
    *_bits("s", set=S, names=("tr", "ldtr")),
    *_bits("present", clear=PRESENT, names=("tr", "ldtr")),
    *_bits("ar_reserved_low", set=1 << 11, names=("tr", "ldtr")),
    *_bits("ar_reserved_high", set=1 << 31, names=("tr", "ldtr")),
    *_granularity("tr"),
    *_granularity("ldtr"),
    *_bits("unusable", set=UNUSABLE, names=("tr",)),
    Broken("guest.ldtr.type", rights("ldtr", 0x81), mode="ldt"),
)

CASES = (*SELECTORS, *V8086, *BASES, *TYPES, *DPL, *OTHER_RIGHTS, *SYSTEM)
