"""Descriptor-table exits: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT and STR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK64, bits
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.hypervisor.emulation.linear import LinearMemory
from vtx.hypervisor.vmm import on
from vtx.machine.registers import UNUSABLE

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["DescriptorTables"]

_NAMES = ("GDTR", "IDTR")
_SELECTORS = (Field.GUEST_LDTR_SELECTOR, Field.GUEST_TR_SELECTOR)
_PRESENT, _SYSTEM_TYPE_LDT, _SYSTEM_TYPE_TSS, _BUSY = 0x80, 0x2, 0x9, 0x2
_GRANULARITY = 1 << 15


class DescriptorTables(LinearMemory):
    """Handles accesses to the descriptor-table registers, LDTR and TR."""

    @on(ExitReason.GDTR_IDTR_ACCESS)
    def gdtr_idtr_access(self, cpu: Cpu, exit: Exit) -> None:
        """Load or store GDTR or IDTR: a 16-bit limit and a 64-bit base in memory."""
        identity = bits(exit.instruction_information, 29, 28)
        name = _NAMES[identity & 1]
        base, limit = Field[f"GUEST_{name}_BASE"], Field[f"GUEST_{name}_LIMIT"]
        address = self.operand_address(cpu, exit)
        if identity < 2:
            content = cpu.vmread(limit) & 0xFFFF | cpu.vmread(base) << 16
            self.write_guest(cpu, address, content.to_bytes(10, "little"))
        else:
            content = int.from_bytes(self.read_guest(cpu, address, 10), "little")
            if not _canonical(content >> 16, cpu.shape.linear_bits):
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
        fault = self._load_ldtr(cpu, selector) if identity == 2 else self._load_tr(cpu, selector)
        if fault is None:
            cpu.skip(exit)
        else:
            self.raise_exception(cpu, fault, selector & ~3)

    def _descriptor(self, cpu: Cpu, selector: int) -> int | None:
        """Return a 16-byte descriptor from the GDT; None if the selector is not in it."""
        limit = cpu.vmread(Field.GUEST_GDTR_LIMIT)
        if selector & 4 or (selector | 7) + 8 > limit:
            return None
        address = cpu.vmread(Field.GUEST_GDTR_BASE) + (selector & ~7) & MASK64
        return int.from_bytes(self.read_guest(cpu, address, 16), "little")

    def _load_ldtr(self, cpu: Cpu, selector: int) -> int | None:
        """Load LDTR; return the vector of the fault if that cannot be done."""
        if not selector & ~3:
            cpu.vmwrite(Field.GUEST_LDTR_SELECTOR, selector)
            cpu.vmwrite(Field.GUEST_LDTR_ACCESS_RIGHTS, UNUSABLE)
            return None
        return self._load_system(cpu, "LDTR", selector, _SYSTEM_TYPE_LDT)

    def _load_tr(self, cpu: Cpu, selector: int) -> int | None:
        """Load TR and mark its TSS busy; return the vector of the fault if that cannot be done."""
        if not selector & ~3:
            return 13
        fault = self._load_system(cpu, "TR", selector, _SYSTEM_TYPE_TSS)
        if fault is None:
            address = cpu.vmread(Field.GUEST_GDTR_BASE) + (selector & ~7) + 5 & MASK64
            rights = self.read_guest(cpu, address, 1)[0]
            self.write_guest(cpu, address, bytes([rights | _BUSY]))
            cpu.vmwrite(
                Field.GUEST_TR_ACCESS_RIGHTS, cpu.vmread(Field.GUEST_TR_ACCESS_RIGHTS) | _BUSY
            )
        return fault

    def _load_system(self, cpu: Cpu, name: str, selector: int, kind: int) -> int | None:
        descriptor = self._descriptor(cpu, selector)
        if descriptor is None or descriptor >> 40 & 0x1F != kind:
            return 13
        rights = descriptor >> 40 & 0xF0FF
        if not rights & _PRESENT:
            return 11
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
        if rights & _GRANULARITY:
            limit = limit << 12 | 0xFFF
        base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF_FFFF_FFFF) << 24
        for part, value in (
            ("SELECTOR", selector),
            ("BASE", base),
            ("LIMIT", limit),
            ("ACCESS_RIGHTS", rights & ~0xF00),
        ):
            cpu.vmwrite(Field[f"GUEST_{name}_{part}"], value)
        return None


def _canonical(address: int, linear_bits: int) -> bool:
    top = address >> (linear_bits - 1)
    return top in (0, (1 << (65 - linear_bits)) - 1)
