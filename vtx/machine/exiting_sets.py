"""What a VMM wants to exit, as sets: ports, MSRs, exceptions, VMCS fields, EOI vectors.

Behind each set stands what the manual has: a bitmap in memory that a VMCS field points to, or the
field itself. The first change of a set makes its bitmap, empty, and turns the control on that uses
it; what was unconditional before (every MSR, every port) then exits only if it is in the set.

Sources: SDM, "I/O-Bitmap Addresses", "MSR-Bitmap Address", "Exception Bitmap", "VMCS Shadowing
Bitmap Addresses", "Controls for APIC Virtualization".
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, MutableSet
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from vtx.errors import InputError, NotSupported, UnknownName
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.fields import Field, find_encoding
from vtx.facts.msrs import find_msr
from vtx.facts.vectors import find_exception

if TYPE_CHECKING:
    from vtx.machine.memory import Memory
    from vtx.machine.processor import Processor
    from vtx.machine.tables import FrameAllocator

__all__ = ["ExitingSets"]

_PORTS: Final = 1 << 16
_PORTS_A_BITMAP: Final = 1 << 15
_MSRS_A_BITMAP: Final = 1 << 13
_HIGH_MSRS: Final = 0xC000_0000
_BITMAP_MSRS: Final = (range(_MSRS_A_BITMAP), range(_HIGH_MSRS, _HIGH_MSRS + _MSRS_A_BITMAP))
_BYTES_OF_LOW_MSRS: Final = 1024
_WRITES_FROM: Final = 2048
_ENCODINGS: Final = 1 << 15
_PAGE: Final = 4096
_EXCEPTIONS: Final = 32
_VECTORS: Final = 256
_EOI_BITMAPS: Final = (
    Field.EOI_EXIT_BITMAP_0,
    Field.EOI_EXIT_BITMAP_1,
    Field.EOI_EXIT_BITMAP_2,
    Field.EOI_EXIT_BITMAP_3,
)


class _Vmcs:
    """The current VMCS of a processor, read and written by VMREAD and VMWRITE."""

    def __init__(
        self,
        processor: Processor,
        frames: FrameAllocator,
        vmread: Callable[[int], int],
        vmwrite: Callable[[int, int], Any],
    ) -> None:
        self.processor = processor
        self.frames = frames
        self.read = vmread
        self.write = vmwrite

    @property
    def memory(self) -> Memory:
        return self.processor.memory

    def is_on(self, field: Field, control: IntEnum) -> bool:
        if field == Field.SECONDARY_PROCESSOR_BASED_CONTROLS and not self.is_on(
            Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.ACTIVATE_SECONDARY_CONTROLS
        ):
            return False
        return bool(self.read(field) & control)

    def require(self, control: IntEnum) -> None:
        """Raise NotSupported if the CPU does not have a control."""
        if not self.processor.shape.supports(control):
            name = self.processor.shape.name
            raise NotSupported(f"{name} has no control {control.name.lower().replace('_', ' ')}")

    def turn_on(self, field: Field, control: IntEnum) -> None:
        self.require(control)
        if field == Field.SECONDARY_PROCESSOR_BASED_CONTROLS:
            self.turn_on(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.ACTIVATE_SECONDARY_CONTROLS)
        word = self.read(field)
        if not word & control:
            self.write(field, word | control)

    def new_page(self, fill: int = 0) -> int:
        frame = self.frames.allocate()
        self.memory.write(frame, bytes([fill]) * _PAGE)
        return frame


class _NumberSet(MutableSet[Any]):
    """A set of numbers in a range, each of which may be given by name."""

    #: What an element is, for messages.
    _what: str

    @abstractmethod
    def _number(self, element: Any) -> int:
        """Return the number that `element` means.

        Raises
        ------
        InputError
            It means none that can be in the set.
        """

    @abstractmethod
    def _has(self, number: int) -> bool: ...

    @abstractmethod
    def _put(self, number: int, there: bool) -> None: ...

    @abstractmethod
    def _all(self) -> Iterable[int]: ...

    def __contains__(self, element: object) -> bool:
        try:
            return self._has(self._number(element))
        except InputError:
            return False

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def add(self, element: Any) -> None:
        """Let `element` exit from now on."""
        self._put(self._number(element), True)

    def discard(self, element: Any) -> None:
        """Let `element` exit no longer."""
        self._put(self._number(element), False)

    def update(self, elements: Iterable[Any]) -> None:
        """Let all of `elements` exit."""
        _several(elements)
        for number in [self._number(element) for element in elements]:
            self._put(number, True)

    @classmethod
    def _from_iterable(cls, elements: Iterable[Any]) -> Any:
        """Return the result of ``a | b`` and the like, which is a plain set."""
        return set(elements)

    def __ior__(self, elements: Any) -> Any:  # type: ignore[misc]  # names are elements, too
        self.update(elements)
        return self

    def __repr__(self) -> str:
        numbers = list(self._all())
        shown = ", ".join(f"{number:#x}" for number in numbers[:8])
        more = f", ... {len(numbers)} in all" if len(numbers) > 8 else ""
        return f"<{self._what} that exit: {{{shown}{more}}}>"


def _several(elements: object) -> None:
    """Refuse what is one element: a string would be taken for its characters."""
    if isinstance(elements, str | int):
        raise InputError(
            f"{elements!r} is one element, where a set is wanted", hint=f"write {{{elements!r}}}"
        )


def _in_range(what: str, element: Any, limit: int) -> int:
    if isinstance(element, Iterable) and not isinstance(element, str):
        raise InputError(f"{element!r} is not one {what}", hint="several are added with update()")
    if not isinstance(element, int) or isinstance(element, bool) or not 0 <= element < limit:
        raise InputError(f"{element!r} is no {what}", hint=f"0 to {limit - 1:#x}")
    return int(element)


class _PageSet(_NumberSet):
    """A set whose bitmap lies in pages of memory."""

    _field: Field
    _control: IntEnum
    #: What the bitmaps' addresses are kept in.
    _addresses: tuple[Field, ...]

    def __init__(self, vmcs: _Vmcs) -> None:
        self._vmcs = vmcs

    @abstractmethod
    def _place(self, number: int) -> tuple[int, int]:
        """Return the index of the page and the bit in it."""

    @abstractmethod
    def _numbers(self) -> Iterable[int]:
        """Return every number that the bitmap has a bit for."""

    def _without_bitmap(self) -> bool:
        """Tell whether everything exits as long as there is no bitmap."""
        return True

    @property
    def _used(self) -> bool:
        return self._vmcs.is_on(self._field, self._control)

    def _has(self, number: int) -> bool:
        if not self._used:
            return self._without_bitmap()
        page, position = self._place(number)
        base = self._vmcs.read(self._addresses[page])
        return bool(self._vmcs.memory.read_u8(base + position // 8) >> position % 8 & 1)

    def _put(self, number: int, there: bool) -> None:
        if not self._used:
            self._begin()
        page, position = self._place(number)
        address = self._vmcs.read(self._addresses[page]) + position // 8
        byte = self._vmcs.memory.read_u8(address)
        mask = 1 << position % 8
        self._vmcs.memory.write_u8(address, byte | mask if there else byte & ~mask)

    def _begin(self) -> None:
        """Make empty bitmaps and use them from now on."""
        self._vmcs.require(self._control)
        for field in self._addresses:
            self._vmcs.write(field, self._vmcs.new_page())
        self._vmcs.turn_on(self._field, self._control)

    def clear(self) -> None:
        """Let nothing exit."""
        self._begin()

    def _all(self) -> Iterable[int]:
        if not self._used:
            return list(self._numbers()) if self._without_bitmap() else []
        pages = [self._vmcs.memory.read(self._vmcs.read(f), _PAGE) for f in self._addresses]
        if not any(any(page) for page in pages):
            return []
        found = []
        for number in self._numbers():
            page, position = self._place(number)
            if pages[page][position // 8] >> position % 8 & 1:
                found.append(number)
        return found


class _Ports(_PageSet):
    _what = "ports"
    _field = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
    _control = Proc1.USE_IO_BITMAPS
    _addresses = (Field.IO_BITMAP_A, Field.IO_BITMAP_B)

    def _number(self, element: Any) -> int:
        return _in_range("I/O port", element, _PORTS)

    def _place(self, number: int) -> tuple[int, int]:
        return divmod(number, _PORTS_A_BITMAP)

    def _numbers(self) -> Iterable[int]:
        return range(_PORTS)

    def _without_bitmap(self) -> bool:
        return self._vmcs.is_on(self._field, Proc1.UNCONDITIONAL_IO_EXITING)


class _Msrs(_PageSet):
    _field = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
    _control = Proc1.USE_MSR_BITMAPS
    _addresses = (Field.MSR_BITMAP,)
    _offset: int

    def _number(self, element: Any) -> int:
        number = int(find_msr(element)) if isinstance(element, str) else element
        if not isinstance(number, int) or not any(number in msrs for msrs in _BITMAP_MSRS):
            raise InputError(
                f"{element!r} is no MSR that a bitmap has a bit for",
                hint="0 to 0x1fff and 0xc0000000 to 0xc0001fff; all others exit always",
            )
        return int(number)

    def _place(self, number: int) -> tuple[int, int]:
        start = self._offset + (_BYTES_OF_LOW_MSRS if number & _HIGH_MSRS else 0)
        return 0, 8 * start + (number & (_MSRS_A_BITMAP - 1))

    def _numbers(self) -> Iterable[int]:
        return itertools.chain(*_BITMAP_MSRS)

    def clear(self) -> None:
        """Let no access of this direction exit; the other direction stays as it is."""
        if not self._used:
            self._begin()
            return
        base = self._vmcs.read(Field.MSR_BITMAP)
        self._vmcs.memory.write(base + self._offset, bytes(2 * _BYTES_OF_LOW_MSRS))


class _MsrReads(_Msrs):
    _what = "MSR reads"
    _offset = 0


class _MsrWrites(_Msrs):
    _what = "MSR writes"
    _offset = _WRITES_FROM


class _Shadowed(_PageSet):
    """VMREAD or VMWRITE by encoding; those that are not in the set use the shadow VMCS."""

    _field = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
    _control = Proc2.VMCS_SHADOWING

    def _number(self, element: Any) -> int:
        number = int(find_encoding(element)) if isinstance(element, str) else element
        return _in_range("encoding of a VMCS field", number, _ENCODINGS)

    def _place(self, number: int) -> tuple[int, int]:
        return 0, number

    def _numbers(self) -> Iterable[int]:
        return range(_ENCODINGS)

    def _begin(self) -> None:
        """Both bitmaps belong to one control: the other instruction goes on exiting always."""
        self._vmcs.require(self._control)
        for field in (Field.VMREAD_BITMAP_ADDRESS, Field.VMWRITE_BITMAP_ADDRESS):
            self._vmcs.write(field, self._vmcs.new_page(0 if field in self._addresses else 0xFF))
        self._vmcs.turn_on(self._field, self._control)


class _Vmreads(_Shadowed):
    _what = "VMREADs"
    _addresses = (Field.VMREAD_BITMAP_ADDRESS,)


class _Vmwrites(_Shadowed):
    _what = "VMWRITEs"
    _addresses = (Field.VMWRITE_BITMAP_ADDRESS,)


class _Exceptions(_NumberSet):
    _what = "exceptions"

    def __init__(self, vmcs: _Vmcs) -> None:
        self._vmcs = vmcs

    def _number(self, element: Any) -> int:
        number = find_exception(element) if isinstance(element, str) else element
        return _in_range("exception vector", number, _EXCEPTIONS)

    def _has(self, number: int) -> bool:
        return bool(self._vmcs.read(Field.EXCEPTION_BITMAP) >> number & 1)

    def _put(self, number: int, there: bool) -> None:
        word = self._vmcs.read(Field.EXCEPTION_BITMAP)
        changed = word | 1 << number if there else word & ~(1 << number)
        if changed != word:
            self._vmcs.write(Field.EXCEPTION_BITMAP, changed)

    def _all(self) -> Iterable[int]:
        word = self._vmcs.read(Field.EXCEPTION_BITMAP)
        return [number for number in range(_EXCEPTIONS) if word >> number & 1]


class _Eois(_NumberSet):
    _what = "EOIs"

    def __init__(self, vmcs: _Vmcs) -> None:
        self._vmcs = vmcs

    def _number(self, element: Any) -> int:
        return _in_range("vector", element, _VECTORS)

    def _has(self, number: int) -> bool:
        return bool(self._vmcs.read(_EOI_BITMAPS[number // 64]) >> number % 64 & 1)

    def _put(self, number: int, there: bool) -> None:
        field = _EOI_BITMAPS[number // 64]
        word = self._vmcs.read(field)
        mask = 1 << number % 64
        self._vmcs.write(field, word | mask if there else word & ~mask)

    def _all(self) -> Iterable[int]:
        return [number for number in range(_VECTORS) if self._has(number)]


class ExitingSets:
    """What causes VM exits in the guest of the current VMCS, as sets that can be changed.

    Parameters
    ----------
    processor : Processor
        With a current VMCS.
    frames : FrameAllocator
        Gives pages for bitmaps.
    vmread, vmwrite : callable
        VMREAD and VMWRITE on that processor.

    Examples
    --------
    >>> import vtx
    >>> with vtx.Cpu() as cpu:
    ...     cpu.vmxon()
    ...     region = cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    ...     cpu.exiting.ports.add(0x3F8)
    ...     cpu.exiting.msr_writes |= {"IA32_EFER"}
    ...     cpu.exiting.exceptions.add("#PF")
    ...     0x3F8 in cpu.exiting.ports, 0x80 in cpu.exiting.ports, sorted(cpu.exiting.exceptions)
    (True, False, [14])
    """

    _KINDS: Final[dict[str, Callable[[_Vmcs], MutableSet[Any]]]] = {
        "ports": _Ports,
        "msr_reads": _MsrReads,
        "msr_writes": _MsrWrites,
        "exceptions": _Exceptions,
        "vmreads": _Vmreads,
        "vmwrites": _Vmwrites,
        "eois": _Eois,
    }

    ports: MutableSet[int]
    msr_reads: MutableSet[Any]
    msr_writes: MutableSet[Any]
    exceptions: MutableSet[Any]
    vmreads: MutableSet[Any]
    vmwrites: MutableSet[Any]
    eois: MutableSet[int]

    def __init__(
        self,
        processor: Processor,
        frames: FrameAllocator,
        vmread: Callable[[int], int],
        vmwrite: Callable[[int, int], Any],
    ) -> None:
        object.__setattr__(self, "_vmcs", _Vmcs(processor, frames, vmread, vmwrite))

    _vmcs: _Vmcs

    def __getattr__(self, name: str) -> MutableSet[Any]:
        kind = self._KINDS.get(name)
        if kind is None:
            raise AttributeError(str(UnknownName("set of what exits", name, self._KINDS)))
        found: MutableSet[Any] = kind(self._vmcs)
        return found

    def __setattr__(self, name: str, elements: Iterable[Any]) -> None:
        """Let exactly `elements` exit: ``cpu.exiting.ports = {0x3F8}``."""
        current = getattr(self, name)
        if isinstance(elements, type(current)) and elements._vmcs is self._vmcs:
            return  # what `cpu.exiting.ports |= {...}` ends with
        _several(elements)
        wanted = list(elements)
        current.clear()
        current |= wanted

    def __dir__(self) -> list[str]:
        return list(self._KINDS)
