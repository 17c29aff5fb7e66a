"""Each ordered condition is needed: with its statement taken out, its cases end in another way.

The rules say which statement is which condition by numbered comments, so this also proves that the
comments are where they belong.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType

import pytest

from tests.cpu.states import outcome
from tests.cpu.steps import CASES, by_step
from vtx.rules import (
    vmx_entry,
    vmx_fields,
    vmx_functions,
    vmx_invalidation,
    vmx_operation,
    vmx_regions,
)

#: The functions that hold the conditions of each instruction.
HOMES: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "VMXON": (vmx_operation, ("vmxon", "_check_processor_allows_vmxon")),
    "VMXOFF": (vmx_operation, ("vmxoff",)),
    "VMCALL": (vmx_operation, ("vmcall", "_check_activation")),
    "VMCLEAR": (vmx_regions, ("vmclear",)),
    "VMPTRLD": (vmx_regions, ("vmptrld",)),
    "VMPTRST": (vmx_regions, ("vmptrst",)),
    "VMREAD": (vmx_fields, ("_vmread", "exits", "_read_field")),
    "VMWRITE": (vmx_fields, ("_vmwrite", "exits", "_write_field")),
    "VMLAUNCH": (
        vmx_entry,
        ("_check_instruction", "_check_clear", "_enter_guest", "_load_msrs"),
    ),
    "VMRESUME": (
        vmx_entry,
        ("_check_instruction", "_check_launched", "_enter_guest", "_load_msrs"),
    ),
    "VMFUNC": (vmx_functions, ("vmfunc", "exits")),
    "INVEPT": (vmx_invalidation, ("invept",)),
    "INVVPID": (vmx_invalidation, ("invvpid", "_check_descriptor")),
}
#: VMRESUME has one condition more, so its numbers stand second: "13/14."
_COMMENT = re.compile(r"#\s*((?:\d+(?:/\d+)?\.[^\d]*)+)")
_NUMBERS = re.compile(r"(\d+)(?:/(\d+))?\.")


@cache
def source(module: ModuleType) -> tuple[str, ...]:
    """Return the lines of a module."""
    return tuple(inspect.getsource(module).splitlines())


def numbers_in(line: str, name: str) -> set[int]:
    """Return the numbers of the conditions that a comment line announces for an instruction."""
    match = _COMMENT.match(line.strip())
    if match is None:
        return set()
    place = 2 if name == "VMRESUME" else 1
    return {int(found.group(place) or found.group(1)) for found in _NUMBERS.finditer(match[1])}


def statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Return all statements of a function."""
    return (node for node in ast.walk(function) if isinstance(node, ast.stmt))


def announced(module: ModuleType, name: str, function: ast.FunctionDef, step: int) -> set[int]:
    """Return the lines of the statements that stand under a comment with this number."""
    lines = source(module)
    found = set()
    for number in range(function.lineno, (function.end_lineno or 0) + 1):
        if step in numbers_in(lines[number - 1], name):
            following = [s.lineno for s in statements(function) if s.lineno > number]
            found.add(min(following))
    return found


class Remover(ast.NodeTransformer):
    """Takes out the statements that begin on some lines."""

    def __init__(self, lines: set[int], name: str) -> None:
        self.lines = lines
        self.name = name
        self.removed = 0

    def visit(self, node: ast.AST) -> ast.AST:
        """Replace a statement of those lines by one that lets everything pass."""
        if isinstance(node, ast.stmt) and node.lineno in self.lines:
            self.removed += 1
            return ast.copy_location(self.without(node), node)
        return super().generic_visit(node)

    def without(self, node: ast.stmt) -> ast.stmt:
        """Return what remains of a statement without its condition."""
        if isinstance(node, ast.If):
            node.test = ast.Constant(False)
            return node
        if not isinstance(node, ast.Assign):
            return ast.Pass()
        calls = ast.unparse(node.value)
        target = ast.unparse(node.targets[0])
        if "read_operand" in calls:
            text = f"try:\n    {ast.unparse(node)}\nexcept Exception:\n    {target} = 0"
            return ast.parse(text).body[0]
        return ast.parse(f"{target} = None").body[0]


def without_step(monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    """Replace the functions of a module by ones that lack a condition of an instruction."""
    module, homes = HOMES[name]
    tree = ast.parse("\n".join(source(module)))
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in homes]
    lines = set().union(*(announced(module, name, f, step) for f in functions))
    remover = Remover(lines, name)
    tree = ast.fix_missing_locations(remover.visit(tree))
    assert remover.removed == 1, f"{name} {step}: {remover.removed} statements"
    namespace: dict[str, object] = {"__name__": module.__name__}
    exec(compile(tree, module.__name__, "exec"), namespace)
    for key, value in namespace.items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            monkeypatch.setattr(module, key, value)


def end(case_index: int) -> str:
    """Return how a case ends, in words, whatever happens."""
    case = CASES[case_index]
    cpu = case.prepare()
    try:
        return outcome(cpu, case.act)
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("name", "step"), list(by_step()), ids=[f"{name}-{step}" for name, step in by_step()]
)
def test_step_is_needed(monkeypatch: pytest.MonkeyPatch, name: str, step: int):
    without_step(monkeypatch, name, step)
    cases = [i for i, case in enumerate(CASES) if (case.name, case.step) == (name, step)]
    unmoved = [CASES[i].id for i in cases if end(i) == CASES[i].ends]
    assert not unmoved
