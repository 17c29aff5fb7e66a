"""Counter-examples of the checks on guest registers, MSRs, tables, RIP, RFLAGS and SSP."""

from __future__ import annotations

from .entry_support import (
    BEYOND_LINEAR,
    BEYOND_PHYSICAL,
    MODES,
    NOT_CANONICAL,
    Broken,
)

CET = {"entry.load_cet_state": 1}
FRED = {"entry.load_fred": 1}
URG = {"proc2.unrestricted_guest": 1}
CR0 = 0x8001_0033
EXTERNAL_INTERRUPT = {"vm_entry_interruption_information": 1 << 31 | 0x20}
#: What VM entry demands of the segments of a virtual-8086 guest.
V8086 = {name: value for name, value in MODES["v8086"].items() if name not in MODES["legacy"]} | {
    "guest_cs_access_rights": 0xF3,
    "guest_rip": 0x1000,
}

REGISTERS = (
    Broken("guest.cr0_fixed.must_be_1.restricted", {"guest_cr0": CR0 & ~0x20}),
    Broken("guest.cr0_fixed.must_be_1.unrestricted", {"guest_cr0": CR0 & ~0x20}, URG),
    Broken("guest.cr0_fixed.must_be_0", {"guest_cr0": CR0 | 1 << 32}),
    Broken("guest.cr0_pg_needs_pe", {"guest_cr0": 0x8000_0020}, mode="real"),
    Broken("guest.cr4_fixed.must_be_1", {"guest_cr4": 0x20}),
    Broken("guest.cr4_fixed.must_be_0", {"guest_cr4": 0x2020 | 1 << 15}),
    Broken(
        "guest.cr4_cet_needs_wp", {"guest_cr0": CR0 & ~0x1_0000}, {"guest_cr4": 0x2020 | 1 << 23}
    ),
    Broken("guest.debugctl_reserved", {"guest_ia32_debugctl": 1 << 3}),
    Broken("guest.ia32e.paging", {"guest_cr0": CR0 & ~(1 << 31)}, URG),
    Broken("guest.ia32e.pae", {"guest_cr4": 0x2000}),
    Broken("guest.no_ia32e.pcide", {"guest_cr4": 0x2000 | 1 << 17}, mode="legacy"),
    Broken(
        "guest.no_ia32e.fred",
        {"guest_cr4": 0x2000 | 1 << 32},
        {"guest_cs_access_rights": 0xA09B},
        "legacy",
    ),
    Broken("guest.cr3_reserved", {"guest_cr3": BEYOND_PHYSICAL}),
    Broken("guest.dr7_high", {"guest_dr7": 1 << 32}),
    Broken("guest.sysenter_esp_canonical", {"guest_ia32_sysenter_esp": NOT_CANONICAL}),
    Broken("guest.sysenter_eip_canonical", {"guest_ia32_sysenter_eip": NOT_CANONICAL}),
    Broken("guest.s_cet.canonical", {"guest_ia32_s_cet": NOT_CANONICAL}, CET),
    Broken(
        "guest.interrupt_ssp_table_canonical",
        {"guest_ia32_interrupt_ssp_table_addr": NOT_CANONICAL},
        CET,
    ),
    Broken(
        "guest.perf_global_ctrl_reserved",
        {"guest_ia32_perf_global_ctrl": 1 << 31},
        {"entry.load_ia32_perf_global_ctrl": 1},
    ),
    Broken("guest.pat", {"guest_ia32_pat": 0x0807_0406_0007_0406}),
    Broken("guest.efer.reserved", {"guest_ia32_efer": 0xD00 | 1 << 9}),
    Broken("guest.efer.lma", {"guest_ia32_efer": 0x800}),
    Broken("guest.efer.lme", {"guest_ia32_efer": 0xC00}),
    Broken(
        "guest.bndcfgs.reserved", {"guest_ia32_bndcfgs": 1 << 2}, {"entry.load_ia32_bndcfgs": 1}
    ),
    Broken(
        "guest.bndcfgs.canonical",
        {"guest_ia32_bndcfgs": NOT_CANONICAL},
        {"entry.load_ia32_bndcfgs": 1},
    ),
    Broken(
        "guest.rtit_ctl_reserved",
        {"guest_ia32_rtit_ctl": 1 << 18},
        {"entry.load_ia32_rtit_ctl": 1},
    ),
    Broken("guest.s_cet.reserved", {"guest_ia32_s_cet": 1 << 9}, CET),
    Broken("guest.s_cet.suppress_tracker", {"guest_ia32_s_cet": 3 << 10}, CET),
    Broken(
        "guest.lbr_ctl_reserved",
        {"guest_ia32_lbr_ctl": 1 << 23},
        {"entry.load_guest_ia32_lbr_ctl": 1},
    ),
    Broken("guest.pkrs_high", {"guest_ia32_pkrs": 1 << 32}, {"entry.load_pkrs": 1}),
    Broken("guest.uinv_high", {"guest_uinv": 1 << 8}, {"entry.load_uinv": 1}),
    Broken("guest.fred.config_reserved", {"guest_ia32_fred_config": 1 << 4}, FRED),
    Broken("guest.fred.config_canonical", {"guest_ia32_fred_config": NOT_CANONICAL}, FRED),
    *(
        Broken(f"guest.fred.{name}", {f"guest_ia32_fred_{name}": value}, FRED)
        for name, value in (
            ("rsp1", NOT_CANONICAL),
            ("rsp2", 1 << 5),
            ("rsp3", 1),
            ("ssp1", NOT_CANONICAL),
            ("ssp2", 1 << 2),
            ("ssp3", 1),
        )
    ),
    Broken(
        "guest.spec_ctrl_reserved",
        {"guest_ia32_spec_ctrl": 1 << 11},
        {"entry.load_ia32_spec_ctrl": 1},
    ),
)

TABLES = (
    Broken("guest.gdtr.base_canonical", {"guest_gdtr_base": 0x001F_0000_0000_0200}),
    Broken("guest.gdtr.limit_high", {"guest_gdtr_limit": 1 << 16}),
    Broken("guest.idtr.base_canonical", {"guest_idtr_base": NOT_CANONICAL}),
    Broken("guest.idtr.limit_high", {"guest_idtr_limit": 1 << 16}),
)

RIP = (
    Broken("guest.rip.not_64bit", {"guest_rip": 1 << 32}, mode="compatibility"),
    Broken("guest.rip.64bit", {"guest_rip": BEYOND_LINEAR}),
    Broken("guest.rflags.reserved_0", {"guest_rflags": 2 | 1 << 15}),
    Broken("guest.rflags.reserved_1", {"guest_rflags": 0}),
    Broken("guest.rflags.vm.ia32e", {**V8086, "guest_rflags": 0x2_0002}),
    Broken("guest.rflags.vm.real_mode", {**V8086, "guest_rflags": 0x2_0002}, mode="real"),
    Broken("guest.rflags.if.external_interrupt", EXTERNAL_INTERRUPT, {"guest_rflags": 2}),
    Broken("guest.ssp.align", {"guest_ssp": 1}, CET),
    Broken("guest.ssp.high_identical", {"guest_ssp": BEYOND_LINEAR}, CET),
    Broken("guest.ssp.not_64bit", {"guest_ssp": 1 << 32}, CET, "compatibility"),
)

CASES = (*REGISTERS, *TABLES, *RIP)
