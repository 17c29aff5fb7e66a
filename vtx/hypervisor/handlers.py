"""The default VMM.

:class:`Vmm` has one small method for each exit reason that can be handled without knowing more
about the guest. Any of them can be replaced, one by one::

    vmm = vtx.Vmm()

    @vmm.on(vtx.ExitReason.CPUID)
    def cpuid(cpu, exit):
        cpu.regs.rax = 0x16
        cpu.skip(exit)

or by functions marked with :func:`on` and given to :class:`Vmm`, or by methods of a subclass.
Reasons that are left without a handler (SMM, task switches, accesses to the APIC-access page,
sub-page permissions, PASID translation) end the run with a sentence that says what happened.
"""

from __future__ import annotations

from vtx.hypervisor.emulation.identification import Identification
from vtx.hypervisor.emulation.instructions import Instructions
from vtx.hypervisor.emulation.memory import GuestMemory
from vtx.hypervisor.emulation.ports import Ports
from vtx.hypervisor.emulation.startup import Startup
from vtx.hypervisor.emulation.tables import DescriptorTables
from vtx.hypervisor.vmm import PASS, Guest, Handler, Vcpu, VmmLoop, on

__all__ = ["PASS", "Guest", "Handler", "Vcpu", "Vmm", "VmmLoop", "on"]


class Vmm(Identification, Instructions, Ports, DescriptorTables, Startup, GuestMemory):
    """A VMM for one guest, with a handler for every exit that needs no more than the VMCS.

    Parameters
    ----------
    *handlers : callable, module or object
        Handlers of one's own, marked with :func:`on`; they take the place of the default ones. A
        handler that returns :data:`PASS` leaves the exit to the default one.

    Examples
    --------
    >>> import vtx
    >>> class Quiet(vtx.Vmm):
    ...     @vtx.on(vtx.ExitReason.IO_INSTRUCTION)
    ...     def io(self, cpu, exit):
    ...         cpu.skip(exit)
    """

    PASS = PASS
