"""The guest's memory by linear address: what a VMM that emulates an instruction has to walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bits
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS, SEGMENT_REGISTERS
from vtx.hypervisor.emulation.registers import RegisterAccesses
from vtx.machine import guest_memory
from vtx.machine.guest_memory import guest_physical as translate
from vtx.machine.registers import Efer

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["LinearMemory", "NotMapped"]

_PF = 14
_PAGE = 4096
_WRITE_ACCESS = 1 << 1
_ALIASED_SEGMENTS = ("fs", "gs")
_ADDRESS_MASKS = (0xFFFF, MASK32, MASK64)


class NotMapped(Exception):
    """The guest has not mapped a linear address: it gets #PF.

    Attributes
    ----------
    linear : int
        The address.
    error_code : int
        Of the #PF.
    """

    def __init__(self, linear: int, *, write: bool) -> None:
        self.linear = linear
        self.error_code = _WRITE_ACCESS if write else 0
        super().__init__(f"{linear:#x}")


class LinearMemory(RegisterAccesses):
    """Reads and writes the guest's memory at linear addresses, by walking its tables in software.

    Rights are not looked at: these are accesses of instructions that the guest's own processor has
    checked, or would have checked, before the exit.
    """

    def handle(self, cpu: Cpu, exit: Exit) -> None:
        """Handle an exit; where emulation meets a page that is not mapped, the guest gets #PF."""
        try:
            super().handle(cpu, exit)
        except NotMapped as missing:
            cpu.regs.cr2 = missing.linear
            self.raise_exception(cpu, _PF, missing.error_code)

    def guest_physical(self, cpu: Cpu, linear: int, *, write: bool = False) -> int:
        """Return the guest-physical address of a linear address.

        Raises
        ------
        NotMapped
            The guest's tables do not map it.
        """

        def entry(address: int, size: int) -> int:
            return int.from_bytes(cpu.memory.read(self._slot(address), size), "little")

        try:
            return translate(cpu.guest, entry, linear)
        except guest_memory.NotMapped:
            raise NotMapped(linear, write=write) from None

    def _slot(self, guest_physical: int) -> int:
        """Return the host-physical address of guest memory."""
        image = self.guest.image
        return (
            guest_physical + self.guest.base
            if image is None
            else image.host_physical(guest_physical)
        )

    def read_guest(self, cpu: Cpu, linear: int, size: int) -> bytes:
        """Return `size` bytes of the guest's memory (raises as :meth:`guest_physical`)."""
        pieces = self._pieces(cpu, linear, size, write=False)
        return b"".join(cpu.memory.read(address, count) for address, count in pieces)

    def write_guest(self, cpu: Cpu, linear: int, content: bytes) -> None:
        """Write into the guest's memory (raises as :meth:`guest_physical`)."""
        done = 0
        for address, count in self._pieces(cpu, linear, len(content), write=True):
            cpu.memory.write(address, content[done : done + count])
            done += count

    def _pieces(self, cpu: Cpu, linear: int, size: int, *, write: bool) -> list[tuple[int, int]]:
        """Return the host-physical pieces of an access, all of them translated."""
        pieces = []
        while size:
            count = min(size, _PAGE - linear % _PAGE)
            pieces.append((self._slot(self.guest_physical(cpu, linear, write=write)), count))
            linear, size = linear + count & MASK64, size - count
        return pieces

    def operand_address(self, cpu: Cpu, exit: Exit) -> int:
        """Return the linear address of the memory operand that an exit's information describes."""
        information = exit.instruction_information
        address = exit.qualification
        if not information >> 27 & 1:
            address += self.gpr(cpu, GENERAL_REGISTERS[bits(information, 26, 23)])
        if not information >> 22 & 1:
            index = self.gpr(cpu, GENERAL_REGISTERS[bits(information, 21, 18)])
            address += index << bits(information, 1, 0)
        address &= _ADDRESS_MASKS[min(bits(information, 9, 7), 2)]
        segment = SEGMENT_REGISTERS[min(bits(information, 17, 15), 5)]
        if segment in _ALIASED_SEGMENTS or not self._in_64bit_mode(cpu):
            address += cpu.vmread(Field[f"GUEST_{segment.upper()}_BASE"])
        return address & MASK64

    def _in_64bit_mode(self, cpu: Cpu) -> bool:
        long_mode = self.guest_efer(cpu) & Efer.LMA
        return bool(long_mode and cpu.vmread(Field.GUEST_CS_ACCESS_RIGHTS) >> 13 & 1)
