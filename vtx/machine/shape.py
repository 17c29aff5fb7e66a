"""The shape of a CPU: everything about it that changes *behaviour* (prices are the lab's).

A shape is the raw VMX capability MSRs, the address widths, the few CPUID features that the MSRs
do not imply, and the geometry of the TLBs. Two profiles with equal shapes run a guest alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

from vtx.bits import bit, bits
from vtx.errors import InputError, UnknownName
from vtx.facts.controls import GROUPS, Entry, Exit1, Exit2, Pin, Proc1, Proc2, Proc3, VmFunction
from vtx.facts.fields import FIELDS, Area, Field
from vtx.facts.msrs import Msr

__all__ = ["PAGE_SIZES", "DataCache", "Shape", "TlbArray", "TlbGeometry"]

#: Page sizes of the architecture, by the names that profiles and traces use, in bytes.
PAGE_SIZES: Mapping[str, int] = {"4K": 1 << 12, "2M": 1 << 21, "1G": 1 << 30}

_GROUP_KEYS: Mapping[type[IntEnum], str] = {
    Pin: "pin",
    Proc1: "proc1",
    Proc2: "proc2",
    Proc3: "proc3",
    Exit1: "exit1",
    Exit2: "exit2",
    Entry: "entry",
    VmFunction: "vmfunc",
}
#: Groups whose capability MSR is a plain 64-bit mask of allowed 1-settings.
_ALLOWED1_ONLY = frozenset({"proc3", "exit2", "vmfunc"})
_BASIC_TRUE_CONTROLS = 55


_REPLACEMENTS = ("lru", "tree_plru", "random")


@dataclass(frozen=True)
class TlbArray:
    """One array of TLB entries.

    Parameters
    ----------
    level : int
        1 for the first level, 2 for the second.
    kind : str
        ``"instruction"``, ``"data"`` or ``"unified"``.
    pages : tuple of str
        Page sizes it holds: ``"4K"``, ``"2M"``, ``"1G"``.
    entries, ways : int
        Entries in all, and per set; ``ways == entries`` is fully associative.
    replacement : str
        Which entry of a full set goes: ``"lru"``, ``"tree_plru"`` (1, 2, 4 ... 64 ways) or
        ``"random"`` (xorshift64 from `seed`: a run repeats exactly).
    seed : int
        Of random replacement, 32 bits.
    """

    level: int
    kind: str
    pages: tuple[str, ...]
    entries: int
    ways: int
    replacement: str = "lru"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.level not in (1, 2):
            raise InputError(f"a TLB array has level 1 or 2, not {self.level}")
        if self.kind not in ("instruction", "data", "unified"):
            raise UnknownName("kind of TLB array", self.kind, ("instruction", "data", "unified"))
        for page in self.pages:
            if page not in PAGE_SIZES:
                raise UnknownName("page size", page, PAGE_SIZES)
        if not 1 <= self.ways <= self.entries <= 1 << 24 or self.entries % self.ways:
            raise InputError(
                f"a TLB array of {self.entries} entries cannot have {self.ways} ways",
                hint="entries must be a multiple of ways, from 1 to 16777216",
            )
        if self.replacement not in _REPLACEMENTS:
            raise UnknownName("replacement", self.replacement, _REPLACEMENTS)
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"the seed of a TLB array has 32 bits, {self.seed} does not fit")
        if self.replacement == "tree_plru" and (self.ways & (self.ways - 1) or self.ways > 64):
            raise InputError(
                f"tree-PLRU of {self.ways} ways is impossible",
                hint="the ways must be 1, 2, 4, 8, 16, 32 or 64",
            )
        if self.sets & (self.sets - 1):
            raise InputError(
                f"a TLB array of {self.entries} entries and {self.ways} ways has {self.sets} sets",
                hint="the number of sets must be a power of two: it is indexed by page-number bits",
            )

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.entries // self.ways


@dataclass(frozen=True)
class TlbGeometry:
    """All translation caches of one logical processor.

    Parameters
    ----------
    arrays : tuple of TlbArray
        First- and second-level TLBs.
    pml5, pml4, pdpt, pd : int
        Entries of the paging-structure caches; 0 means that there is none.
    guest_physical : int
        Entries of the TLB for guest-physical mappings; 0 means that there is none.
    """

    arrays: tuple[TlbArray, ...] = (
        TlbArray(1, "instruction", ("4K",), 64, 8),
        TlbArray(1, "instruction", ("2M",), 8, 8),
        TlbArray(1, "data", ("4K",), 64, 4),
        TlbArray(1, "data", ("2M",), 32, 4),
        TlbArray(1, "data", ("1G",), 4, 4),
        TlbArray(2, "unified", ("4K", "2M"), 1536, 12),
        TlbArray(2, "unified", ("1G",), 16, 4),
    )
    pml5: int = 2
    pml4: int = 4
    pdpt: int = 8
    pd: int = 32
    guest_physical: int = 16


#: Bytes of a line of every data cache.
LINE_BYTES = 64


@dataclass(frozen=True)
class DataCache:
    """One level of the data caches that the page walker's references go through.

    Parameters
    ----------
    size_bytes : int
        Capacity, at most 1 GByte.
    ways : int
        Lines of 64 bytes in a set; the set is the line number modulo the number of sets, which
        need not be a power of two.
    replacement : str
        As in :class:`TlbArray`.
    seed : int
        Of random replacement, 32 bits.
    """

    size_bytes: int
    ways: int
    replacement: str = "lru"
    seed: int = 1

    def __post_init__(self) -> None:
        size, ways = self.size_bytes, self.ways
        if not 1 <= ways <= 1024 or not 0 < size <= 1 << 30 or size % (LINE_BYTES * ways):
            raise InputError(
                f"a data cache of {size} bytes cannot have {ways} ways",
                hint="bytes must be a multiple of 64 times the ways, and at most 1073741824",
            )
        if self.replacement not in _REPLACEMENTS:
            raise UnknownName("replacement", self.replacement, _REPLACEMENTS)
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"the seed of a data cache has 32 bits, {self.seed} does not fit")
        if self.replacement == "tree_plru" and (ways & (ways - 1) or ways > 64):
            raise InputError(
                f"tree-PLRU of {ways} ways is impossible",
                hint="the ways must be 1, 2, 4, 8, 16, 32 or 64",
            )


@dataclass(frozen=True)
class Shape:
    """What a CPU profile fixes about behaviour.

    Parameters
    ----------
    name : str
        Profile id, for messages.
    msrs : mapping of int to int
        Raw capability MSRs by address (:class:`vtx.facts.msrs.Msr`), as RDMSR returns them.
    maxphyaddr, linear_bits : int
        CPUID.80000008H:EAX[7:0] and [15:8].
    features : frozenset of str
        CPUID features that the capability MSRs do not imply, in lower case (``"page_1g"``,
        ``"pcid"`` ...).
    tlb : TlbGeometry
        Translation caches.
    data_caches : tuple of DataCache
        First, second and third level of what the page walker's references go through; empty (none
        is modelled, and a walk costs no time for it) unless a profile asks for them.

    Raises
    ------
    InputError
        There are more than three data caches.
    """

    name: str
    msrs: Mapping[int, int]
    maxphyaddr: int = 46
    linear_bits: int = 48
    features: frozenset[str] = frozenset()
    tlb: TlbGeometry = field(default_factory=TlbGeometry)
    data_caches: tuple[DataCache, ...] = ()

    def __post_init__(self) -> None:
        if len(self.data_caches) > 3:
            raise InputError(f"{self.name} has {len(self.data_caches)} data caches, not 3 or fewer")

    @classmethod
    def of(cls, profile: str) -> Shape:
        """Return the shape of the profile with this name, or of the profile in this YAML file.

        Raises
        ------
        UnknownName
            There is no such profile; the nearest names are given.
        InputError
            The profile's file is malformed or describes an impossible CPU.
        """
        from vtx.profiles import load_raw

        return cls.from_raw(load_raw(profile))

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Shape:
        """Return the shape described by a profile's ``id`` and ``shape`` mappings."""
        shape = raw["shape"]
        tlb = shape["tlb"]
        arrays = tuple(
            TlbArray(
                a["level"],
                a["kind"],
                tuple(a["pages"]),
                a["entries"],
                a["ways"],
                a.get("replacement", "lru"),
                a.get("seed", 1),
            )
            for a in tlb["arrays"]
        )
        caches = tlb.get("paging_structure_caches", {})
        return cls(
            name=raw["id"],
            msrs={Msr[name]: value for name, value in shape["capability_msrs"].items()},
            maxphyaddr=shape["maxphyaddr"],
            linear_bits=shape["linear_bits"],
            features=frozenset(shape.get("features", ())),
            tlb=TlbGeometry(
                arrays,
                **{key: caches.get(key, 0) for key in ("pml5", "pml4", "pdpt", "pd")},
                guest_physical=tlb.get("guest_physical", 0),
            ),
            data_caches=tuple(
                DataCache(c["size"], c["ways"], c.get("replacement", "lru"), c.get("seed", 1))
                for c in shape.get("data_caches", ())
            ),
        )

    def msr(self, address: int) -> int:
        """Return a capability MSR, 0 if this CPU does not have it."""
        return self.msrs.get(address, 0)

    def allowed0(self, group: str) -> int:
        """Return the mask of the bits of control group `group` that must be 1."""
        return 0 if group in _ALLOWED1_ONLY else self._capability(group) & 0xFFFF_FFFF

    def allowed1(self, group: str) -> int:
        """Return the mask of the bits of control group `group` that may be 1."""
        value = self._capability(group)
        return value if group in _ALLOWED1_ONLY else value >> 32

    def _capability(self, group: str) -> int:
        """Return the MSR that reports `group`: the TRUE one if IA32_VMX_BASIC[55] says so."""
        info = GROUPS[group]
        if info.true_capability_msr and bit(self.msr(Msr.IA32_VMX_BASIC), _BASIC_TRUE_CONTROLS):
            return self.msr(Msr[info.true_capability_msr])
        return self.msr(Msr[info.capability_msr])

    def supports(self, control: IntEnum) -> bool:
        """Tell whether this CPU allows `control` (a member of Pin, Proc1, ...) to be 1."""
        group = _GROUP_KEYS[type(control)]
        return group in self._groups and bool(self.allowed1(group) & control)

    @cached_property
    def _groups(self) -> frozenset[str]:
        """Control groups whose activating control this CPU allows."""
        groups = {"pin", "proc1", "exit1", "entry"}
        if self.allowed1("proc1") & Proc1.ACTIVATE_SECONDARY_CONTROLS:
            groups.add("proc2")
            if self.allowed1("proc2") & Proc2.ENABLE_VM_FUNCTIONS:
                groups.add("vmfunc")
        if self.allowed1("proc1") & Proc1.ACTIVATE_TERTIARY_CONTROLS:
            groups.add("proc3")
        if self.allowed1("exit1") & Exit1.ACTIVATE_SECONDARY_CONTROLS:
            groups.add("exit2")
        return frozenset(groups)

    def field_exists(self, field: Field) -> bool:
        """Tell whether VMREAD and VMWRITE know `field` on this CPU."""
        return field in self.fields

    @cached_property
    def fields(self) -> frozenset[Field]:
        """The VMCS fields that exist on this CPU (SDM, "Field Encoding in VMCS")."""
        return frozenset(f for f, info in FIELDS.items() if self._provides(info.requires))

    @cached_property
    def writable_fields(self) -> frozenset[Field]:
        """The VMCS fields that VMWRITE may write.

        VM-exit information fields are among them if IA32_VMX_MISC[29] is 1.
        """
        if self.misc(29):
            return self.fields
        return frozenset(f for f in self.fields if FIELDS[f].area is not Area.READ_ONLY)

    def _provides(self, requires: str | None) -> bool:
        """Evaluate the `requires` of a field: alternatives of ``group.control`` or ``cpu:...``."""
        if requires is None:
            return True
        return any(self._provides_one(term.strip()) for term in requires.split("|"))

    def _provides_one(self, term: str) -> bool:
        if term.startswith("cpu:"):
            return term.removeprefix("cpu:") in self.features
        if term.startswith("cap:"):
            return term.removeprefix("cap:") in self._capability_terms
        group, _, name = term.partition(".")
        for kind, key in _GROUP_KEYS.items():
            if key == group:
                return self.supports(kind[name.upper()])
        raise UnknownName("control group", group, _GROUP_KEYS.values())

    @cached_property
    def _capability_terms(self) -> frozenset[str]:
        """Capability values that fields may require, in the words of the field table."""
        targets = bits(self.msr(Msr.IA32_VMX_MISC), 24, 16)
        return frozenset(f"misc.cr3_target_count > {index}" for index in range(targets))

    # The handful of capabilities that rules ask for by name.

    @property
    def revision_id(self) -> int:
        """VMCS revision identifier (IA32_VMX_BASIC[30:0])."""
        return bits(self.msr(Msr.IA32_VMX_BASIC), 30, 0)

    @property
    def physical_width(self) -> int:
        """Width that VMX structure addresses are checked against: 32 if IA32_VMX_BASIC[48]."""
        return 32 if bit(self.msr(Msr.IA32_VMX_BASIC), 48) else self.maxphyaddr

    @cached_property
    def has_ept(self) -> bool:
        """Whether the CPU supports the 1-setting of "enable EPT"."""
        return self.supports(Proc2.ENABLE_EPT)

    @cached_property
    def has_vpid(self) -> bool:
        """Whether the CPU supports the 1-setting of "enable VPID"."""
        return self.supports(Proc2.ENABLE_VPID)

    def ept_vpid_cap(self, position: int) -> bool:
        """Return bit `position` of IA32_VMX_EPT_VPID_CAP."""
        return bool(bit(self.msr(Msr.IA32_VMX_EPT_VPID_CAP), position))

    def misc(self, position: int) -> bool:
        """Return bit `position` of IA32_VMX_MISC."""
        return bool(bit(self.msr(Msr.IA32_VMX_MISC), position))
