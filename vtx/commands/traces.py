"""What the commands that run traces have in common."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vtx.errors import InputError

if TYPE_CHECKING:
    from vtx.hypervisor.trace import Trace

__all__ = ["DEFAULT_PROFILE", "MOST_BYTES", "add_trace_arguments", "parse_bytes", "read_trace"]

#: The CPU on which a trace runs if neither the command nor the trace names one.
DEFAULT_PROFILE = "skylake_sp"
MOST_BYTES = 64 << 20


def add_trace_arguments(parser: argparse.ArgumentParser) -> None:
    """Add TRACE and ``--handlers``."""
    parser.add_argument("trace", metavar="TRACE", help="trace file in YAML; - is standard input")
    parser.add_argument(
        "--handlers", metavar="FILE.py", help="Python file with exit handlers (@vtx.on) of your own"
    )


def read_trace(name: str) -> Trace:
    """Read the trace that a command names."""
    from vtx.hypervisor.trace import load_trace

    if not name:
        raise InputError("the name of the trace file is empty", hint="- is standard input")
    if name != "-":
        return load_trace(name)
    if sys.stdin is None:
        raise InputError("standard input is closed")
    return parse_bytes(sys.stdin.buffer.read(MOST_BYTES + 1))


def parse_bytes(data: bytes) -> Trace:
    """Read the trace that came through standard input."""
    from vtx.hypervisor.trace import parse_trace

    if len(data) > MOST_BYTES:
        raise InputError("the trace is too long", file="<stdin>")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("the trace is not UTF-8 text", file="<stdin>", line=line) from None
    return parse_trace(text, "<stdin>")
