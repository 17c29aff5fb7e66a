"""Geometries from YAML files and from CPU profiles."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtx.errors import InputError
from vtx.profiles import load_raw
from vtx.profiles.document import Item, read_document
from vtx.tlb.geometry import (
    CROSSINGS,
    INDEXES,
    MODIFIES,
    MOST_ENTRIES,
    MOST_WAYS,
    PAGES,
    REPLACEMENTS,
    STREAMS,
    Array,
    Cost,
    Geometry,
    Level,
    PageSizes,
    Range,
)

__all__ = ["check_sides", "load_geometry", "profile_geometry"]

_TOP = (
    "schema",
    "name",
    "profile",
    "levels",
    "stream",
    "crossing",
    "modify",
    "pages",
    "ept",
    "paging_levels",
    "ept_levels",
    "replacement",
    "index",
    "seed",
    "paging_structure_caches",
    "guest_physical",
    "cycles",
)
_LEVEL = re.compile(r"l[1-4][id]?")
_LEVEL_NAMES = tuple(f"l{n}{side}" for n in range(1, 5) for side in ("", "i", "d"))
_ARRAY = ("entries", "ways", "sets", "pages", "replacement", "index", "seed")
_CACHES = ("pml5", "pml4", "pdpt", "pd")
_MOST_CYCLES = 1e9
_ADDRESS_END = 1 << 48
_KINDS = {"instruction": "i", "data": "d", "unified": ""}
_MOST_RANGES = 64


def load_geometry(path: str | Path) -> Geometry:
    """Read a geometry from a YAML file.

    Parameters
    ----------
    path : str or Path
        The file; its keys are described in ``docs/tlb.md``.

    Raises
    ------
    InputError
        The file cannot be read, has an unknown key, or describes a TLB that cannot be; the
        message names file and line.
    """
    path = Path(path)
    document = read_document(path, "geometry")
    top = document.mapping("a geometry", _TOP)
    if "schema" in top:
        top["schema"].integer("schema", 1, 1)
    if "profile" in top:
        geometry = profile_geometry(top["profile"].text("profile"))
    elif "levels" in top:
        geometry = Geometry("", ())
    else:
        raise document.error("the geometry has no levels", hint="levels: or profile: is needed")
    geometry = replace(geometry, **{"name": path.stem, **_members(top)})
    if "stream" not in top:
        geometry = replace(geometry, stream=_usual_stream(geometry.levels))
    try:
        check_sides(geometry)
    except InputError as error:
        where = top.get("levels", document)
        raise error.at(where.file, where.line, where.column) from None
    return geometry


def _members(top: Mapping[str, Item]) -> dict[str, Any]:
    """Return the parameters of the geometry that the file gives."""
    readers: dict[str, Callable[[Item], Any]] = {
        "name": lambda item: item.text("name"),
        "stream": lambda item: item.choice("stream", STREAMS),
        "crossing": lambda item: item.choice("crossing", CROSSINGS),
        "modify": lambda item: item.choice("modify", MODIFIES),
        "pages": _page_sizes,
        "ept": _page_sizes,
        "paging_levels": lambda item: item.integer("paging_levels", 4, 5),
        "ept_levels": lambda item: item.integer("ept_levels", 4, 5),
    }
    members = {key: read(top[key]) for key, read in readers.items() if key in top}
    if "levels" in top:
        members["levels"] = _levels(top["levels"], _defaults(top))
        members["caches"], members["costs"] = {}, {}
    if "paging_structure_caches" in top or "guest_physical" in top:
        members["caches"] = _caches(top)
    if "cycles" in top:
        names = [level.name for level in members.get("levels", ())]
        members["costs"] = _costs(top["cycles"], names or list(_LEVEL_NAMES))
    return members


# ---- Levels ---------------------------------------------------------------------------------


def _defaults(top: Mapping[str, Item]) -> dict[str, Any]:
    """Return what the file says for all its arrays at once."""
    return {key: _array_member(key, top[key]) for key in _ARRAY if key in top and key != "pages"}


def _array_member(key: str, item: Item) -> Any:
    if key == "replacement":
        return item.choice("replacement", REPLACEMENTS)
    if key == "index":
        return item.choice("index", INDEXES)
    if key == "pages":
        return _held_pages(item)
    if key == "seed":
        return item.integer("seed", 0, (1 << 63) - 1)
    if key == "ways" and item.value == "full":
        return None
    return item.integer(key, 1, MOST_WAYS if key == "ways" else MOST_ENTRIES)


def _held_pages(item: Item) -> tuple[str, ...]:
    items = item.items("pages") if isinstance(item.value, list) else [item]
    if not items:
        raise item.error("pages is empty", hint=f"one of {', '.join(PAGES)}, or a list of them")
    held = [part.choice("page size", PAGES) for part in items]
    return tuple(page for page in PAGES if page in held)


def _levels(item: Item, defaults: Mapping[str, Any]) -> tuple[Level, ...]:
    levels = []
    for name, body in item.entries("levels").items():
        if not _LEVEL.fullmatch(name):
            raise body.error(
                f"unknown level {name!r}",
                hint="levels are l1, l1i, l1d, l2 and so on up to l4: number, then whom it serves",
            )
        parts = body.items(name) if isinstance(body.value, list) else [body]
        if not parts:
            raise body.error(f"level {name} has no arrays")
        arrays = tuple(_array(part, name, defaults) for part in parts)
        _check_pages(name, arrays, body)
        levels.append(Level(name, arrays))
    if not levels:
        raise item.error("the geometry has no levels")
    return tuple(sorted(levels, key=_order))


def _order(level: Level) -> tuple[int, int]:
    return level.number, level.sides


def _check_pages(name: str, arrays: tuple[Array, ...], item: Item) -> None:
    held = [page for array in arrays for page in array.pages]
    for page in PAGES:
        if held.count(page) > 1:
            raise item.error(f"level {name} has two arrays that hold {page} pages")


def _array(item: Item, name: str, defaults: Mapping[str, Any]) -> Array:
    given = item.mapping(f"level {name}", _ARRAY)
    members = {**defaults, **{key: _array_member(key, given[key]) for key in given}}
    entries, ways = members.pop("entries", None), members.pop("ways", None)
    sets = members.pop("sets", None)
    if "ways" in given and ways is None:  # full
        ways = entries
    if entries is None and sets is not None and ways is not None:
        entries = sets * ways
    if entries is None:
        raise item.error(f"level {name} has no entries", hint="entries, or sets and ways")
    if ways is None:
        if sets is None:
            raise item.error(f"level {name} has no ways", hint="ways: full is fully associative")
        ways = max(entries // sets, 1)
    if sets is not None and sets * ways != entries:
        raise item.error(f"level {name} has {entries} entries, not {sets} sets of {ways} ways")
    try:
        return Array(entries, ways, **members)
    except InputError as error:
        where = given.get("index" if "index" in error.message else "ways", item)
        raise error.at(where.file, where.line, where.column) from None


def _usual_stream(levels: tuple[Level, ...]) -> str:
    sides = 0
    for level in levels:
        if level.number == 1:
            sides |= level.sides
    return {1: "instructions", 2: "data"}.get(sides, "all")


def check_sides(geometry: Geometry) -> None:
    """Check that each side that the stream uses meets its levels one after the other, each once.

    Raises
    ------
    InputError
        It does not.
    """
    used = {"all": 3, "data": 2, "instructions": 1}[geometry.stream]
    for side, who in ((1, "instruction fetches"), (2, "data")):
        chain = [level for level in geometry.levels if level.sides & side & used]
        for number, level in enumerate(chain, 1):
            if level.number < number:
                raise InputError(
                    f"{who} meet {chain[number - 2].name} and {level.name}",
                    hint="l1 serves both sides, l1i and l1d one each",
                )
            if level.number > number:
                raise InputError(f"{who} meet {level.name}, and no level {number} before it")
        if used & side and not chain:
            raise InputError(
                f"{geometry.name}: {who} are in the stream and have no first level",
                hint="add the level, or leave them out with stream: data or instructions",
            )


# ---- Pages, caches, cycles --------------------------------------------------------------------


def _page_sizes(item: Item) -> PageSizes:
    """Read a page size, or sizes by side and range."""
    if not isinstance(item.value, dict):
        return PageSizes.of(item.choice("page size", PAGES))
    entries = item.mapping("pages", ("default", "instruction", "data", "ranges"))
    sizes = {key: value for key, value in entries.items() if key != "ranges"}
    read = {key: value.choice("page size", PAGES) for key, value in sizes.items()}
    default = read.get("default", "4K")
    ranges = entries["ranges"].items("ranges") if "ranges" in entries else []
    if len(ranges) > _MOST_RANGES:
        raise item.error(f"{len(ranges)} ranges: there can be at most {_MOST_RANGES}")
    return PageSizes(read.get("instruction", default), read.get("data", default), _ranges(ranges))


def _ranges(items: list[Item]) -> tuple[Range, ...]:
    ranges: list[Range] = []
    end = 0
    for item in items:
        entries = item.mapping("a range", ("start", "stop", "size"))
        for key in ("start", "stop", "size"):
            if key not in entries:
                raise item.error(f"the range has no {key!r}")
        size = entries["size"].choice("page size", PAGES)
        start = entries["start"].integer("start", 0, _ADDRESS_END)
        stop = entries["stop"].integer("stop", 0, _ADDRESS_END)
        bytes_ = 1 << (12 + 9 * PAGES.index(size))
        if not end <= start < stop:
            raise item.error("ranges must be in ascending order, apart from each other")
        if start % bytes_ or stop % bytes_:
            raise item.error(f"the range does not start and stop at a {size} page")
        ranges.append(Range(start, stop, size))
        end = stop
    return tuple(ranges)


def _caches(top: Mapping[str, Item]) -> dict[str, int]:
    caches: dict[str, int] = {}
    if "paging_structure_caches" in top:
        item = top["paging_structure_caches"]
        for key, value in item.mapping("paging_structure_caches", _CACHES).items():
            caches[key] = value.integer(key, 0, MOST_WAYS)
    if "guest_physical" in top:
        caches["guest_physical"] = top["guest_physical"].integer("guest_physical", 0, MOST_WAYS)
    return caches


def _costs(item: Item, levels: list[str]) -> dict[str, Cost]:
    entries = item.mapping("cycles", (*levels, "walk", "reference"))
    costs = {key: Cost(0) for key in ("walk", "reference")}
    for key, value in entries.items():
        place = f"{value.file}:{value.line}"
        costs[key] = Cost(value.number(key, 0, _MOST_CYCLES), source=place)
    return costs


# ---- Profiles ---------------------------------------------------------------------------------


def profile_geometry(name: str) -> Geometry:
    """Return the geometry of a CPU profile: its TLBs, its walker's caches, and their prices.

    Parameters
    ----------
    name : str
        A profile's name, or the path of its YAML file.

    Raises
    ------
    UnknownName
        There is no such profile.
    InputError
        Its file is malformed.
    """
    raw = load_raw(name)
    tlb = raw["shape"]["tlb"]
    arrays: dict[str, list[Array]] = {}
    for a in tlb["arrays"]:
        level = f"l{a['level']}{_KINDS[a['kind']]}"
        held = tuple(page for page in PAGES if page in a["pages"])
        arrays.setdefault(level, []).append(Array(a["entries"], a["ways"], held))
    caches = dict(tlb.get("paging_structure_caches", {}))
    caches["guest_physical"] = tlb.get("guest_physical", 0)
    levels = tuple(sorted((Level(key, tuple(a)) for key, a in arrays.items()), key=_order))
    return Geometry(
        raw["id"],
        levels,
        caches={key: caches.get(key, 0) for key in (*_CACHES, "guest_physical")},
        costs=_prices(raw["prices"], [level.name for level in levels]),
    )


def _prices(prices: Mapping[str, Any], levels: list[str]) -> dict[str, Cost]:
    """Return what the profile says a second-level hit, a walk and its references cost."""
    costs = {}
    sources = {"walk": "walk.fixed", "reference": "walk.reference"}
    sources |= {level: "stlb_hit" for level in levels if level[1] != "1"}
    for key, price in sources.items():
        entry = prices.get(price)
        if entry is None or entry["cycles"] is None:
            costs[key] = Cost(None, "unknown", "the profile has no figure")
        else:
            costs[key] = Cost(entry["cycles"], entry["status"], entry["source"])
    return costs
