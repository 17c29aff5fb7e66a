"""What most often breaks a rule of VM entry, in one line each.

From failures that were posted with their dumps and the fixes that followed, in KVM and Xen. The
registry of checks knows causes of its own; this table says more where dumps have taught more.
"""

from __future__ import annotations

from vtx.rules.declaration import Check

__all__ = ["CAUSES", "cause_of"]

_BIG_REAL_MODE = (
    'without "unrestricted guest" a real-mode guest runs in virtual-8086 mode, which cannot hold a '
    "segment of big real mode or one left over from protected mode; the VMM has to emulate it"
)
_SET_BY_USERSPACE = (
    "user space set the segment (KVM_SET_SREGS) as it stands in a descriptor table; "
)
_GRANULARITY = (
    "limit and G contradict each other: the limit field is in bytes, with G its low 12 bits are 1"
)
_REINJECTED = (
    "an exit during event delivery was followed by injecting the event again without all of its "
)
_PRIVILEGE = (
    "CS and SS were set at different times or restored from different states, so that the guest's "
    "privilege level is ambiguous"
)
_LONG_MODE = (
    'EFER, CR0.PG and "IA-32e mode guest" were not updated together when the guest switched long '
    "mode on or off"
)
_MIGRATED = "the state comes from a CPU that has the feature (migration, a saved image)"
_LINK_POINTER = "without VMCS shadowing the link pointer has to be FFFFFFFF_FFFFFFFFH"
_SELECTOR = "the VMM stored its own selector with RPL or TI; both have to be masked off"
_PDPTE = (
    "the PDPTEs were not read again after the guest's CR3 changed, or the guest's table holds "
    "garbage"
)

_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")


def _causes() -> dict[str, str]:
    causes = {
        "ctl.entry.inject.error_code_required": _REINJECTED
        + "parts: the error code that exceptions of this vector push is missing",
        "ctl.entry.inject.error_code_not_hw_exception": (
            '"deliver error code" was left over from an earlier exception'
        ),
        "ctl.entry.inject.error_code_real_mode": (
            "an exception with error code is injected into a guest in real mode, where exceptions "
            "push none"
        ),
        "ctl.entry.inject.error_code_forbidden_vector": (
            '"deliver error code" was set for an exception that pushes none'
        ),
        "ctl.entry.inject.vector_nmi": "an NMI is injected with a vector other than 2",
        "ctl.exec.vpid_nonzero": (
            "VPID 0 is the VMM's own; no identifier was allocated for the virtual CPU"
        ),
        "ctl.exec.eptp.memory_type": "the address of the EPT was stored without its attributes",
        "ctl.exec.eptp.walk_length": "the address of the EPT was stored without its attributes",
        "ctl.exec.tpr_threshold_vs_vtpr": (
            "the guest's TPR fell below the threshold and the VMM did not update the threshold"
        ),
        "host.cr4_fixed.must_be_0": "the VMM wrote CR4 after it stored the host CR4 field",
        "host.efer.lma": '"host address-space size" does not match the EFER that is loaded',
        "guest.interruptibility.sti_needs_if": (
            "RFLAGS.IF was cleared and the shadow of STI was not; known case: an SMI taken right "
            "after STI, whose handler starts with IF = 0 (KVM clears the shadow since Linux 6.2)"
        ),
        "guest.rflags.if.external_interrupt": (
            "the VMM injects an interrupt that it chose while RFLAGS.IF was 1; IF has changed "
            "since (RSM, a reset, state set by user space)"
        ),
        "guest.interruptibility.ext_int.sti": (
            "the VMM injects an interrupt without waiting for the interrupt window"
        ),
        "guest.interruptibility.ext_int.mov_ss": (
            "the VMM injects an interrupt without waiting for the interrupt window"
        ),
        "guest.interruptibility.virtual_nmi": (
            "the VMM injects an NMI while the guest handles one; it has to wait for the NMI window"
        ),
        "guest.interruptibility.smi_outside_smm": (
            "the guest's own system-management mode was written into the field; blocking by SMI "
            "is about the physical processor"
        ),
        "guest.activity.hlt_dpl": (
            "HLT was restored for a guest that is in user mode (migration, single-stepping)"
        ),
        "guest.activity.blocking": (
            "the guest was put into HLT without clearing the shadow of STI: STI; HLT"
        ),
        "guest.pending_debug.bs_must_be_1": (
            "single-stepping behind STI, MOV SS or HLT: either a debugger set RFLAGS.TF, or #DB is "
            "injected again where MOV SS has delayed it (as in XSA-260, CVE-2018-8897)"
        ),
        "guest.pending_debug.bs_must_be_0": (
            "a pending single-step was kept although RFLAGS.TF is 0 or IA32_DEBUGCTL.BTF is 1"
        ),
        "guest.cr0_pg_needs_pe": "the guest's CR0 was restored from an inconsistent state",
        "guest.no_ia32e.pcide": "CR4.PCIDE was kept when the guest left IA-32e mode",
        "guest.dr7_high": (
            "DR7 comes from a saved image or from user space that did not check bits 63:32"
        ),
        "guest.rip.not_64bit": "RIP kept high bits when the guest left 64-bit mode",
        "guest.tr.type.ia32e": (
            "TR still is that of a 16-bit or 32-bit guest, or its TSS is marked available"
        ),
        "guest.tr.type.legacy": "TR was never loaded, or its TSS is marked available, not busy",
        "guest.ss.selector_rpl_eq_cs": _PRIVILEGE,
        "guest.ss.dpl.eq_rpl": _PRIVILEGE,
        "guest.cs.dpl.nonconforming": _PRIVILEGE,
        "guest.perf_global_ctrl_reserved": "it enables a counter that the CPU does not have",
        "guest.debugctl_reserved": _MIGRATED,
        "guest.efer.reserved": _MIGRATED,
        "msrload.wrmsr_would_fault": (
            "the value is one that WRMSR refuses; known case: last-branch records, which a CPU "
            "with TSX switched off writes in a form that it does not take back"
        ),
    }
    for name in ("efer.lma", "efer.lme", "ia32e.paging", "ia32e.pae"):
        causes[f"guest.{name}"] = _LONG_MODE
    for kind in ("software_interrupt", "privileged_software_exception", "software_exception"):
        causes[f"ctl.entry.inject.length_zero.{kind}"] = _REINJECTED + "parts: no length"
    for name in ("align", "width", "revision", "shadow_indicator", "not_current"):
        causes[f"guest.link_pointer.{name}"] = _LINK_POINTER
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
        causes[f"host.{name}.selector_rpl_ti"] = _SELECTOR
    for name in ("memory.reserved_low", "memory.reserved_high"):
        causes[f"guest.pdpte.{name}"] = _PDPTE
        causes[f"guest.pdpte.{name.replace('memory', 'vmcs')}"] = _PDPTE
    return causes | _segment_causes()


def _segment_causes() -> dict[str, str]:
    """Return the causes for segment registers, which have the same rules."""
    causes = {}
    for name in _SEGMENTS:
        for part in ("base", "limit", "ar"):
            causes[f"guest.{name}.{part}.v8086"] = _BIG_REAL_MODE
        for setting in ("must_be_0", "must_be_1"):
            causes[f"guest.{name}.granularity.{setting}"] = _GRANULARITY
        causes[f"guest.{name}.present"] = (
            _SET_BY_USERSPACE + "a segment that is not present has to be unusable"
        )
    for name in ("ds", "es", "fs", "gs"):
        causes[f"guest.{name}.type.accessed"] = (
            _SET_BY_USERSPACE + "a loaded segment has its accessed bit set (type bit 0)"
        )
    return causes


#: Likely causes by id of the check.
CAUSES: dict[str, str] = _causes()


def cause_of(check: Check) -> str | None:
    """Return what most often breaks a rule, None if nothing is known."""
    return CAUSES.get(check.id) or check.cause
