"""Rules that many controls share: addresses of structures, and controls that need one another."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple

from vtx.facts.controls import control_info
from vtx.facts.fields import FIELDS, Field, mask
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.declaration import Area, Checks, Read, only
from vtx.rules.limits import physical_width

__all__ = [
    "PHYSICAL_WIDTH",
    "StructureAddress",
    "define_address",
    "define_exclusion",
    "define_requirement",
    "is_on",
    "quoted",
]

#: What the width of an address depends on.
PHYSICAL_WIDTH = ("MAXPHYADDR", "IA32_VMX_BASIC[48]", "IA32_TME_ACTIVATE")

_WORD_OF_GROUP = {"vmfunc": "vm_functions"}
#: Physical addresses have at least 32 bits on every CPU.
_ABOVE_32 = ~0xFFFF_FFFF


def is_on(control: IntEnum) -> Callable[[Vmcs], bool]:
    """Return a function that tells whether `control` is in force in a VMCS."""
    group = control_info(control).group
    word = attrgetter(_WORD_OF_GROUP.get(group, group))
    return lambda vmcs: bool(word(vmcs) & control)


def quoted(control: IntEnum) -> str:
    """Return the manual's name of a control in quotation marks."""
    return f'"{control_info(control).sdm_name}"'


class StructureAddress(NamedTuple):
    """A field with the physical address of a structure that a control makes the CPU use.

    Attributes
    ----------
    ids : tuple of str
        Ids of the checks on alignment and on width.
    field : Field
        The field.
    alignment : int
        In bytes, a power of two.
    control : IntEnum
        The control that makes the address matter.
    """

    ids: tuple[str, str]
    field: Field
    alignment: int
    control: IntEnum


def define_address(check: Checks, area: Area, address: StructureAddress) -> None:
    """Define the two checks on the address of a structure: its alignment and its width."""
    field, alignment = address.field, address.alignment
    used = is_on(address.control)
    low = alignment - 1
    name = FIELDS[field].sdm_name
    when = f"If {quoted(address.control)} is 1,"
    bits = f"bits {low.bit_length() - 1}:0"

    @check(
        address.ids[0],
        area,
        address.control,
        only(field, low),
        title=f"{name} is aligned to {alignment} bytes",
        rule=f"{when} {bits} of the {name} field are 0.",
    )
    def address_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
        return not used(vmcs) or not vmcs[field] & low

    @check(
        address.ids[1],
        area,
        address.control,
        only(field, _ABOVE_32 & mask(field)),
        title=f"{name} is within the physical-address width",
        rule=f"{when} the {name} field sets no bit beyond the physical-address width.",
        capability=PHYSICAL_WIDTH,
    )
    def address_is_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
        return not used(vmcs) or not vmcs[field] >> physical_width(processor.shape)


def _reads(*controls: IntEnum) -> tuple[Read, ...]:
    return controls


def define_requirement(
    check: Checks,
    id: str,
    area: Area,
    control: IntEnum,
    required: IntEnum,
    *,
    note: str | None = None,
    cause: str | None = None,
) -> None:
    """Define the check that `required` is 1 if `control` is 1."""
    on, have = is_on(control), is_on(required)

    @check(
        id,
        area,
        *_reads(control, required),
        title=f"{quoted(control)} comes with {quoted(required)}",
        rule=f"If {quoted(control)} is 1, {quoted(required)} is 1.",
        note=note,
        cause=cause,
    )
    def control_comes_with_what_it_requires(vmcs: Vmcs, processor: Processor) -> bool:
        return not on(vmcs) or have(vmcs)


def define_exclusion(
    check: Checks, id: str, area: Area, control: IntEnum, excluded: IntEnum
) -> None:
    """Define the check that `excluded` is 0 if `control` is 1."""
    on, have = is_on(control), is_on(excluded)

    @check(
        id,
        area,
        *_reads(control, excluded),
        title=f"{quoted(control)} comes without {quoted(excluded)}",
        rule=f"If {quoted(control)} is 1, {quoted(excluded)} is 0.",
    )
    def control_comes_without_what_it_excludes(vmcs: Vmcs, processor: Processor) -> bool:
        return not on(vmcs) or not have(vmcs)
