"""Packed words drawn bit by bit, and the one function that decodes them."""

from collections.abc import Mapping
from typing import NamedTuple

from vtx.bits import bits

__all__ = ["UNNAMED", "BitRange", "DecodedBits", "Layout", "decode", "flag", "table"]

#: Names of ranges that carry no information: the manual calls them reserved, undefined or zero.
UNNAMED = frozenset({"reserved", "undefined", "zero", "ignored"})


class BitRange(NamedTuple):
    """Bits `high`:`low` of a word, both included, as the SDM writes them.

    Attributes
    ----------
    high, low : int
        Bit positions.
    name : str
        Short name; one of `UNNAMED` for bits that carry no information.
    meaning : str
        What the bits say.
    values : mapping of int to str, optional
        What each value stands for, where the bits are an enumeration.
    """

    high: int
    low: int
    name: str
    meaning: str
    values: Mapping[int, str] | None = None

    @property
    def label(self) -> str:
        """The position as the manual prints it: ``"11:8"``, or ``"7"`` for a single bit."""
        return str(self.low) if self.high == self.low else f"{self.high}:{self.low}"

    def of(self, word: int) -> int:
        """Return these bits of `word`, shifted down to bit 0."""
        return bits(word, self.high, self.low)


def flag(
    position: int, name: str, meaning: str, values: Mapping[int, str] | None = None
) -> BitRange:
    """Return the row of a single bit."""
    return BitRange(position, position, name, meaning, values)


class Layout(NamedTuple):
    """The layout of one packed word.

    Attributes
    ----------
    name : str
        Key of the layout in its table.
    width : int
        Width of the word in bits; the ranges tile it without gap or overlap.
    ranges : tuple of BitRange
        From bit 0 upwards.
    title : str
        What the word is, for a heading.
    source : str
        Where the layout is described.
    when : str, optional
        When the word has this layout.
    notes : tuple of str
        Rules and disagreements worth knowing.
    """

    name: str
    width: int
    ranges: tuple[BitRange, ...]
    title: str
    source: str
    when: str | None = None
    notes: tuple[str, ...] = ()

    def range(self, name: str) -> BitRange:
        """Return the range called `name`.

        Raises
        ------
        KeyError
            The layout has no range of this name.
        """
        for row in self.ranges:
            if row.name == name:
                return row
        raise KeyError(name)


class DecodedBits(NamedTuple):
    """One range of a decoded word.

    Attributes
    ----------
    range : BitRange
        Where the bits are and what they are for.
    value : int
        What they hold, shifted down to bit 0.
    """

    range: BitRange
    value: int

    @property
    def means(self) -> str:
        """What this value stands for, if the range is an enumeration, else the meaning."""
        if self.range.values is None:
            return self.range.meaning
        return self.range.values.get(self.value, "not defined")


def table(*layouts: Layout) -> dict[str, Layout]:
    """Return layouts by name, in the order given."""
    return {layout.name: layout for layout in layouts}


def decode(layout: Layout, value: int) -> list[DecodedBits]:
    """Take `value` apart along `layout`.

    Parameters
    ----------
    layout : Layout
        Which bits mean what.
    value : int
        The word; bits beyond the layout's width are ignored.

    Returns
    -------
    list of DecodedBits
        One for each range, from bit 0 upwards, reserved ranges included.
    """
    return [DecodedBits(row, row.of(value)) for row in layout.ranges]
