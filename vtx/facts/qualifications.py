"""What the bits of the exit-information fields say.

The layouts of the exit qualification, of the VM-exit instruction information, of the fields that
identify an event, and of the packed words in the guest area. Ranges run from bit 0 upwards and
tile the word, so that nothing is left unsaid. Where a range is "undefined" the architecture
promises nothing.
"""

from typing import Final

from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.layout import BitRange, DecodedBits, Layout, decode, flag, table

__all__ = [
    "EVENT_INFORMATION",
    "FIELD_LAYOUTS",
    "GPR",
    "GUEST_NON_REGISTER_STATE",
    "INSTRUCTION_INFORMATION",
    "QUALIFICATIONS",
    "BitRange",
    "DecodedBits",
    "Layout",
    "decode",
    "field_layout",
    "qualification_layout",
]

#: General-purpose registers by the number that the layouts use.
GPR: Final = {
    0: "RAX", 1: "RCX", 2: "RDX", 3: "RBX", 4: "RSP", 5: "RBP", 6: "RSI", 7: "RDI",
    8: "R8", 9: "R9", 10: "R10", 11: "R11", 12: "R12", 13: "R13", 14: "R14", 15: "R15",
}  # fmt: skip
#: Segment registers by the number that the layouts use.
SEGMENT: Final = {0: "ES", 1: "CS", 2: "SS", 3: "DS", 4: "FS", 5: "GS"}
SCALING: Final = {0: "no scaling", 1: "times 2", 2: "times 4", 3: "times 8"}
ADDRESS_SIZE: Final = {0: "16-bit", 1: "32-bit", 2: "64-bit"}
OPERAND_SIZE: Final = {0: "16-bit", 1: "32-bit", 2: "64-bit"}
ACTIVITY_STATE: Final = {0: "active", 1: "HLT", 2: "shutdown", 3: "wait-for-SIPI"}
APIC_ACCESS_TYPE: Final = {
    0: "linear data read",
    1: "linear data write",
    2: "linear instruction fetch",
    3: "linear access during event delivery",
    4: "linear asynchronous access",
    10: "guest-physical access during event delivery",
    11: "guest-physical asynchronous access",
    15: "guest-physical fetch or access during instruction execution",
}
ENTRY_FAILURE: Final = {
    0: "any other guest-state check",
    2: "loading the PDPTEs",
    3: "injection of an NMI with blocking by STI",
    4: "invalid VMCS link pointer",
}
EXITING_EVENT_TYPE: Final = {
    0: "external interrupt",
    2: "NMI",
    3: "hardware exception",
    5: "privileged software exception (INT1)",
    6: "software exception (INT3, INTO)",
}
ORIGINAL_EVENT_TYPE: Final = {
    0: "external interrupt",
    2: "NMI",
    3: "hardware exception",
    4: "software interrupt (INT n)",
    5: "privileged software exception (INT1)",
    6: "software exception (INT3, INTO)",
    7: "other event (with FRED: vector 1 SYSCALL, 2 SYSENTER)",
}
INJECTED_EVENT_TYPE: Final = {
    0: "external interrupt",
    1: "reserved",
    2: "NMI",
    3: "hardware exception",
    4: "software interrupt (INT n)",
    5: "privileged software exception (INT1)",
    6: "software exception (INT3, INTO)",
    7: "other event",
}

#: Layouts of the exit qualification, by the key in `ExitInfo.qualification`.
QUALIFICATIONS: dict[str, Layout] = table(
    Layout(
        "debug_exception",
        64,
        (
            BitRange(3, 0, "b3_b0", "breakpoint n condition met, even if not enabled in DR7"),
            BitRange(10, 4, "undefined", "undefined"),
            flag(11, "bld", "OS bus-lock detected (CPL>0); opposite polarity to DR6 bit 11"),
            flag(12, "undefined", "undefined"),
            flag(13, "bd", "debug-register access detected"),
            flag(14, "bs", "single step, or taken branch if BTF"),
            flag(15, "undefined", "undefined"),
            flag(
                16,
                "rtm",
                (
                    "#DB/#BP inside RTM region with advanced debugging; opposite polarity to DR6 "
                    "bit 16"
                ),
            ),
            BitRange(63, 17, "undefined", "undefined"),
        ),
        "Exit qualification for debug exceptions",
        "SDM table 30-1 (27-1 in 2016); Bochs, KVM",
        when="exception with vector 1. DR6, DR7, IA32_DEBUGCTL are not updated by the exit.",
        notes=(
            (
                "bits 11 (BLD) and 16 (RTM) are newer than the 2016 edition table, which reserves "
                "12:4 and 63:15"
            ),
        ),
    ),
    Layout(
        "page_fault",
        64,
        (
            BitRange(
                63,
                0,
                "linear_address",
                (
                    "faulting linear address after any LAM masking; bits 63:32 cleared if not in "
                    "64-bit mode"
                ),
            ),
        ),
        "Exit qualification for page-fault exceptions",
        'SDM, "Basic VM-Exit Information"',
        when="exception with vector 14. CR2 is not updated. In enclave mode bits 11:0 cleared.",
    ),
    Layout(
        "nmi_source",
        64,
        (BitRange(63, 0, "nmi_source", "NMI-source report if CPUID.(7,1).EAX[20], else 0"),),
        "Exit qualification for NMIs",
        'SDM, "Basic VM-Exit Information"',
        when="NMI exit",
        notes=("older SDMs: always 0",),
    ),
    Layout(
        "sipi",
        64,
        (
            BitRange(7, 0, "vector", "SIPI vector"),
            BitRange(63, 8, "zero", "always 0"),
        ),
        "Exit qualification for SIPIs",
        'SDM, "Basic VM-Exit Information" (2016 27.2.1)',
    ),
    Layout(
        "io_smi",
        64,
        (
            BitRange(2, 0, "size", "size of the access", {0: "1 byte", 1: "2 bytes", 3: "4 bytes"}),
            flag(3, "direction", "direction of the access", {0: "OUT", 1: "IN"}),
            flag(
                4, "string", "string instruction", {0: "not a string instruction", 1: "INS or OUTS"}
            ),
            flag(5, "rep", "REP prefix", {0: "no REP prefix", 1: "REP prefix"}),
            flag(6, "operand", "how the port is given", {0: "DX", 1: "immediate"}),
            BitRange(15, 7, "undefined", "undefined"),
            BitRange(31, 16, "port", "port number"),
            BitRange(63, 32, "undefined", "undefined"),
        ),
        "Exit qualification for SMIs after an I/O instruction",
        'SDM, "Recording VM-Exit Information"',
        notes=("same layout as io_instruction, used by SMM VM exits after I/O",),
    ),
    Layout(
        "task_switch",
        64,
        (
            BitRange(15, 0, "selector", "selector of the new TSS"),
            BitRange(29, 16, "undefined", "undefined"),
            BitRange(
                31,
                30,
                "source",
                "what initiated the task switch",
                {0: "CALL", 1: "IRET", 2: "JMP", 3: "task gate in the IDT"},
            ),
            BitRange(63, 32, "undefined", "undefined"),
        ),
        "Exit qualification for task switches",
        "SDM table 30-2 (27-2 in 2016); Bochs",
    ),
    Layout(
        "linear_address",
        64,
        (BitRange(63, 0, "linear_address", "INVLPG operand; 63:32 cleared outside 64-bit mode"),),
        "Exit qualification for INVLPG",
        'SDM, "Basic VM-Exit Information"',
    ),
    Layout(
        "displacement",
        64,
        (
            BitRange(
                63,
                0,
                "displacement",
                (
                    "instruction displacement sign-extended; 0 if none or register operand; for "
                    "RIP-relative: displacement + next RIP"
                ),
            ),
        ),
        "Exit qualification for instructions with a memory operand",
        'SDM, "Basic VM-Exit Information"; Bochs',
        notes=(
            (
                "bits above the address size are undefined. VMLAUNCH, VMRESUME, VMXOFF, VMCALL, "
                "VMFUNC have no qualification (0)."
            ),
        ),
    ),
    Layout(
        "cr_access",
        64,
        (
            BitRange(
                3,
                0,
                "cr",
                "control register; 0 for CLTS and LMSW",
                {0: "CR0", 3: "CR3", 4: "CR4", 8: "CR8"},
            ),
            BitRange(
                5,
                4,
                "access",
                "kind of access",
                {0: "MOV to CR", 1: "MOV from CR", 2: "CLTS", 3: "LMSW"},
            ),
            flag(
                6,
                "lmsw_operand",
                "operand of LMSW; 0 for CLTS and MOV CR",
                {0: "register", 1: "memory"},
            ),
            flag(7, "undefined", "undefined"),
            BitRange(11, 8, "gpr", "general-purpose register of MOV CR; 0 for CLTS and LMSW", GPR),
            BitRange(15, 12, "undefined", "undefined"),
            BitRange(31, 16, "lmsw_source", "LMSW source data; 0 for CLTS and MOV CR"),
            BitRange(63, 32, "undefined", "undefined"),
        ),
        "Exit qualification for control-register accesses",
        "SDM table 30-3 (27-3 in 2016); Bochs, Xen, KVM",
    ),
    Layout(
        "mov_dr",
        64,
        (
            BitRange(2, 0, "dr", "debug-register number"),
            flag(3, "undefined", "undefined"),
            flag(4, "direction", "direction of the move", {0: "MOV to DR", 1: "MOV from DR"}),
            BitRange(7, 5, "undefined", "undefined"),
            BitRange(11, 8, "gpr", "general-purpose register", GPR),
            BitRange(63, 12, "undefined", "undefined"),
        ),
        "Exit qualification for MOV DR",
        "SDM table 30-4 (27-4 in 2016); Bochs",
    ),
    Layout(
        "io_instruction",
        64,
        (
            BitRange(2, 0, "size", "size of the access", {0: "1 byte", 1: "2 bytes", 3: "4 bytes"}),
            flag(3, "direction", "direction of the access", {0: "OUT", 1: "IN"}),
            flag(
                4, "string", "string instruction", {0: "not a string instruction", 1: "INS or OUTS"}
            ),
            flag(5, "rep", "REP prefix", {0: "no REP prefix", 1: "REP prefix"}),
            flag(6, "operand", "how the port is given", {0: "DX", 1: "immediate"}),
            BitRange(15, 7, "undefined", "undefined"),
            BitRange(31, 16, "port", "port number"),
            BitRange(63, 32, "undefined", "undefined"),
        ),
        "Exit qualification for I/O instructions",
        "SDM table 30-5 (27-5 in 2016); Bochs",
    ),
    Layout(
        "mwait",
        64,
        (
            flag(0, "armed", "address-range monitoring armed"),
            BitRange(63, 1, "zero", "always 0"),
        ),
        "Exit qualification for MWAIT",
        'SDM, "Basic VM-Exit Information"; Bochs',
    ),
    Layout(
        "apic_access",
        64,
        (
            BitRange(
                11,
                0,
                "offset",
                "offset in APIC page for linear accesses; undefined for guest-physical",
            ),
            BitRange(15, 12, "access_type", "kind of access", APIC_ACCESS_TYPE),
            flag(
                16,
                "asynchronous",
                (
                    "asynchronous to instruction execution and not event delivery (PT, PEBS, "
                    "user-interrupt delivery)"
                ),
            ),
            BitRange(63, 17, "undefined", "undefined"),
        ),
        "Exit qualification for APIC-access VM exits",
        "SDM table 30-6 (27-6 in 2016)",
        notes=(
            (
                "types 4, 11 and bit 16 are newer than the 2016 edition; Bochs implements only "
                "types 0-3; types 3 and 10 go with a valid IDT-vectoring field"
            ),
        ),
    ),
    Layout(
        "eoi_vector",
        64,
        (
            BitRange(7, 0, "vector", "dismissed virtual vector"),
            BitRange(63, 8, "zero", "always 0"),
        ),
        "Exit qualification for virtualized EOI",
        'SDM, "Basic VM-Exit Information"; Bochs',
    ),
    Layout(
        "apic_write",
        64,
        (
            BitRange(
                11,
                0,
                "offset",
                (
                    "page offset of the write; 300H for ICR / IPI virtualization / SENDUIPI, 3F0H "
                    "for self-IPI MSR with vector < 16"
                ),
            ),
            BitRange(63, 12, "zero", "always 0"),
        ),
        "Exit qualification for APIC-write VM exits",
        'SDM, "Basic VM-Exit Information"; Bochs',
    ),
    Layout(
        "ept_violation",
        64,
        (
            flag(0, "read", "access was a data read"),
            flag(1, "write", "access was a data write"),
            flag(2, "fetch", "access was an instruction fetch"),
            flag(
                3,
                "entry_readable",
                "AND of bit 0 over the EPT entries used",
                {0: "not readable", 1: "readable"},
            ),
            flag(
                4,
                "entry_writable",
                "AND of bit 1 over the EPT entries used",
                {0: "not writable", 1: "writable"},
            ),
            flag(
                5,
                "entry_executable",
                "AND of bit 2 over the EPT entries used; with MBE for supervisor mode",
                {0: "not executable", 1: "executable"},
            ),
            flag(
                6,
                "entry_user_executable",
                "AND of bit 10 over the EPT entries used, with MBE; else undefined",
                {0: "not executable in user mode", 1: "executable in user mode"},
            ),
            flag(
                7, "gla_valid", "whether a linear address is reported", {0: "not valid", 1: "valid"}
            ),
            flag(
                8,
                "translated",
                "what was accessed, if bit 7 is 1; 0 if bit 7 is 0",
                {
                    0: "a guest paging-structure entry",
                    1: "the address that the linear address translates to",
                },
            ),
            flag(
                9,
                "user_linear",
                "advanced information on the linear address; 1 when CR0.PG=0",
                {0: "supervisor-mode address", 1: "user-mode address"},
            ),
            flag(
                10,
                "writable_linear",
                "advanced information: what guest paging allows; 1 when CR0.PG=0",
                {0: "read-only page", 1: "writable page"},
            ),
            flag(
                11,
                "xd_linear",
                "advanced information: guest paging; 0 when CR0.PG=0, PAE=0 or NXE=0",
                {0: "executable page", 1: "execute-disable page"},
            ),
            flag(12, "nmi_unblocking", "NMI unblocking due to IRET"),
            flag(13, "shadow_stack", "shadow-stack access"),
            flag(14, "sss_bit", "bit 60 of the leaf entry if EPTP[7], else undefined"),
            flag(15, "guest_paging_verification", "caused by guest-paging verification"),
            flag(
                16,
                "asynchronous",
                (
                    "asynchronous, not event delivery (PT output, EPT-friendly PEBS, "
                    "user-interrupt delivery)"
                ),
            ),
            BitRange(63, 17, "undefined", "undefined"),
        ),
        "Exit qualification for EPT violations",
        "SDM table 30-7 (27-7 in 2016); KVM, Xen, Bochs",
        notes=(
            "bits 9-11 defined only if bits 7 and 8 are 1 and IA32_VMX_EPT_VPID_CAP[22]=1",
            (
                "bits 5:3 (and 6 with MBE) are 0 if any EPT entry is not present, or 4-level EPT "
                "and GPA bits 51:48 nonzero"
            ),
            (
                "with EPT A/D flags on, processor accesses to guest paging structures count as "
                "writes: bits 0 and 1 both set"
            ),
            "read-modify-write sets bit 1, bit 0 is implementation-specific",
            (
                "bit 7 is 0 for PDPTE loads by MOV CR and for trace-address pre-translation / "
                "architectural PEBS"
            ),
            (
                "the 2016 edition reserves bits 6, 11:9 and 63:13 (all later additions); Bochs "
                "sets only the write bit for A/D page-walk accesses (disagrees with SDM and with "
                "kvm-unit-tests, which expect both)"
            ),
        ),
    ),
    Layout(
        "pml_full",
        64,
        (
            BitRange(11, 0, "undefined", "undefined"),
            flag(12, "nmi_unblocking", "NMI unblocking due to IRET"),
            BitRange(15, 13, "undefined", "undefined"),
            flag(
                16,
                "asynchronous",
                "TAPT, EPT-friendly PEBS, architectural PEBS, user-interrupt delivery",
            ),
            BitRange(63, 17, "undefined", "undefined"),
        ),
        "Exit qualification for page-modification log-full events",
        'SDM, "Basic VM-Exit Information"; KVM',
    ),
    Layout(
        "spp_event",
        64,
        (
            BitRange(10, 0, "undefined", "undefined"),
            flag(
                11,
                "type",
                "what the sub-page permission lookup met",
                {0: "SPP misconfiguration", 1: "SPP miss"},
            ),
            flag(12, "nmi_unblocking", "NMI unblocking due to IRET"),
            BitRange(15, 13, "undefined", "undefined"),
            flag(16, "asynchronous", "as for PML full"),
            BitRange(63, 17, "undefined", "undefined"),
        ),
        "Exit qualification for SPP-related events",
        'SDM, "Basic VM-Exit Information"; ia32-doc',
    ),
    Layout(
        "instruction_timeout",
        64,
        (
            flag(0, "context_invalid", "VM context invalid, VM must not be resumed"),
            BitRange(11, 1, "undefined", "undefined"),
            flag(12, "nmi_unblocking", "NMI unblocking due to IRET"),
            BitRange(63, 13, "undefined", "undefined"),
        ),
        "Exit qualification for instruction timeouts",
        'SDM, "Basic VM-Exit Information"; KVM, Xen, tdx-module',
    ),
    Layout(
        "enqcmd_pasid",
        64,
        (
            BitRange(19, 0, "pasid", "IA32_PASID[19:0] (guest PASID)"),
            BitRange(63, 20, "zero", "always 0"),
        ),
        "Exit qualification for ENQCMD PASID translation failures",
        'SDM, "Basic VM-Exit Information"',
        notes=("single source",),
    ),
    Layout(
        "enqcmds_pasid",
        64,
        (
            BitRange(31, 0, "source_low", "low 32 bits of the source operand read from memory"),
            BitRange(63, 32, "zero", "always 0"),
        ),
        "Exit qualification for ENQCMDS PASID translation failures",
        'SDM, "Basic VM-Exit Information"',
        notes=("single source",),
    ),
    Layout(
        "msr_index_if_bitmaps",
        64,
        (
            BitRange(
                31,
                0,
                "msr",
                "index of the MSR whose access exited; 0 when MSR bitmaps are not used",
            ),
            BitRange(63, 32, "zero", "always 0"),
        ),
        "Exit qualification for RDMSRLIST and WRMSRLIST",
        'SDM, "Basic VM-Exit Information"; Bochs',
    ),
    Layout(
        "msr_index",
        64,
        (
            BitRange(31, 0, "msr", "MSR index (immediate or register value)"),
            BitRange(63, 32, "zero", "always 0"),
        ),
        "Exit qualification for MSR accesses with an explicit address",
        "Linux and Xen patches",
        notes=("not stated in SDM 092; Bochs stores 0 for 80/81",),
    ),
    Layout(
        "wrmsr_kind",
        64,
        (
            flag(0, "wrmsrns", "which instruction", {0: "WRMSR", 1: "WRMSRNS"}),
            BitRange(63, 1, "zero", "always 0"),
        ),
        "Exit qualification for WRMSR and WRMSRNS",
        'SDM, "Basic VM-Exit Information"; Bochs value',
    ),
    Layout(
        "wbinvd_kind",
        64,
        (
            flag(0, "wbnoinvd", "which instruction", {0: "WBINVD", 1: "WBNOINVD"}),
            BitRange(63, 1, "zero", "always 0"),
        ),
        "Exit qualification for WBINVD and WBNOINVD",
        'SDM, "Basic VM-Exit Information"',
        notes=("2016 edition: always 0; Bochs always writes 0",),
    ),
    Layout(
        "entry_failure_guest_state",
        64,
        (BitRange(63, 0, "code", "which kind of check failed", ENTRY_FAILURE),),
        "Exit qualification for VM-entry failures due to invalid guest state",
        (
            'SDM, "VM-Entry Failures During or After Loading Guest State" (26.7); Bochs, KVM, '
            "kvm-unit-tests"
        ),
    ),
    Layout(
        "entry_failure_msr",
        64,
        (BitRange(63, 0, "entry", "1-based index of the failing VM-entry MSR-load entry"),),
        "Exit qualification for VM-entry failures due to MSR loading",
        'SDM, "VM-Entry Failures During or After Loading Guest State"; kvm-unit-tests',
    ),
    Layout(
        "by_vector",
        64,
        (
            BitRange(
                63,
                0,
                "by_vector",
                (
                    "vector 1 -> debug_exception, vector 14 -> page_fault, NMI -> nmi_source, "
                    "otherwise 0"
                ),
            ),
        ),
        "Exit qualification for exceptions and NMIs",
        'SDM, "Basic VM-Exit Information"',
    ),
)

#: Layouts of the VM-exit instruction information, by the key in `ExitInfo.instruction_information`.
INSTRUCTION_INFORMATION: dict[str, Layout] = table(
    Layout(
        "ins_outs",
        32,
        (
            BitRange(6, 0, "undefined", "undefined"),
            BitRange(9, 7, "address_size", "address size", ADDRESS_SIZE),
            BitRange(14, 10, "undefined", "undefined"),
            BitRange(17, 15, "segment", "segment register; undefined for INS", SEGMENT),
            BitRange(31, 18, "undefined", "undefined"),
        ),
        "Instruction information for INS and OUTS",
        "SDM table 30-8 (27-8 in 2016)",
        when="the instruction is INS or OUTS; only if IA32_VMX_BASIC[54]=1, otherwise undefined",
    ),
    Layout(
        "inv_descriptor",
        32,
        (
            BitRange(
                1, 0, "scaling", "scaling of the index; undefined if no index register", SCALING
            ),
            BitRange(6, 2, "undefined", "undefined"),
            BitRange(9, 7, "address_size", "address size", ADDRESS_SIZE),
            flag(10, "mem_reg", "always memory", {0: "memory", 1: "register"}),
            BitRange(14, 11, "undefined", "undefined"),
            BitRange(17, 15, "segment", "segment register", SEGMENT),
            BitRange(21, 18, "index_reg", "index register; undefined if bit 22", GPR),
            flag(
                22,
                "index_invalid",
                "index register",
                {0: "has an index register", 1: "no index register"},
            ),
            BitRange(26, 23, "base_reg", "base register; undefined if bit 27", GPR),
            flag(
                27,
                "base_invalid",
                "base register",
                {0: "has a base register", 1: "no base register"},
            ),
            BitRange(31, 28, "reg2", "register that holds the type", GPR),
        ),
        "Instruction information for INVEPT, INVPCID and INVVPID",
        "SDM table 30-9 (27-9 in 2016)",
        when="the instruction is INVEPT, INVPCID or INVVPID",
    ),
    Layout(
        "gdtr_idtr",
        32,
        (
            BitRange(
                1, 0, "scaling", "scaling of the index; undefined if no index register", SCALING
            ),
            BitRange(6, 2, "undefined", "undefined"),
            BitRange(9, 7, "address_size", "address size", ADDRESS_SIZE),
            flag(10, "mem_reg", "always memory", {0: "memory", 1: "register"}),
            flag(
                11,
                "operand_size",
                "operand size; undefined from 64-bit mode",
                {0: "16-bit", 1: "32-bit"},
            ),
            BitRange(14, 12, "undefined", "undefined"),
            BitRange(17, 15, "segment", "segment register", SEGMENT),
            BitRange(21, 18, "index_reg", "index register; undefined if bit 22", GPR),
            flag(
                22,
                "index_invalid",
                "index register",
                {0: "has an index register", 1: "no index register"},
            ),
            BitRange(26, 23, "base_reg", "base register; undefined if bit 27", GPR),
            flag(
                27,
                "base_invalid",
                "base register",
                {0: "has a base register", 1: "no base register"},
            ),
            BitRange(
                29,
                28,
                "identity",
                "which instruction",
                {0: "SGDT", 1: "SIDT", 2: "LGDT", 3: "LIDT"},
            ),
            BitRange(31, 30, "undefined", "undefined"),
        ),
        "Instruction information for LIDT, LGDT, SIDT and SGDT",
        "SDM table 30-10 (27-10 in 2016)",
        when="the instruction is LGDT, LIDT, SGDT or SIDT",
    ),
    Layout(
        "ldtr_tr",
        32,
        (
            BitRange(
                1,
                0,
                "scaling",
                "scaling of the index; undefined if no index register or register operand",
                SCALING,
            ),
            flag(2, "undefined", "undefined"),
            BitRange(6, 3, "reg1", "register operand; undefined for memory operands", GPR),
            BitRange(
                9, 7, "address_size", "address size; undefined for register operand", ADDRESS_SIZE
            ),
            flag(10, "mem_reg", "memory or register operand", {0: "memory", 1: "register"}),
            BitRange(14, 11, "undefined", "undefined"),
            BitRange(
                17, 15, "segment", "segment register; undefined for register operand", SEGMENT
            ),
            BitRange(21, 18, "index_reg", "index register; undefined if bit 22", GPR),
            flag(
                22,
                "index_invalid",
                "index register",
                {0: "has an index register", 1: "no index register"},
            ),
            BitRange(26, 23, "base_reg", "base register; undefined if bit 27", GPR),
            flag(
                27,
                "base_invalid",
                "base register",
                {0: "has a base register", 1: "no base register"},
            ),
            BitRange(
                29, 28, "identity", "which instruction", {0: "SLDT", 1: "STR", 2: "LLDT", 3: "LTR"}
            ),
            BitRange(31, 30, "undefined", "undefined"),
        ),
        "Instruction information for LLDT, LTR, SLDT and STR",
        "SDM table 30-11 (27-11 in 2016)",
        when="the instruction is LLDT, LTR, SLDT or STR",
    ),
    Layout(
        "rdrand_rdseed",
        32,
        (
            BitRange(2, 0, "undefined", "undefined"),
            BitRange(6, 3, "dest_reg", "destination register", GPR),
            BitRange(10, 7, "undefined", "undefined"),
            BitRange(12, 11, "operand_size", "operand size", OPERAND_SIZE),
            BitRange(31, 13, "undefined", "undefined"),
        ),
        "Instruction information for RDRAND and RDSEED",
        "SDM table 30-12 (27-12 in 2016)",
        when="the instruction is RDRAND or RDSEED",
    ),
    Layout(
        "tpause_umwait",
        32,
        (
            BitRange(2, 0, "undefined", "undefined"),
            BitRange(6, 3, "source_reg", "source register", GPR),
            BitRange(31, 7, "undefined", "undefined"),
        ),
        "Instruction information for TPAUSE and UMWAIT",
        "SDM table 30-13",
        when="the instruction is TPAUSE or UMWAIT",
        notes=(
            (
                "an older edition put TPAUSE/UMWAIT into the RDRAND table with the operand-size "
                "field; Bochs does not fill the field"
            ),
        ),
    ),
    Layout(
        "vmx_memory_operand",
        32,
        (
            BitRange(
                1, 0, "scaling", "scaling of the index; undefined if no index register", SCALING
            ),
            BitRange(6, 2, "undefined", "undefined"),
            BitRange(9, 7, "address_size", "address size", ADDRESS_SIZE),
            flag(10, "mem_reg", "always memory", {0: "memory", 1: "register"}),
            BitRange(14, 11, "undefined", "undefined"),
            BitRange(17, 15, "segment", "segment register", SEGMENT),
            BitRange(21, 18, "index_reg", "index register; undefined if bit 22", GPR),
            flag(
                22,
                "index_invalid",
                "index register",
                {0: "has an index register", 1: "no index register"},
            ),
            BitRange(26, 23, "base_reg", "base register; undefined if bit 27", GPR),
            flag(
                27,
                "base_invalid",
                "base register",
                {0: "has a base register", 1: "no base register"},
            ),
            BitRange(31, 28, "undefined", "undefined"),
        ),
        "Instruction information for VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS and XSAVES",
        "SDM table 30-14 (27-13 in 2016)",
        when="the instruction is VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS or XSAVES",
    ),
    Layout(
        "vmread_vmwrite",
        32,
        (
            BitRange(
                1,
                0,
                "scaling",
                "scaling of the index; undefined if no index register or register operand",
                SCALING,
            ),
            flag(2, "undefined", "undefined"),
            BitRange(6, 3, "reg1", "register operand; undefined for memory operands", GPR),
            BitRange(
                9, 7, "address_size", "address size; undefined for register operand", ADDRESS_SIZE
            ),
            flag(10, "mem_reg", "memory or register operand", {0: "memory", 1: "register"}),
            BitRange(14, 11, "undefined", "undefined"),
            BitRange(
                17, 15, "segment", "segment register; undefined for register operand", SEGMENT
            ),
            BitRange(21, 18, "index_reg", "index register; undefined if bit 22", GPR),
            flag(
                22,
                "index_invalid",
                "index register",
                {0: "has an index register", 1: "no index register"},
            ),
            BitRange(26, 23, "base_reg", "base register; undefined if bit 27", GPR),
            flag(
                27,
                "base_invalid",
                "base register",
                {0: "has a base register", 1: "no base register"},
            ),
            BitRange(31, 28, "reg2", "register that holds the field encoding", GPR),
        ),
        "Instruction information for VMREAD and VMWRITE",
        "SDM table 30-15 (27-14 in 2016)",
        when="the instruction is VMREAD or VMWRITE",
    ),
    Layout(
        "loadiwkey",
        32,
        (
            BitRange(2, 0, "undefined", "undefined"),
            BitRange(6, 3, "reg1", "first XMM operand 0-15"),
            BitRange(27, 7, "undefined", "undefined"),
            BitRange(31, 28, "reg2", "second XMM operand 0-15"),
        ),
        "Instruction information for LOADIWKEY",
        "SDM table 30-16",
        when="the instruction is LOADIWKEY",
        notes=("translation prints 30:7 for the gap, 27:7 intended",),
    ),
    Layout(
        "msr_imm",
        32,
        (
            BitRange(2, 0, "undefined", "undefined"),
            BitRange(6, 3, "reg", "source or destination register", GPR),
            BitRange(31, 7, "undefined", "undefined"),
        ),
        "Instruction information for MSR accesses with an explicit address",
        "Linux and Xen patches",
        when="the instruction is URDMSR, UWRMSR, RDMSR immediate or WRMSRNS immediate",
        notes=("not in SDM 092 tables",),
    ),
)

#: Layouts of the fields that identify an event, by the name of the field.
EVENT_INFORMATION: dict[str, Layout] = table(
    Layout(
        "vm_exit_interruption_information",
        32,
        (
            BitRange(7, 0, "vector", "vector"),
            BitRange(10, 8, "type", "type of the event", EXITING_EVENT_TYPE),
            flag(
                11,
                "error_code_valid",
                "1 if the exception pushes an error code (never in real mode)",
            ),
            flag(12, "nmi_unblocking", "NMI unblocking due to IRET; undefined for #DF"),
            flag(
                13,
                "nested_exception",
                "hardware exception met during FRED event delivery (not #DF)",
            ),
            BitRange(30, 14, "zero", "always 0"),
            flag(31, "valid", "whether the word is valid", {0: "not valid", 1: "valid"}),
        ),
        "VM-exit interruption information (exiting-event identification)",
        'SDM, "Information for VM Exits Due to Vectored Events"',
        when="reason 0; reason 1 with acknowledge interrupt on exit",
        notes=(
            (
                "INT1-generated #DB is type 5 from about the 2018 editions on; the 2016 text knows "
                "only 0, 2, 3, 6 for exits"
            ),
            (
                "defined only if (NMI exiting=0 or virtual NMIs=1), IDT-vectoring valid bit is 0 "
                "and the event is not #DF; then 1 iff a fault (or EPT violation / PML full / SPP / "
                "timeout, reported in qualification bit 12 instead) hit IRET while NMI (or "
                "virtual-NMI) blocking was on"
            ),
        ),
    ),
    Layout(
        "idt_vectoring_information",
        32,
        (
            BitRange(7, 0, "vector", "vector"),
            BitRange(10, 8, "type", "type of the event", ORIGINAL_EVENT_TYPE),
            flag(11, "error_code_valid", "error code present"),
            flag(12, "undefined", "undefined"),
            flag(13, "nested_exception", "hardware exception met during FRED event delivery"),
            BitRange(30, 14, "zero", "always 0"),
            flag(31, "valid", "whether the word is valid", {0: "not valid", 1: "valid"}),
        ),
        "IDT-vectoring information (original-event identification)",
        'SDM, "Information for VM Exits During Event Delivery"',
        when=(
            "exit happened while delivering an event (nested exception exit, task gate, APIC "
            "access, EPT violation/misconfiguration, PML full, SPP), including events injected by "
            "VM entry"
        ),
        notes=(
            (
                "092 lists 7 as not used in the table yet describes SYSCALL/SYSENTER recording "
                "with FRED; treat 7 as other event"
            ),
            "not valid when the original event itself caused the exit directly",
            "not valid when the original event led to #DF that itself exited",
            "not valid when the exit came from fetching the first handler instruction",
            "not valid when triple fault",
            (
                "not valid when software interrupt in v86 with IOPL<3 whose #GP exits (CR4.VME=0 "
                "or redirection bit set)"
            ),
        ),
    ),
    Layout(
        "vm_entry_interruption_information",
        32,
        (
            BitRange(7, 0, "vector", "vector"),
            BitRange(10, 8, "type", "type of the event", INJECTED_EVENT_TYPE),
            flag(11, "deliver_error_code", "push the error-code field"),
            flag(12, "reserved", "must be 0"),
            flag(13, "nested_exception", "only if IA32_VMX_BASIC[58]"),
            BitRange(30, 14, "reserved", "must be 0"),
            flag(
                31,
                "valid",
                "whether VM entry injects an event",
                {0: "nothing to inject", 1: "inject"},
            ),
        ),
        "VM-entry interruption information (injected-event identification)",
        'SDM, "VM-Entry Controls for Event Injection"',
        notes=(
            "vectors of type 7: 0 pending MTF VM exit; with FRED 1 SYSCALL, 2 SYSENTER",
            "valid bit cleared by every VM exit (not by VM-entry failures)",
        ),
    ),
)

#: Layouts of the non-register state in the guest area.
GUEST_NON_REGISTER_STATE: dict[str, Layout] = table(
    Layout(
        "interruptibility_state",
        32,
        (
            flag(0, "blocking_by_sti", "STI blocking"),
            flag(1, "blocking_by_mov_ss", "MOV SS / POP SS blocking"),
            flag(2, "blocking_by_smi", "SMI blocking (SMM)"),
            flag(
                3, "blocking_by_nmi", "NMI blocking, or virtual-NMI blocking if virtual NMIs is 1"
            ),
            flag(4, "enclave_interruption", "exit was incident to enclave mode"),
            BitRange(31, 5, "reserved", "must be 0"),
        ),
        "Guest interruptibility state",
        'SDM, "Guest Non-Register State"',
    ),
    Layout(
        "activity_state",
        32,
        (BitRange(31, 0, "state", "activity state", ACTIVITY_STATE),),
        "Guest activity state",
        'SDM, "Guest Non-Register State"',
        notes=(
            "states 1-3 supported as IA32_VMX_MISC[8:6]",
            "active and HLT block SIPIs",
            "shutdown blocks external interrupts and SIPIs, and MTF and window exits",
            "wait-for-SIPI blocks external interrupts, NMI, INIT, SMI, MTF, timer and window exits",
        ),
    ),
    Layout(
        "pending_debug_exceptions",
        64,
        (
            BitRange(3, 0, "b3_b0", "breakpoint condition met"),
            BitRange(10, 4, "reserved", "must be 0"),
            flag(11, "bld", "bus lock asserted under OS bus-lock detection"),
            flag(
                12,
                "enabled_breakpoint",
                "some enabled data/I/O breakpoint met, or XBEGIN with RTM debugging, or bus lock",
            ),
            flag(13, "reserved", "must be 0"),
            flag(14, "bs", "single-step trap pending"),
            flag(15, "reserved", "must be 0"),
            flag(16, "rtm", "RTM region"),
            BitRange(63, 17, "reserved", "must be 0"),
        ),
        "Guest pending debug exceptions",
        'SDM, "Guest Non-Register State"',
        notes=(
            "bit 11 newer (2016: reserved 11:4); Bochs follows",
            (
                "saved nonzero only for INIT, machine check, SMI, reasons 43, 45, 56, 37, 74, "
                "TAPT/PEBS exits, and exits (other than debug exceptions) with MOV-SS blocking of "
                "debug exceptions"
            ),
        ),
    ),
    Layout(
        "guest_interrupt_status",
        16,
        (
            BitRange(7, 0, "rvi", "requesting virtual interrupt"),
            BitRange(15, 8, "svi", "servicing virtual interrupt"),
        ),
        "Guest interrupt status",
        'SDM, "Guest Non-Register State"',
    ),
)

#: Layouts of other fields of the VMCS, by the key in `FieldInfo.layout`.
FIELD_LAYOUTS: dict[str, Layout] = table(
    Layout(
        "exit_reason",
        32,
        (
            BitRange(15, 0, "basic_exit_reason", "basic exit reason"),
            flag(16, "zero", "always cleared"),
            BitRange(24, 17, "undefined", "cleared"),
            flag(
                25,
                "prematurely_busy_shadow_stack",
                (
                    "exit left a shadow stack prematurely busy; only if "
                    "exit2.prematurely_busy_shadow_stack"
                ),
            ),
            flag(
                26,
                "bus_lock_asserted",
                "exit happened after a bus lock with VMM bus-lock detection",
            ),
            flag(27, "enclave_mode", "exit incident to enclave mode"),
            flag(28, "pending_mtf", "SMM VM exits only: a pending MTF exit was preempted"),
            flag(29, "exit_from_vmx_root", "SMM VM exits only"),
            flag(30, "undefined", "cleared"),
            flag(31, "vm_entry_failure", "1 for VM-entry failures (33, 34, 41)"),
        ),
        "Exit reason",
        'SDM, "Basic VM-Exit Information"',
    ),
    Layout(
        "access_rights",
        32,
        (
            BitRange(3, 0, "type", "segment type"),
            flag(4, "s", "descriptor type", {0: "system segment", 1: "code or data segment"}),
            BitRange(6, 5, "dpl", "descriptor privilege level"),
            flag(7, "present", "segment present"),
            BitRange(11, 8, "reserved", "must be 0"),
            flag(12, "available", "available for use by system software"),
            flag(13, "long", "64-bit mode active (CS only, otherwise reserved)"),
            flag(
                14,
                "default_big",
                "default operation size",
                {0: "16-bit segment", 1: "32-bit segment"},
            ),
            flag(15, "granularity", "unit of the limit", {0: "bytes", 1: "4-KByte units"}),
            flag(16, "unusable", "segment is unusable"),
            BitRange(31, 17, "reserved", "must be 0"),
        ),
        "Segment access rights",
        'SDM, "Guest Register State"',
    ),
    Layout(
        "eptp",
        64,
        (
            BitRange(
                2, 0, "memory_type", "memory type for the EPT paging structures", {0: "UC", 6: "WB"}
            ),
            BitRange(
                5,
                3,
                "walk_length",
                "page-walk length minus 1",
                {3: "4-level EPT", 4: "5-level EPT"},
            ),
            flag(6, "accessed_dirty", "enables accessed and dirty flags for EPT"),
            flag(
                7,
                "supervisor_shadow_stack",
                "enforces access rights of supervisor shadow-stack pages",
            ),
            BitRange(11, 8, "reserved", "must be 0"),
            BitRange(51, 12, "address", "root table; bits at or above MAXPHYADDR must be 0"),
            BitRange(63, 52, "reserved", "must be 0"),
        ),
        "Extended-page-table pointer (EPTP)",
        'SDM, "Extended-Page-Table Pointer (EPTP)"',
    ),
    Layout(
        "hlatp",
        64,
        (
            BitRange(2, 0, "reserved", "must be 0"),
            flag(3, "pwt", "page-level write-through"),
            flag(4, "pcd", "page-level cache disable"),
            BitRange(11, 5, "reserved", "must be 0"),
            BitRange(
                63,
                12,
                "address",
                (
                    "guest-physical address of the first HLAT paging structure; bits at or above "
                    "MAXPHYADDR must be 0"
                ),
            ),
        ),
        "Hypervisor-managed linear-address translation pointer (HLATP)",
        'SDM, "VM-Execution Control Fields"',
    ),
    Layout(
        "spptp",
        64,
        (
            BitRange(11, 0, "reserved", "must be 0"),
            BitRange(63, 12, "address", "root SPP table; bits at or above MAXPHYADDR must be 0"),
        ),
        "Sub-page-permission-table pointer (SPPTP)",
        'SDM, "VM-Execution Control Fields"',
    ),
)

_VECTOR_LAYOUTS: Final = {1: "debug_exception", 14: "page_fault"}


def qualification_layout(
    reason: ExitReason, vector: int | None = None, *, nmi: bool = False
) -> Layout | None:
    """Return the layout of the exit qualification for an exit.

    Parameters
    ----------
    reason : ExitReason
        Basic exit reason.
    vector : int, optional
        For `ExitReason.EXCEPTION_OR_NMI`, the vector of the event, which decides the layout.
    nmi : bool
        For `ExitReason.EXCEPTION_OR_NMI`, that the event is an NMI.

    Returns
    -------
    Layout or None
        None where the exit clears the field. Without a vector, the layout of an exception is
        ``"by_vector"``.
    """
    key = EXITS[reason].qualification
    if key == "by_vector":
        if nmi:
            key = "nmi_source"
        elif vector is not None:
            key = _VECTOR_LAYOUTS.get(vector)
    return None if key is None else QUALIFICATIONS[key]


def field_layout(key: str) -> Layout:
    """Return the layout that `FieldInfo.layout` names.

    Raises
    ------
    KeyError
        No table has this layout.
    """
    for layouts in (EVENT_INFORMATION, GUEST_NON_REGISTER_STATE, FIELD_LAYOUTS):
        if key in layouts:
            return layouts[key]
    raise KeyError(key)
