"""No parameter of an instruction shares its name with an operand: one would overwrite the other."""

from __future__ import annotations

import pytest

from vtx.facts.instructions import INSTRUCTIONS
from vtx.machine.assembly import parse_instruction


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_names_are_apart(name):
    spec = INSTRUCTIONS[name]
    operands = {operand for form in spec.forms for operand, _ in form.operands if operand}
    clash = {p for p in spec.parameters if p in operands and spec.parameters[p].target[1:] == p}
    assert not clash


def test_the_type_of_an_invalidation_goes_into_its_register():
    step = parse_instruction("invpcid rcx, [0x5000] type=2")
    assert step.operands["register"] == 1
    assert step.sets == (("rcx", 2),)
