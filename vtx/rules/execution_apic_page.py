"""Linear accesses to the APIC-access page: virtualized, or a VM exit (44).

SDM, "Virtualizing Memory-Mapped APIC Accesses". The references of recorded streams are translated
in the C core, which stops at one to the APIC-access page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.exit_information import ExitInformation
from vtx.machine.mmu import Access
from vtx.rules.execution_apic import apic_write

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.vmcs import Vmcs

__all__ = ["guest_physical", "page", "reference", "virtualized"]

_TPR, _EOI, _ICR_LOW = 0x080, 0x0B0, 0x300
#: Registers whose accesses are virtualized under "APIC-register virtualization".
_WRITES = frozenset(
    {0x020, 0x080, 0x0B0, 0x0D0, 0x0E0, 0x0F0, 0x280, 0x300, 0x310, 0x380, 0x3E0}
    | set(range(0x320, 0x380, 16))
)
_READS = _WRITES | {0x030} | set(range(0x100, 0x280, 16))
# Asked for at every access, so under names that need no look-up in a class.
_PROC1, _PROC2 = Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Field.SECONDARY_PROCESSOR_BASED_CONTROLS
_SECONDARY = int(Proc1.ACTIVATE_SECONDARY_CONTROLS)
_APIC_ACCESSES = int(Proc2.VIRTUALIZE_APIC_ACCESSES)
_READ, _WRITE, _FETCH, _DELIVERY = 0, 1, 2, 3
#: A guest-physical access for an instruction fetch or during the execution of an instruction.
_BY_INSTRUCTION = 15


def _is_virtualized(vmcs: Vmcs, offset: int, size: int, is_write: bool) -> bool:
    """Tell whether an access of this offset and size is virtualized under the controls."""
    if not vmcs.proc1 & Proc1.USE_TPR_SHADOW or size > 4 or offset & 0xC or (offset & 3) + size > 4:
        return False
    register = offset & ~3
    proc2 = vmcs.proc2
    if register == _TPR:
        return True
    if proc2 & Proc2.APIC_REGISTER_VIRTUALIZATION:
        return register in (_WRITES if is_write else _READS)
    if proc2 & Proc2.VIRTUAL_INTERRUPT_DELIVERY and register in (_EOI, _ICR_LOW):
        return True
    return bool(is_write and register == _ICR_LOW and vmcs.proc3 & Proc3.IPI_VIRTUALIZATION)


def virtualized(
    processor: Processor, linear: int, size: int, kind: int, *, delivery: bool
) -> int | ExitInformation:
    """Return where in the virtual-APIC page an access to the APIC-access page goes, or its exit.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    linear : int
        Linear address, which translates to the APIC-access page.
    size : int
        Bytes.
    kind : int
        :class:`vtx.machine.mmu.Access`.
    delivery : bool
        The access delivers an event.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    offset = linear & 0xFFF
    is_write = kind & 3 in (Access.STORE, Access.MODIFY)
    if not delivery and kind != Access.FETCH and _is_virtualized(vmcs, offset, size, is_write):
        if is_write:
            processor.apic_write = offset
        return vmcs[Field.VIRTUAL_APIC_ADDRESS] + offset
    access = _WRITE if is_write else _READ
    if kind == Access.FETCH:
        access = _FETCH
    if delivery:
        access = _DELIVERY
    return ExitInformation(
        ExitReason.APIC_ACCESS,
        offset | access << 12,
        resume_flag=1,
    )


def reference(processor: Processor, linear: int, size: int, kind: int) -> ExitInformation | None:
    """Do a reference of a recorded stream to the APIC-access page, whose content is not known.

    A write that is virtualized leaves what the virtual-APIC page holds, and APIC-write emulation
    acts on that.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    linear, size : int
        Where, and how many bytes; what lies beyond the page is not looked at.
    kind : int
        :class:`vtx.machine.mmu.Access`.

    Returns
    -------
    ExitInformation or None
        An APIC-access exit, or what APIC-write emulation leads to.
    """
    place = virtualized(processor, linear, size, kind, delivery=False)
    if isinstance(place, ExitInformation):
        return place
    offset, processor.apic_write = processor.apic_write, None
    return None if offset is None else apic_write(processor, offset)


def guest_physical(vmcs: Vmcs, address: int) -> ExitInformation | None:
    """Return the exit of a guest-physical access of an instruction to the APIC-access page, if any.

    SDM, "Guest-Physical Accesses to the APIC-Access Page": these are never virtualized, and the
    offset in the qualification is undefined.

    Parameters
    ----------
    vmcs : Vmcs
        The current one.
    address : int
        Host-physical address.
    """
    if address & ~0xFFF != page(vmcs):
        return None
    return ExitInformation(ExitReason.APIC_ACCESS, _BY_INSTRUCTION << 12, resume_flag=1)


def page(vmcs: Vmcs) -> int | None:
    """Return the address of the APIC-access page, None if accesses are not virtualized."""
    values = vmcs.values
    # The rarest condition comes first.
    if values[_PROC2] & _APIC_ACCESSES and values[_PROC1] & _SECONDARY:
        return values[Field.APIC_ACCESS_ADDRESS] & ~0xFFF
    return None
