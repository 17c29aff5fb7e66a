"""EPT paging-structure entries explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vtx import sdm
from vtx.bits import bit, bits
from vtx.errors import UnknownName
from vtx.explanation.article import Article
from vtx.explanation.tables import layout_table
from vtx.facts.ept import ENTRY_FORMATS, MEMORY_TYPE, MISCONFIGURATIONS, VIOLATIONS
from vtx.facts.layout import Layout
from vtx.facts.lookup import canonical
from vtx.facts.sentences import listed

__all__ = ["ept_entry_articles"]

_ANY: Final = frozenset({"", "entry", "entries", "epte", "ept_entry"})
_LEAVES: Final = frozenset({"pdpte_1gb", "pde_2mb", "pte"})
_LARGE: Final = frozenset({"pdpte_1gb", "pde_2mb"})


def ept_entry_articles(what: str, value: int | None = None) -> list[Article]:
    """Explain an EPT entry by the name of its format, or all formats; decode a value.

    Parameters
    ----------
    what : str
        ``"pml5e"`` to ``"pte"``; ``"pde"`` and ``"pdpte"`` mean both forms; ``"entry"`` all.
    value : int, optional
        The entry, 64 bits.

    Raises
    ------
    UnknownName
        There is no such format.
    """
    key = canonical(what).removeprefix("ept_").removeprefix("ept")
    formats = [
        layout
        for name, layout in ENTRY_FORMATS.items()
        if (key in _ANY and what.strip()) or name == key or name.startswith(f"{key}_")
    ]
    if not formats:
        raise UnknownName("EPT entry", what, [f"ept {name}" for name in ENTRY_FORMATS])
    fitting = [layout for layout in formats if value is None or _fits(layout, value)] or formats
    return [_article(what, fitting, value)]


def _fits(layout: Layout, value: int) -> bool:
    """Tell whether bit 7 of the entry chooses this format."""
    return layout.name == "pte" or bool(bit(value, 7)) == (layout.name in _LARGE)


def _article(what: str, formats: list[Layout], value: int | None) -> Article:
    name = formats[0].name if len(formats) == 1 else "ept entry"
    return Article(
        kind="ept entry",
        name=name,
        number=None,
        title=formats[0].title if len(formats) == 1 else "EPT paging-structure entries",
        summary="An entry with bits 2:0 all 0 (and bit 10, with mode-based execute control) is not "
        "present: the walk ends in an EPT violation. A present one is tested for misconfiguration "
        "before its permissions are.",
        facts={
            "Misconfigured if": "; ".join(MISCONFIGURATIONS),
            "Violated by": "; ".join(VIOLATIONS),
        },
        tables=tuple(
            layout_table(layout, value, "" if value is None else _sentence(layout, value))
            for layout in formats
        ),
        sections=(sdm.EPT_TRANSLATION_MECHANISM.citation, sdm.EPT_MISCONFIGURATIONS.citation),
        related=("exit ept_violation", "exit ept_misconfiguration"),
    )


def _sentence(layout: Layout, value: int) -> str:
    """Say what an entry allows, where it points, and what is wrong with it."""
    if not value & 0x407:
        return "Not present: an access that needs this entry is an EPT violation."
    allowed = [
        word
        for position, word in enumerate(("reads", "writes", "instruction fetches"))
        if bit(value, position)
    ]
    address = layout.range("address")
    target = address.of(value) << address.low
    leaf = layout.name in _LEAVES
    kind = MEMORY_TYPE.get(bits(value, 5, 3), "a reserved memory type")
    points = f"maps the page at {target:#x} ({kind})" if leaf else f"references {target:#x}"
    sentence = f"Allows {listed(allowed) or 'only what bit 10 says'} and {points}."
    wrong = list(_misconfigured(layout, value))
    if wrong:
        sentence += f" Misconfigured: {listed(wrong)}."
    elif value & 0b101 == 0b100:
        sentence += " Execute-only: misconfigured unless IA32_VMX_EPT_VPID_CAP[0] is 1."
    return sentence


def _misconfigured(layout: Layout, value: int) -> Iterator[str]:
    """Yield what makes a present entry misconfigured on any CPU (SDM, "EPT Misconfigurations")."""
    if value & 0b011 == 0b010:
        yield "writable but not readable"
    for part in layout.ranges:
        if part.name == "reserved" and part.of(value):
            yield f"reserved bits {part.label} are not 0"
    if layout.name in _LEAVES and bits(value, 5, 3) not in MEMORY_TYPE:
        yield f"memory type {bits(value, 5, 3)} is reserved"
