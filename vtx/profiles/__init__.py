"""CPU profiles: data, and the reader that turns a profile file into checked plain values.

A profile says what a CPU is (*shape*: capability MSRs, address widths, TLBs) and what its events
cost (*prices*), and of every figure how well it is founded and where it comes from. See
``docs/profiles.md``.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtx.errors import InputError, UnknownName

if TYPE_CHECKING:
    from vtx.profiles.schema import Part

__all__ = ["load_raw", "names"]

_HERE = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")
_MOST_ANCESTORS = 10
_LIST = "'vtx profiles' lists all"

#: Profiles that come with vtx, oldest microarchitecture first, Atom cores last.
_ORDER = (
    "prescott_p4_672", "merom_core2", "penryn_core2", "nehalem", "westmere", "sandy_bridge",
    "ivy_bridge_ep", "haswell", "haswell_ep", "broadwell_ep", "skylake_client", "skylake_sp",
    "cascade_lake_sp", "ice_lake_sp", "sapphire_rapids", "emerald_rapids", "granite_rapids",
    "airmont_n3150", "gracemont_n305",
)  # fmt: skip


def names() -> tuple[str, ...]:
    """Return the ids of the profiles that come with vtx, oldest microarchitecture first."""
    return _ORDER


def load_raw(profile: str) -> dict[str, Any]:
    """Return a profile as plain values, inherited parts filled in and all rules checked.

    Parameters
    ----------
    profile : str
        Name of a profile that comes with vtx, or path of a YAML file.

    Returns
    -------
    dict
        ``id``, ``name``, ``microarchitecture``, ``file``, ``nominal_ghz`` (``value``, ``status``,
        ``source``), ``shape`` (what :meth:`vtx.machine.shape.Shape.from_raw` reads), ``prices``
        (by name, walk prices as ``walk.fixed`` and ``walk.reference``; each ``cycles``,
        ``status``, ``source``) and ``provenance`` (status and source of the shape's parts).

    Raises
    ------
    UnknownName
        There is no such profile; the nearest names are given.
    InputError
        The file cannot be read, is malformed, or describes an impossible CPU.
    """
    return copy.deepcopy(_load(str(_find(profile, None))))


def _find(profile: str, relative_to: Path | None) -> Path:
    """Return the path of a profile given by name or path."""
    if profile in _ORDER:
        return _HERE / f"{profile}.yaml"
    path = Path(profile)
    if path.suffix.lower() in _SUFFIXES or len(path.parts) > 1:
        return relative_to / path if relative_to is not None else path
    if not profile.strip():
        raise InputError("the name of the profile is empty", hint=_LIST)
    unknown = UnknownName("profile", profile, _ORDER)
    unknown.hint = f"{unknown.hint or 'is it a file? its name ends in .yaml'}; {_LIST}"
    raise unknown


def _load(path: str) -> dict[str, Any]:
    if Path(path).parent == _HERE:
        return _load_shipped(path)
    return _read(path)


@cache
def _load_shipped(path: str) -> dict[str, Any]:
    return _read(path)


def _read(path: str) -> dict[str, Any]:
    from vtx.profiles.rules import check_profile

    parts = _with_ancestors(Path(path), ())
    absent = [key for key, part in parts.items() if key.startswith("msr ") and part.value is None]
    for key in absent:
        del parts[key]
    check_profile(parts)
    return _plain(parts, path)


def _with_ancestors(path: Path, heirs: tuple[Path, ...]) -> dict[str, Part]:
    """Return the parts of a profile file over those of the profile it inherits from."""
    from vtx.profiles.document import read_document
    from vtx.profiles.schema import parts_of

    parts = parts_of(read_document(path))
    inherits = parts.pop("inherits", None)
    if inherits is None:
        return parts
    try:
        parent = _find(inherits.value, path.parent)
    except InputError as error:
        raise error.at(inherits.item.file, inherits.item.line, inherits.item.column) from None
    lineage = (*heirs, path.resolve())
    if parent.resolve() in lineage or len(lineage) > _MOST_ANCESTORS:
        raise inherits.item.error(f"{inherits.value!r} inherits from this profile in turn")
    inherited = _with_ancestors(parent, lineage)
    inherited.pop("id", None)
    return inherited | parts


def _plain(parts: dict[str, Part], path: str) -> dict[str, Any]:
    values = {name: part.value for name, part in parts.items()}
    msrs = {key[4:]: value for key, value in values.items() if key.startswith("msr ")}
    prices = {key[6:]: value for key, value in values.items() if key.startswith("price ")}
    widths, caches = values["address_widths"], values["paging_structure_caches"]
    return {
        "id": values.get("id", Path(path).stem),
        "name": values["name"],
        "microarchitecture": values["microarchitecture"],
        "file": path,
        "nominal_ghz": values["nominal_ghz"],
        "shape": {
            "capability_msrs": {name: msr["value"] for name, msr in msrs.items()},
            "maxphyaddr": widths["maxphyaddr"],
            "linear_bits": widths["linear_bits"],
            "features": values["features"]["values"],
            "tlb": {
                "arrays": values["arrays"],
                "paging_structure_caches": caches,
                "guest_physical": values["guest_physical"]["entries"],
            },
            "data_caches": values.get("data_caches", []),
        },
        "prices": prices,
        "provenance": {
            "capability_msrs": {name: _origin(msr) for name, msr in msrs.items()},
            "address_widths": _origin(widths),
            "features": _origin(values["features"]),
            "tlb": {
                "note": values.get("tlb note"),
                "arrays": [_origin(array) for array in values["arrays"]],
                "paging_structure_caches": _origin(caches),
                "guest_physical": _origin(values["guest_physical"]),
            },
            "data_caches": [_origin(cache) for cache in values.get("data_caches", ())],
        },
    }


def _origin(value: dict[str, Any]) -> dict[str, str]:
    return {"status": value["status"], "source": value["source"]}
