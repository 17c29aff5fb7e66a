"""A VM exit as a VMM sees it: what the VMCS says, read field by field when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from vtx.errors import UsageError
from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.fields import FIELDS, Field
from vtx.machine.exit_details import Details, exit_layouts
from vtx.machine.exit_views import (
    ApicAccess,
    CrAccess,
    DrAccess,
    EptAccess,
    EventInformation,
    IoAccess,
    MsrAccess,
    TaskSwitch,
)

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor

__all__ = ["Exit"]

_REASONS: dict[int, ExitReason] = {int(reason): reason for reason in ExitReason}
# The fields under names that need no look-up in a class.
_EXIT_QUALIFICATION = Field.EXIT_QUALIFICATION
_EXIT_REASON = Field.EXIT_REASON
_GUEST_LINEAR_ADDRESS = Field.GUEST_LINEAR_ADDRESS
_GUEST_PHYSICAL_ADDRESS = Field.GUEST_PHYSICAL_ADDRESS
_GUEST_RIP = Field.GUEST_RIP
_IDT_VECTORING_ERROR_CODE = Field.IDT_VECTORING_ERROR_CODE
_IDT_VECTORING_INFORMATION = Field.IDT_VECTORING_INFORMATION
_VM_EXIT_INSTRUCTION_INFORMATION = Field.VM_EXIT_INSTRUCTION_INFORMATION
_VM_EXIT_INSTRUCTION_LENGTH = Field.VM_EXIT_INSTRUCTION_LENGTH
_VM_EXIT_INTERRUPTION_ERROR_CODE = Field.VM_EXIT_INTERRUPTION_ERROR_CODE
_VM_EXIT_INTERRUPTION_INFORMATION = Field.VM_EXIT_INTERRUPTION_INFORMATION
_ENTRY_FAILURE = 1 << 31
_TYPE_NMI = 2
_PAGE_FAULT = 14
_ARTICLE_EXITS = frozenset({ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIGURATION})


def _is_over(field: int = _EXIT_REASON) -> NoReturn:
    """Stand in for VMREAD once the VMCS holds a later exit."""
    raise UsageError(
        f"this exit is over: the VMCS holds a later one, and {FIELDS[Field(field)].name} was not "
        "read before; read what you need of an exit before the next vmlaunch or vmresume"
    )


class Exit:
    """A VM exit, or a VM entry that failed after it had begun to load guest state.

    Every property reads its VMCS field by VMREAD when it is first used, and the VMREAD is counted:
    what a handler does not ask for costs nothing. :meth:`explain` counts nothing. The next VM exit
    of the processor overwrites the fields: what was not read before then cannot be read any more
    (:class:`~vtx.errors.UsageError`).

    Parameters
    ----------
    processor : Processor
        Where it happened.
    information : ExitInformation
        What the exit recorded.
    vmread : callable
        ``vmread(field)``: VMREAD on that processor.

    Attributes
    ----------
    processor : Processor
    information : ExitInformation
    """

    __slots__ = ("_seen", "_vmread", "information", "processor")

    def __init__(
        self, processor: Processor, information: ExitInformation, vmread: Callable[[int], int]
    ) -> None:
        self.processor = processor
        self.information = information
        self._vmread = vmread
        self._seen: dict[int, int] = {}
        before = processor.last_exit
        if before is not None:
            before._vmread = _is_over
        processor.last_exit = self

    def read(self, field: int) -> int:
        """Return a VMCS field: by a counted VMREAD the first time, from memory after that."""
        value = self._seen.get(field)
        if value is None:
            value = self._seen[field] = self._vmread(field)
        return value

    def __repr__(self) -> str:
        return f"<Exit {self.explain()}>"

    # The VM-exit information fields. Those that every handler asks for do what `read` does
    # themselves: a handler's time is mostly theirs.

    @property
    def reason(self) -> ExitReason:
        """Basic exit reason (bits 15:0 of the exit reason)."""
        seen = self._seen
        if _EXIT_REASON in seen:
            return _REASONS[seen[_EXIT_REASON] & 0xFFFF]
        value = seen[_EXIT_REASON] = self._vmread(_EXIT_REASON)
        return _REASONS[value & 0xFFFF]

    @property
    def entry_failure(self) -> bool:
        """Whether this is a failed VM entry (bit 31 of the exit reason)."""
        return bool(self.read(_EXIT_REASON) & _ENTRY_FAILURE)

    @property
    def check(self) -> str | None:
        """Id of the rule that a failed VM entry broke, which no field of a VMCS tells."""
        return self.information.check

    @property
    def qualification(self) -> int:
        """Exit qualification."""
        return self.read(_EXIT_QUALIFICATION)

    @property
    def guest_linear_address(self) -> int:
        """Guest-linear address."""
        return self.read(_GUEST_LINEAR_ADDRESS)

    @property
    def guest_physical_address(self) -> int:
        """Guest-physical address."""
        return self.read(_GUEST_PHYSICAL_ADDRESS)

    @property
    def instruction_length(self) -> int:
        """VM-exit instruction length, in bytes."""
        seen = self._seen
        if _VM_EXIT_INSTRUCTION_LENGTH in seen:
            return seen[_VM_EXIT_INSTRUCTION_LENGTH]
        value = seen[_VM_EXIT_INSTRUCTION_LENGTH] = self._vmread(_VM_EXIT_INSTRUCTION_LENGTH)
        return value

    @property
    def instruction_information(self) -> int:
        """VM-exit instruction information."""
        return self.read(_VM_EXIT_INSTRUCTION_INFORMATION)

    @property
    def interruption_information(self) -> int:
        """VM-exit interruption information."""
        return self.read(_VM_EXIT_INTERRUPTION_INFORMATION)

    @property
    def interruption_error_code(self) -> int:
        """VM-exit interruption error code."""
        return self.read(_VM_EXIT_INTERRUPTION_ERROR_CODE)

    @property
    def idt_vectoring_information(self) -> int:
        """IDT-vectoring information."""
        return self.read(_IDT_VECTORING_INFORMATION)

    @property
    def idt_vectoring_error_code(self) -> int:
        """IDT-vectoring error code."""
        return self.read(_IDT_VECTORING_ERROR_CODE)

    @property
    def rip(self) -> int:
        """Guest RIP."""
        seen = self._seen
        if _GUEST_RIP in seen:
            return seen[_GUEST_RIP]
        value = seen[_GUEST_RIP] = self._vmread(_GUEST_RIP)
        return value

    # Views: what they mean, for the exits that have them.

    def _only_for(self, view: str, *reasons: ExitReason) -> None:
        reason = self.reason
        if reason not in reasons:
            raise UsageError(f"a VM exit with reason {reason} ({reason.name}) has no {view}")

    @property
    def io(self) -> IoAccess:
        """The I/O instruction.

        Raises
        ------
        UsageError
            The exit has another reason; so do the other views.
        """
        self._only_for("I/O access", ExitReason.IO_INSTRUCTION)
        return IoAccess.decode(self.qualification)

    @property
    def cr(self) -> CrAccess:
        """The control-register access."""
        self._only_for("control-register access", ExitReason.CONTROL_REGISTER_ACCESS)
        return CrAccess.decode(self.qualification)

    @property
    def dr(self) -> DrAccess:
        """The debug-register access."""
        self._only_for("debug-register access", ExitReason.MOV_DR)
        return DrAccess.decode(self.qualification)

    @property
    def msr(self) -> MsrAccess:
        """The MSR that RDMSR or WRMSR accesses: from RCX, RDX and RAX."""
        self._only_for("MSR access", ExitReason.RDMSR, ExitReason.WRMSR)
        if self._vmread is _is_over:
            _is_over()
        regs = self.processor.regs
        value = (regs.rdx & 0xFFFF_FFFF) << 32 | regs.rax & 0xFFFF_FFFF
        is_write = self.reason is ExitReason.WRMSR
        return MsrAccess(regs.rcx & 0xFFFF_FFFF, is_write, value if is_write else 0)

    @property
    def ept(self) -> EptAccess:
        """The EPT violation or misconfiguration."""
        self._only_for("EPT access", ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIGURATION)
        if self.reason is ExitReason.EPT_MISCONFIGURATION:
            return EptAccess.decode(0, self.guest_physical_address, 0)
        gla = self.guest_linear_address if self.qualification & 0x80 else 0
        return EptAccess.decode(self.qualification, self.guest_physical_address, gla)

    @property
    def exception(self) -> EventInformation:
        """The exception or NMI, or the acknowledged external interrupt.

        Raises
        ------
        UsageError
            The exit has another reason, or the interrupt was not acknowledged.
        """
        self._only_for("event", ExitReason.EXCEPTION_OR_NMI, ExitReason.EXTERNAL_INTERRUPT)
        information = self.interruption_information
        code = self.interruption_error_code if information >> 11 & 1 else 0
        event = EventInformation.decode(information, code)
        if event is None:
            raise UsageError("the external interrupt was not acknowledged: it has no vector yet")
        if event.vector == _PAGE_FAULT and event.type == 3:
            return event._replace(address=self.qualification)
        return event

    @property
    def idt_vectoring(self) -> EventInformation | None:
        """The event whose delivery the exit interrupted, if any."""
        information = self.idt_vectoring_information
        code = self.idt_vectoring_error_code if information >> 11 & 1 else 0
        return EventInformation.decode(information, code)

    @property
    def task_switch(self) -> TaskSwitch:
        """The task switch."""
        self._only_for("task switch", ExitReason.TASK_SWITCH)
        return TaskSwitch.decode(self.qualification)

    @property
    def apic_access(self) -> ApicAccess:
        """The access to the APIC-access page."""
        self._only_for("APIC access", ExitReason.APIC_ACCESS)
        return ApicAccess.decode(self.qualification)

    @property
    def details(self) -> Details:
        """Everything that the exit qualification and the instruction information say, by name.

        The names are those of `vtx explain exit REASON`: ``exit.details.port``.
        """
        reason = self.reason
        vector = None
        nmi = False
        if reason is ExitReason.EXCEPTION_OR_NMI:
            event = EventInformation.decode(self.interruption_information, 0)
            vector = event.vector if event else None
            nmi = event is not None and event.type == _TYPE_NMI
        layouts = exit_layouts(reason, vector, nmi=nmi)
        words = (self.qualification, self.instruction_information if layouts[1] else 0)
        return Details(
            (layout, word)
            for layout, word in zip(layouts, words, strict=True)
            if layout is not None
        )

    # For people.

    def explain(self) -> str:
        """Say in one sentence what happened; no VMREAD is made or counted for it."""
        info = self.information
        row = EXITS[info.reason]
        what = row.meaning
        if info.exit_reason_bits & _ENTRY_FAILURE:
            check = f" (check {info.check})" if info.check else ""
            rule = f". {info.rule}" if info.rule else ""
            return (
                f"VM entry failed with exit reason {int(info.reason)}, {row.sdm_title}, "
                f"exit qualification {info.qualification:#x}{check}{rule}"
            )
        details = [f"at RIP {info.guest_rip:#x}"]
        if info.qualification:
            details.append(f"exit qualification {info.qualification:#x}{self._decoded()}")
        if info.reason in _ARTICLE_EXITS:
            details.append(f"guest-physical address {info.guest_physical_address:#x}")
        if info.interruption_information >> 31 & 1:
            details.append(f"event {_event(info.interruption_information)}")
        if info.idt_vectoring_information >> 31 & 1:
            details.append(f"during delivery of {_event(info.idt_vectoring_information)}")
        return f"VM exit {int(info.reason)} ({row.sdm_title}): {what}; {', '.join(details)}"

    def _repr_html_(self) -> str:
        """Return what the exit recorded as notebooks show it; no VMREAD is made or counted."""
        from vtx.facts.layout import UNNAMED, decode
        from vtx.machine.html_table import html_table

        info = self.information
        rows = [
            ["exit reason", str(int(info.reason)), EXITS[info.reason].sdm_title],
            ["exit qualification", f"{info.qualification:#x}", ""],
        ]
        event = EventInformation.decode(info.interruption_information, 0)
        vector, nmi = (event.vector, event.type == _TYPE_NMI) if event else (None, False)
        words = (info.qualification, info.instruction_information)
        for layout, word in zip(exit_layouts(info.reason, vector, nmi=nmi), words, strict=True):
            for part in decode(layout, word) if layout else ():
                if part.range.name not in UNNAMED:
                    rows.append([f"  {part.range.name}", f"{part.value:#x}", part.means])
        for name in ("guest_rip", "guest_linear_address", "guest_physical_address"):
            rows.append([name.replace("_", " "), f"{getattr(info, name):#x}", ""])
        rows.append(["instruction length", f"{info.instruction_length}", "bytes"])
        return html_table(self.explain(), ["", "value", "meaning"], rows, figures=[1])

    def _decoded(self) -> str:
        """Return the qualification's nonzero parts in brackets."""
        from vtx.facts.layout import UNNAMED, decode
        from vtx.facts.qualifications import qualification_layout

        info = self.information
        event = EventInformation.decode(info.interruption_information, 0)
        vector = event.vector if event else None
        nmi = event is not None and event.type == _TYPE_NMI
        layout = qualification_layout(info.reason, vector, nmi=nmi)
        if layout is None:
            return ""
        named = [part for part in decode(layout, info.qualification) if part.value]
        texts = [
            part.range.name
            if part.range.high == part.range.low
            else f"{part.range.name} {part.value:#x}"
            for part in named
            if part.range.name not in UNNAMED
        ]
        return f" ({', '.join(texts)})" if texts else ""


_EVENT_TYPES = {
    0: "external interrupt",
    2: "NMI",
    3: "exception",
    4: "software interrupt",
    5: "privileged software exception",
    6: "software exception",
    7: "other event",
}


def _event(information: int) -> str:
    """Return an interruption-information field in words."""
    kind = information >> 8 & 7
    return f"{_EVENT_TYPES.get(kind, f'type {kind}')} {information & 0xFF}"
