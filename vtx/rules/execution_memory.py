"""How instructions and event delivery reach guest memory: by linear address, through the MMU.

What stops an access comes out as an exception of Python: :class:`GuestFault` if the guest sees
it (#PF, #GP, #VE), :class:`ExitTaken` if the VMM does (SDM, "EPT-Induced VM Exits").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bit
from vtx.errors import AddressError, GuestFault, VtxError
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.machine.exit_information import ExitInformation
from vtx.machine.mmu import Access, Walk, WalkStatus
from vtx.machine.registers import Cr0
from vtx.rules import execution_apic_page as apic_page
from vtx.rules.execution_apic_page import page, virtualized

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = [
    "ExitTaken",
    "access",
    "guest_physical",
    "read",
    "read_u16",
    "read_u32",
    "read_u64",
    "stopped",
    "translate",
    "write",
]

_GP, _PF, _VE = 13, 14, 20
_PAGE = 4096
#: Accesses that breakpoints on data look at.
_WATCHED = (Access.LOAD, Access.STORE, Access.MODIFY)
# Members under names that need no look-up in a class.
_LOAD, _IMPLICIT_LOAD = int(Access.LOAD), int(Access.IMPLICIT_LOAD)
_PROC2 = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
_APIC_ACCESSES = int(Proc2.VIRTUALIZE_APIC_ACCESSES)
_VE_CONTROL = int(Proc2.EPT_VIOLATION_VE)
_GLA_VALID = 7
_SPP_MISS = 1 << 11  # of the exit qualification
_SUPPRESS_VE = 63
_VE_BUSY = 0xFFFF_FFFF


class ExitTaken(VtxError):
    """What a rule was doing ended in a VM exit.

    Attributes
    ----------
    information : ExitInformation
        The exit.
    """

    def __init__(self, information: ExitInformation) -> None:
        self.information = information
        super().__init__(information.reason.name)


def translate(processor: Processor, linear: int, access: int, *, delivery: bool = False) -> int:
    """Return the host-physical address that `linear` stands for.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    linear : int
        Linear address.
    access : int
        :class:`vtx.machine.mmu.Access`.
    delivery : bool
        The access delivers an event.

    Raises
    ------
    GuestFault
        #PF, #GP for an address that is not canonical, or #VE.
    ExitTaken
        An EPT violation or misconfiguration, or a full page-modification log.
    AddressError
        The tables lead beyond the machine's memory.
    """
    place = processor.mmu.locate(processor.context, linear, access)
    if isinstance(place, Walk):
        raise stopped(processor, place, delivery=delivery)
    return place


def guest_physical(processor: Processor, address: int, access: int) -> int:
    """Return the host-physical address of a guest-physical one that no paging leads to.

    Raises
    ------
    ExitTaken
        An EPT violation or misconfiguration.
    """
    walk = processor.mmu.translate_guest_physical(processor.context, address, access)
    if walk.ok:
        assert processor.vmcs is not None
        apic = apic_page.guest_physical(processor.vmcs, walk.hpa)
        if apic is not None:
            raise ExitTaken(apic)
        return walk.hpa
    raise stopped(processor, walk)


def stopped(processor: Processor, walk: Walk, *, delivery: bool = False) -> VtxError:
    """Return what becomes of a translation that did not succeed, to be raised."""
    status = walk.status
    if status == WalkStatus.PAGE_FAULT:
        return GuestFault(_PF, walk.error_code, f"at {walk.gva:#x}", walk.gva)
    if status == WalkStatus.NON_CANONICAL:
        return GuestFault(_GP, 0, f"{walk.gva:#x} is not canonical")
    if status == WalkStatus.BEYOND_MEMORY:
        return AddressError(walk.fault_address, processor.memory.size_bytes)
    if status == WalkStatus.EPT_VIOLATION and _becomes_ve(processor, walk, delivery):
        return _virtualization_exception(processor, walk)
    return ExitTaken(_ept_exit(walk))


def _ept_exit(walk: Walk) -> ExitInformation:
    """Return the exit for an EPT or sub-page-permission event, or a full PML log."""
    status = walk.status
    if status is WalkStatus.EPT_VIOLATION:
        qualification = walk.qualification
        return ExitInformation(
            ExitReason.EPT_VIOLATION,
            qualification,
            guest_linear_address=walk.gva if bit(qualification, _GLA_VALID) else 0,
            guest_physical_address=walk.gpa or 0,
            resume_flag=1,
        )
    if status is WalkStatus.EPT_MISCONFIGURATION:
        return ExitInformation(
            ExitReason.EPT_MISCONFIGURATION, guest_physical_address=walk.gpa or 0, resume_flag=1
        )
    if status is WalkStatus.PML_FULL:
        return ExitInformation(ExitReason.PAGE_MODIFICATION_LOG_FULL, resume_flag=1)
    # Sub-page permissions.
    return ExitInformation(
        ExitReason.SPP_RELATED_EVENT,
        _SPP_MISS if status is WalkStatus.SPP_MISS else 0,
        guest_linear_address=walk.gva,
        guest_physical_address=walk.gpa or 0,
        resume_flag=1,
    )


def _becomes_ve(processor: Processor, walk: Walk, delivery: bool) -> bool:
    """Tell whether an EPT violation is convertible (SDM, "Convertible EPT Violations")."""
    vmcs = processor.vmcs
    assert vmcs is not None
    if delivery or not vmcs.values[_PROC2] & _VE_CONTROL:
        return False
    if not vmcs.proc2 & _VE_CONTROL or bit(walk.ept_entry, _SUPPRESS_VE):
        return False
    area = vmcs[Field.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS]
    return bool(processor.regs.cr0 & Cr0.PE) and processor.memory.read_u32(area + 4) == 0


def _virtualization_exception(processor: Processor, walk: Walk) -> GuestFault:
    """Fill the virtualization-exception information area and return the #VE."""
    vmcs = processor.vmcs
    assert vmcs is not None
    memory, area = processor.memory, vmcs[Field.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS]
    memory.write_u32(area, ExitReason.EPT_VIOLATION)
    memory.write_u32(area + 4, _VE_BUSY)
    memory.write_u64(area + 8, walk.qualification)
    memory.write_u64(area + 16, walk.gva)
    memory.write_u64(area + 24, walk.gpa or 0)
    memory.write_u16(area + 32, vmcs[Field.EPTP_INDEX])
    return GuestFault(_VE, None, f"EPT violation at {walk.gpa or 0:#x}")


def _reach(processor: Processor, linear: int, size: int, kind: int, delivery: bool) -> int:
    """Return the host-physical address of an access within one page, the APIC's included."""
    if processor.watched is not None and kind in _WATCHED and not delivery:
        processor.watched.append((linear, size, kind))
    address = processor.mmu.locate(processor.context, linear, kind)
    if isinstance(address, Walk):
        raise stopped(processor, address, delivery=delivery)
    vmcs = processor.vmcs
    assert vmcs is not None
    if not vmcs.values[_PROC2] & _APIC_ACCESSES:
        return address
    apic = page(vmcs)
    if apic is None or address & ~0xFFF != apic:
        return address
    place = virtualized(processor, linear, size, kind, delivery=delivery)
    if isinstance(place, ExitInformation):
        raise ExitTaken(place)
    return place


def _pages(
    processor: Processor, linear: int, size: int, kind: int, delivery: bool
) -> list[tuple[int, int]]:
    """Return the host-physical pieces (address, bytes) of an access, translated before it."""
    if linear & 0xFFF <= _PAGE - size:
        return [(_reach(processor, linear, size, kind, delivery), size)]
    width = MASK64 if processor.regs.in_64bit_mode else MASK32
    linear &= width
    first = min(size, _PAGE - linear % _PAGE)
    pieces = [(_reach(processor, linear, first, kind, delivery), first)]
    if first < size:
        rest = _reach(processor, linear + first & width, size - first, kind, delivery)
        pieces.append((rest, size - first))
    return pieces


def access(processor: Processor, linear: int, size: int, kind: int) -> None:
    """Translate an access of `size` bytes without moving data (a fetch, or content that is idle).

    Raises as :func:`translate`.
    """
    if linear & 0xFFF <= _PAGE - size:
        _reach(processor, linear, size, kind, delivery=False)
    else:
        _pages(processor, linear, size, kind, delivery=False)


def read(
    processor: Processor,
    linear: int,
    size: int,
    *,
    supervisor: bool = False,
    delivery: bool = False,
) -> bytes:
    """Return guest memory at a linear address.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation.
    linear : int
        Linear address of the first byte.
    size : int
        Bytes, at most a page.
    supervisor : bool
        The processor reads a system structure (descriptor table, TSS): a supervisor-mode access
        at any CPL.
    delivery : bool
        The access delivers an event.
    """
    access = _IMPLICIT_LOAD if supervisor else _LOAD
    if linear & 0xFFF <= _PAGE - size:
        return processor.memory.read(_reach(processor, linear, size, access, delivery), size)
    pieces = _pages(processor, linear, size, access, delivery)
    return b"".join(processor.memory.read(address, count) for address, count in pieces)


def write(
    processor: Processor,
    linear: int,
    content: bytes,
    *,
    supervisor: bool = False,
    delivery: bool = False,
    modify: bool = False,
) -> None:
    """Write guest memory at a linear address: all of it, or nothing if a page stops it.

    Parameters are those of :func:`read`; `modify` makes it the write of a read-modify-write.
    """
    access = Access.MODIFY if modify else Access.STORE
    if supervisor:
        access = Access.IMPLICIT_STORE
    size = len(content)
    if linear & 0xFFF <= _PAGE - size:
        processor.memory.write(_reach(processor, linear, size, access, delivery), content)
        return
    done = 0
    for address, count in _pages(processor, linear, size, access, delivery):
        processor.memory.write(address, content[done : done + count])
        done += count


def read_u16(processor: Processor, linear: int, *, supervisor: bool = False) -> int:
    """Return the 16-bit number at a linear address."""
    return int.from_bytes(read(processor, linear, 2, supervisor=supervisor), "little")


def read_u32(processor: Processor, linear: int, *, supervisor: bool = False) -> int:
    """Return the 32-bit number at a linear address."""
    return int.from_bytes(read(processor, linear, 4, supervisor=supervisor), "little")


def read_u64(processor: Processor, linear: int, *, supervisor: bool = False) -> int:
    """Return the 64-bit number at a linear address."""
    return int.from_bytes(read(processor, linear, 8, supervisor=supervisor), "little")
