"""What a trace expects of its run, and how the run compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtx.errors import InputError, UnknownName
from vtx.facts.exits import ExitReason, find_exit_reason
from vtx.facts.fields import Field, find_field
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.hypervisor.options import Expectation, Expected
from vtx.hypervisor.values import at, number_of
from vtx.profiles.document import Item

if TYPE_CHECKING:
    from vtx.hypervisor.run import Run

__all__ = ["OUTCOMES", "Result", "check_expectations", "read_expectations"]

#: How a run can end.
OUTCOMES = ("end", "halted", "shutdown", "entry_failure", "vmfail")

_REGISTERS = (*GENERAL_REGISTERS, "rip", "rflags", "cr0", "cr2", "cr3", "cr4")
_MOST = (1 << 64) - 1


@dataclass(frozen=True)
class Result:
    """One expectation beside what the run gave.

    Parameters
    ----------
    what : str
        What was compared: ``"exits CPUID"``, ``"register rax"`` ...
    expected, actual : int or str
        The values.
    line : int
        Where the trace says so.
    """

    what: str
    expected: int | str
    actual: int | str
    line: int

    @property
    def holds(self) -> bool:
        """Whether the run gave what was expected."""
        return self.expected == self.actual

    def __str__(self) -> str:
        return f"{self.what}: expected {_show(self.expected)}, got {_show(self.actual)}"


def _show(value: int | str) -> str:
    if isinstance(value, str):
        return repr(value)
    return str(value) if abs(value) < 1 << 16 else f"{value:#x}"


def read_expectations(item: Item | None) -> tuple[Expected, ...]:
    """Read the ``expect`` block of a trace."""
    if item is None:
        return ()
    keys = (*_READERS, "total_exits", "console", "check", "outcome")
    entries = item.mapping("expect", keys)
    expected: list[Expected] = []
    for key, value in entries.items():
        if key == "total_exits":
            total = number_of(value, key)
            expected.append(Expected(Expectation.TOTAL_EXITS, "", total, value.line))
        elif key == "console":
            text = value.value if isinstance(value.value, str) else value.text(key)
            expected.append(Expected(Expectation.CONSOLE, "", text, value.line))
        elif key == "check":
            check = at(value, lambda v=value: _find_check(v.text("check")))  # type: ignore[misc]
            expected.append(Expected(Expectation.CHECK, "", check, value.line))
        elif key == "outcome":
            outcome = value.choice(key, OUTCOMES)
            expected.append(Expected(Expectation.OUTCOME, "", outcome, value.line))
        else:
            kind, find = _READERS[key]
            for name, number in value.entries(key).items():
                subject = at(number, lambda f=find, n=name: f(n))  # type: ignore[misc]
                wanted = number_of(number, name)
                expected.append(Expected(kind, subject, wanted, number.line, name))
    return tuple(expected)


def _find_register(name: str) -> str:
    if name.lower() not in _REGISTERS:
        raise UnknownName("register", name, _REGISTERS)
    return name.lower()


def _find_check(name: str) -> str:
    # The rules take a while to import, and few traces expect a check.
    from vtx.rules.check import CHECKS

    if name not in CHECKS:
        raise UnknownName("VM-entry check", name, CHECKS)
    return name


def _find_address(name: str) -> int:
    try:
        address = int(name, 0)
    except ValueError:
        address = -1
    if not 0 <= address <= _MOST:
        raise InputError(f"{name!r} is no address in the guest's memory", hint="write 0x7000")
    return address


_READERS: Mapping[str, tuple[Expectation, Callable[[str], int | str]]] = {
    "exits": (Expectation.EXITS, lambda name: find_exit_reason(name).reason),
    "registers": (Expectation.REGISTER, _find_register),
    "memory": (Expectation.MEMORY, _find_address),
    "vmcs": (Expectation.FIELD, lambda name: find_field(name).field),
}


def check_expectations(
    expectations: tuple[Expected, ...], run: Run, read_u64: Callable[[int], int]
) -> tuple[Result, ...]:
    """Compare a finished run with what its trace expects.

    Parameters
    ----------
    expectations : tuple of Expected
        Of the trace.
    run : Run
        The run.
    read_u64 : callable
        Reads 64 bits at an offset into the guest's memory.

    Raises
    ------
    InputError
        The guest has no memory at an address; with file and line.
    """
    results = []
    for expected in expectations:
        try:
            results.append(_check(expected, run, read_u64))
        except InputError as error:  # an address beyond the guest's memory
            raise error.at(run.file, expected.line) from None
    return tuple(results)


def _check(expected: Expected, run: Run, read_u64: Callable[[int], int]) -> Result:
    key = expected.key
    actual: int | str
    match expected.kind:
        case Expectation.EXITS:
            reason = ExitReason(int(key))
            what, actual = f"exits {expected.name or reason.name}", run.exits.get(reason, 0)
        case Expectation.TOTAL_EXITS:
            what, actual = "exits in all", run.total_exits
        case Expectation.REGISTER:
            what, actual = f"register {expected.name or key}", run.registers[str(key)]
        case Expectation.MEMORY:
            what, actual = f"memory at {int(key):#x}", read_u64(int(key))
        case Expectation.FIELD:
            field = Field(int(key))
            what, actual = expected.name or field.name, run.vmcs[field]
        case Expectation.CONSOLE:
            what, actual = "console", run.console
        case Expectation.CHECK:
            what, actual = "failing check", run.check
        case _:
            what, actual = "outcome", run.outcome
    return Result(what, expected.value, actual, expected.line)
