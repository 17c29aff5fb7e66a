"""The two-dimensional walk: the student's walker against the machine's, reference by reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vtx.course.lab import StudentError
from vtx.machine.image import GUEST_BASE
from vtx.machine.mmu import Access, Dimension, Step
from vtx.machine.paging import FrameAllocator, GuestPageTables

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu

__all__ = ["check"]

_SHIFTS = {"4K": 12, "2M": 21, "1G": 30}
_MOST_READS = 200


def check(lab: Lab) -> None:
    """Compare walks with several sizes of page in both dimensions."""
    walk = lab.function("walk", "the walker: walk(read, eptp, cr3, gva)")
    pairs = [(guest, ept) for guest in _SHIFTS for ept in _SHIFTS]
    lab.random.shuffle(pairs)
    for guest_size, ept_size in [("4K", "4K"), *pairs[:4]]:
        cpu, gva = _prepared(lab, guest_size, ept_size)
        what = f"guest pages of {guest_size} over EPT pages of {ept_size}"
        if not _compare(lab, walk, cpu, gva, what):
            return


def _prepared(lab: Lab, guest_size: str, ept_size: str) -> tuple[Cpu, int]:
    """Return a processor whose guest maps a linear address with a page of this size."""
    cpu = lab.guest()
    target = lab.random.randrange(64, 128) << 21
    offset = lab.random.randrange(1 << _SHIFTS[guest_size]) & ~7
    gva = lab.random.randrange(2, 200) << 39 | lab.random.randrange(1 << 9) << 30
    frames = FrameAllocator(0x40_0000, 0x80_0000)
    tables = GuestPageTables(cpu.memory, frames, lambda gpa: GUEST_BASE + gpa)
    tables.map(0x20_0000, 0x20_0000, "2M")
    page = 0 if guest_size == "1G" else target
    _map_ept(cpu, ept_size, [0, 0x20_0000, 0x40_0000, page + offset])
    tables.map(gva, page, guest_size, execute=False, dirty=True)
    cpu.guest.cr3 = tables.cr3
    lab.run(cpu, "hlt", _nothing)
    return cpu, gva + offset


def _nothing(*_: object) -> None:
    """Handle no exit: there is none before HLT."""


def _map_ept(cpu: Cpu, size: str, touched: list[int]) -> None:
    """Map all of the guest's memory; with pages of 4K where the walks touch it."""
    cpu.ept.map(0, size="1G", suppress_ve=True)
    if size == "1G":
        return
    cpu.ept.split(0)
    if size == "4K":
        for gpa in {address >> 21 << 21 for address in touched}:
            cpu.ept.split(gpa)


def _compare(lab: Lab, walk: Callable[..., Any], cpu: Cpu, gva: int, what: str) -> bool:
    """Compare one walk of the student's with that of the machine."""
    context = cpu.context
    cpu.mmu.walk(context, gva, Access.LOAD)  # sets the accessed flags: the next only reads
    right = cpu.mmu.walk(context, gva, Access.LOAD, record=True)
    read: list[int] = []

    def reader(address: int) -> int:
        read.append(address)
        if len(read) > _MOST_READS:
            raise StudentError(f"walk has read {_MOST_READS} entries", "a walk ends at a leaf")
        if len(read) <= len(right.steps) and right.steps[len(read) - 1].address != address:
            _differs(right.steps[len(read) - 1], len(read), address, what)
        return cpu.memory.read_u64(address)

    found = walk(reader, context.eptp, context.cr3, gva)
    return lab.expect(
        len(read) == right.references,
        f"{what}: the walk makes {right.references} references",
        f"you make {len(read)}; count the guest's entries, EPT for each of them, and EPT for the "
        "address itself",
    ) and lab.equal(
        found,
        right.hpa,
        f"{what}: it ends at the right host-physical address",
        "the offset in the page comes from the address that is translated, the rest from the "
        "entry; in a page of level n that are 3 + 9n bits, and the last result is host-physical",
    )


def _differs(step: Step, number: int, address: int, what: str) -> None:
    """Say which reference is wrong, and what may be the reason."""
    if step.dimension is Dimension.EPT:
        should = f"the EPT entry of level {step.level} for guest-physical address {step.gpa:#x}"
        hint = (
            "every address that the guest's tables or CR3 hold is guest-physical: EPT translates "
            "it before anything is read there. An entry holds more than an address: keep bits 51:12"
        )
        if step.guest_level == 0:
            hint = (
                "the address that the guest's leaf gives is guest-physical, too. In it, the offset "
                "has 3 + 9n bits for a page of level n"
            )
    else:
        should = f"the guest's entry of level {step.level}, at the address that EPT gave for it"
        hint = (
            "EPT has translated the address of the entry, offset in the table included: 8 times "
            "the index, which is 9 bits of the linear address"
        )
    raise StudentError(
        f"{what}: reference {number} should read {should}, at {step.address:#x}; you read "
        f"{address:#x}",
        hint,
    )
