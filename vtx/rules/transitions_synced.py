"""What a VMCS and the registers of its processor have in common from one transition to the next.

A VMCS remembers in :class:`Synced` which registers its guest-state and host-state fields stand
for. As long as no field of them is written and neither the guest nor the VMM changes a register, a
transition exchanges one value for another; otherwise it goes through the rows of the table, in
:mod:`vtx.rules.transitions_guest` and :mod:`vtx.rules.transitions_host`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Proc2
from vtx.machine.registers import SystemRegisters
from vtx.rules.transitions_context import CONTEXT_FIELDS, SMAP_OR_PKE
from vtx.rules.transitions_table import (
    GUEST_FIELDS,
    HOST_DR7,
    HOST_FIELDS,
    PLAN_FIELDS,
    Plan,
    plan_for,
)

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.registers import Registers
    from vtx.machine.vmcs import Vmcs

__all__ = ["Synced", "exchange_for_guest", "exchange_for_host", "pair", "synced"]

#: Fields that transitions look at only after they were written.
_REMEMBERED = PLAN_FIELDS | GUEST_FIELDS | HOST_FIELDS | CONTEXT_FIELDS

#: What comes first in SystemRegisters, on which more depends than what the next entry loads.
_CONTROL_REGISTERS = SystemRegisters._fields.index("es")
_SPECIAL_CONTROLS = Proc2.ENABLE_PML | Proc2.VMCS_SHADOWING


class Synced:
    """What a VMCS and the registers of its processor have in common.

    Attributes
    ----------
    plan : Plan
        What the controls of the last entry mean.
    guest : SystemRegisters or None
        What VM entry loads, as long as the guest-state fields stay as they are; None: unknown.
    left : SystemRegisters or None
        What VM exit can save and leave the guest-state fields as they are; None: unknown. It is
        `guest` unless VM entry loads a register otherwise than it was saved (an unusable SS).
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
        "fresh",
        "guest",
        "guest_msrs",
        "host",
        "host_msrs",
        "left",
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
        self.left: SystemRegisters | None = None
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
    system = regs.system
    if not known.paired or regs.msrs.changed or (system is not known.left and system != known.left):
        return False
    assert known.host is not None
    regs.system = known.host
    if known.to_host:
        dict.update(regs.msrs, known.to_host)
    return True


def pair(regs: Registers, known: Synced) -> None:
    """Find out, after a VM exit, whether the next transitions can be exchanges."""
    guest, left, host, plan = known.guest, known.left, known.host, known.plan
    msrs = regs.msrs
    known.paired = (
        plan.repeats
        and guest is not None
        and left is not None
        and left[:_CONTROL_REGISTERS] == guest[:_CONTROL_REGISTERS]
        and ("dr7" in plan.system_loads or guest.dr7 == HOST_DR7)
        and ("ssp" in plan.system_loads or guest.ssp == regs.ssp)
    )
    known.plain = False
    if known.paired:
        assert guest is not None
        known.to_guest = {m: v for m, v in known.guest_msrs.items() if msrs.get(m) != v}
        in_guest = dict(msrs) | known.to_guest
        # An MSR that is saved but not loaded keeps the host's value, which the next exit saves.
        known.paired = plan.saved(in_guest) == known.saved
        known.to_host = {m: v for m, v in known.host_msrs.items() if in_guest.get(m) != v}
        special = known.proc2 & _SPECIAL_CONTROLS or guest.cr4 & SMAP_OR_PKE
        known.plain = bool(known.proc2 & Proc2.ENABLE_VPID) and not special
    msrs.changed = False
    assert host is not None
    regs.system = host
