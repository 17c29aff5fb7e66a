"""Records of references: how one is packed, and what makes one impossible."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx._core import ffi, lib
from vtx.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["KINDS", "MOST_BYTES", "RECORD_BYTES", "Columns", "check_records", "pack", "unpack"]

#: Kinds of access by number.
KINDS = ("fetch", "load", "store", "modify")
RECORD_BYTES = 8
#: No reference touches more than two pages.
MOST_BYTES = 4096
_KIND_SHIFT, _SIZE_SHIFT = 62, 48
_SIZE_MASK = (1 << 14) - 1


class Columns(NamedTuple):
    """Records taken apart: arrays of equal length.

    Attributes
    ----------
    kinds : ndarray of uint8
        Index into :data:`KINDS`.
    sizes : ndarray of uint16
        Bytes.
    addresses : ndarray of uint64
        Linear addresses, bit 47 extended to bit 63.
    """

    kinds: NDArray[np.uint8]
    sizes: NDArray[np.uint16]
    addresses: NDArray[np.uint64]


def pack(kinds: ArrayLike, sizes: ArrayLike, addresses: ArrayLike) -> NDArray[np.uint64]:
    """Return the records of references given as columns of equal length (or single values).

    Parameters
    ----------
    kinds : array_like of int
        0 fetch, 1 load, 2 store, 3 modify.
    sizes : array_like of int
        Bytes, 1 to 4096.
    addresses : array_like of int
        Linear addresses; bits 63:48 are dropped.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Raises
    ------
    InputError
        A kind or a size is out of range.
    """
    import numpy as np

    kind, size, address = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(column)) for column in (kinds, sizes, addresses))
    )
    if len(kind) and (kind.min() < 0 or kind.max() > 3):
        raise InputError("a kind of access is 0, 1, 2 or 3")
    if len(size) and (size.min() < 1 or size.max() > MOST_BYTES):
        raise InputError(f"a reference touches 1 to {MOST_BYTES} bytes")
    low = address.astype(np.uint64) & np.uint64((1 << _SIZE_SHIFT) - 1)
    sized = size.astype(np.uint64) << np.uint64(_SIZE_SHIFT)
    return np.asarray(kind.astype(np.uint64) << np.uint64(_KIND_SHIFT) | sized | low)


def unpack(records: NDArray[np.uint64]) -> Columns:
    """Take records apart.

    Parameters
    ----------
    records : ndarray of uint64, shape (n,)
    """
    import numpy as np

    kinds = (records >> np.uint64(_KIND_SHIFT)).astype(np.uint8)
    sizes = (records >> np.uint64(_SIZE_SHIFT)).astype(np.uint16) & np.uint16(_SIZE_MASK)
    low = (records << np.uint64(16)).view(np.int64) >> np.int64(16)
    return Columns(kinds, sizes, low.view(np.uint64))


def check_records(
    records: NDArray[np.uint64], first: int, name: str, kinds: list[int] | None
) -> None:
    """Refuse records that are no references, and count the others by kind.

    A fetch of no bytes means an instruction to the run loop.

    Parameters
    ----------
    records : ndarray of uint64, C-contiguous
        A part of a stream.
    first : int
        Number of its first record in the stream.
    name : str
        Of the stream, for messages.
    kinds : list of 4 int, or None
        To which the references are added; without it reading is faster.

    Raises
    ------
    InputError
        One fetches no bytes, or touches more than 4096.
    """
    counted = ffi.NULL if kinds is None else ffi.new("uint64_t[4]")
    pointer = ffi.from_buffer("uint64_t[]", records)
    bad = lib.vtx_stream_check(pointer, len(records), counted)
    if bad == len(records):
        if kinds is not None:
            kinds[:] = [have + more for have, more in zip(kinds, counted, strict=True)]
        return
    size = int(records[bad]) >> _SIZE_SHIFT & _SIZE_MASK
    what = "fetches 0 bytes" if size == 0 else f"touches {size} bytes, more than {MOST_BYTES}"
    raise InputError(
        f"record {first + bad} of the stream {name} {what}",
        hint="is it a stream? kind << 62 | size << 48 | linear address",
    )
