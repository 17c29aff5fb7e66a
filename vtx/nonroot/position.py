"""RIP and the program: which step stands where RIP points, and the other way round.

A VM entry resumes by RIP: at the address of the step that exited, the step executes again; at the
address after it, the VMM has completed the step; at another step's address the guest goes on
there. The same holds where an interrupt handler returns.

In a stream, RIP is the address of the instruction fetch that a reference belongs to. An
instruction between the references stands at its own address, or else where the last fetch ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import sign_extend
from vtx.errors import EmulationStopped
from vtx.machine.encoding import MAX_INSTRUCTION_BYTES
from vtx.machine.program import Instruction, Program, Stream, place

if TYPE_CHECKING:
    from vtx.machine.program import Cursor
    from vtx.machine.registers import Registers

__all__ = ["at_record", "is_fetch", "jump", "resume", "stand"]

#: How far back the fetch is looked for that a data reference belongs to.
_LOOK_BACK = 256
_ADDRESS_BITS = 48
_KIND_SHIFT = 62


def is_fetch(record: int) -> bool:
    """Tell whether a record of a stream is an instruction fetch (or an instruction)."""
    return not record >> _KIND_SHIFT


def stand(regs: Registers, cursor: Cursor) -> None:
    """Let RIP reference what the cursor executes next; at the end of a program it stays."""
    operation = cursor.operation
    if isinstance(operation, Instruction):
        cursor.address = regs.rip = operation.rip
        return
    if operation is not None:
        regs.rip = _stream_rip(operation, cursor.record, regs.rip)
    cursor.address = regs.rip


def _stream_rip(stream: Stream, index: int, rip: int) -> int:
    """Return the address of the instruction that record `index` belongs to, else `rip`."""
    records = stream.records
    after_fetch = index >= len(records)
    if not after_fetch:
        record = records.item(index)
        if not record >> _KIND_SHIFT:
            if record >> _ADDRESS_BITS:
                return sign_extend(record, _ADDRESS_BITS)
            after_fetch = True
            if record < len(stream.instructions) and stream.instructions[record].rip:
                return stream.instructions[record].rip
    for back in range(index - 1, max(index - _LOOK_BACK, -1), -1):
        record = records.item(back)
        if not record >> _KIND_SHIFT and record >> _ADDRESS_BITS:
            length = record >> _ADDRESS_BITS if after_fetch else 0
            return sign_extend(record, _ADDRESS_BITS) + length
    return rip


def resume(regs: Registers, cursor: Cursor) -> None:
    """Let the cursor follow RIP, which a VMM or a handler may have moved.

    Raises
    ------
    EmulationStopped
        The program has no step there.
    """
    rip, operation = regs.rip, cursor.operation
    if cursor.address is None:
        _begin(cursor, rip)
    elif rip == cursor.address:
        return
    elif isinstance(operation, Instruction) and rip == operation.end:
        cursor.advance()
        cursor.address = rip
    elif isinstance(operation, Instruction) and rip == operation.rip:
        return
    elif isinstance(operation, Stream) and 0 < rip - cursor.address <= MAX_INSTRUCTION_BYTES:
        _skip_in_stream(cursor, operation)
    else:
        jump(cursor, rip)


def _begin(cursor: Cursor, rip: int) -> None:
    """Enter a program for the first time; give its steps addresses if they have none."""
    operation = cursor.current()
    cursor.address = rip
    if not isinstance(operation, Instruction) or rip == operation.rip:
        return
    if operation.rip:
        if operation.length:  # an event stands nowhere
            jump(cursor, rip)
        return
    program = cursor.program
    operations = place(program.operations, rip)
    cursor.replace_program(
        Program(operations, program.handlers, program.demand_paging, program.name)
    )


def jump(cursor: Cursor, rip: int) -> None:
    """Go on at the step that stands at `rip`.

    Raises
    ------
    EmulationStopped
        There is none.
    """
    index = cursor.program.steps_at.get(rip)
    if index is None:
        stood = f"; the guest stood at {cursor.address:#x}" if cursor.address else ""
        raise EmulationStopped(f"the guest's program has no step at RIP {rip:#x}{stood}")
    cursor.go_to(index)
    cursor.address = rip


def _skip_in_stream(cursor: Cursor, stream: Stream) -> None:
    """Pass over the instruction that a stream stands in, which the VMM has completed."""
    records, index = stream.records, cursor.record
    record = int(records[index])
    index += 1
    if not is_fetch(record) or record >> _ADDRESS_BITS:
        while index < stream.stop and not is_fetch(int(records[index])):
            index += 1
    at_record(cursor, stream, index)


def at_record(cursor: Cursor, stream: Stream, index: int) -> None:
    """Go on at a record of the stream, or after the stream."""
    cursor.reached = False
    cursor.record = index
    if index >= stream.stop:
        cursor.advance()
