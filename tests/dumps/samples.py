"""VMCSs for the tests of dumps: valid ones, and ones with random values."""

from __future__ import annotations

import random
from pathlib import Path

from vtx.facts.fields import FIELDS, mask
from vtx.facts.fields import Field as F
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs

POSTS = Path(__file__).parents[1] / "data" / "dumps"

_KERNEL = 0xFFFF_8000_0000_0000
_HOST_ADDRESSES = (
    F.HOST_RIP, F.HOST_RSP, F.HOST_GDTR_BASE, F.HOST_IDTR_BASE, F.HOST_TR_BASE, F.HOST_GS_BASE,
)  # fmt: skip


def valid(profile: str = "skylake_sp") -> dict[F, int]:
    """Return the fields of a 64-bit guest under a 64-bit VMM that pass every check."""
    vmcs = Vmcs.for_64bit_guest(Shape.of(profile))
    for field in _HOST_ADDRESSES:
        vmcs[field] = _KERNEL + 0x1000 + (vmcs[field] & 0xFF_FFFF)
    vmcs[F.EPT_POINTER] = 0x1_1AA2_D01E
    vmcs[F.GUEST_RFLAGS] = 2
    vmcs[F.EXIT_REASON] = 0x30
    return {field: vmcs[field] for field in FIELDS}


def random_fields(rng: random.Random) -> dict[F, int]:
    """Return random values, as wide as both programs print them."""
    values = {field: rng.getrandbits(64) & mask(field) for field in FIELDS}
    values[F.PRIMARY_PROCESSOR_BASED_CONTROLS] |= 1 << 31
    values[F.GUEST_RFLAGS] &= 0xFFFF_FFFF
    values[F.CR3_TARGET_COUNT] &= 3
    values[F.EXIT_QUALIFICATION] &= 0xFFFF_FFFF
    values[F.GUEST_INTERRUPTIBILITY_STATE] &= 0x1F
    values[F.GUEST_ACTIVITY_STATE] &= 3
    for field in (F.TPR_THRESHOLD, F.POSTED_INTERRUPT_NOTIFICATION_VECTOR):
        values[field] &= 0xFF
    for field in FIELDS:
        if "ACCESS_RIGHTS" in field.name:
            values[field] &= 0xF_FFFF
        if "SYSENTER_CS" in field.name:
            values[field] &= 0xFFFF
        if rng.random() < 0.2:
            values[field] = 0
    values[F.PRIMARY_PROCESSOR_BASED_CONTROLS] |= 1 << 31
    return values


def yaml(values: dict[F, int]) -> str:
    """Return fields as a document."""
    rows = (f"  {FIELDS[field].name}: {value:#x}\n" for field, value in values.items())
    return "fields:\n" + "".join(rows)
