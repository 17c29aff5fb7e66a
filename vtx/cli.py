"""The command ``vtx``: one parser over the commands, and one place where errors become codes.

Standard output carries the result and nothing else; diagnostics are one sentence on standard
error. Exit codes: 0 fine; 1 it ran and an expectation failed; 2 wrong usage; 3 wrong input;
4 the emulation stopped, or vtx itself failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import vtx
from vtx.commands import COMMANDS
from vtx.errors import UsageError, VtxError

__all__ = ["main"]

_FAILED = 4
_INTERRUPTED = 130
#: What a shell reports for a command that a closed pipe has ended (128 + SIGPIPE).
_PIPE_CLOSED = 141


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one sentence, as all other errors are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="vtx",
        description="Run VT-x traces, and price their VM exits for every CPU profile.",
        epilog="'vtx COMMAND --help' describes a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vtx {vtx.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        summary, _, details = (command.__doc__ or "").partition("\n\n")
        sub = commands.add_parser(
            command.name,
            aliases=command.aliases,
            help=summary,
            description=f"{summary}\n\n{_dedent(details)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        instance = command()
        instance.arguments(sub)
        sub.set_defaults(run=instance.run)
    return parser


def _dedent(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    """
    # A file name need not be text; printing one must not fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(argv)
        if sys.stdout is not None:  # it is None if the caller has closed it
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return _PIPE_CLOSED
    except VtxError as error:
        _show_traceback()
        _complain(str(error))
        return error.exit_code
    except Exception as error:  # the boundary: no traceback reaches a user
        _show_traceback()
        _abandon_stdout()
        _complain(f"{_unexpected(error)} (VTX_DEBUG=1 shows where)")
        return _FAILED


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as leaving:  # --help and --version have printed
        return int(leaving.code or 0)
    code: int = arguments.run(arguments)
    return code


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror or error}"
    return f"unexpected {type(error).__name__}: {error}"


def _show_traceback() -> None:
    if os.environ.get("VTX_DEBUG") == "1":
        import traceback

        traceback.print_exc()


def _complain(message: str) -> None:
    """Print one sentence on standard error."""
    from vtx.lab.table import printable

    try:
        print(f"vtx: {printable(' '.join(message.split()))}", file=sys.stderr, flush=True)
    except OSError:
        # Nobody listens on standard error either; the exit code still tells.
        return


def _abandon_stdout() -> None:
    """Let nothing be written to standard output any more, not even when Python ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (AttributeError, OSError, ValueError):
        # Standard output is closed, or is no file: there is nothing to keep quiet.
        return
