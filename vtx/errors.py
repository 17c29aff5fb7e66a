"""Everything vtx raises on purpose, as one small tree under :class:`VtxError`.

The library never prints and never exits: a command turns these into one sentence and an
exit code (:data:`InputError.exit_code` and so on).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtx.machine.exit import Exit

__all__ = [
    "EXCEPTIONS",
    "AddressError",
    "EmulationStopped",
    "EndOfTrace",
    "GuestFault",
    "InputError",
    "NotSupported",
    "UnhandledExit",
    "UnknownName",
    "UsageError",
    "VMfail",
    "VMfailInvalid",
    "VMfailValid",
    "VtxError",
    "misspelt",
    "suggest",
]


def suggest(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """Return the candidates that look most like `name`, best first.

    Parameters
    ----------
    name : str
        What was written.
    candidates : iterable of str
        What could have been meant.
    limit : int
        At most so many.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=limit, cutoff=0.6)
    return [by_lower[match] for match in close]


class VtxError(Exception):
    """Base of all errors that vtx raises on purpose."""

    #: Exit code of the command line for this error.
    exit_code = 4

    def at(self, file: str | None, line: int | None = None, column: int | None = None) -> VtxError:
        """Let the sentence begin with a place, and return the error itself."""
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        if place:
            self.args = (f"{place}: {self}",)
        return self


class UsageError(VtxError):
    """A command or a call was used wrongly (wrong option, wrong argument)."""

    exit_code = 2


class InputError(VtxError):
    """A file or a value given by the user is wrong.

    Parameters
    ----------
    message : str
        One sentence that says what is wrong.
    file, line, column : optional
        Where; lines and columns count from 1.
    hint : str, optional
        What to do, or what may have been meant.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def at(
        self, file: str | None, line: int | None = None, column: int | None = None
    ) -> InputError:
        """Fill in the place where it is still unknown, and return the error itself."""
        self.file = self.file if self.file is not None else file
        self.line = self.line if self.line is not None else line
        self.column = self.column if self.column is not None else column
        return self


class UnknownName(InputError):
    """A name that no table of the manual, no profile and no trace key knows.

    Parameters
    ----------
    kind : str
        What was looked for, for the sentence: "VMCS field", "profile", "instruction".
    name : str
        What was written.
    candidates : iterable of str
        All known names; the nearest become the hint.
    """

    def __init__(self, kind: str, name: object, candidates: Iterable[str] = ()) -> None:
        self.kind = kind
        self.name = name
        self.suggestions = suggest(str(name), candidates)
        hint = f"did you mean {' or '.join(self.suggestions)}?" if self.suggestions else None
        super().__init__(f"unknown {kind} {str(name)!r}", hint=hint)


def misspelt(
    kind: str, name: str, candidates: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> AttributeError:
    """Return what to raise for an attribute that an object does not have.

    Parameters
    ----------
    kind : str
        What was looked for: "register".
    name : str
        What was written.
    candidates : iterable of str
        What the object has; names that begin with an underscore are left out.
    elsewhere : mapping, optional
        Names that are to be found in another place, and that place.
    """
    if elsewhere is not None and name in elsewhere:
        return AttributeError(f"unknown {kind} {name!r} (it is {elsewhere[name]})")
    public = [candidate for candidate in candidates if not candidate.startswith("_")]
    return AttributeError(str(UnknownName(kind, name, public)))


class AddressError(InputError):
    """A physical address lies beyond the machine's memory.

    Parameters
    ----------
    address : int
        The first address that was asked for.
    size_bytes : int
        The machine's memory in bytes.
    """

    def __init__(self, address: int, size_bytes: int) -> None:
        self.address = address
        self.size_bytes = size_bytes
        super().__init__(
            f"physical address {address:#x} lies beyond the {size_bytes:#x} bytes of memory",
            hint="give the machine more memory, or correct the address",
        )


class NotSupported(VtxError):
    """The chosen CPU does not have what is asked of it (EPT on Penryn, say)."""

    exit_code = 3


class VMfail(VtxError):
    """A VMX instruction ended in VMfailInvalid or VMfailValid (SDM, "Conventions")."""


class VMfailInvalid(VMfail):
    """VMfailInvalid: RFLAGS.CF is 1; there is no current VMCS to hold an error number."""

    def __init__(self, instruction: str, why: str, hint: str | None = None) -> None:
        self.instruction = instruction
        self.why = why
        self.hint = hint
        super().__init__(f"{instruction}: VMfailInvalid: {why}{f' ({hint})' if hint else ''}")


class VMfailValid(VMfail):
    """VMfailValid(error): RFLAGS.ZF is 1 and the VM-instruction error field holds `error`.

    Attributes
    ----------
    error : int
        VM-instruction error number.
    check : str or None
        Id of the VM-entry check that failed, for errors 7 and 8.
    hint : str or None
        What to do.
    """

    def __init__(
        self,
        instruction: str,
        error: int,
        why: str,
        check: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.instruction = instruction
        self.error = int(error)
        self.why = why
        self.check = check
        self.hint = hint
        named = f" [{check}]" if check else ""
        helps = f" ({hint})" if hint else ""
        super().__init__(f"{instruction}: VMfailValid({self.error}): {why}{named}{helps}")


#: Mnemonics of vectors 0 to 31 (SDM, "Exception and Interrupt Reference"); 2 is no exception but
#: has its place in the IDT.
EXCEPTIONS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip


class GuestFault(VtxError):
    """An instruction raised an exception on the logical processor (#UD, #GP, #PF ...).

    Attributes
    ----------
    vector : int
        Exception vector, 0 to 31.
    error_code : int or None
        The error code it pushes, if any.
    address : int or None
        The linear address of a page fault (what CR2 gets).
    """

    def __init__(
        self, vector: int, error_code: int | None = None, why: str = "", address: int | None = None
    ) -> None:
        self.vector = vector
        self.error_code = error_code
        self.why = why
        self.address = address
        name = EXCEPTIONS.get(vector, f"vector {vector}")
        code = "" if error_code is None else f"({error_code:#x})" if error_code else "(0)"
        super().__init__(f"{name}{code}{': ' + why if why else ''}")


class EmulationStopped(VtxError):
    """The machine cannot go on: VMX abort, shutdown in root operation, no progress."""


class EndOfTrace(EmulationStopped):
    """The guest program has no further step, and nothing made it exit."""


class UnhandledExit(EmulationStopped):
    """A VM exit reached a VMM that has no handler for its reason."""

    def __init__(self, exit: Exit) -> None:
        self.exit = exit
        super().__init__(exit.explain())
