"""What may leave VMX non-root operation: instructions and events, what decides, and priorities.

Four lists of the manual: instructions that exit unconditionally, those that exit when controls say
so, those that behave otherwise in non-root operation without exiting, and events. The rules
themselves are functions (:mod:`vtx.rules.exiting`); this is what they say, for a reader.

Sources: SDM, "Instructions That Cause VM Exits", "Other Causes of VM Exits", "Changes to
Instruction Behavior in VMX Non-Root Operation", "Relative Priority of Faults and VM Exits".
"""

from typing import Final, NamedTuple

__all__ = ["BOUNDARY_PRIORITY", "CHANGED", "CONDITIONAL", "EVENTS", "UNCONDITIONAL", "Exiting"]


class Exiting(NamedTuple):
    """One instruction or event.

    Attributes
    ----------
    name : str
        Key of the row.
    instructions : tuple of str
        Mnemonics; empty for an event.
    exits_if : str
        When it exits; for an instruction that only behaves otherwise, what it does instead.
    controls : tuple of str
        Controls (``group.name``) and fields that decide.
    reason : int or None
        Basic exit reason.
    faults : tuple of str
        Faults that come before the exit.
    beats : tuple of str
        What the exit comes before.
    otherwise : str
        What happens without an exit, where non-root operation changes that.
    rules : tuple of str
        Rules that go beyond the rest of the row, and what the manual leaves open.
    priority : str
        Of an event: its place among the others.
    blocked_in : tuple of str
        Of an event: activity states in which it neither exits nor is delivered.
    """

    name: str
    instructions: tuple[str, ...] = ()
    exits_if: str = ""
    controls: tuple[str, ...] = ()
    reason: int | None = None
    faults: tuple[str, ...] = ()
    beats: tuple[str, ...] = ()
    otherwise: str = ""
    rules: tuple[str, ...] = ()
    priority: str = ""
    blocked_in: tuple[str, ...] = ()


def _rows(*rows: Exiting) -> dict[str, Exiting]:
    return {row.name: row for row in rows}


#: Instructions that exit always, unless a fault comes first.
UNCONDITIONAL: Final[dict[str, Exiting]] = _rows(
    Exiting(
        name="cpuid",
        instructions=("CPUID",),
        exits_if="always",
        reason=10,
        faults=("#UD for LOCK",),
    ),
    Exiting(
        name="getsec",
        instructions=("GETSEC",),
        exits_if="always",
        reason=11,
        faults=("#UD if CR4.SMXE=0",),
        rules=("exits at any CPL and in any mode; other GETSEC faults come after",),
    ),
    Exiting(
        name="invd",
        instructions=("INVD",),
        exits_if="always",
        reason=13,
        faults=("#GP(0) if CPL > 0",),
    ),
    Exiting(
        name="xsetbv",
        instructions=("XSETBV",),
        exits_if="always",
        reason=55,
        faults=("#UD if CR4.OSXSAVE=0 or unsupported",),
        rules=(
            (
                'the general rule ("Relative Priority of Faults and VM Exits") '
                "would put #GP(0) for CPL > 0 before the exit; Bochs exits before "
                "its CPL test and KVM/Xen handlers re-check CPL, so treat the CPL "
                "order as implementation-specific"
            ),
        ),
    ),
    Exiting(
        name="invept",
        instructions=("INVEPT",),
        exits_if="always",
        reason=50,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="invvpid",
        instructions=("INVVPID",),
        exits_if="always",
        reason=53,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmclear",
        instructions=("VMCLEAR",),
        exits_if="always",
        reason=19,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmlaunch",
        instructions=("VMLAUNCH",),
        exits_if="always",
        reason=20,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmptrld",
        instructions=("VMPTRLD",),
        exits_if="always",
        reason=21,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmptrst",
        instructions=("VMPTRST",),
        exits_if="always",
        reason=22,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmresume",
        instructions=("VMRESUME",),
        exits_if="always",
        reason=24,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmxoff",
        instructions=("VMXOFF",),
        exits_if="always",
        reason=26,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmxon",
        instructions=("VMXON",),
        exits_if="always",
        reason=27,
        faults=(
            (
                "#UD in real mode, v86 or compatibility mode (and for register "
                "forms / missing feature)"
            ),
        ),
        beats=("#GP(0) for CPL > 0", "all operand faults"),
    ),
    Exiting(
        name="vmcall",
        instructions=("VMCALL",),
        exits_if="always",
        reason=18,
        faults=("#UD for LOCK",),
        beats=("mode and CPL checks",),
        rules=("exits from every mode and CPL",),
    ),
    Exiting(
        name="seamcall",
        instructions=("SEAMCALL",),
        exits_if="always",
        reason=76,
        faults=("#UD if unsupported or mode checks fail",),
        rules=("CPL order not confirmed here",),
    ),
    Exiting(
        name="tdcall",
        instructions=("TDCALL",),
        exits_if="always",
        reason=77,
        faults=("#UD if unsupported or mode checks fail", "#GP(0) for CPL > 0"),
    ),
)

#: Instructions that exit when controls say so.
CONDITIONAL: Final[dict[str, Exiting]] = _rows(
    Exiting(
        name="clts",
        instructions=("CLTS",),
        exits_if="mask bit 3 and shadow bit 3 are both 1",
        controls=("cr0_guest_host_mask", "cr0_read_shadow"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        otherwise=(
            "mask bit 3 = 0: clears CR0.TS (#GP(0) if TS is fixed to 1); mask "
            "bit 3 = 1, shadow bit 3 = 0: completes without changing CR0.TS"
        ),
    ),
    Exiting(
        name="lmsw",
        instructions=("LMSW",),
        exits_if=(
            "mask bit 0 and source bit 0 are 1 and shadow bit 0 is 0; or for "
            "some bit 3..1 in the mask the source differs from the shadow"
        ),
        controls=("cr0_guest_host_mask", "cr0_read_shadow"),
        reason=28,
        faults=(
            "#GP(0) if CPL > 0",
            ("faults fetching a memory operand (decision depends on its content)"),
        ),
        otherwise=(
            "loads unmasked bits of CR0[3:0], never clears PE (ignored); #GP(0) "
            "for values VMX operation does not support"
        ),
        rules=(
            "bits above 3 are never compared",
            ("qualification carries the source word; guest-linear address for memory operands"),
        ),
    ),
    Exiting(
        name="mov_to_cr0",
        instructions=("MOV CR0, r",),
        exits_if="(source xor shadow) and mask is nonzero",
        controls=("cr0_guest_host_mask", "cr0_read_shadow"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        beats=("#GP(0) for reserved or unsupported bits",),
        otherwise=(
            "masked bits keep their CR0 value; others loaded; #GP(0) for "
            "unsupported bits (PE and PG free with unrestricted_guest, but PG=1 "
            "with PE=0, or PG=1, PAE=0, LME=1, still #GP(0))"
        ),
        rules=(
            "exit compare happens before the fault checks on the value",
            "PDPTE load by the instruction may raise EPT exits",
        ),
    ),
    Exiting(
        name="mov_to_cr3",
        instructions=("MOV CR3, r",),
        exits_if=(
            "cr3_load_exiting is 1 and the full source equals none of the first "
            "cr3_target_count target values"
        ),
        controls=("proc1.cr3_load_exiting", "cr3_target_count", "cr3_target_value_0..3"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        beats=("#GP(0) for reserved bits",),
        otherwise=(
            "loads CR3 (a guest-physical address with EPT); #GP(0) for bits at "
            "or above CPUID MAXPHYADDR (not TME-reduced); PAE: loads PDPTEs "
            "through EPT"
        ),
        rules=(
            "count 0: always exits",
            ("compare uses the whole source operand, bit 63 (no-invalidate with PCIDE) included"),
            "outside 64-bit mode compare bits 31:0",
        ),
    ),
    Exiting(
        name="mov_to_cr4",
        instructions=("MOV CR4, r",),
        exits_if="(source xor shadow) and mask is nonzero",
        controls=("cr4_guest_host_mask", "cr4_read_shadow"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        beats=("#GP(0) for reserved or unsupported bits",),
        otherwise=("masked bits keep their CR4 value; #GP(0) for unsupported values of the others"),
    ),
    Exiting(
        name="mov_to_cr8",
        instructions=("MOV CR8, r",),
        exits_if="cr8_load_exiting is 1",
        controls=("proc1.cr8_load_exiting", "proc1.use_tpr_shadow"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        otherwise=(
            "use_tpr_shadow: VTPR[7:4] := source[3:0], rest of VTPR cleared, "
            "then TPR virtualization (may exit 43 trap-like); else the real TPR"
        ),
        rules=(
            "64-bit mode only",
            (
                "Bochs exits before its reserved-bit #GP(0) test; SDM gives the "
                "exit priority over non-privilege faults too"
            ),
        ),
    ),
    Exiting(
        name="mov_from_cr3",
        instructions=("MOV r, CR3",),
        exits_if="cr3_store_exiting is 1",
        controls=("proc1.cr3_store_exiting",),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
    ),
    Exiting(
        name="mov_from_cr8",
        instructions=("MOV r, CR8",),
        exits_if="cr8_store_exiting is 1",
        controls=("proc1.cr8_store_exiting", "proc1.use_tpr_shadow"),
        reason=28,
        faults=("#GP(0) if CPL > 0",),
        otherwise="use_tpr_shadow: returns VTPR[7:4], upper bits 0",
    ),
    Exiting(
        name="mov_dr",
        instructions=("MOV DRn, r", "MOV r, DRn"),
        exits_if="mov_dr_exiting is 1",
        controls=("proc1.mov_dr_exiting",),
        reason=29,
        faults=("#UD for LOCK",),
        beats=("#GP(0) for CPL > 0", "#UD for DR4/DR5 with CR4.DE=1", "#DB for DR7.GD"),
        rules=(("explicit exception to the privilege-first rule; the GD order is from Bochs"),),
    ),
    Exiting(
        name="encls",
        instructions=("ENCLS",),
        exits_if="the control is 1 and bitmap bit min(EAX, 63) is 1",
        controls=("proc2.enable_encls_exiting", "encls_exiting_bitmap"),
        reason=60,
        faults=("#UD (CPL > 0, CR0.PE=0, v86, no SGX)",),
        rules=("EAX >= 63 uses bit 63",),
    ),
    Exiting(
        name="enclv",
        instructions=("ENCLV",),
        exits_if="the control is 1 and bitmap bit min(EAX, 63) is 1",
        controls=("proc2.enable_enclv_exiting", "enclv_exiting_bitmap"),
        reason=70,
        faults=("#UD (CPL > 0, no SGX oversubscription support)",),
        rules=("withdrawn in SDM 092",),
    ),
    Exiting(
        name="enqcmd",
        instructions=("ENQCMD",),
        exits_if=(
            "the control is 1 and PASID translation meets a not-present or "
            "reserved-bit directory or table entry"
        ),
        controls=(
            "proc2.pasid_translation",
            "low_pasid_directory_address",
            "high_pasid_directory_address",
        ),
        reason=72,
        faults=(
            "#GP(0) if IA32_PASID valid bit is 0",
            "all faults and exits of loading the 64-byte source",
        ),
        beats=("faults and exits of the enqueue store",),
        otherwise="host PASID replaces the guest PASID; control 0: unmodified",
    ),
    Exiting(
        name="enqcmds",
        instructions=("ENQCMDS",),
        exits_if="as ENQCMD with the PASID from the memory operand bits 19:0",
        controls=(
            "proc2.pasid_translation",
            "low_pasid_directory_address",
            "high_pasid_directory_address",
        ),
        reason=73,
        faults=("#GP(0) if CPL > 0", "all faults and exits of loading the 64-byte source"),
        beats=("faults and exits of the enqueue store",),
        rules=(
            (
                "PASID 00000-7FFFFH use the low directory, 80000-FFFFFH the high "
                "one; directory index 18:10, table index 9:0; directory entry 8 "
                "bytes (bit 0 present, 11:1 and 63:MAXPHYADDR reserved), table "
                "entry 4 bytes (bit 31 valid, 30:20 reserved, 19:0 host PASID)"
            ),
        ),
    ),
    Exiting(
        name="hlt",
        instructions=("HLT",),
        exits_if="hlt_exiting is 1",
        controls=("proc1.hlt_exiting",),
        reason=12,
        faults=("#GP(0) if CPL > 0",),
    ),
    Exiting(
        name="in_out",
        instructions=("IN", "OUT"),
        exits_if=(
            "use_io_bitmaps 1: any accessed port bit is 1, or the access wraps "
            "past FFFFH; use_io_bitmaps 0: unconditional_io_exiting is 1"
        ),
        controls=(
            "proc1.use_io_bitmaps",
            "proc1.unconditional_io_exiting",
            "io_bitmap_a",
            "io_bitmap_b",
        ),
        reason=30,
        faults=(("#GP(0) from CPL > IOPL (or v86) and the TSS I/O-permission bitmap"),),
        rules=(
            "bitmap A ports 0000-7FFFH, B 8000-FFFFH, one bit per byte port",
            ("a 2- or 4-byte access tests every port it touches, possibly in both bitmaps"),
            "unconditional_io_exiting is ignored when bitmaps are used",
        ),
    ),
    Exiting(
        name="ins_outs",
        instructions=("INS", "OUTS"),
        exits_if="as IN/OUT",
        controls=(
            "proc1.use_io_bitmaps",
            "proc1.unconditional_io_exiting",
            "io_bitmap_a",
            "io_bitmap_b",
        ),
        reason=30,
        faults=(("#GP(0) from CPL > IOPL (or v86) and the TSS I/O-permission bitmap"),),
        beats=(
            "#GP(0) for unusable segment or limit",
            "#AC",
            "page faults / EPT events of the memory operand",
        ),
        rules=(
            (
                "REP with count 0 (RCX/ECX/CX=0) performs no iteration; exit is "
                "taken before each iteration that would run"
            ),
            "guest-linear address = segment base + rDI/rSI",
            (
                "SDM states the order for segment, limit and alignment faults; "
                "page-fault order follows from the fault-like rule"
            ),
        ),
    ),
    Exiting(
        name="invlpg",
        instructions=("INVLPG",),
        exits_if="invlpg_exiting is 1",
        controls=("proc1.invlpg_exiting",),
        reason=14,
        faults=("#GP(0) if CPL > 0",),
        rules=("operand address is reported even for unusable segments",),
    ),
    Exiting(
        name="invpcid",
        instructions=("INVPCID",),
        exits_if="both are 1",
        controls=("proc2.enable_invpcid", "proc1.invlpg_exiting"),
        reason=58,
        faults=("#UD if enable_invpcid is 0 (beats everything)", "#GP(0) if CPL > 0"),
        beats=("operand faults, type and descriptor #GP(0)",),
    ),
    Exiting(
        name="lgdt_lidt",
        instructions=("LGDT", "LIDT"),
        exits_if="the control is 1",
        controls=("proc2.descriptor_table_exiting",),
        reason=46,
        faults=("#GP(0) if CPL > 0",),
        beats=("operand faults",),
    ),
    Exiting(
        name="sgdt_sidt",
        instructions=("SGDT", "SIDT"),
        exits_if="the control is 1",
        controls=("proc2.descriptor_table_exiting",),
        reason=46,
        faults=("#GP(0) if CR4.UMIP=1 and CPL > 0",),
        beats=("operand faults",),
        rules=("UMIP order: privilege-based, so before the exit (Bochs agrees)",),
    ),
    Exiting(
        name="lldt_ltr",
        instructions=("LLDT", "LTR"),
        exits_if="the control is 1",
        controls=("proc2.descriptor_table_exiting",),
        reason=47,
        faults=("#UD in real or v86 mode", "#GP(0) if CPL > 0"),
        beats=("operand faults, descriptor checks",),
    ),
    Exiting(
        name="sldt_str",
        instructions=("SLDT", "STR"),
        exits_if="the control is 1",
        controls=("proc2.descriptor_table_exiting",),
        reason=47,
        faults=("#UD in real or v86 mode", "#GP(0) if CR4.UMIP=1 and CPL > 0"),
        beats=("operand faults",),
    ),
    Exiting(
        name="loadiwkey",
        instructions=("LOADIWKEY",),
        exits_if="the control is 1",
        controls=("proc3.loadiwkey_exiting",),
        reason=69,
        faults=("#UD (CR4.KL=0, CR0.EM, CR4.OSFXSR=0, unsupported)", "#GP(0) if CPL > 0"),
        rules=("#NM (CR0.TS) order against the exit not documented",),
    ),
    Exiting(
        name="monitor",
        instructions=("MONITOR",),
        exits_if="the control is 1",
        controls=("proc1.monitor_exiting",),
        reason=39,
        faults=("#UD if CPL > 0 or disabled by IA32_MISC_ENABLE",),
        beats=("#GP(0) for ECX hints", "operand faults"),
    ),
    Exiting(
        name="mwait",
        instructions=("MWAIT",),
        exits_if="the control is 1",
        controls=("proc1.mwait_exiting",),
        reason=36,
        faults=("#UD if CPL > 0 or disabled by IA32_MISC_ENABLE",),
        beats=("#GP(0) for ECX bits",),
        otherwise=(
            "with ECX[0]=1 and RFLAGS.IF=0: does not enter the low-power state "
            "if interrupt_window_exiting is 1 or a virtual interrupt is "
            "recognized; else normal"
        ),
    ),
    Exiting(
        name="pause",
        instructions=("PAUSE",),
        exits_if=(
            "pause_exiting 1 (any CPL); or CPL 0, pause_exiting 0, "
            "pause_loop_exiting 1 and the loop has lasted longer than "
            "PLE_Window"
        ),
        controls=("proc1.pause_exiting", "proc2.pause_loop_exiting", "ple_gap", "ple_window"),
        reason=40,
        otherwise=(
            "PLE at CPL 0: gap to the previous CPL-0 PAUSE > PLE_Gap (or first "
            "after entry) starts a new loop; otherwise loop time > PLE_Window "
            "exits; TSC-rate clock"
        ),
        rules=("CPL > 0 ignores PAUSE-loop exiting",),
    ),
    Exiting(
        name="pconfig",
        instructions=("PCONFIG",),
        exits_if="the control is 1 and bitmap bit min(EAX, 63) is 1",
        controls=("proc2.enable_pconfig", "pconfig_exiting_bitmap"),
        reason=65,
        faults=("#UD if enable_pconfig is 0 (beats everything)", "#GP(0) if CPL > 0"),
        beats=("leaf-specific #GP(0)",),
    ),
    Exiting(
        name="rdmsr",
        instructions=("RDMSR", "RDMSR imm"),
        exits_if=(
            "use_msr_bitmaps is 0; or the MSR is outside 0-1FFFH and "
            "C0000000H-C0001FFFH; or its bitmap bit is 1"
        ),
        controls=("proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=31,
        faults=("#GP(0) if CPL > 0",),
        beats=("#GP(0) for nonexistent MSRs",),
        otherwise=(
            "10H: TSC offset/scaling applied; 48H: shadow if "
            "virtualize_ia32_spec_ctrl; 6E0H: guest-deadline shadow if "
            "apic_timer_virtualization (else unmodified, no offset); 800-8FFH: "
            "virtualize_x2apic_mode handling"
        ),
        rules=(
            (
                "bitmap layout at msr_bitmap: +0 read low, +1024 read high, +2048 "
                "write low, +3072 write high; bit n = MSR & 1FFFH"
            ),
            "only ECX (32 bits) is used",
            "immediate form exits with reason 84",
            "no bit is consulted for MSRs out of range: always exit",
        ),
    ),
    Exiting(
        name="wrmsr",
        instructions=("WRMSR", "WRMSRNS", "WRMSRNS imm"),
        exits_if=(
            "use_msr_bitmaps is 0; or the MSR is outside 0-1FFFH and "
            "C0000000H-C0001FFFH; or its bitmap bit is 1 (write bitmaps)"
        ),
        controls=("proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=32,
        faults=("#GP(0) if CPL > 0",),
        beats=("#GP(0) for nonexistent MSRs or bad values",),
        otherwise=(
            "48H: masked write + shadow update; 79H (microcode update): "
            "ignored; 570H #GP(0) if PT not allowed in VMX; 6E0H: guest "
            "deadline; 808H, 80BH, 830H, 83FH: x2APIC virtualization"
        ),
        rules=(
            "immediate WRMSRNS exits with reason 85",
            ("Bochs reports register-form WRMSRNS as 85 too (disagrees with SDM 092)"),
        ),
    ),
    Exiting(
        name="rdmsrlist",
        instructions=("RDMSRLIST",),
        exits_if=(
            "the control is 1 and use_msr_bitmaps 0 (before any access); or "
            "bitmaps used and the current MSR of the list is selected"
        ),
        controls=("proc3.enable_msr_list_instructions", "proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=78,
        faults=(
            "#UD if the control is 0 (beats everything)",
            "#GP(0) if CPL > 0, not 64-bit mode, or misaligned RSI/RDI",
        ),
        rules=(
            ("MSRs are processed one at a time, RCX bit cleared per completed MSR"),
            "Bochs orders: #UD, CPL/mode, alignment, then per-MSR exit",
        ),
    ),
    Exiting(
        name="wrmsrlist",
        instructions=("WRMSRLIST",),
        exits_if="as RDMSRLIST with the write bitmaps",
        controls=("proc3.enable_msr_list_instructions", "proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=79,
        faults=(
            "#UD if the control is 0 (beats everything)",
            "#GP(0) if CPL > 0, not 64-bit mode, or misaligned RSI/RDI",
        ),
        rules=(("per-MSR exit comes after the data was read from memory; data saved to msr_data"),),
    ),
    Exiting(
        name="urdmsr",
        instructions=("URDMSR",),
        exits_if=("use_msr_bitmaps 0; or MSR in 0-1FFFH with read-low bit 1; or MSR in 2000-3FFFH"),
        controls=("proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=80,
        faults=(
            "#UD (IA32_USER_MSR_CTL enable 0)",
            ("#GP(0) if the MSR is above 3FFFH or its user-MSR bitmap read bit is 0"),
        ),
        rules=("in enclave mode a would-be exit becomes #GP(0)",),
    ),
    Exiting(
        name="uwrmsr",
        instructions=("UWRMSR",),
        exits_if=(
            "use_msr_bitmaps 0; or MSR in 0-1FFFH with write-low bit 1; or MSR in 2000-3FFFH"
        ),
        controls=("proc1.use_msr_bitmaps", "msr_bitmap"),
        reason=81,
        faults=(
            "#UD (IA32_USER_MSR_CTL enable 0)",
            ("#GP(0) if the MSR is above 3FFFH or its user-MSR bitmap write bit is 0"),
        ),
        rules=("in enclave mode a would-be exit becomes #GP(0)",),
    ),
    Exiting(
        name="rdpmc",
        instructions=("RDPMC",),
        exits_if="the control is 1",
        controls=("proc1.rdpmc_exiting",),
        reason=15,
        faults=("#GP(0) if CPL > 0 and CR4.PCE=0",),
        beats=("#GP(0) for a bad counter index",),
    ),
    Exiting(
        name="rdrand",
        instructions=("RDRAND",),
        exits_if="the control is 1",
        controls=("proc2.rdrand_exiting",),
        reason=57,
        faults=("#UD if unsupported",),
    ),
    Exiting(
        name="rdseed",
        instructions=("RDSEED",),
        exits_if="the control is 1",
        controls=("proc2.rdseed_exiting",),
        reason=61,
        faults=("#UD if unsupported",),
    ),
    Exiting(
        name="rdtsc",
        instructions=("RDTSC",),
        exits_if="the control is 1",
        controls=("proc1.rdtsc_exiting",),
        reason=16,
        faults=("#GP(0) if CPL > 0 and CR4.TSD=1",),
        otherwise=(
            "use_tsc_offsetting: TSC + offset; with use_tsc_scaling: ((TSC * "
            "multiplier) >> 48) + offset; use_tsc_scaling has no effect without "
            "use_tsc_offsetting"
        ),
    ),
    Exiting(
        name="rdtscp",
        instructions=("RDTSCP",),
        exits_if="both are 1",
        controls=("proc2.enable_rdtscp", "proc1.rdtsc_exiting"),
        reason=51,
        faults=("#UD if enable_rdtscp is 0 (beats everything)", "#GP(0) if CPL > 0 and CR4.TSD=1"),
        otherwise=(
            "use_tsc_offsetting: TSC + offset; with use_tsc_scaling: ((TSC * "
            "multiplier) >> 48) + offset; use_tsc_scaling has no effect without "
            "use_tsc_offsetting; ECX := IA32_TSC_AUX"
        ),
    ),
    Exiting(
        name="rsm",
        instructions=("RSM",),
        exits_if="executed in SMM (dual-monitor treatment, SMM guest)",
        reason=17,
        faults=("#UD outside SMM",),
    ),
    Exiting(
        name="tpause",
        instructions=("TPAUSE",),
        exits_if="both are 1",
        controls=("proc2.enable_user_wait_and_pause", "proc1.rdtsc_exiting"),
        reason=68,
        faults=(
            "#UD if enable_user_wait_and_pause is 0 (beats everything)",
            "#GP(0) if CPL > 0 and CR4.TSD=1",
        ),
        beats=("#GP(0) for source bits 31:1",),
        otherwise=(
            "deadline computed from the virtual TSC; physical delay = virtual "
            "delay * 2^48 / multiplier when offsetting and scaling are on; "
            "IA32_UMWAIT_CONTROL[31:2] caps it"
        ),
    ),
    Exiting(
        name="umwait",
        instructions=("UMWAIT",),
        exits_if="both are 1",
        controls=("proc2.enable_user_wait_and_pause", "proc1.rdtsc_exiting"),
        reason=67,
        faults=(
            "#UD if enable_user_wait_and_pause is 0 (beats everything)",
            "#GP(0) if CPL > 0 and CR4.TSD=1",
        ),
        beats=("#GP(0) for source bits 31:1",),
        otherwise=(
            "deadline computed from the virtual TSC; physical delay = virtual "
            "delay * 2^48 / multiplier when offsetting and scaling are on; "
            "IA32_UMWAIT_CONTROL[31:2] caps it"
        ),
    ),
    Exiting(
        name="vmread",
        instructions=("VMREAD",),
        exits_if=("shadowing 0; or encoding bits above 14 set; or bitmap bit (encoding 14:0) is 1"),
        controls=("proc2.vmcs_shadowing", "vmread_bitmap_address"),
        reason=23,
        faults=("#UD in real, v86 or compatibility mode",),
        beats=("#GP(0) for CPL > 0 (only when it exits)",),
        otherwise=(
            "CPL > 0 #GP(0); reads the link-pointer VMCS; VMfail outcomes as in root operation"
        ),
    ),
    Exiting(
        name="vmwrite",
        instructions=("VMWRITE",),
        exits_if=("shadowing 0; or encoding bits above 14 set; or bitmap bit (encoding 14:0) is 1"),
        controls=("proc2.vmcs_shadowing", "vmwrite_bitmap_address"),
        reason=25,
        faults=("#UD in real, v86 or compatibility mode",),
        beats=("#GP(0) for CPL > 0 (only when it exits)",),
        otherwise="CPL > 0 #GP(0); writes the link-pointer VMCS",
    ),
    Exiting(
        name="vmfunc",
        instructions=("VMFUNC",),
        exits_if=(
            "VM-function bit EAX is 0; EAX=0: ECX >= 512, unusable EPTP, or "
            "PT-uses-GPA with TraceEn=1"
        ),
        controls=("proc2.enable_vm_functions", "vm_function_controls", "eptp_list_address"),
        reason=59,
        faults=("#UD if enable_vm_functions is 0 or EAX > 63",),
        otherwise="performs the function, no CPL check",
    ),
    Exiting(
        name="wbinvd",
        instructions=("WBINVD", "WBNOINVD"),
        exits_if="the control is 1",
        controls=("proc2.wbinvd_exiting",),
        reason=54,
        faults=("#GP(0) if CPL > 0",),
    ),
    Exiting(
        name="xsaves",
        instructions=("XSAVES",),
        exits_if=("the control is 1 and EDX:EAX & IA32_XSS & xss_exiting_bitmap is nonzero"),
        controls=("proc2.enable_xsaves_xrstors", "xss_exiting_bitmap"),
        reason=63,
        faults=("#UD if CR4.OSXSAVE=0, unsupported, or control 0", "#GP(0) if CPL > 0"),
        beats=("operand faults and alignment",),
        rules=(
            (
                "SDM lists the control #UD without a CPL condition; Bochs tests "
                "CR0.TS (#NM) and CPL #GP(0) before it"
            ),
        ),
    ),
    Exiting(
        name="xrstors",
        instructions=("XRSTORS",),
        exits_if=("the control is 1 and EDX:EAX & IA32_XSS & xss_exiting_bitmap is nonzero"),
        controls=("proc2.enable_xsaves_xrstors", "xss_exiting_bitmap"),
        reason=64,
        faults=("#UD if CR4.OSXSAVE=0, unsupported, or control 0", "#GP(0) if CPL > 0"),
        beats=("operand faults and alignment",),
        rules=(
            (
                "SDM lists the control #UD without a CPL condition; Bochs tests "
                "CR0.TS (#NM) and CPL #GP(0) before it"
            ),
        ),
    ),
)

#: Instructions that behave otherwise in non-root operation, without an exit.
CHANGED: Final[dict[str, Exiting]] = _rows(
    Exiting(
        name="mov_from_cr0",
        instructions=("MOV r, CR0",),
        exits_if="returns (CR0 & ~mask) | (read shadow & mask)",
    ),
    Exiting(
        name="mov_from_cr4",
        instructions=("MOV r, CR4",),
        exits_if="returns (CR4 & ~mask) | (read shadow & mask)",
    ),
    Exiting(
        name="smsw",
        instructions=("SMSW",),
        exits_if=(
            "as MOV from CR0 (low 16 bits for memory or 16-bit register); UMIP #GP(0) applies"
        ),
    ),
    Exiting(
        name="rdpid",
        instructions=("RDPID",),
        exits_if="#UD if enable_rdtscp is 0",
    ),
    Exiting(
        name="umonitor",
        instructions=("UMONITOR",),
        exits_if="#UD if enable_user_wait_and_pause is 0",
    ),
    Exiting(
        name="pbndkb",
        instructions=("PBNDKB",),
        exits_if="#UD if enable_pbndkb is 0, else normal",
    ),
    Exiting(
        name="iret",
        instructions=("IRET",),
        exits_if=(
            "NMI exiting 0: unblocks NMIs; NMI exiting 1: physical blocking "
            "unchanged; virtual NMIs 1: clears virtual-NMI blocking (even if "
            "IRET faults)"
        ),
    ),
    Exiting(
        name="erets_eretu",
        instructions=("ERETS", "ERETU"),
        exits_if=(
            "augmented SS bit 18 unblocks NMIs (NMI exiting 0) or virtual NMIs "
            "(virtual NMIs 1); ignored with NMI exiting 1 and virtual NMIs 0"
        ),
    ),
    Exiting(
        name="senduipi",
        instructions=("SENDUIPI",),
        exits_if=(
            "notification IPI: use_tpr_shadow 0 real ICR; else written to VICR "
            "and, with ipi_virtualization, posted; use_tpr_shadow 1 without IPI "
            "virtualization gives APIC-write exit offset 300H"
        ),
    ),
)

#: What is no instruction.
EVENTS: Final[dict[str, Exiting]] = _rows(
    Exiting(
        name="exception",
        exits_if=("bitmap bit of the vector (0-31) is 1; covers INT1, INT3, INTO, BOUND, UD0/1/2"),
        controls=("exception_bitmap",),
        reason=0,
        rules=(
            "direct exit does not update DR6, DR7, DEBUGCTL, CR2",
            "INT n never exits by the bitmap",
            "injected events never exit directly, nested ones do",
            "#VE uses bit 20",
        ),
    ),
    Exiting(
        name="page_fault",
        exits_if="((error_code & mask) == match) equals bitmap bit 14",
        controls=("exception_bitmap", "page_fault_error_code_mask", "page_fault_error_code_match"),
        reason=0,
        rules=(
            ("mask=match=0, bit 14=1: every #PF exits; bit 14=1, mask 0, match all ones: none"),
        ),
    ),
    Exiting(
        name="triple_fault",
        exits_if=("exception while invoking the double-fault handler that does not itself exit"),
        reason=2,
    ),
    Exiting(
        name="external_interrupt",
        exits_if=(
            "the control is 1 and an unmasked interrupt (IF ignored); with "
            "posted interrupts, unless the vector is the notification vector"
        ),
        controls=("pin.external_interrupt_exiting", "pin.process_posted_interrupts"),
        reason=1,
        rules=(
            (
                "ack on exit: vector reported and interrupt acknowledged; "
                "posted-interrupt processing always acknowledges first"
            ),
            (
                "STI / MOV-SS blocking may or may not apply when the control is 1 "
                "(implementation-specific)"
            ),
        ),
        priority="lowest of the boundary events",
        blocked_in=("shutdown", "wait_for_sipi"),
    ),
    Exiting(
        name="nmi",
        exits_if="the control is 1",
        controls=("pin.nmi_exiting", "pin.virtual_nmis"),
        reason=0,
        rules=(
            (
                "exit sets physical NMI blocking; with virtual NMIs physical NMIs "
                "are never blocked by guest state"
            ),
            "STI / MOV-SS blocking optional when the control is 1",
        ),
        priority="above interrupt window, below NMI window",
        blocked_in=("wait_for_sipi",),
    ),
    Exiting(
        name="init_signal",
        exits_if="always in non-root outside wait-for-SIPI",
        reason=3,
        rules=("blocked (pended) in root operation",),
        priority="above MTF, below SMI",
        blocked_in=("wait_for_sipi",),
    ),
    Exiting(
        name="sipi",
        exits_if="arrives in wait-for-SIPI state",
        reason=4,
        rules=("in any other state the SIPI is dropped",),
    ),
    Exiting(
        name="smi",
        exits_if=("dual-monitor treatment active: SMM VM exit 5 (right after I/O) or 6"),
        reason=6,
        rules=("default treatment: SMM entered without a VM exit",),
    ),
    Exiting(
        name="task_switch",
        exits_if=("every task switch that passes the gate, selector and descriptor checks"),
        reason=9,
        rules=(
            (
                "checks in order: gate P and privilege; new TSS selector; "
                "descriptor read; type, P, S, limit. Faults of these come before "
                "the exit"
            ),
            ("page faults on old/new TSS against the exit: implementation-specific"),
            "IA-32e mode: task gates and TSS jumps #GP, no exit",
            "TSS, TR, NT, DR7 L0-3 are not modified",
        ),
    ),
    Exiting(
        name="vmx_preemption_timer",
        exits_if=(
            "value reaches 0 (counts TSC >> IA32_VMX_MISC[4:0], in C0-C2, "
            "shutdown and wait-for-SIPI)"
        ),
        controls=("pin.activate_vmx_preemption_timer",),
        reason=52,
        rules=(
            ("value 0 at entry: exit right after entry (after injection) before any instruction"),
            "wakes from HLT, shutdown, MWAIT",
            "Bochs lets STI/MOV-SS shadow delay it (SDM: not blocked)",
        ),
        priority="below debug traps, above NMI window",
        blocked_in=("wait_for_sipi",),
    ),
    Exiting(
        name="interrupt_window",
        exits_if="RFLAGS.IF=1 and no STI / MOV-SS blocking at an instruction start",
        controls=("proc1.interrupt_window_exiting",),
        reason=7,
        rules=("wakes HLT / MWAIT",),
        priority=("below NMI, above external interrupt; same as virtual-interrupt delivery"),
        blocked_in=("shutdown", "wait_for_sipi"),
    ),
    Exiting(
        name="nmi_window",
        exits_if=(
            "no virtual-NMI blocking, no MOV-SS blocking (and no STI blocking "
            "per 092) at an instruction start"
        ),
        controls=("proc1.nmi_window_exiting",),
        reason=8,
        rules=("wakes HLT, shutdown, MWAIT", "2016 text: STI blocking implementation-specific"),
        priority="below preemption timer, above NMI",
        blocked_in=("wait_for_sipi",),
    ),
    Exiting(
        name="monitor_trap_flag",
        exits_if="pending MTF at an instruction boundary",
        controls=("proc1.monitor_trap_flag",),
        reason=37,
        rules=(
            ("injecting a vectored event with MTF 1: pending before the first instruction"),
            "injected type 7 vector 0: pending even if MTF is 0",
            (
                "otherwise after the first instruction, or after delivery of the "
                "event / fault it caused; REP string: after the first iteration; "
                "XBEGIN: at the fallback address; HLT: from the HLT state"
            ),
            "another exit before that boundary cancels it",
        ),
        priority="below SMI / INIT, above debug traps",
        blocked_in=("shutdown", "wait_for_sipi"),
    ),
    Exiting(
        name="tpr_below_threshold",
        exits_if=(
            "TPR virtualization (MOV CR8, WRMSR 808H, APIC write 080H) with "
            "virtual_interrupt_delivery 0 and VTPR[7:4] < threshold; or at VM "
            "entry with virtualize_apic_accesses 1 and VID 0"
        ),
        controls=("proc1.use_tpr_shadow", "proc2.virtual_interrupt_delivery", "tpr_threshold"),
        reason=43,
        rules=("wakes HLT when caused by VM entry",),
        priority="above SMI / INIT",
        blocked_in=("shutdown (deferred)", "wait_for_sipi"),
    ),
    Exiting(
        name="apic_access",
        exits_if=(
            "linear access to the APIC-access page that is not virtualized; "
            "every guest-physical access to it (paging-structure, PDPTE, PT, "
            "PEBS) exits; physical accesses may"
        ),
        controls=(
            "proc2.virtualize_apic_accesses",
            "proc1.use_tpr_shadow",
            "proc2.apic_register_virtualization",
            "proc2.virtual_interrupt_delivery",
            "proc3.ipi_virtualization",
        ),
        reason=44,
        rules=(
            (
                "never virtualized: use_tpr_shadow 0; instruction fetch; size > 32 "
                "bits; not within the low 4 bytes of a 16-byte slot; part of an "
                "operation that already virtualized a write elsewhere in the page; "
                "optionally non-GPR data"
            ),
            (
                "reads virtualized: 080H always; with VID 0B0H and 300H; with "
                "APIC-register virtualization 020, 030, 080, 0B0, 0D0, 0E0, 0F0, "
                "100-170, 180-1F0, 200-270, 280, 300, 310, 320-370, 380, 3E0 (each "
                "+0..3)"
            ),
            (
                "writes virtualized: 080H always; with VID 0B0H and 300H; with IPI "
                "virtualization 300H; with APIC-register virtualization 020, 080, "
                "0B0, 0D0, 0E0, 0F0, 280, 300, 310, 320-370, 380, 3E0"
            ),
            "guaranteed only for 4-KByte mappings",
        ),
        priority=(
            "below page faults and EPT violations of the same access; same priority otherwise"
        ),
    ),
    Exiting(
        name="apic_write",
        exits_if=(
            "APIC-write emulation of an offset with no processor emulation, or "
            "ICR / EOI / self-IPI cases the enabled features cannot complete"
        ),
        controls=("proc2.virtualize_apic_accesses", "proc2.virtualize_x2apic_mode"),
        reason=56,
        rules=(
            (
                "080H: clear VTPR[31:8], TPR virtualization; 0B0H: EOI "
                "virtualization with VID else exit; 300H: self-IPI virtualization "
                "if VID and VICR is fixed, edge, self, vector >= 16, else IPI "
                "virtualization if enabled and VICR qualifies, else exit; 310H: "
                "clear bits 23:0, no exit; others: exit"
            ),
            "WRMSR 83FH with EAX[7:4]=0 exits with offset 3F0H",
            (
                "IPI virtualization failure (vector < 16, APIC ID beyond last "
                "index, bad PID pointer) exits with offset 300H"
            ),
        ),
        priority="above SMI / INIT",
    ),
    Exiting(
        name="virtualized_eoi",
        exits_if="EOI virtualization of a vector whose EOI-exit bit is 1",
        controls=("proc2.virtual_interrupt_delivery", "eoi_exit_bitmap_0..3"),
        reason=45,
        rules=("not checked for user-interrupt notification EOIs",),
        priority="above SMI / INIT",
    ),
    Exiting(
        name="ept_violation",
        exits_if=(
            "EPT access not permitted or not-present entry, 4-level EPT with "
            "GPA[51:48] nonzero, guest-paging verification, supervisor "
            "shadow-stack rule"
        ),
        controls=("proc2.enable_ept", "proc2.ept_violation_ve"),
        reason=48,
        rules=(
            (
                "becomes #VE if the control is 1, suppress-#VE (bit 63 of the "
                "not-present or leaf entry) is 0, CR0.PE=1, not in event delivery, "
                "#VE area offset 4 is 0, no prematurely busy shadow stack, not from "
                "PT or PEBS"
            ),
            ("CR0.PG=0: every linear address is a user-mode writable executable GPA"),
        ),
        priority=(
            "at each guest-physical access in the guest page walk and for the "
            "final access; guest #PF of an earlier step comes first; EPT "
            "misconfiguration of an earlier level first"
        ),
    ),
    Exiting(
        name="ept_misconfiguration",
        exits_if=(
            "present EPT entry with W=1 R=0; X=1 R=0 without execute-only "
            "support (also bit 10 with MBE); reserved bits set (incl. above "
            "MAXPHYADDR); leaf memory type 2, 3, 7; leaf with bit 58 = 1 and "
            "bit 0 = 0 when ept_paging_write_control is 1"
        ),
        controls=("proc2.enable_ept",),
        reason=49,
        rules=(
            "present = any of bits 2:0 set (or bit 10 with MBE)",
            (
                "entries above the failing level do not matter; a not-present entry "
                "gives an EPT violation instead"
            ),
        ),
        priority="walk step order as EPT violation; never #VE",
    ),
    Exiting(
        name="pml_full",
        exits_if=("EPT accessed or dirty flag must be set and the PML index is not 0-511"),
        controls=("proc2.enable_pml",),
        reason=62,
        rules=(
            ("checked before any A/D update; access and flag update do not happen"),
            (
                "log entry written (GPA with bits 11:0 clear) and index decremented "
                "only when a dirty flag goes 0 to 1"
            ),
        ),
    ),
    Exiting(
        name="spp_related",
        exits_if=(
            "eligible write whose SPP walk meets an invalid entry (miss) or "
            "reserved bits / odd vector bits (misconfiguration)"
        ),
        controls=("proc2.sub_page_write_permissions_for_ept",),
        reason=66,
        rules=(
            (
                "eligible: write denied only by bit 1, 4-KByte leaf with bit 61 = "
                "1, not a paging A/D update, not transactional, enclave or PEBS; "
                "write allowed iff vector bit 2*(GPA[11:7]) is 1; a clear bit gives "
                "a normal EPT violation"
            ),
            "table index bits 47:39, 38:30, 29:21, 20:12",
        ),
    ),
    Exiting(
        name="bus_lock",
        exits_if="instruction asserted a bus lock",
        controls=("proc2.vmm_bus_lock_detection",),
        reason=74,
        rules=(
            (
                "exit-reason bit 26 set; if another exit occurs in that instruction "
                "it reports bit 26 instead"
            ),
        ),
        priority="above SMI / INIT",
    ),
    Exiting(
        name="instruction_timeout",
        exits_if=("no instruction boundary for more crystal-clock cycles than the field"),
        controls=("proc2.instruction_timeout", "instruction_timeout_control"),
        reason=75,
        rules=("qualification bit 0: VM context invalid, do not resume",),
    ),
    Exiting(
        name="virtual_interrupt",
        exits_if="never (delivers without an exit)",
        controls=("proc2.virtual_interrupt_delivery",),
        rules=(
            (
                "recognized after VM entry, TPR / EOI / self-IPI virtualization or "
                "posted-interrupt processing if RVI[7:4] > VPPR[7:4] and "
                "interrupt_window_exiting is 0; delivered when IF=1 and no STI / "
                "MOV-SS blocking"
            ),
            ("delivery: VISR[v]=1, SVI=v, VPPR=v & F0H, VIRR[v]=0, RVI=highest VIRR bit or 0"),
        ),
        priority="same as interrupt window",
        blocked_in=("shutdown", "wait_for_sipi"),
    ),
    Exiting(
        name="posted_interrupt",
        exits_if="never for the notification vector",
        controls=("pin.process_posted_interrupts",),
        rules=(
            (
                "ack APIC, compare with notification vector, clear ON atomically, "
                "EOI the APIC, VIRR |= PIR, PIR := 0, RVI := max(RVI, highest PIR), "
                "evaluate"
            ),
        ),
        priority="as external interrupt",
    ),
    Exiting(
        name="guest_timer",
        exits_if="never (pends the virtual timer vector)",
        controls=("proc3.apic_timer_virtualization",),
        priority=(
            "092 says below external interrupts and above virtual interrupts / "
            "interrupt window (these cannot both hold as worded)"
        ),
        blocked_in=("shutdown", "wait_for_sipi"),
    ),
)

#: What is taken first at an instruction boundary, highest priority first.
BOUNDARY_PRIORITY: Final = (
    "reset, machine check",
    (
        "trap-like exits of the finished instruction: APIC-write emulation "
        "(43, 45, 56), bus lock (74); TPR-threshold exit after VM entry "
        "(43)"
    ),
    ("trap on task switch (TSS.T); Bochs places it after the APIC traps"),
    "SMI, then INIT (3)",
    "pending MTF (37)",
    "debug traps and other traps of the previous instruction",
    "VMX-preemption timer (52)",
    "NMI-window exit (8)",
    "NMI (0)",
    "interrupt-window exit (7) / virtual-interrupt delivery",
    "external interrupt (1) / posted-interrupt processing",
    (
        "user interrupts, faults of the next instruction: code breakpoint, "
        "fetch (page fault, EPT), decode (#UD), then the exit or faults of "
        "the instruction itself"
    ),
)
