"""Lessons 09 to 14: typical mistakes in the exercises, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtx.course import find_lesson
from vtx.course.runner import check

#: By lesson: (what is replaced in the solution, by what, words of the remark).
MISTAKES: dict[str, list[tuple[str, str, str]]] = {
    "09": [
        ("queue.append(exit.exception.vector)", "pass", "neither injected nor kept in queue"),
        ("queue and enabled and", "queue and", "while the guest has RFLAGS.IF = 0"),
        (
            " and not cpu.guest.interruptibility_state & STI_OR_MOV_SS",
            "",
            "blocked by STI, which VM entry refuses",
        ),
        ("queue.pop(0)", "queue.pop()", "oldest first"),
        ("&= ~Proc1.INTERRUPT_WINDOW_EXITING", "|= 0", "interrupt-window exiting is still on"),
        ("|= Proc1.INTERRUPT_WINDOW_EXITING", "|= 0", "nothing will tell you"),
        ("queue.append(exit", "cpu.skip(exit); queue.append(exit", "no instruction to skip"),
        ("cpu.inject(queue.pop(0))", "cpu.inject(queue.pop(0), type=4)", "interruption type 4"),
    ],
    "10": [
        (', size="4K", write=False', ', size="4K"', "mapped writable when the guest reads it"),
        ("    cpu.invept(SINGLE_CONTEXT, cpu.ept.eptp)\n", "", "it was a cached translation"),
        ("dirty.add(page)", "dirty.add(exit.ept.gpa)", "its page begins at gpa & ~0xfff"),
        ("if exit.ept.write:", "if True:", "only read; look at exit.ept.write"),
        ("exit.ept.gpa &", "exit.ept.gla &", "call cpu.ept.map(exit.ept.gpa)"),
        ("dirty.add(page)", "dirty.add(page)\n        cpu.skip(exit)", "no instruction to skip"),
        ("        cpu.ept.protect(page, write=True)\n", "", "without permission to write"),
        ("dirty.clear()", "dirty = set()", "empty the set in place"),
    ],
    "11": [
        ("read(walk_ept(read, eptp, table", "read((table", "is guest-physical: EPT translates"),
        (
            "return walk_ept(read, eptp, entry & ADDRESS & ~offset | gva & offset)",
            "return entry & ADDRESS & ~offset | gva & offset",
            "EPT for the address itself",
        ),
        ("table = entry & ADDRESS", "table = entry", "keep bits 51:12"),
        ("level == 1 or entry & PAGE_SIZE", "level == 1", "should read"),
        ("return entry & ADDRESS & ~offset | gpa & offset", "return entry & ADDRESS", "offset"),
    ],
    "12": [
        (
            "cpu.invvpid(ONE_ADDRESS, exit.qualification << 64 | vpid)",
            "pass",
            "it has read the old",
        ),
        ("exit.qualification << 64 | vpid", "exit.qualification << 64", "VPID 0"),
        ("exit.qualification << 64 | vpid", "exit.qualification | vpid", "bits 63:16 are not 0"),
        ("cpu.vmread(Field.VPID)", "1", "*this* guest"),
        ("cpu.invvpid(ONE_ADDRESS, exit", "cpu.invvpid(ONE_CONTEXT, exit", "no other of this"),
        ("ONE_CONTEXT_BUT_GLOBAL, vpid)", "ONE_CONTEXT, vpid)", "a type of INVVPID that retains"),
        ("ONE_CONTEXT_BUT_GLOBAL, vpid)", "ALL_CONTEXTS, 0)", "translations of other VPIDs stay"),
        (
            "cpu.guest.cr3 = getattr(cpu.guest, exit.cr.register)",
            "pass",
            "has exited and done noth",
        ),
        ("    cpu.skip(exit)\n", "", "the handler did not advance RIP"),
    ],
    "13": [
        ("cpu.exiting.ports = {port}", "cpu.exiting.ports = set()", "belongs into cpu.exiting.po"),
        ("cpu.exiting.msr_writes = {msr}", "pass", "0 of "),
        ("cpu.exiting.msr_reads = set()", "cpu.exiting.msr_reads |= {0xC0000100}", "RDMSR: "),
        ("Proc1.RDTSC_EXITING", "0", "TSC offsetting"),
        ("cpu.vmwrite(Field.VPID, 1)", "pass", "the VPID is not 0000H"),
        ("secondary | Proc2.ENABLE_VPID", "secondary", "is VPID on, and not 0?"),
        ('cpu.ept.map(0, size="1G")', "pass", "map the guest's memory before it runs"),
        ("    cpu.exiting.ports = {port}\n", "", "the set of ports that exit"),
    ],
    "14": [
        (
            "trial(cpl=0), trial(cpl=0, **OTHER)",
            "trial(cpl=3), trial(cpl=3, **OTHER)",
            "at CPL 3 it",
        ),
        ("one.seen != other.seen", "False", "it stores the"),
        ('    "task_switched": True,\n', "", "two machines may differ in CR0.TS"),
        ("one.changed or other.changed or", "one.changed or", "something to clear"),
        ("privileged = trial(cpl=3)", "privileged = trial(cpl=0)", "only a trial at CPL 3 can"),
        ("return privileged, changes", "return changes", "(privileged, sensitive)"),
    ],
}
CASES = [(lesson, *case) for lesson, cases in MISTAKES.items() for case in cases]


@pytest.mark.parametrize(
    ("number", "right", "wrong", "says"), CASES, ids=[f"{case[0]}-{case[3]}" for case in CASES]
)
def test_a_mistake_is_recognised(
    tmp_path: Path, number: str, right: str, wrong: str, says: str
) -> None:
    lesson = find_lesson(number)
    source = lesson.solution.read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / "mine.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    bad = [remark for remark in check(lesson, str(path), 1) if not remark.good]
    said = "\n".join(f"{remark.what}; {remark.hint}" for remark in bad)
    assert says in said
