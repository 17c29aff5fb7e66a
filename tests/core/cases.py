"""Random address spaces for the core: valid tables with a few entries spoilt."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.core.naive import NaiveMmu
from vtx.machine.memory import Memory
from vtx.machine.mmu import Context, Mmu
from vtx.machine.shape import Shape, TlbArray, TlbGeometry

EPT_CAP_MSR = 0x48C
#: Execute-only, 2-MByte and 1-GByte pages, A/D flags, advanced information.
FULL_CAP = 1 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 22
MEMORY_BYTES = 1 << 36
BARE = TlbGeometry((), 0, 0, 0, 0, 0)
SMALL = TlbGeometry(
    (
        TlbArray(1, "instruction", ("4K", "2M"), 4, 2),
        TlbArray(1, "data", ("4K",), 4, 2),
        TlbArray(1, "data", ("2M",), 2, 2),
        TlbArray(2, "unified", ("4K", "2M"), 16, 4),
        TlbArray(2, "unified", ("1G",), 2, 2),
    ),
    pml5=2, pml4=1, pdpt=2, pd=4, guest_physical=4,
)  # fmt: skip


def shape_with(
    cap: int = FULL_CAP,
    maxphyaddr: int = 40,
    tlb: TlbGeometry = BARE,
    features: tuple[str, ...] = ("page_1g",),
) -> Shape:
    return Shape("test", {EPT_CAP_MSR: cap}, maxphyaddr, 57, frozenset(features), tlb)


@dataclass
class AddressSpace:
    """Guest tables over EPT, in a plain mapping of words."""

    words: dict[int, int] = field(default_factory=dict)
    entries: list[tuple[str, int]] = field(default_factory=list)  # ("guest" | "ept", address)
    cr3: int = 0
    eptp: int | None = None
    next_frame: int = 0x10_0000
    next_gpa: int = 0x4000_0000

    def frame(self, size: int = 4096) -> int:
        frame = (self.next_frame + size - 1) & -size
        self.next_frame = frame + size
        return frame

    def gpa(self, size: int = 4096) -> int:
        gpa = (self.next_gpa + size - 1) & -size
        self.next_gpa = gpa + size + 0x12_3000
        return gpa

    def put(self, kind: str, address: int, value: int) -> None:
        if address not in self.words:
            self.entries.append((kind, address))
        self.words[address] = value

    def map_ept(self, gpa: int, hpa: int, level: int, leaf_bits: int) -> None:
        """Map the page of `level` that holds `gpa`, if nothing maps it yet."""
        assert self.eptp is not None
        levels = (self.eptp >> 3 & 7) + 1
        table = self.eptp & ~0xFFF
        for here in range(levels, level, -1):
            address = table + 8 * (gpa >> (3 + 9 * here) & 511)
            if address not in self.words:
                self.put("ept", address, self.frame() | 7 | 1 << 10)
            if self.words[address] & 0x80:
                return  # a larger page already maps it
            table = self.words[address] & ~0xFFF & ((1 << 52) - 1)
        page = (1 << (3 + 9 * level)) - 1
        address = table + 8 * (gpa >> (3 + 9 * level) & 511)
        if address in self.words:
            return
        large = 0x80 if level > 1 else 0
        self.put("ept", address, hpa & ~page | leaf_bits | large | 6 << 3)

    def host(self, gpa: int) -> int:
        """Where `gpa` is, following the tables as they are (they are still whole)."""
        if self.eptp is None:
            return gpa
        table = self.eptp & ~0xFFF
        level = (self.eptp >> 3 & 7) + 1
        while True:
            entry = self.words[table + 8 * (gpa >> (3 + 9 * level) & 511)]
            if level == 1 or entry & 0x80:
                page = (1 << (3 + 9 * level)) - 1
                return entry & ((1 << 52) - 1) & ~page & ~0xFFF | gpa & page
            table = entry & ((1 << 52) - 1) & ~0xFFF
            level -= 1

    def map_guest(
        self, gva: int, gpa: int, level: int, levels: int, bits: int, table_level: int = 1
    ) -> None:
        """Map the page of `level` that holds `gva`; its tables get EPT pages of `table_level`."""
        table = self.cr3 & ~0xFFF
        for here in range(levels, level, -1):
            address = self.host(table) + 8 * (gva >> (3 + 9 * here) & 511)
            if address not in self.words:
                below = self.table_gpa(table_level)
                self.put("guest", address, below | 7)
            if self.words[address] & 0x80:
                return  # a larger page already maps it
            table = self.words[address] & ~0xFFF & ((1 << 52) - 1)
        address = self.host(table) + 8 * (gva >> (3 + 9 * level) & 511)
        page = (1 << (3 + 9 * level)) - 1
        large = 0x80 if level > 1 else 0
        self.put("guest", address, gpa & ~page | bits | large)

    def table_gpa(self, level: int = 1) -> int:
        """A guest frame for a table, mapped by EPT with a page of `level`."""
        if self.eptp is None:
            return self.frame()
        size = 1 << (3 + 9 * level)
        gpa = self.gpa(size)
        self.map_ept(gpa, self.frame(size), level, 7 | 1 << 10)
        return gpa


@dataclass
class Case:
    space: AddressSpace
    registers: dict[str, Any]
    shape: Shape
    gvas: list[int]

    def context(self) -> Context:
        return Context(**self.registers)

    def naive(self, words: dict[int, int], context: Context) -> NaiveMmu:
        return NaiveMmu(
            words,
            context,
            maxphyaddr=self.shape.maxphyaddr,
            page_1g="page_1g" in self.shape.features,
            ept_cap=self.shape.msr(EPT_CAP_MSR),
            memory_size=MEMORY_BYTES,
        )

    def load(self, memory: Memory) -> None:
        for address, value in self.space.words.items():
            memory.write_u64(address, value)

    def mmu(self, memory: Memory, tlb: TlbGeometry) -> Mmu:
        shape = self.shape
        return Mmu(memory, Shape("test", shape.msrs, shape.maxphyaddr, 57, shape.features, tlb))


def spoil(rng: random.Random, space: AddressSpace) -> None:
    """Change a few bits of a few entries."""
    if not space.entries:
        return
    interesting = {
        "guest": [0, 1, 2, 5, 6, 7, 8, 12, 13, 20, 36, 40, 51, 59, 62, 63],
        "ept": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 20, 36, 40, 51, 52, 58, 63],
    }
    for kind, address in rng.choices(space.entries, k=rng.choice([0, 1, 1, 2, 3])):
        for _ in range(rng.choice([1, 1, 2])):
            space.words[address] ^= 1 << rng.choice(interesting[kind])


def random_case(seed: int, pages: int = 1) -> Case:
    """Build an address space of `pages` pages, spoil it, and choose registers."""
    rng = random.Random(seed)
    space = AddressSpace()
    ept_levels = rng.choice([0, 4, 4, 4, 5])
    guest_levels = rng.choice([0, 4, 4, 4, 5])
    if ept_levels:
        flags = rng.choice([0, 1 << 6])
        space.eptp = space.frame() | 6 | (ept_levels - 1) << 3 | flags
    registers = random_registers(rng, guest_levels)
    bits = 12 + 9 * (guest_levels or 4)
    if guest_levels:
        space.cr3 = space.table_gpa(rng.choice([1, 1, 2]))
    gvas = []
    for _ in range(pages):
        gva = rng.getrandbits(bits - 1) if guest_levels else rng.getrandbits(32)
        if guest_levels and rng.random() < 0.3:
            gva |= (1 << 64) - (1 << (bits - 1))
        if gvas and rng.random() < 0.7:  # near the first, so that they share tables
            gva = gvas[0] ^ rng.getrandbits(12 + 9 * rng.randrange(1, (guest_levels or 2)))
        gvas.append(gva)
        add_page(rng, space, gva, guest_levels)
    spoil(rng, space)
    registers |= {"cr3": space.cr3, "eptp": space.eptp}
    if space.eptp is not None and rng.random() < 0.3:
        registers["pml_address"] = space.frame()
        registers["pml_index"] = rng.choice([511, 5, 1, 0, 0xFFFF])
    cap = rng.choice([FULL_CAP, FULL_CAP, FULL_CAP & ~1, 1 << 21, FULL_CAP & ~(1 << 22)])
    features = rng.choice([("page_1g",), ("page_1g",), ()])
    shape = shape_with(cap, rng.choice([36, 40, 46, 52]), features=features)
    if rng.random() < 0.03:
        gvas[0] ^= 1 << rng.choice([46, 47, 55, 56, 60])
    return Case(space, registers, shape, [gva & (1 << 64) - 1 for gva in gvas])


def random_registers(rng: random.Random, guest_levels: int) -> dict[str, Any]:
    def some(*bits: int) -> int:
        return sum(1 << bit for bit in bits if rng.random() < 0.5)

    cr4 = 1 << 5 | some(7, 20, 21) | (some(22, 24) if rng.random() < 0.3 else 0)
    cr4 |= 1 << 12 if guest_levels == 5 else 0
    return {
        "cr0": 1 | some(16) | (1 << 31 if guest_levels else 0),
        "cr4": cr4,
        "efer": (1 << 8 | 1 << 10 if guest_levels else 0) | rng.choice([0, 1, 1]) << 11,
        "rflags": 2 | some(18),
        "cpl": rng.choice([0, 3, 3]),
        "mode_based_execute": rng.random() < 0.3,
        "pkru": rng.getrandbits(32),
        "pkrs": rng.getrandbits(32),
    }


def add_page(rng: random.Random, space: AddressSpace, gva: int, guest_levels: int) -> None:
    """Map one page, with guest and EPT pages of random sizes and random leaf rights."""
    ept_level = rng.choice([1, 1, 2, 3])
    if not guest_levels:
        if space.eptp is not None:
            size = 1 << (3 + 9 * ept_level)
            space.map_ept(gva & 0xFFFF_FFFF, space.frame(size), ept_level, ept_rights(rng))
        return
    level = rng.choice([1, 1, 1, 2, 3])
    size = 1 << (3 + 9 * level)
    gpa = space.gpa(size) if space.eptp is not None else space.frame(size)
    key = rng.choice([0, 0, rng.getrandbits(4)])
    leaf = 1 | rng.choice([2, 2, 0]) | rng.choice([4, 4, 0]) | rng.choice([0, 0x20, 0x60])
    leaf |= rng.choice([0, 0, 1 << 8]) | key << 59 | rng.choice([0, 0, 1]) << 63
    space.map_guest(gva, gpa, level, guest_levels, leaf, rng.choice([1, 1, 2]))
    if space.eptp is not None:
        final = gpa | gva & (size - 1)
        page = 1 << (3 + 9 * ept_level)
        space.map_ept(final, space.frame(page), ept_level, ept_rights(rng))


def ept_rights(rng: random.Random) -> int:
    return rng.choice([7 | 1 << 10, 7 | 1 << 10, 7, 5, 3, 1, 4, 1 << 10, 3 | 1 << 10]) | (
        rng.choice([0, 0, 1 << 8, 3 << 8])
    )
