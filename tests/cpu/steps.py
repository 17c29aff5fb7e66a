"""One case for each of the ordered conditions of the thirteen VMX instructions.

A case brings a processor into a state in which just that condition is met and, were it not there,
the instruction would end in another way. The keys are the names and numbers of the instruction
reference's steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.cpu import states
from tests.cpu.states import SCRATCH, UNMAPPED, shape_of, with_msrs
from vtx.cpu import Cpu, MemoryOperand, RegisterOperand
from vtx.facts.controls import Entry, Proc1, Proc2
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import Interruptibility

__all__ = ["CASES", "COUNTS", "Case"]

#: How many conditions each instruction has.
COUNTS = {
    "VMXON": 15,
    "VMXOFF": 6,
    "VMCLEAR": 8,
    "VMPTRLD": 10,
    "VMPTRST": 6,
    "VMREAD": 9,
    "VMWRITE": 10,
    "VMLAUNCH": 14,
    "VMRESUME": 15,
    "VMCALL": 12,
    "VMFUNC": 7,
    "INVEPT": 9,
    "INVVPID": 11,
}

Act = Callable[[Cpu], object]


class Case(NamedTuple):
    """A condition of an instruction, as a state, what is executed, and how it must end."""

    name: str
    step: int
    variant: str
    prepare: Callable[[], Cpu]
    act: Act
    ends: str

    @property
    def id(self) -> str:
        """Name of the test."""
        return f"{self.name}-{self.step}" + (f"-{self.variant}" if self.variant else "")


CASES: list[Case] = []


def case(
    name: str, step: int, prepare: Callable[[], Cpu], act: Act, ends: str, variant: str = ""
) -> None:
    """Add a case."""
    CASES.append(Case(name, step, variant, prepare, act, ends))


def after(start: Callable[[], Cpu], *changes: Callable[[Cpu], object]) -> Callable[[], Cpu]:
    """Return a preparation that changes a state."""

    def prepare() -> Cpu:
        cpu = start()
        for change in changes:
            change(cpu)
        return cpu

    return prepare


def put(**attributes: object) -> Callable[[Cpu], object]:
    """Return a change that sets attributes of the processor."""

    def change(cpu: Cpu) -> None:
        for name, value in attributes.items():
            setattr(cpu, name, value)

    return change


def put_msr(msr: Msr, value: int) -> Callable[[Cpu], object]:
    """Return a change that writes an MSR."""
    return lambda cpu: cpu.regs.write_msr(msr, value)


def put_field(field: Field, value: int) -> Callable[[Cpu], object]:
    """Return a change that writes a field of the current VMCS behind the processor's back."""

    def change(cpu: Cpu) -> None:
        assert cpu.vmcs is not None
        cpu.vmcs[field] = value

    return change


def cpl3(cpu: Cpu) -> None:
    """Go to CPL 3."""
    states.set_cpl(cpu, 3)


MODES: dict[str, Callable[[Cpu], None]] = {
    "real": states.real_mode,
    "v86": states.virtual_8086_mode,
    "compatibility": states.compatibility_mode,
}


def without_mode(name: str, step: int, start: Callable[[], Cpu], act: Act, when: str = "") -> None:
    """Add the cases of "#UD in real-address, virtual-8086 and compatibility mode"."""
    for variant, enter in MODES.items():
        case(name, step, after(start, enter), act, "#UD", f"{variant} {when}".strip())


def common(name: str, first: int, act: Act, reason: int, start: Callable[[], Cpu]) -> None:
    """Add #UD outside VMX operation, #UD by mode, the VM exit, and #GP(0) by CPL."""
    case(name, first, after(start, states.left), act, "#UD")
    without_mode(name, first + 1, start, act)
    case(name, first + 2, states.guest, act, f"VM exit({reason})")
    case(name, first + 3, after(start, cpl3), act, "#GP(0)")


def memory_faults(
    name: str, step: int, start: Callable[[], Cpu], act: Callable[..., object]
) -> None:
    """Add the faults of an operand in memory; `act` takes the processor and the operand."""
    non_canonical = 1 << 60
    for variant, operand, ends in (
        ("pf", MemoryOperand(UNMAPPED), "#PF"),
        ("gp", MemoryOperand(non_canonical), "#GP(0)"),
        ("ss", MemoryOperand(non_canonical, "ss"), "#SS(0)"),
    ):
        case(name, step, start, lambda cpu, op=operand: act(cpu, op), ends, variant)

    def limit(cpu: Cpu) -> None:
        states.legacy_mode(cpu)
        cpu.regs.ds = cpu.regs.ds._replace(limit=0xFFF)

    def unusable(cpu: Cpu) -> None:
        states.legacy_mode(cpu)
        cpu.regs.ds = cpu.regs.ds._replace(access_rights=1 << 16)

    operand = MemoryOperand(SCRATCH)
    case(name, step, after(start, limit), lambda cpu: act(cpu, operand), "#GP(0)", "limit")
    case(name, step, after(start, unusable), lambda cpu: act(cpu, operand), "#GP(0)", "unusable")


def region(cpu: Cpu) -> int:
    """Return a region with the revision identifier."""
    return cpu.new_region()


# ---- VMXON -------------------------------------------------------------------------------------


def vmxon(cpu: Cpu) -> object:
    return cpu.vmxon(region(cpu))


case("VMXON", 1, states.outside, lambda cpu: cpu.vmxon(RegisterOperand(0)), "#UD")
without_mode("VMXON", 2, states.outside, vmxon)
case(
    "VMXON", 2, after(states.outside, lambda c: setattr(c.regs, "cr4", 0x20)), vmxon, "#UD", "vmxe"
)
case("VMXON", 3, states.guest, vmxon, "VM exit(27)")
case("VMXON", 4, after(states.loaded, cpl3), vmxon, "#GP(0)")
case("VMXON", 5, states.loaded, vmxon, "VMfail(15)")
case("VMXON", 5, states.root, vmxon, "VMfailInvalid", "no VMCS")
case("VMXON", 5, states.loaded, lambda c: c.vmxon(MemoryOperand(UNMAPPED)), "VMfail(15)", "unread")
case("VMXON", 6, after(states.outside, cpl3), vmxon, "#GP(0)")
case("VMXON", 7, after(states.outside, put(a20m=True)), vmxon, "#GP(0)")
case(
    "VMXON",
    8,
    after(states.outside, lambda c: setattr(c.regs, "cr0", 0x8001_0013)),
    vmxon,
    "#GP(0)",
)
case(
    "VMXON",
    8,
    after(states.outside, lambda c: setattr(c.regs, "cr4", c.regs.cr4 | 1 << 40)),
    vmxon,
    "#GP(0)",
    "cr4",
)
case("VMXON", 9, after(states.outside, put_msr(Msr.IA32_FEATURE_CONTROL, 6)), vmxon, "#GP(0)")
case(
    "VMXON",
    10,
    after(states.outside, put(in_smx=True), put_msr(Msr.IA32_FEATURE_CONTROL, 5)),
    vmxon,
    "#GP(0)",
)
case("VMXON", 11, after(states.outside, put_msr(Msr.IA32_FEATURE_CONTROL, 3)), vmxon, "#GP(0)")
memory_faults("VMXON", 12, states.outside, lambda cpu, operand: cpu.vmxon(operand))


def misaligned_vmxon(cpu: Cpu) -> object:
    cpu.memory.write_u32(0x5008, cpu.shape.revision_id)
    return cpu.vmxon(0x5008)


case("VMXON", 13, states.outside, misaligned_vmxon, "VMfailInvalid")


def narrow() -> Cpu:
    """Return a processor whose VMX structures must lie below 4 GBytes."""
    shape = shape_of("skylake_sp")
    return states.outside(with_msrs(shape, IA32_VMX_BASIC=shape.msr(Msr.IA32_VMX_BASIC) | 1 << 48))


class WideMemory:
    """Memory in which every region has the revision identifier."""

    def __init__(self, cpu: Cpu) -> None:
        self._memory = cpu.memory
        self._word = cpu.shape.revision_id.to_bytes(4, "little")
        self.size_bytes = cpu.memory.size_bytes

    def read(self, address: int, size: int) -> bytes:
        return self._word if size == 4 else bytes(size)

    def write(self, address: int, data: bytes) -> None:
        pass


def everywhere(cpu: Cpu) -> None:
    """Let every physical address hold the revision identifier."""
    cpu.memory = WideMemory(cpu)  # type: ignore[assignment]


case("VMXON", 14, after(narrow, everywhere), lambda c: c.vmxon(1 << 32), "VMfailInvalid", "basic48")
case(
    "VMXON",
    14,
    after(states.outside, everywhere),
    lambda c: c.vmxon(1 << 46),
    "VMfailInvalid",
    "maxphyaddr",
)
case("VMXON", 15, states.outside, lambda cpu: cpu.vmxon(0x5000), "VMfailInvalid")


def vmxon_shadow(cpu: Cpu) -> object:
    cpu.memory.write_u32(0x5000, cpu.shape.revision_id | 1 << 31)
    return cpu.vmxon(0x5000)


case("VMXON", 15, states.outside, vmxon_shadow, "VMfailInvalid", "bit31")

# ---- VMXOFF ------------------------------------------------------------------------------------

common("VMXOFF", 1, lambda cpu: cpu.vmxoff(), 26, states.root)
case("VMXOFF", 5, after(states.root, put(in_seam=True)), lambda c: c.vmxoff(), "#GP(0)")
case(
    "VMXOFF",
    6,
    after(states.loaded, put(dual_monitor_active=True)),
    lambda c: c.vmxoff(),
    "VMfail(23)",
)

# ---- VMCLEAR, VMPTRLD, VMPTRST -----------------------------------------------------------------


def region_cases(
    name: str, act: Callable[..., object], reason: int, errors: tuple[int, int]
) -> None:
    """Add what VMCLEAR and VMPTRLD have in common."""
    case(name, 1, states.root, lambda cpu: act(cpu, RegisterOperand(0)), "#UD")
    common(name, 2, lambda cpu: act(cpu, region(cpu)), reason, states.root)
    memory_faults(name, 6, states.root, act)

    def misaligned(cpu: Cpu) -> object:
        cpu.memory.write_u32(0x5008, cpu.shape.revision_id)
        return act(cpu, 0x5008)

    case(name, 7, states.loaded, misaligned, f"VMfail({errors[0]})")
    case(
        name,
        7,
        after(states.loaded, everywhere),
        lambda cpu: act(cpu, 1 << 46),
        f"VMfail({errors[0]})",
        "width",
    )
    case(name, 8, states.loaded, lambda cpu: act(cpu, cpu.vmxon_pointer), f"VMfail({errors[1]})")


region_cases("VMCLEAR", lambda cpu, operand: cpu.vmclear(operand), 19, (2, 3))
region_cases("VMPTRLD", lambda cpu, operand: cpu.vmptrld(operand), 21, (9, 10))
case("VMPTRLD", 9, states.loaded, lambda cpu: cpu.vmptrld(0x5000), "VMfail(11)")


def load_shadow(cpu: Cpu) -> object:
    cpu.memory.write_u32(0x5000, cpu.shape.revision_id | 1 << 31)
    return cpu.vmptrld(0x5000)


case("VMPTRLD", 10, lambda: states.loaded("nehalem"), load_shadow, "VMfail(11)")

case("VMPTRST", 1, states.root, lambda cpu: cpu.vmptrst(RegisterOperand(0)), "#UD")


def exit_of(act: Act) -> Act:
    """Return an action whose VM exit, which it raises as unhandled, is its result."""
    from vtx.errors import UnhandledExit

    def run(cpu: Cpu) -> object:
        try:
            return act(cpu)
        except UnhandledExit as unhandled:
            return unhandled.exit

    return run


common("VMPTRST", 2, exit_of(lambda cpu: cpu.vmptrst(MemoryOperand(SCRATCH))), 22, states.root)
memory_faults("VMPTRST", 6, states.root, lambda cpu, operand: cpu.vmptrst(operand))

# ---- VMREAD, VMWRITE ---------------------------------------------------------------------------

SHADOW_BITMAP = 0x6000


def shadowing() -> Cpu:
    """Return a guest whose VMREAD and VMWRITE act on a shadow VMCS with all bitmap bits 0."""
    cpu = states.guest()
    vmcs = cpu.vmcs
    assert vmcs is not None
    vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] |= Proc2.VMCS_SHADOWING
    vmcs[Field.VMREAD_BITMAP_ADDRESS] = SHADOW_BITMAP
    vmcs[Field.VMWRITE_BITMAP_ADDRESS] = SHADOW_BITMAP
    shadow = cpu.new_region()
    vmcs[Field.VMCS_LINK_POINTER] = shadow
    from vtx.machine.vmcs import Vmcs

    cpu.link_vmcs = Vmcs(cpu.shape.revision_id)
    cpu.link_vmcs.shadow = True
    return cpu


def set_bitmap(cpu: Cpu) -> None:
    """Let GUEST_RIP exit."""
    byte, bit = divmod(int(Field.GUEST_RIP), 8)
    cpu.memory.write(SHADOW_BITMAP + byte, bytes([1 << bit]))


def no_link(cpu: Cpu) -> None:
    put_field(Field.VMCS_LINK_POINTER, (1 << 64) - 1)(cpu)


def field_cases(name: str, access: Callable[..., object], reason: int) -> None:
    """Add what VMREAD and VMWRITE have in common."""

    def rip(cpu: Cpu) -> object:
        return access(cpu, Field.GUEST_RIP)

    case(name, 1, after(states.loaded, states.left), rip, "#UD")
    without_mode(name, 2, states.loaded, rip)
    without_mode(name, 2, states.exited, rip, "after exit")
    case(name, 3, after(shadowing, put_field(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, 0)),
         rip, f"VM exit({reason})")  # fmt: skip
    beyond = Field.GUEST_RIP | 1 << 15
    case(name, 4, shadowing, lambda cpu: access(cpu, beyond), f"VM exit({reason})")
    case(name, 5, after(shadowing, set_bitmap), rip, f"VM exit({reason})")
    case(name, 6, after(states.loaded, cpl3), rip, "#GP(0)")
    case(name, 6, after(states.exited, cpl3), rip, "#GP(0)", "after exit")
    case(name, 6, after(shadowing, cpl3), rip, "#GP(0)", "non-root")
    case(name, 7, states.root, rip, "VMfailInvalid")
    case(name, 7, after(shadowing, no_link), rip, "VMfailInvalid", "non-root")


def unsupported(name: str, step: int, access: Callable[..., object]) -> None:
    """Add encodings that name no field."""
    for variant, start in (("", states.loaded), ("after exit", states.exited)):
        for what, encoding in (
            ("hole", 0x2046),
            ("bit 15", Field.GUEST_RIP | 1 << 15),
            ("bit 63", Field.GUEST_RIP | 1 << 63),
            ("high of 32-bit", Field.EXCEPTION_BITMAP | 1),
            ("high of natural", Field.GUEST_RIP | 1),
        ):
            label = f"{what} {variant}".strip()
            case(name, step, start, lambda c, e=encoding: access(c, e), "VMfail(12)", label)
    missing = Field.XSS_EXITING_BITMAP
    case(name, step, lambda: states.loaded("nehalem"), lambda c: access(c, missing), "VMfail(12)",
         "CPU")  # fmt: skip


def read(cpu: Cpu, encoding: int) -> object:
    return exit_of(lambda c: c.vmread(encoding))(cpu)


def write(cpu: Cpu, encoding: int) -> object:
    return cpu.vmwrite(encoding, 0)


field_cases("VMREAD", read, 23)
unsupported("VMREAD", 8, read)
memory_faults("VMREAD", 9, states.loaded, lambda c, operand: c.vmread(Field.GUEST_RIP, operand))
field_cases("VMWRITE", write, 25)
memory_faults("VMWRITE", 8, states.loaded, lambda c, operand: c.vmwrite(Field.GUEST_RIP, operand))
unsupported("VMWRITE", 9, write)


def read_only(start: Callable[..., Cpu]) -> Callable[[], Cpu]:
    """Return a state of a CPU whose VM-exit information fields cannot be written."""
    shape = shape_of("skylake_sp")
    misc = shape.msr(Msr.IA32_VMX_MISC) & ~(1 << 29)
    return lambda: start(with_msrs(shape, IA32_VMX_MISC=misc))


case("VMWRITE", 10, read_only(states.loaded), lambda c: write(c, Field.EXIT_REASON), "VMfail(13)")
case("VMWRITE", 10, read_only(states.exited), lambda c: write(c, Field.EXIT_REASON), "VMfail(13)",
     "after exit")  # fmt: skip

# ---- VMLAUNCH, VMRESUME ------------------------------------------------------------------------


def shadow_vmcs(cpu: Cpu) -> None:
    assert cpu.vmcs is not None
    cpu.vmcs.shadow = True


def mov_ss(cpu: Cpu) -> None:
    cpu.regs.interruptibility_state |= Interruptibility.MOV_SS


def in_smm(cpu: Cpu) -> None:
    """Let the VM entry be one that returns from SMM to the guest of an executive VMCS."""
    vmcs = cpu.vmcs
    assert vmcs is not None
    executive = cpu.new_region()
    copy = vmcs.copy()
    copy.launched = True
    cpu.memory.write(executive, copy.to_bytes())
    cpu.smm = cpu.dual_monitor_active = True
    vmcs[Field.EXECUTIVE_VMCS_POINTER] = executive


def executive_word(offset: int, value: int) -> Callable[[Cpu], object]:
    """Return a change of the executive VMCS's region."""

    def change(cpu: Cpu) -> None:
        assert cpu.vmcs is not None
        cpu.memory.write_u32(cpu.vmcs[Field.EXECUTIVE_VMCS_POINTER] + offset, value)

    return change


def bad_executive_controls(cpu: Cpu) -> None:
    from vtx.machine.vmcs import Vmcs

    assert cpu.vmcs is not None
    address = cpu.vmcs[Field.EXECUTIVE_VMCS_POINTER]
    vmcs = Vmcs.from_bytes(cpu.memory.read(address, 4096))
    vmcs[Field.PIN_BASED_CONTROLS] = 0
    cpu.memory.write(address, vmcs.to_bytes())


def deactivate(cpu: Cpu) -> None:
    assert cpu.vmcs is not None
    cpu.vmcs[Field.VM_ENTRY_CONTROLS] |= Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT


def bad_msr_area(cpu: Cpu) -> None:
    """Let the VM-entry MSR-load area hold an MSR that may not be loaded."""
    assert cpu.vmcs is not None
    cpu.memory.write_u64(0x5000, int(Msr.IA32_FS_BASE))
    cpu.vmcs[Field.VM_ENTRY_MSR_LOAD_ADDRESS] = 0x5000
    cpu.vmcs[Field.VM_ENTRY_MSR_LOAD_COUNT] = 1


def machine_check(cpu: Cpu) -> None:
    cpu.pending.machine_check = True


def entry_cases(name: str, act: Act, reason: int, start: Callable[..., Cpu], later: int) -> None:
    """Add what VMLAUNCH and VMRESUME have in common; `later` is 1 for VMRESUME's extra step."""
    common(name, 1, act, reason, start)
    case(name, 5, states.root, act, "VMfailInvalid")
    case(name, 6, after(start, shadow_vmcs), act, "VMfailInvalid")
    case(name, 7, after(start, mov_ss), act, "VMfail(26)")
    pin = put_field(Field.PIN_BASED_CONTROLS, 0)
    case(name, 9 + later, after(start, pin), act, "VMfail(7)")
    host = put_field(Field.HOST_RIP, 1 << 60)
    case(name, 10 + later, after(start, host), act, "VMfail(8)")
    smm = 11 + later
    case(name, smm, after(start, in_smm, executive_word(0, 0x1234)), act, "VMfail(16)", "pointer")
    case(name, smm, after(start, in_smm, executive_word(12, 0)), act, "VMfail(17)", "launched")
    case(name, smm, after(start, in_smm, deactivate), act, "VMfail(18)", "deactivate")
    case(name, smm, after(start, in_smm, bad_executive_controls), act, "VMfail(25)", "controls")
    flags = put_field(Field.GUEST_RFLAGS, 0)
    case(name, 12 + later, after(start, flags), act, "VM-entry failure(33)")
    case(name, 13 + later, after(start, bad_msr_area), act, "VM-entry failure(34)")
    case(name, 14 + later, after(start, machine_check), act, "VM-entry failure(41)")


def launch(cpu: Cpu) -> object:
    return cpu.vmlaunch(states.program("cpuid leaf=0"))


def resume(cpu: Cpu) -> object:
    return cpu.vmresume()


def not_launched(cpu: Cpu) -> None:
    assert cpu.vmcs is not None
    cpu.vmcs.launched = False


def reenter_vmx(cpu: Cpu) -> None:
    """VMXOFF and VMXON, and the same VMCS again."""
    address, vmxon_region = cpu.current_vmcs_pointer, cpu.vmxon_pointer
    cpu.vmxoff()
    cpu.vmxon(vmxon_region)
    cpu.vmptrld(address)


entry_cases("VMLAUNCH", launch, 20, states.loaded, 0)
case("VMLAUNCH", 8, states.exited, launch, "VMfail(4)")
entry_cases("VMRESUME", resume, 24, states.exited, 1)
case("VMRESUME", 8, after(states.exited, not_launched), resume, "VMfail(5)")
case("VMRESUME", 9, after(states.exited, reenter_vmx), resume, "VMfail(6)")

# ---- VMCALL ------------------------------------------------------------------------------------


def dual_monitor() -> Cpu:
    """Return a processor on which VMCALL would activate the dual-monitor treatment."""
    shape = shape_of("skylake_sp")
    basic = shape.msr(Msr.IA32_VMX_BASIC) | 1 << 49
    misc = shape.msr(Msr.IA32_VMX_MISC) & 0xFFFF_FFFF | 7 << 32
    cpu = states.loaded(with_msrs(shape, IA32_VMX_BASIC=basic, IA32_VMX_MISC=misc))
    cpu.regs.write_msr(Msr.IA32_SMM_MONITOR_CTL, SCRATCH | 1)
    cpu.memory.write_u32(SCRATCH, 7)
    return cpu


def supported(act: Act) -> Act:
    """Return an action that names what the machine does not model."""
    from vtx.errors import NotSupported

    def run(cpu: Cpu) -> object:
        try:
            return act(cpu)
        except NotSupported as reason:
            raise AssertionError(str(reason)) from None

    return run


vmcall: Act = supported(lambda cpu: cpu.vmcall())
case("VMCALL", 1, after(dual_monitor, states.left), vmcall, "#UD")
case("VMCALL", 2, states.guest, vmcall, "VM exit(18)")
case("VMCALL", 2, after(states.guest, cpl3), vmcall, "VM exit(18)", "cpl3")
case("VMCALL", 2, after(states.guest, states.compatibility_mode), vmcall, "VM exit(18)", "mode")
case("VMCALL", 3, after(dual_monitor, states.virtual_8086_mode), vmcall, "#UD", "v86")
case("VMCALL", 3, after(dual_monitor, states.compatibility_mode), vmcall, "#UD", "compatibility")
case("VMCALL", 4, after(dual_monitor, cpl3), vmcall, "#GP(0)")
case("VMCALL", 5, after(dual_monitor, put(in_seam=True)), vmcall, "#GP(0)")
case("VMCALL", 6, states.loaded, vmcall, "VMfail(1)")
case("VMCALL", 6, after(dual_monitor, put(smm=True)), vmcall, "VMfail(1)", "smm")
case(
    "VMCALL", 6, after(dual_monitor, put_msr(Msr.IA32_SMM_MONITOR_CTL, 0)), vmcall, "VMfail(1)",
    "valid",
)  # fmt: skip


def smm_exit(cpu: Cpu) -> object:
    from vtx.errors import NotSupported

    try:
        return cpu.vmcall()
    except NotSupported as reason:
        assert "SMM VM exit" in str(reason)
        cpu.regs.rflags &= ~states.STATUS_FLAGS
        return None


case("VMCALL", 7, after(dual_monitor, put(dual_monitor_active=True)), smm_exit, "success")


def forget_vmcs(cpu: Cpu) -> None:
    cpu.vmclear(cpu.current_vmcs_pointer)
    cpu.regs.rflags |= states.STATUS_FLAGS


def launched(cpu: Cpu) -> None:
    assert cpu.vmcs is not None
    cpu.vmcs.launched = True


case("VMCALL", 8, after(dual_monitor, forget_vmcs), vmcall, "VMfailInvalid")
case("VMCALL", 9, after(dual_monitor, launched), vmcall, "VMfail(19)")
case("VMCALL", 10, after(dual_monitor, put_field(Field.VM_EXIT_CONTROLS, 0)), vmcall, "VMfail(20)")
case(
    "VMCALL",
    11,
    after(dual_monitor, lambda c: c.memory.write_u32(SCRATCH, 8)),
    vmcall,
    "VMfail(22)",
)
case(
    "VMCALL",
    12,
    after(dual_monitor, lambda c: c.memory.write_u32(SCRATCH + 4, 2)),
    vmcall,
    "VMfail(24)",
)

# ---- VMFUNC ------------------------------------------------------------------------------------

EPTP_LIST = 0x7000


def functions() -> Cpu:
    """Return a guest whose VMFUNC would switch to entry 1 of its EPTP list."""
    cpu = states.guest()
    allow_functions(cpu)
    return cpu


def allow_functions(cpu: Cpu) -> None:
    """Let VMFUNC in the guest switch to entry 1 of the EPTP list."""
    vmcs = cpu.vmcs
    assert vmcs is not None
    vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] |= Proc2.ENABLE_VM_FUNCTIONS
    vmcs[Field.VM_FUNCTION_CONTROLS] = 1
    vmcs[Field.EPTP_LIST_ADDRESS] = EPTP_LIST
    cpu.memory.write_u64(EPTP_LIST + 8, vmcs[Field.EPT_POINTER])
    cpu.regs.rax, cpu.regs.rcx = 0, 1


def traced(cpu: Cpu) -> None:
    vmcs = cpu.vmcs
    assert vmcs is not None
    vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] |= Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES
    cpu.regs.write_msr(Msr.IA32_RTIT_CTL, 1)


def register(name: str, value: int) -> Callable[[Cpu], object]:
    """Return a change of a general-purpose register."""
    return lambda cpu: setattr(cpu.regs, name, value)


def bad_entry(flip: int) -> Callable[[Cpu], object]:
    """Return a change of the EPTP list's entry 1."""
    return lambda c: c.memory.write_u64(EPTP_LIST + 8, c.memory.read_u64(EPTP_LIST + 8) ^ flip)


def vmfunc(cpu: Cpu) -> object:
    return cpu.vmfunc()


def functions_in_root() -> Cpu:
    """Return a processor in VMX root operation whose current VMCS enables EPTP switching."""
    cpu = states.loaded()
    allow_functions(cpu)
    return cpu


case("VMFUNC", 1, functions_in_root, vmfunc, "#UD")
no_functions = put_field(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, Proc2.ENABLE_EPT)
inactive = put_field(
    Field.PRIMARY_PROCESSOR_BASED_CONTROLS, 0x0401_E172 & ~Proc1.ACTIVATE_SECONDARY_CONTROLS
)
case("VMFUNC", 2, after(functions, no_functions), vmfunc, "#UD")
case("VMFUNC", 2, after(functions, inactive), vmfunc, "#UD", "inactive")
case("VMFUNC", 3, after(functions, register("rax", 64)), vmfunc, "#UD")
case("VMFUNC", 4, after(functions, register("rax", 63)), vmfunc, "VM exit(59)")
off = put_field(Field.VM_FUNCTION_CONTROLS, 0)
case("VMFUNC", 4, after(functions, off), vmfunc, "VM exit(59)", "switching")
case("VMFUNC", 5, after(functions, traced), vmfunc, "VM exit(59)")


def entry_512(cpu: Cpu) -> None:
    cpu.memory.write_u64(EPTP_LIST + 8 * 512, cpu.memory.read_u64(EPTP_LIST + 8))
    cpu.regs.rcx = 512


case("VMFUNC", 6, after(functions, entry_512), vmfunc, "VM exit(59)")
case("VMFUNC", 7, after(functions, bad_entry(7)), vmfunc, "VM exit(59)", "type")
case(
    "VMFUNC",
    7,
    after(functions, bad_entry(1 << 3 | 1 << 4 | 1 << 5)),
    vmfunc,
    "VM exit(59)",
    "walk",
)

# ---- INVEPT, INVVPID ---------------------------------------------------------------------------


def eptp(cpu: Cpu) -> int:
    return cpu.ept.eptp


def without_capability(bit: int, start: Callable[..., Cpu]) -> Callable[[], Cpu]:
    """Return a state of a CPU without a bit of IA32_VMX_EPT_VPID_CAP."""
    shape = shape_of("skylake_sp")
    capabilities = shape.msr(Msr.IA32_VMX_EPT_VPID_CAP) & ~(1 << bit)
    return lambda: start(with_msrs(shape, IA32_VMX_EPT_VPID_CAP=capabilities))


def descriptor_act(cpu: Cpu, operand: MemoryOperand) -> object:
    return cpu.invept(2, operand)


case("INVEPT", 1, states.loaded, lambda c: c.invept(2, RegisterOperand(0)), "#UD")
case("INVEPT", 2, after(states.loaded, states.left), lambda c: c.invept(2), "#UD")
case("INVEPT", 3, without_capability(20, states.loaded), lambda c: c.invept(2), "#UD")
case("INVEPT", 3, lambda: states.root("penryn_core2"), lambda c: c.invept(2), "#UD", "no EPT")
without_mode("INVEPT", 4, states.loaded, lambda c: c.invept(2))
case("INVEPT", 5, states.guest, lambda c: c.invept(2), "VM exit(50)")
case("INVEPT", 6, after(states.loaded, cpl3), lambda c: c.invept(2), "#GP(0)")
for _kind in (0, 3, 1 << 32 | 2):
    case(
        "INVEPT",
        7,
        states.loaded,
        lambda c, k=_kind: c.invept(k, eptp(c)),
        "VMfail(28)",
        f"{_kind:#x}",
    )
for _kind, _bit in ((1, 25), (2, 26)):
    case(
        "INVEPT",
        7,
        without_capability(_bit, states.loaded),
        lambda c, k=_kind: c.invept(k, eptp(c)),
        "VMfail(28)",
        f"capability {_bit}",
    )
memory_faults("INVEPT", 8, states.loaded, descriptor_act)
case("INVEPT", 9, states.loaded, lambda c: c.invept(1, eptp(c) ^ 1), "VMfail(28)", "type")
case("INVEPT", 9, states.loaded, lambda c: c.invept(1, eptp(c) | 1 << 50), "VMfail(28)", "width")

case("INVVPID", 1, states.loaded, lambda c: c.invvpid(2, RegisterOperand(0)), "#UD")
case("INVVPID", 2, after(states.loaded, states.left), lambda c: c.invvpid(2), "#UD")
case("INVVPID", 3, without_capability(32, states.loaded), lambda c: c.invvpid(2), "#UD")
case("INVVPID", 3, lambda: states.root("penryn_core2"), lambda c: c.invvpid(2), "#UD", "no VPID")
without_mode("INVVPID", 4, states.loaded, lambda c: c.invvpid(2))
case("INVVPID", 5, states.guest, lambda c: c.invvpid(2), "VM exit(53)")
case("INVVPID", 6, after(states.loaded, cpl3), lambda c: c.invvpid(2), "#GP(0)")
for _kind in (4, 1 << 32):
    case(
        "INVVPID", 7, states.loaded, lambda c, k=_kind: c.invvpid(k, 1), "VMfail(28)", f"{_kind:#x}"
    )
for _kind in range(4):
    case(
        "INVVPID",
        7,
        without_capability(40 + _kind, states.loaded),
        lambda c, k=_kind: c.invvpid(k, 1),
        "VMfail(28)",
        f"capability {40 + _kind}",
    )
memory_faults("INVVPID", 8, states.loaded, lambda c, operand: c.invvpid(2, operand))
for _kind in range(4):
    case(
        "INVVPID", 9, states.loaded, lambda c, k=_kind: c.invvpid(k, 1 << 16 | 1), "VMfail(28)",
        f"type {_kind}",
    )  # fmt: skip
for _kind in (0, 1, 3):
    case(
        "INVVPID", 10, states.loaded, lambda c, k=_kind: c.invvpid(k, 0), "VMfail(28)",
        f"type {_kind}",
    )  # fmt: skip
case("INVVPID", 11, states.loaded, lambda c: c.invvpid(0, 1 << 127 | 1), "VMfail(28)")


def by_step() -> Iterator[tuple[str, int]]:
    """Return name and number of every condition that has a case."""
    return iter(sorted({(c.name, c.step) for c in CASES}))
