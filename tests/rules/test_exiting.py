"""What exits: each row of the three tables, the faults that come first, and their order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nonroot.guests import GuestCpu, capable_shape, inside
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.exits import EXITS, ExitKind
from vtx.facts.exits import ExitReason as Why
from vtx.facts.fields import Field
from vtx.facts.instructions import INSTRUCTIONS
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4, Segment
from vtx.rules.exiting import BY_CONTROL, BY_RULE, OUT_OF_REACH, UNCONDITIONAL, decide

GROUP_FIELDS = {
    "proc1": Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
    "proc2": Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
    "proc3": Field.TERTIARY_PROCESSOR_BASED_CONTROLS,
}
#: Controls that enable an instruction at all.
ENABLING = {
    "proc2": Proc2.ENABLE_RDTSCP
    | Proc2.ENABLE_INVPCID
    | Proc2.ENABLE_VM_FUNCTIONS
    | Proc2.ENABLE_XSAVES_XRSTORS
    | Proc2.ENABLE_USER_WAIT_AND_PAUSE
    | Proc2.ENABLE_PCONFIG,
    "proc3": Proc3.ENABLE_MSR_LIST_INSTRUCTIONS | Proc3.ENABLE_PBNDKB,
}
UD, GP = 6, 13


@pytest.fixture(scope="module")
def module_cpu() -> Iterator[GuestCpu]:
    with inside(capable_shape()) as cpu:
        yield cpu


@pytest.fixture
def cpu(module_cpu: GuestCpu) -> Iterator[GuestCpu]:
    """A guest at CPL 0 with every instruction enabled, and nothing that makes them exit."""
    assert module_cpu.vmcs is not None
    registers, values = module_cpu.regs.copy(), dict(module_cpu.vmcs.values)
    activate = Proc1.ACTIVATE_SECONDARY_CONTROLS | Proc1.ACTIVATE_TERTIARY_CONTROLS
    put(module_cpu, "proc1", activate | Proc1.USE_MSR_BITMAPS)
    put(module_cpu, "proc2", ENABLING["proc2"])
    put(module_cpu, "proc3", ENABLING["proc3"])
    module_cpu.regs.cr4 |= Cr4.SMXE | Cr4.OSXSAVE | Cr4.KL | Cr4.OSFXSR | Cr4.VMXE
    yield module_cpu
    module_cpu.vmcs.values.update(values)
    module_cpu.regs = registers
    module_cpu.smm = False


def put(cpu: GuestCpu, group: str, value: int) -> None:
    assert cpu.vmcs is not None
    cpu.vmcs[GROUP_FIELDS[group]] = value


def to_cpl(cpu: GuestCpu, cpl: int) -> None:
    cpu.regs.ss = Segment(cpu.regs.ss.selector | cpl, 0, 0xFFFF_FFFF, 0xC093 | cpl << 5)


def answer(cpu: GuestCpu, text: str) -> ExitInformation | None:
    step = parse_instruction(text)
    for name, value in step.sets:
        setattr(cpu.regs, name, value)
    return decide(cpu, step)


def fault(cpu: GuestCpu, text: str) -> int:
    with pytest.raises(GuestFault) as caught:
        answer(cpu, text)
    return caught.value.vector


#: Instructions that always exit, and their reason.
ALWAYS = {
    "cpuid": 10,
    "getsec": 11,
    "invd": 13,
    "xsetbv": 55,
    "invept rax, [0x7000]": 50,
    "invvpid rax, [0x7000]": 53,
    "vmclear [0x7000]": 19,
    "vmlaunch": 20,
    "vmptrld [0x7000]": 21,
    "vmptrst [0x7000]": 22,
    "vmresume": 24,
    "vmxoff": 26,
    "vmxon [0x7000]": 27,
    "vmcall": 18,
    "seamcall": 76,
    "tdcall": 77,
}


@pytest.mark.parametrize(("text", "reason"), ALWAYS.items())
def test_unconditional_exits(cpu: GuestCpu, text: str, reason: int) -> None:
    exit = answer(cpu, text)
    assert exit is not None
    assert exit.reason == reason
    assert exit.instruction_length == parse_instruction(text).length
    assert exit.resume_flag == 0


#: Instruction, reason, group and control that makes it exit.
CONTROLLED = [
    ("mov cr8, rax value=0", 28, "proc1", Proc1.CR8_LOAD_EXITING),
    ("mov rax, cr8", 28, "proc1", Proc1.CR8_STORE_EXITING),
    ("mov rax, cr3", 28, "proc1", Proc1.CR3_STORE_EXITING),
    ("mov cr3, rax", 28, "proc1", Proc1.CR3_LOAD_EXITING),
    ("mov dr7, rax", 29, "proc1", Proc1.MOV_DR_EXITING),
    ("mov rax, dr7", 29, "proc1", Proc1.MOV_DR_EXITING),
    ("hlt", 12, "proc1", Proc1.HLT_EXITING),
    ("invlpg [0x7000]", 14, "proc1", Proc1.INVLPG_EXITING),
    ("invpcid rax, [0x7000]", 58, "proc1", Proc1.INVLPG_EXITING),
    ("lgdt [0x7000]", 46, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("lidt [0x7000]", 46, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("sgdt [0x7000]", 46, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("sidt [0x7000]", 46, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("lldt ax", 47, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("ltr ax", 47, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("sldt rax", 47, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("str rax", 47, "proc2", Proc2.DESCRIPTOR_TABLE_EXITING),
    ("loadiwkey xmm1, xmm2", 69, "proc3", Proc3.LOADIWKEY_EXITING),
    ("monitor", 39, "proc1", Proc1.MONITOR_EXITING),
    ("mwait", 36, "proc1", Proc1.MWAIT_EXITING),
    ("pause", 40, "proc1", Proc1.PAUSE_EXITING),
    ("rdpmc", 15, "proc1", Proc1.RDPMC_EXITING),
    ("rdrand rax", 57, "proc2", Proc2.RDRAND_EXITING),
    ("rdseed rax", 61, "proc2", Proc2.RDSEED_EXITING),
    ("rdtsc", 16, "proc1", Proc1.RDTSC_EXITING),
    ("rdtscp", 51, "proc1", Proc1.RDTSC_EXITING),
    ("tpause eax", 68, "proc1", Proc1.RDTSC_EXITING),
    ("umwait eax", 67, "proc1", Proc1.RDTSC_EXITING),
    ("wbinvd", 54, "proc2", Proc2.WBINVD_EXITING),
    ("wbnoinvd", 54, "proc2", Proc2.WBINVD_EXITING),
    ("in al, dx", 30, "proc1", Proc1.UNCONDITIONAL_IO_EXITING),
    ("out 0x60, al", 30, "proc1", Proc1.UNCONDITIONAL_IO_EXITING),
    ("insb", 30, "proc1", Proc1.UNCONDITIONAL_IO_EXITING),
    ("outsd", 30, "proc1", Proc1.UNCONDITIONAL_IO_EXITING),
]


@pytest.mark.parametrize(("text", "reason", "group", "control"), CONTROLLED)
def test_exits_by_control(cpu: GuestCpu, text: str, reason: int, group: str, control: int) -> None:
    assert answer(cpu, text) is None
    assert cpu.vmcs is not None
    put(cpu, group, cpu.vmcs[GROUP_FIELDS[group]] | control)
    exit = answer(cpu, text)
    assert exit is not None
    assert exit.reason == reason


#: #GP(0) at CPL 3 although the instruction would exit at CPL 0.
PRIVILEGED = [
    "invd", "mov cr0, rax", "mov cr3, rax", "mov cr4, rax", "mov cr8, rax", "mov rax, cr3",
    "mov rax, cr8", "clts", "lmsw ax", "hlt", "invlpg [0x7000]", "invpcid rax, [0x7000]",
    "lgdt [0x7000]", "lidt [0x7000]", "lldt ax", "ltr ax", "loadiwkey xmm1, xmm2", "rdmsr",
    "wrmsr", "wrmsrns", "rdmsr rax, 0x10", "wrmsrns 0x10, rax", "rdmsrlist", "wrmsrlist",
    "rdpmc", "wbinvd", "pconfig", "xsaves [0x7000]", "xrstors [0x7000]", "tdcall",
    "in al, dx", "out dx, al", "insb", "outsb", "enqcmds rax, [0x7000]",
]  # fmt: skip
#: #UD at CPL 3.
UNDEFINED_FOR_USERS = ["encls", "monitor", "mwait", "enclv"]
#: Exits at CPL 3 all the same.
FOR_EVERYONE = [*sorted(set(ALWAYS) - {"invd", "tdcall"}), "mov dr7, rax", "mov rax, dr7",
                "vmread rax, rbx", "vmwrite rax, rbx", "rdrand rax", "rdseed rax", "rdtsc",
                "rdtscp", "tpause eax", "pause", "sgdt [0x7000]", "str rax"]  # fmt: skip


def everything_exits(cpu: GuestCpu) -> None:
    put(cpu, "proc1", 0xFFFF_FFFF & ~Proc1.USE_IO_BITMAPS & ~Proc1.USE_MSR_BITMAPS)
    put(cpu, "proc2", 0xFFFF_FFFF & ~Proc2.VMCS_SHADOWING)
    put(cpu, "proc3", (1 << 64) - 1)


@pytest.mark.parametrize("text", PRIVILEGED)
def test_privilege_comes_before_the_exit(cpu: GuestCpu, text: str) -> None:
    everything_exits(cpu)
    to_cpl(cpu, 3)
    assert fault(cpu, text) == GP


@pytest.mark.parametrize("text", UNDEFINED_FOR_USERS)
def test_instructions_that_users_do_not_have(cpu: GuestCpu, text: str) -> None:
    everything_exits(cpu)
    to_cpl(cpu, 3)
    assert fault(cpu, text) == UD


@pytest.mark.parametrize("text", FOR_EVERYONE)
def test_exits_that_come_before_privilege(cpu: GuestCpu, text: str) -> None:
    everything_exits(cpu)
    to_cpl(cpu, 3)
    assert answer(cpu, text) is not None


#: Instruction and the control without which it raises #UD, whatever else is set.
ENABLED = [
    ("invpcid rax, [0x7000]", "proc2", Proc2.ENABLE_INVPCID),
    ("rdtscp", "proc2", Proc2.ENABLE_RDTSCP),
    ("tpause eax", "proc2", Proc2.ENABLE_USER_WAIT_AND_PAUSE),
    ("umwait eax", "proc2", Proc2.ENABLE_USER_WAIT_AND_PAUSE),
    ("pconfig", "proc2", Proc2.ENABLE_PCONFIG),
    ("xsaves [0x7000]", "proc2", Proc2.ENABLE_XSAVES_XRSTORS),
    ("xrstors [0x7000]", "proc2", Proc2.ENABLE_XSAVES_XRSTORS),
    ("rdmsrlist", "proc3", Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
    ("wrmsrlist", "proc3", Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
    ("vmfunc", "proc2", Proc2.ENABLE_VM_FUNCTIONS),
]


@pytest.mark.parametrize(("text", "group", "control"), ENABLED)
def test_instructions_that_a_control_enables(
    cpu: GuestCpu, text: str, group: str, control: int
) -> None:
    everything_exits(cpu)
    to_cpl(cpu, 3)
    assert cpu.vmcs is not None
    put(cpu, group, cpu.vmcs[GROUP_FIELDS[group]] & ~control)
    assert fault(cpu, text) == UD


#: Instruction and the CR4 bit without which it raises #UD.
BY_CR4 = [
    ("getsec", Cr4.SMXE),
    ("xsetbv", Cr4.OSXSAVE),
    ("xsaves [0x7000]", Cr4.OSXSAVE),
    ("xrstors [0x7000]", Cr4.OSXSAVE),
    ("loadiwkey xmm1, xmm2", Cr4.KL),
    ("loadiwkey xmm1, xmm2", Cr4.OSFXSR),
    ("vmxon [0x7000]", Cr4.VMXE),
]


@pytest.mark.parametrize(("text", "flag"), BY_CR4)
def test_instructions_that_cr4_enables(cpu: GuestCpu, text: str, flag: Cr4) -> None:
    everything_exits(cpu)
    cpu.regs.cr4 &= ~flag
    assert fault(cpu, text) == UD


#: Instruction, CR4 bit (and its value) under which CPL 3 gets #GP(0).
BY_CR4_FOR_USERS = [
    ("rdtsc", Cr4.TSD, True),
    ("rdtscp", Cr4.TSD, True),
    ("tpause eax", Cr4.TSD, True),
    ("umwait eax", Cr4.TSD, True),
    ("sgdt [0x7000]", Cr4.UMIP, True),
    ("sidt [0x7000]", Cr4.UMIP, True),
    ("sldt rax", Cr4.UMIP, True),
    ("str rax", Cr4.UMIP, True),
    ("rdpmc", Cr4.PCE, False),
]


@pytest.mark.parametrize(("text", "flag", "faults_if"), BY_CR4_FOR_USERS)
def test_cr4_decides_for_users(cpu: GuestCpu, text: str, flag: Cr4, faults_if: bool) -> None:
    everything_exits(cpu)
    to_cpl(cpu, 3)
    cpu.regs.cr4 = cpu.regs.cr4 | flag if faults_if else cpu.regs.cr4 & ~flag
    assert fault(cpu, text) == GP
    cpu.regs.cr4 ^= flag
    assert answer(cpu, text) is not None
    to_cpl(cpu, 0)
    cpu.regs.cr4 ^= flag
    assert answer(cpu, text) is not None


#: Instructions that compatibility mode does not have.
NOT_IN_COMPATIBILITY_MODE = [
    "invept rax, [0x7000]", "invvpid rax, [0x7000]", "vmclear [0x7000]", "vmlaunch",
    "vmptrld [0x7000]", "vmptrst [0x7000]", "vmresume", "vmxoff", "vmxon [0x7000]",
    "vmread rax, rbx", "vmwrite rax, rbx", "seamcall", "tdcall", "rdmsrlist",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_IN_COMPATIBILITY_MODE)
def test_modes_without_an_instruction(cpu: GuestCpu, text: str) -> None:
    everything_exits(cpu)
    cpu.regs.cs = cpu.regs.cs._replace(access_rights=0xC09B)
    assert fault(cpu, text) in (UD, GP)
    assert answer(cpu, "vmcall") is not None


def test_features_that_the_cpu_lacks() -> None:
    with inside("haswell") as cpu:
        for text in ("rdseed rax", "xsaves [0x7000]", "encls", "pconfig", "loadiwkey xmm1, xmm2",
                     "tpause eax", "rdmsrlist", "wrmsrns", "rdmsr rax, 0x10", "seamcall", "tdcall",
                     "enqcmd rax, [0x7000]", "urdmsr rax, rbx", "enclv"):  # fmt: skip
            assert fault(cpu, text) == UD, text


@pytest.mark.parametrize("text", ["cpuid", "vmcall", "hlt", "rdmsr", "mov dr7, rax", "out dx, al"])
def test_a_lock_prefix_is_an_invalid_opcode(cpu: GuestCpu, text: str) -> None:
    everything_exits(cpu)
    assert fault(cpu, f"lock {text}") == UD


def test_rsm_belongs_to_system_management_mode(cpu: GuestCpu) -> None:
    assert fault(cpu, "rsm") == UD
    cpu.smm = True
    exit = answer(cpu, "rsm")
    assert exit is not None
    assert exit.reason == Why.RSM


def test_the_tables_cover_the_catalogue() -> None:
    """Every instruction whose row names an exit reason is in exactly one table."""
    tables = [UNCONDITIONAL, BY_CONTROL, BY_RULE]
    deciding = [name for table in tables for name in table]
    assert len(deciding) == len(set(deciding))
    listed = {
        name
        for name, spec in INSTRUCTIONS.items()
        if spec.reason and not spec.is_event and spec.entry != "exception"
    }
    assert listed == set(deciding)
    for table in tables:
        for name, row in table.items():
            assert row.reason == INSTRUCTIONS[name].reason
            assert EXITS[row.reason].kind is ExitKind.FAULT
    assert all(len(why) > 20 for why in OUT_OF_REACH.values())


def test_other_instructions_never_exit_by_themselves(cpu: GuestCpu) -> None:
    everything_exits(cpu)
    for text in ("nop", "mov rax, cr0", "mov rax, cr4", "mov rax, cr2", "mov cr2, rax", "smsw eax",
                 "rdpid rax", "iret", "int 0x80", "sti", "cli", "load 0x7000"):  # fmt: skip
        assert answer(cpu, text) is None
