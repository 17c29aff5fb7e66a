"""Printers of VMCS dumps, written from the lines that KVM and Xen print, era by era.

They share nothing with the readers under test: each line stands here as its printk does. A printer
also says what it has shown, so that a test can ask for exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping

from vtx.facts.fields import Field as F

KVM_ERAS = ("4.14", "5.13", "6.0", "6.2", "6.18", "fred")
XEN_ERAS = ("4.2", "4.12")

_EPT, _VPID, _PLE, _VID = 1 << 1, 1 << 5, 1 << 10, 1 << 9
_APIC_ACCESSES, _TSC_SCALING, _VE = 1 << 0, 1 << 25, 1 << 18


class _Page:
    """Lines of one dump, and the fields that they show."""

    def __init__(self, values: Mapping[F, int]) -> None:
        self.values = values
        self.lines: list[str] = []
        self.shown: dict[F, int] = {}

    def get(self, field: F) -> int:
        self.shown[field] = self.values[field]
        return self.values[field]

    def __call__(self, template: str, *fields: F) -> None:
        self.lines.append(template.format(*map(self.get, fields)))

    def raw(self, line: str) -> None:
        self.lines.append(line)

    @property
    def proc1(self) -> int:
        return self.values[F.PRIMARY_PROCESSOR_BASED_CONTROLS]

    @property
    def proc2(self) -> int:
        return self.values[F.SECONDARY_PROCESSOR_BASED_CONTROLS]

    @property
    def entry(self) -> int:
        return self.values[F.VM_ENTRY_CONTROLS]

    @property
    def exit(self) -> int:
        return self.values[F.VM_EXIT_CONTROLS]

    @property
    def pin(self) -> int:
        return self.values[F.PIN_BASED_CONTROLS]


def _segment_fields(name: str) -> tuple[F, ...]:
    parts = ("SELECTOR", "ACCESS_RIGHTS", "LIMIT", "BASE")
    return tuple(F[f"GUEST_{name}_{part}"] for part in parts)


def _registers(page: _Page) -> None:
    for name in ("CR0", "CR4"):
        page(
            name + ": actual=0x{:016x}, shadow=0x{:016x}, gh_mask={:016x}",
            F[f"GUEST_{name}"],
            F[f"{name}_READ_SHADOW"],
            F[f"{name}_GUEST_HOST_MASK"],
        )


def kvm(values: Mapping[F, int], era: str = "6.2") -> tuple[list[str], dict[F, int]]:
    """Return the lines of ``dump_vmcs`` without log prefixes, and the fields they show."""
    page = _Page(values)
    old = era == "4.14"
    if not old:
        page.raw("VMCS 00000000a1b2c3d4, last attempted VM-entry on CPU 7")
    page.raw("*** Guest State ***")
    _registers(page)
    page("CR3 = 0x{:016x}", F.GUEST_CR3)
    if not old or (page.proc2 & _EPT and values[F.GUEST_CR4] & 0x20 and not page.entry & 1 << 9):
        page("PDPTR0 = 0x{:016x}  PDPTR1 = 0x{:016x}", F.GUEST_PDPTE0, F.GUEST_PDPTE1)
        page("PDPTR2 = 0x{:016x}  PDPTR3 = 0x{:016x}", F.GUEST_PDPTE2, F.GUEST_PDPTE3)
    page("RSP = 0x{:016x}  RIP = 0x{:016x}", F.GUEST_RSP, F.GUEST_RIP)
    page("RFLAGS=0x{:08x}         DR7 = 0x{:016x}", F.GUEST_RFLAGS, F.GUEST_DR7)
    page(
        "Sysenter RSP={:016x} CS:RIP={:04x}:{:016x}",
        F.GUEST_IA32_SYSENTER_ESP,
        F.GUEST_IA32_SYSENTER_CS,
        F.GUEST_IA32_SYSENTER_EIP,
    )
    _kvm_segments(page)
    if era == "fred" and page.entry & 1 << 23:
        _fred(page, "GUEST")
    _kvm_guest_msrs(page, old)
    page("Interruptibility = {:08x}  ActivityState = {:08x}", *_NON_REGISTER)
    if page.proc2 & _VID:
        page("InterruptStatus = {:04x}", F.GUEST_INTERRUPT_STATUS)
    if era in ("6.18", "fred") and page.entry & 1 << 20:
        _cet(page, "GUEST")
    _kvm_host(page, era, old)
    _kvm_controls(page, era, old)
    return page.lines, page.shown


_NON_REGISTER = (F.GUEST_INTERRUPTIBILITY_STATE, F.GUEST_ACTIVITY_STATE)


def _kvm_segments(page: _Page) -> None:
    segment = " sel=0x{:04x}, attr=0x{:05x}, limit=0x{:08x}, base=0x{:016x}"
    table = "                           limit=0x{:08x}, base=0x{:016x}"
    for name in ("CS", "DS", "SS", "ES", "FS", "GS"):
        page(f"{name}:  " + segment, *_segment_fields(name))
    page("GDTR:" + table, F.GUEST_GDTR_LIMIT, F.GUEST_GDTR_BASE)
    page("LDTR:" + segment, *_segment_fields("LDTR"))
    page("IDTR:" + table, F.GUEST_IDTR_LIMIT, F.GUEST_IDTR_BASE)
    page("TR:  " + segment, *_segment_fields("TR"))


def _kvm_guest_msrs(page: _Page, old: bool) -> None:
    loads_efer, loads_pat = page.entry & 1 << 15, page.entry & 1 << 14
    if old:
        page("EFER =     0x{:016x}  PAT = 0x{:016x}", F.GUEST_IA32_EFER, F.GUEST_IA32_PAT)
    else:
        if loads_efer:
            page("EFER= 0x{:016x}", F.GUEST_IA32_EFER)
        else:
            page.raw("EFER= 0x0000000000000d01 (effective)")
        if loads_pat:
            page("PAT = 0x{:016x}", F.GUEST_IA32_PAT)
    page(
        "DebugCtl = 0x{:016x}  DebugExceptions = 0x{:016x}",
        F.GUEST_IA32_DEBUGCTL,
        F.GUEST_PENDING_DEBUG_EXCEPTIONS,
    )
    if page.entry & 1 << 13:
        page("PerfGlobCtl = 0x{:016x}", F.GUEST_IA32_PERF_GLOBAL_CTRL)
    if page.entry & 1 << 16:
        page("BndCfgS = 0x{:016x}", F.GUEST_IA32_BNDCFGS)


def _cet(page: _Page, side: str) -> None:
    page(
        "S_CET = 0x{:016x}, SSP = 0x{:016x}, SSP TABLE = 0x{:016x}",
        F[f"{side}_IA32_S_CET"],
        F[f"{side}_SSP"],
        F[f"{side}_IA32_INTERRUPT_SSP_TABLE_ADDR"],
    )


def _fred(page: _Page, side: str) -> None:
    page(
        f"FRED {side.lower()}: config=0x{{:016x}}, stack_levels=0x{{:016x}}",
        F[f"{side}_IA32_FRED_CONFIG"],
        F[f"{side}_IA32_FRED_STKLVLS"],
    )
    page("RSP0=0x0000000000001000, RSP1=0x{:016x}", F[f"{side}_IA32_FRED_RSP1"])
    rsp2, rsp3 = F[f"{side}_IA32_FRED_RSP2"], F[f"{side}_IA32_FRED_RSP3"]
    page("RSP2=0x{:016x}, RSP3=0x{:016x}", rsp2, rsp3)


def _host_selectors(page: _Page, order: str) -> None:
    names = order.split()
    fields = (F[f"HOST_{name}_SELECTOR"] for name in names)
    page(" ".join(f"{name}={{:04x}}" for name in names), *fields)


def _host_bases(page: _Page) -> None:
    page(
        "FSBase={:016x} GSBase={:016x} TRBase={:016x}",
        F.HOST_FS_BASE,
        F.HOST_GS_BASE,
        F.HOST_TR_BASE,
    )
    page("GDTBase={:016x} IDTBase={:016x}", F.HOST_GDTR_BASE, F.HOST_IDTR_BASE)


def _host_control_registers(page: _Page) -> None:
    page("CR0={:016x} CR3={:016x} CR4={:016x}", F.HOST_CR0, F.HOST_CR3, F.HOST_CR4)
    page(
        "Sysenter RSP={:016x} CS:RIP={:04x}:{:016x}",
        F.HOST_IA32_SYSENTER_ESP,
        F.HOST_IA32_SYSENTER_CS,
        F.HOST_IA32_SYSENTER_EIP,
    )


def _kvm_host(page: _Page, era: str, old: bool) -> None:
    page.raw("*** Host State ***")
    page("RIP = 0x{:016x}  RSP = 0x{:016x}", F.HOST_RIP, F.HOST_RSP)
    _host_selectors(page, "CS SS DS ES FS GS TR")
    _host_bases(page)
    if era == "fred" and page.exit & 1 << 31:
        _fred(page, "HOST")
    _host_control_registers(page)
    loads_efer, loads_pat = page.exit & 1 << 21, page.exit & 1 << 19
    if old and (loads_efer or loads_pat):
        page("EFER = 0x{:016x}  PAT = 0x{:016x}", F.HOST_IA32_EFER, F.HOST_IA32_PAT)
    if not old and loads_efer:
        page("EFER= 0x{:016x}", F.HOST_IA32_EFER)
    if not old and loads_pat:
        page("PAT = 0x{:016x}", F.HOST_IA32_PAT)
    if page.exit & 1 << 12:
        page("PerfGlobCtl = 0x{:016x}", F.HOST_IA32_PERF_GLOBAL_CTRL)
    if era in ("6.18", "fred") and page.exit & 1 << 28:
        _cet(page, "HOST")


def _kvm_control_words(page: _Page, era: str) -> None:
    pin, proc1, proc2 = (
        F.PIN_BASED_CONTROLS,
        F.PRIMARY_PROCESSOR_BASED_CONTROLS,
        F.SECONDARY_PROCESSOR_BASED_CONTROLS,
    )
    if era in ("4.14", "5.13"):
        page("PinBased={:08x} CPUBased={:08x} SecondaryExec={:08x}", pin, proc1, proc2)
        page("EntryControls={:08x} ExitControls={:08x}", F.VM_ENTRY_CONTROLS, F.VM_EXIT_CONTROLS)
        return
    page(
        "CPUBased=0x{:08x} SecondaryExec=0x{:08x} TertiaryExec=0x{:016x}",
        proc1,
        proc2,
        F.TERTIARY_PROCESSOR_BASED_CONTROLS,
    )
    if era == "fred":
        page("PinBased=0x{:08x} EntryControls=0x{:08x}", pin, F.VM_ENTRY_CONTROLS)
        page(
            "ExitControls=0x{:08x} SecondaryExitControls=0x{:016x}",
            F.VM_EXIT_CONTROLS,
            F.SECONDARY_VM_EXIT_CONTROLS,
        )
        return
    page(
        "PinBased=0x{:08x} EntryControls={:08x} ExitControls={:08x}",
        pin,
        F.VM_ENTRY_CONTROLS,
        F.VM_EXIT_CONTROLS,
    )


def _events(page: _Page, fred: bool, qualification: str = "{:016x}") -> None:
    data = " event_data={:016x}" if fred else ""
    page(
        "VMEntry: intr_info={:08x} errcode={:08x} ilen={:08x}" + data,
        F.VM_ENTRY_INTERRUPTION_INFORMATION,
        F.VM_ENTRY_EXCEPTION_ERROR_CODE,
        F.VM_ENTRY_INSTRUCTION_LENGTH,
        *((F.INJECTED_EVENT_DATA,) if fred else ()),
    )
    page(
        "VMExit: intr_info={:08x} errcode={:08x} ilen={:08x}",
        F.VM_EXIT_INTERRUPTION_INFORMATION,
        F.VM_EXIT_INTERRUPTION_ERROR_CODE,
        F.VM_EXIT_INSTRUCTION_LENGTH,
    )
    page(
        f"        reason={{:08x}} qualification={qualification}",
        F.EXIT_REASON,
        F.EXIT_QUALIFICATION,
    )
    page(
        "IDTVectoring: info={:08x} errcode={:08x}" + data,
        F.IDT_VECTORING_INFORMATION,
        F.IDT_VECTORING_ERROR_CODE,
        *((F.ORIGINAL_EVENT_DATA,) if fred else ()),
    )


def _kvm_controls(page: _Page, era: str, old: bool) -> None:
    page.raw("*** Control State ***")
    _kvm_control_words(page, era)
    page(
        "ExceptionBitmap={:08x} PFECmask={:08x} PFECmatch={:08x}",
        F.EXCEPTION_BITMAP,
        F.PAGE_FAULT_ERROR_CODE_MASK,
        F.PAGE_FAULT_ERROR_CODE_MATCH,
    )
    _events(page, era == "fred")
    page("TSC Offset = 0x{:016x}", F.TSC_OFFSET)
    if page.proc2 & _TSC_SCALING:
        page("TSC Multiplier = 0x{:016x}", F.TSC_MULTIPLIER)
    if page.proc1 & 1 << 21:
        _kvm_apic(page, old)
    if page.pin & 1 << 7:
        page("PostedIntrVec = 0x{:02x}", F.POSTED_INTERRUPT_NOTIFICATION_VECTOR)
    if page.proc2 & _EPT:
        page("EPT pointer = 0x{:016x}", F.EPT_POINTER)
    if page.proc2 & _PLE:
        page("PLE Gap={:08x} Window={:08x}", F.PLE_GAP, F.PLE_WINDOW)
    if page.proc2 & _VPID:
        page("Virtual processor ID = 0x{:04x}", F.VPID)
    if page.proc2 & _VE and era in ("6.18", "fred"):
        page("VE info address = 0x{:016x}", F.VIRTUALIZATION_EXCEPTION_INFO_ADDRESS)
        page.raw(
            "ve_info: 0x00000030 0xffffffff 0x0000000000000181 0x0000000000000000 "
            "0x0000000000000000 0x0000"
        )


def _kvm_apic(page: _Page, old: bool) -> None:
    start = ""
    if page.proc2 & _VID and not old:
        status = page.get(F.GUEST_INTERRUPT_STATUS)
        start = f"SVI|RVI = {status >> 8:02x}|{status & 0xFF:02x} "
    page(start + "TPR Threshold = 0x{:02x}", F.TPR_THRESHOLD)
    if not old:
        start = ""
        if page.proc2 & _APIC_ACCESSES:
            start = f"APIC-access addr = 0x{page.get(F.APIC_ACCESS_ADDRESS):016x} "
        page(start + "virt-APIC addr = 0x{:016x}", F.VIRTUAL_APIC_ADDRESS)


# ---- Xen -----------------------------------------------------------------------------------


def xen(
    values: Mapping[F, int], era: str = "4.12", above: str = "d2v0 VMLAUNCH error: 0x7"
) -> tuple[list[str], dict[F, int]]:
    """Return the lines of ``vmcs_dump_vcpu`` without ``(XEN)``, and the fields they show."""
    page = _Page(values)
    page.raw(above)
    page.raw("*** Guest State ***")
    _registers(page)
    if era == "4.2":
        _xen_4_2(page)
    else:
        _xen_4_12(page)
    return page.lines, page.shown


def _xen_4_2(page: _Page) -> None:
    page("CR3: actual=0x{:016x}, target_count={:d}", F.GUEST_CR3, F.CR3_TARGET_COUNT)
    for n in (0, 2):
        page(
            f"     target{n}={{:016x}}, target{n + 1}={{:016x}}",
            F[f"CR3_TARGET_VALUE_{n}"],
            F[f"CR3_TARGET_VALUE_{n + 1}"],
        )
    page(
        "RSP = 0x{:016x} (0x000000000000aaaa)  RIP = 0x{:016x} (0x000000000000bbbb)",
        F.GUEST_RSP,
        F.GUEST_RIP,
    )
    page("RFLAGS=0x{:016x} (0x0000000000000246)  DR7 = 0x{:016x}", F.GUEST_RFLAGS, F.GUEST_DR7)
    _xen_sysenter(page)
    segment = ": sel=0x{:04x}, attr=0x{:05x}, limit=0x{:08x}, base=0x{:016x}"
    table = ":                           limit=0x{:08x}, base=0x{:016x}"
    for name in ("CS", "DS", "SS", "ES", "FS", "GS"):
        page(name + segment, *_segment_fields(name))
    page("GDTR" + table, F.GUEST_GDTR_LIMIT, F.GUEST_GDTR_BASE)
    page("LDTR" + segment, *_segment_fields("LDTR"))
    page("IDTR" + table, F.GUEST_IDTR_LIMIT, F.GUEST_IDTR_BASE)
    page("TR" + segment, *_segment_fields("TR"))
    page("Guest PAT = 0x{:016x}", F.GUEST_IA32_PAT)
    page("TSC Offset = {:016x}", F.TSC_OFFSET)
    page(
        "DebugCtl={:016x} DebugExceptions={:016x}",
        F.GUEST_IA32_DEBUGCTL,
        F.GUEST_PENDING_DEBUG_EXCEPTIONS,
    )
    page("Interruptibility={:04x} ActivityState={:04x}", *_NON_REGISTER)
    page.raw("*** Host State ***")
    page("RSP = 0x{:016x}  RIP = 0x{:016x}", F.HOST_RSP, F.HOST_RIP)
    _host_selectors(page, "CS DS ES FS GS SS TR")
    _host_bases(page)
    _host_control_registers(page)
    page("Host PAT = 0x{:016x}", F.HOST_IA32_PAT)
    page.raw("*** Control State ***")
    _xen_control_words(page)
    page("ExceptionBitmap={:08x}", F.EXCEPTION_BITMAP)
    _events(page, fred=False, qualification="{:08x}")
    page("TPR Threshold = 0x{:02x}", F.TPR_THRESHOLD)
    page("EPT pointer = 0x{:016x}", F.EPT_POINTER)
    page("Virtual processor ID = 0x{:04x}", F.VPID)


def _xen_sysenter(page: _Page) -> None:
    page(
        "Sysenter RSP={:016x} CS:RIP={:04x}:{:016x}",
        F.GUEST_IA32_SYSENTER_ESP,
        F.GUEST_IA32_SYSENTER_CS,
        F.GUEST_IA32_SYSENTER_EIP,
    )


def _xen_control_words(page: _Page) -> None:
    page(
        "PinBased={:08x} CPUBased={:08x} SecondaryExec={:08x}",
        F.PIN_BASED_CONTROLS,
        F.PRIMARY_PROCESSOR_BASED_CONTROLS,
        F.SECONDARY_PROCESSOR_BASED_CONTROLS,
    )
    page("EntryControls={:08x} ExitControls={:08x}", F.VM_ENTRY_CONTROLS, F.VM_EXIT_CONTROLS)


def _xen_4_12(page: _Page) -> None:
    page("CR3 = 0x{:016x}", F.GUEST_CR3)
    if page.proc2 & _EPT and page.values[F.GUEST_CR4] & 0x20 and not page.entry & 1 << 9:
        page("PDPTE0 = 0x{:016x}  PDPTE1 = 0x{:016x}", F.GUEST_PDPTE0, F.GUEST_PDPTE1)
        page("PDPTE2 = 0x{:016x}  PDPTE3 = 0x{:016x}", F.GUEST_PDPTE2, F.GUEST_PDPTE3)
    page(
        "RSP = 0x{:016x} (0x000000000000aaaa)  RIP = 0x{:016x} (0x000000000000bbbb)",
        F.GUEST_RSP,
        F.GUEST_RIP,
    )
    page("RFLAGS=0x{:08x} (0x00000246)  DR7 = 0x{:016x}", F.GUEST_RFLAGS, F.GUEST_DR7)
    _xen_sysenter(page)
    page.raw("       sel  attr  limit   base")
    segment, table = ": {:04x} {:05x} {:08x} {:016x}", ":            {:08x} {:016x}"
    for name in ("CS", "DS", "SS", "ES", "FS", "GS"):
        page(f"  {name}" + segment, *_segment_fields(name))
    page("GDTR" + table, F.GUEST_GDTR_LIMIT, F.GUEST_GDTR_BASE)
    page("LDTR" + segment, *_segment_fields("LDTR"))
    page("IDTR" + table, F.GUEST_IDTR_LIMIT, F.GUEST_IDTR_BASE)
    page("  TR" + segment, *_segment_fields("TR"))
    page("EFER(VMCS) = 0x{:016x}  PAT = 0x{:016x}", F.GUEST_IA32_EFER, F.GUEST_IA32_PAT)
    page(
        "PreemptionTimer = 0x{:08x}  SM Base = 0x{:08x}",
        F.VMX_PREEMPTION_TIMER_VALUE,
        F.GUEST_SMBASE,
    )
    page(
        "DebugCtl = 0x{:016x}  DebugExceptions = 0x{:016x}",
        F.GUEST_IA32_DEBUGCTL,
        F.GUEST_PENDING_DEBUG_EXCEPTIONS,
    )
    if page.entry & (1 << 13 | 1 << 16):
        page(
            "PerfGlobCtl = 0x{:016x}  BndCfgS = 0x{:016x}",
            F.GUEST_IA32_PERF_GLOBAL_CTRL,
            F.GUEST_IA32_BNDCFGS,
        )
    page("Interruptibility = {:08x}  ActivityState = {:08x}", *_NON_REGISTER)
    if page.proc2 & _VID:
        page("InterruptStatus = {:04x}", F.GUEST_INTERRUPT_STATUS)
    _xen_4_12_host(page)
    _xen_4_12_controls(page)


def _xen_4_12_host(page: _Page) -> None:
    page.raw("*** Host State ***")
    page("RIP = 0x{:016x} (vmx.c#vmx_asm_vmexit_handler)  RSP = 0x{:016x}", F.HOST_RIP, F.HOST_RSP)
    _host_selectors(page, "CS SS DS ES FS GS TR")
    _host_bases(page)
    _host_control_registers(page)
    if page.exit & (1 << 19 | 1 << 21):
        page("EFER = 0x{:016x}  PAT = 0x{:016x}", F.HOST_IA32_EFER, F.HOST_IA32_PAT)
    if page.exit & 1 << 12:
        page("PerfGlobCtl = 0x{:016x}", F.HOST_IA32_PERF_GLOBAL_CTRL)


def _xen_4_12_controls(page: _Page) -> None:
    page.raw("*** Control State ***")
    _xen_control_words(page)
    page(
        "ExceptionBitmap={:08x} PFECmask={:08x} PFECmatch={:08x}",
        F.EXCEPTION_BITMAP,
        F.PAGE_FAULT_ERROR_CODE_MASK,
        F.PAGE_FAULT_ERROR_CODE_MATCH,
    )
    _events(page, fred=False)
    page("TSC Offset = 0x{:016x}  TSC Multiplier = 0x{:016x}", F.TSC_OFFSET, F.TSC_MULTIPLIER)
    if page.proc1 & 1 << 21 or page.pin & 1 << 7:
        page(
            "TPR Threshold = 0x{:02x}  PostedIntrVec = 0x{:02x}",
            F.TPR_THRESHOLD,
            F.POSTED_INTERRUPT_NOTIFICATION_VECTOR,
        )
    if page.proc2 & _EPT:
        page("EPT pointer = 0x{:016x}  EPTP index = 0x{:04x}", F.EPT_POINTER, F.EPTP_INDEX)
    count = min(page.values[F.CR3_TARGET_COUNT], 4)
    for n in range(0, count - 1, 2):
        first, second = F[f"CR3_TARGET_VALUE_{n}"], F[f"CR3_TARGET_VALUE_{n + 1}"]
        page(f"CR3 target{n}={{:016x}} target{n + 1}={{:016x}}", first, second)
    if count % 2:
        page(f"CR3 target{count - 1}={{:016x}}", F[f"CR3_TARGET_VALUE_{count - 1}"])
    if page.proc2 & _PLE:
        page("PLE Gap={:08x} Window={:08x}", F.PLE_GAP, F.PLE_WINDOW)
    if page.proc2 & (_VPID | 1 << 13):
        page(
            "Virtual processor ID = 0x{:04x} VMfunc controls = {:016x}",
            F.VPID,
            F.VM_FUNCTION_CONTROLS,
        )


# ---- Where dumps are found -----------------------------------------------------------------


def dmesg(lines: list[str], seconds: float = 7058.291757, task: str = "", module: str = "") -> str:
    """Return lines as dmesg prints them, one microsecond apart."""
    caller = f"[{task:>6}]" if task else ""
    return "".join(
        f"[{seconds + n * 1e-6:12.6f}]{caller} {module}{line}\n" for n, line in enumerate(lines)
    )


def journal(lines: list[str]) -> str:
    """Return lines as journalctl prints them."""
    return "".join(f"Jun 24 17:25:51 testhost kernel: {line}\n" for line in lines)


def xl_dmesg(lines: list[str], stamp: bool = False) -> str:
    """Return lines as ``xl dmesg`` prints them."""
    start = "(XEN) [2019-11-02 14:09:46] " if stamp else "(XEN) "
    return "".join(f"{start}{line}\n" for line in lines)


def quoted(text: str, depth: int = 1) -> str:
    """Return a text as a mail quotes it."""
    return "".join(f"{'>' * depth} {line}\n" for line in text.splitlines())


def wrapped(text: str, width: int = 72, quote: str = "") -> str:
    """Break long lines at blanks, as mail programs do; what is broken off has no prefix."""
    lines = []
    for line in text.splitlines():
        rest = line
        while len(rest) > width and (at := rest.rfind(" ", len(quote) + 1, width)) > 0:
            lines.append(rest[:at])
            rest = quote + rest[at + 1 :]
        lines.append(rest)
    return "\n".join(lines) + "\n"
