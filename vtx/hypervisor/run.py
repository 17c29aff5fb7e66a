"""What a run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vtx.facts.exits import ExitReason
from vtx.machine.events import GUEST, Event, EventLog, ExitRecord

if TYPE_CHECKING:
    from vtx.facts.fields import Field
    from vtx.hypervisor.expectations import Result
    from vtx.hypervisor.trace import Trace
    from vtx.hypervisor.vmm import VmmLoop
    from vtx.machine.shape import Shape

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A finished replay: what happened, counted; prices are the lab's.

    Parameters
    ----------
    trace : Trace
        What was run.
    shape : Shape
        The CPU it ran on.
    outcome : str
        How it ended: one of :data:`vtx.hypervisor.expectations.OUTCOMES`.
    message : str
        Why, where the guest did not simply end.
    check : str
        Id of the VM-entry check that failed, if that is how it ended.
    events : EventLog
        Events by exit reason, and the last exits one by one.
    translation : mapping of str to int
        Counters of the translation units, all logical processors together.
    registers : mapping of str to int
        Of the guest on logical processor 0, at the end.
    vmcs : mapping of Field to int
        The VMCS of logical processor 0, at the end.
    console : str
        What the guest wrote to the serial port.
    steps : int
        Instructions and references that the guest executed, all logical processors together.
    references : int
        References of its stream.
    results : tuple of Result
        The trace's expectations beside what happened.
    vmm : VmmLoop or None
        The VMM, if it was not the default one.
    """

    trace: Trace
    shape: Shape
    outcome: str
    message: str
    check: str
    events: EventLog
    translation: Mapping[str, int]
    registers: Mapping[str, int]
    vmcs: Mapping[Field, int]
    console: str
    steps: int
    references: int
    results: tuple[Result, ...] = ()
    vmm: VmmLoop | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the trace."""
        return self.trace.name

    @property
    def file(self) -> str:
        """File of the trace."""
        return self.trace.file

    @property
    def exits(self) -> Mapping[ExitReason, int]:
        """VM exits by reason, most frequent first; failed VM entries are among them."""
        counts = {
            ExitReason(reason): row[Event.VM_EXIT] + row[Event.ENTRY_FAILURE]
            for reason, row in self.events.counts.items()
            if reason != GUEST and (row[Event.VM_EXIT] or row[Event.ENTRY_FAILURE])
        }
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def total_exits(self) -> int:
        """All VM exits."""
        return sum(self.exits.values())

    @property
    def holds(self) -> bool:
        """Whether all that the trace expects came true."""
        return all(result.holds for result in self.results)

    def to_pandas(self) -> Any:
        """Return one row for each of the latest VM exits.

        Returns
        -------
        pandas.DataFrame
            What :class:`~vtx.machine.events.ExitRecord` says, and the reason's name; `step` in
            guest steps since the start.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        from vtx.lab.frames import frame
        from vtx.lab.ledger import reason_name

        rows = ({**one._asdict(), "name": reason_name(one.reason)} for one in self.events.exits)
        return frame(rows, [*ExitRecord._fields, "name"])

    def _repr_html_(self) -> str:
        """Return the exits by reason as notebooks show them."""
        from vtx.lab.ledger import reason_name
        from vtx.machine.html_table import html_table

        rows = [[reason_name(reason), f"{count:,}"] for reason, count in self.exits.items()]
        rows.append(["total", f"{self.total_exits:,}"])
        title = f"{self.name} on {self.shape.name}: {self.outcome}, {self.steps:,} steps"
        failed = [f"line {r.line}: {r}" for r in self.results if not r.holds]
        remarks = [text for text in (self.message, *failed) if text]
        return html_table(title, ["exit reason", "exits"], rows, figures=[1], remarks=remarks)

    def __repr__(self) -> str:
        return (
            f"<Run of {self.name} on {self.shape.name}: {self.outcome}, {self.total_exits} exits>"
        )
