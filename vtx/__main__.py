"""``python -m vtx`` is the command ``vtx``.

An interrupt may come while the command is still being imported; then, too, it ends with one
sentence.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["hush", "main"]

_INTERRUPTED = 130


def hush() -> None:
    """Let an interrupt end the program at once and without a traceback, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: object) -> None:
    try:
        os.write(2, b"vtx: interrupted\n")
    finally:
        os._exit(_INTERRUPTED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    hush()
    from vtx.cli import main as run

    if signal.getsignal(signal.SIGINT) == _leave:
        # From here on an interrupt is an exception, so that files are closed and moved in place.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = run(argv)
    except KeyboardInterrupt:
        code = _INTERRUPTED  # it came just before or behind the place that handles it
    hush()
    return code


if __name__ == "__main__":
    sys.exit(main())
