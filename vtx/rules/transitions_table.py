"""What VM entry loads, VM exit saves and VM exit loads: one table, and what follows from it.

Sources: SDM, "Loading Guest State", "Saving Guest State", "Loading Host State". The rows are the
only place that says which control governs which register; :func:`plan_for` turns them into what
one setting of the controls means, once for each setting.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from vtx.facts.controls import Entry, Exit1, Exit2
from vtx.facts.fields import Field, mask
from vtx.facts.msrs import Msr
from vtx.machine.registers import SEGMENT_NAMES, Cr0, Registers, SystemRegisters

__all__ = [
    "ALWAYS",
    "BANK",
    "CONDITIONAL",
    "CR0_KEPT",
    "GUEST_FIELDS",
    "HOST_DR7",
    "HOST_FIELDS",
    "PLAN_FIELDS",
    "SUPPORTED",
    "Conditional",
    "Plan",
    "Register",
    "plan_for",
]


class When(Enum):
    """When a row applies, where no control decides."""

    ALWAYS = "always"
    SUPPORTED = "whenever the CPU has the field"


ALWAYS, SUPPORTED = When.ALWAYS, When.SUPPORTED


class Register(NamedTuple):
    """A register (or its hidden parts) that every entry loads and every exit saves.

    Attributes
    ----------
    name : str
        Attribute of :class:`~vtx.machine.registers.Registers`.
    fields : tuple of Field
        Guest-state fields: one, or those of a segment or table register in the order of its parts.
    """

    name: str
    fields: tuple[Field, ...]


def _segment(name: str) -> Register:
    parts = ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
    return Register(name, tuple(Field[f"GUEST_{name.upper()}_{part}"] for part in parts))


def _table(name: str) -> Register:
    parts = ("BASE", "LIMIT")
    return Register(name, tuple(Field[f"GUEST_{name.upper()}_{part}"] for part in parts))


#: Loaded and saved by every transition, whatever the controls say. RIP, RSP and RFLAGS are so,
#: too, but change with every exit: :mod:`vtx.rules.transitions` moves them one by one.
BANK: tuple[Register, ...] = (
    Register("cr0", (Field.GUEST_CR0,)),
    Register("cr3", (Field.GUEST_CR3,)),
    Register("cr4", (Field.GUEST_CR4,)),
    *map(_segment, SEGMENT_NAMES),
    _table("gdtr"),
    _table("idtr"),
)


class Conditional(NamedTuple):
    """A register whose loading or saving depends on controls; mostly an MSR.

    Attributes
    ----------
    register : Msr or str
        The MSR, or an attribute of the registers.
    guest, host : Field, Field or None
        Its fields.
    load, save, host_load : control, When or None
        What makes VM entry load it, VM exit save it, VM exit load it. None: never.
    host_clear : control, When or None
        What makes VM exit clear it.
    """

    register: Msr | str
    guest: Field
    load: IntEnum | When | None
    save: IntEnum | When | None
    host: Field | None = None
    host_load: IntEnum | When | None = None
    host_clear: IntEnum | When | None = None


def _fred(name: str) -> Conditional:
    return Conditional(
        Msr[f"IA32_FRED_{name}"],
        Field[f"GUEST_IA32_FRED_{name}"],
        load=Entry.LOAD_FRED,
        save=Exit2.SAVE_FRED,
        host=Field[f"HOST_IA32_FRED_{name}"],
        host_load=Exit2.LOAD_FRED,
    )


CONDITIONAL: tuple[Conditional, ...] = (
    Conditional("dr7", Field.GUEST_DR7, Entry.LOAD_DEBUG_CONTROLS, Exit1.SAVE_DEBUG_CONTROLS),
    Conditional(
        Msr.IA32_DEBUGCTL,
        Field.GUEST_IA32_DEBUGCTL,
        load=Entry.LOAD_DEBUG_CONTROLS,
        save=Exit1.SAVE_DEBUG_CONTROLS,
        host_clear=ALWAYS,
    ),
    Conditional(
        Msr.IA32_SYSENTER_CS,
        Field.GUEST_IA32_SYSENTER_CS,
        load=ALWAYS,
        save=ALWAYS,
        host=Field.HOST_IA32_SYSENTER_CS,
        host_load=ALWAYS,
    ),
    Conditional(
        Msr.IA32_SYSENTER_ESP,
        Field.GUEST_IA32_SYSENTER_ESP,
        load=ALWAYS,
        save=ALWAYS,
        host=Field.HOST_IA32_SYSENTER_ESP,
        host_load=ALWAYS,
    ),
    Conditional(
        Msr.IA32_SYSENTER_EIP,
        Field.GUEST_IA32_SYSENTER_EIP,
        load=ALWAYS,
        save=ALWAYS,
        host=Field.HOST_IA32_SYSENTER_EIP,
        host_load=ALWAYS,
    ),
    # Without "load IA32_EFER" LMA and LME still follow "IA-32e mode guest" and "host
    # address-space size": see guest_efer and host_efer below.
    Conditional(
        Msr.IA32_EFER,
        Field.GUEST_IA32_EFER,
        load=Entry.LOAD_IA32_EFER,
        save=Exit1.SAVE_IA32_EFER,
        host=Field.HOST_IA32_EFER,
        host_load=Exit1.LOAD_IA32_EFER,
    ),
    Conditional(
        Msr.IA32_PAT,
        Field.GUEST_IA32_PAT,
        load=Entry.LOAD_IA32_PAT,
        save=Exit1.SAVE_IA32_PAT,
        host=Field.HOST_IA32_PAT,
        host_load=Exit1.LOAD_IA32_PAT,
    ),
    Conditional(
        Msr.IA32_PERF_GLOBAL_CTRL,
        Field.GUEST_IA32_PERF_GLOBAL_CTRL,
        load=Entry.LOAD_IA32_PERF_GLOBAL_CTRL,
        save=Exit1.SAVE_IA32_PERF_GLOBAL_CTRL,
        host=Field.HOST_IA32_PERF_GLOBAL_CTRL,
        host_load=Exit1.LOAD_IA32_PERF_GLOBAL_CTRL,
    ),
    Conditional(
        Msr.IA32_BNDCFGS,
        Field.GUEST_IA32_BNDCFGS,
        load=Entry.LOAD_IA32_BNDCFGS,
        save=SUPPORTED,
        host_clear=Exit1.CLEAR_IA32_BNDCFGS,
    ),
    Conditional(
        Msr.IA32_RTIT_CTL,
        Field.GUEST_IA32_RTIT_CTL,
        load=Entry.LOAD_IA32_RTIT_CTL,
        save=SUPPORTED,
        host_clear=Exit1.CLEAR_IA32_RTIT_CTL,
    ),
    Conditional(
        Msr.IA32_LBR_CTL,
        Field.GUEST_IA32_LBR_CTL,
        load=Entry.LOAD_GUEST_IA32_LBR_CTL,
        save=SUPPORTED,
        host_clear=Exit1.CLEAR_IA32_LBR_CTL,
    ),
    Conditional(
        Msr.IA32_S_CET,
        Field.GUEST_IA32_S_CET,
        load=Entry.LOAD_CET_STATE,
        save=SUPPORTED,
        host=Field.HOST_IA32_S_CET,
        host_load=Exit1.LOAD_CET_STATE,
    ),
    Conditional(
        Msr.IA32_INTERRUPT_SSP_TABLE_ADDR,
        Field.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR,
        load=Entry.LOAD_CET_STATE,
        save=SUPPORTED,
        host=Field.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR,
        host_load=Exit1.LOAD_CET_STATE,
    ),
    Conditional(
        "ssp",
        Field.GUEST_SSP,
        load=Entry.LOAD_CET_STATE,
        save=SUPPORTED,
        host=Field.HOST_SSP,
        host_load=Exit1.LOAD_CET_STATE,
    ),
    Conditional(
        Msr.IA32_PKRS,
        Field.GUEST_IA32_PKRS,
        load=Entry.LOAD_PKRS,
        save=SUPPORTED,
        host=Field.HOST_IA32_PKRS,
        host_load=Exit1.LOAD_PKRS,
    ),
    # UINV is bits 39:32 of IA32_UINTR_MISC.
    Conditional(
        "uinv",
        Field.GUEST_UINV,
        load=Entry.LOAD_UINV,
        save=SUPPORTED,
        host_clear=Exit1.CLEAR_UINV,
    ),
    Conditional(
        Msr.IA32_SPEC_CTRL,
        Field.GUEST_IA32_SPEC_CTRL,
        load=Entry.LOAD_IA32_SPEC_CTRL,
        save=SUPPORTED,
        host=Field.HOST_IA32_SPEC_CTRL,
        host_load=Exit2.LOAD_IA32_SPEC_CTRL,
    ),
    *map(_fred, ("CONFIG", "RSP1", "RSP2", "RSP3", "STKLVLS", "SSP1", "SSP2", "SSP3")),
)

#: CR0: ET, reserved bits 15:6, 17 and 28:19, NW and CD are the processor's own: VM entry does not
#: load them, and VM exit does not either (nor 63:32, which are always 0).
CR0_KEPT = Cr0.ET | Cr0.NW | Cr0.CD | 0x1FFA_FFC0
#: What a VM exit puts into DR7.
HOST_DR7 = 0x400

#: The controls that decide a plan.
PLAN_FIELDS = frozenset(
    {
        Field.VM_ENTRY_CONTROLS,
        Field.VM_EXIT_CONTROLS,
        Field.SECONDARY_VM_EXIT_CONTROLS,
    }
)
#: The guest-state fields of all rows.
GUEST_FIELDS = frozenset(f for row in BANK for f in row.fields) | frozenset(
    row.guest for row in CONDITIONAL
)
#: The host-state fields.
HOST_FIELDS = frozenset(f for f in Field if f.name.startswith("HOST_"))


def _get_uinv(regs: Registers) -> int:
    return regs.msrs.get(Msr.IA32_UINTR_MISC, 0) >> 32 & 0xFF


def _set_uinv(regs: Registers, value: int) -> None:
    rest = regs.msrs.get(Msr.IA32_UINTR_MISC, 0) & ~(0xFF << 32)
    regs.msrs[Msr.IA32_UINTR_MISC] = rest | (value & 0xFF) << 32


_ACCESS: dict[str, tuple[Callable[[Registers], int], Callable[[Registers, int], None]]] = {
    "uinv": (_get_uinv, _set_uinv),
}

Getter = Callable[[Registers], int]
Setter = Callable[[Registers, int], None]


class Plan(NamedTuple):
    """What one setting of the controls loads and saves beyond :data:`BANK`.

    Attributes
    ----------
    loads : tuple of (Msr, Field)
        MSRs that VM entry loads.
    saves : tuple of (Msr, Field, int)
        MSRs that VM exit saves, with the mask of the field's width.
    saved : callable
        ``saved(msrs)`` returns the values of those MSRs as a tuple.
    host_loads : tuple of (Msr, Field)
        MSRs that VM exit loads.
    host_clears : tuple of Msr
        MSRs that VM exit clears.
    system_loads, system_saves, system_host_loads : dict of str to Field
        The same for :class:`~vtx.machine.registers.SystemRegisters` (DR7 and SSP).
    other_loads, other_saves, other_host_clears
        The same for what is neither, with how to reach it.
    loads_efer, host_loads_efer : bool
        Whether entry and exit load all of IA32_EFER.
    ia32e_guest, host_64bit : bool
        "IA-32e mode guest", "host address-space size".
    repeats : bool
        What entry and exit load does not depend on what was there before: as long as nothing
        changes, one transition is like the one before.
    """

    loads: tuple[tuple[Msr, Field], ...]
    saves: tuple[tuple[Msr, Field, int], ...]
    saved: Callable[[dict[int, int]], tuple[int, ...]]
    host_loads: tuple[tuple[Msr, Field], ...]
    host_clears: tuple[Msr, ...]
    system_loads: dict[str, Field]
    system_saves: dict[str, Field]
    system_host_loads: dict[str, Field]
    other_loads: tuple[tuple[Setter, Field], ...]
    other_saves: tuple[tuple[Getter, Field], ...]
    other_host_clears: tuple[Setter, ...]
    loads_efer: bool
    host_loads_efer: bool
    ia32e_guest: bool
    host_64bit: bool
    repeats: bool


Pair = tuple[Msr | str, Field]


def _msrs(pairs: list[Pair]) -> tuple[tuple[Msr, Field], ...]:
    return tuple((register, field) for register, field in pairs if isinstance(register, Msr))


def _system(pairs: list[Pair]) -> dict[str, Field]:
    names = SystemRegisters._fields
    return {str(register): field for register, field in pairs if register in names}


def _others(pairs: list[Pair]) -> list[tuple[str, Field]]:
    return [(register, field) for register, field in pairs if register in _ACCESS]


@lru_cache(maxsize=1024)
def plan_for(fields: frozenset[Field], entry: int, exit1: int, exit2: int) -> Plan:
    """Return what these controls mean on a CPU that has these fields.

    Parameters
    ----------
    fields : frozenset of Field
        :attr:`vtx.machine.shape.Shape.fields`.
    entry, exit1, exit2 : int
        VM-entry controls, primary VM-exit controls, and secondary ones as they act.
    """
    words: dict[type, int] = {Entry: entry, Exit1: exit1, Exit2: exit2}

    def applies(when: IntEnum | When | None, row: Conditional) -> bool:
        if when is None or when is ALWAYS:
            return when is ALWAYS
        if isinstance(when, When):
            return row.guest in fields
        return bool(words[type(when)] & when)

    loads: list[Pair] = [(r.register, r.guest) for r in CONDITIONAL if applies(r.load, r)]
    saves: list[Pair] = [(r.register, r.guest) for r in CONDITIONAL if applies(r.save, r)]
    host_loads: list[Pair] = [
        (r.register, r.host) for r in CONDITIONAL if applies(r.host_load, r) and r.host
    ]
    host_clears: list[Pair] = [
        (r.register, r.guest) for r in CONDITIONAL if applies(r.host_clear, r)
    ]
    loads_efer = bool(entry & Entry.LOAD_IA32_EFER)
    host_loads_efer = bool(exit1 & Exit1.LOAD_IA32_EFER)
    return Plan(
        loads=_msrs(loads),
        saves=tuple((msr, field, mask(field)) for msr, field in _msrs(saves)),
        saved=itemgetter(*(msr for msr, _ in _msrs(saves))),
        host_loads=_msrs(host_loads),
        host_clears=tuple(msr for msr, _ in _msrs(host_clears)),
        system_loads=_system(loads),
        system_saves=_system(saves),
        system_host_loads=_system(host_loads),
        other_loads=tuple((_ACCESS[name][1], field) for name, field in _others(loads)),
        other_saves=tuple((_ACCESS[name][0], field) for name, field in _others(saves)),
        other_host_clears=tuple(_ACCESS[name][1] for name, _ in _others(host_clears)),
        loads_efer=loads_efer,
        host_loads_efer=host_loads_efer,
        ia32e_guest=bool(entry & Entry.IA32E_MODE_GUEST),
        host_64bit=bool(exit1 & Exit1.HOST_ADDRESS_SPACE_SIZE),
        repeats=loads_efer and host_loads_efer and not _others(loads + host_clears),
    )
