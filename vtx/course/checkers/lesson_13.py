"""What exits cost: a guest is configured anew, and judged by cycles on a CPU profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtx.facts.controls import Proc1, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.hypervisor.handlers import Vmm
from vtx.lab.ledger import Ledger, price
from vtx.lab.profile import load_profile

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu
    from vtx.machine.exit import Exit

__all__ = ["check"]

_PROC1 = Field.PRIMARY_PROCESSOR_BASED_CONTROLS
_PROC2 = Field.SECONDARY_PROCESSOR_BASED_CONTROLS
_EXITING = (
    Proc1.RDTSC_EXITING | Proc1.CR3_LOAD_EXITING | Proc1.CR3_STORE_EXITING | Proc1.INVLPG_EXITING
    | Proc1.MOV_DR_EXITING | Proc1.PAUSE_EXITING
)  # fmt: skip
_PROFILES = ("haswell_ep", "broadwell_ep", "skylake_sp", "cascade_lake_sp")
_MSRS = (Msr.IA32_TSC_DEADLINE, Msr.IA32_SYSENTER_EIP, Msr.IA32_SYSENTER_ESP)
_PAGES = 12
#: By exit reason: what helps against exits that nobody needs.
_HINTS = {
    ExitReason.EPT_VIOLATION: "map the guest's memory before it runs, in large pages: "
    'cpu.ept.map(0, size="1G")',
    ExitReason.IO_INSTRUCTION: "cpu.exiting.ports is the set of ports that exit",
    ExitReason.RDMSR: "cpu.exiting.msr_reads is the set of MSRs whose reads exit; before it is "
    "set, all do",
    ExitReason.WRMSR: "cpu.exiting.msr_writes is the set of MSRs whose writes exit",
    ExitReason.CONTROL_REGISTER_ACCESS: 'with EPT the VMM need not see CR3: "CR3-load exiting" '
    'and "CR3-store exiting"',
    ExitReason.INVLPG: 'with EPT the processor does INVLPG for the guest: "INVLPG exiting"',
    ExitReason.RDTSC: '"RDTSC exiting"; a guest\'s own time needs TSC offsetting, and no exit',
    ExitReason.MOV_DR: '"MOV-DR exiting"',
    ExitReason.PAUSE: '"PAUSE exiting"; against spinning there is "PAUSE-loop exiting"',
}


@dataclass(frozen=True)
class _Need:
    """What the VMM has to see, and what the guest does besides."""

    port: int
    msr: Msr
    noise: int
    rounds: int

    def steps(self) -> str:
        """Return the guest's program."""
        loads = [f"load {0x80_0000 + page * 0x1000:#x}" for page in range(_PAGES)]
        body = [
            f"out dx, al port={self.noise:#x} value=1",
            f"out dx, al port={self.port:#x} value=0x41",
            "rdmsr msr=IA32_FS_BASE", f"wrmsr msr={self.msr.name} value=0x1000",
            "wrmsr msr=IA32_GS_BASE value=0x2000", "rdtsc", "mov cr3, rax value=0x300000",
            "mov rax, cr3", "invlpg [0x800000]", "mov rax, dr6", "pause", "cpuid leaf=1",
        ]  # fmt: skip
        return "\n".join([f"repeat {self.rounds}", *body, *loads, "end", "hlt"])


def check(lab: Lab) -> None:
    """Compare the student's configuration with the one before, and with what is needed."""
    configure = lab.function("configure", "the configuration: configure(cpu, port, msr)")
    ports = lab.random.sample(range(0x80, 0x1_0000), 2)
    need = _Need(ports[0], lab.random.choice(_MSRS), ports[1], lab.random.randrange(5, 9))
    profile = lab.random.choice(_PROFILES)
    first, _ = _measure(lab, need, profile, lambda *_: None)
    best, _ = _measure(lab, need, profile, _best)
    yours, seen = _measure(lab, need, profile, configure)
    _needed(lab, need, seen)
    for row in yours.rows:
        wanted = sum(other.samples for other in best.rows if other.reason == row.reason)
        if row.reason in _HINTS and row.samples > wanted:
            reason = ExitReason(row.reason)
            lab.expect(
                False,
                f"{reason.name}: {row.samples - wanted} exits that nobody needs, "
                f"{int(row.cycles * (row.samples - wanted) / row.samples):,} cycles on {profile}",
                _HINTS[reason],
            )
    lab.expect(
        yours.translation_cycles <= best.translation_cycles * 2,
        "the guest keeps its TLB across VM exits",
        f"its page walks take {int(yours.translation_cycles):,} cycles, and need take only "
        f"{int(best.translation_cycles):,}: is VPID on, and not 0?",
    )
    lab.expect(
        yours.cycles * 20 <= best.cycles * 21,
        "the guest costs what it has to, and no more",
        f"on {profile}: {int(first.cycles):,} cycles before, {int(yours.cycles):,} now, "
        f"{int(best.cycles):,} are possible",
    )


def _needed(lab: Lab, need: _Need, seen: list[tuple[str, int]]) -> None:
    """Remark on what the VMM must see."""
    for kind, wanted, hint in (
        ("port", need.port, "it belongs into cpu.exiting.ports"),
        ("msr", int(need.msr), "it belongs into cpu.exiting.msr_writes"),
    ):
        lab.expect(
            seen.count((kind, wanted)) == need.rounds,
            f"the VMM still sees every write to the {kind.upper() if kind == 'msr' else kind}",
            f"{seen.count((kind, wanted))} of {need.rounds} writes to {wanted:#x} exit; {hint}",
        )


def _start(lab: Lab, profile: str) -> Cpu:
    """Return a processor with a guest that exits for everything, and of which nothing is mapped."""
    cpu = lab.guest(profile, mapped=False)
    cpu.vmwrite(_PROC1, cpu.vmread(_PROC1) | _EXITING)
    cpu.vmwrite(_PROC2, cpu.vmread(_PROC2) & ~Proc2.ENABLE_VPID)
    cpu.vmwrite(Field.VPID, 0)
    return cpu


def _measure(
    lab: Lab, need: _Need, profile: str, configure: Callable[..., Any]
) -> tuple[Ledger, list[tuple[str, int]]]:
    """Return what the guest cost, and which writes to port and MSR were seen."""
    cpu, vmm, seen = _start(lab, profile), Vmm(), list[tuple[str, int]]()
    configure(cpu, need.port, int(need.msr))

    def handle(cpu: Cpu, exit: Exit) -> None:
        info = exit.information
        if info.reason is ExitReason.IO_INSTRUCTION:
            seen.append(("port", info.qualification >> 16 & 0xFFFF))
        elif info.reason is ExitReason.WRMSR:
            seen.append(("msr", cpu.regs.rcx & 0xFFFF_FFFF))
        vmm.handle(cpu, exit)

    lab.run(cpu, need.steps(), handle)
    return price(_Run(cpu.machine.events, cpu.mmu.counters()), load_profile(profile)), seen


@dataclass(frozen=True)
class _Run:
    """What of a run the ledger looks at."""

    events: Any
    translation: dict[str, int]


def _best(cpu: Cpu, port: int, msr: int) -> None:
    """Let exit what has to."""
    cpu.exiting.ports = {port}
    cpu.exiting.msr_reads = set()
    cpu.exiting.msr_writes = {msr}
    cpu.vmwrite(_PROC1, cpu.vmread(_PROC1) & ~_EXITING)
    cpu.vmwrite(_PROC2, cpu.vmread(_PROC2) | Proc2.ENABLE_VPID)
    cpu.vmwrite(Field.VPID, 1)
    cpu.ept.map(0, size="1G")
