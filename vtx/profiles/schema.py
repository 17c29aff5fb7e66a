"""What stands in a profile file: keys, types and the provenance of every figure.

One file becomes a flat dictionary of *parts* (``"price exit"``, ``"msr IA32_VMX_MISC"``, ...),
each a value that cannot be split without separating a figure from its source. Inheriting is
then replacing parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vtx.errors import UnknownName
from vtx.facts.msrs import CAPABILITY_MSRS, Msr
from vtx.profiles.document import Item

__all__ = [
    "FEATURES",
    "NUMBERED_FEATURES",
    "OPTIONAL_PRICES",
    "OPTIONAL_WALK_PRICES",
    "PRICES",
    "PRICE_STATUSES",
    "SHAPE_STATUSES",
    "WALK_PRICES",
    "Part",
    "parts_of",
]

#: How well a price is founded, best first.
PRICE_STATUSES = ("measured", "derived", "estimated")
#: The same of what a CPU is; *reported* is what the CPU says of itself (CPUID, RDMSR).
SHAPE_STATUSES = ("reported", *PRICE_STATUSES)

#: Prices that every profile gives, if only as "no data".
PRICES = ("round_trip", "entry", "exit", "vmread", "vmwrite", "fault_exit_extra", "stlb_hit")
WALK_PRICES = ("fixed", "reference")
#: Prices of a reference by what holds the entry, for shapes with data caches.
OPTIONAL_WALK_PRICES = ("l1", "l2", "l3", "memory")
#: Prices for which no published figure is known; a profile may give its own.
OPTIONAL_PRICES = (
    "injection", "delivery", "invalidation", "vmx_instruction", "handler", "guest_instruction",
)  # fmt: skip

#: CPUID features that a shape may name.
FEATURES = (
    "nx", "page_1g", "rdtscp", "x2apic", "tsc_deadline", "pcid", "invpcid", "smep", "smap", "pku",
    "pks", "cet", "umip", "la57", "fsgsbase", "xsave", "smx", "uintr", "fred", "lam", "sgx", "rtm",
    "bus_lock_detect", "user_msr", "wrmsrns", "msr_imm", "tdx",
)  # fmt: skip
#: Features that end in a number: performance counters (CPUID leaf 0AH), and how many at most.
NUMBERED_FEATURES = {"general_counters_": 32, "fixed_counters_": 16}

_TOP = (
    "schema",
    "id",
    "inherits",
    "name",
    "microarchitecture",
    "nominal_ghz",
    "shape",
    "prices",
    "measurements",
)
_SHAPE = ("capability_msrs", "address_widths", "features", "tlb", "data_caches")
_TLB = ("note", "arrays", "paging_structure_caches", "guest_physical")
_ARRAY = (
    *("level", "kind", "pages", "entries", "ways", "replacement", "seed"),
    *("status", "source"),
)
_DATA_CACHE = ("size", "ways", "replacement", "seed", "status", "source")
_MOST_DATA_CACHES, _LINE, _MOST_BYTES, _MOST_CACHE_WAYS = 3, 64, 1 << 30, 1024
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_REPLACEMENTS = ("lru", "tree_plru", "random")
_CACHES = ("pml5", "pml4", "pdpt", "pd")
_MOST_CYCLES = 1e9
_MOST_ENTRIES = 1 << 24
_KINDS = ("instruction", "data", "unified")
_PAGES = ("4K", "2M", "1G")


class Part(NamedTuple):
    """A value of a profile that is replaced as a whole, and where it stands."""

    value: Any
    item: Item


def parts_of(document: Item) -> dict[str, Part]:
    """Return the parts of a profile file.

    Raises
    ------
    InputError
        A key or a value is not one that a profile can have; file and line are given.
    """
    top = document.mapping("a profile", _TOP)
    if "schema" not in top:
        raise document.error("a profile begins with 'schema: 1'")
    if top["schema"].integer("schema", 0, 1 << 16) != 1:
        raise top["schema"].error(f"schema {top['schema'].value} is not known", hint="this is 1")
    parts: dict[str, Part] = {"document": Part(None, document)}
    for key in ("id", "name", "microarchitecture", "inherits"):
        if key in top:
            parts[key] = Part(top[key].text(key), top[key])
    if "nominal_ghz" in top:
        parts["nominal_ghz"] = Part(_nominal_ghz(top["nominal_ghz"]), top["nominal_ghz"])
    if "shape" in top:
        parts.update(_shape(top["shape"]))
    if "measurements" in top:
        top["measurements"].entries("measurements")  # for people; every price has its own source
    if "prices" in top:
        parts.update(_prices(top["prices"]))
    return parts


def _provenance(what: str, item: Item, statuses: tuple[str, ...]) -> dict[str, str]:
    """Return status and source of a figure; both must be there."""
    entries = item.entries(what)
    if "status" not in entries:
        raise item.error(f"{what} has no status", hint=f"one of {', '.join(statuses)}")
    status = entries["status"].choice(f"status of {what}", statuses)
    if "source" not in entries:
        raise item.error(f"{what} has no source", hint="say where the figure comes from, or why")
    return {"status": status, "source": entries["source"].text(f"source of {what}")}


def _required(what: str, item: Item, key: str) -> Item:
    entries = item.entries(what)
    if key not in entries:
        raise item.error(f"{what} has no {key!r}")
    return entries[key]


def _nominal_ghz(item: Item) -> dict[str, Any]:
    what = "nominal_ghz"
    item.mapping(what, ("value", "status", "source"))
    value = _required(what, item, "value").number(what, 0.01, 100)
    return {"value": value, **_provenance(what, item, SHAPE_STATUSES)}


def _shape(item: Item) -> Iterator[tuple[str, Part]]:
    shape = item.mapping("shape", _SHAPE)
    if "capability_msrs" in shape:
        yield from _msrs(shape["capability_msrs"])
    if "address_widths" in shape:
        widths = shape["address_widths"]
        yield "address_widths", Part(_widths(widths), widths)
    if "features" in shape:
        yield "features", Part(_features(shape["features"]), shape["features"])
    if "tlb" in shape:
        tlb = shape["tlb"].mapping("tlb", _TLB)
        if "note" in tlb:
            yield "tlb note", Part(tlb["note"].text("note"), tlb["note"])
        if "arrays" in tlb:
            arrays = [_array(entry) for entry in tlb["arrays"].items("arrays")]
            yield "arrays", Part(arrays, tlb["arrays"])
        for key, read in (("paging_structure_caches", _caches), ("guest_physical", _guest_tlb)):
            if key in tlb:
                yield key, Part(read(tlb[key]), tlb[key])
    if "data_caches" in shape:
        yield "data_caches", Part(_data_caches(shape["data_caches"]), shape["data_caches"])


def _msrs(item: Item) -> Iterator[tuple[str, Part]]:
    """Yield one part for each MSR; status and source of the block hold for all plain values.

    An MSR without a value is one that this CPU does not have, whatever is inherited.
    """
    item.mapping("capability_msrs", ("status", "source", "values"))
    values = _required("capability_msrs", item, "values")
    for name, entry in values.entries("values").items():
        if name not in Msr.__members__ or Msr[name] not in CAPABILITY_MSRS:
            known = [Msr(address).name for address in CAPABILITY_MSRS]
            raise UnknownName("capability MSR", name, known).at(entry.file, entry.line)
        if entry.value is None:
            yield f"msr {name}", Part(None, entry)
            continue
        if isinstance(entry.value, dict):
            entry.mapping(name, ("value", "status", "source"))
            raw, holder = _required(name, entry, "value"), entry
        else:
            raw, holder = entry, item
        value = raw.integer(name, 0, (1 << 64) - 1)
        what = name if holder is entry else "capability_msrs"
        yield (
            f"msr {name}",
            Part({"value": value, **_provenance(what, holder, SHAPE_STATUSES)}, raw),
        )


def _widths(item: Item) -> dict[str, Any]:
    what = "address_widths"
    item.mapping(what, ("maxphyaddr", "linear_bits", "status", "source"))
    linear = _required(what, item, "linear_bits")
    if linear.integer("linear_bits", 0, 64) not in (48, 57):
        raise linear.error(f"linear_bits is {linear.value}", hint="48, or 57 with LA57")
    physical = _required(what, item, "maxphyaddr").integer("maxphyaddr", 32, 52)
    provenance = _provenance(what, item, SHAPE_STATUSES)
    return {"maxphyaddr": physical, "linear_bits": linear.value, **provenance}


def _features(item: Item) -> dict[str, Any]:
    item.mapping("features", ("values", "status", "source"))
    values = _required("features", item, "values").items("values")
    names = [_feature(value) for value in values]
    return {"values": names, **_provenance("features", item, SHAPE_STATUSES)}


def _feature(item: Item) -> str:
    name = item.text("CPU feature")
    for stem, most in NUMBERED_FEATURES.items():
        number = name.removeprefix(stem)
        if number != name and number.isdecimal() and int(number) <= most:
            return name
    stems = (f"{stem}{most}" for stem, most in NUMBERED_FEATURES.items())
    return item.choice("CPU feature", (*FEATURES, *stems))


def _array(item: Item) -> dict[str, Any]:
    what = "TLB array"
    keys = item.mapping(what, _ARRAY)
    pages = [
        page.choice("page size", _PAGES) for page in _required(what, item, "pages").items(what)
    ]
    if not pages or len(set(pages)) != len(pages):
        raise item.error("a TLB array holds each of its page sizes once, and at least one")
    entries = _required(what, item, "entries").integer("entries", 1, _MOST_ENTRIES)
    ways_item = _required(what, item, "ways")
    ways = ways_item.integer("ways", 1, _MOST_ENTRIES)
    if entries % ways or entries // ways & (entries // ways - 1):
        raise ways_item.error(
            f"a TLB array of {entries} entries cannot have {ways} ways",
            hint="entries divided by ways is the number of sets, which must be a power of two",
        )
    policy = _policy(keys, ways)
    return {
        "level": _required(what, item, "level").integer("level of a TLB array", 1, 2),
        "kind": _required(what, item, "kind").choice("kind of TLB array", _KINDS),
        "pages": pages,
        "entries": entries,
        "ways": ways,
        **policy,
        **_provenance(what, item, SHAPE_STATUSES),
    }


def _policy(keys: dict[str, Item], ways: int) -> dict[str, Any]:
    """Return what a cache of any kind says of its replacement."""
    policy: dict[str, Any] = {}
    if "replacement" in keys:
        policy["replacement"] = keys["replacement"].choice("replacement", _REPLACEMENTS)
        if policy["replacement"] == "tree_plru" and (ways & (ways - 1) or ways > 64):
            raise keys["replacement"].error(
                f"tree-PLRU of {ways} ways is impossible",
                hint="the ways must be 1, 2, 4, 8, 16, 32 or 64",
            )
    if "seed" in keys:
        policy["seed"] = keys["seed"].integer("seed", 0, 0xFFFF_FFFF)
    return policy


def _data_caches(item: Item) -> list[dict[str, Any]]:
    levels = item.items("data_caches")
    if len(levels) > _MOST_DATA_CACHES:
        raise item.error(f"{len(levels)} data caches", hint="a first, second and third level")
    return [_data_cache(level) for level in levels]


def _data_cache(item: Item) -> dict[str, Any]:
    what = "data cache"
    keys = item.mapping(what, _DATA_CACHE)
    size_item = _required(what, item, "size")
    size = _size(size_item)
    ways = _required(what, item, "ways").integer("ways", 1, _MOST_CACHE_WAYS)
    if size % (_LINE * ways):
        raise size_item.error(
            f"a data cache of {size} bytes cannot have {ways} ways",
            hint="its size is a multiple of 64 bytes times its ways",
        )
    policy = _policy(keys, ways)
    return {"size": size, "ways": ways, **policy, **_provenance(what, item, SHAPE_STATUSES)}


def _size(item: Item) -> int:
    """Return a number of bytes, from an integer or a text such as ``32K``."""
    text = item.value
    if isinstance(text, str) and text[-1:] in _UNITS and text[:-1].isdecimal() and len(text) < 12:
        size = int(text[:-1]) * _UNITS[text[-1]]
        if 0 < size <= _MOST_BYTES:
            return size
    elif not isinstance(text, str):
        return item.integer("size of a data cache", _LINE, _MOST_BYTES)
    raise item.error(
        f"{text!r} is no size of a data cache", hint="bytes, or such as 32K; at most 1G"
    )


def _caches(item: Item) -> dict[str, Any]:
    what = "paging_structure_caches"
    caches = item.mapping(what, (*_CACHES, "status", "source"))
    sizes = {
        key: caches[key].integer(key, 0, _MOST_ENTRIES) if key in caches else 0 for key in _CACHES
    }
    return {**sizes, **_provenance(what, item, SHAPE_STATUSES)}


def _guest_tlb(item: Item) -> dict[str, Any]:
    what = "guest_physical"
    item.mapping(what, ("entries", "status", "source"))
    entries = _required(what, item, "entries").integer(what, 0, _MOST_ENTRIES)
    return {"entries": entries, **_provenance(what, item, SHAPE_STATUSES)}


def _prices(item: Item) -> Iterator[tuple[str, Part]]:
    prices = item.mapping("prices", (*PRICES, *OPTIONAL_PRICES, "walk"))
    for name, entry in prices.items():
        if name == "walk":
            for key, price in entry.mapping("walk", (*WALK_PRICES, *OPTIONAL_WALK_PRICES)).items():
                yield f"price walk.{key}", Part(_price(f"walk.{key}", price), price)
        else:
            yield f"price {name}", Part(_price(name, entry), entry)


def _price(name: str, item: Item) -> dict[str, Any]:
    """Return a price; ``cycles: null`` means that there is no data, and needs no status."""
    what = f"price {name!r}"
    entries = item.mapping(what, ("cycles", "low", "high", "status", "source"))
    cycles = _required(what, item, "cycles")
    if cycles.value is None:
        if "status" in entries:
            raise entries["status"].error(f"{what} has a status but no figure")
        if "source" not in entries:
            raise item.error(f"{what} has no source", hint="say why there is no figure")
        for bound in ("low", "high"):
            if bound in entries:
                raise entries[bound].error(f"{what} has a bound but no figure")
        return {"cycles": None, "status": None, "source": entries["source"].text("source")}
    figure = cycles.number(f"{what} (in cycles)", 0, _MOST_CYCLES)
    bounds = _bounds(what, item, figure)
    return {"cycles": figure, **bounds, **_provenance(what, item, PRICE_STATUSES)}


def _bounds(what: str, item: Item, figure: float) -> dict[str, float]:
    """Return the bounds that the source of a price gives, if it does: both of them."""
    entries = item.entries(what)
    given = [bound for bound in ("low", "high") if bound in entries]
    if not given:
        return {}
    if len(given) == 1:
        raise entries[given[0]].error(f"{what} has {given[0]!r} alone", hint="give low and high")
    low = entries["low"].number(f"low of {what}", 0, _MOST_CYCLES)
    high = entries["high"].number(f"high of {what}", 0, _MOST_CYCLES)
    if not low <= figure <= high:
        place = entries["low"] if figure < low else entries["high"]
        raise place.error(f"{what} is {figure:g}, which is not within {low:g} to {high:g}")
    return {"low": low, "high": high}
