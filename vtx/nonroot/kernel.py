"""The guest's own kernel: what runs when an event is delivered, and events that a listing names.

A handler is the program that the trace gives for the vector; or the steps of the guest's own
listing at the handler's address; or, without either, a bare IRET. Page faults may be handled by a
function (`demand_paging`), which stands for the kernel's code at that address.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from vtx.errors import EmulationStopped, GuestFault, InputError
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.machine.exit_information import ExitInformation
from vtx.machine.program import Cursor, Instruction, Operation, Program, place
from vtx.rules.delivery import NMI, PF, WITH_ERROR_CODE, Event, exception
from vtx.rules.injected import EventType

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["NEEDS_RIP", "arrive", "enter_handler", "page_in"]

_BUS_LOCK_ASSERTED = 1 << 26
#: A fault that repeats itself so often, with nothing done in between, does so for ever.
_MAX_SAME_FAULTS = 32
_FIRST_INTERRUPT = 16
_FIRST_VECTOR_OF_USERS = 32
_NO_FAULTS = {2: "nmi", 3: "int3", 4: "into"}
#: Events that do not wait for a boundary: RIP must reference what executes next.
NEEDS_RIP = frozenset({"exception", "bus_lock", "instruction_timeout"})


@cache
def _bare_iret(address: int) -> Program:
    """Return the handler without steps, at the address where its gate points."""
    return Program((Instruction("iret", rip=address),), name="handler without steps")


@cache
def _relocated(program: Program, address: int) -> Program:
    """Return a handler that begins at the address where its gate points."""
    operations = program.operations
    first = operations[0]
    if not isinstance(first, Instruction) or first.rip == address:
        return program
    if first.rip:
        operations = tuple(_moved(operation, address - first.rip) for operation in operations)
    else:
        operations = place(operations, address)
    return Program(operations, program.handlers, program.demand_paging, program.name)


def _moved(operation: Operation, distance: int) -> Operation:
    if isinstance(operation, Instruction):
        return operation.at(operation.rip + distance)
    return operation


def enter_handler(processor: Processor) -> None:
    """Go on with the guest's handler of the event that was delivered.

    Raises
    ------
    EmulationStopped
        Handlers interrupt each other without end, or return to what they were called for.
    """
    assert processor.delivered is not None
    vector, error_code = processor.delivered
    processor.delivered = None
    most = processor.cursors[0].program.most_handlers
    if len(processor.cursors) > most:
        raise EmulationStopped(f"{most} handlers of the guest interrupt each other: no progress")
    if vector < _FIRST_VECTOR_OF_USERS and vector != NMI:
        _notice_fault(processor, vector, error_code)
    rip = processor.regs.rip
    guest = processor.cursors[0].program
    program = guest.handlers.get(vector)
    index = guest.steps_at.get(rip) if program is None else None
    if index is not None:
        cursor = Cursor(guest, vector, error_code)
        cursor.go_to(index)
    elif program is not None and program.operations:
        cursor = Cursor(_relocated(program, rip), vector, error_code)
    else:
        cursor = Cursor(_bare_iret(rip), vector, error_code)
        if vector == PF and guest.demand_paging is not None:
            cursor.page_fault = (processor.regs.cr2, error_code or 0)
    cursor.address = rip
    if error_code is not None:
        cursor.error_code_bytes = processor.pushed_bytes
    processor.cursors.append(cursor)


def _notice_fault(processor: Processor, vector: int, error_code: int | None) -> None:
    """Stop a guest whose handler returns to the instruction that faults again, and again."""
    program = processor.cursors[0]
    rounds = tuple(program.iterations.items())
    regs = processor.regs
    # A stack that grows changes something: it may come to what causes the fault.
    place = (vector, error_code, regs.cr2, regs.rsp, program.index, program.record, rounds)
    last, times = processor.same_fault
    times = times + 1 if place == last else 0
    processor.same_fault = (place, times)
    if times >= _MAX_SAME_FAULTS:
        cursor = processor.cursors[-1]
        raise EmulationStopped(
            f"{cursor.current() or 'the guest'} at {cursor.address or 0:#x} raises "
            f"{GuestFault(vector, error_code)} again and again, and the guest's handler of it "
            "changes nothing"
        )


def page_in(processor: Processor, cursor: Cursor) -> None:
    """Let the guest's kernel, as a Python function, handle a page fault.

    Raises
    ------
    EmulationStopped
        The address is not the program's.
    GuestFault, ExitTaken
        An access of the kernel faults or exits; it goes on with that access afterwards.
    """
    assert cursor.page_fault is not None
    address, error_code = cursor.page_fault
    handle = processor.cursors[0].program.demand_paging
    assert handle is not None
    if not handle(processor, address, error_code):
        raise EmulationStopped(
            f"the guest's program has no memory at {address:#x}: its kernel refuses the page "
            f"fault with error code {error_code:#x}"
        )
    cursor.page_fault = None


def arrive(processor: Processor, event: Instruction) -> ExitInformation | None:
    """Let an event arrive that the program names.

    Returns
    -------
    ExitInformation or None
        The VM exit of an event that does not wait for an instruction boundary.

    Raises
    ------
    InputError
        Its vector is missing or impossible.
    """
    pending, operands = processor.pending, event.operands
    assert processor.vmcs is not None
    proc2 = processor.vmcs.proc2
    match event.name:
        case "external_interrupt":
            pending.interrupts.append(_vector(event, _FIRST_INTERRUPT, 255))
        case "nmi":
            pending.nmi = True
        case "init":
            pending.init = True
        case "smi":
            pending.smi = True
        case "sipi":
            pending.sipi = operands.get("vector", 0)
        case "bus_lock" if proc2 & Proc2.VMM_BUS_LOCK_DETECTION:
            return ExitInformation(ExitReason.BUS_LOCK, exit_reason_bits=_BUS_LOCK_ASSERTED)
        case "instruction_timeout" if proc2 & Proc2.INSTRUCTION_TIMEOUT:
            invalid = operands.get("context_invalid", 0) & 1
            return ExitInformation(ExitReason.INSTRUCTION_TIMEOUT, invalid)
        case "exception":
            return exception(processor, _raised(event))
    return None


def _vector(event: Instruction, low: int, high: int) -> int:
    """Return the vector of an event of a listing."""
    vector = event.operands.get("vector")
    if vector is None or not low <= vector <= high:
        raise InputError(f"{event.name} needs a vector from {low} to {high}", line=event.line)
    return vector


def _raised(event: Instruction) -> Event:
    """Return the exception that a listing says the next instruction raises."""
    vector = _vector(event, 0, 31)
    if vector in _NO_FAULTS:
        hint = f"write {_NO_FAULTS[vector]}"
        raise InputError(f"vector {vector} is no fault", line=event.line, hint=hint)
    error_code = event.operands.get("error_code")
    if error_code is None and vector in WITH_ERROR_CODE:
        error_code = 0
    address = event.operands.get("address", 0)
    kind = EventType.HARDWARE_EXCEPTION
    return Event(vector, kind, error_code, fault=vector != 1, qualification=address)
