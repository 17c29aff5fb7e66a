"""A guest whose every step is shown to an observer before it is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.nonroot.loop import Guest

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.program import Cursor, Instruction, Stream

__all__ = ["ObservedGuest"]


class ObservedGuest(Guest):
    """Calls :attr:`.Processor.observer` before steps, arrivals of events, and streams."""

    def _show(self) -> None:
        observer = self.processor.observer
        if observer is not None:
            observer(self.processor)

    def _arrive(self, cursor: Cursor, event: Instruction) -> ExitInformation | None:
        self._show()
        return super()._arrive(cursor, event)

    def _step(self, cursor: Cursor, instruction: Instruction) -> ExitInformation | None:
        self._show()
        return super()._step(cursor, instruction)

    def _run_stream(self, cursor: Cursor, stream: Stream) -> ExitInformation | None:
        self._show()
        return super()._run_stream(cursor, stream)
