"""YAML text as a tree in which every value knows the line it stands on.

Messages about a profile must name file and line, so the reader works on YAML's nodes and not
on the dictionaries that ``yaml.safe_load`` would make of them. Aliases are refused: they add
nothing to a profile, and a few lines of them can describe billions of values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError, UnknownName

if TYPE_CHECKING:
    import yaml

__all__ = ["Item", "parse_document", "read_document", "read_text"]

#: No profile comes near these; a file that does is something else.
_MOST_BYTES = 1 << 20
_MOST_DEPTH = 20

_SCALARS = ("str", "int", "float", "bool", "null")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Item:
    """A value of a YAML document and where it stands.

    Parameters
    ----------
    value : object
        ``dict[str, Item]``, ``list[Item]`` or a scalar.
    file : str
        Name of the file, for messages.
    line, column : int
        Counted from 1.
    """

    value: Any
    file: str
    line: int
    column: int

    def error(self, message: str, hint: str | None = None) -> InputError:
        """Return an error that points here."""
        return InputError(message, file=self.file, line=self.line, column=self.column, hint=hint)

    def mapping(self, what: str, keys: Collection[str]) -> dict[str, Item]:
        """Return the entries, whose keys must be among `keys`."""
        entries = self.entries(what)
        for key, item in entries.items():
            if key not in keys:
                raise UnknownName(f"key of {what}", key, keys).at(item.file, item.line, item.column)
        return entries

    def replaced(self, keys: Sequence[str], value: object) -> Item:
        """Return this mapping with one entry set to `value`; nested keys lead to it.

        What is no mapping on the way (``ept: on``) becomes one.
        """
        held = self.value if isinstance(self.value, dict) else {}
        first, *rest = keys
        inner = held.get(first, Item({}, self.file, self.line, self.column))
        item = inner.replaced(rest, value) if rest else self._made(value)
        return Item({**held, first: item}, self.file, self.line, self.column)

    def _made(self, value: object) -> Item:
        """Return a plain value as an item that stands where this one does."""
        if isinstance(value, dict):
            value = {key: self._made(part) for key, part in value.items()}
        elif isinstance(value, list | tuple):
            value = [self._made(part) for part in value]
        return Item(value, self.file, self.line, self.column)

    def entries(self, what: str) -> dict[str, Item]:
        """Return the entries of a mapping, whatever their keys."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping of keys to values, not {self._kind()}")
        return self.value

    def items(self, what: str) -> list[Item]:
        """Return the items of a sequence."""
        if not isinstance(self.value, list):
            raise self.error(f"{what} must be a list, not {self._kind()}")
        return self.value

    def text(self, what: str) -> str:
        """Return a string that is not empty."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"{what} must be text, not {self._kind()}")
        return self.value.strip()

    def choice(self, what: str, choices: Collection[str]) -> str:
        """Return one of `choices`."""
        name = self.text(what)
        if name not in choices:
            raise UnknownName(what, name, choices).at(self.file, self.line, self.column)
        return name

    def integer(self, what: str, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.error(f"{what} must be an integer, not {self._kind()}")
        if not low <= self.value <= high:
            raise self.error(f"{what} is {_short(self.value)}, not in {_short(low)}-{_short(high)}")
        return self.value

    def number(self, what: str, low: float, high: float) -> int | float:
        """Return a finite number from `low` to `high`, both included."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"{what} must be a number, not {self._kind()}")
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise self.error(f"{what} must be a finite number")
        if self.value < low:
            raise self.error(f"{what} is {_short(self.value)}, and cannot be below {low:g}")
        if self.value > high:
            raise self.error(f"{what} is {_short(self.value)}, and cannot be above {high:g}")
        return self.value

    def _kind(self) -> str:
        if self.value is None:
            return "empty"
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        return repr(self.value) if len(repr(self.value)) <= 40 else "something long"


def _short(value: int | float) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if abs(value) < 1 << 16 else f"{value:#x}"[:24]


def read_document(path: Path, what: str = "profile", most_bytes: int = _MOST_BYTES) -> Item:
    """Read a YAML file.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What the file should be, for messages.
    most_bytes : int
        A longer file is something else.

    Raises
    ------
    InputError
        The file cannot be read, is empty, is not text, or is not YAML.
    """
    return parse_document(read_text(path, what, most_bytes), str(path), what)


def parse_document(text: str, name: str, what: str = "profile") -> Item:
    """Return the value that YAML text describes; `name` is the file's name for messages.

    Raises
    ------
    InputError
        The text is empty or is not YAML.
    """
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    except yaml.YAMLError as error:  # characters that YAML forbids
        raise InputError(f"not YAML: {str(error).splitlines()[0]}", file=name) from None
    try:
        _check_events(yaml.parse(text, Loader=type(loader)), name, what)
        node = loader.get_single_node()
        if node is None:
            raise InputError("the file is empty", file=name)
        return _convert(loader, node, name, what)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise InputError(
            f"not YAML: {error.problem or error.context}", file=name, line=line, column=column
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {str(error).splitlines()[0]}", file=name) from None
    finally:
        loader.dispose()


def read_text(path: Path, what: str = "profile", most_bytes: int = _MOST_BYTES) -> str:
    """Return the text of a file that should be a `what` (raises as :func:`read_document`)."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except IsADirectoryError:
        raise InputError(f"this is a directory, not a {what}", file=str(path)) from None
    except OSError as error:
        raise InputError(
            f"cannot read the {what}: {error.strerror or error}", file=str(path)
        ) from None
    except ValueError as error:  # a null character in the name
        raise InputError(f"no {what} can have this name: {error}") from None
    if len(data) > most_bytes:
        raise InputError(f"the file is too long for a {what}", file=str(path))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("the file is not UTF-8 text", file=str(path), line=line) from None


def _check_events(events: Iterator[Any], file: str, what: str) -> None:
    """Refuse aliases and deep nesting before the tree is built: building it recurses in C."""
    import yaml

    depth = 0
    for event in events:
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            place = Item(None, file, mark.line + 1, mark.column + 1)
            raise place.error("aliases are not supported", hint="write the value again")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            place = Item(None, file, mark.line + 1, mark.column + 1)
            raise place.error(f"too deeply nested for a {what}")


def _convert(loader: Any, node: yaml.Node, file: str, what: str) -> Item:
    import yaml

    mark = node.start_mark
    place = (file, mark.line + 1, mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        return Item(dict(_entries(loader, node, file, what)), *place)
    if isinstance(node, yaml.SequenceNode):
        return Item([_convert(loader, child, file, what) for child in node.value], *place)
    return Item(_scalar(loader, node, what, Item(None, *place)), *place)


def _entries(
    loader: Any, node: yaml.MappingNode, file: str, what: str
) -> Iterator[tuple[str, Item]]:
    import yaml

    names = set()
    for key, value in node.value:
        mark = key.start_mark
        if not isinstance(key, yaml.ScalarNode) or key.value in names:
            twice = isinstance(key, yaml.ScalarNode)
            raise InputError(
                f"key {key.value!r} stands twice" if twice else "a key must be a plain name",
                file=file,
                line=mark.line + 1,
                column=mark.column + 1,
            )
        names.add(key.value)
        item = _convert(loader, value, file, what)
        # An unknown key or a wrong block is found where its key stands.
        if isinstance(item.value, dict | list):
            item = Item(item.value, file, mark.line + 1, mark.column + 1)
        yield key.value, item


def _scalar(loader: Any, node: yaml.Node, what: str, item: Item) -> object:
    kind = node.tag.removeprefix(_TAG)
    if kind not in _SCALARS:
        raise item.error(f"a {what} has no values of type {kind!r}")
    try:
        # YAML's own rules for 0x10, 1e3, yes and ~.
        value: object = getattr(loader, f"construct_yaml_{kind}")(node)
    except (ValueError, OverflowError):
        raise item.error(f"{str(node.value)[:40]!r} is not a number") from None
    return value
