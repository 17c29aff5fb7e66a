"""Lesson 03: control words. Complete control_word(), then: vtx lab run 03 THIS_FILE."""

from collections.abc import Callable

BASIC = 0x480
CAPABILITY = {"pin": 0x481, "proc1": 0x482, "exit1": 0x483, "entry": 0x484, "proc2": 0x48B}
TRUE_CAPABILITY = {"pin": 0x48D, "proc1": 0x48E, "exit1": 0x48F, "entry": 0x490}


def control_word(rdmsr: Callable[[int], int], group: str, required: int, optional: int = 0) -> int:
    """Return a word with all of `required`, and what the CPU has of `optional`.

    Raises ValueError if the CPU does not allow all of `required`.
    """
    # 1. Which MSR? rdmsr(BASIC) tells whether there are TRUE ones.
    #    For proc2: does this CPU have secondary controls at all? (bit 31 of proc1)
    # 2. Which half says "must be 1", which one "may be 1"?
    # 3. Refuse, drop, add.
    return required | optional
