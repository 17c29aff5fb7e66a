"""A second implementation of translation, written for plainness: dictionaries and big integers.

It follows the manual's text with no thought of speed and shares no code with the core. Guest paging
is 4- or 5-level, or off; EPT is 4- or 5-level, or off; there are no caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vtx.machine.mmu import Context, WalkStatus

WP, PG = 1 << 16, 1 << 31
PGE, LA57, PCIDE, SMEP, SMAP, PKE, PKS = (1 << n for n in (7, 12, 17, 20, 21, 22, 24))
NXE, AC = 1 << 11, 1 << 18
ADDRESS = (1 << 52) - (1 << 12)
TYPES = {0, 1, 4, 5, 6}


class Stop(Exception):
    """The walk ends without a translation."""

    def __init__(self, status: WalkStatus, **details: int) -> None:
        super().__init__(status)
        self.status = status
        self.details = details


@dataclass
class NaiveResult:
    status: WalkStatus = WalkStatus.OK
    hpa: int = 0
    gpa: int = 0
    qualification: int = 0
    error_code: int = 0
    page_shift: int = 0
    reads: list[tuple[int, int]] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)


@dataclass
class EptAnswer:
    hpa: int
    rights: int  # AND of the entries
    leaf: int
    shift: int


class NaiveMmu:
    """Walks tables kept in `memory`, a mapping of 8-byte-aligned addresses to 64-bit words."""

    def __init__(
        self,
        memory: dict[int, int],
        context: Context,
        *,
        maxphyaddr: int,
        page_1g: bool,
        ept_cap: int,
        memory_size: int,
    ) -> None:
        self.memory = memory
        self.context = context
        self.maxphyaddr = maxphyaddr
        self.page_1g = page_1g
        self.ept_cap = ept_cap
        self.memory_size = memory_size
        self.result = NaiveResult()
        self.pml_index = context.pml_index

    # ---- EPT ----------------------------------------------------------------------------------

    def load(self, address: int) -> int:
        if address + 8 > self.memory_size:
            raise Stop(WalkStatus.BEYOND_MEMORY)
        value = self.memory.get(address, 0)
        self.result.reads.append((address, value))
        return value

    def beyond(self) -> int:
        return ((1 << 52) - 1) & ~((1 << self.maxphyaddr) - 1)

    def misconfigured(self, entry: int, level: int, leaf: bool) -> bool:
        mbe = self.context.mode_based_execute
        execute_only = self.ept_cap & 1
        if not entry & 1 and entry & 2:
            return True
        if not entry & 1 and (entry & 4 or (mbe and entry & 1 << 10)) and not execute_only:
            return True
        if entry & self.beyond():
            return True
        if not leaf:
            return bool(entry & 0b1111_1000)
        low = {1: 0, 2: (1 << 21) - (1 << 12), 3: (1 << 30) - (1 << 12)}[level]
        return bool(entry & low) or (entry >> 3 & 7) not in TYPES

    def ept_leaf_allowed(self, level: int) -> bool:
        return (
            level == 1
            or (level == 2 and bool(self.ept_cap >> 16 & 1))
            or (level == 3 and bool(self.ept_cap >> 17 & 1))
        )

    def ept(self, gpa: int, access: int, user_page: bool) -> EptAnswer:
        """Translate; access is qualification bits 2:0."""
        eptp = self.context.eptp
        if eptp is None:
            return EptAnswer(gpa, 0b100_0000_0111, 0, 0)
        violation = {"gpa": gpa, "qualification": access}
        used, level = self.ept_entries(eptp, gpa, violation)
        mbe = self.context.mode_based_execute
        rights = used[0][1]
        for _, entry in used:
            rights &= entry
        execute = 1 << 10 if mbe and user_page else 4
        wanted = (access & 3) | (execute if access & 4 else 0)
        if rights & wanted != wanted:
            violation["qualification"] |= (rights & 7) << 3
            if mbe:
                violation["qualification"] |= (rights >> 10 & 1) << 6
            raise Stop(WalkStatus.EPT_VIOLATION, **violation)
        leaf = used[-1][1]
        offset = (1 << (12 + 9 * (level - 1))) - 1
        hpa = (leaf & ADDRESS & ~offset) | (gpa & offset)
        if eptp >> 6 & 1:
            leaf = self.ept_flags(used, gpa, bool(access & 2))
        return EptAnswer(hpa, rights, leaf, 12 + 9 * (level - 1))

    def ept_entries(
        self, eptp: int, gpa: int, violation: dict[str, int]
    ) -> tuple[list[tuple[int, int]], int]:
        """Read the EPT entries down to the leaf: (address, value), and the leaf's level."""
        levels = (eptp >> 3 & 7) + 1
        if levels == 4 and gpa >> 48:
            raise Stop(WalkStatus.EPT_VIOLATION, **violation)
        table = eptp & ADDRESS
        used = []
        for level in range(levels, 0, -1):
            address = table + 8 * (gpa >> (12 + 9 * (level - 1)) & 511)
            entry = self.load(address)
            if not entry & 7 and not (self.context.mode_based_execute and entry & 1 << 10):
                raise Stop(WalkStatus.EPT_VIOLATION, **violation)
            leaf = level == 1 or (bool(entry & 1 << 7) and self.ept_leaf_allowed(level))
            if self.misconfigured(entry, level, leaf):
                raise Stop(WalkStatus.EPT_MISCONFIGURATION, gpa=gpa)
            used.append((address, entry))
            if leaf:
                break
            table = entry & ADDRESS
        return used, level

    def ept_flags(self, used: list[tuple[int, int]], gpa: int, write: bool) -> int:
        new = [(address, entry | 1 << 8) for address, entry in used]
        if write:
            address, entry = new[-1]
            new[-1] = (address, entry | 1 << 9)
        if new != used and self.context.pml_address is not None:
            if self.pml_index > 511:
                raise Stop(WalkStatus.PML_FULL, gpa=gpa)
            if write and not used[-1][1] >> 9 & 1:
                self.memory[self.context.pml_address + 8 * self.pml_index] = gpa & ~0xFFF
                self.result.logged.append(gpa & ~0xFFF)
                self.pml_index = (self.pml_index - 1) & 0xFFFF
        for address, entry in new:
            self.memory[address] = entry
        return new[-1][1]

    # ---- Guest paging --------------------------------------------------------------------------

    def fault(self, access: int, present: bool, reserved: bool = False, key: bool = False) -> Stop:
        context = self.context
        code = present | (access in (2, 3)) << 1 | (context.cpl == 3) << 2 | reserved << 3
        fetch_told = bool(context.cr4 & SMEP or context.efer & NXE)
        code |= (access == 0 and fetch_told) << 4 | key << 5
        return Stop(WalkStatus.PAGE_FAULT, error_code=int(code))

    def reserved(self, entry: int, level: int, leaf: bool) -> bool:
        bad = self.beyond()
        if not self.context.efer & NXE:
            bad |= 1 << 63
        if level >= 4 or (level == 3 and not self.page_1g):
            bad |= 1 << 7
        if leaf and level == 3:
            bad |= (1 << 30) - (1 << 13)
        if leaf and level == 2:
            bad |= (1 << 21) - (1 << 13)
        return bool(entry & bad)

    def allowed(self, access: int, user: bool, writable: bool, executable: bool) -> bool:
        context = self.context
        write, fetch = access in (2, 3), access == 0
        if context.cpl == 3:
            return user and (writable or not write) and (executable or not fetch)
        if fetch:
            return executable and not (user and context.cr4 & SMEP)
        if user and context.cr4 & SMAP and not context.rflags & AC:
            return False
        return not write or writable or not context.cr0 & WP

    def key_denies(self, access: int, key: int, user: bool) -> bool:
        context = self.context
        if access == 0 or not context.cr4 & (PKE if user else PKS):
            return False
        rights = (context.pkru if user else context.pkrs) >> 2 * key & 3
        write = access in (2, 3)
        if rights & 1:
            return True
        return bool(rights & 2) and write and bool(context.cr0 & WP or (user and context.cpl == 3))

    def walk(self, gva: int, access: int) -> NaiveResult:
        try:
            self.step_by_step(gva, access)
        except Stop as stop:
            self.result.status = stop.status
            for name, value in stop.details.items():
                setattr(self.result, name, value)
        return self.result

    def step_by_step(self, gva: int, access: int) -> None:
        if not self.context.cr0 & PG:
            self.last_step(gva & 0xFFFF_FFFF, access, (1, 1, 1), 0)
            return
        levels = 5 if self.context.cr4 & LA57 else 4
        bits = 12 + 9 * levels
        if gva >> (bits - 1) not in (0, (1 << (65 - bits)) - 1):
            raise Stop(WalkStatus.NON_CANONICAL)
        used = self.guest_entries(gva, access, levels)
        entries = [entry for *_, entry in used]
        user = all(entry & 4 for entry in entries)
        writable = all(entry & 2 for entry in entries)
        executable = not any(entry >> 63 for entry in entries)
        key = self.key_denies(access, entries[-1] >> 59 & 15, user)
        if key or not self.allowed(access, user, writable, executable):
            raise self.fault(access, present=True, key=key)
        self.guest_flags(used, access)
        shift = 12 + 9 * (levels - len(used))
        offset = (1 << shift) - 1
        gpa = (entries[-1] & ADDRESS & ~offset) | (gva & offset)
        self.last_step(gpa, access, (user, writable, executable), shift)

    def guest_entries(self, gva: int, access: int, levels: int) -> list[tuple[int, EptAnswer, int]]:
        """Read the entries down to the leaf: (guest-physical address, where it is, value)."""
        eptp = self.context.eptp
        table_access = 3 if eptp is not None and eptp >> 6 & 1 else 1
        table = self.context.cr3 & ((1 << self.maxphyaddr) - 1) & ADDRESS
        used: list[tuple[int, EptAnswer, int]] = []
        for level in range(levels, 0, -1):
            address = table + 8 * (gva >> (12 + 9 * (level - 1)) & 511)
            place = self.ept_for(address, table_access, False, 1 << 7)
            entry = self.load(place.hpa)
            if not entry & 1:
                raise self.fault(access, present=False)
            large = bool(entry & 1 << 7) and (level == 2 or (level == 3 and self.page_1g))
            if self.reserved(entry, level, level == 1 or large):
                raise self.fault(access, present=True, reserved=True)
            used.append((address, place, entry))
            if large:
                break
            table = entry & ADDRESS
        return used

    def ept_for(self, gpa: int, access: int, user: bool, linear_bits: int) -> EptAnswer:
        """Translate on behalf of a linear address: a violation gets these qualification bits."""
        try:
            return self.ept(gpa, access, user)
        except Stop as stop:
            if stop.status is WalkStatus.EPT_VIOLATION:
                stop.details["qualification"] |= linear_bits
            raise

    def guest_flags(self, used: list[tuple[int, EptAnswer, int]], access: int) -> None:
        for index, (address, place, value) in enumerate(used):
            new = value | 1 << 5
            if index == len(used) - 1 and access in (2, 3):
                new |= 1 << 6
            if new == value:
                continue
            if not place.rights & 2:
                qualification = 0b1000_0011 | (place.rights & 7) << 3
                if self.context.mode_based_execute:
                    qualification |= (place.rights >> 10 & 1) << 6
                raise Stop(WalkStatus.EPT_VIOLATION, gpa=address, qualification=qualification)
            self.memory[place.hpa] = new

    def last_step(self, gpa: int, access: int, rights: tuple[int, int, int], shift: int) -> None:
        kind = {0: 4, 1: 1, 2: 2, 3: 2}[access]
        answer = self.ept_for(gpa, kind, bool(rights[0]), 0b1_1000_0000 | self.advanced(*rights))
        self.result.gpa = gpa
        self.result.hpa = answer.hpa
        shifts = [one for one in (shift, answer.shift) if one]
        self.result.page_shift = min(shifts, default=0)
        if answer.hpa >= self.memory_size:
            raise Stop(WalkStatus.BEYOND_MEMORY)

    def advanced(self, user: int, writable: int, executable: int) -> int:
        if not self.ept_cap >> 22 & 1:
            return 0
        return bool(user) << 9 | bool(writable) << 10 | (not executable) << 11
