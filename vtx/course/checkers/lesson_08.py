"""Exceptions: which exit, what the guest gets of them, and deliveries that are interrupted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtx.facts.controls import Pin
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.course.lab import Lab, Watched
    from vtx.cpu import Cpu

__all__ = ["check"]

_NOWHERE = 0x7000_0000_0000
_PAGE = 4096
_UD, _DF, _GP, _PF = 6, 8, 13, 14
_HANDLERS: dict[int | str, str] = dict.fromkeys((_UD, _DF, _GP, _PF), "hlt\niret")
_WRITE = 1 << 1


def check(lab: Lab) -> None:
    """Run one small guest for each thing that can go wrong."""
    setup = lab.function("setup", "setup(cpu) says which exceptions exit")
    handle = lab.function("handle", "the handler: handle(cpu, exit)")
    run = _Runner(lab, setup, handle)
    _page_faults(lab, run)
    _error_codes(lab, run)
    _interrupted(lab, run)
    _double_faults(lab, run)


class _Runner:
    """Runs guests under the student's functions."""

    def __init__(self, lab: Lab, setup: Callable[..., Any], handle: Callable[..., Any]) -> None:
        self._lab = lab
        self._setup = setup
        self._handle = handle

    def __call__(self, steps: str, *, mapped: bool = True, vector: int = 0) -> Watched:
        """Run one guest, whose handlers halt; `vector` has one, too."""
        from vtx.hypervisor.trace import program

        cpu = self._lab.guest(mapped=mapped)
        pin = cpu.vmread(Field.PIN_BASED_CONTROLS)
        cpu.vmwrite(Field.PIN_BASED_CONTROLS, pin & ~int(Pin.EXTERNAL_INTERRUPT_EXITING))
        self._setup(cpu)
        handlers = dict(_HANDLERS)
        if vector:
            handlers[vector] = "hlt\niret"
        return self._lab.run(cpu, program(f"{steps}\nhlt", handlers), self._handle)


def _frame(cpu: Cpu, *, error_code: bool) -> tuple[int | None, int]:
    """Return error code and RIP that the guest's handler finds on its stack."""
    rsp = cpu.guest.rsp
    words = [
        int.from_bytes(bytes(cpu.guest.linear[at : at + 8]), "little") for at in (rsp, rsp + 8)
    ]
    return (words[0], words[1]) if error_code else (None, words[0])


def _in_handler(lab: Lab, watched: Watched, what: str, hint: str) -> bool:
    """Remark on whether the guest halted in a handler, which are the kernel's."""
    return lab.expect(watched.cpu.guest.rip >> 63 == 1, what, hint)


def _page_faults(lab: Lab, run: _Runner) -> None:
    """Let a guest fault by a read, which does not exit, and by a write, which does."""
    address = _NOWHERE + lab.random.randrange(1, 1 << 20) * 8
    read = run(f"load {address:#x}")
    lab.equal(
        read.count(ExitReason.EXCEPTION_OR_NMI),
        0,
        "a page fault by a read does not exit",
        "it exits if (error code & mask) == match: bit 1 of the error code is 1 for a write",
    )
    write = run(f"store {address:#x} value=1")
    cpu = write.cpu
    lab.equal(
        write.count(ExitReason.EXCEPTION_OR_NMI),
        1,
        "a page fault by a write exits, once",
        "bit 14 of the exception bitmap, mask 2, match 2",
    )
    if not _in_handler(
        lab, write, "the guest gets its page fault", "inject it: cpu.inject(event.vector, ...)"
    ):
        return
    lab.equal(
        cpu.guest.cr2,
        address,
        "the guest finds the address of its page fault in CR2",
        "the exit came before the processor wrote CR2: cpu.guest.cr2 = exit.exception.address",
    )
    code, rip = _frame(cpu, error_code=True)
    lab.equal(
        code,
        _WRITE,
        "the guest's page fault has its error code",
        "cpu.inject takes error_code; without, it is 0",
    )
    _same_instruction(lab, write, rip)


def _same_instruction(lab: Lab, watched: Watched, rip: int) -> None:
    at = [place for reason, place in watched.exits if reason == ExitReason.EXCEPTION_OR_NMI]
    if not at:
        return  # said already
    lab.equal(
        rip,
        at[-1],
        "the guest's handler finds the RIP of the instruction that faulted",
        "no cpu.skip for a fault: the guest's handler decides where to go on",
    )


def _error_codes(lab: Lab, run: _Runner) -> None:
    """#GP with an error code, and #UD without."""
    selector = lab.random.randrange(8, 0x400, 8)
    fault = run(f"exception vector={_GP} error_code={selector}")
    hint = "the exception bitmap has bits 6 and 13, too; inject what exit.exception says"
    if _in_handler(lab, fault, "the guest gets its #GP", hint):
        code, _ = _frame(fault.cpu, error_code=True)
        lab.equal(
            code,
            selector,
            "the guest's #GP has its error code",
            "cpu.inject takes error_code; without, it is 0",
        )
    undefined = run("nop\nud2")
    lab.equal(undefined.count(ExitReason.EXCEPTION_OR_NMI), 1, "#UD exits, once", hint)
    if _in_handler(lab, undefined, "the guest gets its #UD", hint):
        _, rip = _frame(undefined.cpu, error_code=False)
        _same_instruction(lab, undefined, rip)


def _interrupted(lab: Lab, run: _Runner) -> None:
    """Deliveries that EPT violations interrupt: nothing is mapped yet."""
    vector = lab.random.randrange(48, 112)
    selector = lab.random.randrange(8, 0x400, 8)
    events = {
        f"external interrupt {vector}": (f"external_interrupt vector={vector}", None),
        f"INT {vector:#x}": (f"int {vector:#x}", None),
        "#GP": (f"exception vector={_GP} error_code={selector}", selector),
    }
    names = list(events)
    lab.random.shuffle(names)
    for name in names:
        step, code = events[name]
        watched = run(f"nop\n{step}\nnop", mapped=False, vector=vector)
        if not _in_handler(
            lab,
            watched,
            f"{name} arrives, though EPT violations interrupt its delivery",
            "its vector is in the IDT-vectoring information (exit.idt_vectoring): inject it again "
            "after mapping the page",
        ):
            return
        if code is not None:
            got, _ = _frame(watched.cpu, error_code=True)
            lab.equal(
                got,
                code,
                "the event that is injected again has its error code",
                "exit.idt_vectoring.error_code",
            )
        if name.startswith("INT"):
            _behind(lab, watched)


def _behind(lab: Lab, watched: Watched) -> None:
    """Look at the RIP that INT n has pushed: that of the next instruction."""
    at = max(rip for _, rip in watched.exits if rip >> 63 == 0)
    _, rip = _frame(watched.cpu, error_code=False)
    lab.equal(
        rip,
        at + 2,
        "INT n, injected again, pushes the RIP behind it",
        "inject it as what it is, type=exit.idt_vectoring.type, a software interrupt, with "
        "instruction_length=exit.instruction_length: an interrupt from outside pushes RIP as it is",
    )


def _double_faults(lab: Lab, run: _Runner) -> None:
    """Let page faults come while a page fault is delivered, and while #UD is."""
    stack = _NOWHERE + lab.random.randrange(2, 1 << 16) * _PAGE
    twice = run(f"nop\nstore {_NOWHERE:#x} value=1 rsp={stack:#x}")
    cpu = twice.cpu
    hint = (
        "the second page fault has the first in exit.idt_vectoring: then inject #DF, whose "
        "handler has a stack of its own"
    )
    if _in_handler(lab, twice, "a page fault during delivery of a page fault is #DF", hint):
        lab.equal(twice.count(ExitReason.EXCEPTION_OR_NMI), 2, "that takes two exits", hint)
        lab.equal(_frame(cpu, error_code=True)[0], 0, "the error code of #DF is 0")
    serial = run(f"nop\nud2 rsp={stack:#x}")
    lab.equal(
        serial.count(ExitReason.EXCEPTION_OR_NMI),
        3,
        "a page fault during delivery of #UD is delivered, and only the next one is #DF",
        "#UD is benign: it makes no double fault; exits: #UD, page fault, page fault",
    )
