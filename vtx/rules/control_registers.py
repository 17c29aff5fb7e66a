"""What CR0 and CR4 take: the #GP rules of MOV to a control register.

SDM, "MOV - Move to/from Control Registers". Both who executes the guest's MOV and a VMM that
emulates it ask here; what VMX operation fixes in addition is not part of it.
"""

from __future__ import annotations

from typing import NamedTuple

from vtx.machine.registers import Cr0, Cr4, Efer

__all__ = ["CR0_FIXED_IN_PLACE", "ControlState", "cr0_fault", "cr4_fault"]

#: Bits of CR0 that software cannot change: writes are ignored.
CR0_FIXED_IN_PLACE = 0x1FFA_FFD0 & ~(Cr0.WP | Cr0.AM)


class ControlState(NamedTuple):
    """The state that decides what a control register takes.

    Parameters
    ----------
    cr0, cr3, cr4, efer : int
        Before the instruction.
    cs_l : bool
        CS.L, which means 64-bit mode while EFER.LMA is 1.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int
    cs_l: bool


def cr0_fault(value: int, state: ControlState) -> str | None:
    """Return what is wrong with a value of CR0, None if nothing is."""
    if value >> 32:
        return "bits 63:32 are set"
    if value & Cr0.PG and not value & Cr0.PE:
        return "PG without PE"
    if value & Cr0.NW and not value & Cr0.CD:
        return "NW without CD"
    if state.cr4 & Cr4.CET and not value & Cr0.WP:
        return "WP cleared while CR4.CET is 1"
    return _paging_fault(value, state)


def _paging_fault(value: int, state: ControlState) -> str | None:
    """Return what forbids the paging that a value of CR0 turns on or off."""
    in_64bit_mode = state.efer & Efer.LMA and state.cs_l
    if not value & Cr0.PG and (in_64bit_mode or state.cr4 & Cr4.PCIDE):
        return "PG cleared in 64-bit mode or with CR4.PCIDE 1"
    if value & ~state.cr0 & Cr0.PG and state.efer & Efer.LME:
        if not state.cr4 & Cr4.PAE:
            return "PG set with EFER.LME 1 and CR4.PAE 0"
        if state.cs_l:
            return "PG set with EFER.LME 1 and CS.L 1"
    return None


def cr4_fault(value: int, state: ControlState) -> str | None:
    """Return what is wrong with a value of CR4, None if nothing is."""
    changed, in_ia32e_mode = value ^ state.cr4, state.efer & Efer.LMA
    if in_ia32e_mode and changed & (Cr4.PAE | Cr4.LA57):
        return "PAE or LA57 changed in IA-32e mode"
    if changed & value & Cr4.PCIDE and (not in_ia32e_mode or state.cr3 & 0xFFF):
        return "PCIDE set outside IA-32e mode or with a PCID in CR3"
    if value & Cr4.CET and not state.cr0 & Cr0.WP:
        return "CET without CR0.WP"
    return None
