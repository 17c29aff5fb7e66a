"""Mistakes that students make in the exercises, and what the checkers say of them.

Each is a solution with something replaced: what, by what, and words of the remark that it gets.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vtx.course import find_lesson
from vtx.course.runner import check

MISTAKES = [
    # Lesson 01: the ten instructions.
    ("01", 'return f"VMfailValid({failure.error})"', 'return "VMfailInvalid"', "VMfailValid(9)"),
    ("01", "except vtx.VMfailInvalid:", "except vtx.InputError:", "VMfailInvalid"),
    ("01", "    cpu.vmxon()\n", "", "execute VMXON first"),
    ("01", "exit = cpu.vmresume()", "exit = cpu.vmlaunch()", "enter it with VMRESUME"),
    ("01", "exit = cpu.vmlaunch(program)", "exit = cpu.vmresume()", "first entry of a VMCS"),
    ("01", "        cpu.skip(exit)\n", "", "call cpu.skip(exit)"),
    ("01", "    cpu.vmxoff()\n", "", "cpu.vmxoff()"),
    ("01", "if exit.reason is ExitReason.VMCALL:", "if True:", "also executes CPUID"),
    ("01", "    return calls\n", "", "end it with: return calls"),
    # Lesson 02: the VMCS.
    ("02", "encoding >> 10 & 3", "encoding >> 9 & 3", "bits 11:10"),
    ("02", "encoding >> 1 & 0x1FF", "encoding >> 1 & 0xFF00", "index of encoding"),
    ("02", "cpu.shape.msr(Msr.IA32_VMX_BASIC) & 0x7FFF_FFFF", "0x12", "revision identifier"),
    ("02", "    cpu.vmclear(page)\n    cpu.vmptrld(page)\n", "    cpu.vmclear(page)\n", "VMPTRLD"),
    (
        "02",
        '"""Enter the guest of the VMCS in the page; return its exit."""\n    cpu.vmptrld(page)',
        '"""Enter."""',
        "take no address",
    ),
    (
        "02",
        "    if page in launched:\n        return cpu.vmresume()\n",
        "",
        "enter it with VMRESUME",
    ),
    (
        "02",
        "    cpu.vmclear(page)\n    launched.discard(page)\n",
        "    cpu.vmclear(page)\n",
        "first entry",
    ),
    (
        "02",
        "    cpu.vmclear(page)\n    launched.discard(page)\n",
        "    launched.discard(page)\n",
        "may still be inside the processor",
    ),
    # Lesson 03: controls.
    (
        "03",
        "must, may = capability & 0xFFFF_FFFF, capability >> 32",
        "may, must = capability & 0xFFFF_FFFF, capability >> 32",
        "upper half of the MSR (63:32)",
    ),
    ("03", " | must\n", "\n", "must be 1 (lower half of the MSR) are missing"),
    ("03", "optional & may", "optional", "may not be 1 (upper half of the MSR) are set"),
    (
        "03",
        "if group in TRUE_CAPABILITY and rdmsr(BASIC) >> 55 & 1:",
        "if group in TRUE_CAPABILITY:",
        "IA32_VMX_BASIC[55] tells",
    ),
    ("03", "if group in TRUE_CAPABILITY and rdmsr(BASIC) >> 55 & 1:", "if False:", "default1"),
    (
        "03",
        '        raise ValueError(f"{group}: this CPU does not allow {required & ~may:#x}")',
        "        required &= may",
        "cannot run without it",
    ),
    ("03", 'group != "proc2" or rdmsr(CAPABILITY["proc1"]) >> 63', "True", "0x48b"),
    # Lesson 04: the first launch.
    (
        "04",
        "            if not exit.entry_failure:\n                return broken\n",
        "            return broken\n",
        "still breaks a rule, guest.",
    ),
    (
        "04",
        "except vtx.VMfailValid as failure:\n            check = failure.check\n        else:",
        "finally:\n            pass\n        if True:",
        "VMfailValid(",
    ),
    (
        "04",
        "set_bits(Field.GUEST_RFLAGS, 1 << 1)",
        "lambda cpu: cpu.vmwrite(Field.GUEST_RFLAGS, 2)",
        "read, modify, write",
    ),
    (
        "04",
        "        REPAIRS[check](cpu)\n",
        "        cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))\n",
        "as it was before",
    ),
    (
        "04",
        "            exit = cpu.vmlaunch(program)\n",
        "            exit = cpu.vmresume() if broken else cpu.vmlaunch(program)\n",
        "basic.vmresume_launch_state",
    ),
    ("04", "        broken.append(check)\n", "        broken = [check]\n", "names the rules"),
    ("04", '"guest.efer.lma": set', '"guest.efer.lme": set', "KeyError: 'guest.efer.lma'"),
    (
        "04",
        "        REPAIRS[check](cpu)\n",
        "        if check[0] != 'g':\n            REPAIRS[check](cpu)\n",
        "the VMCS still breaks the rule",
    ),
    # Lesson 05: CPUID.
    (
        "05",
        "    cpu.regs.rax = cpu.regs.rbx = cpu.regs.rcx = cpu.regs.rdx = 0\n",
        "    cpu.regs.rax = 0\n",
        "leaves something in RBX, RDX: CPUID writes all four",
    ),
    ("05", "1 << 31", "1 << 30", "ECX[31]"),
    ("05", '"little"', '"big"', "the first in the low byte"),
    ("05", "cpu.regs.rax = 0x4000_0000", "cpu.regs.rax = 0", "the highest leaf"),
    # Lesson 06: masks, shadows, bitmaps.
    ("06", "GUEST_HOST_MASK, owned)", "GUEST_HOST_MASK, ~owned & 0xFFFF_FFFF)", "a 1 is the VMM's"),
    ("06", "        cpu.vmwrite(Field.CR0_READ_SHADOW, value)\n", "", "as it has written it"),
    ("06", "cpu.guest[exit.cr.register]", "cpu.guest.rax", "exit.cr.register names"),
    ("06", "        cpu.guest.cr0 = cpu.guest.cr0 & mask | value & ~mask\n", "", "the same MOV"),
    ("06", "cpu.guest.cr0 & mask | value & ~mask", "value", "the owned bits as they were"),
    ("06", "controls | Proc1.USE_TSC_OFFSETTING", "controls", 'the control "use TSC offsetting"'),
    (
        "06",
        '        cpu.inject("#GP")\n        return\n',
        '        cpu.inject("#GP")\n',
        "not both",
    ),
    (
        "06",
        '        cpu.inject("#GP")\n        return\n',
        "        pass\n",
        "lets the next VM entry",
    ),
    ("06", "cpu.exiting.msr_writes = {guarded}", "pass", "sets of their own"),
    ("06", "SECRET >> 32, SECRET & 0xFFFF_FFFF", "0, SECRET", "the upper 32 bits go into EDX"),
    # Lesson 07: I/O.
    ("07", "range(base, base + 8)", "range(base, base + 7)", "base + 7 does not"),
    ("07", "range(base, base + 8)", "range(base, base + 9)", "base + 8 does, too"),
    ("07", "        cpu.exiting.ports = range(base, base + 8)\n", "", "unconditional exiting"),
    ("07", "if exit.io.is_in:", "if not exit.io.is_in:", "reads as 0x60"),
    ("07", "cpu.guest.rax & ~0xFF | value", "value", "bits 63:8 of RAX"),
    (
        "07",
        "self.write(register, cpu.guest.rax & 0xFF)",
        "self.write(register, cpu.guest.rax)",
        "in Serial.handle: ValueError: byte must be",
    ),
    ("07", "count = cpu.guest.rcx if exit.io.rep else 1", "count = 1", "the count is RCX"),
    ("07", "            if exit.io.rep:\n                cpu.guest.rcx = 0\n", "", "set RCX to 0"),
    ("07", "            cpu.guest.rsi += count\n", "", "RSI has moved"),
    ("07", "cpu.guest.linear[start", "cpu.guest.memory[start", "in Serial.handle"),
    ("07", "        cpu.skip(exit)\n", "", "call cpu.skip(exit)"),
    ("07", "    def handle(", "    def handel(", "Serial has no method handle"),
    # Lesson 08: exceptions and injection.
    (
        "08",
        "PAGE_FAULT_ERROR_CODE_MATCH, WRITE",
        "PAGE_FAULT_ERROR_CODE_MATCH, 0",
        "a page fault by a read does not exit",
    ),
    ("08", '{"#UD", "#GP", "#PF"}', '{"#UD", "#GP"}', "a page fault by a read does not exit"),
    (
        "08",
        "        cpu.guest.cr2 = event.address\n",
        "        pass\n",
        "before the processor wrote CR2",
    ),
    (
        "08",
        "    cpu.inject(event.vector, error_code=event.error_code)",
        "    cpu.inject(event.vector)",
        "cpu.inject takes error_code",
    ),
    (
        "08",
        "    cpu.inject(event.vector, error_code=event.error_code)",
        "    cpu.inject(event.vector, error_code=event.error_code)\n    cpu.skip(exit)",
        "cpu.skip",
    ),
    ("08", "        if first is not None:\n", "        if False:\n", "IDT-vectoring information"),
    ("08", "                type=first.type,\n", "", "type=exit.idt_vectoring.type"),
    (
        "08",
        "                instruction_length=exit.instruction_length,\n",
        "",
        "instruction_length=exit",
    ),
    (
        "08",
        "if first is not None and is_exception and is_double_fault(first.vector, event.vector):",
        "if first is not None:",
        "#UD is benign",
    ),
    (
        "08",
        "if first is not None and is_exception and is_double_fault(first.vector, event.vector):",
        "if False:",
        "inject #DF",
    ),
]


@pytest.mark.parametrize(("number", "right", "wrong", "says"), MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, number: str, right: str, wrong: str, says: str) -> None:
    lesson = find_lesson(number)
    source = lesson.solution.read_text(encoding="utf-8")
    assert right in source
    path = tmp_path / "mine.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    bad = [remark for remark in check(lesson, str(path), 1) if not remark.good]
    assert says in " ".join(f"{remark.what} {remark.hint}" for remark in bad)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("cpu.regs.rbx = b'Teac'", "cpu.regs.rbx is b'Teac': a register holds an int"),
        ("cpu.regs.rcx = -1", "cpu.regs.rcx is -0x1, which has no 64 bits"),
        ("cpu.regs.rcx = 1 << 64", "which has no 64 bits"),
        ("cpu.regs.eax = 0", "line 2, in handle: AttributeError: unknown register 'eax'"),
        ("cpu.rax = 0", "it is cpu.regs.rax"),
        ("exit.reson", "did you mean reason?"),
    ],
)
def test_a_handler_that_writes_the_wrong_thing(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def handle(cpu, exit):\n    {line}\n    cpu.skip(exit)\n", encoding="utf-8")
    bad = [remark for remark in check(find_lesson("05"), str(path), 1) if not remark.good]
    assert says in bad[0].what


def test_a_checker_that_stumbles_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(lab: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("vtx.course.runner._checker", lambda lesson: stumble)
    path = tmp_path / "mine.py"
    path.write_text("", encoding="utf-8")
    (remark,) = check(find_lesson("05"), str(path), 1)
    assert (
        remark.what == "the checker could not judge what it found: TypeError: unsupported operand"
    )
    assert not remark.good
