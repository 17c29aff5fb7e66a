"""Does this instruction cause a VM exit? One function over three tables.

The tables are the manual's lists: instructions that exit unconditionally, those that exit when a
control says so, and those whose values decide (SDM, "Instructions That Cause VM Exits"). A row
names the faults that come before the exit, what decides, and what the exit reports.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3
from vtx.facts.exits import ExitReason as Why
from vtx.machine.exit_information import ExitInformation
from vtx.machine.registers import Cr4
from vtx.rules import exiting_faults as first
from vtx.rules import exiting_information as say
from vtx.rules import exiting_ports as ports
from vtx.rules import exiting_rules as rule
from vtx.rules.execution_memory import ExitTaken
from vtx.rules.exiting_faults import ENABLED_BY, UD, Fault

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["BY_CONTROL", "BY_RULE", "OUT_OF_REACH", "UNCONDITIONAL", "decide", "report"]

#: Bits of IA32_VMX_EPT_VPID_CAP that report the instructions.
_INVEPT, _INVVPID = 20, 32

#: Part of what an exit reports: a number made from the processor and the instruction.
Report = Callable[["Processor", "Instruction"], int]
#: A rule's answer: no exit (False, None), an exit as the row reports it (True), or the exit.
Answer = bool | ExitInformation | None


class Unconditional(NamedTuple):
    """The instruction exits, unless one of the faults comes first."""

    reason: Why
    faults: tuple[Fault, ...] = ()
    qualification: Report | None = None
    information: Report | None = None


class ByControl(NamedTuple):
    """The instruction exits if this control is 1."""

    reason: Why
    group: str
    control: IntEnum
    faults: tuple[Fault, ...] = ()
    qualification: Report | None = None
    information: Report | None = None


class ByRule(NamedTuple):
    """The instruction exits if this rule says so."""

    reason: Why
    rule: Callable[[Processor, Instruction], Answer]
    faults: tuple[Fault, ...] = ()
    qualification: Report | None = None
    information: Report | None = None


#: SDM, "Instructions That Cause VM Exits Unconditionally". CPL is not tested before the exits of
#: the VMX instructions: they follow their own pseudo-code. XSETBV is left to the VMM as well, as
#: the manual lists no privilege fault before its exit and hypervisors test CPL themselves.
UNCONDITIONAL: dict[str, Unconditional] = {
    "cpuid": Unconditional(Why.CPUID),
    "getsec": Unconditional(Why.GETSEC, (first.cr4(Cr4.SMXE),)),
    "invd": Unconditional(Why.INVD, (first.cpl,)),
    "xsetbv": Unconditional(Why.XSETBV, (first.cr4(Cr4.OSXSAVE),)),
    "invept": Unconditional(
        Why.INVEPT,
        (first.has_invalidation(Proc2.ENABLE_EPT, _INVEPT), first.vmx_mode),
        say.displacement,
        say.inv_descriptor,
    ),
    "invvpid": Unconditional(
        Why.INVVPID,
        (first.has_invalidation(Proc2.ENABLE_VPID, _INVVPID), first.vmx_mode),
        say.displacement,
        say.inv_descriptor,
    ),
    "vmclear": Unconditional(Why.VMCLEAR, (first.vmx_mode,), say.displacement, say.memory_operand),
    "vmlaunch": Unconditional(Why.VMLAUNCH, (first.vmx_mode,)),
    "vmptrld": Unconditional(Why.VMPTRLD, (first.vmx_mode,), say.displacement, say.memory_operand),
    "vmptrst": Unconditional(Why.VMPTRST, (first.vmx_mode,), say.displacement, say.memory_operand),
    "vmresume": Unconditional(Why.VMRESUME, (first.vmx_mode,)),
    "vmxoff": Unconditional(Why.VMXOFF, (first.vmx_mode,)),
    "vmxon": Unconditional(
        Why.VMXON,
        (first.vmx_mode, first.cr4(Cr4.VMXE)),
        say.displacement,
        say.memory_operand,
    ),
    "vmcall": Unconditional(Why.VMCALL),
    "seamcall": Unconditional(Why.SEAMCALL, (first.feature("tdx"), first.vmx_mode)),
    "tdcall": Unconditional(Why.TDCALL, (first.feature("tdx"), first.vmx_mode, first.cpl)),
}

#: SDM, "Instructions That Cause VM Exits Conditionally": those for which one control decides.
BY_CONTROL: dict[str, ByControl] = {
    "mov_to_cr8": ByControl(
        Why.CONTROL_REGISTER_ACCESS,
        "proc1",
        Proc1.CR8_LOAD_EXITING,
        (first.cpl,),
        say.mov_to_cr,
    ),
    "mov_from_cr3": ByControl(
        Why.CONTROL_REGISTER_ACCESS,
        "proc1",
        Proc1.CR3_STORE_EXITING,
        (first.cpl,),
        say.mov_from_cr,
    ),
    "mov_from_cr8": ByControl(
        Why.CONTROL_REGISTER_ACCESS,
        "proc1",
        Proc1.CR8_STORE_EXITING,
        (first.cpl,),
        say.mov_from_cr,
    ),
    # The exit comes even before the privilege test.
    "mov_to_dr": ByControl(Why.MOV_DR, "proc1", Proc1.MOV_DR_EXITING, (), say.mov_dr),
    "mov_from_dr": ByControl(Why.MOV_DR, "proc1", Proc1.MOV_DR_EXITING, (), say.mov_dr),
    "hlt": ByControl(Why.HLT, "proc1", Proc1.HLT_EXITING, (first.cpl,)),
    "invlpg": ByControl(
        Why.INVLPG, "proc1", Proc1.INVLPG_EXITING, (first.cpl,), say.linear_address
    ),
    "invpcid": ByControl(
        Why.INVPCID,
        "proc1",
        Proc1.INVLPG_EXITING,
        (first.has_instruction(Proc2.ENABLE_INVPCID), ENABLED_BY["invpcid"], first.cpl),
        say.displacement,
        say.inv_descriptor,
    ),
    **{
        name: ByControl(
            Why.GDTR_IDTR_ACCESS,
            "proc2",
            Proc2.DESCRIPTOR_TABLE_EXITING,
            (first.cpl if name[0] == "l" else first.cpl_with(Cr4.UMIP),),
            say.displacement,
            say.descriptor_table,
        )
        for name in ("lgdt", "lidt", "sgdt", "sidt")
    },
    **{
        name: ByControl(
            Why.LDTR_TR_ACCESS,
            "proc2",
            Proc2.DESCRIPTOR_TABLE_EXITING,
            (
                first.protected_mode,
                first.cpl if name[0] == "l" else first.cpl_with(Cr4.UMIP),
            ),
            say.displacement,
            say.selector,
        )
        for name in ("lldt", "ltr", "sldt", "str")
    },
    "loadiwkey": ByControl(
        Why.LOADIWKEY,
        "proc3",
        Proc3.LOADIWKEY_EXITING,
        (first.has_instruction(Proc3.LOADIWKEY_EXITING), first.key_locker, first.cpl),
        information=say.wrapping_key,
    ),
    "monitor": ByControl(
        Why.MONITOR, "proc1", Proc1.MONITOR_EXITING, (first.monitor_enabled, first.cpl_ud)
    ),
    "mwait": ByControl(
        Why.MWAIT,
        "proc1",
        Proc1.MWAIT_EXITING,
        (first.monitor_enabled, first.cpl_ud),
        say.mwait,
    ),
    "rdpmc": ByControl(Why.RDPMC, "proc1", Proc1.RDPMC_EXITING, (first.cpl_without_pce,)),
    "rdrand": ByControl(
        Why.RDRAND,
        "proc2",
        Proc2.RDRAND_EXITING,
        (first.has_instruction(Proc2.RDRAND_EXITING),),
        information=say.random_number,
    ),
    "rdseed": ByControl(
        Why.RDSEED,
        "proc2",
        Proc2.RDSEED_EXITING,
        (first.has_instruction(Proc2.RDSEED_EXITING),),
        information=say.random_number,
    ),
    "rdtsc": ByControl(Why.RDTSC, "proc1", Proc1.RDTSC_EXITING, (first.cpl_with(Cr4.TSD),)),
    "rdtscp": ByControl(
        Why.RDTSCP,
        "proc1",
        Proc1.RDTSC_EXITING,
        (
            first.has_instruction(Proc2.ENABLE_RDTSCP),
            ENABLED_BY["rdtscp"],
            first.cpl_with(Cr4.TSD),
        ),
    ),
    "tpause": ByControl(
        Why.TPAUSE,
        "proc1",
        Proc1.RDTSC_EXITING,
        (
            first.has_instruction(Proc2.ENABLE_USER_WAIT_AND_PAUSE),
            ENABLED_BY["wait"],
            first.cpl_with(Cr4.TSD),
        ),
        information=say.wait,
    ),
    "umwait": ByControl(
        Why.UMWAIT,
        "proc1",
        Proc1.RDTSC_EXITING,
        (
            first.has_instruction(Proc2.ENABLE_USER_WAIT_AND_PAUSE),
            ENABLED_BY["wait"],
            first.cpl_with(Cr4.TSD),
        ),
        information=say.wait,
    ),
    "wbinvd": ByControl(
        Why.WBINVD_OR_WBNOINVD, "proc2", Proc2.WBINVD_EXITING, (first.cpl,), say.wbinvd_kind
    ),
    "wbnoinvd": ByControl(
        Why.WBINVD_OR_WBNOINVD, "proc2", Proc2.WBINVD_EXITING, (first.cpl,), say.wbinvd_kind
    ),
}

#: SDM, "Instructions That Cause VM Exits Conditionally": those for which values decide.
BY_RULE: dict[str, ByRule] = {
    "clts": ByRule(Why.CONTROL_REGISTER_ACCESS, rule.clts, (first.cpl,), say.clts),
    "lmsw": ByRule(Why.CONTROL_REGISTER_ACCESS, rule.lmsw, (first.cpl,)),
    "mov_to_cr0": ByRule(Why.CONTROL_REGISTER_ACCESS, rule.mov_to_cr0, (first.cpl,), say.mov_to_cr),
    "mov_to_cr3": ByRule(Why.CONTROL_REGISTER_ACCESS, rule.mov_to_cr3, (first.cpl,), say.mov_to_cr),
    "mov_to_cr4": ByRule(Why.CONTROL_REGISTER_ACCESS, rule.mov_to_cr4, (first.cpl,), say.mov_to_cr),
    "encls": ByRule(Why.ENCLS, rule.encls, (first.sgx, first.protected_mode, first.cpl_ud)),
    "enclv": ByRule(
        Why.ENCLV, rule.enclv, (first.has_instruction(Proc2.ENABLE_ENCLV_EXITING), first.cpl_ud)
    ),
    "enqcmd": ByRule(
        Why.ENQCMD_PASID_TRANSLATION_FAILURE,
        rule.enqcmd,
        (first.has_instruction(Proc2.PASID_TRANSLATION),),
    ),
    "enqcmds": ByRule(
        Why.ENQCMDS_PASID_TRANSLATION_FAILURE,
        rule.enqcmd,
        (first.has_instruction(Proc2.PASID_TRANSLATION), first.cpl),
    ),
    "in": ByRule(Why.IO_INSTRUCTION, ports.io, (ports.io_permission,), say.io),
    "out": ByRule(Why.IO_INSTRUCTION, ports.io, (ports.io_permission,), say.io),
    "ins": ByRule(Why.IO_INSTRUCTION, ports.string_io, (ports.io_permission,)),
    "outs": ByRule(Why.IO_INSTRUCTION, ports.string_io, (ports.io_permission,)),
    "pause": ByRule(Why.PAUSE, rule.pause),
    "pconfig": ByRule(
        Why.PCONFIG,
        rule.pconfig,
        (first.has_instruction(Proc2.ENABLE_PCONFIG), ENABLED_BY["pconfig"], first.cpl),
    ),
    "rdmsr": ByRule(Why.RDMSR, rule.rdmsr, (first.cpl,)),
    "wrmsr": ByRule(Why.WRMSR, rule.wrmsr, (first.cpl,), say.wrmsr_kind),
    "wrmsrns": ByRule(Why.WRMSR, rule.wrmsr, (first.feature("wrmsrns"), first.cpl), say.wrmsr_kind),
    "rdmsr_imm": ByRule(
        Why.RDMSR_IMMEDIATE,
        rule.rdmsr_imm,
        (first.feature("msr_imm"), first.cpl),
        say.msr_operand,
        say.msr_register,
    ),
    "wrmsrns_imm": ByRule(
        Why.WRMSRNS_IMMEDIATE,
        rule.wrmsr_imm,
        (first.feature("msr_imm"), first.cpl),
        say.msr_operand,
        say.msr_register,
    ),
    "rdmsrlist": ByRule(
        Why.RDMSRLIST,
        rule.msr_list,
        (
            first.has_instruction(Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
            ENABLED_BY["msr_list"],
            first.msr_list,
        ),
    ),
    "wrmsrlist": ByRule(
        Why.WRMSRLIST,
        rule.msr_list,
        (
            first.has_instruction(Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
            ENABLED_BY["msr_list"],
            first.msr_list,
        ),
    ),
    **{
        name: ByRule(
            Why.URDMSR if name.startswith("urdmsr") else Why.UWRMSR,
            rule.user_msr,
            (rule.user_msr_faults,),
            say.msr_operand,
            say.msr_register,
        )
        for name in ("urdmsr", "urdmsr_imm", "uwrmsr", "uwrmsr_imm")
    },
    "rsm": ByRule(Why.RSM, lambda processor, instruction: True, (first.outside_smm,)),
    "task_switch": ByRule(Why.TASK_SWITCH, rule.task_switch),
    "vmread": ByRule(Why.VMREAD, rule.vmread, (first.vmx_mode,), say.displacement, say.vmcs_field),
    "vmwrite": ByRule(
        Why.VMWRITE, rule.vmwrite, (first.vmx_mode,), say.displacement, say.vmcs_field
    ),
    "vmfunc": ByRule(
        Why.VMFUNC, rule.vmfunc, (ENABLED_BY["vm_functions"], rule.vm_function_number)
    ),
    "xsaves": ByRule(
        Why.XSAVES,
        rule.xss,
        (first.cr4(Cr4.OSXSAVE), ENABLED_BY["xsaves"], first.cpl),
        say.displacement,
        say.memory_operand,
    ),
    "xrstors": ByRule(
        Why.XRSTORS,
        rule.xss,
        (first.cr4(Cr4.OSXSAVE), ENABLED_BY["xsaves"], first.cpl),
        say.displacement,
        say.memory_operand,
    ),
}

#: Rows of the manual's lists that a guest program here cannot reach, or not in full, and why.
OUT_OF_REACH = {
    "smi": "under the default treatment an SMI is taken without an exit, as here; under the "
    "dual-monitor treatment it would exit to an SMM-transfer monitor, whose VMCS comes from memory "
    "that only firmware sets up (MSEG): the machine has none, and says so if one is needed",
    "rsm": "only SMM can execute RSM; a guest's RSM raises #UD, which is what the model does",
    "spp_related": "needs sub-page write permissions, which the page walker does not know",
    "erets_eretu": "needs FRED event delivery; without CR4.FRED both raise #UD, as here",
    "user_interrupt": "user interrupts are sent (SENDUIPI) and notified, but not delivered to "
    "their receiver: the guest's user code has no handler for them in a program",
    "apic_access": "of guest-physical accesses, those that load PDPTEs are looked at, and not "
    "those of a walk through guest paging structures that lie in the APIC-access page themselves",
}


def decide(processor: Processor, instruction: Instruction) -> ExitInformation | None:
    """Tell whether `instruction` exits now, and with what information.

    Parameters
    ----------
    processor : Processor
        In VMX non-root operation, with the registers as the instruction finds them.
    instruction : Instruction
        What it would execute.

    Returns
    -------
    ExitInformation or None
        None: the instruction executes.

    Raises
    ------
    GuestFault
        A fault comes before the exit (SDM, "Relative Priority of Faults and VM Exits").
    """
    name = instruction.name
    row = _ROWS.get(name)
    if instruction.operands.get("lock") and name != "modify":
        raise GuestFault(UD, None, f"{name} with a LOCK prefix")
    if row is None:
        return None
    try:
        for fault in row.faults:
            fault(processor, instruction)
        answer = isinstance(row, Unconditional) or _exits(processor, instruction, row)
    except ExitTaken as taken:
        return taken.information
    if not answer:
        return None
    if answer is True:
        return report(processor, instruction)
    # RFLAGS.RF is saved as 0 (SDM, "Saving RIP, RSP, RFLAGS, and SSP").
    answer.resume_flag = 0
    return answer


def report(processor: Processor, instruction: Instruction) -> ExitInformation:
    """Return the exit of an instruction that does exit, as its row says."""
    row = _ROWS[instruction.name]
    qualification, information = row.qualification, row.information
    return ExitInformation(
        row.reason,
        qualification(processor, instruction) if qualification is not None else 0,
        instruction.length,
        information(processor, instruction) if information is not None else 0,
        resume_flag=0,
    )


_Row = Unconditional | ByControl | ByRule
_ROWS: dict[str, _Row] = {**UNCONDITIONAL, **BY_CONTROL, **BY_RULE}


def _exits(processor: Processor, instruction: Instruction, row: ByControl | ByRule) -> Answer:
    if isinstance(row, ByControl):
        return bool(getattr(processor.vmcs, row.group) & row.control)
    return row.rule(processor, instruction)
