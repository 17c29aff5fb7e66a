"""The loop of a VMM: enter the guest, handle the VM exit, enter it again.

Handlers are Python functions marked with :func:`on`; :mod:`vtx.hypervisor.handlers` has one for
every exit reason that a VMM can handle without knowing more about its guest.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vtx.errors import EndOfTrace, InputError, UnhandledExit
from vtx.facts.exits import ExitReason, find_exit_reason
from vtx.machine.image import GIB, GUEST_BASE

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.hypervisor.trace import Trace
    from vtx.machine.exit import Exit
    from vtx.machine.image import GuestImage
    from vtx.machine.program import Program

__all__ = ["PASS", "Guest", "Handler", "Observer", "Vcpu", "VmmLoop", "on"]

#: A handler returns this to leave the exit to the default handler of its reason.
PASS = object()

#: What handles an exit: called with the logical processor and the exit.
Handler = Callable[["Cpu", "Exit"], Any]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "exit_reasons"

#: How many exits lie between two calls of the VMM's `watch`.
_WATCH_EVERY = 256


def on(*reasons: ExitReason | int | str) -> Callable[[F], F]:
    """Mark a function or method as the handler of VM exits.

    Parameters
    ----------
    *reasons : ExitReason, int or str
        The exit reasons that it handles; KVM's names are understood.

    Returns
    -------
    callable
        A decorator that returns the function itself, for :meth:`VmmLoop.add` to find.

    Raises
    ------
    UnknownName
        There is no such exit reason.

    Examples
    --------
    >>> import vtx
    >>> @vtx.on(vtx.ExitReason.CPUID)
    ... def cpuid(cpu, exit):
    ...     cpu.regs.rax = 0x16
    ...     cpu.skip(exit)
    >>> vmm = vtx.Vmm(cpuid)
    """
    if not reasons:
        raise InputError("a handler needs an exit reason", hint="write @on(ExitReason.CPUID)")
    found = tuple(find_exit_reason(reason).reason for reason in reasons)

    def mark(function: F) -> F:
        setattr(function, _MARK, found)
        return function

    return mark


@dataclass
class Vcpu:
    """What a VMM keeps of one of its guest's processors.

    Attributes
    ----------
    cpu : Cpu or None
        The logical processor that it runs on.
    interrupts : deque of int
        Vectors of external interrupts that the guest has not got yet.
    nmi : bool
        An NMI that it has not got yet.
    event : tuple of (int, int, int), or None
        Interruption information, error code and instruction length of an event that has to be
        delivered at the next VM entry: an exception, or one whose delivery an exit interrupted.
    msrs : dict of int to int
        MSRs that the VMM keeps for the guest.
    halted : bool
        The guest's last exit was HLT.
    random : int
        State of the generator behind RDRAND and RDSEED.
    """

    cpu: Cpu | None = None
    interrupts: deque[int] = field(default_factory=deque)
    nmi: bool = False
    event: tuple[int, int, int] | None = None
    msrs: dict[int, int] = field(default_factory=dict)
    halted: bool = False
    random: int = 0x9E37_79B9_7F4A_7C15


@dataclass
class Guest:
    """What a VMM keeps of its guest.

    Attributes
    ----------
    size_bytes : int
        Guest-physical memory, from address 0 under EPT.
    base : int
        Host-physical address of the guest's memory.
    ept_pages : str
        Size of the pages that are mapped on EPT violations.
    image : GuestImage or None
        The guest's memory as it was set up.
    console : bytearray
        What the guest wrote to the serial port.
    preemption_timer : int or None
        What the VMX-preemption timer is set to whenever it has expired.
    vcpus : dict of int to Vcpu
        By number of the logical processor.
    """

    size_bytes: int = GIB
    base: int = GUEST_BASE
    ept_pages: str = "4K"
    image: GuestImage | None = None
    console: bytearray = field(default_factory=bytearray)
    preemption_timer: int | None = None
    vcpus: dict[int, Vcpu] = field(default_factory=dict)


class Observer(Protocol):
    """Looks on while a VMM runs its guest; what it does is not counted and changes nothing."""

    def exit(self, cpu: Cpu, exit: Exit) -> None:
        """See a VM exit before it is handled."""

    def entry(self, cpu: Cpu) -> None:
        """See what a handled exit left behind, just before VMRESUME."""

    def finished(self, cpu: Cpu) -> None:
        """See the logical processor 0 at the end of a replay, while its machine is still there."""


class VmmLoop:
    """A VMM that finds the handler of each exit; the handlers are up to subclasses.

    Parameters
    ----------
    *handlers : callable, module or object
        As for :meth:`add`.

    Attributes
    ----------
    guest : Guest
        What the VMM knows of the guest that it runs.
    outcome : str
        How the guest ended: ``"end"``, ``"halted"``, ``"shutdown"`` or ``"entry_failure"``.
    message, check : str
        Why, where it did not simply end, and the id of the VM-entry check that failed.
    watch : callable or None
        Called every few hundred exits while the guest runs.
    observer : Observer or None
        Told of every exit and every entry that follows one.
    """

    #: Names of the methods that are handlers, by exit reason.
    _methods: dict[int, str] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._methods = {}
        for parent in reversed(cls.__mro__):
            for name, method in vars(parent).items():
                for reason in getattr(method, _MARK, ()):
                    cls._methods[reason] = name

    def __init__(self, *handlers: Any) -> None:
        self._defaults: dict[int, Handler] = {
            reason: getattr(self, name) for reason, name in self._methods.items()
        }
        self._handlers = dict(self._defaults)
        self.watch: Callable[[], None] | None = None
        self.observer: Observer | None = None
        self.begin(Guest())
        self.add(*handlers)

    def begin(self, guest: Guest) -> None:
        """Forget everything about the last guest; handlers stay."""
        self.guest = guest
        self.outcome = "end"
        self.message = self.check = ""
        self._stopped = False

    def vcpu(self, cpu: Cpu) -> Vcpu:
        """Return what the VMM keeps of the guest's processor that runs on `cpu`."""
        found = self.guest.vcpus.get(cpu.number)
        if found is None:
            found = self.guest.vcpus[cpu.number] = Vcpu(cpu)
        return found

    # ---- Handlers -----------------------------------------------------------------------------

    def on(self, *reasons: ExitReason | int | str) -> Callable[[F], F]:
        """Let the decorated function handle exits of this VMM (see :func:`on`)."""
        mark = on(*reasons)

        def add(function: F) -> F:
            self.add(mark(function))
            return function

        return add

    def add(self, *handlers: Any) -> None:
        """Add handlers; they take the place of those that handle the same reasons.

        Parameters
        ----------
        *handlers : callable, module or object
            Functions marked with :func:`on`, or anything that has some as attributes.

        Raises
        ------
        InputError
            There is no marked function.
        """
        for handler in handlers:
            functions = [handler] if hasattr(handler, _MARK) else _marked(handler)
            if not functions:
                name = getattr(handler, "__name__", type(handler).__name__)
                raise InputError(
                    f"{name} handles no exit reason", hint="mark handlers with @vtx.on(reason)"
                )
            for function in functions:
                for reason in getattr(function, _MARK):
                    self._handlers[reason] = function

    def handlers(self) -> tuple[Handler, ...]:
        """Return what handles the exits now, each once."""
        return tuple(dict.fromkeys(self._handlers.values()))

    def handle(self, cpu: Cpu, exit: Exit) -> None:
        """Handle one VM exit.

        Raises
        ------
        UnhandledExit
            No handler is there for its reason.
        """
        reason = exit.reason
        handler = self._handlers.get(reason)
        if handler is None:
            raise UnhandledExit(exit)
        if handler(cpu, exit) is PASS:
            self.default(cpu, exit)

    def default(self, cpu: Cpu, exit: Exit) -> None:
        """Handle an exit as this class does, whatever handlers were added since."""
        handler = self._defaults.get(exit.reason)
        if handler is None:
            raise UnhandledExit(exit)
        handler(cpu, exit)

    # ---- The loop -----------------------------------------------------------------------------

    def run(self, cpu: Cpu, program: Program | Trace | None = None) -> str:
        """Launch the guest and handle its exits until it ends.

        Parameters
        ----------
        cpu : Cpu
            In VMX operation, with a current VMCS from which a guest can be launched.
        program : Program or Trace, optional
            What the guest executes.

        Returns
        -------
        str
            How it ended: the attribute `outcome`.

        Raises
        ------
        UnhandledExit
            The guest exits for a reason that no handler is there for.
        EmulationStopped
            The same exit happens over and over, and nothing changes.
        """
        self._stopped = False
        try:
            self.loop(cpu, cpu.vmlaunch(program))
        except EndOfTrace:
            self.outcome = "halted" if self.vcpu(cpu).halted else "end"
        return self.outcome

    def loop(self, cpu: Cpu, exit: Exit) -> None:
        """Handle `exit`, resume the guest, and so on, until a handler stops the guest.

        Raises
        ------
        EndOfTrace
            The guest's program has ended.
        """
        observer = self.observer
        for count in itertools.count():
            if self.watch is not None and not count % _WATCH_EVERY:
                self.watch()
            if observer is not None:
                observer.exit(cpu, exit)
            self.handle(cpu, exit)
            if self._stopped:
                return
            self.before_entry(cpu)
            if observer is not None:
                observer.entry(cpu)
            exit = cpu.vmresume()

    def before_entry(self, cpu: Cpu) -> None:
        """Do what has to be done before each VM entry; subclasses inject events here."""

    def stop(self, outcome: str, message: str) -> None:
        """Let the loop end after the exit that is being handled.

        Parameters
        ----------
        outcome : str
            How the guest ended.
        message : str
            One sentence that says why.
        """
        self.outcome, self.message, self._stopped = outcome, message, True


def _marked(owner: Any) -> list[Any]:
    """Return the marked functions of a module or an object."""
    found = [getattr(owner, name) for name in dir(owner) if not name.startswith("__")]
    return [value for value in found if callable(value) and hasattr(value, _MARK)]
