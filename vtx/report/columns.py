"""Tables of up to some hundred thousand rows, packed for a page: typed arrays in base64.

A column is an array of little-endian numbers. Words of 64 bits, which JavaScript's numbers do not
hold, and texts are a list of different values and an array of places in it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["choices", "numbers", "words"]

#: What :func:`words` and :func:`choices` show where there is no value.
NONE = ""


def _packed(array: NDArray[Any]) -> dict[str, str]:
    """Return an array as base64 with its type: a letter and the bytes of one number."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    return {"type": kind, "data": base64.b64encode(little.tobytes()).decode("ascii")}


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers from 0 on in the narrowest type that holds them."""
    import numpy as np

    most = int(array.max()) if len(array) else 0
    return array.astype(np.min_scalar_type(most))


def numbers(values: Sequence[float | None] | NDArray[Any]) -> dict[str, Any]:
    """Pack numbers; None becomes NaN."""
    import numpy as np

    return _packed(np.asarray(values, np.float64))


def words(values: NDArray[Any], known: NDArray[Any] | None = None) -> dict[str, Any]:
    """Pack unsigned words of 64 bits, which are shown in hexadecimal.

    Parameters
    ----------
    values : ndarray of uint64, shape (n,)
        The words.
    known : ndarray of bool, shape (n,), optional
        Where there is a value; everywhere by default.
    """
    import numpy as np

    different, index = np.unique(values, return_inverse=True)
    texts = [hex(value) for value in different.tolist()]
    if known is not None and not known.all():
        index = np.where(known, index, len(texts))
        texts.append(NONE)
    return {"values": texts, **_packed(_narrow(index))}


def choices(texts: Sequence[str], index: Sequence[int] | NDArray[Any]) -> dict[str, Any]:
    """Pack texts out of few: the texts, and which of them each row has."""
    import numpy as np

    return {"values": list(texts), **_packed(_narrow(np.asarray(index, np.uint64)))}
