"""Processors, shapes and VMCSs for the tests of VM-entry checks.

A counter-example is a pair of VMCSs: one that passes every check, and the same with the few changes
that break one rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType

from vtx.facts.controls import CONTROL_CLASSES, GROUPS
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.memory import Memory
from vtx.machine.processor import Processor
from vtx.machine.registers import Efer, Registers
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs

REVISION = 0x12
VMXON, VMCS = 0x1000, 0x2000
#: Free for structures: zero unless a case writes there.
PAGE = 0x5000
MEMORY_BYTES = 16 << 20
#: The first bit beyond the physical and beyond the linear addresses of `EVERYTHING`.
BEYOND_PHYSICAL = 1 << 46
NOT_CANONICAL = 1 << 47
BEYOND_LINEAR = 1 << 48


def _settings(key: str) -> int:
    """Return a capability MSR with two halves that allows every defined control of a group."""
    group = GROUPS[key]
    named = sum(group.members)
    return (named | group.default1_mask) << 32 | group.default1_mask & ~named


def _everything() -> Shape:
    """Return a CPU that has all features there are."""
    pin, proc1, exit1, entry = map(_settings, ("pin", "proc1", "exit1", "entry"))
    cr4 = sum(1 << bit for bit in (*range(15), *range(16, 26), 28, 32))
    return Shape(
        "everything",
        {
            Msr.IA32_VMX_BASIC: 1 << 55 | 1 << 54 | 6 << 50 | 0x1000 << 32 | REVISION,
            Msr.IA32_VMX_TRUE_PINBASED_CTLS: pin,
            Msr.IA32_VMX_TRUE_PROCBASED_CTLS: proc1,
            Msr.IA32_VMX_TRUE_EXIT_CTLS: exit1,
            Msr.IA32_VMX_TRUE_ENTRY_CTLS: entry,
            Msr.IA32_VMX_PROCBASED_CTLS2: sum(GROUPS["proc2"].members) << 32,
            Msr.IA32_VMX_PROCBASED_CTLS3: sum(GROUPS["proc3"].members),
            Msr.IA32_VMX_EXIT_CTLS2: sum(GROUPS["exit2"].members),
            Msr.IA32_VMX_VMFUNC: 1,
            Msr.IA32_VMX_MISC: 4 << 16 | 1 << 14 | 7 << 6 | 1 << 5,
            Msr.IA32_VMX_CR0_FIXED0: 0x8000_0021,
            Msr.IA32_VMX_CR0_FIXED1: 0xFFFF_FFFF,
            Msr.IA32_VMX_CR4_FIXED0: 0x2000,
            Msr.IA32_VMX_CR4_FIXED1: cr4,
            Msr.IA32_VMX_EPT_VPID_CAP: 0xF01_0633_4141,
        },
        features=frozenset({"nx", "page_1g", "rtm", "sgx", "bus_lock_detect"}),
    )


EVERYTHING = _everything()


def with_msr(msr: Msr, clear: int = 0, set: int = 0, shape: Shape = EVERYTHING) -> Shape:
    """Return a shape in which some bits of a capability MSR are different."""
    return replace(shape, msrs={**shape.msrs, msr: shape.msr(msr) & ~clear | set})


def without_features(*names: str) -> Shape:
    """Return the CPU with everything but some features."""
    return replace(EVERYTHING, features=EVERYTHING.features - set(names))


def without_control(key: str, *names: str) -> Shape:
    """Return the CPU with everything but some controls."""
    msr = Msr[GROUPS[key].true_capability_msr or GROUPS[key].capability_msr]
    bits = sum(CONTROL_CLASSES[key][name.upper()] for name in names)
    return with_msr(msr, clear=bits << 32)


@cache
def _memory() -> Memory:
    return Memory(MEMORY_BYTES, huge_pages=False)


def processor(
    shape: Shape = EVERYTHING,
    memory: Mapping[int, bytes] = MappingProxyType({}),
    **state: int | bool,
) -> Processor:
    """Return a logical processor in VMX root operation, with its VMCS region at `VMCS`.

    Parameters
    ----------
    shape : Shape
        The CPU.
    memory : mapping of int to bytes
        What is in memory beside the VMXON and the VMCS region.
    **state
        Attributes of the processor, and ``lma`` and ``rtit_ctl``.
    """
    store = _memory()
    store.write(0, bytes(0x2_0000))
    for address in (VMXON, VMCS):
        store.write_u32(address, shape.revision_id)
    for address, content in memory.items():
        store.write(address, content)
    cpu = Processor(shape, store)
    cpu.regs = Registers.for_64bit_host(shape)
    cpu.in_vmx = True
    cpu.vmxon_pointer, cpu.current_vmcs_pointer = VMXON, VMCS
    for name, value in state.items():
        if name == "lma":
            cpu.regs.efer = cpu.regs.efer & ~Efer.LMA | (Efer.LMA if value else 0)
        elif name == "rtit_ctl":
            cpu.regs.msrs[Msr.IA32_RTIT_CTL] = value
        else:
            assert hasattr(cpu, name)
            setattr(cpu, name, value)
    return cpu


def put(vmcs: Vmcs, changes: Mapping[str, int]) -> Vmcs:
    """Set fields (``"guest_rip"``) and controls (``"proc2.enable_ept"``) by name.

    A control that is set to 1 is activated too.
    """
    for name, value in changes.items():
        group, dot, control = name.partition(".")
        if dot:
            _put_control(vmcs, group, control, value)
        else:
            vmcs[Field[name.upper()]] = value
    return vmcs


def _put_control(vmcs: Vmcs, key: str, name: str, value: int) -> None:
    group = GROUPS[key]
    bit = CONTROL_CLASSES[key][name.upper()]
    vmcs[group.field] = vmcs[group.field] & ~bit | (bit if value else 0)
    if value and group.activated_by is not None:
        parent, _, control = group.activated_by.partition(".")
        _put_control(vmcs, parent, control, 1)


# Guests in every mode, as changes of the 64-bit guest.

_LEGACY = {
    "entry.ia32e_mode_guest": 0,
    "guest_cr4": 0x2000,
    "guest_ia32_efer": 0,
    "guest_cs_access_rights": 0xC09B,
    "guest_rip": 0x1000,
}
_V8086_SEGMENTS = {
    f"guest_{name}_{part}": value
    for name in ("cs", "ss", "ds", "es", "fs", "gs")
    for part, value in (
        ("selector", 0x100),
        ("base", 0x1000),
        ("limit", 0xFFFF),
        ("access_rights", 0xF3),
    )
}
_HOST_32 = {
    "exit1.host_address_space_size": 0,
    "host_ia32_efer": 0,
    "host_rip": 0x1000,
}
MODES: Mapping[str, Mapping[str, int]] = {
    "ia32e": {},
    "compatibility": {"guest_cs_access_rights": 0xC09B, "guest_rip": 0x1000},
    "legacy": _LEGACY,
    "pae": {**_LEGACY, "guest_cr4": 0x2020},
    "pae without ept": {**_LEGACY, "guest_cr4": 0x2020, "guest_cr3": PAGE, "proc2.enable_ept": 0},
    "v8086": {**_LEGACY, **_V8086_SEGMENTS, "guest_rflags": 0x2_0002},
    "real": {**_LEGACY, "proc2.unrestricted_guest": 1, "guest_cr0": 0x20},
    "ldt": {"guest_ldtr_access_rights": 0x82, "guest_ldtr_selector": 0x18},
    "32-bit host": {**_LEGACY, **_HOST_32},
    "user": {},
    "fred": {"guest_cr4": 1 << 32 | 0x2020},
    "fred user": {"guest_cr4": 1 << 32 | 0x2020},
}


def guest(mode: str = "ia32e", shape: Shape = EVERYTHING) -> Vmcs:
    """Return a VMCS whose guest is in `mode`; it passes every check."""
    vmcs = Vmcs.for_64bit_guest(shape, user=mode.endswith("user"))
    if shape.has_ept:
        vmcs[Field.EPT_POINTER] = PAGE | 3 << 3 | 6
    return put(vmcs, MODES[mode])


@dataclass(frozen=True)
class Broken:
    """A counter-example of one check.

    Parameters
    ----------
    id : str
        The check it breaks.
    change : mapping
        What breaks it.
    given : mapping
        Changes that come before it and break nothing.
    mode : str
        Guest to start from.
    shape : Shape
        The CPU.
    state : mapping
        Of the processor (see `processor`).
    memory : mapping of int to bytes
        See `processor`.
    also : tuple of str
        Checks that break whenever this one does, so that it cannot break alone.
    why : str
        The reason for that.
    """

    id: str
    change: Mapping[str, int]
    given: Mapping[str, int] = field(default_factory=dict)
    mode: str = "ia32e"
    shape: Shape = EVERYTHING
    state: Mapping[str, int | bool] = field(default_factory=dict)
    memory: Mapping[int, bytes] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    why: str = ""

    def processor(self) -> Processor:
        """Return the processor that judges it."""
        return processor(self.shape, self.memory, **self.state)

    def valid(self) -> Vmcs:
        """Return the VMCS before it is broken."""
        return put(guest(self.mode, self.shape), self.given)

    def vmcs(self) -> Vmcs:
        """Return the broken VMCS."""
        return put(self.valid(), self.change)


def ids(cases: Iterable[Broken]) -> list[str]:
    """Return the names of the cases."""
    return [case.id for case in cases]
