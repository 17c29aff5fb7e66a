"""Where a run is to stop: at an exit reason, at an address, at a line of the trace."""

from __future__ import annotations

from dataclasses import dataclass

from vtx.errors import InputError, UnknownName
from vtx.facts.exits import ExitReason, find_exit_reason
from vtx.facts.lookup import as_number
from vtx.hypervisor.recording import Frame, Kind

__all__ = ["Breakpoint", "parse_breakpoint"]

_PAGE = 0xFFF


@dataclass(frozen=True)
class Breakpoint:
    """One condition.

    Attributes
    ----------
    text : str
        As it was written.
    reason : ExitReason or None
        Stop at VM exits with this reason.
    address : int or None
        Stop where RIP is this, or where a step or exit is about this linear address.
    line : int or None
        Stop at this line of the trace.
    """

    text: str
    reason: ExitReason | None = None
    address: int | None = None
    line: int | None = None

    def hits(self, frame: Frame) -> bool:
        """Tell whether a run stops at a frame."""
        if self.reason is not None:
            return frame.kind is Kind.EXIT and frame.reason == self.reason
        if frame.kind is Kind.ENTRY:
            return False
        if self.line is not None:
            return frame.kind is Kind.STEP and frame.line == self.line
        return self.address in (frame.registers["rip"], frame.address)


def parse_breakpoint(text: str) -> Breakpoint:
    """Read a breakpoint: an exit reason by name or ``exit 48``, an address, or ``line 12``.

    Raises
    ------
    InputError
        It is none of them.
    """
    words = text.strip().split()
    if len(words) == 2 and words[0].lower() == "line":
        number = as_number(words[1])
        if number is not None:
            return Breakpoint(text, line=number)
    if len(words) == 2 and words[0].lower() in ("exit", "reason"):
        return Breakpoint(text, reason=find_exit_reason(words[1]).reason)
    if len(words) == 1:
        number = as_number(words[0])
        if number is not None:
            return Breakpoint(text, address=number)
    try:
        return Breakpoint(text, reason=find_exit_reason(text).reason)
    except UnknownName as unknown:
        raise InputError(
            f"{text!r} is no exit reason, address or line",
            hint=(
                f"did you mean {unknown.suggestions[0]}?"
                if unknown.suggestions
                else "cpuid, exit 48, 0x200000 or line 12"
            ),
        ) from None
