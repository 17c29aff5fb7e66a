"""Guests for tests: a processor in VMX non-root operation with a program of a few lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vtx.cpu import Cpu, Machine
from vtx.errors import EndOfTrace
from vtx.facts.controls import Proc1, Proc2
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit import Exit
from vtx.machine.program import Instruction, Program
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs

#: Fields that switch groups of controls on where a test names one of the group.
_GROUPS = {
    "pin": Field.PIN_BASED_CONTROLS,
    "proc1": Field.PRIMARY_PROCESSOR_BASED_CONTROLS,
    "proc2": Field.SECONDARY_PROCESSOR_BASED_CONTROLS,
    "proc3": Field.TERTIARY_PROCESSOR_BASED_CONTROLS,
    "exit1": Field.VM_EXIT_CONTROLS,
    "entry": Field.VM_ENTRY_CONTROLS,
}
CODE = 0x20_0000


def shape_with(
    profile: str = "ice_lake_sp", *features: str, msrs: Mapping[int, int] | None = None
) -> Shape:
    """Return a profile's shape with further CPUID features and other capability MSRs."""
    shape = Shape.of(profile)
    return dataclasses.replace(
        shape, features=shape.features | set(features), msrs={**shape.msrs, **(msrs or {})}
    )


def listing(text: str) -> tuple[Instruction, ...]:
    """Return the steps of a listing, one a line."""
    return tuple(parse_instruction(line) for line in text.strip().splitlines())


class GuestCpu(Cpu):
    """A processor whose guest is fully mapped and exits as little as the CPU allows."""

    def enter(self, text: str, **handlers: str) -> Exit:
        """Launch the guest with a listing; handlers are listings by ``vector_N``."""
        programs = {
            int(name.removeprefix("vector_"), 0): Program(listing(steps))
            for name, steps in handlers.items()
        }
        return self.vmlaunch(Program(listing(text), programs))

    def resume(self, after: Exit | None = None) -> Exit:
        """Go on, past the instruction of `after` if that is given."""
        if after is not None:
            self.skip(after)
        return self.vmresume()

    def set(self, group: str, *controls: int, clear: tuple[int, ...] = ()) -> None:
        """Set (and clear) controls of a group in the current VMCS."""
        field = _GROUPS[group]
        value = self.vmread(field)
        for control in controls:
            value |= control
        for control in clear:
            value &= ~control
        self.vmwrite(field, value)
        if group == "proc2":
            self.set("proc1", Proc1.ACTIVATE_SECONDARY_CONTROLS)
        if group == "proc3":
            self.set("proc1", Proc1.ACTIVATE_TERTIARY_CONTROLS)

    def bitmap(self, field: Field, *bits: int) -> int:
        """Give a bitmap field a page of its own with these bits set; return its address."""
        page = self.machine.frames.allocate()
        self.memory.write(page, bytes(4096))
        for bit in bits:
            byte = page + bit // 8
            self.memory.write_u8(byte, self.memory.read_u8(byte) | 1 << bit % 8)
        self.vmwrite(field, page)
        return page


@contextmanager
def guest(
    shape: Shape | str = "ice_lake_sp", *, user: bool = False, mapped: bool = True
) -> Iterator[GuestCpu]:
    """Yield a processor in VMX root operation, ready to launch a 64-bit guest.

    Unconditional exits aside, the guest exits for nothing: no bitmaps select anything, no
    exception is intercepted, external interrupts and NMIs are the guest's own.
    """
    machine = Machine(shape, memory_bytes=1 << 34)
    cpu = GuestCpu(machine=machine)
    machine.cpus[0] = cpu
    with machine:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape, user=user))
        quiet(cpu)
        if mapped and cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS) & Proc2.ENABLE_EPT:
            for page in range(0, 1 << 30, 1 << 21):
                cpu.ept.map(page, size="2M")
        yield cpu


def quiet(cpu: GuestCpu) -> None:
    """Clear every control that the CPU lets be 0, but keep paging, EPT and VPID as they are."""
    shape = cpu.shape
    cpu.vmwrite(Field.PIN_BASED_CONTROLS, shape.allowed0("pin"))
    proc1 = shape.allowed0("proc1") & ~(Proc1.CR3_LOAD_EXITING | Proc1.CR3_STORE_EXITING)
    proc1 |= Proc1.ACTIVATE_SECONDARY_CONTROLS | Proc1.USE_MSR_BITMAPS | Proc1.USE_IO_BITMAPS
    cpu.vmwrite(Field.PRIMARY_PROCESSOR_BASED_CONTROLS, proc1)
    kept = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
    kept &= Proc2.ENABLE_EPT | Proc2.ENABLE_VPID
    cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, kept)
    for field in (Field.IO_BITMAP_A, Field.IO_BITMAP_B, Field.MSR_BITMAP):
        cpu.bitmap(field)
    cpu.vmwrite(Field.EXCEPTION_BITMAP, 0)
    for field in (Field.CR0_GUEST_HOST_MASK, Field.CR4_GUEST_HOST_MASK):
        cpu.vmwrite(field, 0)


@contextmanager
def inside(shape: Shape | str = "ice_lake_sp", *, user: bool = False) -> Iterator[GuestCpu]:
    """Yield a processor in VMX non-root operation, at the first instruction of its guest."""
    with guest(shape, user=user) as cpu:
        try:
            cpu.vmlaunch(Program(()))
        except EndOfTrace:
            yield cpu
        else:
            raise AssertionError("a guest without a program has caused a VM exit")


def capable_shape() -> Shape:
    """Return a CPU that allows every control to be 1 and has every feature the rules ask for."""
    features = ("tdx", "wrmsrns", "msr_imm", "user_msr", "sgx", "x2apic", "lam", "uintr")
    shape = shape_with("ice_lake_sp", *features)
    low, both = 0xFFFF_FFFF_0000_0000, (1 << 64) - 1
    msrs = dict(shape.msrs)
    for msr in ("IA32_VMX_TRUE_PINBASED_CTLS", "IA32_VMX_TRUE_PROCBASED_CTLS",
                "IA32_VMX_PROCBASED_CTLS2", "IA32_VMX_TRUE_EXIT_CTLS",
                "IA32_VMX_TRUE_ENTRY_CTLS"):  # fmt: skip
        msrs[Msr[msr]] = msrs.get(Msr[msr], 0) | low
    for msr in ("IA32_VMX_PROCBASED_CTLS3", "IA32_VMX_EXIT_CTLS2", "IA32_VMX_VMFUNC"):
        msrs[Msr[msr]] = both
    msrs[Msr.IA32_VMX_CR4_FIXED1] |= 0x3FFF_FFFF
    return dataclasses.replace(shape, name="capable", msrs=msrs)
