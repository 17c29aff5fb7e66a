"""Interrupts: queue them, and deliver them when the guest can take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtx.course.lab import StudentError
from vtx.facts.controls import Proc1
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["check"]

_IF, _STI, _MOV_SS = 1 << 9, 1, 2
_EXTERNAL_INTERRUPT_TYPE = 0


def check(lab: Lab) -> None:
    """Let interrupts come while the guest cannot take them, and while it can."""
    handle = lab.function("handle", "the handler: handle(cpu, exit, queue)")
    vectors = lab.random.sample(range(0x30, 0x100), 3)
    _closed(lab, handle, vectors)
    _after_sti(lab, handle, vectors[0])
    _open(lab, handle, vectors[1])


class _Desk:
    """Looks at what the student's handler has done, before each VM entry."""

    def __init__(self, lab: Lab, handle: Callable[..., Any], cpu: Cpu) -> None:
        self.lab = lab
        self.handle = handle
        self.cpu = cpu
        self.queue: list[int] = []
        self.arrived: list[int] = []
        self.injected: list[int] = []
        self.windows = 0

    def __call__(self, cpu: Cpu, exit: Exit) -> None:
        info = exit.information
        if info.reason is ExitReason.EXTERNAL_INTERRUPT:
            self.arrived.append(info.interruption_information & 0xFF)
        self.windows += info.reason is ExitReason.INTERRUPT_WINDOW
        self.handle(cpu, exit, self.queue)
        vmcs = cpu.vmcs
        assert vmcs is not None
        word = vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
        if word >> 31:
            self._injection(
                word, vmcs[Field.GUEST_RFLAGS], vmcs[Field.GUEST_INTERRUPTIBILITY_STATE]
            )
        self._window(bool(vmcs.proc1 & Proc1.INTERRUPT_WINDOW_EXITING))

    def _injection(self, word: int, rflags: int, blocking: int) -> None:
        vector = word & 0xFF
        if word >> 8 & 7 != _EXTERNAL_INTERRUPT_TYPE:
            raise StudentError(
                f"you inject vector {vector:#x} with interruption type {word >> 8 & 7}",
                "an external interrupt has type 0; cpu.inject(vector) knows that by itself",
            )
        if not rflags & _IF:
            raise StudentError(
                f"you inject vector {vector:#x} while the guest has RFLAGS.IF = 0, which VM entry "
                "refuses",
                "keep it in the queue until cpu.guest.rflags has bit 9; vtx explain "
                "guest.rflags.if.external_interrupt",
            )
        if blocking & (_STI | _MOV_SS):
            raise StudentError(
                f"you inject vector {vector:#x} while the guest is blocked by "
                f"{'STI' if blocking & _STI else 'MOV SS'}, which VM entry refuses",
                "RFLAGS.IF alone is not enough: look at cpu.guest.interruptibility_state, too",
            )
        self.injected.append(vector)

    def _window(self, on: bool) -> None:
        missing = len(self.arrived) - len(self.injected)
        if missing > 0 and not self.queue:
            raise StudentError(
                f"{missing} interrupt(s) arrived that you have neither injected nor kept in queue",
                "an acknowledged interrupt exists nowhere else any more: queue.append(vector); and "
                "of two cpu.inject before one VM entry only the second counts",
            )
        if missing > 0 and not on:
            raise StudentError(
                "an interrupt waits in your queue, and interrupt-window exiting is off",
                "nothing will tell you when the guest can take it",
            )
        if not missing and on:
            raise StudentError(
                "nothing waits any more, and interrupt-window exiting is still on",
                "the guest would exit before its next instruction, again and again",
            )


def _run(lab: Lab, handle: Callable[..., Any], steps: str) -> _Desk:
    cpu = lab.guest()
    desk = _Desk(lab, handle, cpu)
    lab.run(cpu, steps, desk)
    return desk


def _closed(lab: Lab, handle: Callable[..., Any], vectors: list[int]) -> None:
    """Let interrupts arrive with IF = 0."""
    arrive = "\n".join(f"external_interrupt vector={vector:#x}\nnop" for vector in vectors)
    desk = _run(lab, handle, f"cli\n{arrive}\ncpuid\nsti\nnop\nnop\nhlt")
    lab.equal(
        [hex(vector) for vector in desk.injected],
        [hex(vector) for vector in vectors],
        "interrupts that come while RFLAGS.IF is 0 are delivered later, each once, oldest first",
        "one injection for each VM entry: a second cpu.inject overwrites the first; queue.pop(0) "
        "takes the oldest",
    )
    lab.expect(
        desk.windows == len(vectors),
        "each of them goes in at an interrupt window",
        "after an injection the window closes until the guest's handler has done IRET",
    )


def _after_sti(lab: Lab, handle: Callable[..., Any], vector: int) -> None:
    """Let an interrupt arrive in the shadow of STI."""
    desk = _run(lab, handle, f"cli\nsti\nexternal_interrupt vector={vector:#x}\nnop\nnop\nhlt")
    lab.equal(
        desk.injected,
        [vector],
        "an interrupt right behind STI is delivered one instruction later",
        "after STI the guest has RFLAGS.IF = 1 and is still blocked for one instruction",
    )


def _open(lab: Lab, handle: Callable[..., Any], vector: int) -> None:
    """Let an interrupt arrive while the guest can take it."""
    desk = _run(lab, handle, f"nop\nexternal_interrupt vector={vector:#x}\nnop\ncpuid\nhlt")
    lab.equal(desk.injected, [vector], "an interrupt that the guest can take is delivered")
    lab.expect(
        desk.windows == 0,
        "it goes in at the VM entry that follows, without an exit for an interrupt window",
        "queue it first, then ask whether the guest can take what is queued",
    )
