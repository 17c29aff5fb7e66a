"""Logical processors in the states that tests start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from vtx.cpu import Cpu, Machine
from vtx.errors import EndOfTrace, GuestFault, VMfailInvalid, VMfailValid
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.exit_information import ExitInformation
from vtx.machine.program import Program
from vtx.machine.registers import Segment
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs

STATUS_FLAGS = 0x8D5
#: Linear addresses: the host's page tables map the first GiB one to one and nothing else.
SCRATCH = 0x3000_0000
UNMAPPED = 0x7000_0000


@cache
def shape_of(profile: str) -> Shape:
    """Return a profile's shape, read once."""
    return Shape.of(profile)


def with_msrs(shape: Shape, **msrs: int) -> Shape:
    """Return a shape in which capability MSRs have other values."""
    return replace(shape, msrs={**shape.msrs, **{Msr[name]: value for name, value in msrs.items()}})


def outside(shape: Shape | str = "skylake_sp") -> Cpu:
    """Return a processor that may execute VMXON, all status flags set to see them change."""
    if isinstance(shape, str):
        shape = shape_of(shape)
    cpu = Machine(shape, memory_bytes=2 << 30).cpus[0]
    cpu.regs.rflags |= STATUS_FLAGS
    return cpu


def root(shape: Shape | str = "skylake_sp") -> Cpu:
    """Return a processor in VMX root operation, without a current VMCS."""
    cpu = outside(shape)
    cpu.vmxon()
    cpu.regs.rflags |= STATUS_FLAGS
    return cpu


def loaded(shape: Shape | str = "skylake_sp", **fields: int) -> Cpu:
    """Return a processor whose current VMCS could be launched; fields by name change it."""
    cpu = root(shape)
    cpu.load(Vmcs.for_64bit_guest(cpu.shape).update(**fields))
    if cpu.shape.has_ept:
        for gpa in range(0, 16 << 20, 2 << 20):
            cpu.ept.map(gpa, size="2M")
    cpu.regs.rflags |= STATUS_FLAGS
    return cpu


def program(*lines: str) -> Program:
    """Return a program of one-line instructions."""
    return Program(tuple(parse_instruction(line) for line in lines))


def exited(shape: Shape | str = "skylake_sp", line: str = "cpuid leaf=0", **fields: int) -> Cpu:
    """Return a processor whose guest was launched and has exited by CPUID."""
    cpu = loaded(shape, **fields)
    cpu.vmlaunch(program(line, *["cpuid leaf=0"] * 64))
    cpu.regs.rflags |= STATUS_FLAGS
    return cpu


def guest(shape: Shape | str = "skylake_sp", **fields: int) -> Cpu:
    """Return a processor in VMX non-root operation: its guest's program has ended."""
    cpu = loaded(shape, **fields)
    try:
        cpu.vmlaunch(program("nop"))
    except EndOfTrace:
        cpu.regs.rflags |= STATUS_FLAGS
        return cpu
    raise AssertionError("the guest exited")


def left(cpu: Cpu) -> None:
    """Leave VMX operation."""
    cpu.vmxoff()
    cpu.regs.rflags |= STATUS_FLAGS


def set_cpl(cpu: Cpu, cpl: int) -> None:
    """Change the privilege level."""
    ss = cpu.regs.ss
    cpu.regs.ss = ss._replace(access_rights=ss.access_rights & ~0x60 | cpl << 5)


def real_mode(cpu: Cpu) -> None:
    """Clear CR0.PE."""
    cpu.regs.cr0 &= ~1


def virtual_8086_mode(cpu: Cpu) -> None:
    """Set RFLAGS.VM."""
    cpu.regs.rflags |= 1 << 17


def compatibility_mode(cpu: Cpu) -> None:
    """Clear CS.L, set CS.D, with IA32_EFER.LMA still 1."""
    cpu.regs.cs = Segment(0x30, 0, 0xFFFF_FFFF, 0xC09B)


def legacy_mode(cpu: Cpu) -> None:
    """Leave IA-32e mode for 32-bit protected mode with PAE paging."""
    compatibility_mode(cpu)
    cpu.regs.efer &= ~0x500


def outcome(cpu: Cpu, act: Callable[[Cpu], object]) -> str:
    """Return in words what an instruction did, and check the status flags that go with it."""
    before = cpu.regs.rflags & STATUS_FLAGS
    try:
        result = act(cpu)
    except GuestFault as fault:
        assert cpu.regs.rflags & STATUS_FLAGS == before
        name = str(fault).partition(":")[0]
        return "#PF" if fault.vector == 14 else name
    except VMfailInvalid:
        assert cpu.regs.rflags & STATUS_FLAGS == 1
        return "VMfailInvalid"
    except VMfailValid as failure:
        assert cpu.regs.rflags & STATUS_FLAGS == 1 << 6
        assert cpu.vmcs is not None
        assert cpu.vmcs[Field.VM_INSTRUCTION_ERROR] == failure.error
        return f"VMfail({failure.error})"
    if isinstance(result, Exit):
        kind = "VM-entry failure" if result.entry_failure else "VM exit"
        return f"{kind}({int(result.reason)})"
    if cpu.non_root:
        return "success"
    assert cpu.regs.rflags & STATUS_FLAGS == 0
    return "success"


def vmx_exit() -> ExitInformation:
    """Return a VM exit due to CPUID."""
    return ExitInformation(ExitReason.CPUID, instruction_length=2)
