"""What all commands have in common.

Modules of commands import at their top only what help needs, so that ``vtx --help`` is quick.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["FAILED", "FINE", "STOPPED", "Command"]

FINE, FAILED, STOPPED = 0, 1, 4


class Command(ABC):
    """One command; subclasses' docstrings are shown to users."""

    #: What is typed after ``vtx``.
    name: ClassVar[str]
    #: What may be typed instead.
    aliases: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    @abstractmethod
    def run(self, args: argparse.Namespace) -> int:
        """Do the work and return the exit code."""
