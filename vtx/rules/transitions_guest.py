"""Loading the guest-state area into the registers, and saving the registers into it.

SDM, "Loading Guest State" and "Saving Guest State". RIP, RSP, RFLAGS and the non-register state
are moved by :mod:`vtx.rules.transitions` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtx.facts.fields import Field
from vtx.machine.registers import (
    UNUSABLE,
    AccessRights,
    Cr0,
    Efer,
    Segment,
    SystemRegisters,
    TableRegister,
)
from vtx.rules.transitions_table import BANK, CR0_KEPT, Plan

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.registers import Registers
    from vtx.machine.vmcs import Vmcs
    from vtx.rules.transitions_synced import Synced

__all__ = ["load_guest", "save_guest"]

#: Access rights: bits 31:17 and 11:8 are reserved and saved as 0.
_RIGHTS = 0x1_F0FF
_LMA, _LME = int(Efer.LMA), int(Efer.LME)
#: Segment registers whose base loses bits 63:32 when they are unusable.
_SHORT_BASES = frozenset({"es", "ss", "ds"})
_BANK_FIELDS: dict[str, tuple[Field, ...]] = {row.name: row.fields for row in BANK}
_NOTHING = (None,) * len(SystemRegisters._fields)


# ---- Loading guest state (VM entry) ----------------------------------------------------------


def load_guest(processor: Processor, known: Synced) -> None:
    """Load the guest-state area into the registers (SDM, "Loading Guest State").

    RIP, RSP, RFLAGS and the non-register state are not loaded here.
    """
    regs = processor.regs
    vmcs = processor.vmcs
    assert vmcs is not None
    values = vmcs.values
    plan = known.plan
    guest = _guest_system(values, plan, regs.system)
    if guest != known.guest:
        known.guest = guest
        known.fresh = True
    if not _is_exact(values, plan, known.left):
        known.left = guest if _is_exact(values, plan, guest) else None
    known.guest_msrs = {msr: values[field] for msr, field in plan.loads}
    known.saved = None
    regs.system = known.guest
    msrs = regs.msrs
    for msr, _, _ in plan.saves:
        # A register that is saved but not loaded keeps what it has: it must only exist.
        msrs.setdefault(msr, 0)
    if not plan.loads_efer:
        _load_efer_mode(regs, plan)
    msrs.update(known.guest_msrs)
    for put, field in plan.other_loads:
        put(regs, values[field])


def _guest_system(values: dict[int, int], plan: Plan, now: SystemRegisters) -> SystemRegisters:
    """Return the system registers that VM entry loads, `now` being those of the host."""
    loaded: dict[str, Any] = {}
    for row in BANK:
        parts = [values[field] for field in row.fields]
        if len(parts) == 1:
            loaded[row.name] = parts[0]
        elif len(parts) == 2:
            loaded[row.name] = TableRegister(*parts)
        else:
            loaded[row.name] = _guest_segment(row.name, Segment(*parts))
    loaded["cr0"] = loaded["cr0"] & ~CR0_KEPT | now.cr0 & CR0_KEPT
    for name, field in plan.system_loads.items():
        loaded[name] = values[field]
    if "dr7" in loaded:
        loaded["dr7"] = _loaded_dr7(loaded["dr7"])
    return now._replace(**loaded)


def _loaded_dr7(field: int) -> int:
    """Return DR7 as VM entry loads it: bits 12 and 15:14 are 0 and bit 10 is 1, in any case."""
    return field & 0xFFFF_2FFF | 0x400


def _guest_segment(name: str, segment: Segment) -> Segment:
    """Return a segment register as VM entry loads it: what the field says, where that is defined.

    What the manual leaves undefined in an unusable register is loaded all the same, so that it
    survives the next VM exit.
    """
    rights = segment.access_rights & _RIGHTS
    base = segment.base
    if rights & UNUSABLE and name in _SHORT_BASES:
        base &= 0xFFFF_FFFF
        if name == "ss":
            rights |= AccessRights.DB
    return segment._replace(base=base, access_rights=rights)


def _load_efer_mode(regs: Registers, plan: Plan) -> None:
    """Set LMA, and LME if the guest uses paging, to "IA-32e mode guest" (no "load IA32_EFER")."""
    efer = regs.efer & ~_LMA
    if regs.cr0 & Cr0.PG:
        efer &= ~_LME
        if plan.ia32e_guest:
            efer |= _LME
    regs.efer = efer | _LMA if plan.ia32e_guest else efer


def _saved_fields(plan: Plan, system: SystemRegisters) -> dict[Field, int]:
    """Return the fields that VM exit writes for these system registers."""
    fields: dict[Field, int] = {}
    for row in BANK:
        register = getattr(system, row.name)
        if len(row.fields) == 1:
            fields[row.fields[0]] = register
        else:
            fields.update(zip(row.fields, register, strict=True))
            if len(row.fields) == 4:
                fields[row.fields[3]] &= _RIGHTS
    for name, field in plan.system_saves.items():
        fields[field] = getattr(system, name)
    return fields


def _is_exact(values: dict[int, int], plan: Plan, system: SystemRegisters | None) -> bool:
    """Tell whether the fields already hold what saving `system` would write."""
    return system is not None and all(
        values[field] == value for field, value in _saved_fields(plan, system).items()
    )


# ---- Saving guest state (VM exit) ------------------------------------------------------------


def _put(vmcs: Vmcs, field: int, value: int) -> None:
    if vmcs.values[field] != value:
        vmcs.values[field] = value
        vmcs.dirty.add(field)


def save_guest(processor: Processor, known: Synced) -> None:
    """Save the registers into the guest-state area (SDM, "Saving Guest State").

    RIP, RSP, RFLAGS and the non-register state are not saved here.
    """
    regs = processor.regs
    vmcs = processor.vmcs
    assert vmcs is not None
    plan = known.plan
    system = regs.system
    if system != known.left:
        _save_system(vmcs, known, system)
    saved = plan.saved(regs.msrs)
    if saved != known.saved:
        for (_, field, width), value in zip(plan.saves, saved, strict=True):
            _put(vmcs, field, value & width)
        known.saved = saved
        known.guest_msrs = {msr: vmcs.values[field] for msr, field in plan.loads}
    for get, field in plan.other_saves:
        _put(vmcs, field, get(regs))


def _save_system(vmcs: Vmcs, known: Synced, system: SystemRegisters) -> None:
    """Save the system registers that changed, and find out whether an entry loads just them."""
    left = known.left
    loads_same = left is None or left == known.guest
    before = _NOTHING if left is None else left
    for name, old, register in zip(SystemRegisters._fields, before, system, strict=True):
        if register != old:
            loads_same &= _save_register(vmcs, known.plan, name, register)
    known.guest = system if loads_same else None
    known.left = system


def _save_register(vmcs: Vmcs, plan: Plan, name: str, register: Any) -> bool:
    """Save one system register; return whether VM entry would load it again just so."""
    fields = _BANK_FIELDS.get(name)
    if fields is None:
        field = plan.system_saves.get(name)
        if field is None:
            # Loaded but not saved: the next entry loads what the field still holds.
            return name not in plan.system_loads
        _put(vmcs, field, register)
        return bool(register == (_loaded_dr7(register) if name == "dr7" else register))
    if len(fields) == 1:
        _put(vmcs, fields[0], register)
        return True
    for field, part in zip(fields, register, strict=True):
        _put(vmcs, field, part)
    if len(fields) == 4:
        _put(vmcs, fields[3], register.access_rights & _RIGHTS)
        return bool(_guest_segment(name, register) == register)
    return True
