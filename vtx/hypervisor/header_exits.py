"""The ``exits`` of a trace's header: bitmaps and masks written as sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from vtx.hypervisor.options import ExitOptions
from vtx.hypervisor.values import EXCEPTIONS, at, number_of
from vtx.machine.registers import Cr0, Cr4
from vtx.profiles.document import Item

__all__ = ["read_exits"]

_MSR_RANGES = (range(0x2000), range(0xC000_0000, 0xC000_2000))
_CR_BITS: Mapping[str, Mapping[str, int]] = {
    name: {bit.name.lower(): bit.bit_length() - 1 for bit in bits}
    for name, bits in (("cr0", Cr0), ("cr4", Cr4))
}


def read_exits(item: Item | None) -> ExitOptions:
    """Return what the key ``exits`` says."""
    if item is None:
        return ExitOptions()
    keys = ("msr", "io", "exceptions", "cr0", "cr3", "cr4", "cr8")
    entries = item.mapping("exits", keys)
    read, write = _msr_exits(entries.get("msr"))
    masks = {
        name: _set(entries[name], name, lambda value, n=name: _cr_bit(value, n), range(64))  # type: ignore[misc]
        for name in ("cr0", "cr4")
        if name in entries
    }
    accesses: dict[str, bool] = {}
    for name in ("cr3", "cr8"):
        if name in entries:
            words = _words(entries[name], name, ("load", "store"))
            accesses |= {f"{name}_{word}": word in words for word in ("load", "store")}
    io, exceptions = entries.get("io"), entries.get("exceptions")
    return ExitOptions(
        msr_read=read,
        msr_write=write,
        io=None if io is None else _set(io, "io", _ports, range(0x10000)),
        exceptions=None
        if exceptions is None
        else _set(exceptions, "exceptions", _vector, range(32)),
        cr0=_mask(masks.get("cr0")),
        cr4=_mask(masks.get("cr4")),
        **accesses,
    )


def _mask(bits: frozenset[int] | None) -> int | None:
    return None if bits is None else sum(1 << bit for bit in bits)


def _msr_exits(item: Item | None) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """Return the MSRs whose reading and whose writing exits."""
    if item is None:
        return None, None
    every = [msr for numbers in _MSR_RANGES for msr in numbers]
    if isinstance(item.value, dict):
        sides = item.mapping("msr", ("read", "write"))
        none: frozenset[int] = frozenset()
        read, write = (
            _set(sides[side], side, _msr, every) if side in sides else none
            for side in ("read", "write")
        )
        return read, write
    both = _set(item, "msr", _msr, every)
    return both, both


def _set(
    item: Item, what: str, read: Callable[[Item], Iterable[int]], every: Iterable[int]
) -> frozenset[int]:
    """Read ``all``, ``none`` or a list."""
    if item.value == "all":
        return frozenset(every)
    if item.value == "none":
        return frozenset()
    if isinstance(item.value, list):
        return frozenset(number for value in item.value for number in read(value))
    raise item.error(f"{what} must be all, none or a list")


def _words(item: Item, what: str, choices: tuple[str, ...]) -> frozenset[str]:
    if item.value in ("all", "none"):
        return frozenset(choices if item.value == "all" else ())
    return frozenset(value.choice(what, choices) for value in item.items(what))


def _msr(item: Item) -> Iterable[int]:
    from vtx.facts.msrs import find_msr

    if isinstance(item.value, int) and not isinstance(item.value, bool):
        if any(item.value in numbers for numbers in _MSR_RANGES):
            return (item.value,)
        raise item.error(
            f"the MSR bitmaps have no bit for {item.value:#x}",
            hint="they cover 0-0x1fff and 0xc0000000-0xc0001fff; all others always exit",
        )
    return (int(at(item, lambda: find_msr(item.text("an MSR")))),)


def _ports(item: Item) -> Iterable[int]:
    """Read a port, or a range such as ``0x60-0x64``."""
    if isinstance(item.value, str):
        first, dash, last = item.value.partition("-")
        try:
            low, high = int(first, 0), int(last, 0)
        except ValueError:
            raise item.error(f"{item.value!r} is no range of ports") from None
        if not dash or not 0 <= low <= high <= 0xFFFF:
            raise item.error(f"{item.value!r} is no range of ports", hint="write 0x60-0x64")
        return range(low, high + 1)
    return (number_of(item, "a port", 0, 0xFFFF),)


def _vector(item: Item) -> Iterable[int]:
    if isinstance(item.value, str):
        return (EXCEPTIONS[item.choice("exception", EXCEPTIONS)],)
    return (number_of(item, "a vector", 0, 31),)


def _cr_bit(item: Item, register: str) -> Iterable[int]:
    names = _CR_BITS[register]
    if isinstance(item.value, str):
        return (names[item.choice(f"bit of {register.upper()}", names)],)
    return (number_of(item, f"a bit of {register.upper()}", 0, 63),)
