"""EPT violations and what else the VMM does about the guest's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import EmulationStopped, InputError
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.emulation.events import Events
from vtx.hypervisor.vmm import on
from vtx.machine.registers import Interruptibility
from vtx.machine.shape import PAGE_SIZES

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["GuestMemory"]

_ANY_RIGHT = 0b111000
_NMI_UNBLOCKING = 1 << 12
_LOG_ENTRIES = 512


class GuestMemory(Events):
    """Handles exits that EPT causes: the guest's memory is one slot of the machine's."""

    @on(ExitReason.EPT_VIOLATION)
    def ept_violation(self, cpu: Cpu, exit: Exit) -> None:
        """Map the page that the guest touched, if it is its memory."""
        gpa, qualification = exit.guest_physical_address, exit.qualification
        if qualification & _NMI_UNBLOCKING:
            self._block_nmis_again(cpu)
        guest = self.guest
        if gpa >= guest.size_bytes:
            raise InputError(
                f"the guest touched guest-physical address {gpa:#x}, beyond its memory of "
                f"{guest.size_bytes:#x} bytes",
                hint="give it more memory, or correct the address",
            )
        if qualification & _ANY_RIGHT:
            raise EmulationStopped(
                f"{exit.explain()}; the page is mapped, but not for this access, and only who took "
                "the right away knows what to do"
            )
        page = gpa & -PAGE_SIZES[guest.ept_pages]
        cpu.ept.map(page, guest.base + page, guest.ept_pages)

    def _block_nmis_again(self, cpu: Cpu) -> None:
        """Undo what an IRET did before it met the exit: it executes again."""
        state = cpu.vmread(Field.GUEST_INTERRUPTIBILITY_STATE)
        cpu.vmwrite(Field.GUEST_INTERRUPTIBILITY_STATE, state | Interruptibility.NMI)

    @on(ExitReason.EPT_MISCONFIGURATION)
    def ept_misconfiguration(self, cpu: Cpu, exit: Exit) -> None:
        """Stop: the VMM does not write entries that mean nothing."""
        raise EmulationStopped(exit.explain())

    @on(ExitReason.PAGE_MODIFICATION_LOG_FULL)
    def page_modification_log_full(self, cpu: Cpu, exit: Exit) -> None:
        """Empty the log, as live migration does when it has copied the pages it names."""
        if exit.qualification & _NMI_UNBLOCKING:
            self._block_nmis_again(cpu)
        cpu.vmwrite(Field.PML_INDEX, _LOG_ENTRIES - 1)
