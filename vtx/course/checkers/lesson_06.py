"""CR0 by bits, MSRs by sets, and the guest's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.exits import ExitReason
from vtx.facts.msrs import Msr

if TYPE_CHECKING:
    from vtx.course.lab import Lab, Watched

__all__ = ["check"]

_SECRET = 0x1122_3344_5566_7788
#: CR0.MP, EM, TS, WP and AM: any value of them is allowed.
_FREE = (1 << 1, 1 << 2, 1 << 3, 1 << 16, 1 << 18)
_MSRS = (
    Msr.IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
    Msr.IA32_KERNEL_GS_BASE,
    Msr.IA32_FS_BASE,
)
_REGISTERS = ("rbx", "rsi", "rdi", "r9", "r14")
_SLACK = 1 << 32


def check(lab: Lab) -> None:
    """Run a guest that writes CR0, reads and writes MSRs, and looks at the clock."""
    setup = lab.function("setup", "setup(cpu, owned, hidden, guarded, offset)")
    handle = lab.function("handle", "the handler: handle(cpu, exit)")
    owned_bit, free_bit = lab.random.sample(_FREE, 2)
    hidden, guarded, other = lab.random.sample(_MSRS, 3)
    offset = lab.random.randrange(1 << 40, 1 << 62)
    register = lab.random.choice(_REGISTERS)
    cpu = lab.guest()
    before = cpu.guest.cr0
    owned = owned_bit | lab.random.choice(
        [bit for bit in _FREE if bit not in (owned_bit, free_bit)]
    )
    setup(cpu, owned, int(hidden), int(guarded), offset)
    first, second = before ^ free_bit, before ^ owned_bit
    from vtx.hypervisor.trace import program

    steps = program(
        f"""
        mov cr0, rcx value={first:#x}
        mov r10, cr0
        mov cr0, rcx value={first:#x}
        mov cr0, {register} value={second:#x} rax={before:#x}
        mov r11, cr0
        wrmsr msr={int(other):#x} value=0
        rdmsr msr={int(guarded):#x}
        rdtsc
        mov r12, rax
        mov r13, rdx
        rdmsr msr={int(hidden):#x}
        wrmsr msr={int(guarded):#x} value=0
        nop
        hlt
        """,
        handlers={"#GP": "hlt\niret"},
    )
    watched = lab.run(cpu, steps, handle)
    _control_register(lab, watched, first, second, owned)
    lab.equal(
        cpu.guest.cr0,
        before,
        "guest CR0 ends with the guest's bits as written, and the owned bits as they were",
        "the guest's other bits were written by the same MOV, which did not execute: write them",
    )
    _msrs(lab, watched)
    clock = (cpu.guest.r13 & 0xFFFF_FFFF) << 32 | cpu.guest.r12 & 0xFFFF_FFFF
    lab.expect(
        offset <= clock < offset + _SLACK,
        "the guest's time-stamp counter is ahead by the offset",
        f"RDTSC returned {clock:#x}, the offset is {offset:#x}: the field acts only with the "
        'control "use TSC offsetting"',
    )


def _control_register(lab: Lab, watched: Watched, first: int, second: int, owned: int) -> None:
    """Look at what exited, and at what the guest read."""
    guest = watched.cpu.guest
    exits = watched.count(ExitReason.CONTROL_REGISTER_ACCESS)
    lab.equal(
        exits,
        1,
        "of three writes of CR0 the one exits that changes an owned bit",
        "in the guest/host mask a 1 is the VMM's; a write exits if an owned bit differs from the "
        "read shadow, so the shadow starts as CR0 is, and follows what the guest writes",
    )
    lab.equal(
        guest.r10,
        first,
        "the guest reads CR0 as it has written it, before any exit",
        "it reads owned bits from the read shadow: begin with what they are in guest CR0",
    )
    lab.equal(
        guest.r11 & owned,
        second & owned,
        "the guest reads the owned bit as it has written it",
        "the new value is in the register that exit.cr.register names; the guest reads owned bits "
        "from the read shadow",
    )


def _msrs(lab: Lab, watched: Watched) -> None:
    """Look at the MSR exits, and at what became of them."""
    reads, writes = watched.count(ExitReason.RDMSR), watched.count(ExitReason.WRMSR)
    lab.equal(
        reads,
        1,
        "RDMSR exits for the hidden MSR, and for no other",
        "cpu.exiting.msr_reads; without bitmaps all accesses exit",
    )
    lab.equal(
        writes,
        1,
        "WRMSR exits for the guarded MSR, and for no other",
        "reads and writes are sets of their own: cpu.exiting.msr_writes",
    )
    answers = [
        registers
        for (reason, _), registers in zip(watched.exits, watched.registers, strict=False)
        if reason == ExitReason.RDMSR
    ]
    for name, wanted in (("rdx", _SECRET >> 32), ("rax", _SECRET & 0xFFFF_FFFF)):
        lab.equal(
            answers[-1][name] if answers else None,
            wanted,
            f"RDMSR of the hidden MSR gives its half of SECRET in {name.upper()}",
            "the upper 32 bits go into EDX, the lower into EAX; both upper halves are 0",
        )
    if writes == 1:
        _protection(lab, watched)


def _protection(lab: Lab, watched: Watched) -> None:
    """Look at how the guest ended: in its handler of #GP, or past the WRMSR."""
    [at] = [rip for reason, rip in watched.exits if reason == ExitReason.WRMSR]
    guest = watched.cpu.guest
    if not lab.expect(
        guest.rip >> 63 == 1,  # the handlers are the kernel's, in the upper half
        "the guest runs its handler of #GP, and not the instruction behind WRMSR",
        'cpu.inject("#GP") lets the next VM entry deliver it',
    ):
        return
    error_code, saved = (
        int.from_bytes(bytes(guest.linear[place : place + 8]), "little")
        for place in (guest.rsp, guest.rsp + 8)
    )
    lab.equal(error_code, 0, "the error code of #GP is 0")
    lab.equal(
        saved,
        at,
        "#GP is a fault: the RIP that the guest's handler gets is that of the WRMSR",
        "inject or skip, not both: cpu.skip moved RIP",
    )
