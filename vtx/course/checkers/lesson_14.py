"""Popek and Goldberg: the student's trials against what the instructions are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vtx.course.lab import StudentError
from vtx.course.trials import bench

if TYPE_CHECKING:
    from vtx.course.lab import Lab

__all__ = ["check"]

#: By instruction: privileged, sensitive, and why.
_KNOWN = {
    "sgdt [0x7000]": (False, True, "it stores the GDTR, whose limit may differ between machines"),
    "sidt [0x7000]": (False, True, "it stores the IDTR, whose limit may differ between machines"),
    "sldt rax": (False, True, "it stores the LDTR's selector, and LDTs may differ"),
    "str rax": (False, True, "it stores the task register's selector, and tasks may differ"),
    "smsw rax": (False, True, "it stores the low bits of CR0; two machines may differ in CR0.TS"),
    "pushf": (False, True, "it pushes RFLAGS.IF, by which two machines may differ"),
    "popf": (
        False,
        True,
        "at CPL 0 it changes RFLAGS.IF; at CPL 3 it leaves IF alone and does not trap: look at "
        "what changes at the level for which it was written",
    ),
    "mov rax, cr0": (True, True, "it shows CR0 at CPL 0, and traps at CPL 3"),
    "cli": (True, True, "at CPL 0 it changes RFLAGS.IF; there must have been something to clear"),
    "sti": (True, True, "at CPL 0 it changes RFLAGS.IF; there must have been something to set"),
    "clts": (True, True, "at CPL 0 it clears CR0.TS; there must have been something to clear"),
    "mov cr3, rax value=0x300008": (True, True, "at CPL 0 it changes CR3"),
    "hlt": (True, True, "it takes the processor away from everybody: see Trial.exit at CPL 0"),
    "mov rbx, rax": (False, False, "registers are the program's own"),
    "load 0x8000": (False, False, "memory that the program may access is its own"),
    "cld": (False, False, "RFLAGS.DF is the program's own"),
    "wbinvd": (True, None, "it traps at CPL 3"),
}


def check(lab: Lab) -> None:
    """Let classify() judge a few instructions whose names it does not know."""
    classify = lab.function("classify", "the judgement: classify(trial)")
    holes = lab.random.sample(["sgdt [0x7000]", "sidt [0x7000]", "sldt rax", "str rax"], 2)
    fixed = ["popf", "pushf", "smsw rax", "clts"]
    rest = lab.random.sample([name for name in _KNOWN if name not in (*holes, *fixed)], 5)
    instructions = [*holes, *fixed, *rest]
    lab.random.shuffle(instructions)
    for instruction in instructions:
        privileged, sensitive, why = _KNOWN[instruction]
        verdict = classify(partial(bench, instruction))
        if not (isinstance(verdict, tuple) and len(verdict) == 2):
            raise StudentError(
                f"classify returns {verdict!r}", "it should return (privileged, sensitive)"
            )
        name = instruction.partition(" value=")[0]
        lab.expect(
            bool(verdict[0]) == privileged,
            f"{name} is {'' if privileged else 'not '}privileged",
            f"at CPL 3 it {'traps' if privileged else 'does not trap'}; at CPL 0 every "
            "instruction here runs, so only a trial at CPL 3 can tell",
        )
        if sensitive is not None:
            lab.expect(
                bool(verdict[1]) == sensitive,
                f"{name} is {'sensitive' if sensitive else 'innocuous'}",
                why,
            )
