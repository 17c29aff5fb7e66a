"""Loading the host-state area into the registers (SDM, "Loading Host State").

RIP, RSP, RFLAGS and the non-register state are loaded by :mod:`vtx.rules.transitions` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import (
    UNUSABLE,
    Cr4,
    Efer,
    Segment,
    SystemRegisters,
    TableRegister,
)
from vtx.rules.transitions_synced import pair
from vtx.rules.transitions_table import CR0_KEPT, HOST_DR7, Plan

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.rules.transitions_synced import Synced

__all__ = ["load_host"]

_LMA, _LME = int(Efer.LMA), int(Efer.LME)
_EFER = int(Msr.IA32_EFER)

# Hidden parts that a VM exit gives to every host segment (SDM, "Loading Host Segment and
# Descriptor-Table Registers").
_FLAT_LIMIT = 0xFFFF_FFFF
_HOST_CODE_64, _HOST_CODE_32 = 0xA09B, 0xC09B
_HOST_DATA = 0xC093
_HOST_TSS = 0x8B
_HOST_TSS_LIMIT = 0x67
_HOST_TABLE_LIMIT = 0xFFFF


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
    if host is None or (host.cr0 ^ regs.cr0) & CR0_KEPT or "ssp" not in plan.system_host_loads:
        host = known.host = _host_system(values, plan, regs.system)
    host_msrs: dict[int, int] = dict.fromkeys(plan.host_clears, 0)
    host_msrs.update((msr, values[field]) for msr, field in plan.host_loads)
    host_msrs[_EFER] = _with_host_mode(host_msrs.get(_EFER, regs.efer), plan)
    known.host_msrs = host_msrs
    regs.msrs.update(host_msrs)
    for put in plan.other_host_clears:
        put(regs, 0)
    regs.system = host
    pair(regs, known)


def _with_host_mode(efer: int, plan: Plan) -> int:
    """Return IA32_EFER with LMA and LME as "host address-space size" says."""
    return efer | _LMA | _LME if plan.host_64bit else efer & ~_LMA & ~_LME


def _host_system(values: dict[int, int], plan: Plan, now: SystemRegisters) -> SystemRegisters:
    """Return the system registers that VM exit loads, `now` being those of the guest."""
    # Bits that VMX operation fixes are as in the field: VM entry has checked that.
    cr0 = values[Field.HOST_CR0] & ~CR0_KEPT & 0xFFFF_FFFF | now.cr0 & CR0_KEPT
    cr4 = values[Field.HOST_CR4]
    cr4 = cr4 | Cr4.PAE if plan.host_64bit else cr4 & ~Cr4.PCIDE & ~Cr4.FRED
    ssp = plan.system_host_loads.get("ssp")
    code = _HOST_CODE_64 if plan.host_64bit else _HOST_CODE_32
    tr = values[Field.HOST_TR_SELECTOR], values[Field.HOST_TR_BASE]
    return SystemRegisters(
        cr0=cr0,
        cr3=values[Field.HOST_CR3],
        cr4=cr4,
        dr7=HOST_DR7,
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
