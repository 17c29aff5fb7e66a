"""Lesson 03: control words."""

from collections.abc import Callable

BASIC = 0x480
CAPABILITY = {"pin": 0x481, "proc1": 0x482, "exit1": 0x483, "entry": 0x484, "proc2": 0x48B}
TRUE_CAPABILITY = {"pin": 0x48D, "proc1": 0x48E, "exit1": 0x48F, "entry": 0x490}


def control_word(rdmsr: Callable[[int], int], group: str, required: int, optional: int = 0) -> int:
    """Return a word with all of `required`, and what the CPU has of `optional`.

    Raises ValueError if the CPU does not allow all of `required`.
    """
    msr = CAPABILITY[group]
    if group in TRUE_CAPABILITY and rdmsr(BASIC) >> 55 & 1:
        msr = TRUE_CAPABILITY[group]
    exists = group != "proc2" or rdmsr(CAPABILITY["proc1"]) >> 63
    capability = rdmsr(msr) if exists else 0
    must, may = capability & 0xFFFF_FFFF, capability >> 32
    if required & ~may:
        raise ValueError(f"{group}: this CPU does not allow {required & ~may:#x}")
    return required | optional & may | must
