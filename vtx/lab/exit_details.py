"""What an exit was about: the port under I/O, the MSR under RDMSR, the address under EPT."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from vtx.facts.exits import ExitReason
from vtx.facts.msrs import Msr
from vtx.machine.exit_scanner import EVENT_NAMES, ExitFlag

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LEVEL_BIT", "ROW_SHIFT", "detail_keys", "detail_text", "record_detail"]

#: A key is row (12 bits), kind of detail (4 bits), its value (47 bits) and the nesting level.
ROW_SHIFT = 52
LEVEL_BIT = 1
_KIND_SHIFT = 48
_VALUE_BITS = 47
_PORT, _MSR, _CR, _DR, _REGION, _VECTOR, _EXCEPTION, _LEAF, _APIC, _EOI = range(1, 11)
#: An EPT violation is told by the 2-MByte region of its guest-physical address.
_REGION_SHIFT = 21
_REGION_BITS = _VALUE_BITS
_PAGE_FAULT = EVENT_NAMES.index("kvm_page_fault")
_MSR_EVENT = EVENT_NAMES.index("kvm_msr")
_PIO = EVENT_NAMES.index("kvm_pio")
_MMIO = EVENT_NAMES.index("kvm_mmio")
_CPUID = EVENT_NAMES.index("kvm_cpuid")
_VALID = 1 << 31
_EXTERNAL_PORT_SHIFT = 16
_OUT, _IN = 0, 1


class _Some:
    """Some of the records: one column is copied, not the whole rows."""

    def __init__(self, records: NDArray[Any], where: NDArray[np.intp]) -> None:
        self._records = records
        self._where = where

    def __getitem__(self, column: str) -> NDArray[Any]:
        some: NDArray[Any] = self._records[column][self._where]
        return some


def detail_keys(records: NDArray[Any], groups: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the key of each exit: row, kind and value of its detail, nesting level.

    Parameters
    ----------
    records : ndarray of exit_dtype, shape (n,)
        The exits.
    groups : ndarray of uint64, shape (n,)
        The row of each.
    """
    import numpy as np

    parts = np.zeros(len(records), np.uint64)
    for group in np.unique(groups).tolist():
        find = _FINDERS.get(group)
        if find is not None:
            mine = np.flatnonzero(groups == group)
            parts[mine] = find(_Some(records, mine))
    keys: NDArray[np.uint64] = groups << np.uint64(ROW_SHIFT) | parts
    keys |= (records["flags"] & ExitFlag.L2 != 0).astype(np.uint64)
    return keys


def _packed(kind: int, values: Any, known: NDArray[np.bool_]) -> NDArray[np.uint64]:
    import numpy as np

    limit = np.uint64((1 << _VALUE_BITS) - 1)
    keys = (values.astype(np.uint64) & limit) << np.uint64(1) | np.uint64(kind << _KIND_SHIFT)
    return np.where(known, keys, np.uint64(0))


def _has(records: _Some, flag: int) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = records["flags"] & flag != 0
    return known


def _ports(records: _Some) -> NDArray[np.uint64]:
    """Exit qualification: port in bits 31:16, IN in bit 3; else what kvm_pio tells."""
    import numpy as np

    info = _has(records, ExitFlag.INFO1)
    traced = records["detail_kind"] == _PIO
    told = records["info1"] >> np.uint64(16) & np.uint64(0xFFFF)
    told |= (records["info1"] >> np.uint64(3) & np.uint64(1)) << np.uint64(16)
    event = records["detail"] & np.uint64(0xFFFF)
    event = event | (~_has(records, ExitFlag.WRITE)).astype(np.uint64) << np.uint64(16)
    return _packed(_PORT, np.where(info, told, event), info | traced)


def _msrs(records: _Some) -> NDArray[np.uint64]:
    return _packed(_MSR, records["detail"], records["detail_kind"] == _MSR_EVENT)


def _crs(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    return _packed(_CR, records["info1"] & np.uint64(0x3F), _has(records, ExitFlag.INFO1))


def _drs(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    return _packed(_DR, records["info1"] & np.uint64(0x17), _has(records, ExitFlag.INFO1))


def _regions(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    kind = records["detail_kind"]
    known = (kind == _PAGE_FAULT) | (kind == _MMIO)
    return _packed(_REGION, records["detail"] >> np.uint64(_REGION_SHIFT), known)


def interruption(records: _Some) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return VM-exit interruption information, and where it is known and valid."""
    import numpy as np

    told = _has(records, ExitFlag.INTR_INFO)
    old = _has(records, ExitFlag.OLD_INFO) & ~told
    info = np.where(told, records["intr_info"].astype(np.uint64), records["info2"])
    return info, (told | old) & (info & np.uint64(_VALID) != 0)


def _vectors(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    info, known = interruption(records)
    return _packed(_VECTOR, info & np.uint64(0xFF), known)


def _exceptions(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    info, known = interruption(records)
    return _packed(_EXCEPTION, info & np.uint64(0x7FF), known)


def _leaves(records: _Some) -> NDArray[np.uint64]:
    return _packed(_LEAF, records["detail"], records["detail_kind"] == _CPUID)


def _apic(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    return _packed(_APIC, records["info1"] & np.uint64(0xFFF), _has(records, ExitFlag.INFO1))


def _eois(records: _Some) -> NDArray[np.uint64]:
    import numpy as np

    return _packed(_EOI, records["info1"] & np.uint64(0xFF), _has(records, ExitFlag.INFO1))


_FINDERS = {
    int(ExitReason.EXCEPTION_OR_NMI): _exceptions,
    int(ExitReason.EXTERNAL_INTERRUPT): _vectors,
    int(ExitReason.CPUID): _leaves,
    int(ExitReason.CR_ACCESS): _crs,
    int(ExitReason.DR_ACCESS): _drs,
    int(ExitReason.IO_INSTRUCTION): _ports,
    int(ExitReason.RDMSR): _msrs,
    int(ExitReason.WRMSR): _msrs,
    int(ExitReason.APIC_ACCESS): _apic,
    int(ExitReason.VIRTUALIZED_EOI): _eois,
    int(ExitReason.EPT_VIOLATION): _regions,
    int(ExitReason.EPT_MISCONFIGURATION): _regions,
    int(ExitReason.APIC_WRITE): _apic,
}


# ---- As text ------------------------------------------------------------------------------------


@cache
def _msr_name(number: int) -> str:
    try:
        return f" {Msr(number).name}"
    except ValueError:
        if 0x800 <= number <= 0x83F:
            return f" x2APIC {(number - 0x800) << 4:#x}"
        return ""


_CR_ACCESSES = ("mov to cr{}", "mov from cr{}", "clts", "lmsw")
_EVENT_TYPES = {0: "interrupt", 2: "NMI", 3: "exception", 4: "INT n", 5: "#DB", 6: "exception"}


def detail_text(number: int | None, part: int) -> str:
    """Return the words for the detail of a key, without its row and level; empty for none."""
    kind, value = part >> _KIND_SHIFT & 0xF, part >> 1 & ((1 << _VALUE_BITS) - 1)
    if value == (1 << _VALUE_BITS) - 1:
        return "others"
    return _TEXTS[kind](value) if kind in _TEXTS else ""


def _region_text(value: int) -> str:
    start = value << _REGION_SHIFT
    return f"gpa {start:#x}-{start + (1 << _REGION_SHIFT) - 1:#x}"


_TEXTS: dict[int, Callable[[int], str]] = {
    _PORT: lambda v: f"port {v & 0xFFFF:#x} {'in' if v >> 16 & 1 else 'out'}",
    _MSR: lambda v: f"msr {v:#x}{_msr_name(v)}",
    _CR: lambda v: _CR_ACCESSES[v >> 4].format(v & 0xF),
    _DR: lambda v: f"mov {'from' if v & 0x10 else 'to'} dr{v & 7}",
    _REGION: _region_text,
    _VECTOR: lambda v: f"vector {v:#x}",
    _EXCEPTION: lambda v: f"{_EVENT_TYPES.get(v >> 8, 'event')} {v & 0xFF}",
    _LEAF: lambda v: f"leaf {v:#x}",
    _APIC: lambda v: f"offset {v:#x}",
    _EOI: lambda v: f"vector {v:#x}",
}


def record_detail(record: Any, number: int | None) -> str:
    """Return what one exit was about, with the whole address where there is one."""
    import numpy as np

    if int(record["detail_kind"]) in (_PAGE_FAULT, _MMIO):
        return f"gpa {int(record['detail']):#x}"
    find = None if number is None else _FINDERS.get(number)
    if find is None:
        return ""
    one = _Some(np.asarray([record], dtype=record.dtype), np.zeros(1, np.intp))
    return detail_text(number, int(find(one)[0]))
