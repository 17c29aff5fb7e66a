"""The instructions and events that a guest program may name, and how each is written.

A row gives the forms an assembler would accept, the machine code (of which the model needs the
length), the values a step may put into registers first, and the row of the manual's "what
exits" lists that decides whether the instruction exits (SDM, "Changes to Instruction Behavior
in VMX Non-Root Operation" and "Instructions That Cause VM Exits").

Forms are written as a listing would show them: ``mov cr3, source:r64`` is the word ``cr3`` and a
64-bit register that the step calls *source*. Kinds of operand:

==============  =================================================================================
``r8 … r64``    general-purpose register of that width; ``r`` takes 16, 32 or 64 bits
``m``           memory operand ``[segment:base+index*scale+displacement]``
``rm``          either; ``rm16`` a 16-bit register or memory, ``rm64`` a 64-bit one or memory
``a``           memory operand, or just its linear address
``imm8 … 64``   number of that many bits
``dr xmm``      debug register, XMM register
==============  =================================================================================

Machine code is written as the manual's opcode tables do: ``/r`` and ``/digit`` are a ModR/M
byte, ``ib`` … an immediate operand, ``+r`` a register in the opcode, ``W`` a REX prefix with W=1,
``osz`` whatever prefix the width of the ``r`` operand needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "ENCODINGS",
    "EVENTS",
    "FORMS",
    "GENERAL_REGISTERS",
    "INSTRUCTIONS",
    "SEGMENT_REGISTERS",
    "Form",
    "InstructionSpec",
    "Parameter",
]

#: General-purpose registers by the number that ModR/M, exit qualifications and the instruction
#: information use.
GENERAL_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip

#: Segment registers by the number that the instruction information uses.
SEGMENT_REGISTERS = ("es", "cs", "ss", "ds", "fs", "gs")


class Form(NamedTuple):
    """One way to write an instruction.

    Attributes
    ----------
    mnemonic : str
        First word.
    operands : tuple of (str, str)
        Name and kind of each operand; the name is empty for a word that stands as it is.
    opcode : str
        Machine code; empty for events.
    fixed : mapping of str to int
        What this form alone says about the operands (``{"size": 1}``).
    syntax : str
        As written in the table, for messages.
    """

    mnemonic: str
    operands: tuple[tuple[str, str], ...]
    opcode: str
    fixed: Mapping[str, int]
    syntax: str


class Parameter(NamedTuple):
    """A ``name=value`` that a step of this instruction may carry.

    Attributes
    ----------
    name : str
        Its name.
    target : str
        The register that gets the value before the instruction executes: ``"rcx"``, ``"eax"``,
        ``"edx:eax"``, ``"dx"``, ``"@source"`` for the register written as operand *source*; or
        empty, if the step itself uses the value.
    kind : str
        ``"number"``, ``"msr"`` or ``"field"`` (names allowed).
    """

    name: str
    target: str
    kind: str = "number"


class InstructionSpec(NamedTuple):
    """One row of the table.

    Attributes
    ----------
    name : str
        What :attr:`vtx.machine.program.Instruction.name` holds.
    forms : tuple of Form
        How it is written.
    parameters : mapping of str to Parameter
        What may be given as ``name=value``.
    entry : str or None
        Row of the manual's lists of what exits; None: never the subject of an exit by itself.
    reason : int or None
        Basic exit reason if it exits as that row says.
    meaning : str
        One line.
    is_event : bool
        It is no instruction: it arrives before the next one.
    """

    name: str
    forms: tuple[Form, ...]
    parameters: Mapping[str, Parameter]
    entry: str | None
    reason: int | None
    meaning: str
    is_event: bool


#: What the rows below say, filled by `_row` and `_event`.
INSTRUCTIONS: dict[str, InstructionSpec] = {}
#: Every form by its mnemonic, with the name of its row.
FORMS: dict[str, list[tuple[str, Form]]] = {}

_Form = tuple[str, str] | tuple[str, str, Mapping[str, int]]


def _form(written: _Form) -> Form:
    syntax, opcode = written[0], written[1]
    fixed = written[2] if len(written) == 3 else {}
    mnemonic, _, rest = syntax.partition(" ")
    operands = []
    for operand in filter(None, (part.strip() for part in rest.split(","))):
        name, colon, kind = operand.partition(":")
        operands.append((name, kind) if colon else ("", name))
    return Form(mnemonic, tuple(operands), opcode, fixed, syntax)


def _add(
    name: str,
    forms: tuple[_Form, ...],
    entry: str | None,
    reason: int | None,
    meaning: str,
    takes: Mapping[str, str],
    is_event: bool,
) -> None:
    parameters = {}
    for key, target in takes.items():
        word, _, kind = target.partition("/")
        parameters[key] = Parameter(key, word, kind or "number")
    spec = InstructionSpec(
        name, tuple(map(_form, forms)), parameters, entry, reason, meaning, is_event
    )
    INSTRUCTIONS[name] = spec
    for form in spec.forms:
        FORMS.setdefault(form.mnemonic, []).append((name, form))


def _row(
    name: str,
    entry: str | None,
    reason: int | None,
    meaning: str,
    *forms: _Form,
    **takes: str,
) -> None:
    _add(name, forms, entry, reason, meaning, takes, is_event=False)


def _event(name: str, entry: str | None, reason: int | None, meaning: str, **takes: str) -> None:
    _add(name, ((name, ""),), entry, reason, meaning, takes, is_event=True)


# fmt: off
# Instructions that cause VM exits unconditionally.
_row("cpuid", "cpuid", 10, "identify the processor",
     ("cpuid", "0F A2"), leaf="eax", subleaf="ecx")
_row("getsec", "getsec", 11, "safer mode extensions",
     ("getsec", "0F 37"), leaf="eax")
_row("invd", "invd", 13, "invalidate caches without writing them back",
     ("invd", "0F 08"))
_row("xsetbv", "xsetbv", 55, "write an extended control register",
     ("xsetbv", "0F 01 D1"), xcr="ecx", value="edx:eax")
_row("invept", "invept", 50, "invalidate translations derived from EPT",
     ("invept register:r64, address:m", "66 0F 38 80 /r"), type="@register")
_row("invvpid", "invvpid", 53, "invalidate translations of a VPID",
     ("invvpid register:r64, address:m", "66 0F 38 81 /r"), type="@register")
_row("vmclear", "vmclear", 19, "make a VMCS inactive",
     ("vmclear address:m", "66 0F C7 /6"))
_row("vmlaunch", "vmlaunch", 20, "enter VMX non-root operation with a clear VMCS",
     ("vmlaunch", "0F 01 C2"))
_row("vmptrld", "vmptrld", 21, "make a VMCS current",
     ("vmptrld address:m", "0F C7 /6"))
_row("vmptrst", "vmptrst", 22, "store the current-VMCS pointer",
     ("vmptrst address:m", "0F C7 /7"))
_row("vmresume", "vmresume", 24, "enter VMX non-root operation with a launched VMCS",
     ("vmresume", "0F 01 C3"))
_row("vmxoff", "vmxoff", 26, "leave VMX operation",
     ("vmxoff", "0F 01 C4"))
_row("vmxon", "vmxon", 27, "enter VMX operation",
     ("vmxon address:m", "F3 0F C7 /6"))
_row("vmcall", "vmcall", 18, "call the VMM",
     ("vmcall", "0F 01 C1"), number="rax")
_row("seamcall", "seamcall", 76, "call the SEAM module",
     ("seamcall", "66 0F 01 CF"), leaf="rax")
_row("tdcall", "tdcall", 77, "call the TDX module from a trust domain",
     ("tdcall", "66 0F 01 CC"), leaf="rax")

# Instructions that cause VM exits depending on controls, bitmaps and masks.
_row("clts", "clts", 28, "clear CR0.TS",
     ("clts", "0F 06"))
_row("lmsw", "lmsw", 28, "load the machine status word into CR0[3:0]",
     ("lmsw source:rm16", "0F 01 /6"), value="@source")
_row("mov_to_cr0", "mov_to_cr0", 28, "load CR0",
     ("mov cr0, source:r64", "0F 22 /r"), value="@source")
_row("mov_to_cr2", None, None, "load CR2",
     ("mov cr2, source:r64", "0F 22 /r"), value="@source")
_row("mov_to_cr3", "mov_to_cr3", 28, "load CR3: change the address space",
     ("mov cr3, source:r64", "0F 22 /r"), value="@source")
_row("mov_to_cr4", "mov_to_cr4", 28, "load CR4",
     ("mov cr4, source:r64", "0F 22 /r"), value="@source")
_row("mov_to_cr8", "mov_to_cr8", 28, "load the task-priority register",
     ("mov cr8, source:r64", "44 0F 22 /r"), value="@source")
_row("mov_from_cr0", "mov_from_cr0", None, "read CR0 through its mask and shadow",
     ("mov destination:r64, cr0", "0F 20 /r"))
_row("mov_from_cr2", None, None, "read CR2",
     ("mov destination:r64, cr2", "0F 20 /r"))
_row("mov_from_cr3", "mov_from_cr3", 28, "read CR3",
     ("mov destination:r64, cr3", "0F 20 /r"))
_row("mov_from_cr4", "mov_from_cr4", None, "read CR4 through its mask and shadow",
     ("mov destination:r64, cr4", "0F 20 /r"))
_row("mov_from_cr8", "mov_from_cr8", 28, "read the task-priority register",
     ("mov destination:r64, cr8", "44 0F 20 /r"))
_row("smsw", "smsw", None, "read CR0[15:0] through its mask and shadow",
     ("smsw destination:rm", "osz 0F 01 /4"))
_row("mov_to_dr", "mov_dr", 29, "load a debug register",
     ("mov debug:dr, source:r64", "0F 23 /r"), value="@source")
_row("mov_from_dr", "mov_dr", 29, "read a debug register",
     ("mov destination:r64, debug:dr", "0F 21 /r"))
_row("encls", "encls", 60, "enclave supervisor leaf",
     ("encls", "0F 01 CF"), leaf="eax")
_row("enclv", "enclv", 70, "enclave virtualization leaf",
     ("enclv", "0F 01 C0"), leaf="eax")
_row("enqcmd", "enqcmd", 72, "enqueue a command with the process's PASID",
     ("enqcmd destination:r64, address:m", "F2 0F 38 F8 /r"))
_row("enqcmds", "enqcmds", 73, "enqueue a command with the PASID in memory",
     ("enqcmds destination:r64, address:m", "F3 0F 38 F8 /r"))
_row("hlt", "hlt", 12, "halt until an event",
     ("hlt", "F4"))
_row("in", "in_out", 30, "read an I/O port",
     ("in al, immediate:imm8", "E4 ib", {"size": 1}),
     ("in ax, immediate:imm8", "66 E5 ib", {"size": 2}),
     ("in eax, immediate:imm8", "E5 ib", {"size": 4}), ("in al, dx", "EC", {"size": 1}),
     ("in ax, dx", "66 ED", {"size": 2}), ("in eax, dx", "ED", {"size": 4}), port="dx")
_row("out", "in_out", 30, "write an I/O port",
     ("out immediate:imm8, al", "E6 ib", {"size": 1}),
     ("out immediate:imm8, ax", "66 E7 ib", {"size": 2}),
     ("out immediate:imm8, eax", "E7 ib", {"size": 4}), ("out dx, al", "EE", {"size": 1}),
     ("out dx, ax", "66 EF", {"size": 2}), ("out dx, eax", "EF", {"size": 4}),
     port="dx", value="eax")
_row("ins", "ins_outs", 30, "read an I/O port into memory at ES:RDI",
     ("insb", "6C", {"size": 1}), ("insw", "66 6D", {"size": 2}), ("insd", "6D", {"size": 4}),
     port="dx", address="rdi", count="rcx")
_row("outs", "ins_outs", 30, "write memory at DS:RSI to an I/O port",
     ("outsb", "6E", {"size": 1}), ("outsw", "66 6F", {"size": 2}), ("outsd", "6F", {"size": 4}),
     port="dx", address="rsi", count="rcx")
_row("invlpg", "invlpg", 14, "invalidate the translation of one page",
     ("invlpg address:m", "0F 01 /7"))
_row("invpcid", "invpcid", 58, "invalidate translations of a PCID",
     ("invpcid register:r64, address:m", "66 0F 38 82 /r"), type="@register")
_row("lgdt", "lgdt_lidt", 46, "load the GDTR",
     ("lgdt address:m", "0F 01 /2"))
_row("lidt", "lgdt_lidt", 46, "load the IDTR",
     ("lidt address:m", "0F 01 /3"))
_row("sgdt", "sgdt_sidt", 46, "store the GDTR",
     ("sgdt address:m", "0F 01 /0"))
_row("sidt", "sgdt_sidt", 46, "store the IDTR",
     ("sidt address:m", "0F 01 /1"))
_row("lldt", "lldt_ltr", 47, "load the LDTR",
     ("lldt source:rm16", "0F 00 /2"), value="@source")
_row("ltr", "lldt_ltr", 47, "load the task register",
     ("ltr source:rm16", "0F 00 /3"), value="@source")
_row("sldt", "sldt_str", 47, "store the LDTR's selector",
     ("sldt destination:rm", "osz 0F 00 /0"))
_row("str", "sldt_str", 47, "store the task register's selector",
     ("str destination:rm", "osz 0F 00 /1"))
_row("loadiwkey", "loadiwkey", 69, "load the internal wrapping key",
     ("loadiwkey first:xmm, second:xmm", "F3 0F 38 DC /r"), control="eax")
_row("monitor", "monitor", 39, "arm address-range monitoring",
     ("monitor", "0F 01 C8"), address="rax", extensions="ecx", hints="edx")
_row("mwait", "mwait", 36, "wait for a write to the monitored range",
     ("mwait", "0F 01 C9"), hints="eax", extensions="ecx")
_row("pause", "pause", 40, "spin-loop hint",
     ("pause", "F3 90"))
_row("pconfig", "pconfig", 65, "platform configuration",
     ("pconfig", "0F 01 C5"), leaf="eax")
_row("rdmsr", "rdmsr", 31, "read a model-specific register",
     ("rdmsr", "0F 32"), msr="ecx/msr")
_row("rdmsr_imm", "rdmsr", 84, "read the model-specific register named in the instruction",
     ("rdmsr destination:r64, msr:imm32", "C4 E7 7B F6 /0 id"))
_row("wrmsr", "wrmsr", 32, "write a model-specific register",
     ("wrmsr", "0F 30"), msr="ecx/msr", value="edx:eax")
_row("wrmsrns", "wrmsr", 32, "write a model-specific register without serializing",
     ("wrmsrns", "0F 01 C6"), msr="ecx/msr", value="edx:eax")
_row("wrmsrns_imm", "wrmsr", 85, "write the model-specific register named in the instruction",
     ("wrmsrns msr:imm32, source:r64", "C4 E7 7A F6 /0 id"), value="@source")
_row("rdmsrlist", "rdmsrlist", 78, "read a list of model-specific registers",
     ("rdmsrlist", "F2 0F 01 C6"), table="rsi", data="rdi", mask="rcx")
_row("wrmsrlist", "wrmsrlist", 79, "write a list of model-specific registers",
     ("wrmsrlist", "F3 0F 01 C6"), table="rsi", data="rdi", mask="rcx")
_row("urdmsr", "urdmsr", 80, "read a model-specific register from user mode",
     ("urdmsr destination:r64, number:r64", "F2 0F 38 F8 /r"), msr="@number/msr")
_row("urdmsr_imm", "urdmsr", 80, "the same with the register named in the instruction",
     ("urdmsr destination:r64, msr:imm32", "C4 E7 7B F8 /0 id"))
_row("uwrmsr", "uwrmsr", 81, "write a model-specific register from user mode",
     ("uwrmsr number:r64, source:r64", "F3 0F 38 F8 /r"), msr="@number/msr", value="@source")
_row("uwrmsr_imm", "uwrmsr", 81, "the same with the register named in the instruction",
     ("uwrmsr msr:imm32, source:r64", "C4 E7 7A F8 /0 id"), value="@source")
_row("rdpmc", "rdpmc", 15, "read a performance counter",
     ("rdpmc", "0F 33"), counter="ecx")
_row("rdrand", "rdrand", 57, "read a random number",
     ("rdrand destination:r", "osz 0F C7 /6"))
_row("rdseed", "rdseed", 61, "read a random seed",
     ("rdseed destination:r", "osz 0F C7 /7"))
_row("rdtsc", "rdtsc", 16, "read the time-stamp counter",
     ("rdtsc", "0F 31"))
_row("rdtscp", "rdtscp", 51, "read the time-stamp counter and IA32_TSC_AUX",
     ("rdtscp", "0F 01 F9"))
_row("task_switch", "task_switch", 9, "far CALL, JMP or IRET to a task",
     ("task_switch", "9A id iw"), selector="", source="")
_row("rsm", "rsm", 17, "resume from system-management mode",
     ("rsm", "0F AA"))
_row("tpause", "tpause", 68, "wait until a time",
     ("tpause source:r32", "66 0F AE /6"), value="@source", deadline="edx:eax")
_row("umwait", "umwait", 67, "wait for a write or until a time",
     ("umwait source:r32", "F2 0F AE /6"), value="@source", deadline="edx:eax")
_row("vmread", "vmread", 23, "read a VMCS field",
     ("vmread destination:rm64, encoding:r64", "0F 78 /r"), field="@encoding/field")
_row("vmwrite", "vmwrite", 25, "write a VMCS field",
     ("vmwrite encoding:r64, source:rm64", "0F 79 /r"), field="@encoding/field", value="@source")
_row("vmfunc", "vmfunc", 59, "call a VM function without an exit",
     ("vmfunc", "0F 01 D4"), function="eax", argument="ecx")
_row("wbinvd", "wbinvd", 54, "write back and invalidate caches",
     ("wbinvd", "0F 09"))
_row("wbnoinvd", "wbinvd", 54, "write back caches",
     ("wbnoinvd", "F3 0F 09"))
_row("xsaves", "xsaves", 63, "save extended state, supervisor state included",
     ("xsaves address:m", "0F C7 /5"), components="edx:eax")
_row("xrstors", "xrstors", 64, "restore extended state, supervisor state included",
     ("xrstors address:m", "0F C7 /3"), components="edx:eax")

# Instructions that behave differently in VMX non-root operation without an exit.
_row("rdpid", "rdpid", None, "read IA32_TSC_AUX",
     ("rdpid destination:r64", "F3 0F C7 /7"))
_row("umonitor", "umonitor", None, "arm user-mode monitoring",
     ("umonitor source:r64", "F3 0F AE /6"), address="@source")
_row("pbndkb", "pbndkb", None, "bind a key to the platform",
     ("pbndkb", "0F 01 C7"))
_row("iret", "iret", None, "return from an interrupt handler; unblocks NMIs",
     ("iret", "W CF"), ("iretq", "W CF"), ("iretd", "osz CF", {"operand_size": 4}),
     ("iretw", "osz CF", {"operand_size": 2}))
_row("erets", "erets_eretu", None, "return from a FRED event handler to the supervisor",
     ("erets", "F2 0F 01 CA"))
_row("eretu", "erets_eretu", None, "return from a FRED event handler to the user",
     ("eretu", "F3 0F 01 CA"))
_row("senduipi", "senduipi", None, "send a user interrupt",
     ("senduipi source:r64", "F3 0F C7 /6"), index="@source")

# Instructions that VMX non-root operation does not change.
_row("load", None, None, "read memory",
     ("load address:a", "W 8B /r"), ("load destination:r64, address:a", "W 8B /r"),
     ("mov destination:r8, address:m", "8A /r", {"size": 1}),
     ("mov destination:r, address:m", "osz 8B /r"), size="")
_row("store", None, None, "write memory",
     ("store address:a", "W 89 /r"), ("store address:a, source:r64", "W 89 /r"),
     ("mov address:m, source:r8", "88 /r", {"size": 1}),
     ("mov address:m, source:r", "osz 89 /r"), size="", value="")
_row("modify", None, None, "read memory, add to it, write it",
     ("modify address:a", "W 01 /r"), ("add address:m, source:r8", "00 /r", {"size": 1}),
     ("add address:m, source:r", "osz 01 /r"),
     size="", value="")
_row("fetch", None, None, "refer to memory as an instruction fetch does",
     ("fetch address:a", "90"), size="")
_row("mov", None, None, "copy a register or a number to a register",
     ("mov destination:r32, value:imm32", "B8 +r id"),
     ("mov destination:r64, value:imm32", "B8 +r id"),
     ("mov destination:r64, value:imm64", "W B8 +r iq"),
     ("mov destination:r64, source:r64", "W 8B /r"),
     ("mov destination:r32, source:r32", "8B /r", {"operand_size": 4}))
_row("xor", None, None, "exclusive or of two registers",
     ("xor destination:r, source:r", "osz 33 /r"))
_row("test", None, None, "set flags as the bitwise and of two registers does",
     ("test destination:r, source:r", "osz 85 /r"))
_row("btr", None, None, "copy a bit of a register to CF and clear it",
     ("btr destination:r, bit:imm8", "osz 0F BA /6 ib"))
_row("div", "exception", 0, "divide RDX:RAX by a register; #DE if the quotient does not fit",
     ("div source:r", "osz F7 /6"), value="@source")
_row("mov_to_ss", None, None, "load SS; blocks events until the next instruction is done",
     ("mov ss, source:r16", "8E /r"), ("mov ss, source:r64", "8E /r"), value="@source")
_row("push", None, None, "push a register",
     ("push source:r64", "50 +r"), value="@source")
_row("pop", None, None, "pop a register",
     ("pop destination:r64", "58 +r"))
_row("pushf", None, None, "push RFLAGS",
     ("pushf", "9C"), ("pushfq", "9C"), ("pushfd", "osz 9C", {"operand_size": 4}),
     ("pushfw", "osz 9C", {"operand_size": 2}))
_row("popf", None, None, "pop RFLAGS",
     ("popf", "9D"), ("popfq", "9D"), ("popfd", "osz 9D", {"operand_size": 4}),
     ("popfw", "osz 9D", {"operand_size": 2}))
_row("call", None, None, "call through memory",
     ("call address:m", "FF /2"))
_row("jmp", None, None, "jump to another step",
     ("jmp target:imm64", "E9 id"))
_row("nop", None, None, "do nothing",
     ("nop", "90"))
_row("sti", None, None, "enable interrupts after the next instruction",
     ("sti", "FB"))
_row("cli", None, None, "disable interrupts",
     ("cli", "FA"))
_row("std", None, None, "set the direction flag",
     ("std", "FD"))
_row("cld", None, None, "clear the direction flag",
     ("cld", "FC"))
_row("xgetbv", None, None, "read an extended control register",
     ("xgetbv", "0F 01 D0"), xcr="ecx")
_row("swapgs", None, None, "exchange the GS base with IA32_KERNEL_GS_BASE",
     ("swapgs", "0F 01 F8"))
_row("int", None, None, "software interrupt",
     ("int vector:imm8", "CD ib"))
_row("int3", "exception", 0, "breakpoint: software exception 3",
     ("int3", "CC"))
_row("int1", "exception", 0, "privileged software exception 1",
     ("int1", "F1"))
_row("into", "exception", 0, "overflow: software exception 4 (no instruction of 64-bit mode)",
     ("into", "CE"))
_row("ud2", "exception", 0, "raise #UD",
     ("ud2", "0F 0B"))
_row("ud1", "exception", 0, "raise #UD",
     ("ud1", "0F B9 /r"))
_row("ud0", "exception", 0, "raise #UD",
     ("ud0", "0F FF /r"))

# Events: they arrive before the next instruction.
_event("external_interrupt", "external_interrupt", 1, "an interrupt at the local APIC",
       vector="")
_event("nmi", "nmi", 0, "a non-maskable interrupt")
_event("init", "init_signal", 3, "an INIT signal")
_event("sipi", "sipi", 4, "a start-up IPI", vector="")
_event("smi", "smi", 6, "a system-management interrupt")
_event("exception", "exception", 0, "an exception raised by the instruction that follows",
       vector="", error_code="", address="")
_event("bus_lock", "bus_lock", 74, "the instruction before asserted a bus lock")
_event("instruction_timeout", "instruction_timeout", 75,
       "no instruction boundary for longer than the VMM allows", context_invalid="")
# fmt: on

#: Further encodings of rows, which an assembler may choose as well; (row, form).
ENCODINGS: tuple[tuple[str, Form], ...] = tuple(
    (name, _form(form))
    for name, form in (
        ("mov", ("mov destination:r, source:r", "osz 89 /r")),
        ("mov", ("mov destination:r, source:r", "osz 8B /r")),
        ("mov", ("mov destination:r, value:imm16", "66 B8 +r iw")),
        ("mov", ("mov destination:r, value:simm32", "osz C7 /0 id")),
        ("xor", ("xor destination:r, source:r", "osz 31 /r")),
    )
)

#: Names of the rows that are events.
EVENTS = frozenset(name for name, spec in INSTRUCTIONS.items() if spec.is_event)
