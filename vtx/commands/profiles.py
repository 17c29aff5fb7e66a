"""``vtx profiles``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output, add_output_arguments

if TYPE_CHECKING:
    from vtx.lab.profile import Profile
    from vtx.lab.table import Table

__all__ = ["Profiles"]

SCHEMA = "vtx.profiles/1"


class Profiles(Command):
    """List the CPU profiles, or show one with the source of every figure.

    A profile is the shape of a CPU (capability MSRs, address widths, TLBs) and the
    prices of its events in cycles. NAME is a profile that comes with vtx, or a YAML
    file of your own, which is checked on the way.
    """

    name = "profiles"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("profile", metavar="NAME", nargs="?", help="profile or YAML file")
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the list, or one profile."""
        from vtx.lab.profile import load_profile, load_profiles

        output = Output(args)
        if args.profile is None:
            _write_list(output, load_profiles())
        else:
            _write_one(output, load_profile(args.profile))
        return FINE


def _write_list(output: Output, profiles: list[Profile]) -> None:
    from vtx.lab.profile_tables import profiles_table

    if output.format == "json":
        entries = [_list_entry(profile) for profile in profiles]
        output.write_json({"schema": SCHEMA, "profiles": entries})
    elif output.format == "csv":
        output.write(_csv([_flat(_list_entry(profile)) for profile in profiles]))
    else:
        output.write_tables([profiles_table(profiles)])


def _list_entry(profile: Profile) -> dict[str, Any]:
    shape = {"ept": profile.shape.has_ept, "vpid": profile.shape.has_vpid}
    prices = {name: price.as_dict() for name, price in profile.prices.items()}
    return {**profile.summary(), **shape, "prices": prices}


def _flat(entry: dict[str, Any]) -> dict[str, Any]:
    prices = entry.pop("prices")
    for name, price in prices.items():
        entry[f"{name}_cycles"], entry[f"{name}_status"] = price["cycles"], price["status"]
    words = {True: "yes", False: "no"}
    return {key: words[value] if isinstance(value, bool) else value for key, value in entry.items()}


def _csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _write_one(output: Output, profile: Profile) -> None:
    if output.format == "json":
        output.write_json({"schema": SCHEMA, "profile": profile.as_dict()})
    elif output.format == "csv":
        output.write(_csv(_provenance_rows(profile)))
    else:
        output.write_tables(_tables(profile))


def _tables(profile: Profile) -> list[Table]:
    from dataclasses import replace

    from vtx.lab.profile_tables import prices_table, shape_table, tlb_table

    clock = profile.provenance["nominal_ghz"]
    title = (
        f"{profile.id}: {profile.name}, {profile.microarchitecture}, "
        f"{profile.nominal_ghz:g} GHz ({clock['status']}: {clock['source']})"
    )
    prices = prices_table(profile)
    return [replace(prices, title=title), tlb_table(profile), shape_table(profile)]


def _provenance_rows(profile: Profile) -> list[dict[str, Any]]:
    """Return every figure of a profile as name, value, status and source."""
    data = profile.as_dict()
    shape, tlb = data["shape"], data["shape"]["tlb"]
    caches = tlb["paging_structure_caches"]
    widths = shape["address_widths"]
    figures: list[tuple[str, object, dict[str, Any]]] = [
        ("nominal_ghz", data["nominal_ghz"]["value"], data["nominal_ghz"]),
        *((f"price.{name}", price["cycles"], price) for name, price in data["prices"].items()),
        *((name, f"{msr['value']:#x}", msr) for name, msr in shape["capability_msrs"].items()),
        *((name, widths[name], widths) for name in ("maxphyaddr", "linear_bits")),
        ("features", " ".join(shape["features"]["values"]), shape["features"]),
        *((_array_name(array), array["entries"], array) for array in tlb["arrays"]),
        *((f"{name} cache", caches[name], caches) for name in ("pml5", "pml4", "pdpt", "pd")),
        ("guest-physical TLB", tlb["guest_physical"]["entries"], tlb["guest_physical"]),
    ]
    return [
        {"name": name, "value": value, "status": part["status"], "source": part["source"]}
        for name, value, part in figures
    ]


def _array_name(array: dict[str, Any]) -> str:
    pages = "+".join(array["pages"])
    return f"L{array['level']} {array['kind']} TLB {pages} {array['ways']}-way"
