"""Lesson 14: is it privileged, is it sensitive? Complete classify(): vtx lab run 14 THIS_FILE."""

from collections.abc import Callable

from vtx.course.trials import Trial


def classify(trial: Callable[..., Trial]) -> tuple[bool, bool]:
    """Return (privileged, sensitive) of the instruction that `trial` executes.

    trial(cpl=0, task_switched=True) executes it once in a machine of that state and returns a
    Trial: trapped, seen, changed, exit. The state: cpl, interrupts, gdt_limit, idt_limit, ldt,
    task (selectors, multiples of 8), task_switched; `vtx.course.trials.State` says what they are.
    """
    # 1. Privileged: what happens at which level?
    privileged = trial(cpl=3).trapped
    # 2. Sensitive because it changes the machine's state, or halts it: at which level can that be
    #    seen? (Remember POPF.)
    # 3. Sensitive because it shows the machine's state: two machines that differ, and a program
    #    that sees a difference. In what do they have to differ? And at which level?
    sensitive = False
    return privileged, sensitive
