"""Lesson 14: privileged and sensitive instructions, found out by trials."""

from collections.abc import Callable

from vtx.course.trials import Trial

OTHER = {
    "interrupts": False,
    "gdt_limit": 0x7FF,
    "idt_limit": 0x7FF,
    "ldt": 0x40,
    "task": 0x38,
    "task_switched": True,
}


def classify(trial: Callable[..., Trial]) -> tuple[bool, bool]:
    """Return (privileged, sensitive)."""
    privileged = trial(cpl=3).trapped
    one, other = trial(cpl=0), trial(cpl=0, **OTHER)
    changes = one.changed or other.changed or bool(one.exit)
    return privileged, changes or one.seen != other.seen
