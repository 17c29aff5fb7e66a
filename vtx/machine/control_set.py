"""The controls of a VMCS as a set of names: what is in it is 1.

Sources: SDM, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields",
"Algorithms for Determining VMX Capabilities".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableSet
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx.errors import InputError, NotSupported
from vtx.facts.controls import GROUPS, ControlGroup, ControlInfo, find_control, find_controls

if TYPE_CHECKING:
    from vtx.machine.shape import Shape

__all__ = ["ControlSet"]


class _Control(NamedTuple):
    """A control with what its group says of it."""

    info: ControlInfo
    group: ControlGroup

    @property
    def mask(self) -> int:
        return int(self.info.control)

    @property
    def title(self) -> str:
        """The control as the manual writes it."""
        return f'"{self.info.sdm_name}" ({self.info.key})'

    @property
    def parent(self) -> _Control | None:
        """The control without which this one acts as 0."""
        key = self.group.activated_by
        return None if key is None else _find(key)


class ControlSet(MutableSet[str]):
    """The controls that are 1 and act, by name, for reading and for changing.

    A control is named as the manual does, in any case, or by its key: ``"HLT exiting"``,
    ``"proc1.hlt_exiting"``; a member of :class:`~vtx.facts.controls.Proc1` and its likes is one,
    too. To turn a control on turns on what activates its group of controls. Whether controls fit
    together, VM entry says.

    Parameters
    ----------
    shape : Shape
        What the CPU allows.
    vmread, vmwrite : callable
        VMREAD and VMWRITE with the VMCS.

    Examples
    --------
    >>> import vtx
    >>> with vtx.Cpu() as cpu:
    ...     cpu.vmxon()
    ...     region = cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    ...     cpu.controls.add("RDTSC exiting")
    ...     "rdtsc exiting" in cpu.controls, "enable vpid" in cpu.controls
    (True, False)
    """

    def __init__(
        self, shape: Shape, vmread: Callable[[int], int], vmwrite: Callable[[int, int], Any]
    ) -> None:
        self._shape = shape
        self._vmread = vmread
        self._vmwrite = vmwrite

    def __contains__(self, element: object) -> bool:
        return self._is_on(_find(element))

    def __iter__(self) -> Iterator[str]:
        for group in GROUPS.values():
            for info in group.controls:
                if self._is_on(_Control(info, group)):
                    yield info.key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, element: Any) -> None:
        """Set a control to 1.

        Raises
        ------
        NotSupported
            The CPU does not allow it.
        UnknownName, InputError
            There is no such control, or the name belongs to several.
        """
        control = _find(element)
        if not self._shape.supports(control.info.control):
            raise NotSupported(f"{self._shape.name} does not allow control {control.title} to be 1")
        if control.parent is not None:
            self.add(control.parent.info.key)
        word = self._vmread(control.group.field)
        if not word & control.mask:
            self._vmwrite(control.group.field, word | control.mask)

    def discard(self, element: Any) -> None:
        """Set a control to 0.

        Raises
        ------
        NotSupported
            The CPU does not allow it.
        UnknownName, InputError
            There is no such control, or the name belongs to several.
        """
        control = _find(element)
        if not self._is_on(control):
            return
        if self._shape.allowed0(control.group.key) & control.mask:
            raise NotSupported(f"{self._shape.name} does not allow control {control.title} to be 0")
        word = self._vmread(control.group.field)
        self._vmwrite(control.group.field, word & ~control.mask)

    def update(self, elements: Iterable[Any]) -> None:
        """Set several controls to 1."""
        for element in _several(elements):
            self.add(element)

    def __ior__(self, elements: Any) -> Any:  # type: ignore[misc]  # members are elements, too
        self.update(elements)
        return self

    def __isub__(self, elements: Any) -> Any:  # type: ignore[misc]  # members are elements, too
        for element in _several(elements):
            self.discard(element)
        return self

    @classmethod
    def _from_iterable(cls, elements: Iterable[Any]) -> Any:
        """Return the result of ``a | b`` and the like, which is a plain set."""
        return set(elements)

    def _is_on(self, control: _Control) -> bool:
        if not self._shape.field_exists(control.group.field):
            return False
        if control.parent is not None and not self._is_on(control.parent):
            return False
        return bool(self._vmread(control.group.field) & control.mask)

    def __repr__(self) -> str:
        return f"<controls that are 1: {', '.join(self)}>"


def _several(elements: Any) -> list[Any]:
    """Refuse what is one element: a string would be taken for its characters."""
    if isinstance(elements, str) or not isinstance(elements, Iterable):
        raise InputError(
            f"{elements!r} is one control, where a set is wanted", hint=f"write {{{elements!r}}}"
        )
    return list(elements)


def _find(element: object) -> _Control:
    """Return the control that a name or a member of a control enumeration means."""
    if isinstance(element, IntEnum):
        for group in GROUPS.values():
            if isinstance(element, group.members):
                named = (info for info in group.controls if info.control is element)
                return _Control(next(named), group)
    if not isinstance(element, str):
        raise InputError(
            f"{element!r} is no control", hint='write its name: "HLT exiting", or Proc1.HLT_EXITING'
        )
    found = find_controls(element)
    if len(found) > 1:
        keys = " or ".join(info.key for info in found)
        raise InputError(f"several controls are called {element!r}", hint=f"write {keys}")
    info = found[0] if found else find_control(element)
    return _Control(info, GROUPS[info.group])
