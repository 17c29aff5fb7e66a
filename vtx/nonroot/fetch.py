"""Where instructions are fetched from: RIP, in the code segment outside 64-bit mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32
from vtx.errors import GuestFault
from vtx.rules.exiting_faults import GP

if TYPE_CHECKING:
    from vtx.machine.registers import Registers

__all__ = ["fetch_address", "is_flat"]


def is_flat(regs: Registers) -> bool:
    """Tell whether linear addresses of code are what RIP says, with nothing to test."""
    code = regs.system.cs
    return not code.base and code.limit == MASK32


def fetch_address(regs: Registers, length: int) -> int:
    """Return the linear address of the next instruction.

    Raises
    ------
    GuestFault
        #GP(0): it is beyond the code segment.
    """
    if regs.in_64bit_mode:
        return regs.rip
    code = regs.system.cs
    if regs.rip + length - 1 > code.limit:
        raise GuestFault(GP, 0, f"RIP {regs.rip:#x} is beyond the code segment")
    return code.base + regs.rip & MASK32
