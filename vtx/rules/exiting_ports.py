"""Ports: I/O bitmaps, unconditional I/O exiting, and the permission to use a port at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import bit
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr0
from vtx.rules import exiting_information as info
from vtx.rules.execution_memory import read_u16
from vtx.rules.exiting_faults import GP
from vtx.rules.physical import read_u8

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction
    from vtx.machine.vmcs import Vmcs

__all__ = ["io", "io_permission", "port_is_selected", "string_io"]

_TSS_TYPES = (9, 11)
_IO_MAP_BASE, _TSS_BYTES = 102, 104


def port_is_selected(processor: Processor, port: int, size: int) -> bool:
    """Tell whether an access to `size` ports from `port` on exits."""
    vmcs = processor.vmcs
    assert vmcs is not None
    proc1 = vmcs.proc1
    if not proc1 & Proc1.USE_IO_BITMAPS:
        return bool(proc1 & Proc1.UNCONDITIONAL_IO_EXITING)
    if port + size > 0x1_0000:
        return True
    return any(_port_bit(processor, vmcs, port + byte) for byte in range(size))


def _port_bit(processor: Processor, vmcs: Vmcs, port: int) -> int:
    """Return the bit of one port: bitmap A for 0000H-7FFFH, B for 8000H-FFFFH."""
    bitmap = vmcs[Field.IO_BITMAP_B if port & 0x8000 else Field.IO_BITMAP_A]
    return bit(read_u8(processor, bitmap + (port & 0x7FFF) // 8), port & 7)


def io_permission(processor: Processor, instruction: Instruction) -> None:
    """#GP(0) if CPL > IOPL (or in virtual-8086 mode) and the TSS does not allow the port."""
    regs = processor.regs
    privileged = not regs.cr0 & Cr0.PE or regs.cpl <= regs.rflags >> 12 & 3
    if privileged and not regs.in_virtual_8086_mode:
        return
    port, size = info.io_port(processor, instruction), instruction.operands["size"]
    if not _tss_allows(processor, port, size):
        raise GuestFault(GP, 0, f"port {port:#x} is not allowed at CPL {regs.cpl}")


def _tss_allows(processor: Processor, port: int, size: int) -> bool:
    """Test the I/O permission bitmap of the TSS (SDM volume 1, "I/O Permission Bit Map")."""
    tr = processor.regs.tr
    if not tr.usable or tr.type not in _TSS_TYPES or tr.limit < _TSS_BYTES - 1:
        return False
    bitmap = read_u16(processor, tr.base + _IO_MAP_BASE, supervisor=True)
    offset = bitmap + port // 8
    # The processor always reads two bytes, so the byte after the last must be in the TSS, too.
    if offset + 1 > tr.limit:
        return False
    permissions = read_u16(processor, tr.base + offset, supervisor=True)
    return not permissions >> (port & 7) & ((1 << size) - 1)


def io(processor: Processor, instruction: Instruction) -> bool:
    """Ask the I/O bitmaps, or unconditional I/O exiting."""
    port = info.io_port(processor, instruction)
    return port_is_selected(processor, port, instruction.operands["size"])


def string_io(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """As IN and OUT, before each iteration that would run."""
    regs = processor.regs
    mask = (1 << 8 * info.address_size(regs, instruction.operands)) - 1
    if instruction.operands.get("rep") and not regs.rcx & mask:
        return None
    if not io(processor, instruction):
        return None
    return ExitInformation(
        ExitReason.IO_INSTRUCTION,
        info.io(processor, instruction),
        instruction.length,
        info.ins_outs(processor, instruction),
        guest_linear_address=info.string_operand_address(regs, instruction),
    )
