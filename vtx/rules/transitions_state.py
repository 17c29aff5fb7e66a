"""Moving register state between a VMCS and the registers, as the transition table says.

A VMCS remembers in :class:`Synced` which registers its guest-state and host-state fields stand
for. A transition therefore moves what changed since the last one: the table's rows in full only
after a VMWRITE to one of their fields, or after the guest changed one of their registers.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import UNUSABLE, AccessRights, Cr0, Cr4, Efer, Segment, TableRegister
from vtx.rules.transitions_context import CONTEXT_FIELDS
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
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__all__ = ["Synced", "load_guest", "load_host", "save_guest", "synced"]

#: The registers of :data:`~vtx.rules.transitions_table.BANK`, in its order.
BankValues = tuple[Any, ...]
_read_bank = attrgetter(*(row.name for row in BANK))

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


class Synced:
    """What a VMCS and the registers of its processor have in common.

    Attributes
    ----------
    plan : Plan
        What the controls of the last entry mean.
    bank : tuple or None
        Registers of the table's bank that the guest-state fields stand for; None: unknown.
    exact : bool
        Saving `bank` would leave the fields as they are.
    msrs : dict of int to int
        MSRs that VM entry loads, with the values of their fields.
    saved : tuple of int or None
        MSRs that VM exit saves, as they were when they and their fields last agreed.
    host_bank : tuple or None
        Registers that a VM exit loads; None: the host-state fields changed since.
    host_msrs : dict of int to int
        MSRs that a VM exit loads or clears.
    fresh : bool
        The VM entry under way may load other registers or controls than the last one saved.
    """

    __slots__ = ("bank", "exact", "fresh", "host_bank", "host_msrs", "msrs", "plan", "saved")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.fresh = True
        self.bank: BankValues | None = None
        self.exact = False
        self.msrs: dict[int, int] = {}
        self.saved: tuple[int, ...] | None = None
        self.host_bank: BankValues | None = None
        self.host_msrs: dict[int, int] = {}


def _plan(vmcs: Vmcs, shape: Shape) -> Plan:
    return plan_for(shape.fields, vmcs.entry, vmcs.exit1, vmcs.exit2)


def synced(vmcs: Vmcs, shape: Shape) -> Synced:
    """Return what `vmcs` has in common with the registers, after forgetting what software wrote.

    To be called when VM entry begins to use the VMCS: what `vmcs.dirty` holds is accounted for.
    """
    known = vmcs.synced
    if not isinstance(known, Synced):
        known = vmcs.synced = Synced(_plan(vmcs, shape))
        return known
    dirty = vmcs.dirty
    if not dirty.isdisjoint(PLAN_FIELDS):
        known = vmcs.synced = Synced(_plan(vmcs, shape))
        return known
    known.fresh = not (known.plan.loads_efer and dirty.isdisjoint(CONTEXT_FIELDS))
    if not dirty.isdisjoint(GUEST_FIELDS):
        known.bank = None
        known.fresh = True
    if not dirty.isdisjoint(HOST_FIELDS):
        known.host_bank = None
    return known


# ---- Loading guest state (VM entry) ----------------------------------------------------------


def _guest_bank(values: dict[int, int], cr0: int) -> BankValues:
    """Return the bank that the guest-state fields describe; `cr0` is the register's value now."""
    bank: list[Any] = []
    for row in BANK:
        parts = [values[field] for field in row.fields]
        if len(parts) == 1:
            bank.append(parts[0])
        elif len(parts) == 2:
            bank.append(TableRegister(*parts))
        else:
            bank.append(_guest_segment(row.name, Segment(*parts)))
    bank[0] = bank[0] & ~_CR0_KEPT | cr0 & _CR0_KEPT
    return tuple(bank)


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


def _set_bank(regs: Registers, bank: BankValues) -> None:
    (
        regs.cr0,
        regs.cr3,
        regs.cr4,
        regs.es,
        regs.cs,
        regs.ss,
        regs.ds,
        regs.fs,
        regs.gs,
        regs.ldtr,
        regs.tr,
        regs.gdtr,
        regs.idtr,
    ) = bank


def load_guest(processor: Processor, known: Synced) -> None:
    """Load the guest-state area into the registers (SDM, "Loading Guest State").

    RIP, RSP, RFLAGS and the non-register state are not loaded here.
    """
    regs = processor.regs
    vmcs = processor.vmcs
    assert vmcs is not None
    values = vmcs.values
    plan = known.plan
    bank = known.bank
    if bank is None or (bank[0] ^ regs.cr0) & _CR0_KEPT:
        bank = known.bank = _guest_bank(values, regs.cr0)
        known.exact = _is_exact(values, bank)
        known.msrs = {msr: values[field] for msr, field in plan.loads}
        known.saved = None
        known.fresh = True
    _set_bank(regs, bank)
    msrs = regs.msrs
    if not plan.loads_efer:
        _load_efer_mode(regs, plan)
    msrs.update(known.msrs)
    for put, field in plan.other_loads:
        put(regs, values[field])
    if known.saved is None:
        # A register that is saved but not loaded keeps what it has: it must only exist.
        for msr, _, _ in plan.saves:
            msrs.setdefault(msr, 0)


def _load_efer_mode(regs: Registers, plan: Plan) -> None:
    """Set LMA, and LME if the guest uses paging, to "IA-32e mode guest" (no "load IA32_EFER")."""
    efer = regs.msrs.get(_EFER, 0) & ~_LMA
    if regs.cr0 & Cr0.PG:
        efer &= ~_LME
        if plan.ia32e_guest:
            efer |= _LME
    regs.msrs[_EFER] = efer | _LMA if plan.ia32e_guest else efer


def _is_exact(values: dict[int, int], bank: BankValues) -> bool:
    """Tell whether the fields already hold what saving `bank` would write."""
    for row, register in zip(BANK, bank, strict=True):
        parts = register if isinstance(register, tuple) else (register,)
        if any(values[field] != part for field, part in zip(row.fields, parts, strict=True)):
            return False
    return True


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
    bank = _read_bank(regs)
    if bank != known.bank or not known.exact:
        _save_bank(vmcs, known, bank)
    plan = known.plan
    saved = plan.saved(regs.msrs)
    if saved != known.saved:
        for (_, field, width), value in zip(plan.saves, saved, strict=True):
            _put(vmcs, field, value & width)
        known.saved = saved
        known.msrs = {msr: vmcs.values[field] for msr, field in plan.loads}
    for get, field in plan.other_saves:
        _put(vmcs, field, get(regs))


def _save_bank(vmcs: Vmcs, known: Synced, bank: BankValues) -> None:
    old = known.bank if known.exact and known.bank is not None else (None,) * len(bank)
    known.bank, known.exact = bank, True
    for row, register, before in zip(BANK, bank, old, strict=True):
        if register is before or register == before:
            continue
        if not isinstance(register, tuple):
            _put(vmcs, row.fields[0], register)
        elif len(register) == 2:
            for field, part in zip(row.fields, register, strict=True):
                _put(vmcs, field, part)
        else:
            if register[3] & ~_RIGHTS:
                # Reserved access rights are saved as 0, so the next entry loads another value.
                known.bank = None
            for field, part in zip(row.fields[:3], register[:3], strict=True):
                _put(vmcs, field, part)
            _put(vmcs, row.fields[3], register[3] & _RIGHTS)


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
    bank = known.host_bank
    if bank is None or (bank[0] ^ regs.cr0) & _CR0_KEPT:
        bank = known.host_bank = _host_bank(values, plan, regs.cr0)
        host_msrs: dict[int, int] = dict.fromkeys(plan.host_clears, 0)
        host_msrs.update((msr, values[field]) for msr, field in plan.host_loads)
        if plan.host_loads_efer:
            host_msrs[_EFER] = _with_host_mode(host_msrs[_EFER], plan)
        known.host_msrs = host_msrs
    _set_bank(regs, bank)
    regs.msrs.update(known.host_msrs)
    if not plan.host_loads_efer:
        regs.msrs[_EFER] = _with_host_mode(regs.msrs.get(_EFER, 0), plan)
    regs.dr7 = 0x400
    for put, field in plan.other_host_loads:
        put(regs, values[field])
    for put in plan.other_host_clears:
        put(regs, 0)


def _with_host_mode(efer: int, plan: Plan) -> int:
    """Return IA32_EFER with LMA and LME as "host address-space size" says."""
    return efer | _LMA | _LME if plan.host_64bit else efer & ~_LMA & ~_LME


def _host_bank(values: dict[int, int], plan: Plan, cr0: int) -> BankValues:
    """Return the bank that the host-state fields describe; `cr0` is the register's value now."""
    # Bits that VMX operation fixes are as in the field: VM entry has checked that.
    new_cr0 = values[Field.HOST_CR0] & ~_CR0_KEPT & 0xFFFF_FFFF | cr0 & _CR0_KEPT
    cr4 = values[Field.HOST_CR4]
    cr4 = cr4 | Cr4.PAE if plan.host_64bit else cr4 & ~Cr4.PCIDE & ~Cr4.FRED
    code = _HOST_CODE_64 if plan.host_64bit else _HOST_CODE_32
    return (
        new_cr0,
        values[Field.HOST_CR3],
        cr4,
        _host_data(values[Field.HOST_ES_SELECTOR]),
        Segment(values[Field.HOST_CS_SELECTOR], 0, _FLAT_LIMIT, code),
        _host_data(values[Field.HOST_SS_SELECTOR]),
        _host_data(values[Field.HOST_DS_SELECTOR]),
        _host_data(values[Field.HOST_FS_SELECTOR], values[Field.HOST_FS_BASE]),
        _host_data(values[Field.HOST_GS_SELECTOR], values[Field.HOST_GS_BASE]),
        Segment(0, 0, 0, UNUSABLE),
        Segment(
            values[Field.HOST_TR_SELECTOR], values[Field.HOST_TR_BASE], _HOST_TSS_LIMIT, _HOST_TSS
        ),
        TableRegister(values[Field.HOST_GDTR_BASE], _HOST_TABLE_LIMIT),
        TableRegister(values[Field.HOST_IDTR_BASE], _HOST_TABLE_LIMIT),
    )


def _host_data(selector: int, base: int = 0) -> Segment:
    """Return a flat data segment, unusable if its selector is null."""
    rights = _HOST_DATA if selector else _HOST_DATA | UNUSABLE
    return Segment(selector, base, _FLAT_LIMIT, rights)
