"""vtx: an Intel VT-x machine in Python.

A model of VMX root and non-root operation over a VMCS, with nested page walks and TLBs in C and
the cost of every VM exit on each CPU profile. The names here are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtx.cpu import Cpu, Machine
    from vtx.errors import (
        AddressError,
        EmulationStopped,
        EndOfTrace,
        GuestFault,
        InputError,
        NotSupported,
        UnhandledExit,
        UnknownName,
        UsageError,
        VMfailInvalid,
        VMfailValid,
        VtxError,
    )
    from vtx.explanation import explain
    from vtx.facts.controls import Entry, Exit1, Exit2, Pin, Proc1, Proc2, Proc3, VmFunction
    from vtx.facts.exits import ExitReason
    from vtx.facts.fields import Field
    from vtx.facts.instruction_errors import InstructionError
    from vtx.facts.msrs import Msr
    from vtx.hypervisor.handlers import Vmm, on
    from vtx.hypervisor.replay import compare, replay
    from vtx.hypervisor.run import Run
    from vtx.hypervisor.trace import Trace, load_trace, program
    from vtx.lab.profile import Profile, load_profile
    from vtx.machine.exit import Exit
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

__version__ = "0.1.0"

_HOMES = {
    "vtx.cpu": ("Cpu", "Machine"),
    "vtx.errors": (
        "AddressError",
        "EmulationStopped",
        "EndOfTrace",
        "GuestFault",
        "InputError",
        "NotSupported",
        "UnhandledExit",
        "UnknownName",
        "UsageError",
        "VMfailInvalid",
        "VMfailValid",
        "VtxError",
    ),
    "vtx.explanation": ("explain",),
    "vtx.facts.controls": (
        "Entry",
        "Exit1",
        "Exit2",
        "Pin",
        "Proc1",
        "Proc2",
        "Proc3",
        "VmFunction",
    ),
    "vtx.facts.exits": ("ExitReason",),
    "vtx.facts.fields": ("Field",),
    "vtx.facts.instruction_errors": ("InstructionError",),
    "vtx.facts.msrs": ("Msr",),
    "vtx.hypervisor.handlers": ("Vmm", "on"),
    "vtx.hypervisor.replay": ("compare", "replay"),
    "vtx.hypervisor.run": ("Run",),
    "vtx.hypervisor.trace": ("Trace", "load_trace", "program"),
    "vtx.lab.profile": ("Profile", "load_profile"),
    "vtx.machine.exit": ("Exit",),
    "vtx.machine.shape": ("Shape",),
    "vtx.machine.vmcs": ("Vmcs",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Load a public name from its home module on first use."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'vtx' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
