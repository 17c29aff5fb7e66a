"""The door: a machine's logical processors, one method per VMX instruction.

The rules decide; here their outcomes become what Python expects: a value, an exception, or an
:class:`~vtx.machine.exit.Exit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from vtx import nonroot
from vtx.errors import NotSupported, UnhandledExit, UsageError, misspelt
from vtx.facts.controls import Proc2
from vtx.facts.exits import EXITS
from vtx.facts.fields import FIELDS, Area, Field
from vtx.facts.vectors import find_exception
from vtx.machine import image, snapshot
from vtx.machine.control_set import ControlSet
from vtx.machine.events import EventLog
from vtx.machine.exit import Exit
from vtx.machine.exit_information import ExitInformation
from vtx.machine.exiting_sets import ExitingSets
from vtx.machine.guest_ept import GuestEpt
from vtx.machine.guest_view import GuestView
from vtx.machine.memory import Memory
from vtx.machine.mmu import Mmu
from vtx.machine.paging import FrameAllocator
from vtx.machine.processor import Processor
from vtx.machine.program import Cursor, Program
from vtx.machine.registers import (
    GPR_NAMES,
    Interruptibility,
    Registers,
    Rflags,
    SystemRegisters,
    TableRegister,
)
from vtx.machine.shape import Shape
from vtx.machine.snapshot import Snapshot
from vtx.machine.vmcs import Vmcs
from vtx.nonroot.progress import Progress
from vtx.nonroot.quick import QuickPath, learn
from vtx.rules import (
    vmx_entry,
    vmx_fields,
    vmx_functions,
    vmx_invalidation,
    vmx_operation,
    vmx_regions,
)
from vtx.rules.delivery import WITH_ERROR_CODE
from vtx.rules.injected import DELIVER_ERROR_CODE, VALID, EventType
from vtx.rules.transitions import vm_exit
from vtx.rules.vmx_operands import MemoryOperand, Operand, RegisterOperand

if TYPE_CHECKING:
    from vtx.hypervisor.trace import Trace

__all__ = ["Cpu", "GuestEpt", "Machine", "MemoryOperand", "RegisterOperand"]

#: The CPU that is modelled where none is asked for.
DEFAULT_PROFILE = "skylake_sp"
_STI_OR_MOV_SS = Interruptibility.STI | Interruptibility.MOV_SS
_TF = int(Rflags.TF)
#: IA32_DEBUGCTL.BTF: single-step on branches, which no emulated instruction is.
_BTF = 1 << 1
_SINGLE_STEP = 1 << 14
_EXCEPTIONS, _LAST_VECTOR = 32, 255
_NMI_VECTOR, _BREAKPOINT, _OVERFLOW = 2, 3, 4
_LAST_EVENT_TYPE = 7
#: Registers that a VMM may look for at the processor itself.
_REGISTERS = {
    name: f"cpu.regs.{name}" for name in (*GPR_NAMES, "rip", "rflags", *SystemRegisters._fields)
}


class Machine:
    """Logical processors of one kind over one physical memory.

    Parameters
    ----------
    profile : str or Shape
        CPU profile by name or file, or a shape.
    processors : int
        Logical processors.
    memory_bytes : int
        Physical memory; untouched memory costs nothing.

    Attributes
    ----------
    shape : Shape
    memory : Memory
    events : EventLog
        What all processors did.
    frames : FrameAllocator
        Free frames of the VMM: VMX regions, EPT tables, bitmaps.
    cpus : list of Cpu
    guest : GuestImage or None
        The guest's tables in memory, once a VMCS that needs them was loaded.

    Raises
    ------
    UnknownName, InputError
        There is no such profile, or it is malformed.
    """

    def __init__(
        self,
        profile: str | Shape = DEFAULT_PROFILE,
        processors: int = 1,
        memory_bytes: int = 64 << 30,
    ) -> None:
        self._prepare(profile, memory_bytes)
        self.cpus = [Cpu(machine=self, number=number) for number in range(processors)]

    def _prepare(self, profile: str | Shape, memory_bytes: int) -> None:
        self.shape = Shape.of(profile) if isinstance(profile, str) else profile
        self.memory = Memory(memory_bytes)
        self.events = EventLog()
        self.frames = FrameAllocator(image.HOST_TOP, min(image.GUEST_BASE, memory_bytes))
        self.guest: image.GuestImage | None = None
        self.ept: GuestEpt | None = None
        image.write_host(self.memory)

    @classmethod
    def _around(cls, cpu: Cpu, profile: str | Shape) -> Machine:
        """Return the machine of a single processor that is being made."""
        machine = cls.__new__(cls)
        machine._prepare(profile, 64 << 30)
        machine.cpus = [cpu]
        return machine

    def guest_image(self, *, ept: bool) -> image.GuestImage:
        """Return the guest's tables, written into memory when first asked for.

        Parameters
        ----------
        ept : bool
            The guest's memory is under EPT: its guest-physical addresses begin at 0.
        """
        if self.guest is None:
            guest_base = 0 if ept else image.GUEST_BASE
            room = min(self.memory.size_bytes - image.GUEST_BASE, image.GIB)
            self.guest = image.GuestImage(self.memory, room, guest_base=guest_base)
            self.guest.install()
        return self.guest

    def snapshot(self) -> Snapshot:
        """Return the machine's state: processors, VMCSs, memory, counts.

        Raises
        ------
        UsageError
            A processor is in VMX non-root operation.
        """
        return snapshot.take(self)

    def restore(self, state: Snapshot) -> None:
        """Make the machine what it was at a snapshot; cached translations are forgotten.

        Raises
        ------
        UsageError
            The snapshot is of a machine with another number of processors.
        """
        snapshot.restore(self, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.memory.close()


class Cpu(Processor):
    """A logical processor with the VMX instructions as methods.

    Parameters
    ----------
    profile : str or Shape
        What CPU it is, if it is alone; see :class:`Machine` for several over one memory.
    machine : Machine, optional
        The machine it belongs to.
    number : int
        Which of the machine's processors it is.
    mmu : Mmu, optional
        Take this one, over the machine's memory, instead of a new one.

    Examples
    --------
    >>> from vtx import Cpu, Field, Vmcs
    >>> with Cpu(profile="skylake_sp") as cpu:
    ...     cpu.vmxon()
    ...     region = cpu.load(Vmcs.for_64bit_guest())
    ...     hex(cpu.vmread(Field.GUEST_RFLAGS))
    '0x202'

    Notes
    -----
    A VMX instruction that fails raises :class:`~vtx.errors.VMfailInvalid` or
    :class:`~vtx.errors.VMfailValid`, one that faults :class:`~vtx.errors.GuestFault`; RFLAGS and
    the VM-instruction error field are as the manual says. Operands are plain numbers; a
    :class:`MemoryOperand` is read through the processor's own page tables. While the guest runs
    (after a guest's program ended without a VM exit), the instructions cause VM exits and return
    them, with the information that the same line of a listing gives: an operand in memory of which
    only the value is given counts as ``[0]``, one in a register is put into RAX, a field encoding
    and a type into RCX.
    """

    def __init__(
        self,
        profile: str | Shape = DEFAULT_PROFILE,
        *,
        machine: Machine | None = None,
        number: int = 0,
        mmu: Mmu | None = None,
    ) -> None:
        self.machine = machine if machine is not None else Machine._around(self, profile)
        machine = self.machine
        super().__init__(machine.shape, machine.memory, number, machine.events, mmu)
        self._progress = Progress()
        self._vmread: Any = vmx_fields.field_reader(self)
        self._vmwrite = vmx_fields.field_writer(self)
        self.regs = Registers.for_64bit_host(self.shape)
        self.regs.cr3 = image.HOST_PAGE_TABLES
        self.regs.gdtr = TableRegister(image.HOST_GDT, 0xFFFF)
        self.regs.idtr = TableRegister(image.HOST_IDT, 0xFFFF)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.machine.__exit__(kind, error, traceback)

    @property
    def peers(self) -> Sequence[Processor]:
        """The machine's logical processors."""
        return self.machine.cpus

    @property
    def ept(self) -> GuestEpt:
        """The EPT paging structures of the machine's guest, empty at first."""
        if not self.shape.has_ept:
            raise NotSupported(f"{self.shape.name} has no EPT")
        if self.machine.ept is None:
            self.machine.ept = GuestEpt(self.memory, self.machine.frames)
        return self.machine.ept

    @property
    def guest(self) -> GuestView:
        """The guest of the current VMCS: its registers as attributes, its memory as slices.

        Raises
        ------
        UsageError
            There is no current VMCS.
        """
        vmcs = self._current_vmcs()
        ept = bool(vmcs.proc2 & Proc2.ENABLE_EPT)
        return GuestView(
            self,
            self._vmread,
            self.vmwrite,
            self.machine.ept if ept else None,
            image.GUEST_BASE if ept else 0,
        )

    @property
    def exiting(self) -> ExitingSets:
        """What causes VM exits in the guest of the current VMCS, as sets.

        Raises
        ------
        UsageError
            There is no current VMCS.
        """
        self._current_vmcs()
        return ExitingSets(self, self.machine.frames, self._vmread, self.vmwrite)

    @property
    def controls(self) -> ControlSet:
        """The controls of the current VMCS that are 1, as a set of names.

        Raises
        ------
        UsageError
            There is no current VMCS.
        """
        self._current_vmcs()
        return ControlSet(self.shape, self._vmread, self.vmwrite)

    @controls.setter
    def controls(self, controls: object) -> None:
        if not isinstance(controls, ControlSet):  # what `cpu.controls |= {...}` ends with
            raise UsageError(
                "a CPU wants some controls to be 1: change one with cpu.controls.add and "
                "cpu.controls.discard, several with |= and -="
            )

    def _current_vmcs(self) -> Vmcs:
        if self.vmcs is None:
            raise UsageError("no VMCS is current: execute VMPTRLD, or cpu.load(vmcs)")
        return self.vmcs

    # ---- VMX operation --------------------------------------------------------------------

    def new_region(self) -> int:
        """Return the physical address of a new 4-KByte region with the revision identifier."""
        address = self.machine.frames.allocate()
        self.memory.write_u32(address, self.shape.revision_id)
        return address

    def vmxon(self, operand: Operand | None = None) -> Exit | None:
        """VMXON: enter VMX operation; without operand, with a region that is made for it."""
        if operand is None:
            operand = self.new_region()
        return self._done(vmx_operation.vmxon(self, operand))

    def vmxoff(self) -> Exit | None:
        """VMXOFF: leave VMX operation."""
        return self._done(vmx_operation.vmxoff(self))

    def vmcall(self) -> Exit | None:
        """VMCALL: in VMX root operation, a call of the SMM monitor."""
        return self._done(vmx_operation.vmcall(self))

    # ---- VMCS regions ---------------------------------------------------------------------

    def vmclear(self, operand: Operand) -> Exit | None:
        """VMCLEAR: write the VMCS at this physical address to memory, launch state clear."""
        return self._done(vmx_regions.vmclear(self, operand))

    def vmptrld(self, operand: Operand) -> Exit | None:
        """VMPTRLD: make the VMCS at this physical address current."""
        return self._done(vmx_regions.vmptrld(self, operand))

    def vmptrst(self, destination: MemoryOperand | RegisterOperand | None = None) -> int:
        """VMPTRST: return (and store) the current-VMCS pointer.

        Raises
        ------
        UnhandledExit
            The guest is running, so the instruction caused a VM exit.
        """
        return self._value(vmx_regions.vmptrst(self, destination))

    # ---- VMCS fields ----------------------------------------------------------------------

    def vmread(
        self, encoding: int, destination: MemoryOperand | RegisterOperand | None = None
    ) -> int:
        """VMREAD: return (and store) a field of the current VMCS.

        Raises
        ------
        UnhandledExit
            The guest is running, and the instruction caused a VM exit.
        """
        return self._value(vmx_fields.vmread(self, encoding, destination))

    def vmwrite(self, encoding: int, source: Operand) -> Exit | None:
        """VMWRITE: write a field of the current VMCS."""
        info = self._vmwrite(encoding, source)
        return None if info is None else self._run(info)

    # ---- VM entry -------------------------------------------------------------------------

    def vmlaunch(self, program: Program | Trace | None = None) -> Exit:
        """VMLAUNCH: enter the guest, run it, and return its VM exit.

        Parameters
        ----------
        program : Program or Trace, optional
            What the guest executes; by default it goes on where it was.

        Raises
        ------
        EndOfTrace
            The guest's program ended without a VM exit.
        VmxAbort
            The VM exit could not be completed.
        EmulationStopped
            The entry has failed again and again, and nothing has changed in between.
        """
        if program is not None:
            self.set_program(program)
        exit = self._run(vmx_entry.vmlaunch(self))
        self._progress.see(self, exit.information, self.machine.ept)
        return exit

    def vmresume(self) -> Exit:
        """VMRESUME: enter the guest again (as :meth:`vmlaunch`).

        Raises
        ------
        EndOfTrace
            The guest's program ended without a VM exit.
        EmulationStopped
            The same exit has come again and again, and nothing has changed in between.
        """
        quick = self.vmcs.quick if self.vmcs is not None else None
        if type(quick) is QuickPath and quick.processor is self:
            info = quick.round_trip()
            if info is not None:
                return Exit(self, info, self._vmread)
        exit = self._run(vmx_entry.vmresume(self))
        if self.observer is None:
            learn(self, exit.information)
        self._progress.see(self, exit.information, self.machine.ept)
        return exit

    def proceed(self, program: Program | Trace | None = None) -> Exit:
        """Let the guest go on where its program had ended without a VM exit.

        Parameters
        ----------
        program : Program or Trace, optional
            What it executes from here on: RIP moves to its first instruction.

        Raises
        ------
        UsageError
            The processor is not in VMX non-root operation.
        EndOfTrace
            As :meth:`vmlaunch`.
        """
        if not self.non_root:
            raise UsageError("no guest is running; enter it with vmlaunch or vmresume")
        if program is not None:
            self.set_program(program)
            entry_point = self.cursors[0].program.entry_point
            if entry_point is not None:
                self.regs.rip = entry_point
        return self._run(None, entered=False)

    def set_program(self, program: Program | Trace) -> None:
        """Let the guest execute `program` from its beginning.

        Raises
        ------
        InputError
            The trace says more than what the guest executes: `vtx.replay` does that.
        UsageError
            It is neither a program nor a trace.
        """
        if isinstance(program, str | Path):
            raise UsageError(f"load the trace first: vtx.load_trace({str(program)!r})")
        operations = getattr(program, "program", program)
        if not isinstance(operations, Program):
            raise UsageError(
                f"a guest executes a Program or a trace (vtx.load_trace), not {program!r}"
            )
        self.cursors = [Cursor(operations)]

    # ---- Invalidation, VM functions ---------------------------------------------------------

    def invept(self, kind: int | RegisterOperand, descriptor: Operand = 0) -> Exit | None:
        """INVEPT of type `kind`; the descriptor is the EPT pointer."""
        return self._done(vmx_invalidation.invept(self, kind, descriptor))

    def invvpid(
        self,
        kind: int | RegisterOperand,
        descriptor: Operand | None = None,
        *,
        vpid: int = 0,
        linear_address: int = 0,
    ) -> Exit | None:
        """INVVPID of type `kind`; the descriptor is ``linear_address << 64 | vpid``.

        Parameters
        ----------
        kind : int or RegisterOperand
            0 individual address, 1 single context, 2 all contexts, 3 single context but globals.
        descriptor : int, MemoryOperand or RegisterOperand, optional
            The descriptor as a whole; or its parts:
        vpid : int
            Bits 63:0 of the descriptor, of which 63:16 are reserved.
        linear_address : int
            Bits 127:64.

        Raises
        ------
        UsageError
            The descriptor is given twice, or a part has more than 64 bits.
        """
        if descriptor is None:
            descriptor = _part("vpid", vpid) | _part("linear_address", linear_address) << 64
        elif vpid or linear_address:
            raise UsageError("INVVPID takes a descriptor, or vpid= and linear_address=, not both")
        return self._done(vmx_invalidation.invvpid(self, kind, descriptor))

    def vmfunc(self) -> Exit | None:
        """VMFUNC: function in EAX, argument in ECX."""
        return self._done(vmx_functions.vmfunc(self))

    # ---- What a VMM does with them ------------------------------------------------------------

    def load(self, vmcs: Vmcs, *, set_ept_pointer: bool = True) -> int:
        """Make `vmcs` the current VMCS: VMCLEAR, VMPTRLD, and VMWRITE of every field it sets.

        The guest's tables (:class:`~vtx.machine.image.GuestImage`) are put into memory, and if
        EPT is on and has no pointer yet, it gets the tables of :attr:`ept`.

        Parameters
        ----------
        vmcs : Vmcs
            Its content; it is not changed.
        set_ept_pointer : bool
            Replace an EPT pointer of 0. False takes it as it is, and VM entry judges it.

        Returns
        -------
        int
            Physical address of its region.

        Raises
        ------
        NotSupported
            It sets a field that this CPU does not have.
        """
        if not isinstance(vmcs, Vmcs):
            raise UsageError(
                f"cpu.load takes a vtx.Vmcs, such as Vmcs.for_64bit_guest(), not {vmcs!r}"
            )
        address = self.new_region()
        self.vmclear(address)
        self.vmptrld(address)
        uses_ept = bool(vmcs.proc2 & Proc2.ENABLE_EPT)
        for field, value in vmcs.fields():
            if value and FIELDS[field].area is not Area.READ_ONLY:
                if not self.shape.field_exists(field):
                    raise NotSupported(
                        f"{self.shape.name} has no VMCS field {FIELDS[field].name}; "
                        "Vmcs.for_64bit_guest(cpu.shape) sets only what a CPU has"
                    )
                self.vmwrite(field, value)
        if uses_ept and set_ept_pointer and not vmcs[Field.EPT_POINTER]:
            self.vmwrite(Field.EPT_POINTER, self.ept.eptp)
        self.machine.guest_image(ept=uses_ept)
        return address

    def skip(self, exit: Exit) -> None:
        """Step over the instruction that caused `exit`, as a VMM that has emulated it does.

        RIP moves by the instruction's length, blocking by STI and MOV SS ends, and with RFLAGS.TF
        set a single-step trap waits behind the instruction.

        Raises
        ------
        UsageError
            No instruction caused the exit: it has no length.
        """
        if not isinstance(exit, Exit):
            raise UsageError(
                f"cpu.skip takes the exit that vmlaunch or vmresume gave, not {exit!r}"
            )
        length = exit.instruction_length
        if not length:
            raise UsageError(
                f"there is no instruction to skip: {EXITS[exit.reason].sdm_title!r} is an exit "
                "before the instruction at guest RIP, which has not executed yet; resume the guest "
                "without cpu.skip"
            )
        self.vmwrite(Field.GUEST_RIP, exit.rip + length & 0xFFFF_FFFF_FFFF_FFFF)
        blocking = exit.read(Field.GUEST_INTERRUPTIBILITY_STATE)
        if blocking & _STI_OR_MOV_SS:
            self.vmwrite(Field.GUEST_INTERRUPTIBILITY_STATE, blocking & ~_STI_OR_MOV_SS)
        if exit.read(Field.GUEST_RFLAGS) & _TF and not exit.read(Field.GUEST_IA32_DEBUGCTL) & _BTF:
            pending = exit.read(Field.GUEST_PENDING_DEBUG_EXCEPTIONS)
            self.vmwrite(Field.GUEST_PENDING_DEBUG_EXCEPTIONS, pending | _SINGLE_STEP)

    def inject(
        self,
        vector: int | str,
        *,
        type: int | None = None,
        error_code: int | None = None,
        instruction_length: int = 0,
    ) -> None:
        """Let the next VM entry deliver an event to the guest.

        Parameters
        ----------
        vector : int or str
            0 to 255, or the name of an exception: ``"#GP"``, ``"NMI"``.
        type : EventType, optional
            By default what the vector says: NMI for 2, software exception for 3 and 4, hardware
            exception for the others below 32, external interrupt from 32.
        error_code : int, optional
            What the exception pushes; 0 by default for exceptions that push one.
        instruction_length : int
            Of INT n, INT1, INT3 or INTO, in bytes.

        Raises
        ------
        UsageError
            There is no such vector.
        UnknownName
            There is no such exception.
        """
        if isinstance(vector, str):
            vector = find_exception(vector)
        if not isinstance(vector, int) or not 0 <= vector <= _LAST_VECTOR:
            raise UsageError(f"a vector is 0 to {_LAST_VECTOR}, not {vector!r}")
        if type is None:
            type = _default_type(vector)
        elif not isinstance(type, int) or not 0 <= type <= _LAST_EVENT_TYPE:
            names = ", ".join(f"EventType.{member.name}" for member in EventType)
            raise UsageError(f"the type of an event is one of {names}, not {type!r}")
        information = VALID | type << 8 | vector
        if type == EventType.HARDWARE_EXCEPTION and vector in WITH_ERROR_CODE:
            error_code = error_code or 0
        if error_code is not None:
            information |= DELIVER_ERROR_CODE
            self.vmwrite(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, error_code)
        if instruction_length:
            self.vmwrite(Field.VM_ENTRY_INSTRUCTION_LENGTH, instruction_length)
        self.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFORMATION, information)

    # ---- Outcomes -----------------------------------------------------------------------------

    def _run(self, info: ExitInformation | None, *, entered: bool = True) -> Exit:
        """Run the guest, unless the entry has ended already, and perform its VM exit."""
        if info is None:
            info = nonroot.run(self, entered=entered)
        if self.non_root:
            vm_exit(self, info)
        return Exit(self, info, self._vmread)

    def _done(self, info: ExitInformation | None) -> Exit | None:
        """Perform the VM exit that an instruction caused in VMX non-root operation, if any."""
        if info is not None:
            return self._run(info)
        return None

    def _value(self, outcome: int | ExitInformation) -> int:
        if isinstance(outcome, ExitInformation):
            raise UnhandledExit(self._run(outcome))
        return outcome


def _part(name: str, value: object) -> int:
    """Return what is to go into one half of a descriptor."""
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise UsageError(f"{name} is an int of 64 bits, not {value!r}")
    return value


def _default_type(vector: int) -> EventType:
    if vector == _NMI_VECTOR:
        return EventType.NMI
    if vector in (_BREAKPOINT, _OVERFLOW):
        return EventType.SOFTWARE_EXCEPTION
    return EventType.HARDWARE_EXCEPTION if vector < _EXCEPTIONS else EventType.EXTERNAL_INTERRUPT


def _elsewhere(name: str) -> property:
    """Return a property that says where the register is, whoever reads or sets it here."""

    def refuse(self: Cpu, value: object = None) -> NoReturn:
        raise misspelt("part of a logical processor", name, (), _REGISTERS)

    return property(refuse, refuse)


# A register that is set at the processor by mistake would be an attribute like any other.
for _name in _REGISTERS:
    setattr(Cpu, _name, _elsewhere(_name))
