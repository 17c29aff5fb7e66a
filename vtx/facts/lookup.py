"""Finding a row by what people write: any case, any separator, a number in any base."""

from __future__ import annotations

__all__ = ["as_number", "canonical"]

_SEPARATORS = str.maketrans({" ": "_", "-": "_", "/": "_", ".": "_"})


def canonical(name: str) -> str:
    """Return `name` as the tables spell names: lower case, words joined by ``_``."""
    return name.strip().lower().translate(_SEPARATORS)


def as_number(text: str | int) -> int | None:
    """Return the number that `text` writes (``48``, ``0x30``, ``30H``), or None for a name."""
    if isinstance(text, int):
        return int(text)
    word = text.strip().lower().replace("_", "")
    try:
        return int(word, 0)
    except ValueError:
        pass
    if word.endswith("h") and word[:1].isdigit():
        try:
            return int(word[:-1], 16)
        except ValueError:
            return None
    return int(word) if word.isdecimal() else None
