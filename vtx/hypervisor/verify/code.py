"""A guest that executes the machine code in its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from vtx.bits import MASK32, MASK64
from vtx.errors import EmulationStopped
from vtx.machine.context import Access, Context
from vtx.machine.decoding import DecodeError, decode
from vtx.machine.encoding import MAX_INSTRUCTION_BYTES
from vtx.machine.processor import Processor
from vtx.machine.program import Instruction, Loop, Operation, Program

__all__ = ["MachineCode", "UnknownCode"]

_PAGE = 4096
_EPT_ACCESSED_DIRTY = 1 << 6
_D = 1 << 14
_FOREVER = 1 << 60
#: A guest that executes so many steps in a row without an exit runs on.
_MOST_STEPS = 4096


class UnknownCode(DecodeError):
    """The guest came to machine code that the instruction table does not have."""


class _Steps(Mapping[int, int]):
    """Index of the step at each RIP: there is one everywhere."""

    def __init__(self, operations: _Operations) -> None:
        self._operations = operations

    def __getitem__(self, rip: int) -> int:
        return self._operations.index_of(rip)

    def __iter__(self) -> Iterator[int]:
        return iter(self._operations.known)

    def __len__(self) -> int:
        return len(self._operations.known)


class _Operations(Sequence[Operation]):
    """Steps that are decoded when they are reached.

    Steps have even indices; behind each stands an endless loop whose body begins at the step that
    follows it in memory.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        # Where no guest is: RIP is known only when it has been entered.
        self._steps: list[Instruction] = [Instruction("nop", rip=MASK64)]
        self.known: dict[int, int] = {}
        self._left = _MOST_STEPS

    def index_of(self, rip: int) -> int:
        if rip not in self.known:
            self.known[rip] = 2 * len(self._steps)
            self._steps.append(_fetch(self._processor, rip))
        return self.known[rip]

    @overload
    def __getitem__(self, index: int) -> Operation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Operation]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("machine code has no slices")
        step = self._steps[index // 2]
        if index % 2 == 0:
            return step
        self._left -= 1
        if self._left < 0:
            raise EmulationStopped(f"the guest executed {_MOST_STEPS} steps without a VM exit")
        mask = MASK64 if self._processor.regs.in_64bit_mode else MASK32
        return Loop(self.index_of(step.end & mask), _FOREVER)

    def __len__(self) -> int:
        return _FOREVER


class MachineCode(Program):
    """What is in the guest's memory, as a program: decoded step by step from RIP on.

    Parameters
    ----------
    processor : Processor
        Whose guest executes it.
    """

    #: Only a VM exit ends it: a handler that faults goes on until its stack has done damage.
    most_handlers = 1 << 16

    def __init__(self, processor: Processor) -> None:
        operations: Any = _Operations(processor)
        object.__setattr__(self, "operations", operations)
        object.__setattr__(self, "handlers", {})
        object.__setattr__(self, "demand_paging", None)
        object.__setattr__(self, "name", "machine code")
        object.__setattr__(self, "steps_at", _Steps(operations))


class _Unknown(Instruction):
    """A step that the instruction table does not have: an error if the guest executes it."""

    __slots__ = ()

    @property
    def sets(self) -> tuple[tuple[str, int], ...]:
        """Raise UnknownCode: the run loop asks for this when it begins to execute the step."""
        raise UnknownCode(bytes.fromhex(self.text), "no instruction of the table")

    @sets.setter
    def sets(self, value: tuple[tuple[str, int], ...]) -> None:
        pass


def _fetch(processor: Processor, rip: int) -> Instruction:
    """Return the step at RIP.

    If the bytes cannot be fetched it is any step of one byte: the run loop's own fetch faults.
    """
    regs = processor.regs
    if not regs.in_64bit_mode and rip > regs.cs.limit:
        return Instruction("nop", rip=rip)
    mode = 64 if regs.in_64bit_mode else 32 if regs.cs.access_rights & _D else 16
    start = rip if mode == 64 else regs.cs.base + rip & MASK32
    context = _peeking(processor)
    code = b""
    while True:
        place = start + len(code)
        walk = processor.mmu.walk(context, place, Access.FETCH)
        if not walk.ok:
            if code:
                return Instruction("nop", rip=rip, length=len(code) + 1)
            return Instruction("nop", rip=rip)
        size = min(_PAGE - place % _PAGE, MAX_INSTRUCTION_BYTES - len(code))
        code += processor.memory.read(walk.hpa, size)
        try:
            return decode(code, mode, rip)
        except DecodeError as error:
            if not error.truncated or len(code) == MAX_INSTRUCTION_BYTES:
                return _Unknown("nop", rip=rip, text=code.hex())


def _peeking(processor: Processor) -> Context:
    """Return the guest's context with nothing that a look at memory would leave behind."""
    now = processor.context
    return Context(
        cr0=now.cr0,
        cr3=now.cr3,
        cr4=now.cr4,
        efer=now.efer,
        rflags=now.rflags,
        cpl=processor.regs.cpl,
        eptp=None if now.eptp is None else now.eptp & ~_EPT_ACCESSED_DIRTY,
        mode_based_execute=now.mode_based_execute,
        pdptes=now.pdptes,
    )
