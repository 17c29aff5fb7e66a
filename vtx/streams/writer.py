"""Column files, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vtx.errors import UsageError, VtxError
from vtx.streams.column import HEADER_BYTES, Header
from vtx.streams.record import check_records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["write_stream"]


def write_stream(
    path: str | Path, chunks: Iterable[NDArray[np.uint64]], *, replace: bool = False
) -> Header:
    """Write records into a column file.

    The file appears under its name when all of it is written; if anything goes wrong before, or
    the work is interrupted, nothing remains.

    Parameters
    ----------
    path : str or Path
        The file.
    chunks : iterable of ndarray of uint64, shape (n,)
        The records in order.
    replace : bool
        Let it take the place of an existing file.

    Raises
    ------
    InputError
        A record is no reference.
    UsageError
        The file exists.
    VtxError
        It cannot be written.
    """
    target = Path(path)
    if not replace and target.exists():
        raise UsageError(f"{target} exists (--force overwrites it)")
    target = target.resolve()
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise VtxError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        header = _fill(handle, chunks, str(path))
        _publish(name, target, replace)
    except FileExistsError:
        raise UsageError(f"{path} exists (--force overwrites it)") from None
    except OSError as error:
        raise VtxError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return header


def _fill(handle: int, chunks: Iterable[NDArray[np.uint64]], name: str) -> Header:
    import numpy as np

    count, kinds = 0, [0, 0, 0, 0]
    with os.fdopen(handle, "wb", buffering=0) as file:
        file.seek(HEADER_BYTES)
        for chunk in chunks:
            records = np.ascontiguousarray(chunk, dtype=np.uint64)
            check_records(records, count, name, kinds)
            _write_all(file.fileno(), records.astype("<u8", copy=False).data.cast("B"))
            count += len(records)
        fetches, loads, stores, modifies = kinds
        header = Header(count, (fetches, loads, stores, modifies))
        file.seek(0)
        _write_all(file.fileno(), memoryview(header.to_bytes()))
        os.fsync(file.fileno())
    return header


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _publish(name: str, target: Path, replace: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    if replace:
        os.replace(name, target)
    else:
        os.link(name, target)  # unlike a rename, fails if the file has come to exist
