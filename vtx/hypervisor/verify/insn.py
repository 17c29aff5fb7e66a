"""``bochs-insn-1``: one guest instruction under controls, at CPL 0 or 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtx.errors import EmulationStopped, GuestFault, InputError, VMfail
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.verify.code import MachineCode, UnknownCode
from vtx.hypervisor.verify.corpus import Corpus, require
from vtx.hypervisor.verify.entry import enter_setup
from vtx.hypervisor.verify.golden import CODE, GUEST_64, guest_memory
from vtx.hypervisor.verify.judgement import Skip, Verdict
from vtx.hypervisor.verify.machines import BareMachine, contents, numbers
from vtx.machine.decoding import DecodeError, decode
from vtx.machine.program import Instruction

__all__ = ["InstructionReplayer"]

#: Keys of a verdict and the fields they are.
_FIELDS = {
    "exit_reason": Field.EXIT_REASON,
    "exit_qualification": Field.EXIT_QUALIFICATION,
    "exit_instr_len": Field.VM_EXIT_INSTRUCTION_LENGTH,
    "exit_instr_info": Field.VM_EXIT_INSTRUCTION_INFORMATION,
    "exit_intr_info": Field.VM_EXIT_INTERRUPTION_INFORMATION,
    "exit_intr_err_code": Field.VM_EXIT_INTERRUPTION_ERROR_CODE,
    "idt_vectoring_info": Field.IDT_VECTORING_INFORMATION,
    "guest_linear_address": Field.GUEST_LINEAR_ADDRESS,
    "guest_physical_address": Field.GUEST_PHYSICAL_ADDRESS,
    "guest_rip": Field.GUEST_RIP,
    "guest_rsp": Field.GUEST_RSP,
    "guest_rflags": Field.GUEST_RFLAGS,
    "guest_cr0": Field.GUEST_CR0,
    "guest_cr3": Field.GUEST_CR3,
    "guest_cr4": Field.GUEST_CR4,
    "guest_interruptibility": Field.GUEST_INTERRUPTIBILITY_STATE,
    "guest_pending_dbg": Field.GUEST_PENDING_DEBUG_EXCEPTIONS,
    "guest_activity": Field.GUEST_ACTIVITY_STATE,
}
#: What stands behind the instruction.
_CPUID, _AFTERWARDS = b"\x0f\xa2", 256
_HARDWARE_EXCEPTION = 3
_VMX_OPERANDS = frozenset({ExitReason.VMREAD, ExitReason.VMWRITE, ExitReason.LDTR_TR})
_RANDOM = frozenset({ExitReason.RDRAND, ExitReason.RDSEED})
_IS_REGISTER = 1 << 10
#: They read 6 or 10 bytes: in which order is not defined, nor at which of them they fault.
_TABLE_LOADS, _TABLE_BYTES = frozenset({"lgdt", "lidt"}), 10
#: Interruption information: valid, hardware exception, #PF.
_PAGE_FAULT = 0x8000_030E
_SEGMENT_BITS, _UNUSED_RANDOM_BITS, _OPERAND_SIZE = 0x3_8000, 0x780, 0x1800
#: Instructions whose result is the time or chance.
_NO_VALUE = frozenset({"rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc"})
_TIME_STAMP_COUNTER = 0x10
_TIMED = {"rax", "rdx"}


class InstructionReplayer:
    """Replays the cases of one corpus.

    Parameters
    ----------
    corpus : Corpus
        Its header names the CPU; a header with ``goldens`` and ``mem`` brings its own guests.
    """

    def __init__(self, corpus: Corpus) -> None:
        header = corpus.header
        base = str(header.get("base", "g64")).split()[0]
        try:
            golden = header.get("goldens", {}).get(base)
            if golden is not None:
                self._fields = numbers(golden["fields"])
                memory = contents(header["mem"])
            else:
                self._fields = dict(GUEST_64)
                memory = guest_memory(4)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"malformed header: {error!r}", file=corpus.file, line=1) from None
        if base != "g64" and golden is None:
            raise InputError(f"unknown guest {base!r}", file=corpus.file, line=1)
        self._code = int(header.get("code", CODE))
        self._machine = BareMachine(header, corpus.file, memory)

    def replay(self, case: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
        """Return what comes of a case here, and what came of it there."""
        require(case, "code", "delta", "verdict")
        code = bytes.fromhex(case["code"])
        then = {self._code: code + _CPUID * _AFTERWARDS}
        cpu = self._machine.fresh({**then, **contents(case.get("mem", {}))})
        fields = self._fields | numbers(case["delta"])
        if "proc_ctls" in case:
            fields[Field.PRIMARY_PROCESSOR_BASED_CONTROLS] = case["proc_ctls"]
        if "681c" not in case["delta"] and _began_without_stack(case["verdict"]):
            fields[Field.GUEST_RSP] = 0
        enter_setup(cpu, fields)
        before = dict.fromkeys(("rax", "rcx", "rdx"), 0) | dict(case.get("gpr", {}))
        for name, value in case.get("gpr", {}).items():
            setattr(cpu.regs, name, value)
        cpu.set_program(MachineCode(cpu))
        try:
            cpu.vmlaunch()
        except UnknownCode:
            raise Skip("the guest executes code that is not in the instruction table") from None
        except (VMfail, GuestFault, EmulationStopped) as error:
            return {"kind": f"no exit: {error}"}, {"kind": case["verdict"].get("kind")}
        vmcs, verdict = cpu.vmcs, case["verdict"]
        assert vmcs is not None
        ours: Verdict = {"kind": "vmexit"}
        theirs: Verdict = {"kind": verdict["kind"]}
        for name, field in _FIELDS.items():
            if name in verdict:
                ours[name], theirs[name] = vmcs[field], verdict[name]
        steps = _steps(code)
        mask_undefined(ours, theirs, steps)
        changed = dict(verdict.get("gpr", {}))
        names = [name for name in {**before, **changed} if name != "rsp"]
        ours["gpr"] = {name: getattr(cpu.regs, name) for name in names}
        theirs["gpr"] = {name: changed.get(name, before.get(name, 0)) for name in names}
        if _reads_time(steps, case):
            for name in _TIMED | {steps[-1].operands.get("destination", -1)}:
                _forget(ours, theirs, name)
        return ours, theirs


def _began_without_stack(verdict: Mapping[str, Any]) -> bool:
    """Tell whether the guest began with RSP 0, which the writer of the corpora leaves out.

    A fault leaves RSP as it was before the instruction, so the verdict shows it.
    """
    return verdict.get("guest_rsp") == 0 and verdict.get("exit_reason") == 0


def _forget(ours: Verdict, theirs: Verdict, name: str | int) -> None:
    from vtx.facts.instructions import GENERAL_REGISTERS

    if isinstance(name, int):
        if name < 0:
            return
        name = GENERAL_REGISTERS[name]
    ours["gpr"].pop(name, None)
    theirs["gpr"].pop(name, None)


def _steps(code: bytes) -> list[Instruction]:
    """Return the instructions of a case."""
    steps = []
    while code:
        try:
            steps.append(decode(code))
        except DecodeError:
            break
        code = code[steps[-1].length :]
    return steps


def _reads_time(steps: list[Instruction], case: Mapping[str, Any]) -> bool:
    if not steps:
        return False
    name = steps[-1].name
    reads_msr = name == "rdmsr" and case.get("gpr", {}).get("rcx", 0) == _TIME_STAMP_COUNTER
    return name in _NO_VALUE or reads_msr


def _distance(ours: Verdict, theirs: Verdict) -> int:
    """Return how far apart the addresses of two page faults are; 0 for anything else."""
    for side in (ours, theirs):
        if side.get("exit_intr_info", 0) & 0x8000_07FF != _PAGE_FAULT:
            return 0
    if "exit_qualification" not in ours or "exit_qualification" not in theirs:
        return 0
    return abs(int(ours["exit_qualification"]) - int(theirs["exit_qualification"]))


def mask_undefined(ours: Verdict, theirs: Verdict, steps: list[Instruction]) -> None:
    """Leave out what the manual does not define for the exit that theirs is."""
    reason = theirs.get("exit_reason", 0) & 0xFFFF
    information = theirs.get("exit_instr_info", 0)
    names = {step.name for step in steps}
    same_operand = bool(names & _TABLE_LOADS) and 0 < _distance(ours, theirs) < _TABLE_BYTES
    for side in (ours, theirs):
        kind = theirs.get("exit_intr_info", 0) >> 8 & 7
        if reason == ExitReason.EXCEPTION_OR_NMI and kind == _HARDWARE_EXCEPTION:
            side.pop("exit_instr_len", None)
        if reason in (ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIGURATION):
            side.pop("exit_instr_len", None)
        if reason in _VMX_OPERANDS and information & _IS_REGISTER:
            side.pop("exit_qualification", None)
        if same_operand:
            side.pop("exit_qualification", None)
        if "exit_instr_info" not in side:
            continue
        if reason == ExitReason.IO_INSTRUCTION and "ins" in names:
            side["exit_instr_info"] &= ~_SEGMENT_BITS
        if reason in _RANDOM:
            side["exit_instr_info"] &= ~_UNUSED_RANDOM_BITS
            if steps and steps[-1].operands.get("operand_size") == 2:
                side["exit_instr_info"] &= ~_OPERAND_SIZE
