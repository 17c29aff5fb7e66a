"""What a guest executes: instructions, loops and recorded reference streams, and where it is.

A step does not say where it came from: a listing in YAML, a recorded stream in an array file or
a program built in Python all become the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, ClassVar

from vtx.bits import MASK32, MASK64
from vtx.errors import InputError, UnknownName
from vtx.facts.instructions import GENERAL_REGISTERS, INSTRUCTIONS, Form, InstructionSpec, Parameter
from vtx.machine.encoding import encoded_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vtx.machine.processor import Processor

__all__ = [
    "MODIFIERS",
    "Cursor",
    "Instruction",
    "Loop",
    "Operation",
    "Program",
    "Stream",
    "operand_value",
    "place",
]

#: Operands that any instruction may have beside its own: prefixes and the parts of a memory
#: operand. Registers are numbers, sizes are bytes.
MODIFIERS = frozenset(
    {"rep", "lock", "segment", "base", "index", "scale", "displacement", "address_size",
     "operand_size", "high_byte", "rip_relative"}
)  # fmt: skip

#: No step accesses more memory at once: a page.
_MOST_BYTES = 4096
_NARROW = {"eax": "rax", "ecx": "rcx", "edx": "rdx", "ebx": "rbx", "dx": "rdx"}
_REGISTERS = frozenset(GENERAL_REGISTERS)


def operand_value(parameter: Parameter | None, value: int | str) -> int:
    """Return the number that `value` stands for: a number, or a name where names are allowed.

    Raises
    ------
    UnknownName
        No MSR, or no VMCS field, has this name.
    InputError
        A name stands where only a number can.
    """
    if isinstance(value, int):
        return int(value) & MASK64
    try:
        return int(value, 0) & MASK64
    except ValueError:
        pass
    if parameter is not None and parameter.kind == "msr":
        from vtx.facts.msrs import find_msr

        return int(find_msr(value))
    if parameter is not None and parameter.kind == "field":
        from vtx.facts.fields import find_encoding

        return int(find_encoding(value))
    raise InputError(f"{value!r} is not a number", hint="write 4096 or 0x1000")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step of a guest, named as in :mod:`vtx.facts.instructions`.

    Parameters
    ----------
    name : str
        Key of the instruction table: ``"cpuid"``, ``"mov_to_cr3"``, ``"load"``, or of an event
        that arrives before the next instruction: ``"external_interrupt"``, ``"nmi"`` ...
    operands : mapping
        Operands as the table describes them (``{"leaf": 1}``); a register is its number, a
        memory operand is ``base``, ``index``, ``scale``, ``displacement`` ... Any
        general-purpose register may be given as well (``{"rbx": 5}``).
    length : int
        Bytes of machine code; 0 stands for what an assembler would emit (and for events).
    rip : int
        Linear address it stands at.
    processor : int
        Logical processor that executes it.
    line : int or None
        Line of the trace file, for messages.
    text : str
        As written.

    Attributes
    ----------
    sets : tuple of (str, int)
        Registers and the values that the step puts into them when it is first reached.
    end : int
        Linear address of the byte after it.

    Raises
    ------
    UnknownName
        The table has no such instruction, or the instruction no such operand.
    """

    name: str
    operands: Mapping[str, int] = field(default_factory=dict)
    length: int = 0
    rip: int = 0
    processor: int = 0
    line: int | None = None
    text: str = ""
    sets: tuple[tuple[str, int], ...] = field(init=False, default=(), compare=False, repr=False)
    end: int = field(init=False, default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        spec = INSTRUCTIONS.get(self.name)
        if spec is None:
            raise UnknownName("instruction", self.name, INSTRUCTIONS)
        if self.operands:
            _complete(self, spec)
        if not self.length and not spec.is_event:
            object.__setattr__(self, "length", encoded_length(_best_form(self), self.operands))
        object.__setattr__(self, "end", self.rip + self.length & MASK64)

    def at(self, rip: int) -> Instruction:
        """Return the same step at linear address `rip`."""
        return replace(self, rip=rip & MASK64)

    def __str__(self) -> str:
        return self.text or self.name


def _complete(instruction: Instruction, spec: InstructionSpec) -> None:
    """Check operand names, make every value a number, and collect what goes into registers."""
    written = dict(instruction.operands)
    names = _kinds(spec.name)
    if "address" in written and names.get("address") in ("m", "a"):
        written["displacement"] = written.pop("address")
    operands: dict[str, int] = {}
    sets: list[tuple[str, int]] = []
    for name, value in written.items():
        parameter = spec.parameters.get(name)
        kind = names.get(name)
        if parameter is None and kind is not None and name == "msr":
            parameter = Parameter(name, "", "msr")
        if parameter is None and kind is None and not _is_common(name):
            known = [*spec.parameters, *names, *sorted(MODIFIERS)]
            raise UnknownName(f"operand of {spec.name}", name, known)
        operands[name] = number = operand_value(parameter, value)
        if name == "size" and not 1 <= number <= _MOST_BYTES:
            raise InputError(f"{spec.name} cannot access {number} bytes", hint="write size=8")
        target = parameter.target if parameter else name if kind is None else ""
        sets += _register_values(target, number, written, spec.name)
    object.__setattr__(instruction, "operands", operands)
    object.__setattr__(instruction, "sets", tuple(sets))


@cache
def _kinds(name: str) -> Mapping[str, str]:
    """Return the operands that the forms of an instruction name, with their kinds."""
    forms = INSTRUCTIONS[name].forms
    fixed = {key: "fixed" for form in forms for key in form.fixed}
    return fixed | {key: kind for form in forms for key, kind in form.operands if key}


def _is_common(name: str) -> bool:
    return name in MODIFIERS or name in _REGISTERS or name in _NARROW


def _register_values(
    target: str, value: int, operands: Mapping[str, int | str], name: str
) -> list[tuple[str, int]]:
    """Return what putting `value` into `target` means for 64-bit registers."""
    if target == "edx:eax":
        return [("rax", value & MASK32), ("rdx", value >> 32)]
    if target in _NARROW:
        return [(_NARROW[target], value & MASK32)]
    if target in _REGISTERS:
        return [(target, value)]
    if target.startswith("@"):
        number = operands.get(target[1:])
        if not isinstance(number, int):
            raise InputError(
                f"{name} takes no value for a {target[1:]} in memory",
                hint="store it there in a step before",
            )
        return [(GENERAL_REGISTERS[number], value)]
    return []


def _best_form(instruction: Instruction) -> Form:
    """Return the form that the operands of a step built in Python fit best."""
    operands = instruction.operands
    spec = INSTRUCTIONS[instruction.name]
    for form in spec.forms:
        fixed = all(operands.get(key, value) == value for key, value in form.fixed.items())
        given = all(name in operands or kind in ("m", "a", "rm", "rm16", "rm64")
                    for name, kind in form.operands if name)  # fmt: skip
        if fixed and given:
            return form
    return spec.forms[0]


@dataclass(frozen=True, slots=True)
class Loop:
    """End of a loop: go back to operation `start` until the body ran `count` times."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Stream:
    """A window of a recorded reference stream.

    Parameters
    ----------
    records : ndarray of uint64, shape (n,)
        ``kind << 62 | size << 48 | linear address``; kind 0 instruction fetch, 1 load, 2 store,
        3 modify. A record of kind 0 and size 0 is an instruction: its low 48 bits index
        `instructions`.
    start, stop : int
        The window of records to run.
    instructions : tuple of Instruction
        What the instruction records refer to.
    processor : int
        Logical processor that runs it.
    """

    records: NDArray[np.uint64]
    start: int
    stop: int
    instructions: tuple[Instruction, ...] = ()
    processor: int = 0


Operation = Instruction | Loop | Stream

#: The guest kernel's page-fault handler as Python: (processor, linear address, error code) ->
#: whether it mapped the page.
DemandPaging = Callable[["Processor", int, int], bool]


@dataclass(frozen=True, eq=False)
class Program:
    """What one guest executes.

    Parameters
    ----------
    operations : tuple of Operation
        In order; loops refer to them by index.
    handlers : mapping of int to Program
        What the guest's own kernel runs when the event with this vector is delivered to it;
        a handler ends with ``iret``, and one without steps is that IRET alone.
    demand_paging : callable, optional
        The guest kernel's page-fault handler as Python: called as ``demand_paging(processor,
        linear_address, error_code)`` when a #PF is delivered to the guest, it maps the page and
        returns True, or returns False if the address is not the guest's.
    name : str
        For messages.
    """

    operations: tuple[Operation, ...]
    handlers: Mapping[int, Program] = field(default_factory=dict)
    demand_paging: DemandPaging | None = None
    name: str = ""
    #: So many handlers may interrupt each other before the guest counts as one without progress.
    most_handlers: ClassVar[int] = 64

    @cached_property
    def entry_point(self) -> int | None:
        """Linear address of its first instruction; None if it has none, or begins with a stream."""
        for operation in self.operations:
            if not isinstance(operation, Instruction):
                return None
            if operation.length:
                return operation.rip or None
        return None

    @cached_property
    def steps_at(self) -> Mapping[int, int]:
        """Index of the (first) instruction that stands at each linear address."""
        found: dict[int, int] = {}
        for index, operation in enumerate(self.operations):
            if isinstance(operation, Instruction) and operation.length:
                found.setdefault(operation.rip, index)
        return found


def place(operations: Iterable[Operation], origin: int) -> tuple[Operation, ...]:
    """Give each instruction its address: one after the other, from `origin` on.

    An instruction that already has an address keeps it, and the following ones continue there.
    Streams bring their own addresses; their instructions stand where the stream stands.
    """
    placed: list[Operation] = []
    here = origin
    for operation in operations:
        if isinstance(operation, Instruction):
            step = operation if operation.rip else operation.at(here)
            here = step.end
            placed.append(step)
        else:
            placed.append(operation)
    return tuple(placed)


class Cursor:
    """Where one logical processor stands in a program.

    Attributes
    ----------
    index : int
        Number of the operation that executes next.
    operation : Instruction, Stream or None
        That operation; None at the end of the program.
    record : int
        Next record, while the operation is a stream.
    iterations : dict of int to int
        Completed iterations of each unfinished loop, by the index of its :class:`Loop`.
    reached : bool
        The step put its values into registers; executing it again does not repeat that.
    vector : int or None
        Of the event that this is the handler of; None for the guest's program itself.
    error_code_bytes : int
        Bytes of the error code on the handler's stack, which its IRET drops.
    address : int or None
        What RIP was when the run loop last stood here; None before it has been here.
    page_fault : tuple of int, or None
        Linear address and error code that the guest kernel's demand paging has yet to handle.
    """

    __slots__ = (
        "address",
        "error_code_bytes",
        "index",
        "iterations",
        "operation",
        "page_fault",
        "program",
        "reached",
        "record",
        "vector",
    )

    def __init__(
        self, program: Program, vector: int | None = None, error_code: int | None = None
    ) -> None:
        self.program = program
        self.vector = vector
        self.error_code_bytes = 0 if error_code is None else 8
        self.page_fault: tuple[int, int] | None = None
        self.address: int | None = None
        self.index = 0
        self.record = 0
        self.reached = False
        self.iterations: dict[int, int] = {}
        self.operation: Instruction | Stream | None = None
        self._settle(0)

    def current(self) -> Instruction | Stream | None:
        """Return the operation that executes next, or None at the end of the program."""
        return self.operation

    def advance(self) -> None:
        """Step over the current operation, round a loop where one ends."""
        self.reached = False
        self._settle(self.index + 1)

    def go_to(self, index: int) -> None:
        """Continue at operation `index` (an instruction or a stream) with fresh loop counts."""
        self.reached = False
        self.iterations.clear()
        self._settle(index)

    def replace_program(self, program: Program) -> None:
        """Continue in another program at the same operation."""
        self.program = program
        self._settle(self.index)

    def _settle(self, index: int) -> None:
        """Go to operation `index`: pass over loop ends, and open a stream at its first record."""
        operations = self.program.operations
        count = len(operations)
        while index < count:
            operation = operations[index]
            if isinstance(operation, Instruction):
                self.operation = operation
                break
            if isinstance(operation, Stream):
                self.operation = operation
                self.record = operation.start
                break
            iterations = self.iterations
            # The first round is not counted before it ends.
            done = iterations[index] + 1 if index in iterations else 1
            if done < operation.count:
                iterations[index] = done
                index = operation.start
            else:
                iterations.pop(index, None)
                index += 1
        else:
            self.operation = None
        self.index = index
