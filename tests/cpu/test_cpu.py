"""The machine and its processors: VMCSs in memory, VM entries end to end, what a VMM does."""

from __future__ import annotations

import pytest

import vtx
from tests.cpu import states
from tests.cpu.states import SCRATCH, outcome, shape_of
from vtx.cpu import Cpu, Machine, MemoryOperand
from vtx.errors import (
    EndOfTrace,
    InputError,
    NotSupported,
    UnhandledExit,
    UnknownName,
    VMfailValid,
)
from vtx.facts.controls import Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field
from vtx.facts.msrs import Msr
from vtx.machine.events import GUEST, Event
from vtx.machine.image import GUEST_BASE
from vtx.machine.mmu import Access, Source
from vtx.machine.processor import NO_VMCS
from vtx.machine.registers import Interruptibility
from vtx.machine.vmcs import Vmcs

# ---- The design's example --------------------------------------------------------------------


def test_a_guest_from_start_to_halt():
    lines = ["cpuid leaf=0x16", "load 0x7ff000 size=8", "mov rbx, cr0", "hlt"]
    with vtx.Cpu(profile="skylake_sp") as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        exit = cpu.vmlaunch(states.program(*lines))
        reasons = []
        while exit.reason is not vtx.ExitReason.HLT:
            reasons.append(exit.reason)
            if exit.reason is vtx.ExitReason.CPUID:
                cpu.regs.rax = 0x16
                cpu.skip(exit)
            elif exit.reason is vtx.ExitReason.EPT_VIOLATION:
                cpu.ept.map(exit.ept.gpa, size="4K")
            else:
                raise vtx.UnhandledExit(exit)
            exit = cpu.vmresume()
        assert reasons.count(ExitReason.CPUID) == 1
        assert reasons.count(ExitReason.EPT_VIOLATION) >= 3
        assert cpu.regs.rbx == cpu.vmcs[Field.GUEST_CR0]
        assert cpu.events.total(Event.VM_ENTRY) == len(reasons) + 1
        assert cpu.events.total(Event.VM_EXIT) == len(reasons) + 1


@pytest.mark.parametrize("profile", ["penryn_core2", "merom_core2", "prescott_p4_672"])
def test_a_guest_without_ept(profile: str):
    cpu = states.outside(profile)
    cpu.vmxon()
    cpu.load(Vmcs.for_64bit_guest(cpu.shape))
    exit = cpu.vmlaunch(states.program("cpuid leaf=0", "hlt"))
    assert exit.reason is ExitReason.CPUID
    cpu.skip(exit)
    assert cpu.vmresume().reason is ExitReason.HLT


@pytest.mark.parametrize(
    "profile", ["nehalem", "haswell", "skylake_sp", "ice_lake_sp", "granite_rapids"]
)
def test_the_starting_state_enters_on(profile: str):
    cpu = states.loaded(profile)
    assert cpu.vmlaunch(states.program("cpuid leaf=0")).reason is ExitReason.CPUID


def test_a_cpu_without_ept_refuses_a_guest_under_ept():
    cpu = states.root("penryn_core2")
    with pytest.raises(NotSupported, match="penryn_core2"):
        cpu.load(Vmcs.for_64bit_guest())
    with pytest.raises(NotSupported, match="no EPT"):
        _ = cpu.ept


# ---- VMXON, VMXOFF ---------------------------------------------------------------------------


def test_vmx_operation():
    cpu = states.outside()
    cpu.monitor_armed = True
    cpu.regs.write_msr(Msr.IA32_RTIT_CTL, 1)
    region = cpu.new_region()
    cpu.vmxon(region)
    assert cpu.in_vmx
    assert (cpu.vmxon_pointer, cpu.current_vmcs_pointer) == (region, NO_VMCS)
    assert cpu.init_blocked
    assert cpu.a20m_blocked
    assert not cpu.monitor_armed
    assert cpu.regs.read_msr(Msr.IA32_RTIT_CTL) == (1 if cpu.shape.misc(14) else 0)
    cpu.monitor_armed = cpu.smi_blocked = True
    cpu.vmxoff()
    assert not cpu.in_vmx
    assert not cpu.init_blocked
    assert not cpu.a20m_blocked
    assert not cpu.smi_blocked
    assert not cpu.monitor_armed
    assert cpu.vmxon_pointer == NO_VMCS


def test_processor_trace_stops_where_vmx_operation_forbids_it():
    shape = shape_of("skylake_sp")
    misc = shape.msr(Msr.IA32_VMX_MISC) & ~(1 << 14)
    cpu = states.outside(states.with_msrs(shape, IA32_VMX_MISC=misc))
    cpu.regs.write_msr(Msr.IA32_RTIT_CTL, 0x2001)
    cpu.vmxon()
    assert cpu.regs.read_msr(Msr.IA32_RTIT_CTL) == 0x2000


def test_vmxoff_leaves_smis_and_a20m_blocked_where_it_must():
    cpu = states.root()
    cpu.in_smx = cpu.smi_blocked = True
    cpu.regs.write_msr(Msr.IA32_SMM_MONITOR_CTL, 4)
    cpu.vmxoff()
    assert cpu.smi_blocked
    assert cpu.a20m_blocked


def test_vmcall_that_would_succeed_is_not_modelled():
    from tests.cpu.steps import dual_monitor

    with pytest.raises(NotSupported, match="dual-monitor"):
        dual_monitor().vmcall()


# ---- VMCSs in memory -------------------------------------------------------------------------


def test_a_copied_region_is_a_vmcs():
    cpu = states.loaded(guest_rip=0x1234)
    address = cpu.current_vmcs_pointer
    cpu.vmclear(address)
    assert cpu.current_vmcs_pointer == NO_VMCS
    assert cpu.vmcs is None
    copy = cpu.new_region()
    cpu.memory.write(copy, cpu.memory.read(address, 4096))
    cpu.vmptrld(copy)
    assert cpu.vmread(Field.GUEST_RIP) == 0x1234


def test_active_vmcss_are_cached_until_vmclear():
    cpu = states.root()
    first, second = cpu.new_region(), cpu.new_region()
    for address, rip in ((first, 0x111), (second, 0x222)):
        cpu.vmclear(address)
        cpu.vmptrld(address)
        cpu.vmwrite(Field.GUEST_RIP, rip)
    # The region of an active VMCS may be stale, and writing to it changes nothing.
    stale = cpu.memory.read(first, 4096)
    assert Vmcs.from_bytes(stale)[Field.GUEST_RIP] == 0
    cpu.memory.write(first + 16, b"\xff" * 64)
    cpu.vmptrld(first)
    assert cpu.vmread(Field.GUEST_RIP) == 0x111
    cpu.vmclear(second)
    assert cpu.current_vmcs_pointer == first
    cpu.vmclear(first)
    cpu.vmptrld(second)
    assert cpu.vmread(Field.GUEST_RIP) == 0x222
    assert Vmcs.from_bytes(cpu.memory.read(first, 4096))[Field.GUEST_RIP] == 0x111


def test_vmclear_makes_the_launch_state_clear_and_keeps_the_first_words():
    cpu = states.exited()
    address = cpu.current_vmcs_pointer
    cpu.memory.write_u32(address + 4, 0x77)
    with pytest.raises(VMfailValid):
        cpu.vmlaunch()
    cpu.vmclear(address)
    assert cpu.memory.read_u32(address) == cpu.shape.revision_id
    assert cpu.memory.read_u32(address + 4) == 0x77
    cpu.vmptrld(address)
    assert not cpu.vmcs.launched
    assert cpu.vmlaunch().reason is ExitReason.CPUID


def test_vmclear_needs_no_revision_identifier():
    cpu = states.root()
    address = cpu.machine.frames.allocate()
    assert outcome(cpu, lambda c: c.vmclear(address)) == "success"


def test_vmclear_beyond_memory():
    cpu = states.root()
    assert outcome(cpu, lambda c: c.vmclear(c.memory.size_bytes)) == "success"
    assert outcome(cpu, lambda c: c.vmptrld(c.memory.size_bytes)) == "VMfailInvalid"


def test_a_failed_vmptrld_keeps_the_current_vmcs():
    cpu = states.loaded()
    before = cpu.current_vmcs_pointer
    with pytest.raises(VMfailValid):
        cpu.vmptrld(0x5001)
    assert cpu.vmptrst() == before


def test_vmptrst():
    cpu = states.root()
    assert cpu.vmptrst(MemoryOperand(SCRATCH)) == NO_VMCS
    assert cpu.memory.read_u64(SCRATCH) == NO_VMCS


def test_vmxoff_writes_active_vmcss_to_memory():
    cpu = states.exited()
    address, region = cpu.current_vmcs_pointer, cpu.vmxon_pointer
    cpu.vmwrite(Field.GUEST_RIP, 0x4321)
    cpu.vmxoff()
    vmcs = Vmcs.from_bytes(cpu.memory.read(address, 4096))
    assert vmcs[Field.GUEST_RIP] == 0x4321
    assert vmcs.launched
    cpu.vmxon(region)
    cpu.vmptrld(address)
    assert cpu.vmread(Field.GUEST_RIP) == 0x4321


def test_vmclear_leaves_alone_what_lies_behind_the_bytes_that_the_cpu_reports():
    with Cpu() as cpu:
        cpu.vmxon()
        reported = cpu.shape.msr(Msr.IA32_VMX_BASIC) >> 32 & 0x1FFF
        region = cpu.new_region()
        cpu.memory.write(region + reported, b"\xa5" * (4096 - reported))
        cpu.vmclear(region)
        assert cpu.memory.read(region + reported, 4096 - reported) == b"\xa5" * (4096 - reported)


def test_a_shadow_vmcs_can_be_current():
    cpu = states.root()
    address = cpu.new_region()
    cpu.memory.write_u32(address, cpu.shape.revision_id | 1 << 31)
    cpu.vmclear(address)
    cpu.vmptrld(address)
    cpu.vmwrite(Field.GUEST_RIP, 5)
    assert cpu.vmread(Field.GUEST_RIP) == 5
    assert cpu.memory.read_u32(address) == cpu.shape.revision_id | 1 << 31


# ---- Several processors ------------------------------------------------------------------------


def test_processors_share_memory_and_nothing_else():
    machine = Machine(shape_of("skylake_sp"), processors=2, memory_bytes=2 << 30)
    first, second = machine.cpus
    assert first.memory is second.memory
    assert [cpu.number for cpu in machine.cpus] == [0, 1]
    first.vmxon()
    assert not second.in_vmx
    second.vmxon()
    address = first.load(Vmcs.for_64bit_guest(machine.shape).update(guest_rip=0x1234))
    assert second.current_vmcs_pointer == NO_VMCS
    # The VMCS moves: VMCLEAR here, VMPTRLD there.
    first.vmclear(address)
    second.vmptrld(address)
    assert second.vmread(Field.GUEST_RIP) == 0x1234
    assert first.events is second.events


def test_each_processor_runs_its_guest():
    machine = Machine(shape_of("skylake_sp"), processors=2, memory_bytes=2 << 30)
    for cpu in machine.cpus:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(machine.shape, processor=cpu.number))
    for gpa in range(0, 16 << 20, 2 << 20):
        machine.cpus[0].ept.map(gpa, size="2M")
    exits = [cpu.vmlaunch(states.program("cpuid leaf=0", "hlt")) for cpu in machine.cpus]
    assert [exit.reason for exit in exits] == [ExitReason.CPUID] * 2
    records = list(machine.events.exits)
    assert [record.processor for record in records] == [0, 1]


# ---- VM entries end to end -----------------------------------------------------------------------


def test_a_failed_entry_is_an_exit():
    cpu = states.loaded(guest_rflags=0, host_rip=0x1234)
    exit = cpu.vmlaunch()
    assert exit.entry_failure
    assert exit.reason is ExitReason.ENTRY_FAILURE_GUEST_STATE
    assert cpu.regs.rip == 0x1234
    assert not cpu.non_root
    assert "guest.rflags" in exit.explain()
    assert not cpu.vmcs.launched
    assert cpu.events.counts[33][Event.ENTRY_FAILURE] == 1
    cpu.vmwrite(Field.GUEST_RFLAGS, 2)
    assert cpu.vmlaunch(states.program("cpuid leaf=0")).reason is ExitReason.CPUID


def test_a_failed_msr_load_names_the_entry():
    cpu = states.loaded(vm_entry_msr_load_address=SCRATCH, vm_entry_msr_load_count=2)
    cpu.memory.write_u64(SCRATCH, Msr.IA32_LSTAR)
    cpu.memory.write_u64(SCRATCH + 8, 0x1234)
    cpu.memory.write_u64(SCRATCH + 16, Msr.IA32_FS_BASE)
    cpu.nmi_blocked = True
    exit = cpu.vmlaunch()
    assert (exit.reason, exit.qualification) == (ExitReason.ENTRY_FAILURE_MSR_LOADING, 2)
    assert cpu.regs.read_msr(Msr.IA32_LSTAR) == 0x1234
    assert cpu.nmi_blocked
    assert cpu.regs.system == cpu.root_system


def test_the_msr_load_area_can_change_efer():
    # LMA stays what the mode is, as with WRMSR.
    cpu = states.loaded(vm_entry_msr_load_address=SCRATCH, vm_entry_msr_load_count=2)
    cpu.memory.write_u64(SCRATCH, Msr.IA32_TSC)
    cpu.memory.write_u64(SCRATCH + 8, 0x7777)
    cpu.memory.write_u64(SCRATCH + 16, Msr.IA32_EFER)
    cpu.memory.write_u64(SCRATCH + 24, 0x100)
    with pytest.raises(EndOfTrace):
        cpu.vmlaunch(states.program())
    assert cpu.regs.efer == 0x500
    assert cpu.context.efer == 0x500
    assert cpu.tsc == 0x7777


def test_a_failed_control_check_names_it():
    cpu = states.loaded(pin_based_controls=0)
    with pytest.raises(VMfailValid) as raised:
        cpu.vmlaunch()
    assert raised.value.error == 7
    assert raised.value.check is not None
    assert raised.value.check in str(raised.value)
    assert cpu.events.total(Event.VMFAIL) == 1


def test_the_program_may_end_and_go_on():
    cpu = states.loaded()
    with pytest.raises(EndOfTrace):
        cpu.vmlaunch(states.program("nop"))
    assert cpu.non_root
    with pytest.raises(UnhandledExit) as raised:
        cpu.vmread(Field.GUEST_RIP)
    assert raised.value.exit.reason is ExitReason.VMREAD
    assert not cpu.non_root


def test_counting_by_reason():
    cpu = states.exited()
    exit = cpu.vmresume()
    cpu.skip(exit)
    row = cpu.events.counts[ExitReason.CPUID]
    assert row[Event.VM_EXIT] == 2
    assert row[Event.VM_ENTRY] == 1
    assert row[Event.VMWRITE] == 1
    assert row[Event.VMREAD] == 4
    assert cpu.events.counts[GUEST][Event.VM_ENTRY] == 1
    cpu.invept(2)
    cpu.invvpid(2)
    assert row[Event.INVALIDATION] == 2
    assert row[Event.VMX_INSTRUCTION] == 0
    cpu.vmptrst()
    cpu.vmptrld(cpu.new_region())
    cpu.vmclear(cpu.current_vmcs_pointer)
    assert row[Event.VMX_INSTRUCTION] == 3
    cpu.vmxoff()
    assert row[Event.VMX_INSTRUCTION] == 4


# ---- Invalidation, VM functions ------------------------------------------------------------------


def remapped() -> tuple[Cpu, int]:
    """Return a guest's processor with a cached translation that EPT no longer has, and its page."""
    cpu = states.guest(vpid=5)
    linear = 0x5_0000
    walk = cpu.mmu.translate(cpu.context, linear, Access.LOAD)
    assert walk.ok
    cpu.ept.unmap(0)
    assert cpu.mmu.translate(cpu.context, linear, Access.LOAD).ok
    return cpu, linear


@pytest.mark.parametrize(
    ("invalidate", "stale"),
    [
        (lambda c: c.invept(2), False),
        (lambda c: c.invept(1, c.ept.eptp), False),
        (lambda c: c.invept(1, c.ept.eptp ^ 0x10_0000), True),
        (lambda c: c.invvpid(1, 5), False),
        (lambda c: c.invvpid(1, 6), True),
        (lambda c: c.invvpid(2), False),
        (lambda c: c.invvpid(0, 0x5_0000 << 64 | 5), False),
        (lambda c: c.invvpid(0, 0x6_0000 << 64 | 6), True),
        (lambda c: c.invvpid(3, 5), False),
    ],
)
def test_invalidation_reaches_the_tlbs(invalidate, stale: bool):
    cpu, linear = remapped()
    cpu.vmxoff()  # a VM exit: the instructions belong to VMX root operation
    invalidate(cpu)
    # INVVPID leaves guest-physical mappings alone, so a new walk may still succeed.
    walk = cpu.mmu.translate(cpu.context, linear, Access.LOAD)
    assert (walk.ok and walk.source is not Source.WALK) is stale


def test_the_descriptor_can_be_in_memory():
    cpu = states.loaded()
    cpu.memory.write_u64(SCRATCH, cpu.ept.eptp)
    assert outcome(cpu, lambda c: c.invept(1, MemoryOperand(SCRATCH))) == "success"
    cpu.memory.write_u64(SCRATCH, 1)
    cpu.memory.write_u64(SCRATCH + 8, 1 << 60)
    assert outcome(cpu, lambda c: c.invvpid(0, MemoryOperand(SCRATCH))) == "VMfail(28)"
    assert outcome(cpu, lambda c: c.invvpid(1, MemoryOperand(SCRATCH))) == "success"


def test_outside_64bit_mode_the_type_has_32_bits():
    cpu = states.loaded()
    states.legacy_mode(cpu)
    assert outcome(cpu, lambda c: c.invept(1 << 32 | 2)) == "success"
    assert outcome(cpu, lambda c: c.invvpid(1 << 32 | 2)) == "success"


def test_canonical_addresses_of_57_bits():
    cpu = states.loaded()
    descriptor = 1 << 50 << 64 | 1
    assert outcome(cpu, lambda c: c.invvpid(0, descriptor)) == "VMfail(28)"
    cpu.regs.cr4 |= 1 << 12
    assert outcome(cpu, lambda c: c.invvpid(0, descriptor)) == "success"


def test_eptp_switching():
    from tests.cpu.steps import EPTP_LIST, functions

    cpu = functions()
    other = cpu.ept.eptp ^ 0x10_0000
    cpu.memory.write_u64(EPTP_LIST + 8, other)
    flags = cpu.regs.rflags
    assert cpu.vmfunc() is None
    assert cpu.vmcs[Field.EPT_POINTER] == cpu.context.eptp == other
    assert cpu.regs.rflags == flags
    assert cpu.vmcs[Field.EPTP_INDEX] == (1 if cpu.shape.supports(Proc2.EPT_VIOLATION_VE) else 0)


@pytest.mark.parametrize("vpid", [True, False])
def test_eptp_switching_without_vpid_forgets_translations(vpid: bool):
    from tests.cpu.steps import functions

    cpu = functions()
    if not vpid:
        cpu.vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] &= ~Proc2.ENABLE_VPID
    before = cpu.mmu.counters()["invalidations"]
    cpu.vmfunc()
    assert cpu.mmu.counters()["invalidations"] == before + (0 if vpid else 1)


def test_a_function_that_does_not_exist_yet_does_nothing():
    from tests.cpu.steps import functions

    cpu = functions()
    cpu.vmcs[Field.VM_FUNCTION_CONTROLS] = 3
    cpu.regs.rax = 1
    assert cpu.vmfunc() is None


# ---- What a VMM does -----------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [0, Interruptibility.STI, Interruptibility.MOV_SS])
def test_skip(blocking: int):
    cpu = states.exited(guest_interruptibility_state=blocking)
    exit = cpu._run(states.vmx_exit())
    rip = cpu.vmcs[Field.GUEST_RIP]
    cpu.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] = blocking | Interruptibility.NMI
    cpu.skip(exit)
    assert cpu.vmcs[Field.GUEST_RIP] == rip + 2
    assert cpu.vmcs[Field.GUEST_INTERRUPTIBILITY_STATE] == Interruptibility.NMI


@pytest.mark.parametrize(
    ("rflags", "debugctl", "pending"), [(0x302, 0, 1 << 14), (0x202, 0, 0), (0x302, 2, 0)]
)
def test_skip_leaves_a_single_step_trap_pending(rflags: int, debugctl: int, pending: int):
    cpu = states.exited()
    exit = cpu._run(states.vmx_exit())
    cpu.vmcs[Field.GUEST_RFLAGS] = rflags
    cpu.vmcs[Field.GUEST_IA32_DEBUGCTL] = debugctl
    cpu.skip(exit)
    assert cpu.vmcs[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == pending


@pytest.mark.parametrize(
    ("arguments", "information", "error_code"),
    [
        ({"vector": 0x30}, 0x8000_0030, 0),
        ({"vector": 2}, 0x8000_0202, 0),
        ({"vector": 3, "instruction_length": 2}, 0x8000_0603, 0),
        ({"vector": 6}, 0x8000_0306, 0),
        ({"vector": 13}, 0x8000_0B0D, 0),
        ({"vector": 14, "error_code": 6}, 0x8000_0B0E, 6),
        ({"vector": 0x80, "type": 4, "instruction_length": 2}, 0x8000_0480, 0),
    ],
)
def test_inject(arguments: dict[str, int], information: int, error_code: int):
    cpu = states.exited()
    cpu.inject(**arguments)
    assert cpu.vmread(Field.VM_ENTRY_INTERRUPTION_INFORMATION) == information
    assert cpu.vmread(Field.VM_ENTRY_EXCEPTION_ERROR_CODE) == error_code
    length = arguments.get("instruction_length", 0)
    assert cpu.vmread(Field.VM_ENTRY_INSTRUCTION_LENGTH) == length
    exit = cpu.vmresume()
    assert not exit.entry_failure
    assert cpu.events.total(Event.INJECTION) == 1


def test_load_writes_what_the_vmcs_sets():
    vmcs = Vmcs.for_64bit_guest(shape_of("skylake_sp")).update(guest_rip=0x1234)
    vmcs[Field.EXIT_QUALIFICATION] = 5
    cpu = states.root()
    address = cpu.load(vmcs)
    assert cpu.vmptrst() == address
    for field, value in vmcs.fields():
        if FIELDS[field].area is not Area.READ_ONLY and field != Field.EPT_POINTER:
            assert cpu.vmcs[field] == value
    assert cpu.vmcs[Field.EPT_POINTER] == cpu.ept.eptp
    assert cpu.vmcs[Field.EXIT_QUALIFICATION] == 0


def test_load_keeps_an_ept_pointer():
    cpu = states.root()
    cpu.load(Vmcs.for_64bit_guest(cpu.shape).update(ept_pointer=0x9_905E))
    assert cpu.vmcs[Field.EPT_POINTER] == 0x9_905E


def test_ept_maps_the_guest_slot():
    cpu = states.root()
    cpu.ept.map(0x1234, size="4K")
    assert cpu.ept.lookup(0x1000).hpa == GUEST_BASE + 0x1000
    cpu.ept.map(0x40_0000, 0x200_0000, "2M", write=False)
    mapping = cpu.ept.lookup(0x40_1000)
    assert mapping.hpa == 0x200_1000
    assert not mapping.writable


def test_machine_refuses_what_it_does_not_know():
    with pytest.raises(UnknownName, match="skylake"):
        Machine("skylake")
    with pytest.raises(InputError):
        Machine(shape_of("skylake_sp"), memory_bytes=5)


def test_machine_is_a_context_manager():
    with Machine(shape_of("skylake_sp"), memory_bytes=1 << 30) as machine:
        assert machine.memory.size_bytes == 1 << 30
    with pytest.raises(NotSupported, match="closed"):
        machine.memory.read(0, 1)
