"""Moving register state between a VMCS and the registers, as the transition table says.

A VMCS remembers in :class:`Synced` which registers its guest-state and host-state fields stand
for. As long as no field of them is written and neither the guest nor the VMM changes a register, a
transition exchanges one value for another (:func:`exchange_for_guest`, :func:`exchange_for_host`);
otherwise it goes through the rows of the table (:func:`load_guest`, :func:`save_guest`,
:func:`load_host`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtx.facts.controls import Proc2
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import (
    UNUSABLE,
    AccessRights,
    Cr0,
    Cr4,
    Efer,
    Segment,
    SystemRegisters,
    TableRegister,
)
from vtx.rules.transitions_context import CONTEXT_FIELDS, SMAP_OR_PKE
from vtx.rules.transitions_table import (
    BANK,
    GUEST_FIELDS,
    HOST_FIELDS,
    PLAN_FIELDS,
    Plan,
    plan_for,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.registers import Registers
    from vtx.machine.vmcs import Vmcs

__all__ = [
    "Synced",
    "exchange_for_guest",
    "exchange_for_host",
    "load_guest",
    "load_host",
    "save_guest",
    "synced",
]

#: Fields that transitions look at only after they were written.
_REMEMBERED = PLAN_FIELDS | GUEST_FIELDS | HOST_FIELDS | CONTEXT_FIELDS

#: CR0: ET, reserved bits 15:6, 17 and 28:19, NW and CD are the processor's own: VM entry does not
#: load them, and VM exit does not either (nor 63:32, which are always 0).
_CR0_KEPT = Cr0.ET | Cr0.NW | Cr0.CD | 0x1FFA_FFC0
#: Access rights: bits 31:17 and 11:8 are reserved and saved as 0.
_RIGHTS = 0x1_F0FF
_LMA, _LME = int(Efer.LMA), int(Efer.LME)
_EFER = int(Msr.IA32_EFER)
#: Segment registers whose base loses bits 63:32 when they are unusable.
_SHORT_BASES = frozenset({"es", "ss", "ds"})

# Hidden parts that a VM exit gives to every host segment (SDM, "Loading Host Segment and
# Descriptor-Table Registers").
_FLAT_LIMIT = 0xFFFF_FFFF
_HOST_CODE_64, _HOST_CODE_32 = 0xA09B, 0xC09B
_HOST_DATA = 0xC093
_HOST_TSS = 0x8B
_HOST_TSS_LIMIT = 0x67
_HOST_TABLE_LIMIT = 0xFFFF
_HOST_DR7 = 0x400


_BANK_FIELDS: dict[str, tuple[Field, ...]] = {row.name: row.fields for row in BANK}
_NOTHING = (None,) * len(SystemRegisters._fields)


_SPECIAL_CONTROLS = Proc2.ENABLE_PML | Proc2.VMCS_SHADOWING


class Synced:
    """What a VMCS and the registers of its processor have in common.

    Attributes
    ----------
    plan : Plan
        What the controls of the last entry mean.
    guest : SystemRegisters or None
        What VM entry loads, as long as the guest-state fields stay as they are; None: unknown.
    exact : bool
        Saving `guest` would leave the fields as they are.
    guest_msrs : dict of int to int
        MSRs that VM entry loads, with the values of their fields.
    saved : tuple of int or None
        MSRs that VM exit saves, as they were when they and their fields last agreed.
    host : SystemRegisters or None
        What VM exit loads, as long as the host-state fields stay as they are; None: unknown.
    host_msrs : dict of int to int
        MSRs that a VM exit loads or clears.
    paired : bool
        The last VM exit left `host` and `host_msrs`, and an entry from there arrives at `guest`.
    to_guest, to_host : dict of int to int
        The MSRs that differ between the two.
    proc2 : int
        Secondary processor-based controls as they act.
    plain : bool
        Besides registers, transitions with this pair have nothing to do: translations are tagged
        with a VPID, and there is no PML, no VMCS shadowing, and no register that changes the
        context unseen.
    fresh : bool
        The VM entry under way may load other registers or controls than the last one saved.
    """

    __slots__ = (
        "exact",
        "fresh",
        "guest",
        "guest_msrs",
        "host",
        "host_msrs",
        "paired",
        "plain",
        "plan",
        "proc2",
        "saved",
        "to_guest",
        "to_host",
    )

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.proc2 = 0
        self.guest: SystemRegisters | None = None
        self.exact = False
        self.guest_msrs: dict[int, int] = {}
        self.saved: tuple[int, ...] | None = None
        self.host: SystemRegisters | None = None
        self.host_msrs: dict[int, int] = {}
        self.paired = False
        self.plain = False
        self.to_guest: dict[int, int] = {}
        self.to_host: dict[int, int] = {}
        self.fresh = True


def synced(processor: Processor) -> Synced:
    """Return what the current VMCS has in common with the registers, without what software wrote.

    To be called when VM entry begins to use the VMCS: what its `dirty` holds is accounted for.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    known = vmcs.synced
    dirty = vmcs.dirty
    if not isinstance(known, Synced) or not dirty.isdisjoint(PLAN_FIELDS):
        plan = plan_for(processor.shape.fields, vmcs.entry, vmcs.exit1, vmcs.exit2)
        known = vmcs.synced = Synced(plan)
        known.proc2 = vmcs.proc2
        return known
    known.proc2 = vmcs.proc2
    known.paired = known.plain = False
    known.fresh = not (known.plan.loads_efer and dirty.isdisjoint(CONTEXT_FIELDS))
    if not dirty.isdisjoint(GUEST_FIELDS):
        known.guest = None
        known.fresh = True
    if not dirty.isdisjoint(HOST_FIELDS):
        known.host = None
    return known


# ---- Transitions like the one before -----------------------------------------------------------


def exchange_for_guest(processor: Processor, vmcs: Vmcs) -> bool:
    """Load guest state if it is known what that comes to; return whether it was.

    That is so if the last VM exit was from this VMCS, and since then neither a field that
    transitions remember was written, nor a register changed.
    """
    known = vmcs.synced
    regs = processor.regs
    if (
        type(known) is not Synced
        or not known.paired
        or regs.system is not known.host
        or regs.msrs.changed
        or processor.context_vmcs is not vmcs
        or not vmcs.dirty.isdisjoint(_REMEMBERED)
    ):
        return False
    assert known.guest is not None
    regs.system = known.guest
    if known.to_guest:
        dict.update(regs.msrs, known.to_guest)
    known.fresh = False
    return True


def exchange_for_host(processor: Processor, known: Synced) -> bool:
    """Save guest state and load host state if the guest changed none; return whether it was so."""
    regs = processor.regs
    if not known.paired or regs.system is not known.guest or regs.msrs.changed:
        return False
    assert known.host is not None
    regs.system = known.host
    if known.to_host:
        dict.update(regs.msrs, known.to_host)
    return True


def _pair(regs: Registers, known: Synced) -> None:
    """Find out, after a VM exit, whether the next transitions can be exchanges."""
    guest, host, plan = known.guest, known.host, known.plan
    msrs = regs.msrs
    known.paired = (
        plan.repeats
        and guest is not None
        and known.exact
        and ("dr7" in plan.system_loads or guest.dr7 == _HOST_DR7)
        and ("ssp" in plan.system_loads or guest.ssp == regs.ssp)
    )
    known.plain = False
    if known.paired:
        assert guest is not None
        known.to_guest = {m: v for m, v in known.guest_msrs.items() if msrs.get(m) != v}
        in_guest = dict(msrs) | known.to_guest
        known.to_host = {m: v for m, v in known.host_msrs.items() if in_guest.get(m) != v}
        special = known.proc2 & _SPECIAL_CONTROLS or guest.cr4 & SMAP_OR_PKE
        known.plain = bool(known.proc2 & Proc2.ENABLE_VPID) and not special
    msrs.changed = False
    assert host is not None
    regs.system = host


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
    known.exact = _is_exact(values, plan, guest)
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
    loaded["cr0"] = loaded["cr0"] & ~_CR0_KEPT | now.cr0 & _CR0_KEPT
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


def _is_exact(values: dict[int, int], plan: Plan, system: SystemRegisters) -> bool:
    """Tell whether the fields already hold what saving `system` would write, and load again so."""
    return all(values[field] == value for field, value in _saved_fields(plan, system).items())


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
    if system is not known.guest or not known.exact:
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
    before = known.guest if known.exact and known.guest is not None else _NOTHING
    loads_same = True
    for name, old in zip(SystemRegisters._fields, before, strict=True):
        register = getattr(system, name)
        if register is not old:
            loads_same &= _save_register(vmcs, known.plan, name, register)
    known.guest = system if loads_same else None
    known.exact = loads_same


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


# ---- Loading host state (VM exit) ------------------------------------------------------------


def load_host(processor: Processor, known: Synced) -> None:
    """Load the host-state area into the registers (SDM, "Loading Host State").

    RIP, RSP, RFLAGS and the non-register state are not loaded here.
    """
    regs = processor.regs
    vmcs = processor.vmcs
    assert vmcs is not None
    values = vmcs.values
    plan = known.plan
    host = known.host
    if host is None or (host.cr0 ^ regs.cr0) & _CR0_KEPT or "ssp" not in plan.system_host_loads:
        host = known.host = _host_system(values, plan, regs.system)
    host_msrs: dict[int, int] = dict.fromkeys(plan.host_clears, 0)
    host_msrs.update((msr, values[field]) for msr, field in plan.host_loads)
    host_msrs[_EFER] = _with_host_mode(host_msrs.get(_EFER, regs.efer), plan)
    known.host_msrs = host_msrs
    regs.msrs.update(host_msrs)
    for put in plan.other_host_clears:
        put(regs, 0)
    regs.system = host
    _pair(regs, known)


def _with_host_mode(efer: int, plan: Plan) -> int:
    """Return IA32_EFER with LMA and LME as "host address-space size" says."""
    return efer | _LMA | _LME if plan.host_64bit else efer & ~_LMA & ~_LME


def _host_system(values: dict[int, int], plan: Plan, now: SystemRegisters) -> SystemRegisters:
    """Return the system registers that VM exit loads, `now` being those of the guest."""
    # Bits that VMX operation fixes are as in the field: VM entry has checked that.
    cr0 = values[Field.HOST_CR0] & ~_CR0_KEPT & 0xFFFF_FFFF | now.cr0 & _CR0_KEPT
    cr4 = values[Field.HOST_CR4]
    cr4 = cr4 | Cr4.PAE if plan.host_64bit else cr4 & ~Cr4.PCIDE & ~Cr4.FRED
    ssp = plan.system_host_loads.get("ssp")
    code = _HOST_CODE_64 if plan.host_64bit else _HOST_CODE_32
    tr = values[Field.HOST_TR_SELECTOR], values[Field.HOST_TR_BASE]
    return SystemRegisters(
        cr0=cr0,
        cr3=values[Field.HOST_CR3],
        cr4=cr4,
        dr7=_HOST_DR7,
        ssp=now.ssp if ssp is None else values[ssp],
        es=_host_data(values[Field.HOST_ES_SELECTOR]),
        cs=Segment(values[Field.HOST_CS_SELECTOR], 0, _FLAT_LIMIT, code),
        ss=_host_data(values[Field.HOST_SS_SELECTOR]),
        ds=_host_data(values[Field.HOST_DS_SELECTOR]),
        fs=_host_data(values[Field.HOST_FS_SELECTOR], values[Field.HOST_FS_BASE]),
        gs=_host_data(values[Field.HOST_GS_SELECTOR], values[Field.HOST_GS_BASE]),
        ldtr=Segment(0, 0, 0, UNUSABLE),
        tr=Segment(*tr, _HOST_TSS_LIMIT, _HOST_TSS),
        gdtr=TableRegister(values[Field.HOST_GDTR_BASE], _HOST_TABLE_LIMIT),
        idtr=TableRegister(values[Field.HOST_IDTR_BASE], _HOST_TABLE_LIMIT),
    )


def _host_data(selector: int, base: int = 0) -> Segment:
    """Return a flat data segment, unusable if its selector is null."""
    rights = _HOST_DATA if selector else _HOST_DATA | UNUSABLE
    return Segment(selector, base, _FLAT_LIMIT, rights)
