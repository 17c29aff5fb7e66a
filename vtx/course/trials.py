"""One instruction on the bench: what it sees of the machine's state, what it changes, if it traps.

For the lesson on Popek and Goldberg's theorem: an instruction is *privileged* if it traps outside
the most privileged level, and *sensitive* if it shows or changes what belongs to the machine and
not to the program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vtx.errors import UsageError
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field

if TYPE_CHECKING:
    from vtx.cpu import Cpu

__all__ = ["State", "Trial", "bench"]

#: Ice Lake and later have CR4.UMIP.
_PROFILE = "ice_lake_sp"
_IF, _RESERVED = 1 << 9, 1 << 1
_TS, _UMIP = 1 << 3, 1 << 11
_OPERAND, _OPERAND_BYTES = 0x7000, 16
_FAULTS = ("#UD", "#GP")
_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_FLAGS = 0xCD5  # CF, PF, AF, ZF, SF, DF, OF: those that belong to a program
_SYSTEM = (
    Field.GUEST_CR0, Field.GUEST_CR3, Field.GUEST_CR4, Field.GUEST_GDTR_BASE,
    Field.GUEST_GDTR_LIMIT, Field.GUEST_IDTR_BASE, Field.GUEST_IDTR_LIMIT,
    Field.GUEST_LDTR_SELECTOR, Field.GUEST_TR_SELECTOR, Field.GUEST_DR7,
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """What of the machine's state a trial begins with; all of it belongs to an operating system.

    Attributes
    ----------
    cpl : int
        Privilege level, 0 or 3.
    interrupts : bool
        RFLAGS.IF.
    gdt_limit, idt_limit : int
        Limits of GDTR and IDTR.
    ldt, task : int
        Selectors in LDTR and TR.
    task_switched : bool
        CR0.TS.
    umip : bool
        CR4.UMIP: user-mode instruction prevention.
    """

    cpl: int = 3
    interrupts: bool = True
    gdt_limit: int = 0xFFF
    idt_limit: int = 0xFFF
    ldt: int = 0
    task: int = 0x28
    task_switched: bool = False
    umip: bool = False


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes
    ----------
    trapped : bool
        It ended in #GP or #UD: with the guest's kernel at CPL 3, a VMM would get control.
    seen : bytes
        Registers, flags, stack and operand afterwards: what the program can see.
    changed : bool
        The machine's state is another one than before.
    exit : str
        The VM exit that the instruction caused, if any, by name.
    """

    trapped: bool
    seen: bytes
    changed: bool
    exit: str


def bench(
    instruction: str, state: State | None = None, *, watch: bool = False, **changes: Any
) -> Trial:
    """Execute one instruction in a guest, and say what came of it.

    Parameters
    ----------
    instruction : str
        As a listing names it.
    state : State, optional
        Where it begins.
    watch : bool
        Let the VMM see what it can of descriptor tables and CR0, as VT-x allows.
    **changes
        Attributes of the state that differ: ``bench("sgdt [0x7000]", cpl=0)``.

    Raises
    ------
    UsageError
        VM entry refuses the state.
    """
    from vtx.cpu import Cpu
    from vtx.hypervisor.trace import program
    from vtx.machine.vmcs import Vmcs

    state = replace(state or State(), **changes)
    with Cpu(_PROFILE) as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape, user=state.cpl > 0))
        cpu.ept.map(0, size="1G")
        cpu.exiting.exceptions = set(_FAULTS)
        _prepare(cpu, state)
        if watch:
            _watch(cpu)
        before = _system(cpu)
        exit = cpu.vmlaunch(program(f"{instruction}\nvmcall"))
        if exit.entry_failure:
            raise UsageError(f"no machine can be in this state: {exit.explain()}")
        reason = exit.information.reason
        fault = reason is ExitReason.EXCEPTION_OR_NMI
        done = fault or reason is ExitReason.VMCALL
        return Trial(fault, _seen(cpu), _system(cpu) != before, "" if done else reason.name)


def _prepare(cpu: Cpu, state: State) -> None:
    """Write a state into the VMCS."""
    cpu.guest.rflags = _RESERVED | _IF * state.interrupts
    cpu.vmwrite(Field.GUEST_GDTR_LIMIT, state.gdt_limit)
    cpu.vmwrite(Field.GUEST_IDTR_LIMIT, state.idt_limit)
    cpu.vmwrite(Field.GUEST_LDTR_SELECTOR, state.ldt)
    cpu.vmwrite(Field.GUEST_TR_SELECTOR, state.task)
    cpu.guest.cr0 |= _TS * state.task_switched
    cpu.guest.cr4 |= _UMIP * state.umip
    controls = cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS)
    unwatched = controls & ~Proc1.UNCONDITIONAL_IO_EXITING
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, unwatched)
    cpu.exiting.msr_reads = set()
    cpu.exiting.msr_writes = set()


def _watch(cpu: Cpu) -> None:
    """Let exit what shows or changes descriptor-table registers and CR0.TS."""
    field = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
    cpu.vmwrite(field, cpu.vmread(field) | Proc2.DESCRIPTOR_TABLE_EXITING)
    cpu.vmwrite(Field.CR0_GUEST_HOST_MASK, _TS)
    cpu.vmwrite(Field.CR0_READ_SHADOW, 0)


def _seen(cpu: Cpu) -> bytes:
    """Return what a program can see: registers, its flags, the top of its stack, its operand."""
    guest = cpu.guest
    words = [getattr(guest, name) for name in _REGISTERS] + [guest.rflags & _FLAGS]
    stack = guest.linear.read(guest.rsp - 8, 16)
    operand = guest.memory.read(_OPERAND, _OPERAND_BYTES)
    return b"".join(word.to_bytes(8, "little") for word in words) + stack + operand


def _system(cpu: Cpu) -> tuple[int, ...]:
    """Return the machine's state that belongs to no program."""
    return (cpu.guest.rflags & _IF, *(cpu.vmread(field) for field in _SYSTEM))
