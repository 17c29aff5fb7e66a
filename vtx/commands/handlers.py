"""Exit handlers from a Python file of the user's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtx.errors import InputError, VMfail, VtxError

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

    from vtx.hypervisor.handlers import Vmm
    from vtx.hypervisor.vmm import Handler

__all__ = ["blame_handlers", "load_handlers"]

_MODULE = "vtx_user_handlers"


def load_handlers(path: str | None) -> Vmm | None:
    """Return a VMM with the handlers of a Python file, or None without a file.

    The file either defines functions marked with ``@vtx.on``, which take the place of the default
    handlers, or a subclass of :class:`vtx.Vmm`.

    Raises
    ------
    InputError
        The file cannot be read, is no Python, fails, or has no handlers.
    """
    if path is None:
        return None
    from vtx.hypervisor.handlers import Vmm

    module = _execute(path)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Vmm) and value.__module__ == _MODULE
    ]
    try:
        if len(classes) > 1:
            raise InputError(f"the file has {len(classes)} VMMs", hint="keep one of them")
        with blame_handlers(path):
            vmm = classes[0]() if classes else Vmm(module)
    except InputError as error:
        error.message = error.message.replace(_MODULE, "the file")
        raise error.at(path) from None
    for handler in vmm.handlers():
        _check_parameters(handler, path)
    return vmm


def _check_parameters(handler: Handler, path: str) -> None:
    """Refuse a handler of the file that cannot be called with a processor and an exit."""
    import inspect

    code = getattr(handler, "__code__", None)
    if code is None or code.co_filename != path:
        return
    signature = inspect.signature(handler)
    try:
        signature.bind(None, None)
    except TypeError:
        raise InputError(
            f"the handler {code.co_name}{signature} cannot be called with (cpu, exit)",
            file=path,
            line=code.co_firstlineno,
            hint="give it these two parameters",
        ) from None


def _execute(path: str) -> ModuleType:
    """Run the file as a module of its own."""
    import importlib.machinery
    import importlib.util

    if os.path.isdir(path):
        raise InputError("this is a directory, not a Python file", file=path)
    spec = importlib.util.spec_from_file_location(
        _MODULE, path, loader=importlib.machinery.SourceFileLoader(_MODULE, path)
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses and pickling look modules up by name
    try:
        with blame_handlers(path):
            spec.loader.exec_module(module)
    except OSError as error:
        raise InputError(f"cannot read the handlers: {error.strerror}", file=path) from None
    except SyntaxError as error:
        raise InputError(f"not Python: {error.msg}", file=path, line=error.lineno) from None
    except ValueError as error:  # a null character in the file
        raise InputError(f"not Python: {error}", file=path) from None
    return module


@contextmanager
def blame_handlers(path: str | None) -> Iterator[None]:
    """Turn an exception that the file's own code raises into one that names its line.

    Errors of vtx pass as they are, but for a VMX instruction of the file that failed; so does
    everything in which no line of the file had a part.
    """
    try:
        yield
    except VMfail as error:
        line = _line_in(path, error.__traceback__)
        if line is None:
            raise
        raise InputError(f"no VMfail is expected here: {error}", file=path, line=line) from error
    except VtxError:
        raise
    except Exception as error:
        line = _line_in(path, error.__traceback__)
        if line is None:
            raise
        what = f"{type(error).__name__}: {error}"
        raise InputError(what, file=path, line=line) from error
    except SystemExit as leaving:
        line = _line_in(path, leaving.__traceback__)
        if line is None:
            raise
        raise InputError("a file of handlers must not exit", file=path, line=line) from None


def _line_in(path: str | None, trace: TracebackType | None) -> int | None:
    """Return the last line of `path` that a traceback goes through."""
    line = None
    while path is not None and trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
