"""What an exit says about itself, whatever its reason: named parts of its information words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vtx.errors import UnknownName
from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.layout import UNNAMED, DecodedBits, Layout, decode
from vtx.facts.qualifications import INSTRUCTION_INFORMATION, qualification_layout

__all__ = ["Details", "exit_layouts"]


def exit_layouts(
    reason: ExitReason, vector: int | None, *, nmi: bool
) -> tuple[Layout | None, Layout | None]:
    """Return the layouts of an exit's qualification and of its instruction information.

    Parameters
    ----------
    reason : ExitReason
        Basic exit reason.
    vector : int or None
        Of the exception, for exits with reason 0.
    nmi : bool
        Whether that event is an NMI.
    """
    name = EXITS[reason].instruction_information
    return (
        qualification_layout(reason, vector, nmi=nmi),
        INSTRUCTION_INFORMATION[name] if name else None,
    )


class Details(Mapping[str, int]):
    """Parts of one or two words, as attributes and as a mapping in the order of their bits.

    Parameters
    ----------
    words : iterable of (Layout, int)
        The words and what their bits mean. Where two have a part of one name, the first counts.
    """

    __slots__ = ("_parts",)

    def __init__(self, words: Iterable[tuple[Layout, int]]) -> None:
        self._parts: dict[str, DecodedBits] = {}
        for layout, word in words:
            for part in decode(layout, word):
                if part.range.name not in UNNAMED:
                    self._parts.setdefault(part.range.name, part)

    def __getitem__(self, name: str) -> int:
        return self._parts[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getattr__(self, name: str) -> int:
        try:
            return self._parts[name].value
        except KeyError:
            raise AttributeError(
                str(UnknownName("detail of this exit", name, self._parts))
            ) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._parts]

    def meaning(self, name: str) -> str:
        """Return in words what a part holds.

        Raises
        ------
        UnknownName
            The exit has no such part.
        """
        part = self._parts.get(name)
        if part is None:
            raise UnknownName("detail of this exit", name, self._parts)
        return part.means if part.range.values else part.range.meaning

    def __repr__(self) -> str:
        return (
            "<" + ", ".join(f"{name}={part.value:#x}" for name, part in self._parts.items()) + ">"
        )
