"""Counter-examples of the checks on host state, and on the machine check during entry."""

from __future__ import annotations

from dataclasses import replace

from vtx.facts.msrs import Msr

from .entry_support import BEYOND_PHYSICAL, NOT_CANONICAL, Broken, with_msr

CET = {"exit1.load_cet_state": 1}
FRED = {"exit2.load_fred": 1}
HOST_32 = "32-bit host"
OUTSIDE_IA32E = {"lma": 0}
NO_INTEL64 = replace(
    with_msr(Msr.IA32_VMX_CR4_FIXED1, clear=1 << 12), name="no Intel 64", linear_bits=32
)
NO_EFER = {"exit1.load_ia32_efer": 0, "entry.load_ia32_efer": 0}

REGISTERS = (
    Broken("host.cr0_fixed.must_be_1", {"host_cr0": 0x8001_0013}),
    Broken("host.cr0_fixed.must_be_0", {"host_cr0": 1 << 32 | 0x8001_0033}),
    Broken("host.cr4_fixed.must_be_1", {"host_cr4": 0x20}),
    Broken("host.cr4_fixed.must_be_0", {"host_cr4": 0x2020 | 1 << 15}),
    Broken("host.cr4_cet_needs_wp", {"host_cr0": 0x8000_0033}, {"host_cr4": 0x2020 | 1 << 23}),
    Broken("host.cr3_reserved", {"host_cr3": BEYOND_PHYSICAL}),
    Broken("host.sysenter_esp_canonical", {"host_ia32_sysenter_esp": NOT_CANONICAL}),
    Broken("host.sysenter_eip_canonical", {"host_ia32_sysenter_eip": NOT_CANONICAL}),
    Broken(
        "host.perf_global_ctrl_reserved",
        {"host_ia32_perf_global_ctrl": 1 << 63},
        {"exit1.load_ia32_perf_global_ctrl": 1},
    ),
    Broken("host.pat", {"host_ia32_pat": 0x0007_0206_0007_0406}),
    Broken("host.efer.reserved", {"host_ia32_efer": 0xD00 | 1 << 1}),
    Broken("host.efer.lma", {"host_ia32_efer": 0xD00 & ~(1 << 10)}),
    Broken("host.efer.lme", {"host_ia32_efer": 0xD00 & ~(1 << 8)}),
    Broken("host.s_cet.reserved", {"host_ia32_s_cet": 1 << 6}, CET),
    Broken("host.s_cet.suppress_tracker", {"host_ia32_s_cet": 3 << 10}, CET),
    Broken("host.ssp_align", {"host_ssp": 2}, CET),
    Broken("host.pkrs_high", {"host_ia32_pkrs": 1 << 32}, {"exit1.load_pkrs": 1}),
    Broken("host.fred.config_reserved", {"host_ia32_fred_config": 1 << 11}, FRED),
    Broken("host.fred.config_canonical", {"host_ia32_fred_config": NOT_CANONICAL}, FRED),
    *(
        Broken(f"host.fred.{name}", {f"host_ia32_fred_{name}": value}, FRED)
        for name, value in (
            ("rsp1", 1 << 5),
            ("rsp2", NOT_CANONICAL),
            ("rsp3", 1),
            ("ssp1", 1 << 2),
            ("ssp2", NOT_CANONICAL),
            ("ssp3", 1),
        )
    ),
    Broken(
        "host.spec_ctrl_reserved",
        {"host_ia32_spec_ctrl": 1 << 9},
        {"exit2.load_ia32_spec_ctrl": 1},
    ),
)

SEGMENTS = (
    *(
        Broken(f"host.{name}.selector_rpl_ti", {f"host_{name}_selector": 0x18 | bit})
        for name, bit in (
            ("cs", 1),
            ("ss", 2),
            ("ds", 4),
            ("es", 3),
            ("fs", 1),
            ("gs", 2),
            ("tr", 4),
        )
    ),
    Broken("host.cs.selector_null", {"host_cs_selector": 0}),
    Broken("host.tr.selector_null", {"host_tr_selector": 0}),
    Broken("host.ss.selector_null", {"host_ss_selector": 0}, mode=HOST_32, state=OUTSIDE_IA32E),
    *(
        Broken(f"host.{name}.base_canonical", {f"host_{name}_base": NOT_CANONICAL})
        for name in ("fs", "gs", "gdtr", "idtr", "tr")
    ),
)


def _host_32(name: str, change: dict[str, int], given: dict[str, int] | None = None) -> Broken:
    return Broken(f"host.size32.{name}", change, given or {}, HOST_32, state=OUTSIDE_IA32E)


SIZE = (
    Broken(
        "host.size.lma0_ia32e_guest",
        {},
        state=OUTSIDE_IA32E,
        also=("host.size.lma0_host64",),
        why="an IA-32e guest needs a 64-bit host, which cannot be set from outside IA-32e mode",
    ),
    Broken("host.size.lma0_host64", {}, mode="legacy", state=OUTSIDE_IA32E),
    Broken("host.size.lma1_host64", {}, mode=HOST_32),
    Broken(
        "host.size32.ia32e_guest",
        {"entry.ia32e_mode_guest": 1, "guest_cr4": 0x2020, "guest_ia32_efer": 0xD00},
        mode=HOST_32,
        state=OUTSIDE_IA32E,
        also=("host.size.lma0_ia32e_guest",),
        why="a 32-bit host is outside IA-32e mode when it enters the guest",
    ),
    _host_32("pcide", {"host_cr4": 0x2020 | 1 << 17}),
    _host_32("fred", {"host_cr4": 0x2020 | 1 << 32}),
    _host_32("rip", {"host_rip": 1 << 32}),
    _host_32("s_cet", {"host_ia32_s_cet": 1 << 32}, CET),
    _host_32("ssp", {"host_ssp": 1 << 32}, CET),
    Broken("host.size64.pae", {"host_cr4": 0x2000}),
    Broken("host.size64.rip_canonical", {"host_rip": NOT_CANONICAL}),
    Broken("host.size64.s_cet_canonical", {"host_ia32_s_cet": NOT_CANONICAL}, CET),
    Broken("host.size64.ssp_canonical", {"host_ssp": NOT_CANONICAL}, CET),
    Broken(
        "host.interrupt_ssp_table_canonical",
        {"host_ia32_interrupt_ssp_table_addr": NOT_CANONICAL},
        CET,
    ),
    Broken(
        "host.no_intel64.ia32e_guest",
        {"entry.ia32e_mode_guest": 1, "guest_cr4": 0x2020},
        NO_EFER,
        HOST_32,
        shape=NO_INTEL64,
        state=OUTSIDE_IA32E,
        also=("host.size.lma0_ia32e_guest", "host.size32.ia32e_guest"),
        why="such a CPU is always outside IA-32e mode",
    ),
    Broken(
        "host.no_intel64.host64",
        {"exit1.host_address_space_size": 1},
        NO_EFER,
        HOST_32,
        shape=NO_INTEL64,
        state=OUTSIDE_IA32E,
        also=("host.size.lma0_host64",),
        why="such a CPU is always outside IA-32e mode",
    ),
)

CASES = (*REGISTERS, *SEGMENTS, *SIZE)
