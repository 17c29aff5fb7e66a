# ruff: noqa: E501 - a line of a trace is one line here too
"""Lines of traces as kernels and tools print them, made from events that a test knows."""

from __future__ import annotations

from dataclasses import dataclass, field

COMMS = ("qemu-system-x86", "CPU 0/KVM", "fc_vcpu 0", "<...>", "a [b] c-1")


@dataclass(frozen=True)
class Event:
    """One event: where, when, what."""

    name: str
    time_us: int = 0
    tid: int = 0
    vcpu: int = 0
    cpu: int = 0
    reason: str = ""
    rip: int = 0
    info1: int = 0
    info2: int = 0
    intr_info: int = 0
    error_code: int = 0
    values: dict[str, object] = field(default_factory=dict)


# ---- What is before the payload ------------------------------------------------------------------


def stamp(time_us: int) -> str:
    return f"{time_us // 10**6}.{time_us % 10**6:06d}"


FRAMES = {
    "ftrace before 5.1": lambda c, e: f"{c}-{e.tid}  [{e.cpu:03d}] d..1 {stamp(e.time_us)}: {e.name}: ",
    "ftrace": lambda c, e: f" {c}-{e.tid}    [{e.cpu:03d}] d..2. {stamp(e.time_us)}: {e.name}: ",
    "ftrace, dots": lambda c, e: f" {c}-{e.tid}   [{e.cpu:03d}] ..... {stamp(e.time_us)}: {e.name}: ",
    "ftrace, TGID": lambda c, e: f" {c}-{e.tid} ( {e.tid - 1}) [{e.cpu:03d}] d..1 {stamp(e.time_us)}: {e.name}: ",
    "ftrace, no TGID": lambda c, e: f" {c}-{e.tid} (-----) [{e.cpu:03d}] d..1 {stamp(e.time_us)}: {e.name}: ",
    "trace-cmd": lambda c, e: f"{c:>16}-{e.tid} [{e.cpu:03d}] {stamp(e.time_us)}: {e.name + ':':<21} ",
    "trace-cmd, flags": lambda c, e: f"{c:>16}-{e.tid} [{e.cpu:03d}] d.... {stamp(e.time_us)}: {e.name + ':':<21} ",
    "trace-cmd -l": lambda c, e: f"{c:>8}-{e.tid} {e.cpu:3d}d..1 {stamp(e.time_us)}: {e.name + ':':<21} ",
    "trace-cmd -t": lambda c, e: f"{c:>16}-{e.tid} [{e.cpu:03d}] {stamp(e.time_us)}000: {e.name + ':':<21} ",
    "perf script": lambda c, e: f"{c:>16} {e.tid:>7} [{e.cpu:03d}] {stamp(e.time_us):>12}: {'kvm:' + e.name + ':':>26} ",
    "perf script, period": lambda c, e: f"{c:>16} {e.tid:>7} [{e.cpu:03d}] {stamp(e.time_us):>12}:          1 kvm:{e.name}: ",
    "perf script, pid/tid": lambda c, e: f"{c:>16} {e.tid - 1}/{e.tid} [{e.cpu:03d}] {stamp(e.time_us)}: kvm:{e.name}: ",
    "perf script, no CPU": lambda c, e: f"{c:>16} {e.tid:>7} {stamp(e.time_us)}: kvm:{e.name}: ",
    "perf-prof": lambda c, e: f"2022-04-22 17:39:26.535148 {c:>16} {e.tid} d... [{e.cpu:03d}] {stamp(e.time_us)}: kvm:{e.name}: ",
}  # fmt: skip

# ---- The payload of kvm_exit and its relatives ---------------------------------------------------

EXITS = {
    "2.6.37": lambda e: f"reason {e.reason} rip 0x{e.rip:x}",
    "2.6.38": lambda e: f"reason {e.reason} rip 0x{e.rip:x} info {e.info1:x} {e.info2:x}",
    "5.10": lambda e: (
        f"vcpu {e.vcpu} reason {e.reason} rip 0x{e.rip:x} info1 0x{e.info1:016x} "
        f"info2 0x{e.info2:016x} intr_info 0x{e.intr_info:08x} error_code 0x{e.error_code:08x}"
    ),
    "2024 series": lambda e: EXITS["5.10"](e) + " requests 0x0000000000000004",
    "trace-cmd, new plugin": lambda e: (
        f"vcpu {e.vcpu} reason {e.reason} rip 0x{e.rip:x} info {e.info1:x} {e.info2:x} "
        f"intr_info 0x{e.intr_info:08x} error_code 0x{e.error_code:08x}"
    ),
    "trace-cmd, symbol": lambda e: (
        f"vcpu {e.vcpu} reason {e.reason} rip 0x{e.rip:x} [do_idle+0x1f] info {e.info1:x} {e.info2:x}"
    ),
    "nested, 5.0": lambda e: (
        f"rip {e.rip:x} reason {e.reason} info1 {e.info1:x} info2 {e.info2:x} "
        f"int_info {e.intr_info:x} int_info_err {e.error_code:x}"
    ),
    "nested, 5.7": lambda e: (
        f"rip: 0x{e.rip:016x} reason: {e.reason} ext_inf1: 0x{e.info1:016x} ext_inf2: "
        f"0x{e.info2:016x} ext_int: 0x{e.intr_info:08x} ext_int_err: 0x{e.error_code:08x}"
    ),
    "complaints": lambda e: (
        'CAN\'T FIND FIELD "rip"<CANT FIND FIELD exit_code>' + EXITS["5.10"](e)
    ),
}  # fmt: skip
#: Which fields each form carries.
HAS = {
    "2.6.37": (),
    "2.6.38": ("info1", "info2"),
    "5.10": ("info1", "info2", "intr_info", "error_code"),
    "2024 series": ("info1", "info2", "intr_info", "error_code"),
    "trace-cmd, new plugin": ("info1", "info2", "intr_info", "error_code"),
    "trace-cmd, symbol": ("info1", "info2"),
    "nested, 5.0": ("info1", "info2", "intr_info", "error_code"),
    "nested, 5.7": ("info1", "info2", "intr_info", "error_code"),
    "complaints": ("info1", "info2", "intr_info", "error_code"),
}

ENTRIES = {
    "first": lambda e: f"vcpu {e.vcpu}",
    "5.7": lambda e: f"vcpu {e.vcpu}, rip 0x{e.rip:x}",
    "no comma": lambda e: f"vcpu {e.vcpu} rip 0x{e.rip:x}",
    "6.10": lambda e: f"vcpu {e.vcpu}, rip 0x{e.rip:x}[immediate exit]",
    "inj": lambda e: f"vcpu {e.vcpu}, rip 0x{e.rip:x} inj 0x800000ec inj_error_code 0x0",
    "intr_info": lambda e: f"vcpu {e.vcpu}, rip 0x{e.rip:x} intr_info 0x800000ec error_code 0x0",
}

#: Payloads of events that tell what an exit was about: event, text, and what it comes to.
DETAILS = [
    ("kvm_page_fault", "address fee00b0 error_code 181", {"detail": 0xFEE00B0, "value": 0x181}),
    (
        "kvm_page_fault",
        "vcpu 1 rip 0xffffffffc0771aa2 address 0x0000000002594fe0 error_code 0x683",
        {"detail": 0x2594FE0, "value": 0x683},
    ),
    ("kvm_msr", "msr_write 6e0 = 0x1fb1e5ac1f9", {"detail": 0x6E0, "value": 0x1FB1E5AC1F9}),
    ("kvm_msr", "msr_read 1b = 0xfee00900", {"detail": 0x1B, "value": 0xFEE00900}),
    ("kvm_msr", "msr_read 345 = 0x0 (#GP)", {"detail": 0x345, "value": 0}),
    ("kvm_pio", "pio_read at 0x64 size 1 count 1", {"detail": 0x64, "detail_size": 1}),
    (
        "kvm_pio",
        "pio_write at 0x70 size 2 count 1 val 0x8f ",
        {"detail": 0x70, "detail_size": 2, "value": 0x8F},
    ),
    (
        "kvm_pio",
        "pio_write at 0x510 size 4 count 8 val 0x1 (...)",
        {"detail": 0x510, "detail_size": 4, "value": 1},
    ),
    (
        "kvm_mmio",
        "mmio unsatisfied-read len 4 gpa 0xfebc0000 val 0x0",
        {"detail": 0xFEBC0000, "detail_size": 4, "value": 0},
    ),
    (
        "kvm_mmio",
        "mmio write len 8 gpa 0xfebc0010 val 0xabcdef",
        {"detail": 0xFEBC0010, "detail_size": 8, "value": 0xABCDEF},
    ),
    ("kvm_mmio", "mmio read len 1 gpa 0xfed000f0 val 0x7", {"detail": 0xFED000F0, "value": 7}),
    ("kvm_inj_virq", "irq 236", {"vector": 236}),
    ("kvm_inj_virq", "IRQ 0xec", {"vector": 0xEC}),
    ("kvm_inj_virq", "IRQ 0xec [reinjected]", {"vector": 0xEC}),
    ("kvm_inj_virq", "Soft/INTn 0x80", {"vector": 0x80}),
    ("kvm_inj_exception", "#PF (0x3)", {}),
    ("kvm_inj_exception", "#DB [reinjected]", {}),
    ("kvm_userspace_exit", "reason KVM_EXIT_IO (2)", {"userspace": "KVM_EXIT_IO"}),
    ("kvm_userspace_exit", "reason restart (4)", {"userspace": "restart"}),
    ("kvm_userspace_exit", "reason 0x1d (29)", {"userspace": "0x1d"}),
    ("kvm_cpuid", "func 16 idx 0 rax 0 rbx 0 rcx 0 rdx 0, cached", {"detail": 0x16}),
    ("kvm_cpuid", "func 40000001 rax 0 rbx 0 rcx 0 rdx 0, found", {"detail": 0x40000001}),
]


def line(frame: str, comm: str, event: Event, payload: str) -> str:
    return FRAMES[frame](comm, event) + payload
