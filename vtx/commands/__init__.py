"""The commands of ``vtx``, one class each; the docstring of the class is the command's help."""

from __future__ import annotations

from vtx.commands.base import Command
from vtx.commands.bench import Bench
from vtx.commands.check import Check
from vtx.commands.compare import Compare
from vtx.commands.exits import Exits
from vtx.commands.explain import Explain
from vtx.commands.imports import Import
from vtx.commands.lab import Lab
from vtx.commands.profiles import Profiles
from vtx.commands.replay import Replay
from vtx.commands.step import Step
from vtx.commands.sweep import Sweep
from vtx.commands.tlb import Tlb
from vtx.commands.verify import Verify
from vtx.commands.walk import Walk2D

__all__ = ["COMMANDS", "Command"]

#: In the order in which help lists them.
COMMANDS: tuple[type[Command], ...] = (
    Replay,
    Compare,
    Step,
    Sweep,
    Exits,
    Import,
    Tlb,
    Walk2D,
    Check,
    Verify,
    Profiles,
    Explain,
    Lab,
    Bench,
)
