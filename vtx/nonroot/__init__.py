"""VMX non-root operation: the guest's program runs until it causes a VM exit.

The program says *what* the guest executes, RIP says *where*; :class:`~vtx.machine.program.Cursor`
ties them (:mod:`vtx.nonroot.position`). Steps of a listing go one by one, records of a stream in
windows through the C core (:mod:`vtx.nonroot.loop`). Events that are delivered to the guest enter
its kernel (:mod:`vtx.nonroot.kernel`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.errors import EndOfTrace
from vtx.facts.exits import ExitReason
from vtx.machine.exit_information import ExitInformation
from vtx.nonroot.loop import Guest
from vtx.nonroot.observed import ObservedGuest

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["run"]


def run(processor: Processor, *, entered: bool = True) -> ExitInformation:
    """Execute the guest's program from RIP until a VM exit.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation; `cursors` holds the program.
    entered : bool
        A VM entry has just been made; False to go on where :class:`EndOfTrace` left the guest.

    Returns
    -------
    ExitInformation
        The VM exit, for :func:`vtx.rules.transitions.vm_exit`.

    Raises
    ------
    EndOfTrace
        The program has no further step.
    EmulationStopped
        The guest cannot go on: RIP is where the program has no step, or nothing can wake it.
    """
    if not processor.cursors:
        raise EndOfTrace("the guest has no program to execute")
    guest = Guest(processor) if processor.observer is None else ObservedGuest(processor)
    exits = guest.enter(entered=entered)
    if exits is None:
        exits = guest.go()
    if exits.reason != ExitReason.MONITOR_TRAP_FLAG:
        # An exit before the boundary at which it would be taken cancels a pending MTF exit.
        processor.pending.mtf = False
    return exits
