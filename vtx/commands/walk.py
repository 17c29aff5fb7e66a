"""``vtx walk``."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output
from vtx.commands.traces import DEFAULT_PROFILE, read_trace
from vtx.errors import UsageError

if TYPE_CHECKING:
    from vtx.lab.table import Table
    from vtx.machine.walk import Walk

__all__ = ["Walk2D"]

SCHEMA = "vtx.walk/1"
FORMATS = ("table", "json", "svg", "html")
_ACCESSES = {"fetch": 0, "read": 1, "write": 2}


class Walk2D(Command):
    """Show the two-dimensional walk of one linear address, reference by reference.

    TRACE runs first, so that the guest has its page tables and EPT; then the address is
    walked from the roots, or with --cached through the TLBs and paging-structure caches as
    the trace has left them. svg and html draw the grid: a row for each guest entry, whose
    address EPT translates from left to right. Examples:

    vtx walk traces/02-ept-violation.yaml --gva 0x7000
    vtx walk traces/02-ept-violation.yaml --gva 0x7000 --format svg -o walk.svg
    vtx walk traces/02-ept-violation.yaml --gva 0x8000 --access write --at 1
    """

    name = "walk"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument(
            "trace", metavar="TRACE", help="trace file in YAML; - is standard input"
        )
        parser.add_argument("--gva", metavar="ADDRESS", required=True, help="linear address")
        parser.add_argument(
            "--access", choices=tuple(_ACCESSES), default="read", help="default: read"
        )
        parser.add_argument("--cpl", choices=("0", "3"), help="default: as the guest runs")
        parser.add_argument(
            "--profile",
            metavar="P",
            help=f"CPU profile, by name or YAML file (default: the trace's, or {DEFAULT_PROFILE})",
        )
        parser.add_argument(
            "--at", metavar="STEP", help="run so many steps and references first (default: all)"
        )
        parser.add_argument(
            "--cached", action="store_true", help="let TLBs and paging-structure caches answer"
        )
        group = parser.add_argument_group("output")
        group.add_argument(
            "--format", choices=FORMATS, default="table", help="what to print (default: table)"
        )
        group.add_argument(
            "-o", "--output", metavar="FILE", help="write to FILE instead of standard output"
        )
        group.add_argument("--force", action="store_true", help="let -o overwrite a file")

    def run(self, args: argparse.Namespace) -> int:
        """Walk the address and print the walk."""
        from vtx.hypervisor.walks import walk_address
        from vtx.lab.profile import load_profile
        from vtx.machine.walk_html import walk_html
        from vtx.machine.walk_svg import walk_svg

        output = Output(args)
        gva = _number("--gva", args.gva)
        at = None if args.at is None else _number("--at", args.at)
        trace = read_trace(args.trace)
        named = trace.header.profile or DEFAULT_PROFILE
        profile = load_profile(named if args.profile is None else args.profile)
        walk = walk_address(
            trace,
            gva,
            _ACCESSES[args.access],
            profile=profile.shape,
            at=at,
            cached=args.cached,
            cpl=None if args.cpl is None else int(args.cpl),
        )
        if output.format == "json":
            output.write_json(_document(walk))
        elif output.format == "svg":
            output.write(walk_svg(walk) + "\n")
        elif output.format == "html":
            output.write(walk_html(walk, f"{trace.name} on {profile.id}"))
        else:
            output.write_tables([_table(walk, f"{trace.name} on {profile.id}")])
        return FINE


def _number(option: str, text: str) -> int:
    if not re.fullmatch(r"0[xX][0-9a-fA-F_]{1,20}|[0-9_]{1,20}", text) or text.startswith("_"):
        raise UsageError(f"{option} wants a number such as 0x7000, not {text!r}")
    try:
        value = int(text, 0)
    except ValueError:
        raise UsageError(f"{option} wants a number such as 0x7000, not {text!r}") from None
    if value >> 64:
        raise UsageError(f"{option} wants a number of 64 bits, not {text}")
    return value


def _document(walk: Walk) -> dict[str, Any]:
    from vtx.machine.walk_rules import ending, entry_flags, entry_name

    end = ending(walk)
    steps = [
        {
            "dimension": step.dimension.name.lower(),
            "level": step.level,
            "guest_level": step.guest_level,
            "kind": step.kind.name.lower(),
            "entry": entry_name(step),
            "address": f"{step.address:#x}",
            "guest_physical": f"{step.gpa:#x}",
            "value": f"{step.value:#x}",
            "flags": entry_flags(step),
            "hit": step.hit.name.lower() if step.hit else None,
        }
        for step in walk.steps
    ]
    return {
        "schema": SCHEMA,
        "linear_address": f"{walk.gva:#x}",
        "access": walk.access.name.lower(),
        "status": walk.status.name.lower(),
        "source": walk.source.name.lower(),
        "guest_physical_address": None if walk.gpa is None else f"{walk.gpa:#x}",
        "host_physical_address": f"{walk.hpa:#x}" if walk.ok else None,
        "references": walk.references,
        "ending": end.what,
        "rule": end.rule,
        "manual": end.source,
        "steps": steps,
    }


def _table(walk: Walk, title: str) -> Table:
    from vtx.lab.table import Column, Table
    from vtx.machine.walk_html import HEADINGS, rows_of
    from vtx.machine.walk_rules import ending

    figures = {"#", "address", "value"}
    columns = tuple(Column(heading, heading in figures) for heading in HEADINGS)
    end = ending(walk)
    number = walk.references
    remarks = (f"{number} reference{'s' * (number != 1)}. {end.what}", f"{end.rule}: {end.source}")
    head = f"{title}: walk of linear address {walk.gva:#x}"
    return Table(head, columns, rows_of(walk), remarks)
