"""Writes the pages that follow from vtx's own tables, and the pictures that vtx draws."""

from __future__ import annotations

import contextlib
import io
import itertools
from pathlib import Path

import vtx
from vtx.facts.exiting import BOUNDARY_PRIORITY, CHANGED, CONDITIONAL, EVENTS, UNCONDITIONAL
from vtx.facts.exits import EXITS
from vtx.facts.fields import FIELDS
from vtx.facts.instruction_errors import INSTRUCTION_ERRORS
from vtx.hypervisor.walks import walk_address
from vtx.rules.check import CHECKS
from vtx.rules.exiting import OUT_OF_REACH
from vtx.rules.unreachable import WITHOUT_CHECK

__all__ = ["write_all"]

ROOT = Path(__file__).resolve().parent.parent.parent


def write_all(folder: Path) -> None:
    """Write every generated page into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, text in {
        "checks.md": checks(),
        "exits.md": exits(),
        "fields.md": fields(),
        "errors.md": errors(),
        "commands.md": commands(),
        "api.md": api(),
        "walk-4k.svg": walk("4K"),
        "walk-2m.svg": walk("2M"),
    }.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _table(headings: list[str], rows: list[list[object]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def checks() -> str:
    """Return the table of all VM-entry checks, by section of the manual."""
    parts = [
        "# All VM-entry checks\n",
        f"{len(CHECKS)} checks, in the order of the manual. `vtx explain ID` tells each one's "
        "fields, consequence and likely cause; `vtx check` names those that a VMCS breaks.\n",
    ]
    groups = itertools.groupby(CHECKS.values(), key=lambda check: check.section)
    for section, group in groups:
        rows: list[list[object]] = [
            [f"`{check.id}`", check.rule, check.consequence] for check in group
        ]
        parts += [f"## {section.title}\n", _table(["check", "rule", "otherwise"], rows)]
    rows = [[f"`{id}`", rule.rule, rule.reason] for id, rule in WITHOUT_CHECK.items()]
    parts += ["## Rules without a check\n", _table(["rule", "what it says", "why none"], rows)]
    return "\n".join(parts)


def exits() -> str:
    """Return the exit reasons, and what exits."""
    rows: list[list[object]] = [
        [int(info.reason), f"`{info.name}`", info.sdm_title, info.meaning]
        for info in EXITS.values()
    ]
    parts = ["# VM exits\n", "## Exit reasons\n", _table(["", "name", "title", "meaning"], rows)]
    for title, table in (
        ("Instructions that exit unconditionally", UNCONDITIONAL),
        ("Instructions that exit when controls say so", CONDITIONAL),
        ("Instructions changed without an exit", CHANGED),
        ("Events", EVENTS),
    ):
        rows = [
            [f"`{row.name}`", ", ".join(row.instructions), row.exits_if, ", ".join(row.controls)]
            for row in table.values()
        ]
        parts += [f"## {title}\n", _table(["", "instructions", "when", "decided by"], rows)]
    order = "\n".join(f"{number}. {level}" for number, level in enumerate(BOUNDARY_PRIORITY, 1))
    parts += ["## Priority at an instruction boundary\n", order + "\n"]
    rows = [[f"`{name}`", why] for name, why in OUT_OF_REACH.items()]
    parts += ["## Out of reach\n", _table(["", "why"], rows)]
    return "\n".join(parts)


def fields() -> str:
    """Return the VMCS fields."""
    rows: list[list[object]] = [
        [
            f"{int(info.field):#06x}",
            f"`{info.name}`",
            info.sdm_name,
            info.width.name,
            info.area.name,
        ]
        for info in FIELDS.values()
    ]
    return "# VMCS fields\n\n" + _table(["encoding", "name", "the manual's", "width", "area"], rows)


def errors() -> str:
    """Return the VM-instruction errors."""
    rows: list[list[object]] = [
        [int(info.error), f"`{info.name}`", info.text, ", ".join(info.instructions)]
        for info in INSTRUCTION_ERRORS.values()
    ]
    return "# VM-instruction errors\n\n" + _table(["", "name", "text", "reported by"], rows)


def commands() -> str:
    """Return the help of every command, as the command prints it."""
    from vtx.cli import build_parser
    from vtx.commands import COMMANDS

    parser = build_parser()
    parts = ["# Commands\n", "What `vtx COMMAND --help` prints.\n"]
    for command in COMMANDS:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            parser.parse_args([command.name, "--help"])
        parts += [f"## vtx {command.name}\n", f"```\n{out.getvalue().rstrip()}\n```\n"]
    return "\n".join(parts)


#: Public names of the package by theme.
_THEMES = {
    "The machine": ("Machine", "Cpu", "Vmcs", "Exit", "Shape"),
    "Programs, traces, runs": ("program", "load_trace", "Trace", "replay", "compare", "Run"),
    "A VMM's handlers": ("Vmm", "on"),
    "Costs": ("load_profile", "Profile"),
    "Explanations": ("explain",),
    "Names of the manual": (
        "Field", "ExitReason", "InstructionError", "Msr", "Pin", "Proc1", "Proc2", "Proc3",
        "Exit1", "Exit2", "Entry", "VmFunction",
    ),
    "Errors": (
        "VtxError", "UsageError", "InputError", "UnknownName", "AddressError", "NotSupported",
        "VMfailInvalid", "VMfailValid", "GuestFault", "EmulationStopped", "EndOfTrace",
        "UnhandledExit",
    ),
}  # fmt: skip
_ENUMERATIONS = frozenset(_THEMES["Names of the manual"])
_FUNCTIONS = frozenset(
    {"program", "load_trace", "replay", "compare", "on", "load_profile", "explain"}
)


def api() -> str:
    """Return the reference of the package's public names, from their docstrings."""
    named = {name for names in _THEMES.values() for name in names}
    missing = set(vtx.__all__) - named - {"__version__"}
    if missing:
        raise ValueError(f"the reference has no place for {sorted(missing)}")
    parts = ["# Python reference\n"]
    for theme, names in _THEMES.items():
        parts.append(f"## {theme}\n")
        for name in names:
            value = getattr(vtx, name)
            home = value.__module__
            if name in _FUNCTIONS:
                directive = f".. autofunction:: {home}.{value.__name__}"
            elif name in _ENUMERATIONS:
                directive = f".. autoclass:: {home}.{value.__name__}"
            else:
                directive = f".. autoclass:: {home}.{value.__name__}\n   :members:"
            parts.append(f"```{{eval-rst}}\n{directive}\n```\n")
    return "\n".join(parts)


def walk(pages: str) -> str:
    """Return the grid of a two-dimensional walk, drawn by vtx."""
    from vtx.hypervisor.trace import parse_trace
    from vtx.machine.walk_svg import walk_svg

    trace = parse_trace(
        f"schema: 1\nname: {pages}\nept: {{pages: {pages}, map: all}}\n"
        "guest: {map: demand, privilege: user, entry: 0x400000}\n"
        "steps: |\n  load 0x7fff12345678 size=8\n"
    )
    return walk_svg(walk_address(trace, 0x7FFF_1234_5678))
