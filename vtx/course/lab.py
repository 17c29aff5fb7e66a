"""What a checker works with: the student's file, machines for its guests, and remarks.

A checker is a function ``check(lab)``. It asks the student's file for functions, lets them work on
guests that differ from run to run (:attr:`Lab.random`), and says what it found with
:meth:`Lab.expect`: one sentence for what should hold and, where it does not, one that helps.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vtx.errors import EmulationStopped, EndOfTrace, VMfail, VtxError, suggest

if TYPE_CHECKING:
    from vtx.cpu import Cpu
    from vtx.facts.exits import ExitReason
    from vtx.machine.exit import Exit
    from vtx.machine.program import Program
    from vtx.machine.shape import Shape

__all__ = ["Lab", "Remark", "StudentError", "Watched"]

#: More exits than any guest of the exercises makes.
_MOST_EXITS = 20_000
#: Numbers are shown in hexadecimal where that makes a difference.
_LAST_DIGIT = 9


class StudentError(Exception):
    """The student's code cannot go on; what was said until then stands.

    Parameters
    ----------
    message : str
        What happened.
    hint : str
        What helps.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


@dataclass(frozen=True)
class Remark:
    """One thing that was looked at.

    Attributes
    ----------
    good : bool
        It is as it should be.
    what : str
        What should hold, or what went wrong.
    hint : str
        What helps, where it does not hold.
    """

    good: bool
    what: str
    hint: str = ""


@dataclass
class Watched:
    """What a guest did under the student's handlers.

    Attributes
    ----------
    cpu : Cpu
        The logical processor, after the guest has ended.
    exits : list of (ExitReason, int)
        Reason and RIP of each exit, in order.
    registers : list of dict
        General-purpose registers after each exit was handled.
    """

    cpu: Cpu
    exits: list[tuple[ExitReason, int]] = field(default_factory=list)
    registers: list[dict[str, int]] = field(default_factory=list)

    def count(self, reason: int) -> int:
        """Return how many exits had this reason."""
        return sum(1 for seen, _ in self.exits if seen == reason)


class Lab:
    """A student's file on the bench.

    Parameters
    ----------
    module : module
        The student's file, executed.
    path : str
        Its name, for messages.
    seed : int
        What the variations follow from.

    Attributes
    ----------
    random : random.Random
        For variations: other ports, leaves, addresses, orders in every run.
    remarks : list of Remark
        What was found so far.
    """

    def __init__(self, module: ModuleType, path: str, seed: int) -> None:
        self._module = module
        self._path = path
        self.random = random.Random(seed)  # noqa: S311 - variations, not secrets
        self.remarks: list[Remark] = []
        self._open: list[Cpu] = []

    # ---- The student's file ---------------------------------------------------------------------

    def function(self, name: str, purpose: str) -> Callable[..., Any]:
        """Return a function of the student's file; calls name the line where one fails.

        Raises
        ------
        StudentError
            The file has no such function.
        """
        function = self.value(name, purpose)
        if not callable(function):
            raise StudentError(f"{name} is no function", f"write: def {name}(...): {purpose}")
        return self._calling(function, name)

    def method(self, owner: Any, name: str, purpose: str) -> Callable[..., Any]:
        """Return a method of an object of the student's, as :meth:`function` does.

        Raises
        ------
        StudentError
            The object has no such method.
        """
        function = getattr(owner, name, None)
        kind = type(owner).__name__
        if not callable(function):
            raise StudentError(f"{kind} has no method {name}", f"it is {purpose}")
        return self._calling(function, f"{kind}.{name}")

    def _calling(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the function, blaming the student's line for what it raises."""

        def call(*arguments: Any) -> Any:
            with self._blamed(name):
                return function(*arguments)

        call.__name__ = name
        return call

    def value(self, name: str, purpose: str) -> Any:
        """Return anything that the student's file defines.

        Raises
        ------
        StudentError
            It does not define it.
        """
        if not hasattr(self._module, name):
            raise StudentError(f"your file does not define {name}", f"it is {purpose}")
        return getattr(self._module, name)

    # ---- Machines -------------------------------------------------------------------------------

    def cpu(self, profile: str | Shape = "skylake_sp", *, vmx: bool = True) -> Cpu:
        """Return a logical processor, in VMX operation unless `vmx` is False."""
        from vtx.cpu import Cpu

        cpu = Cpu(profile)
        self._open.append(cpu)
        if vmx:
            cpu.vmxon()
        return cpu

    def guest(self, profile: str | Shape = "skylake_sp", *, mapped: bool = True) -> Cpu:
        """Return a processor with a 64-bit guest that can be launched.

        Parameters
        ----------
        profile : str or Shape
            The CPU.
        mapped : bool
            EPT maps all of the guest's memory; otherwise none of it.
        """
        from vtx.machine.vmcs import Vmcs

        cpu = self.cpu(profile)
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        if mapped:
            cpu.ept.map(0, size="1G")
        return cpu

    def run(
        self,
        cpu: Cpu,
        steps: str | Program,
        handle: Callable[[Cpu, Exit], Any],
        *,
        until: int | None = None,
    ) -> Watched:
        """Let a guest run under the student's handler until it halts or its program ends.

        Parameters
        ----------
        cpu : Cpu
            With a guest that can be launched.
        steps : str or Program
            The guest's program: a listing, or what `vtx.program` made of one.
        handle : callable
            ``handle(cpu, exit)`` for every exit but the last.
        until : ExitReason, optional
            The exit that ends it; HLT by default.

        Raises
        ------
        StudentError
            The guest makes no progress, cannot be entered, or never ends.
        """
        from vtx.facts.exits import ExitReason
        from vtx.hypervisor.trace import program

        last = ExitReason.HLT if until is None else until
        watched = Watched(cpu)
        with suppress(EndOfTrace), self._explained():
            operations = program(steps) if isinstance(steps, str) else steps
            self._play(watched, operations, handle, last)
        return watched

    def _play(
        self, watched: Watched, steps: Program, handle: Callable[[Cpu, Exit], Any], last: int
    ) -> None:
        """Handle exits until the last one."""
        cpu = watched.cpu
        exit = cpu.vmlaunch(steps)
        for _ in range(_MOST_EXITS):
            # Looking costs the student's VMM no VMREAD.
            info = exit.information
            watched.exits.append((info.reason, info.guest_rip))
            if info.exit_reason_bits >> 31:
                raise StudentError(exit.explain(), f"vtx explain {info.check or info.reason}")
            if info.reason == last:
                return
            handle(cpu, exit)
            _judge_registers(cpu)
            watched.registers.append(cpu.regs.as_dict())
            exit = cpu.vmresume()
        what = f"after {_MOST_EXITS} VM exits the guest still runs"
        raise StudentError(what, "does each exit make progress?")

    # ---- Remarks --------------------------------------------------------------------------------

    def expect(self, good: bool, what: str, hint: str = "") -> bool:
        """Remark that `what` should hold, and whether it does; return that."""
        self.remarks.append(Remark(bool(good), what, "" if good else hint))
        return bool(good)

    def equal(self, got: Any, wanted: Any, what: str, hint: str = "") -> bool:
        """Remark on a value: `what`, and where it differs also both values."""
        if got == wanted:
            return self.expect(True, what)
        shown = f"you have {_shown(got)}, it should be {_shown(wanted)}"
        return self.expect(False, what, f"{shown}{'; ' + hint if hint else ''}")

    def close(self) -> None:
        """Give the machines back."""
        for cpu in self._open:
            cpu.machine.memory.close()

    # ---- What went wrong ------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the machine's errors into what a student reads."""
        try:
            yield
        except EndOfTrace:
            raise
        except EmulationStopped as stopped:
            raise StudentError(str(stopped)) from stopped
        except VMfail as failed:
            raise StudentError(f"VM entry failed: {failed}", _explain(failed)) from failed

    @contextmanager
    def _blamed(self, name: str) -> Iterator[None]:
        """Name the line of the student's file in which an exception arose."""
        try:
            yield
        except (EmulationStopped, StudentError):
            raise
        except Exception as error:
            place = _line(error, self._path)
            text = str(error) if isinstance(error, VtxError) else f"{type(error).__name__}: {error}"
            if isinstance(error, AttributeError) and error.name and error.obj is not None:
                near = suggest(error.name, [one for one in dir(error.obj) if one[0] != "_"])
                text += f" (did you mean {' or '.join(near)}?)" if near else ""
            raise StudentError(f"{place}in {name}: {text}", _explain(error)) from error


def _judge_registers(cpu: Cpu) -> None:
    """Refuse what no register can hold, before the guest or the checker meets it."""
    found: dict[str, object] = dict(cpu.regs.as_dict())
    for name, value in found.items():
        if not isinstance(value, int):
            hint = "int.from_bytes(text, 'little')" if isinstance(value, bytes) else ""
            raise StudentError(f"cpu.regs.{name} is {value!r}: a register holds an int", hint)
        if not 0 <= value < 1 << 64:
            hint = "cut it: & 0xFFFF_FFFF_FFFF_FFFF"
            raise StudentError(f"cpu.regs.{name} is {value:#x}, which has no 64 bits", hint)


def _explain(error: Exception) -> str:
    check = getattr(error, "check", None)
    number = getattr(error, "error", None)
    if check:
        return f"vtx explain {check}"
    return f"vtx explain error {number}" if isinstance(number, int) else ""


def _line(error: BaseException, path: str) -> str:
    """Return the last line of the student's file that the exception went through."""
    line, trace, file = None, error.__traceback__, os.path.abspath(path)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}, " if line is not None else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:#x}" if isinstance(value, int) and value > _LAST_DIGIT else repr(value)
