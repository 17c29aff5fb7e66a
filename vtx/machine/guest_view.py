"""The guest as its VMM sees it between a VM exit and the next entry: registers and memory by name.

General-purpose registers are the processor's own (VMX does not save them); everything else is a
field of the current VMCS, read by VMREAD and written by VMWRITE, which are counted like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtx.errors import UnknownName, UsageError
from vtx.facts.controls import Entry
from vtx.facts.fields import Field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.machine.guest_memory import GuestLinear, GuestPhysical
from vtx.machine.registers import Efer, Segment

if TYPE_CHECKING:
    from vtx.machine.guest_ept import GuestEpt
    from vtx.machine.processor import Processor

__all__ = ["GuestView", "SegmentView"]

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
_PARTS = ("selector", "base", "limit", "access_rights")
#: Registers of the guest-state area under the names that :class:`~.registers.Registers` has.
_FIELDS: dict[str, Field] = {
    "rip": Field.GUEST_RIP,
    "rsp": Field.GUEST_RSP,
    "rflags": Field.GUEST_RFLAGS,
    "cr0": Field.GUEST_CR0,
    "cr3": Field.GUEST_CR3,
    "cr4": Field.GUEST_CR4,
    "dr7": Field.GUEST_DR7,
    "efer": Field.GUEST_IA32_EFER,
    "activity_state": Field.GUEST_ACTIVITY_STATE,
    "interruptibility_state": Field.GUEST_INTERRUPTIBILITY_STATE,
    "pending_debug_exceptions": Field.GUEST_PENDING_DEBUG_EXCEPTIONS,
}
_LIVE = frozenset(GENERAL_REGISTERS) - {"rsp"} | {"cr2", "dr0", "dr1", "dr2", "dr3", "dr6"}
_LONG_MODE = int(Efer.LMA | Efer.LME)
_NAMES = (*sorted(_LIVE), *_FIELDS, *_SEGMENTS)


class SegmentView:
    """One segment register of the guest: four VMCS fields as attributes.

    Parameters
    ----------
    vmread, vmwrite : callable
        VMREAD and VMWRITE of the processor.
    name : str
        ``"cs"``, ``"tr"`` ...

    Attributes
    ----------
    selector, base, limit, access_rights : int
        In the format of the VMCS (SDM, "Guest Register State"); assignment is a VMWRITE.
    """

    selector: int
    base: int
    limit: int
    access_rights: int

    _name: str
    _vmread: Callable[[int], int]
    _vmwrite: Callable[[int, int], Any]

    __slots__ = ("_name", "_vmread", "_vmwrite")

    def __init__(
        self, vmread: Callable[[int], int], vmwrite: Callable[[int, int], Any], name: str
    ) -> None:
        object.__setattr__(self, "_vmread", vmread)
        object.__setattr__(self, "_vmwrite", vmwrite)
        object.__setattr__(self, "_name", name)

    def _field(self, part: str) -> Field:
        if part not in _PARTS:
            raise AttributeError(f"a segment register has {', '.join(_PARTS)}, not {part!r}")
        return Field[f"GUEST_{self._name}_{part}".upper()]

    def __getattr__(self, part: str) -> int:
        return self._vmread(self._field(part))

    def __setattr__(self, part: str, value: int) -> None:
        self._vmwrite(self._field(part), value)

    def __dir__(self) -> list[str]:
        return [*_PARTS]

    def __repr__(self) -> str:
        values = ", ".join(f"{part}={getattr(self, part):#x}" for part in _PARTS)
        return f"<guest {self._name.upper()} {values}>"


class GuestView:
    """Registers and memory of the guest of the current VMCS.

    Parameters
    ----------
    processor : Processor
        In VMX root operation with a current VMCS.
    vmread, vmwrite : callable
        VMREAD and VMWRITE on that processor.
    ept : GuestEpt or None
        Maps guest-physical to host-physical addresses; None without EPT.
    base : int
        Host-physical address of the guest's memory where EPT does not map it yet.

    Attributes
    ----------
    rax ... r15 : int
        General-purpose registers (RSP comes from the VMCS); CR2 and DR0 to DR3, DR6 likewise.
    rip, rsp, rflags, cr0, cr3, cr4, dr7, efer : int
        Registers of the guest-state area; so are `activity_state`, `interruptibility_state` and
        `pending_debug_exceptions`.
    es, cs, ss, ds, fs, gs, ldtr, tr : SegmentView
        Segment registers. A :class:`~.registers.Segment` can be assigned.
    memory : GuestPhysical
        Bytes by guest-physical address: ``guest.memory[0x1000:0x1010]``.
    linear : GuestLinear
        Bytes by linear address, translated by the guest's page tables.

    Notes
    -----
    A register whose name an exit tells is ``cpu.guest[exit.cr.register]``.

    Examples
    --------
    >>> import vtx
    >>> with vtx.Cpu() as cpu:
    ...     cpu.vmxon()
    ...     region = cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    ...     cpu.guest.rax = 5
    ...     cpu.guest.memory[0x5000:0x5004] = b"abcd"
    ...     hex(cpu.guest.cs.selector), cpu.guest.memory[0x5001]
    ('0x8', 98)
    """

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    dr0: int
    dr1: int
    dr2: int
    dr3: int
    dr6: int
    dr7: int
    efer: int
    activity_state: int
    interruptibility_state: int
    pending_debug_exceptions: int
    es: SegmentView
    cs: SegmentView
    ss: SegmentView
    ds: SegmentView
    fs: SegmentView
    gs: SegmentView
    ldtr: SegmentView
    tr: SegmentView

    __slots__ = ("_processor", "_vmread", "_vmwrite", "linear", "memory")

    _processor: Processor
    _vmread: Callable[[int], int]
    _vmwrite: Callable[[int, int], Any]
    memory: GuestPhysical
    linear: GuestLinear

    def __init__(
        self,
        processor: Processor,
        vmread: Callable[[int], int],
        vmwrite: Callable[[int, int], Any],
        ept: GuestEpt | None,
        base: int,
    ) -> None:
        set_slot = object.__setattr__
        set_slot(self, "_processor", processor)
        set_slot(self, "_vmread", vmread)
        set_slot(self, "_vmwrite", vmwrite)
        set_slot(self, "memory", GuestPhysical(processor.memory, ept, base))
        set_slot(self, "linear", GuestLinear(self))

    def __getattr__(self, name: str) -> Any:
        if name in _LIVE:
            return getattr(self._processor.regs, name)
        if name == "efer":
            return self._efer()
        if name in _FIELDS:
            return self._vmread(_FIELDS[name])
        if name in _SEGMENTS:
            return SegmentView(self._vmread, self._vmwrite, name)
        raise AttributeError(str(UnknownName("register of a guest", name, _NAMES)))

    def _efer(self) -> int:
        """Return IA32_EFER.

        A CPU that does not switch the MSR between guest and host has one for both, but for the
        mode, which VM entry makes what the controls say.
        """
        controls = self._vmread(Field.VM_ENTRY_CONTROLS)
        if controls & Entry.LOAD_IA32_EFER:
            return self._vmread(Field.GUEST_IA32_EFER)
        mode = _LONG_MODE if controls & Entry.IA32E_MODE_GUEST else 0
        return self._processor.regs.efer & ~_LONG_MODE | mode

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _LIVE:
            if not 0 <= value < 1 << 64:
                raise UsageError(f"{name} holds 64 bits; {value:#x} does not fit")
            setattr(self._processor.regs, name, value)
        elif name in _FIELDS:
            self._vmwrite(_FIELDS[name], value)
        elif name in _SEGMENTS and isinstance(value, Segment | SegmentView):
            view = SegmentView(self._vmread, self._vmwrite, name)
            for part in _PARTS:
                setattr(view, part, getattr(value, part))
        else:
            raise AttributeError(str(UnknownName("register of a guest", name, _NAMES)))

    def __getitem__(self, name: str) -> Any:
        """Return the register with this name: ``guest[exit.cr.register]``."""
        self._known(name)
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Set the register with this name."""
        self._known(name)
        setattr(self, name, value)

    @staticmethod
    def _known(name: str) -> None:
        if name not in _NAMES:
            raise UnknownName("register of a guest", name, _NAMES)

    def __dir__(self) -> list[str]:
        return [*_NAMES, "linear", "memory"]

    def __repr__(self) -> str:
        return f"<guest at rip={self.rip:#x} rsp={self.rsp:#x} cr3={self.cr3:#x}>"
