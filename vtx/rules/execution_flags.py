"""The flags that software loads and saves: PUSHF, POPF, STI, CLI, and what IRET makes of an image.

Who may change IF and IOPL depends on mode, CPL and IOPL; with virtual-8086 mode extensions and
protected-mode virtual interrupts VIF stands in for IF (SDM, operation of each instruction;
"Virtual-8086 Mode Extensions"; "Protected-Mode Virtual Interrupts").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import GuestFault
from vtx.machine.registers import Cr0, Cr4, Interruptibility, Registers, Rflags
from vtx.rules.execution_context import refresh_privilege
from vtx.rules.exiting_faults import GP
from vtx.rules.stack import Stack, operand_size

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS", "check_virtual_interrupt", "load_extended_8086_flags", "load_returned_flags"]

#: Flags of the lower 16 bits that every privilege level may load.
_FLAGS = (
    Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.TF | Rflags.DF
    | Rflags.OF | Rflags.NT
)  # fmt: skip
_UPPER_FLAGS = Rflags.AC | Rflags.ID
_IOPL_SHIFT = 12
_USER = 3


def _iopl(regs: Registers) -> int:
    return regs.rflags >> _IOPL_SHIFT & 3


def _load(regs: Registers, value: int, loaded: int) -> None:
    regs.rflags = regs.rflags & ~loaded | value & loaded | Rflags.RESERVED_1


def load_returned_flags(regs: Registers, value: int, size: int, cpl: int) -> None:
    """Load the flags that an IRET of `size` bytes at privilege level `cpl` may change.

    In virtual-8086 mode `cpl` is 3: IOPL, VIP and VIF stay, and IF changes as IOPL is 3.
    """
    loaded = _FLAGS
    if cpl <= _iopl(regs):
        loaded |= Rflags.IF
    if not cpl:
        loaded |= Rflags.IOPL
    if size > 2:
        loaded |= _UPPER_FLAGS | Rflags.RF
        if not cpl:
            loaded |= Rflags.VIF | Rflags.VIP
    _load(regs, value, loaded)


def load_extended_8086_flags(regs: Registers, value: int) -> None:
    """Load a 16-bit image in virtual-8086 mode with its extensions and IOPL below 3.

    VIF gets the image's IF; IF and IOPL stay.

    Raises
    ------
    GuestFault
        #GP(0): the image sets TF, or IF while a virtual interrupt is pending (VIP).
    """
    if value & Rflags.TF or (value & Rflags.IF and regs.rflags & Rflags.VIP):
        raise GuestFault(GP, 0, "the virtual-8086 monitor has to see this image of FLAGS")
    virtual = Rflags.VIF if value & Rflags.IF else 0
    _load(regs, value & 0xFFFF | virtual, _FLAGS | Rflags.VIF)


def check_virtual_interrupt(regs: Registers) -> None:
    """#GP(0) before an instruction at which a virtual interrupt is enabled (VIF) and pending (VIP).

    That is how the monitor of a virtual-8086 task, or of a task with protected-mode virtual
    interrupts, gets to deliver it.
    """
    has = Cr4.VME if regs.in_virtual_8086_mode else Cr4.PVI
    both = Rflags.VIF | Rflags.VIP
    if regs.rflags & both == both and regs.cr4 & has and regs.cr0 & Cr0.PE and regs.cpl == _USER:
        raise GuestFault(GP, 0, "a virtual interrupt is pending and enabled")


def _needs_extensions(processor: Processor, size: int) -> bool:
    """Tell whether PUSHF or POPF works on VIF; #GP(0) if it may not work at all."""
    regs = processor.regs
    if not regs.in_virtual_8086_mode or _iopl(regs) == 3:
        return False
    if not regs.cr4 & Cr4.VME or size != 2:
        raise GuestFault(GP, 0, "PUSHF or POPF in virtual-8086 mode with IOPL below 3")
    return True


def pushf(processor: Processor, instruction: Instruction) -> None:
    """PUSHF: RF and VM are pushed as 0."""
    regs = processor.regs
    size = operand_size(regs, instruction.operands)
    value = regs.rflags & ~(Rflags.RF | Rflags.VM)
    if _needs_extensions(processor, size):
        value = (value | Rflags.IOPL) & ~Rflags.IF
        value |= Rflags.IF if regs.rflags & Rflags.VIF else 0
    stack = Stack(processor)
    stack.push(value, size)
    regs.rsp = stack.pointer


def popf(processor: Processor, instruction: Instruction) -> None:
    """POPF: VM, VIF and VIP stay, RF becomes 0 with an operand of 32 or 64 bits."""
    regs = processor.regs
    size = operand_size(regs, instruction.operands)
    extended = _needs_extensions(processor, size)
    stack = Stack(processor)
    value = stack.pop(size)
    if extended:
        load_extended_8086_flags(regs, value)
    else:
        loaded = _FLAGS
        if regs.cpl <= _iopl(regs):
            loaded |= Rflags.IF
        if not regs.cpl:
            loaded |= Rflags.IOPL
        if size > 2:
            loaded |= _UPPER_FLAGS | Rflags.RF
        _load(regs, value & ~Rflags.RF, loaded)
    regs.rsp = stack.pointer
    refresh_privilege(processor)


def _virtual_if(processor: Processor, instruction: Instruction) -> bool:
    """Tell whether STI or CLI changes VIF instead of IF; #GP(0) if it may change neither."""
    regs = processor.regs
    if regs.cpl <= _iopl(regs):
        return False
    if regs.cpl == _USER:
        has = Cr4.VME if regs.in_virtual_8086_mode else Cr4.PVI
        if regs.cr4 & has:
            return True
    raise GuestFault(GP, 0, f"{instruction.name} at CPL {regs.cpl} above IOPL")


def sti(processor: Processor, instruction: Instruction) -> None:
    """STI: if IF was 0, interrupts stay blocked until the next instruction is done."""
    regs = processor.regs
    if _virtual_if(processor, instruction):
        if regs.rflags & Rflags.VIP:
            raise GuestFault(GP, 0, "STI while a virtual interrupt is pending")
        regs.rflags |= Rflags.VIF
    elif not regs.rflags & Rflags.IF:
        regs.rflags |= Rflags.IF
        regs.interruptibility_state |= Interruptibility.STI


def cli(processor: Processor, instruction: Instruction) -> None:
    """CLI."""
    virtual = _virtual_if(processor, instruction)
    processor.regs.rflags &= ~(Rflags.VIF if virtual else Rflags.IF)


#: What each instruction does when it does not exit.
EFFECTS = {"pushf": pushf, "popf": popf, "sti": sti, "cli": cli}
