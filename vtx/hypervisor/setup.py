"""From the header of a trace to a machine whose processors can enter the guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING

from vtx.errors import NotSupported
from vtx.facts.controls import GROUPS, Entry, Exit1, Pin, Proc1, Proc2, control_info
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.vmm import Guest, Vcpu
from vtx.machine import image, image_legacy
from vtx.machine.image import GUEST_BASE, GuestImage
from vtx.machine.registers import Cr0, Cr4
from vtx.machine.shape import PAGE_SIZES
from vtx.machine.vmcs import Vmcs

if TYPE_CHECKING:
    from vtx.cpu import Cpu, Machine
    from vtx.hypervisor.options import ExitOptions, Header
    from vtx.machine.shape import Shape

__all__ = ["check_support", "make_guest", "make_machine"]

_PAGE_BYTES = 4096
#: Bits of IA32_VMX_EPT_VPID_CAP that allow EPT pages of a size.
_EPT_PAGE_BITS = {"2M": 16, "1G": 17}
#: Which control activates another group of controls.
_ACTIVATED_BY: dict[str, IntEnum] = {
    "proc2": Proc1.ACTIVATE_SECONDARY_CONTROLS,
    "proc3": Proc1.ACTIVATE_TERTIARY_CONTROLS,
    "exit2": Exit1.ACTIVATE_SECONDARY_CONTROLS,
    "vmfunc": Proc2.ENABLE_VM_FUNCTIONS,
}
_MSR_LOW, _MSR_HIGH = 0, 0xC000_0000
_MSR_BITMAP_SPAN = 0x2000
_IN_VMCS = {"rsp": Field.GUEST_RSP, "rflags": Field.GUEST_RFLAGS}


def check_support(header: Header, shape: Shape, name: str) -> None:
    """Refuse a trace that needs what a CPU does not have.

    Raises
    ------
    NotSupported
        With one sentence that names both.
    """
    needs: list[tuple[str, bool]] = []
    if header.ept.enabled:
        needs.append(("EPT", shape.has_ept))
        position = _EPT_PAGE_BITS.get(header.ept.pages)
        if position is not None:
            needs.append((f"{header.ept.pages} pages in EPT", shape.ept_vpid_cap(position)))
    if header.vpid:
        needs.append(("VPID", shape.has_vpid))
    if header.guest.mode == "real":
        if not header.ept.enabled:
            raise NotSupported(f"a guest in real-address mode needs EPT; {name!r} turns it off")
        needs.append(("unrestricted guests", shape.supports(Proc2.UNRESTRICTED_GUEST)))
    for what, present in needs:
        if not present:
            raise NotSupported(f"{shape.name} has no {what}; the trace {name!r} needs it")


def make_machine(header: Header, shape: Shape) -> Machine:
    """Return a machine with the trace's guest in its memory."""
    from vtx.cpu import Machine

    room = -(-header.guest.memory_bytes // image.GIB) * image.GIB
    machine = Machine(shape, processors=header.processors, memory_bytes=GUEST_BASE + room)
    machine.guest = GuestImage(
        machine.memory,
        header.guest.memory_bytes,
        guest_base=0 if header.ept.enabled else GUEST_BASE,
        low_map=not header.guest.demand,
    )
    if header.guest.mode == "long":
        machine.guest.install()
    else:
        image_legacy.install(machine.guest, header.guest.mode)
    return machine


def make_guest(
    header: Header, machine: Machine, name: str, entry_points: Mapping[int, int]
) -> Guest:
    """Let every processor enter VMX operation with a VMCS for the guest.

    Parameters
    ----------
    header : Header
        What the trace asks for.
    machine : Machine
        Of :func:`make_machine`.
    name : str
        Of the trace, for messages.
    entry_points : mapping of int to int
        Where the program of a logical processor begins.

    Returns
    -------
    Guest
        What the VMM has to know.

    Raises
    ------
    NotSupported
        The CPU does not allow a setting of a control that the trace asks for.
    """
    guest = Guest(
        size_bytes=header.guest.memory_bytes,
        base=GUEST_BASE if header.ept.enabled else 0,
        ept_pages=header.ept.pages,
        image=machine.guest,
        preemption_timer=header.preemption_timer,
    )
    for cpu in machine.cpus:
        cpu.vmxon()
        settings = _Settings(header, machine, name)
        vmcs = settings.vmcs(cpu.number, entry_points.get(cpu.number))
        cpu.load(vmcs, set_ept_pointer=Field.EPT_POINTER not in header.vmcs)
        _load_registers(cpu, header)
        guest.vcpus[cpu.number] = Vcpu(cpu)
    if header.ept.enabled and header.ept.map_all:
        page = PAGE_SIZES[header.ept.pages]
        for gpa in range(0, header.guest.memory_bytes, page):
            machine.cpus[0].ept.map(gpa, GUEST_BASE + gpa, header.ept.pages)
    return guest


def _load_registers(cpu: Cpu, header: Header) -> None:
    """Set the registers that VM entry does not load."""
    for name, value in header.guest.registers.items():
        if name not in _IN_VMCS:
            setattr(cpu.regs, name, value)


class _Settings:
    """Turns a header into a VMCS, and makes the bitmaps that it refers to."""

    def __init__(self, header: Header, machine: Machine, name: str) -> None:
        self.header = header
        self.machine = machine
        self.shape = machine.shape
        self.name = name

    def vmcs(self, processor: int, entry_point: int | None) -> Vmcs:
        """Return the VMCS of one logical processor."""
        header, guest = self.header, self.header.guest
        base = 0 if header.ept.enabled else GUEST_BASE
        vmcs = Vmcs.for_64bit_guest(
            self.shape, guest_base=base, user=guest.user, processor=processor
        )
        start = image.guest_fields(
            processor=processor, guest_base=base, user=guest.user, low_map=not guest.demand
        )
        for field in (Field.GUEST_RIP, Field.GUEST_RSP):
            vmcs[field] = start[field]
        if guest.mode != "long":
            self._legacy_mode(vmcs, base, processor)
        if entry_point is not None:
            vmcs[Field.GUEST_RIP] = entry_point
        for name, field in _IN_VMCS.items():
            if name in guest.registers:
                vmcs[field] = guest.registers[name]
        self._translation(vmcs, processor)
        self._exits(vmcs, header.exits)
        self._timer(vmcs)
        for info, on in header.controls:
            self.set(vmcs, info.control, on=on)
        for field, value in header.vmcs.items():
            vmcs[field] = value
        return vmcs

    def _legacy_mode(self, vmcs: Vmcs, base: int, processor: int) -> None:
        """Give the guest the state of a mode outside IA-32e mode."""
        mode, shape = self.header.guest.mode, self.shape
        self.set(vmcs, Entry.IA32E_MODE_GUEST, on=False)
        fixed = shape.msr(Msr.IA32_VMX_CR0_FIXED0)
        if mode == "real":
            self.set(vmcs, Proc2.UNRESTRICTED_GUEST)
            fixed &= ~(Cr0.PE | Cr0.PG)
        user = self.header.guest.user
        fields = image_legacy.guest_fields(mode, processor=processor, guest_base=base, user=user)
        for field, value in fields.items():
            if shape.field_exists(field):
                vmcs[field] = value
        vmcs[Field.GUEST_CR0] |= fixed
        vmcs[Field.GUEST_CR4] |= shape.msr(Msr.IA32_VMX_CR4_FIXED0)
        vmcs[Field.CR0_READ_SHADOW] = vmcs[Field.GUEST_CR0]
        vmcs[Field.CR4_READ_SHADOW] = vmcs[Field.GUEST_CR4] & ~Cr4.VMXE

    def set(self, vmcs: Vmcs, control: IntEnum, *, on: bool = True) -> None:
        """Set or clear a control, and set the one that activates its group."""
        info = control_info(control)
        group = GROUPS[info.group]
        allowed = self.shape.supports(control)
        if not on:
            allowed = not self.shape.allowed0(info.group) & control
        if not allowed:
            raise NotSupported(
                f"{self.shape.name} does not allow the control {info.sdm_name!r} to be {int(on)}; "
                f"the trace {self.name!r} needs it"
            )
        if on and info.group in _ACTIVATED_BY:
            self.set(vmcs, _ACTIVATED_BY[info.group])
        word = vmcs[group.field]
        vmcs[group.field] = word | control if on else word & ~control

    def _translation(self, vmcs: Vmcs, processor: int) -> None:
        if not self.header.ept.enabled and self.shape.has_ept:
            self.set(vmcs, Proc2.ENABLE_EPT, on=False)
        if self.header.vpid == 0 and self.shape.has_vpid:
            self.set(vmcs, Proc2.ENABLE_VPID, on=False)
            vmcs[Field.VPID] = 0
        elif self.shape.has_vpid:
            vmcs[Field.VPID] = (self.header.vpid or 1) + processor & 0xFFFF

    def _exits(self, vmcs: Vmcs, exits: ExitOptions) -> None:
        if exits.msr_read is not None and exits.msr_write is not None:
            self.set(vmcs, Proc1.USE_MSR_BITMAPS)
            vmcs[Field.MSR_BITMAP] = self._msr_bitmap(exits.msr_read, exits.msr_write)
        if exits.io is not None:
            self.set(vmcs, Proc1.USE_IO_BITMAPS)
            vmcs[Field.IO_BITMAP_A] = self._bitmap(port for port in exits.io if port < 0x8000)
            vmcs[Field.IO_BITMAP_B] = self._bitmap(
                port - 0x8000 for port in exits.io if port >= 0x8000
            )
        if exits.exceptions is not None:
            vmcs[Field.EXCEPTION_BITMAP] = sum(1 << vector for vector in exits.exceptions)
        if exits.cr0 is not None:
            vmcs[Field.CR0_GUEST_HOST_MASK] = exits.cr0
        if exits.cr4 is not None:
            vmcs[Field.CR4_GUEST_HOST_MASK] = exits.cr4 | Cr4.VMXE
        for control, on in (
            (Proc1.CR3_LOAD_EXITING, exits.cr3_load),
            (Proc1.CR3_STORE_EXITING, exits.cr3_store),
            (Proc1.CR8_LOAD_EXITING, exits.cr8_load),
            (Proc1.CR8_STORE_EXITING, exits.cr8_store),
        ):
            if on is not None:
                self.set(vmcs, control, on=on)

    def _bitmap(self, positions: Iterable[int]) -> int:
        """Return the address of a new page in which these bits are 1."""
        bits = bytearray(_PAGE_BYTES)
        for position in positions:
            bits[position >> 3] |= 1 << (position & 7)
        address = self.machine.frames.allocate()
        self.machine.memory.write(address, bytes(bits))
        return address

    def _msr_bitmap(self, read: frozenset[int], write: frozenset[int]) -> int:
        """Return the address of MSR bitmaps: reads of low and high MSRs, then writes."""
        quarters = ((read, _MSR_LOW), (read, _MSR_HIGH), (write, _MSR_LOW), (write, _MSR_HIGH))
        return self._bitmap(
            quarter * _MSR_BITMAP_SPAN + index - first
            for quarter, (indices, first) in enumerate(quarters)
            for index in indices
            if first <= index < first + _MSR_BITMAP_SPAN
        )

    def _timer(self, vmcs: Vmcs) -> None:
        if self.header.preemption_timer is not None:
            self.set(vmcs, Pin.ACTIVATE_VMX_PREEMPTION_TIMER)
            vmcs[Field.VMX_PREEMPTION_TIMER_VALUE] = self.header.preemption_timer
