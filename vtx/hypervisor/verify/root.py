"""``bochs-root-1``: VMX instructions outside VMX operation and in VMX root operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vtx.bits import MASK32, MASK64
from vtx.cpu import Cpu, MemoryOperand, RegisterOperand
from vtx.errors import GuestFault, InputError, VMfailInvalid, VMfailValid
from vtx.facts.instructions import GENERAL_REGISTERS, SEGMENT_REGISTERS
from vtx.facts.msrs import Msr
from vtx.hypervisor.verify.corpus import Corpus, require
from vtx.hypervisor.verify.golden import VMCS_REGION, VMXON_REGION
from vtx.hypervisor.verify.judgement import Skip, Verdict
from vtx.hypervisor.verify.machines import BareMachine, contents
from vtx.machine.assembly import parse_instruction
from vtx.machine.context import Access
from vtx.machine.decoding import DecodeError, decode
from vtx.machine.program import Instruction
from vtx.machine.registers import Segment
from vtx.machine.walk import WalkStatus
from vtx.rules.control_registers import ControlState, cr0_fault, cr4_fault
from vtx.rules.execution_data import EFFECTS as DATA_EFFECTS
from vtx.rules.exiting_information import operand_offset
from vtx.rules.transitions_context import root_context

__all__ = ["RootReplayer"]

_GP, _PF, _UD = 13, 14, 6
_CODE = 0x9_0800
_VMCS_POINTER, _VMXON_POINTER = 0x8_1F00, 0x8_1F08
_STATUS = 0x8D5
#: Registers that a verdict lists if they changed.
_SHOWN = ("rax", "rdx")
_LOCK_AND_ENABLE = 5
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
_ORDINARY = frozenset({"mov", "xor", "test", "btr"})


class RootReplayer:
    """Replays the cases of one corpus.

    Parameters
    ----------
    corpus : Corpus
        Its header describes the CPU.
    """

    def __init__(self, corpus: Corpus) -> None:
        pointers = {
            _VMCS_POINTER: VMCS_REGION.to_bytes(8, "little"),
            _VMXON_POINTER: VMXON_REGION.to_bytes(8, "little"),
        }
        self._machine = BareMachine(corpus.header, corpus.file, pointers)
        self._code = int(corpus.header.get("code", _CODE))

    def replay(self, case: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
        """Return what comes of a case here, and what came of it there."""
        require(case, "code", "setup", "verdict")
        cpu = self._machine.fresh(contents(case.get("mem", {})))
        cpu.regs.msrs[Msr.IA32_FEATURE_CONTROL] = 0
        for step in case["setup"]:
            _set_up(cpu, step)
        cpu.regs.rflags = 2
        for name, value in {**case.get("state", {}), **case.get("regs", {})}.items():
            _set(cpu, name, value)
        before = {name: int(case.get("regs", {}).get(name, 0)) for name in _SHOWN}
        ours = self._run(cpu, bytes.fromhex(case["code"]), int(case.get("bits", 64)))
        ours["rflags"] = cpu.regs.rflags & _STATUS
        now = {name: getattr(cpu.regs, name) for name in _SHOWN}
        ours["regs"] = {name: value for name, value in now.items() if value != before[name]}
        verdict = case["verdict"]
        theirs: Verdict = {"outcome": verdict["outcome"]}
        theirs |= {key: verdict[key] for key in ("error", "vector") if key in verdict}
        if verdict.get("vector") in _WITH_ERROR_CODE:
            theirs["error_code"] = verdict.get("error_code", 0)
        theirs["rflags"] = verdict.get("rflags", 0) & _STATUS
        shown = verdict.get("regs", {})
        theirs["regs"] = {name: shown[name] for name in _SHOWN if name in shown}
        return ours, theirs

    def _run(self, cpu: Cpu, code: bytes, mode: int) -> Verdict:
        regs = cpu.regs
        regs.rip = self._code
        try:
            while code:
                instruction = _decode(code, mode, regs.rip)
                _fetch(cpu, regs.rip)
                execute(cpu, instruction)
                code = code[instruction.length :]
                regs.rip += instruction.length
        except GuestFault as fault:
            ours: Verdict = {"outcome": "exception", "vector": fault.vector}
            if fault.vector in _WITH_ERROR_CODE:
                ours["error_code"] = fault.error_code or 0
            return ours
        except VMfailInvalid:
            return {"outcome": "vmfail_invalid"}
        except VMfailValid as failure:
            return {"outcome": "vmfail_valid", "error": failure.error}
        return {"outcome": "ok"}


def _decode(code: bytes, mode: int, rip: int) -> Instruction:
    try:
        return decode(code, mode, rip)
    except DecodeError:
        raise Skip("the host executes code that is not in the instruction table") from None


def _fetch(cpu: Cpu, rip: int) -> None:
    """Raise the page fault of an instruction whose code cannot be fetched."""
    regs = cpu.regs
    linear = rip if regs.in_64bit_mode else regs.cs.base + rip & MASK32
    walk = cpu.mmu.translate(root_context(cpu), linear, Access.FETCH)
    if walk.status is WalkStatus.PAGE_FAULT:
        raise GuestFault(_PF, walk.error_code, "instruction fetch", address=linear)


def _set(cpu: Cpu, name: str, value: Any) -> None:
    """Set a register, as the corpus gives it."""
    if name in SEGMENT_REGISTERS:
        usable, selector, rights, base, limit = value
        rights = rights & 0xF0FF | (0 if usable else 0x1_0000)
        setattr(cpu.regs, name, Segment(selector, base, limit, rights))
    elif name in GENERAL_REGISTERS or name in ("rip", "rflags", "cr0", "cr2", "cr3", "cr4"):
        setattr(cpu.regs, name, value)
    elif name == "efer":
        cpu.regs.efer = value
    else:
        raise InputError(f"unknown register {name!r}")


def _set_up(cpu: Cpu, step: str) -> None:
    """Do one step of the set-up: a name, or lines of assembly."""
    if step in ("feature", "vmxon"):
        _wrmsr(cpu, Msr.IA32_FEATURE_CONTROL, _LOCK_AND_ENABLE)
    if step == "vmxon":
        cpu.vmxon(VMXON_REGION)
    elif step == "vmclear":
        cpu.vmclear(VMCS_REGION)
    elif step == "vmptrld":
        cpu.vmptrld(VMCS_REGION)
    elif step != "feature":
        for line in step.split("\n"):
            _assemble(cpu, line)


def _wrmsr(cpu: Cpu, address: int, value: int) -> None:
    regs = cpu.regs
    regs.rcx, regs.rax, regs.rdx = address, value & MASK32, value >> 32
    execute(cpu, Instruction("wrmsr"))


def _assemble(cpu: Cpu, line: str) -> None:
    """Execute one line of assembly."""
    mnemonic, _, operands = line.strip().partition(" ")
    parts = [part.strip() for part in operands.split(",")]
    narrow = {f"e{name[1:]}": name for name in GENERAL_REGISTERS[:8]}
    registers = {**narrow, **{name: name for name in GENERAL_REGISTERS}}
    if mnemonic == "mov" and parts[0] in registers and parts[1] not in registers:
        setattr(cpu.regs, registers[parts[0]], int(parts[1], 0) & MASK64)
    elif mnemonic == "xor" and parts[0] == parts[1] and parts[0] in registers:
        setattr(cpu.regs, registers[parts[0]], 0)
    else:
        execute(cpu, parse_instruction(line.replace("abs ", "")))


def execute(cpu: Cpu, instruction: Instruction) -> None:
    """Execute one instruction in VMX root operation or outside VMX operation.

    Raises
    ------
    GuestFault, VMfailInvalid, VMfailValid
    Skip
        It is none that a case is about.
    """
    name = instruction.name
    if name in _ORDINARY:
        DATA_EFFECTS[name](cpu, instruction)
        return
    action = _ACTIONS.get(name)
    if action is None:
        raise Skip(f"{name} is not executed outside the guest")
    action(cpu, instruction)


def _memory(cpu: Cpu, instruction: Instruction) -> MemoryOperand:
    offset = operand_offset(cpu.regs, instruction.operands)
    return MemoryOperand(offset, SEGMENT_REGISTERS[instruction.operands.get("segment", 3)])


def _register(cpu: Cpu, number: int) -> int:
    value: int = getattr(cpu.regs, GENERAL_REGISTERS[number])
    return value if cpu.regs.in_64bit_mode else value & MASK32


def _pointer(cpu: Cpu, instruction: Instruction) -> None:
    """VMXON, VMCLEAR, VMPTRLD, VMPTRST."""
    getattr(cpu, instruction.name)(_memory(cpu, instruction))


def _vmread(cpu: Cpu, instruction: Instruction) -> None:
    operands = instruction.operands
    memory = "displacement" in operands
    place = _memory(cpu, instruction) if memory else RegisterOperand(operands["destination"])
    cpu.vmread(_register(cpu, operands["encoding"]), place)


def _vmwrite(cpu: Cpu, instruction: Instruction) -> None:
    operands = instruction.operands
    memory = "displacement" in operands
    place = _memory(cpu, instruction) if memory else RegisterOperand(operands["source"])
    cpu.vmwrite(_register(cpu, operands["encoding"]), place)


def _invalidate(cpu: Cpu, instruction: Instruction) -> None:
    kind = _register(cpu, instruction.operands["register"])
    getattr(cpu, instruction.name)(kind, _memory(cpu, instruction))


def _plain(cpu: Cpu, instruction: Instruction) -> None:
    """VMXOFF, VMCALL, VMLAUNCH, VMRESUME, VMFUNC."""
    getattr(cpu, instruction.name)()


def _write_msr(cpu: Cpu, instruction: Instruction) -> None:
    """WRMSR of IA32_FEATURE_CONTROL, the only MSR that cases write."""
    regs = cpu.regs
    if regs.cpl:
        raise GuestFault(_GP, 0, "WRMSR at CPL > 0")
    if regs.rcx & MASK32 != Msr.IA32_FEATURE_CONTROL:
        raise Skip("WRMSR of another MSR than IA32_FEATURE_CONTROL")
    if regs.msrs.get(Msr.IA32_FEATURE_CONTROL, 0) & 1:
        raise GuestFault(_GP, 0, "IA32_FEATURE_CONTROL is locked")
    regs.msrs[Msr.IA32_FEATURE_CONTROL] = (regs.rdx & MASK32) << 32 | regs.rax & MASK32


def _read_cr(cpu: Cpu, instruction: Instruction) -> None:
    name = instruction.name.removeprefix("mov_from_")
    if cpu.regs.cpl:
        raise GuestFault(_GP, 0, f"MOV from {name} at CPL > 0")
    number = instruction.operands["destination"]
    setattr(cpu.regs, GENERAL_REGISTERS[number], getattr(cpu.regs, name))


def _write_cr(cpu: Cpu, instruction: Instruction) -> None:
    """MOV to CR0 or CR4."""
    regs, shape = cpu.regs, cpu.shape
    name = instruction.name.removeprefix("mov_to_")
    value = _register(cpu, instruction.operands["source"])
    state = ControlState(
        regs.cr0, regs.cr3, regs.cr4, regs.efer, bool(regs.cs.access_rights >> 13 & 1)
    )
    if name == "cr0":
        why = cr0_fault(value, state)
        fixed0, fixed1 = Msr.IA32_VMX_CR0_FIXED0, Msr.IA32_VMX_CR0_FIXED1
    else:
        why = cr4_fault(value, state)
        fixed0, fixed1 = Msr.IA32_VMX_CR4_FIXED0, Msr.IA32_VMX_CR4_FIXED1
        if why is None and value & ~shape.msr(fixed1):
            why = "a reserved bit of CR4"
    in_place = shape.msr(fixed0) & ~value or value & ~shape.msr(fixed1)
    if why is None and cpu.in_vmx and in_place:
        why = "a bit that VMX operation fixes"
    if regs.cpl:
        why = "CPL > 0"
    if why is not None:
        raise GuestFault(_GP, 0, f"MOV to {name}: {why}")
    setattr(regs, name, value)


def _undefined(cpu: Cpu, instruction: Instruction) -> None:
    raise GuestFault(_UD, None, instruction.name)


_ACTIONS: dict[str, Callable[[Cpu, Instruction], None]] = {
    **dict.fromkeys(("vmxon", "vmclear", "vmptrld", "vmptrst"), _pointer),
    **dict.fromkeys(("vmxoff", "vmcall", "vmlaunch", "vmresume", "vmfunc"), _plain),
    **dict.fromkeys(("invept", "invvpid"), _invalidate),
    **dict.fromkeys(("mov_from_cr0", "mov_from_cr3", "mov_from_cr4"), _read_cr),
    **dict.fromkeys(("mov_to_cr0", "mov_to_cr4"), _write_cr),
    **dict.fromkeys(("ud0", "ud1", "ud2"), _undefined),
    "vmread": _vmread,
    "vmwrite": _vmwrite,
    "wrmsr": _write_msr,
    "nop": lambda cpu, instruction: None,
}
