"""What is to be swept: a YAML file with traces, profiles and options."""

from __future__ import annotations

import glob
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtx.errors import InputError
from vtx.lab.profile import load_profiles
from vtx.profiles.document import Item, read_document
from vtx.sweep.cell import Cell

__all__ = ["Plan", "load_plan"]

_KEYS = ("schema", "traces", "profiles", "options")
_MOST_CELLS = 1_000_000
_SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """Everything that a sweep runs.

    Attributes
    ----------
    file : str
        Where it was read.
    cells : tuple of Cell
        One for each trace, profile and choice of options, in the order of the file.
    options : tuple of str
        The keys that vary, for the columns of the result.
    """

    file: str
    cells: tuple[Cell, ...]
    options: tuple[str, ...]


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Parameters
    ----------
    path : str or Path
        A YAML file with `traces` (files or patterns, relative to it), `profiles` (names, files or
        ``all``) and `options`: keys of a trace, nested ones with a dot, each with the list of
        values that it takes in turn.

    Raises
    ------
    InputError
        The file is no plan; with file, line and a hint.
    """
    document = read_document(Path(path), "plan")
    entries = document.mapping("a plan", _KEYS)
    schema = entries.get("schema")
    if schema is None or schema.integer("schema", 0, 1 << 31) != _SCHEMA:
        where = schema or document
        raise where.error(f"a plan begins with schema: {_SCHEMA}")
    traces = list(_traces(_wanted(entries, "traces", document), Path(path).parent))
    profiles = [_profile(item) for item in _profiles(_wanted(entries, "profiles", document))]
    options = _options(entries.get("options"))
    count = len(traces) * len(profiles)
    for _, values in options:
        count *= len(values)
    if count > _MOST_CELLS:
        raise document.error(f"the plan has {count} cells; {_MOST_CELLS} are the most")
    return Plan(
        str(path),
        tuple(_cells(traces, profiles, options)),
        tuple(key for key, _ in options),
    )


def _wanted(entries: dict[str, Item], key: str, document: Item) -> list[Item]:
    if key not in entries:
        raise document.error(f"the plan names no {key}", f"add {key}: [...]")
    item = entries[key]
    found = item.items(key) if isinstance(item.value, list) else [item]
    if not found:
        raise item.error(f"{key} is empty")
    return found


def _traces(items: list[Item], folder: Path) -> Iterator[Path]:
    seen = set()
    for item in items:
        pattern = item.text("a trace")
        found = sorted(glob.glob(str(folder / pattern)))
        if not found:
            raise item.error(f"no file is called {pattern}", f"names are relative to {folder}")
        for name in found:
            if name not in seen:
                seen.add(name)
                yield Path(name)


def _profiles(items: list[Item]) -> Iterator[Item | str]:
    for item in items:
        if item.value == "all":
            yield from (profile.id for profile in load_profiles("all"))
        else:
            yield item


def _profile(item: Item | str) -> str:
    """Return the name of a profile; one that is a file becomes an absolute path.

    Whether it can be read is found out by its cells, which fail alone.
    """
    if isinstance(item, str):
        return item
    name = item.text("a profile")
    path = Path(item.file).parent / name
    return str(path.resolve()) if name.endswith((".yaml", ".yml")) else name


def _options(item: Item | None) -> list[tuple[str, list[Any]]]:
    if item is None:
        return []
    found = []
    for key, values in item.entries("options").items():
        listed = values.items(key) if isinstance(values.value, list) else [values]
        if not listed:
            raise values.error(f"option {key} has no value")
        found.append((key, [_plain(value) for value in listed]))
    return found


def _plain(item: Item) -> Any:
    if isinstance(item.value, dict):
        return {key: _plain(value) for key, value in item.value.items()}
    if isinstance(item.value, list):
        return [_plain(value) for value in item.value]
    return item.value


def _cells(
    traces: list[Path], profiles: list[str], options: list[tuple[str, list[Any]]]
) -> Iterator[Cell]:
    keys = [key for key, _ in options]
    for trace in traces:
        try:
            digest = hashlib.sha256(trace.read_bytes()).hexdigest()[:16]
        except OSError as error:
            raise InputError(f"cannot read: {error.strerror}", file=str(trace)) from None
        for profile, *values in itertools.product(profiles, *(v for _, v in options)):
            yield Cell(str(trace.resolve()), digest, profile, tuple(zip(keys, values, strict=True)))
