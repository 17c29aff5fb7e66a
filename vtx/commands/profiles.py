"""``vtx profiles``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.lab.profile import Profile
    from vtx.lab.table import Table

__all__ = ["Profiles"]

SCHEMA = "vtx.profiles/1"
MEASURE_SCHEMA = "vtx.measure/1"
#: What a measured profile inherits unless told otherwise.
_PARENT = "skylake_sp"
_MOST_REPETITIONS = 100_000


class Profiles(Command):
    """List the CPU profiles, show one with the source of every figure, or measure this host.

    A profile is the shape of a CPU (capability MSRs, address widths, TLBs) and the
    prices of its events in cycles. NAME is a profile that comes with vtx, or a YAML
    file of your own, which is checked on the way. 'vtx profile measure -o FILE' times VM
    exits on this machine, where /dev/kvm can be opened, and writes a profile of it.
    """

    name = "profiles"
    aliases = ("profile",)

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument(
            "profile", metavar="NAME", nargs="?", help="profile or YAML file, or 'measure'"
        )
        measuring = parser.add_argument_group("measure")
        measuring.add_argument(
            "--inherits",
            metavar="P",
            help=f"profile for what is not measured: shape, TLBs, walks (default: {_PARENT})",
        )
        measuring.add_argument(
            "--repetitions", metavar="N", type=_repetitions, help="of each exit (default: 1000)"
        )
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the list, or one profile."""
        from vtx.lab.profile import load_profile, load_profiles

        output = Output(args)
        if args.profile == "measure":
            _measure(output, args)
            return FINE
        if args.inherits is not None or args.repetitions is not None:
            raise UsageError("--inherits and --repetitions are for 'vtx profile measure'")
        if args.profile is None:
            _write_list(output, load_profiles())
        else:
            _write_one(output, load_profile(args.profile))
        return FINE


def _repetitions(text: str) -> int:
    """Return a number of repetitions, as argparse wants it."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 10 <= number <= _MOST_REPETITIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 10 to 100000")
    return number


def _measure(output: Output, args: argparse.Namespace) -> None:
    """Time VM exits on this machine and write a profile."""
    from vtx.host.profile import measure_host, profile_text
    from vtx.lab.profile import load_profile

    if output.format == "csv":
        raise UsageError("'vtx profile measure' writes a profile (YAML) or --format json, not CSV")
    parent = _PARENT if args.inherits is None else args.inherits
    load_profile(parent)
    measurement = measure_host(args.repetitions or 1000)
    for warning in measurement.warnings:
        print(f"vtx: {warning}", file=sys.stderr)
    if output.format == "json":
        output.write_json({"schema": MEASURE_SCHEMA, **measurement.as_dict()})
    else:
        name = output.path.stem if output.path is not None else "measured_host"
        output.write(profile_text(measurement, parent, name))


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
