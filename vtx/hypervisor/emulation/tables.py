"""Descriptor-table exits: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT and STR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64, bits, is_canonical
from vtx.errors import GuestFault
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.hypervisor.emulation.linear import LinearMemory
from vtx.hypervisor.vmm import on
from vtx.machine.registers import Efer
from vtx.rules.system_segments import Gdt, ldt_segment, tss_segment

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["DescriptorTables"]

_NAMES = ("GDTR", "IDTR")
_SELECTORS = (Field.GUEST_LDTR_SELECTOR, Field.GUEST_TR_SELECTOR)
#: Instruction identity of LLDT.
_LLDT = 2


class DescriptorTables(LinearMemory):
    """Handles accesses to the descriptor-table registers, LDTR and TR."""

    @on(ExitReason.GDTR_IDTR_ACCESS)
    def gdtr_idtr_access(self, cpu: Cpu, exit: Exit) -> None:
        """Load or store GDTR or IDTR: a 16-bit limit and a base in memory.

        The base has 64 bits in 64-bit mode, else 32.
        """
        identity = bits(exit.instruction_information, 29, 28)
        name = _NAMES[identity & 1]
        base, limit = Field[f"GUEST_{name}_BASE"], Field[f"GUEST_{name}_LIMIT"]
        address = self.operand_address(cpu, exit)
        size = 10 if self._in_64bit_mode(cpu) else 6
        if identity < 2:
            content = cpu.vmread(limit) & 0xFFFF | cpu.vmread(base) << 16
            content &= (1 << 8 * size) - 1
            self.write_guest(cpu, address, content.to_bytes(size, "little"))
        else:
            content = int.from_bytes(self.read_guest(cpu, address, size), "little")
            if not is_canonical(content >> 16, cpu.shape.linear_bits):
                self.general_protection(cpu)
                return
            cpu.vmwrite(limit, content & 0xFFFF)
            cpu.vmwrite(base, content >> 16)
        cpu.skip(exit)

    @on(ExitReason.LDTR_TR_ACCESS)
    def ldtr_tr_access(self, cpu: Cpu, exit: Exit) -> None:
        """Store the selector of LDTR or TR, or load the register from the GDT."""
        information = exit.instruction_information
        identity, in_register = bits(information, 29, 28), bool(information >> 10 & 1)
        register = GENERAL_REGISTERS[bits(information, 6, 3)]
        if identity < 2:
            selector = cpu.vmread(_SELECTORS[identity])
            if in_register:
                self.set_gpr(cpu, register, selector)
            else:
                address = self.operand_address(cpu, exit)
                self.write_guest(cpu, address, selector.to_bytes(2, "little"))
            cpu.skip(exit)
            return
        if in_register:
            selector = self.gpr(cpu, register) & 0xFFFF
        else:
            selector = int.from_bytes(
                self.read_guest(cpu, self.operand_address(cpu, exit), 2), "little"
            )
        try:
            self._load_system(cpu, "LDTR" if identity == _LLDT else "TR", selector)
        except GuestFault as fault:
            self.raise_exception(cpu, fault.vector, fault.error_code)
        else:
            cpu.skip(exit)

    def _load_system(self, cpu: Cpu, name: str, selector: int) -> None:
        """Load LDTR, or TR, and mark its TSS busy (raises as the instruction)."""
        table = cpu.vmread(Field.GUEST_GDTR_BASE)

        def read_table(offset: int, size: int) -> bytes:
            return self.read_guest(cpu, table + offset & MASK64, size)

        wide = bool(self.guest_efer(cpu) & Efer.LMA)
        gdt = Gdt(cpu.vmread(Field.GUEST_GDTR_LIMIT), wide, cpu.shape.linear_bits, read_table)
        segment = (ldt_segment if name == "LDTR" else tss_segment)(gdt, selector)
        if name == "TR":
            place = table + (selector & ~7) + 5 & MASK64
            self.write_guest(cpu, place, bytes([segment.access_rights & 0xFF]))
        parts = ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
        for part, value in zip(parts, segment, strict=True):
            cpu.vmwrite(Field[f"GUEST_{name}_{part}"], value)
