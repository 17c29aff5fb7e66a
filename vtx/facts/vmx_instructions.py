"""The VMX instructions: their conditions in order, and what each leads to.

The first condition that is true decides; if none is, the instruction succeeds.

Source: SDM, "VMX Instruction Reference" and "VM Functions"; "Conventions" for the outcomes.
"""

from typing import Final, NamedTuple

__all__ = ["OUTCOMES", "VMX_INSTRUCTIONS", "Condition", "VmxInstruction"]

#: What the words for an outcome mean.
OUTCOMES: Final = {
    "VMsucceed": "CF, PF, AF, ZF, SF and OF are cleared",
    "VMfailInvalid": "CF is set; PF, AF, ZF, SF and OF are cleared",
    "VMfailValid": "ZF is set; CF, PF, AF, SF and OF are cleared; vm_instruction_error holds the "
    "number",
    "VMfail": "VMfailValid if there is a current VMCS, otherwise VMfailInvalid",
}


class Condition(NamedTuple):
    """One step of an instruction.

    Attributes
    ----------
    when : str
        The condition.
    outcome : str
        What follows if it is true.
    note : str
        What else is worth knowing; may be empty.
    """

    when: str
    outcome: str
    note: str = ""


class VmxInstruction(NamedTuple):
    """One instruction.

    Attributes
    ----------
    name, opcode, operands : str
        As the manual gives them.
    reason : int or None
        Basic exit reason in non-root operation.
    conditions : tuple of Condition
        In order.
    success : tuple of str
        What happens if no condition is true.
    note : str
        What else is worth knowing; may be empty.
    """

    name: str
    opcode: str
    operands: str
    reason: int | None
    conditions: tuple[Condition, ...]
    success: tuple[str, ...]
    note: str = ""


#: The thirteen instructions by name.
VMX_INSTRUCTIONS: Final[dict[str, VmxInstruction]] = {
    row.name: row
    for row in (
        VmxInstruction(
            name="VMXON",
            opcode="F3 0F C7 /6 (memory form)",
            operands="m64 holding the VMXON pointer",
            reason=27,
            conditions=(
                Condition("operand is a register (that encoding is SENDUIPI/RDRAND space)", "#UD"),
                Condition("CR0.PE=0, CR4.VMXE=0, RFLAGS.VM=1, or compatibility mode", "#UD"),
                Condition("in VMX non-root operation", "VM exit(27)"),
                Condition("in VMX root operation and CPL > 0", "#GP(0)"),
                Condition("in VMX root operation", "VMfail(15)", "operand is not read"),
                Condition("CPL > 0", "#GP(0)", "outside VMX operation from here on"),
                Condition("A20M mode", "#GP(0)"),
                Condition(
                    "CR0 or CR4 violates IA32_VMX_CR0/CR4_FIXED0/1",
                    "#GP(0)",
                    (
                        "unrestricted-guest waiver of PE/PG does not apply; Bochs tests "
                        "only PE and NE"
                    ),
                ),
                Condition("IA32_FEATURE_CONTROL[0]=0", "#GP(0)"),
                Condition("in SMX operation and IA32_FEATURE_CONTROL[1]=0", "#GP(0)"),
                Condition("outside SMX operation and IA32_FEATURE_CONTROL[2]=0", "#GP(0)"),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition("pointer not 4-KByte aligned", "VMfailInvalid"),
                Condition(
                    ("pointer sets bits beyond MAXPHYADDR (or bits 63:32 if IA32_VMX_BASIC[48])"),
                    "VMfailInvalid",
                ),
                Condition(
                    (
                        "memory[pointer][30:0] differs from the VMCS revision identifier, "
                        "or bit 31 is 1"
                    ),
                    "VMfailInvalid",
                ),
            ),
            success=(
                "enter VMX root operation",
                "current-VMCS pointer := FFFFFFFF_FFFFFFFFH",
                "block INIT, block and disable A20M",
                "clear address-range monitoring",
                "IA32_RTIT_CTL.TraceEn := 0 if PT is not allowed in VMX operation",
                "VMsucceed",
            ),
            note=(
                "order of the #GP(0) conditions among themselves is not specified "
                "and not observable. CR4.VMXE cannot be cleared afterwards "
                "(#GP(0))."
            ),
        ),
        VmxInstruction(
            name="VMXOFF",
            opcode="0F 01 C4",
            operands="none",
            reason=26,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(26)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("in SEAM root operation", "#GP(0)"),
                Condition("dual-monitor treatment of SMIs and SMM is active", "VMfail(23)"),
            ),
            success=(
                "leave VMX operation",
                "unblock INIT",
                "unblock SMIs if IA32_SMM_MONITOR_CTL[2]=0",
                "outside SMX: unblock and enable A20M",
                "clear address-range monitoring",
                "VMsucceed (CF=ZF=0)",
            ),
            note=(
                "SEAM condition only in recent editions. Active VMCSs may be lost "
                "if not VMCLEARed first."
            ),
        ),
        VmxInstruction(
            name="VMCLEAR",
            opcode="66 0F C7 /6 (memory form)",
            operands="m64 holding a VMCS address",
            reason=19,
            conditions=(
                Condition("operand is a register", "#UD"),
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(19)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition(
                    "address not 4-KByte aligned or beyond the physical-address width", "VMfail(2)"
                ),
                Condition("address equals the VMXON pointer", "VMfail(3)"),
            ),
            success=(
                "write the VMCS data of that region to memory",
                "initialize implementation-specific data, launch state := clear",
                "VMCS becomes inactive",
                "if it was current: current-VMCS pointer := FFFFFFFF_FFFFFFFFH",
                "VMsucceed",
            ),
            note=(
                "revision identifier and shadow indicator are not checked. On "
                "success with the current VMCS cleared the flags still report "
                "success."
            ),
        ),
        VmxInstruction(
            name="VMPTRLD",
            opcode="NP 0F C7 /6 (memory form)",
            operands="m64 holding a VMCS address",
            reason=21,
            conditions=(
                Condition("operand is a register", "#UD"),
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(21)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition(
                    "address not 4-KByte aligned or beyond the physical-address width", "VMfail(9)"
                ),
                Condition("address equals the VMXON pointer", "VMfail(10)"),
                Condition(
                    "memory[address][30:0] differs from the revision identifier", "VMfail(11)"
                ),
                Condition(
                    "memory[address] bit 31 is 1 and VMCS shadowing is not supported", "VMfail(11)"
                ),
            ),
            success=(
                ("current-VMCS pointer := address; that VMCS becomes active and current"),
                "VMsucceed",
            ),
            note=(
                "a shadow VMCS may be made current (for VMREAD/VMWRITE in root) but "
                "not entered. On failure the old current VMCS stays."
            ),
        ),
        VmxInstruction(
            name="VMPTRST",
            opcode="NP 0F C7 /7 (memory form)",
            operands="m64 destination",
            reason=22,
            conditions=(
                Condition("operand is a register", "#UD"),
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(22)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("fault while writing the memory operand", "#GP(0) / #SS(0) / #PF / #AC"),
            ),
            success=("memory := current-VMCS pointer (all ones if none)", "VMsucceed"),
        ),
        VmxInstruction(
            name="VMREAD",
            opcode="NP 0F 78 /r",
            operands=("r/m64 destination, r64 field encoding (32-bit outside 64-bit mode)"),
            reason=23,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("non-root and VMCS shadowing is 0", "VM exit(23)"),
                Condition(
                    (
                        "non-root and encoding operand bits 63:15 (31:15 outside 64-bit "
                        "mode) not all 0"
                    ),
                    "VM exit(23)",
                ),
                Condition(
                    "non-root and VMREAD-bitmap bit (encoding bits 14:0) is 1", "VM exit(23)"
                ),
                Condition("CPL > 0", "#GP(0)"),
                Condition(
                    (
                        "root and no current VMCS, or non-root and VMCS link pointer is "
                        "FFFFFFFF_FFFFFFFFH"
                    ),
                    "VMfailInvalid",
                ),
                Condition("encoding names no supported field", "VMfailValid(12)"),
                Condition("fault while writing the memory operand", "#GP(0) / #SS(0) / #PF / #AC"),
            ),
            success=(
                (
                    "destination := field value, zero-extended (64-bit operand in "
                    "64-bit mode, else 32-bit); root reads the current VMCS, non-root "
                    "the link-pointer VMCS"
                ),
                "VMsucceed",
            ),
            note=(
                "faults on a memory destination come only after the pointer and "
                "field checks; register destinations of 32-bit form zero bits "
                "63:32. In root any VMCS type is accepted."
            ),
        ),
        VmxInstruction(
            name="VMWRITE",
            opcode="NP 0F 79 /r",
            operands="r64 field encoding, r/m64 source",
            reason=25,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("non-root and VMCS shadowing is 0", "VM exit(25)"),
                Condition(
                    (
                        "non-root and encoding operand bits 63:15 (31:15 outside 64-bit "
                        "mode) not all 0"
                    ),
                    "VM exit(25)",
                ),
                Condition(
                    "non-root and VMWRITE-bitmap bit (encoding bits 14:0) is 1", "VM exit(25)"
                ),
                Condition("CPL > 0", "#GP(0)"),
                Condition(
                    (
                        "root and no current VMCS, or non-root and VMCS link pointer is "
                        "FFFFFFFF_FFFFFFFFH"
                    ),
                    "VMfailInvalid",
                ),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition("encoding names no supported field", "VMfailValid(12)"),
                Condition(
                    "field is a VM-exit information field and IA32_VMX_MISC[29]=0",
                    "VMfailValid(13)",
                ),
            ),
            success=(
                (
                    "field := source (truncated to the field width; upper field bits "
                    "zeroed if the operand is shorter, except high-access writes)"
                ),
                "VMsucceed",
            ),
            note=(
                "memory-source faults come after the pointer check but before the "
                "field checks (opposite to VMREAD). Some CPUs ignore reserved "
                "access-rights bits 11:8 and 31:17 on write."
            ),
        ),
        VmxInstruction(
            name="VMLAUNCH",
            opcode="0F 01 C2",
            operands="none",
            reason=20,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(20)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("no current VMCS", "VMfailInvalid"),
                Condition(
                    "current VMCS is a shadow VMCS", "VMfailInvalid", "Bochs has no explicit test"
                ),
                Condition("events blocked by MOV SS", "VMfailValid(26)"),
                Condition("launch state is not clear", "VMfailValid(4)"),
                Condition("VMX-control checks fail", "VMfailValid(7)"),
                Condition(
                    "host-state or address-space-size checks fail",
                    "VMfailValid(8)",
                    "7 and 8 may be tested in any order",
                ),
                Condition(
                    (
                        "in SMM with entry_to_smm 0: executive-VMCS pointer invalid / "
                        "executive VMCS not launched / not the VMXON pointer on "
                        "deactivation / bad controls in executive VMCS"
                    ),
                    "VMfailValid(16 / 17 / 18 / 25)",
                    "dual-monitor treatment only",
                ),
                Condition(
                    "guest-state check fails (including PDPTEs and VMCS link pointer)",
                    "VM-entry failure(33)",
                ),
                Condition("an entry of the VM-entry MSR-load area fails", "VM-entry failure(34)"),
                Condition(
                    "machine check during VM entry",
                    "VM-entry failure(41)",
                    "one of three allowed behaviours",
                ),
            ),
            success=(
                "guest state, non-register state and MSRs loaded",
                "launch state := launched",
                "address-range monitoring cleared",
                "flush VPID 0000H mappings if enable_vpid is 0",
                "event injection if the valid bit is set",
                "execution continues in VMX non-root operation",
            ),
            note=(
                'the order in "Basic VM-Entry Checks" is MOV-SS blocking (26) '
                "before the launch-state test (4/5). VMfail leaves RIP at the next "
                "instruction, single-step trap possible; guest-state failures load "
                "host state instead."
            ),
        ),
        VmxInstruction(
            name="VMRESUME",
            opcode="0F 01 C3",
            operands="none",
            reason=24,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(24)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("no current VMCS", "VMfailInvalid"),
                Condition(
                    "current VMCS is a shadow VMCS", "VMfailInvalid", "Bochs has no explicit test"
                ),
                Condition("events blocked by MOV SS", "VMfailValid(26)"),
                Condition("launch state is not launched", "VMfailValid(5)"),
                Condition(
                    ("VMXOFF and VMXON occurred since VMLAUNCH (implementation may detect)"),
                    "VMfailValid(6)",
                    "optional",
                ),
                Condition("VMX-control checks fail", "VMfailValid(7)"),
                Condition(
                    "host-state or address-space-size checks fail",
                    "VMfailValid(8)",
                    "7 and 8 may be tested in any order",
                ),
                Condition(
                    (
                        "in SMM with entry_to_smm 0: executive-VMCS pointer invalid / "
                        "executive VMCS not launched / not the VMXON pointer on "
                        "deactivation / bad controls in executive VMCS"
                    ),
                    "VMfailValid(16 / 17 / 18 / 25)",
                    "dual-monitor treatment only",
                ),
                Condition(
                    "guest-state check fails (including PDPTEs and VMCS link pointer)",
                    "VM-entry failure(33)",
                ),
                Condition("an entry of the VM-entry MSR-load area fails", "VM-entry failure(34)"),
                Condition(
                    "machine check during VM entry",
                    "VM-entry failure(41)",
                    "one of three allowed behaviours",
                ),
            ),
            success=(
                "guest state, non-register state and MSRs loaded",
                "launch state unchanged",
                "address-range monitoring cleared",
                "flush VPID 0000H mappings if enable_vpid is 0",
                "event injection if the valid bit is set",
                "execution continues in VMX non-root operation",
            ),
        ),
        VmxInstruction(
            name="VMCALL",
            opcode="0F 01 C1",
            operands="none",
            reason=18,
            conditions=(
                Condition("not in VMX operation", "#UD"),
                Condition(
                    "VMX non-root operation",
                    "VM exit(18)",
                    (
                        "before any mode or CPL check: works in real, v86 and compatibility "
                        "mode at any CPL"
                    ),
                ),
                Condition("RFLAGS.VM=1, or compatibility mode", "#UD"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("in SEAM root operation", "#GP(0)", "recent editions"),
                Condition(
                    ("in SMM, dual-monitor unsupported, or IA32_SMM_MONITOR_CTL valid bit clear"),
                    "VMfail(1)",
                ),
                Condition("dual-monitor treatment active", "SMM VM exit(18)"),
                Condition("no current VMCS", "VMfailInvalid"),
                Condition("launch state of the current VMCS is not clear", "VMfailValid(19)"),
                Condition("VM-exit control fields invalid", "VMfailValid(20)"),
                Condition("MSEG revision identifier mismatch", "VMfailValid(22)"),
                Condition("SMM-monitor features field invalid", "VMfailValid(24)"),
            ),
            success=("activates the dual-monitor treatment (SMM)",),
            note=("without dual-monitor support root VMCALL always ends in VMfail(1)."),
        ),
        VmxInstruction(
            name="VMFUNC",
            opcode="NP 0F 01 D4",
            operands="EAX function, ECX argument",
            reason=59,
            conditions=(
                Condition("not in VMX non-root operation", "#UD"),
                Condition("enable_vm_functions is 0 (or secondary controls not active)", "#UD"),
                Condition("EAX > 63", "#UD"),
                Condition("VM-function control bit EAX is 0", "VM exit(59)"),
                Condition("EAX=0: PT uses guest physical addresses and TraceEn=1", "VM exit(59)"),
                Condition("EAX=0: ECX >= 512", "VM exit(59)"),
                Condition(
                    (
                        "EAX=0: EPTP list entry would fail VM entry, or its bits 5:3 differ "
                        "from the current EPTP"
                    ),
                    "VM exit(59)",
                ),
            ),
            success=(
                (
                    "EAX=0: EPTP := list entry; EPTP index := ECX[15:0] if #VE is "
                    "supported; no register or flag changes; VPID 0000H combined "
                    "mappings invalidated if enable_vpid is 0"
                ),
            ),
            note="no CPL check, valid in every mode. PAE PDPTEs are not reloaded.",
        ),
        VmxInstruction(
            name="INVEPT",
            opcode="66 0F 38 80 /r (memory form)",
            operands="r64 type, m128 descriptor (63:0 EPTP, 127:64 must be 0)",
            reason=50,
            conditions=(
                Condition("operand is a register", "#UD"),
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("IA32_VMX_PROCBASED_CTLS2[33]=0 (no EPT) or IA32_VMX_EPT_VPID_CAP[20]=0"),
                    "#UD",
                ),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(50)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition(
                    "type not 1 or 2, or its IA32_VMX_EPT_VPID_CAP bit (25 / 26) is 0", "VMfail(28)"
                ),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition(
                    "type 1 and the EPTP in the descriptor would fail VM entry", "VMfail(28)"
                ),
            ),
            success=(
                (
                    "type 1: invalidate guest-physical and combined mappings of "
                    "EPTP[51:12]; type 2: of all EPTPs (all VPIDs, PCIDs)"
                ),
                "VMsucceed",
            ),
            note=(
                "descriptor bits 127:64 are drawn as must-be-zero but neither the "
                "SDM pseudo-code, Bochs nor KVM tests them. SDM and KVM check the "
                "type before reading the descriptor; Bochs reads memory first. "
                "Register operand 32-bit outside 64-bit mode; full 64-bit value "
                "compared."
            ),
        ),
        VmxInstruction(
            name="INVVPID",
            opcode="66 0F 38 81 /r (memory form)",
            operands=(
                "r64 type, m128 descriptor (15:0 VPID, 63:16 must be 0, 127:64 linear address)"
            ),
            reason=53,
            conditions=(
                Condition("operand is a register", "#UD"),
                Condition("not in VMX operation", "#UD"),
                Condition(
                    ("IA32_VMX_PROCBASED_CTLS2[37]=0 (no VPID) or IA32_VMX_EPT_VPID_CAP[32]=0"),
                    "#UD",
                ),
                Condition(
                    ("CR0.PE=0, RFLAGS.VM=1, or compatibility mode (EFER.LMA=1 and CS.L=0)"), "#UD"
                ),
                Condition("VMX non-root operation", "VM exit(53)"),
                Condition("CPL > 0", "#GP(0)"),
                Condition("type > 3, or its IA32_VMX_EPT_VPID_CAP bit (40-43) is 0", "VMfail(28)"),
                Condition(
                    (
                        "fault while reading the memory operand (segment limit/usability, "
                        "non-canonical, page fault, alignment)"
                    ),
                    "#GP(0) / #SS(0) / #PF / #AC",
                ),
                Condition("descriptor bits 63:16 nonzero", "VMfail(28)", "checked for every type"),
                Condition("type 0, 1 or 3 and VPID = 0", "VMfail(28)"),
                Condition("type 0 and linear address not canonical", "VMfail(28)"),
            ),
            success=(
                (
                    "type 0: mappings of the linear address in the VPID; 1: all of the "
                    "VPID; 2: all VPIDs except 0; 3: all of the VPID except globals; "
                    "linear and combined mappings, all PCIDs, all EPTRTAs"
                ),
                "VMsucceed",
            ),
            note="type check precedes the memory read (as INVEPT)",
        ),
    )
}
