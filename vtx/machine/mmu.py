"""Translation of addresses: guest paging, EPT, the TLBs, and the loop that runs reference streams.

One :class:`Mmu` belongs to one logical processor and works on a
:class:`~vtx.machine.memory.Memory`. It translates under a :class:`Context`, the flat structure
that VM entry makes of registers and VMCS. It knows no VMCS and raises no exit: it says what
happened as a :class:`Walk`, and others make an exit or a fault of that.

The work is done in C (``csrc``); every per-address call has a form over arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vtx._core import ffi, lib
from vtx.errors import InputError, NotSupported
from vtx.machine.context import Access, Context
from vtx.machine.memory import Memory
from vtx.machine.walk import (
    STATUSES,
    Dimension,
    Hit,
    RunResult,
    Source,
    Status,
    Step,
    StepKind,
    Translations,
    Walk,
    WalkStatus,
)

if TYPE_CHECKING:
    from vtx.machine.shape import DataCache, Shape, TlbArray

__all__ = [
    "Access",
    "Context",
    "Dimension",
    "Hit",
    "Mmu",
    "RunResult",
    "Source",
    "Status",
    "Step",
    "StepKind",
    "Translations",
    "Walk",
    "WalkStatus",
]

#: What must live as long as a C structure that points to it.
_POINTED_TO: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()
_IA32_VMX_EPT_VPID_CAP = 0x48C
_SIDES = {"instruction": 1, "data": 2, "unified": 3}
_PAGES = {"4K": 1, "2M": 2, "1G": 4}
_REPLACEMENTS = {"lru": 0, "tree_plru": 1, "random": 2}

_TRANSLATION = {
    "names": ["hpa", "gpa", "qualification", "status", "error_code", "page_shift", "source"],
    "formats": ["<u8", "<u8", "<u8", "<u4", "<u4", "u1", "u1"],
    "offsets": [0, 8, 16, 24, 28, 32, 33],
    "itemsize": 40,
}


def _flat(array: Any, itemsize: int, what: str) -> Any:
    """Return a C pointer to a one-dimensional, contiguous array of unsigned integers.

    cffi takes an array of any element type without a word, so the check is made here.
    """
    try:
        view = memoryview(array)
    except TypeError:
        raise InputError(f"{what} must be an array, not {type(array).__name__}") from None
    kind = view.format.lstrip("<=@")
    if view.itemsize != itemsize or kind not in ("B", "L", "Q"):
        raise InputError(
            f"{what} must have elements of type uint{8 * itemsize}, "
            f"not {getattr(array, 'dtype', view.format)}"
        )
    if view.ndim != 1 or not view.c_contiguous:
        raise InputError(f"{what} must be one-dimensional and contiguous", hint="copy it first")
    return ffi.from_buffer(f"uint{8 * itemsize}_t[]", array)


def _requests(gvas: Any, accesses: Any) -> tuple[Any, Any, int]:
    """Return C pointers to addresses and accesses, and the stride of the latter."""
    addresses = _flat(gvas, 8, "gvas")
    if isinstance(accesses, int):
        return addresses, ffi.new("uint8_t[]", [accesses]), 0
    kinds = _flat(accesses, 1, "accesses")
    if len(kinds) != len(addresses):
        raise InputError(f"{len(addresses)} gvas need {len(addresses)} accesses, not {len(kinds)}")
    return addresses, kinds, 1


def _rows(count: int) -> tuple[Any, Any]:
    """Return a structured array of translations, and a C pointer to it."""
    import numpy as np

    rows = np.zeros(count, dtype=np.dtype(_TRANSLATION))  # type: ignore[call-overload]
    return rows, ffi.cast("vtx_translation *", ffi.from_buffer(rows))


def _translations(rows: Any) -> Translations:
    return Translations(**{name: rows[name] for name in _TRANSLATION["names"]})  # type: ignore[attr-defined]


def _tlb_array(array: TlbArray) -> dict[str, int]:
    return {
        "level": array.level,
        "sides": _SIDES[array.kind],
        "pages": sum(_PAGES[page] for page in array.pages),
        "entries": array.entries,
        "ways": array.ways,
        "replacement": _REPLACEMENTS[array.replacement],
        "seed": array.seed,
    }


def _data_cache(cache: DataCache) -> dict[str, int]:
    return {
        "bytes": cache.size_bytes,
        "ways": cache.ways,
        "replacement": _REPLACEMENTS[cache.replacement],
        "seed": cache.seed,
    }


def _c_shape(shape: Shape) -> Any:
    tlb = shape.tlb
    if len(tlb.arrays) > lib.VTX_MAX_ARRAYS:
        raise InputError(f"{len(tlb.arrays)} TLB arrays: there can be at most 16")
    structure = ffi.new(
        "vtx_shape *",
        {
            "ept_vpid_cap": shape.msr(_IA32_VMX_EPT_VPID_CAP),
            "maxphyaddr": shape.maxphyaddr,
            "linear_bits": shape.linear_bits,
            "page_1g": "page_1g" in shape.features,
            "pml5": tlb.pml5,
            "pml4": tlb.pml4,
            "pdpt": tlb.pdpt,
            "pd": tlb.pd,
            "guest_physical": tlb.guest_physical,
            "array_count": len(tlb.arrays),
            "arrays": [_tlb_array(array) for array in tlb.arrays],
            "caches": [_data_cache(cache) for cache in shape.data_caches],
        },
    )
    error = lib.vtx_shape_error(structure)
    if error != ffi.NULL:
        raise InputError(f"{shape.name}: {ffi.string(error).decode()}")
    return structure


_SUFFIXES: Mapping[int, tuple[str, ...]] = {
    3: ("4k", "2m", "1g"),
    4: ("fetch", "load", "store", "modify"),
    6: ("level0", "level1", "level2", "level3", "level4", "level5"),
}


_CACHES = ("l1", "l2", "l3", "memory")


def _counter_names() -> list[tuple[str, str, int | None]]:
    """List the counters as (key, member, index), from the structure itself."""
    names: list[tuple[str, str, int | None]] = []
    for member, field in ffi.typeof("vtx_counters").fields:
        if field.type.kind != "array":
            names.append((member, member, None))
            continue
        by_cache = member in ("guest_walk", "ept_walk")
        for index, suffix in enumerate(_CACHES if by_cache else _SUFFIXES[field.type.length]):
            if suffix != "level0":
                names.append((f"{member}_{suffix}", member, index))
    return names


_COUNTERS = _counter_names()
_NULL = ffi.NULL
# The functions of every access, under names that need no look-up in the library.
_translate, _run = lib.vtx_translate, lib.vtx_run
_INSTRUCTION, _APIC_ACCESS = int(lib.VTX_INSTRUCTION), int(lib.VTX_APIC_ACCESS)
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_CR4_PGE = 1 << 7
_CR4_PCIDE = 1 << 17
_CR4_SMEP = 1 << 20


class Mmu:
    """Address translation of one logical processor.

    Parameters
    ----------
    memory : Memory
        Where paging structures are; shared by the machine's processors.
    shape : Shape
        Address widths, EPT capabilities and TLB geometry.

    Raises
    ------
    InputError
        The shape's widths or TLB geometry are impossible.

    Notes
    -----
    Distinct objects may be used by distinct threads at the same time; one object may not.
    """

    def __init__(self, memory: Memory, shape: Shape) -> None:
        structure = _c_shape(shape)
        handle = lib.vtx_mmu_new(memory.handle, structure)
        if handle == ffi.NULL:
            raise NotSupported(f"there is not enough host memory for the TLBs of {shape.name}")
        self._memory = memory.handle  # the C side points into it
        self._c: Any = ffi.gc(handle, lib.vtx_mmu_free)
        self._counters: Any = lib.vtx_mmu_counters(self._c)
        self._out: Any = ffi.new("vtx_walk *")
        self._index: Any = ffi.new("uint64_t *")
        self._records: Any = None
        self._records_pointer: Any = None
        self._dispositions: Any = None
        self._dispositions_pointer: Any = ffi.NULL
        self._dispositions_count = 0

    # ---- Translation --------------------------------------------------------------------------

    def translate(
        self, context: Context, gva: int, access: int = Access.LOAD, *, record: bool = False
    ) -> Walk:
        """Translate one linear address through the TLBs, walking where they miss.

        Parameters
        ----------
        context : Context
            What to translate under.
        gva : int
            Linear address, 64 bits.
        access : Access
            What the access is.
        record : bool
            Keep every reference of the walk in :attr:`Walk.steps`.
        """
        return self._call(lib.vtx_translate, context, gva, access, record)

    def locate(self, context: Context, gva: int, access: int) -> int | Walk:
        """Translate as :meth:`translate`; return the host-physical address alone.

        Returns
        -------
        int or Walk
            Where there is no translation, the walk that says why.
        """
        out = self._out
        if _translate(self._c, context._c, gva, access, out, _NULL, 0):
            self._out = ffi.new("vtx_walk *")
            return Walk(out)
        address: int = out.hpa
        return address

    def fetcher(self, context: Context, gva: int) -> Callable[[], int]:
        """Return a function that makes an instruction fetch if the first-level TLB translates it.

        Parameters
        ----------
        context : Context
            What to translate under, at every call as it is then.
        gva : int
            Linear address.

        Returns
        -------
        callable
            ``fetch()`` is 1 after a fetch as :meth:`locate` makes it; 0 if that would have to look
            further: then nothing has happened.
        """
        fetch = ffi.new("vtx_fetch *", {"mmu": self._c, "context": context._c, "gva": gva})
        _POINTED_TO[fetch] = (self._c, context._c)
        return partial(lib.vtx_fetch_hit, fetch)

    def walk(
        self, context: Context, gva: int, access: int = Access.LOAD, *, record: bool = True
    ) -> Walk:
        """Translate one linear address by a full walk that neither uses nor fills any cache.

        Accessed and dirty flags are set as by any access; the counters stand still.
        """
        return self._call(lib.vtx_walk_tables, context, gva, access, record)

    def translate_guest_physical(
        self, context: Context, gpa: int, access: int = Access.LOAD, *, record: bool = False
    ) -> Walk:
        """Translate a guest-physical address by EPT alone, as MOV to CR3 does to load PDPTEs.

        Without EPT the address is the physical address. Qualifications have bits 7 and 8 clear.
        """
        return self._call(lib.vtx_translate_guest_physical, context, gpa, access, record)

    def _call(
        self, function: Any, context: Context, address: int, access: int, record: bool
    ) -> Walk:
        out = ffi.new("vtx_walk *")
        if not record:
            function(self._c, context._c, address, access, out, ffi.NULL, 0)
            return Walk(out)
        steps = ffi.new("vtx_step[]", lib.VTX_MAX_STEPS)
        function(self._c, context._c, address, access, out, steps, lib.VTX_MAX_STEPS)
        return Walk(out, steps)

    def translate_many(
        self, context: Context, gvas: Any, accesses: Any = Access.LOAD
    ) -> Translations:
        """Translate many linear addresses in order, each as :meth:`translate` would.

        Parameters
        ----------
        context : Context
            What to translate under.
        gvas : array of uint64
            Linear addresses.
        accesses : Access or array of uint8
            One for all, or one an address.

        Raises
        ------
        InputError
            An array is of another type or shape.
        """
        addresses, kinds, stride = _requests(gvas, accesses)
        rows, out = _rows(len(addresses))
        lib.vtx_translate_many(self._c, context._c, len(addresses), addresses, kinds, stride, out)
        return _translations(rows)

    def walk_many(
        self,
        context: Context,
        gvas: Any,
        accesses: Any = Access.LOAD,
        *,
        side_by_side: bool = True,
    ) -> Translations:
        """Translate many linear addresses, each as :meth:`walk` would, which counts nothing.

        Parameters
        ----------
        context : Context
            What to translate under.
        gvas : array of uint64
            Linear addresses.
        accesses : Access or array of uint8
            One for all, or one an address.
        side_by_side : bool
            Let walks overlap that wait for the host's memory (one access for all only). They must
            not change what each other reads: a page-modification log in the tables would.

        Raises
        ------
        InputError
            An array is of another type or shape.
        """
        addresses, kinds, stride = _requests(gvas, accesses)
        rows, out = _rows(len(addresses))
        lib.vtx_walk_many(
            self._c, context._c, len(addresses), addresses, kinds, stride, int(side_by_side), out
        )
        return _translations(rows)

    def run(
        self,
        context: Context,
        records: Any,
        start: int = 0,
        stop: int | None = None,
        dispositions: Any = None,
        *,
        first_page_only: bool = False,
    ) -> RunResult:
        """Run packed records from `start` until `stop`, or until something needs Python.

        A record is ``kind << 62 | size << 48 | address``: kind as in :class:`Access`, size in
        bytes, the low 48 bits of the linear address (bit 47 is sign-extended). Kind 0 with size 0
        is an instruction: the low 48 bits are an index into `dispositions`.

        Parameters
        ----------
        context : Context
            What to translate under; `pml_index` changes.
        records : array of uint64
            The stream; a memory-mapped file is fine.
        start, stop : int
            The window of records; `stop` is excluded, None is the end.
        dispositions : array of uint8, optional
            By instruction: 0 return with status INSTRUCTION, 1 nothing to do, go on.
        first_page_only : bool
            A reference that crosses a page is translated for its first page only.

        Raises
        ------
        InputError
            An array is of another type or shape, or the window is not in the stream.
        """
        if records is not self._records:
            self._records_pointer = _flat(records, 8, "records")
            self._records = records
        if dispositions is not self._dispositions:
            self._set_dispositions(dispositions)
        pointer = self._records_pointer
        count = len(pointer)
        if stop is None:
            stop = count
        if not 0 <= start <= stop <= count:
            raise InputError(f"records {start} to {stop} are not in a stream of {count}")
        index = self._index
        index[0] = start
        out = self._out
        status = _run(
            self._c,
            context._c,
            pointer,
            index,
            stop,
            self._dispositions_pointer,
            self._dispositions_count,
            int(first_page_only),
            out,
        )
        if status >= _INSTRUCTION and status != _APIC_ACCESS:
            return RunResult(STATUSES[status], index[0], out.operand)
        self._out = ffi.new("vtx_walk *")
        return RunResult(STATUSES[status], index[0], 0, Walk(out))

    def _set_dispositions(self, dispositions: Any) -> None:
        if dispositions is None:
            self._dispositions_pointer, self._dispositions_count = ffi.NULL, 0
        else:
            self._dispositions_pointer = _flat(dispositions, 1, "dispositions")
            self._dispositions_count = len(self._dispositions_pointer)
        self._dispositions = dispositions

    # ---- Invalidation (SDM, "Operations that Invalidate Cached Mappings") ----------------------

    def invlpg(self, context: Context, gva: int) -> None:
        """INVLPG: the page's mappings of the current VPID and PCID, and global ones."""
        lib.vtx_invlpg(self._c, context._c, gva)

    def invpcid(self, context: Context, kind: int, pcid: int = 0, gva: int = 0) -> None:
        """INVPCID of type `kind` (0 address, 1 PCID, 2 all, 3 all but global) in the current VPID.

        Raises
        ------
        InputError
            There is no such type.
        """
        if not lib.vtx_invpcid(self._c, context._c, kind, pcid, gva):
            raise InputError(f"INVPCID has types 0 to 3, not {kind}")

    def invept(self, kind: int, eptp: int = 0) -> None:
        """INVEPT of type `kind`: 1 the mappings of `eptp`, 2 those of every EPTP.

        Raises
        ------
        InputError
            There is no such type.
        """
        if not lib.vtx_invept(self._c, kind, eptp):
            raise InputError(f"INVEPT has types 1 and 2, not {kind}")

    def invvpid(self, kind: int, vpid: int = 0, gva: int = 0) -> None:
        """INVVPID of type `kind`: 0 address, 1 VPID, 2 all VPIDs but 0, 3 VPID but its globals.

        Raises
        ------
        InputError
            There is no such type.
        """
        if not lib.vtx_invvpid(self._c, kind, vpid, gva):
            raise InputError(f"INVVPID has types 0 to 3, not {kind}")

    def mov_to_cr3(self, context: Context, value: int) -> None:
        """Invalidate what MOV to CR3 of `value` does; the context is not changed.

        With CR4.PCIDE, bit 63 of `value` keeps the cached mappings of its PCID.
        """
        pcide = context.cr4 & _CR4_PCIDE
        if pcide and value >> 63:
            return
        lib.vtx_flush_pcid(self._c, context._c, value & 0xFFF if pcide else 0)

    def mov_to_cr4(self, context: Context, value: int) -> None:
        """Invalidate what MOV to CR4 of `value` does; the context still has the old CR4.

        For PAE and SMEP the manual asks for the mappings of the current PCID; all of the VPID go.
        """
        changed = context.cr4 ^ value
        set_, cleared = changed & value, changed & ~value
        if changed & (_CR4_PGE | _CR4_PAE) or cleared & _CR4_PCIDE or set_ & _CR4_SMEP:
            lib.vtx_flush_vpid(self._c, context.vpid)

    def mov_to_cr0(self, context: Context, value: int) -> None:
        """Invalidate what MOV to CR0 of `value` does: everything of the VPID if it clears PG."""
        if context.cr0 & ~value & _CR0_PG:
            lib.vtx_flush_vpid(self._c, context.vpid)

    def flush_vpid(self, vpid: int = 0) -> None:
        """Forget all linear and combined mappings of a VPID.

        VM entries and VM exits do this to VPID 0 when they run without VPIDs.
        """
        lib.vtx_flush_vpid(self._c, vpid)

    def flush_all(self) -> None:
        """Forget everything, as reset does."""
        lib.vtx_flush_all(self._c)

    @property
    def generation(self) -> int:
        """A number that grows whenever a translation obtained earlier may have become stale."""
        number: int = lib.vtx_mmu_generation(self._c)
        return number

    # ---- Counters -----------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Return every counter of the core by name.

        Arrays have one key an element: ``references_fetch`` (``_load``, ``_store``, ``_modify``),
        ``guest_references_level4``, ``ept_references_level1``, ``fills_2m`` and so on. With data
        caches in the shape, ``guest_walk_l1`` (``_l2``, ``_l3``, ``_memory``) and ``ept_walk_l1``
        ... count the same references by what had the entry.
        """
        structure = self._counters
        return {
            key: getattr(structure, member) if index is None else getattr(structure, member)[index]
            for key, member, index in _COUNTERS
        }

    def reset_counters(self) -> None:
        """Set every counter to 0; cached translations stay."""
        ffi.memmove(self._counters, bytes(ffi.sizeof("vtx_counters")), ffi.sizeof("vtx_counters"))
