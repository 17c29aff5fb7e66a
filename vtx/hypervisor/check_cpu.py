"""The processor behind a dump: what is known of it, what is assumed, and what is not known.

A check asks the CPU what it supports. Without a profile nobody knows, so each question is put to
two imaginary CPUs: one that supports everything the manual describes, and one that supports no
more than every CPU with VMX does. Where both give the same answer, the answer does not depend on
the CPU; where they differ, the rule cannot be judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple, NoReturn, cast

from vtx.errors import AddressError, VtxError
from vtx.facts.controls import GROUPS
from vtx.facts.fields import FIELDS, Field
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.register_bits import Cr4
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs

__all__ = [
    "Assumed",
    "KnownMemory",
    "Missing",
    "SilentProcessor",
    "known_vmcs",
    "least",
    "most",
    "with_widths",
]


class Missing(VtxError):
    """A check needs to know something that the input does not tell; never leaves this package."""

    def __init__(self, need: str) -> None:
        self.need = need
        super().__init__(need)


class _KnownFields(dict[int, int]):
    """The fields of a dump; asking for another one says that it is missing."""

    def __missing__(self, field: int) -> NoReturn:
        raise Missing(FIELDS[Field(field)].name)


def known_vmcs(values: Mapping[Field, int]) -> Vmcs:
    """Return a VMCS that has only the fields of a dump."""
    vmcs = Vmcs.__new__(Vmcs)
    vmcs.revision_id = 0
    vmcs.values = _KnownFields(values.items())
    return vmcs


# ---- Two imaginary CPUs --------------------------------------------------------------------

#: CR0 and CR4 as VMX operation has fixed them on every CPU so far: PE, NE and PG; VMXE.
_CR0_FIXED0, _CR0_FIXED1, _CR4_FIXED0 = 0x8000_0021, 0xFFFF_FFFF, 0x2000
#: CR4 bits that every CPU with VMX has: all up to OSXMMEXCPT, and VMXE.
_CR4_OF_ALL = 0x27FF
#: CR4.LASS came with revision 081 of the manual.
_CR4_LASS = 1 << 27
_TRUE_CONTROLS = 1 << 55
#: IA32_VMX_MISC[24:16]: 4 on every CPU so far.
_CR3_TARGETS, _CR3_TARGETS_MASK = 4 << 16, 0x1FF << 16
#: What every CPU with EPT supports: walks of 4 levels, uncacheable and write-back tables.
_EPT_OF_ALL = 1 << 6 | 1 << 8 | 1 << 14
#: Groups whose capability MSR is a mask of allowed 1-settings.
_PLAIN_MASKS = ("proc3", "exit2", "vmfunc")
_ALL = 0xFFFF_FFFF_FFFF_FFFF


class _EveryFeature(frozenset[str]):
    """The features of a CPU that has all of them."""

    def __contains__(self, feature: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(("general_counters_32", "fixed_counters_16"))


class _AnyCpu(Shape):
    """A CPU that nobody has named: nobody knows the revision of its VMCSs."""

    @property
    def revision_id(self) -> int:
        """VMCS revision identifier: not known."""
        raise Missing("the VMCS revision identifier (IA32_VMX_BASIC)")


def _named(key: str) -> int:
    """Return the mask of the controls of a group that the manual names."""
    return sum(map(int, GROUPS[key].members))


class Assumed(NamedTuple):
    """What is taken for granted of a CPU that nobody has named.

    Attributes
    ----------
    maxphyaddr, linear_bits : int
        Widths of physical and linear addresses.
    any_error_code : bool
        IA32_VMX_BASIC[56]: an exception may be injected with or without error code, whatever its
        vector.
    nested_exception : bool
        IA32_VMX_BASIC[58]: bit 13 of the interruption information may be 1.
    """

    maxphyaddr: int = 46
    linear_bits: int = 48
    any_error_code: bool = False
    nested_exception: bool = False


def _controls(key: str, most: bool) -> dict[int, int]:
    """Return the capability MSRs of a group of controls."""
    group = GROUPS[key]
    may_be_1 = _named(key) | group.default1_mask if most else group.default1_mask
    if key in _PLAIN_MASKS:
        return {Msr[group.capability_msr]: may_be_1}
    # A default1 bit without a name is 1 on every CPU; one with a name may be 0 on some.
    must_be_1 = group.default1_mask & ~_named(key) if most else group.default1_mask
    names = (group.capability_msr, group.true_capability_msr)
    return {Msr[name]: may_be_1 << 32 | must_be_1 for name in names if name}


def _capabilities(most: bool, assumed: Assumed) -> dict[int, int]:
    """Return capability MSRs of the CPU that supports the most, or of that with the least."""
    extensions = assumed.any_error_code << 56 | assumed.nested_exception << 58
    msrs: dict[int, int] = {
        Msr.IA32_VMX_BASIC: (_TRUE_CONTROLS if most else 0) | extensions,
        Msr.IA32_VMX_MISC: (_ALL & ~_CR3_TARGETS_MASK if most else 0) | _CR3_TARGETS,
        Msr.IA32_VMX_CR0_FIXED0: _CR0_FIXED0,
        Msr.IA32_VMX_CR0_FIXED1: _CR0_FIXED1,
        Msr.IA32_VMX_CR4_FIXED0: _CR4_FIXED0,
        Msr.IA32_VMX_CR4_FIXED1: sum(Cr4) | _CR4_LASS if most else _CR4_OF_ALL,
        Msr.IA32_VMX_EPT_VPID_CAP: _ALL if most else _EPT_OF_ALL,
    }
    for key in GROUPS:
        msrs |= _controls(key, most)
    return msrs


@lru_cache(maxsize=64)
def most(assumed: Assumed) -> Shape:
    """Return the CPU that supports everything the manual describes."""
    widths = (assumed.maxphyaddr, assumed.linear_bits)
    return _AnyCpu("any CPU", _capabilities(True, assumed), *widths, features=_EveryFeature())


@lru_cache(maxsize=64)
def least(assumed: Assumed) -> Shape:
    """Return the CPU that supports only what all CPUs with VMX do."""
    features = frozenset({"general_counters_2", "fixed_counters_0"})
    widths = (assumed.maxphyaddr, assumed.linear_bits)
    return _AnyCpu("any CPU", _capabilities(False, assumed), *widths, features=features)


def with_widths(shape: Shape, maxphyaddr: int, linear_bits: int) -> Shape:
    """Return a shape with other address widths."""
    if (shape.maxphyaddr, shape.linear_bits) == (maxphyaddr, linear_bits):
        return shape
    return replace(shape, maxphyaddr=maxphyaddr, linear_bits=linear_bits)


# ---- A processor of which little is known --------------------------------------------------


class KnownMemory:
    """Physical memory, as far as the input gives its content.

    Parameters
    ----------
    content : mapping of int to bytes
        By physical address.
    """

    def __init__(self, content: Mapping[int, bytes]) -> None:
        self._content = content

    def read(self, address: int, length: int) -> bytes:
        """Return bytes of memory; where the input gives none, they are missing."""
        if address >> 52:
            raise AddressError(address, 1 << 52)
        for start, data in self._content.items():
            if start <= address and address + length <= start + len(data):
                return data[address - start : address - start + length]
        raise Missing(f"memory at {address:#x}")


class _SilentMsrs(dict[int, int]):
    """MSRs of the processor, which no dump shows."""

    def get(self, address: int, default: object = None) -> NoReturn:
        raise Missing(_msr_name(address))

    def __missing__(self, address: int) -> NoReturn:
        raise Missing(_msr_name(address))


def _msr_name(address: int) -> str:
    try:
        return Msr(address).name
    except ValueError:
        return f"MSR {address:#x}"


class _SilentRegisters:
    """The VMM's registers at VM entry: a dump shows none of them."""

    def __init__(self, ia32e_mode: bool | None) -> None:
        self.msrs = _SilentMsrs()
        self._ia32e_mode = ia32e_mode

    @property
    def in_ia32e_mode(self) -> bool:
        """Whether the VMM runs in IA-32e mode."""
        if self._ia32e_mode is None:
            raise Missing("IA32_EFER.LMA of the processor")
        return self._ia32e_mode

    def __getattr__(self, name: str) -> NoReturn:
        raise Missing(f"the processor's {name}")


class SilentProcessor:
    """Stands in for the processor that executed VMLAUNCH or VMRESUME.

    Parameters
    ----------
    shape : Shape
        The CPU, or one of the imaginary ones.
    ia32e_mode : bool or None
        Whether the VMM runs in IA-32e mode, if that is known.
    memory : KnownMemory
        Physical memory.
    """

    smm = False
    in_seam = False

    def __init__(self, shape: Shape, ia32e_mode: bool | None, memory: KnownMemory) -> None:
        self.shape = shape
        self.regs = _SilentRegisters(ia32e_mode)
        self.memory = memory

    def __getattr__(self, name: str) -> NoReturn:
        raise Missing(_LIVE.get(name, f"the processor's {name}"))

    def as_processor(self) -> Processor:
        """Return this for a parameter that wants a processor: it answers what checks ask."""
        return cast(Processor, self)


_LIVE = {
    "current_vmcs_pointer": "the current-VMCS pointer",
    "vmxon_pointer": "the VMXON pointer",
}
