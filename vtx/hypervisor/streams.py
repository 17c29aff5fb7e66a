"""Recorded reference streams: columns of unsigned 64-bit records in array files.

A record is ``kind << 62 | size << 48 | linear address``: kind 0 is an instruction fetch, 1 a load,
2 a store, 3 a modify (a load and a store of the same place); size is in bytes. Files are
memory-mapped; a compressed one is decompressed once.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAXIMUM_UNPACKED_BYTES", "open_stream"]

#: A compressed stream may not be larger than this when unpacked; unpack a larger one to a file.
MAXIMUM_UNPACKED_BYTES = 2 << 30
_CHUNK_BYTES = 1 << 20
_RECORD_BYTES = 8
_COMPRESSED: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}
_SUFFIXES = (".u64", ".npy", ".u64.xz", ".u64.gz")
_CHECKED_AT_ONCE = 1 << 20
_ADDRESS_BITS = 48
_SIZE_MASK = (1 << 14) - 1
#: No reference touches more than two pages.
_MOST_BYTES = 4096


def open_stream(path: Path) -> NDArray[np.uint64]:
    """Return the records of a stream, memory-mapped where the file is not compressed.

    Parameters
    ----------
    path : Path
        A raw little-endian array (``.u64``), the same compressed (``.u64.xz``, ``.u64.gz``), or a
        NumPy array file (``.npy``) of dtype uint64.

    Returns
    -------
    ndarray of uint64, shape (n,)
        n >= 1; read-only.

    Raises
    ------
    InputError
        The file is missing, truncated, empty, too large, damaged, or of another type.
    """
    try:
        records = _read(path)
        _check(records, path)
    except OSError as error:
        # lzma and gzip raise OSErrors without a number for damaged files.
        reason = error.strerror or str(error)
        if path.is_dir():
            reason = "it is a directory"
        raise InputError(f"cannot read the stream {path}: {reason}") from None
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise InputError(f"the stream {path} is damaged: {error}") from None
    except ValueError as error:
        raise InputError(f"the stream {path} is not a readable array: {error}") from None
    return records


def _read(path: Path) -> NDArray[np.uint64]:
    if not path.name.endswith(_SUFFIXES):
        raise InputError(
            f"{path.name!r} is no kind of stream",
            hint=f"a stream file ends in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}",
        )
    if path.suffix in _COMPRESSED:
        return _unpack(path)
    if path.suffix == ".npy":
        return _map_npy(path)
    return _map_raw(path)


def _map_raw(path: Path) -> NDArray[np.uint64]:
    import numpy as np

    _check_size(path.stat().st_size, path)
    return np.memmap(path, dtype="<u8", mode="r")


def _map_npy(path: Path) -> NDArray[np.uint64]:
    import numpy as np

    array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.dtype("<u8"):
        what = f"{array.ndim}-dimensional {array.dtype}" if isinstance(array, np.ndarray) else "no"
        raise InputError(
            f"the stream {path} is a {what} array",
            hint="save a one-dimensional little-endian uint64 array",
        )
    if not len(array):
        raise InputError(f"the stream {path} is empty")
    return np.ascontiguousarray(array) if not array.flags.c_contiguous else array


def _unpack(path: Path) -> NDArray[np.uint64]:
    """Decompress a raw stream, in pieces, so that a small file cannot claim all memory."""
    import numpy as np

    unpacked = bytearray()
    with _COMPRESSED[path.suffix](path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            unpacked += chunk
            if len(unpacked) > MAXIMUM_UNPACKED_BYTES:
                raise InputError(
                    f"the stream {path} unpacks to more than {MAXIMUM_UNPACKED_BYTES >> 30} GiB",
                    hint="unpack it to a .u64 file, which is memory-mapped",
                )
    _check_size(len(unpacked), path)
    records = np.frombuffer(unpacked, dtype="<u8")
    records.flags.writeable = False
    return records


def _check_size(size_bytes: int, path: Path) -> None:
    if not size_bytes:
        raise InputError(f"the stream {path} is empty")
    if size_bytes % _RECORD_BYTES:
        raise InputError(
            f"the stream {path} is truncated: its {size_bytes} bytes are no multiple of 8",
            hint="a record has 8 bytes",
        )


def _check(records: NDArray[np.uint64], path: Path) -> None:
    """Refuse fetches of no bytes, which mean instructions to the run loop, and too large ones."""
    import numpy as np

    shift, size_mask = np.uint64(_ADDRESS_BITS), np.uint64(_SIZE_MASK)
    for start in range(0, len(records), _CHECKED_AT_ONCE):
        heads = records[start : start + _CHECKED_AT_ONCE] >> shift
        large = np.flatnonzero(heads & size_mask > _MOST_BYTES)
        if len(large):
            first = int(large[0])
            raise InputError(
                f"record {start + first} of the stream {path} touches "
                f"{int(heads[first]) & _SIZE_MASK} bytes, more than {_MOST_BYTES}",
                hint="is it a stream? kind << 62 | size << 48 | linear address",
            )
        empty = np.flatnonzero(heads == 0)
        if len(empty):
            raise InputError(
                f"record {start + int(empty[0])} of the stream {path} fetches 0 bytes",
                hint="is it a stream? kind << 62 | size << 48 | linear address",
            )
