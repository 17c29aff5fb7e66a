"""What VM entry loads, VM exit saves and VM exit loads, row by row."""

from __future__ import annotations

import pytest

from tests.rules.transition_states import (
    guest_fields,
    leave,
    loaded,
    numbered,
    reenter,
    shape_of_everything,
)
from vtx.cpu import Cpu
from vtx.errors import EmulationStopped
from vtx.facts.controls import Entry, Exit1, Exit2, Pin, Proc2
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field
from vtx.facts.msrs import Msr
from vtx.machine.registers import UNUSABLE, Cr0, Cr4, Efer, Segment, SystemRegisters, TableRegister
from vtx.rules.transitions import ENTRY_FAILURE, entry_failure
from vtx.rules.transitions_abort import AbortIndicator, VmxAbort
from vtx.rules.transitions_table import (
    ALWAYS,
    BANK,
    CONDITIONAL,
    GUEST_FIELDS,
    HOST_FIELDS,
    SUPPORTED,
    Conditional,
)

WORDS = {
    Entry: Field.VM_ENTRY_CONTROLS,
    Exit1: Field.VM_EXIT_CONTROLS,
    Exit2: Field.SECONDARY_VM_EXIT_CONTROLS,
}


def get(cpu: Cpu, register: Msr | str) -> int:
    """Return a register of the conditional rows."""
    if isinstance(register, Msr):
        return cpu.regs.read_msr(register)
    if register == "uinv":
        return cpu.regs.read_msr(Msr.IA32_UINTR_MISC) >> 32 & 0xFF
    value: int = getattr(cpu.regs, register)
    return value


def put(cpu: Cpu, register: Msr | str, value: int) -> None:
    """Set a register of the conditional rows."""
    if isinstance(register, Msr):
        cpu.regs.write_msr(register, value)
    elif register == "uinv":
        cpu.regs.write_msr(Msr.IA32_UINTR_MISC, value << 32)
    else:
        setattr(cpu.regs, register, value)


def set_control(cpu: Cpu, control, on: bool) -> None:
    """Set a control of the current VMCS, and what activates it."""
    if not isinstance(control, (Entry, Exit1, Exit2)):
        return
    vmcs = cpu.vmcs
    field = WORDS[type(control)]
    vmcs[field] = vmcs[field] & ~control | (control if on else 0)
    if isinstance(control, Exit2):
        vmcs[Field.VM_EXIT_CONTROLS] |= Exit1.ACTIVATE_SECONDARY_CONTROLS


def ids(row: Conditional) -> str:
    return str(getattr(row.register, "name", row.register)).lower()


#: A value that every conditional register can hold, and another.
ONE, OTHER = {"uinv": 0x31}, {"uinv": 0x42}
VALUE, SECOND = 0x0500, 0x0C00


def value_of(row: Conditional, values: dict[str, int], default: int) -> int:
    return values.get(str(row.register), default)


def test_the_table_covers_the_guest_state_area():
    elsewhere = {
        "guest_rip", "guest_rsp", "guest_rflags", "guest_activity_state",
        "guest_interruptibility_state", "guest_pending_debug_exceptions", "guest_pdpte0",
        "guest_pdpte1", "guest_pdpte2", "guest_pdpte3", "vmx_preemption_timer_value",
    }  # fmt: skip
    # Pages and structures that non-root operation itself uses, and what only SMM has.
    not_moved = {
        "vmcs_link_pointer", "guest_interrupt_status", "pml_index", "guest_smbase",
        "guest_deadline",
    }  # fmt: skip
    names = {FIELDS[f].name for f in guest_fields() if f not in GUEST_FIELDS}
    assert names == elsewhere | not_moved


def test_the_table_covers_the_host_state_area():
    from_rows = {row.host for row in CONDITIONAL if row.host}
    assert from_rows <= HOST_FIELDS
    assert {f for f, info in FIELDS.items() if info.area is Area.HOST} == HOST_FIELDS


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("row", CONDITIONAL, ids=ids)
def test_entry_loads_what_its_control_says(row: Conditional, on: bool):
    cpu = loaded()
    set_control(cpu, row.load, on)
    field, other = value_of(row, ONE, VALUE), value_of(row, OTHER, SECOND)
    cpu.vmcs[row.guest] = field
    put(cpu, row.register, other)
    reenter(cpu)
    loads = on or row.load is ALWAYS
    if row.register is Msr.IA32_EFER and not loads:
        other |= Efer.LMA | Efer.LME
    assert get(cpu, row.register) == (field if loads else other)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("row", CONDITIONAL, ids=ids)
def test_exit_saves_what_its_control_says(row: Conditional, on: bool):
    cpu = loaded()
    set_control(cpu, row.save, on)
    field, other = value_of(row, ONE, VALUE), value_of(row, OTHER, SECOND)
    cpu.vmcs[row.guest] = field
    reenter(cpu)
    put(cpu, row.register, other)
    leave(cpu)
    saves = on or row.save in (ALWAYS, SUPPORTED)
    assert cpu.vmcs[row.guest] == (other if saves else field)
    assert (row.guest in cpu.vmcs.dirty) is saves


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("row", CONDITIONAL, ids=ids)
def test_exit_loads_what_its_control_says(row: Conditional, on: bool):
    cpu = loaded()
    set_control(cpu, row.host_load, on)
    set_control(cpu, row.host_clear, on)
    host, guest = value_of(row, ONE, VALUE), value_of(row, OTHER, SECOND)
    if row.host is not None:
        cpu.vmcs[row.host] = host
    reenter(cpu)
    put(cpu, row.register, guest)
    leave(cpu)
    if row.host_load is not None and (on or row.host_load is ALWAYS):
        expected = host
    elif row.host_clear is not None and (on or row.host_clear is ALWAYS):
        expected = 0
    else:
        expected = guest
    if row.register is Msr.IA32_EFER:
        expected |= Efer.LMA | Efer.LME
    if row.register == "dr7":
        expected = 0x400
    assert get(cpu, row.register) == expected


def test_a_cpu_without_the_field_does_not_save_it():
    from vtx.machine.shape import Shape

    cpu = loaded(Shape.of("nehalem"))
    reenter(cpu)
    cpu.regs.write_msr(Msr.IA32_PKRS, 5)
    leave(cpu)
    assert cpu.vmcs[Field.GUEST_IA32_PKRS] == 0


@pytest.mark.parametrize("row", BANK, ids=lambda row: row.name)
def test_bank_is_loaded_and_saved(row):
    cpu = loaded()
    values = [numbered(field) for field in row.fields]
    if row.name == "cr0":
        values = [0x8005_0031]
    if len(values) == 4:
        values[3] = 0xC0F3
    for field, value in zip(row.fields, values, strict=True):
        cpu.vmcs[field] = value
    reenter(cpu)
    register = getattr(cpu.regs, row.name)
    assert (list(register) if isinstance(register, tuple) else [register]) == values
    changed = [value ^ 1 for value in values]
    if len(values) == 1:
        setattr(cpu.regs, row.name, changed[0])
    else:
        kind = Segment if len(values) == 4 else TableRegister
        setattr(cpu.regs, row.name, kind(*changed))
    leave(cpu)
    assert [cpu.vmcs[field] for field in row.fields] == changed
    assert set(row.fields) <= cpu.vmcs.dirty


@pytest.mark.parametrize(
    ("reason", "blocking", "saved"),
    [
        (ExitReason.CPUID, 0, 0),
        (ExitReason.EXTERNAL_INTERRUPT, 0, 0),
        (ExitReason.CPUID, 2, 0x4000),
        (ExitReason.MONITOR_TRAP_FLAG, 0, 0x4000),
        (ExitReason.INIT_SIGNAL, 0, 0x4000),
        (ExitReason.TPR_BELOW_THRESHOLD, 0, 0x4000),
    ],
)
def test_pending_debug_exceptions_are_saved_by_some_exits_only(
    reason: ExitReason, blocking: int, saved: int
):
    cpu = loaded()
    reenter(cpu)
    cpu.regs.pending_debug_exceptions = 0x4000
    cpu.regs.interruptibility_state = blocking
    leave(cpu, reason=reason)
    assert cpu.vmcs[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == saved


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        (Field.GUEST_RIP, "rip", 0xFFFF_8000_1234_5678),
        (Field.GUEST_RSP, "rsp", 0x7FFF_1234_5678),
        (Field.GUEST_RFLAGS, "rflags", 0x1_0246),
        (Field.GUEST_ACTIVITY_STATE, "activity_state", 1),
        (Field.GUEST_INTERRUPTIBILITY_STATE, "interruptibility_state", 1),
        (Field.GUEST_PENDING_DEBUG_EXCEPTIONS, "pending_debug_exceptions", 0x4000),
    ],
)
def test_volatile_state_is_loaded_and_saved(field: Field, name: str, value: int):
    cpu = loaded()
    cpu.vmcs[field] = value
    reenter(cpu)
    assert getattr(cpu.regs, name) == value
    setattr(cpu.regs, name, value ^ 2)
    # Of exits that save pending debug exceptions.
    leave(cpu, reason=ExitReason.MONITOR_TRAP_FLAG)
    assert cpu.vmcs[field] == value ^ 2
    assert field in cpu.vmcs.dirty


# ---- Registers with rules of their own -----------------------------------------------------------

KEPT = 0x6000_0010


@pytest.mark.parametrize(
    "field", [0x8005_0021, 0x8005_0021 | KEPT | 0xFFC0 | 1 << 17 | 0x1FF << 19]
)
@pytest.mark.parametrize("now", [0x8000_0031, 0xE000_0031])
def test_entry_keeps_the_cache_bits_of_cr0(field: int, now: int):
    cpu = loaded()
    cpu.vmcs[Field.GUEST_CR0] = field
    cpu.regs.cr0 = now
    reenter(cpu)
    assert cpu.regs.cr0 == 0x8005_0021 | now & KEPT
    leave(cpu)
    assert cpu.vmcs[Field.GUEST_CR0] == 0x8005_0021 | now & KEPT


@pytest.mark.parametrize("now", [0x8000_0031, 0xE000_0031])
def test_exit_keeps_the_cache_bits_of_cr0(now: int):
    cpu = loaded()
    cpu.vmcs[Field.HOST_CR0] = 0x8001_0033
    reenter(cpu)
    cpu.regs.cr0 = now
    leave(cpu)
    assert cpu.regs.cr0 == 0x8001_0023 | now & KEPT


@pytest.mark.parametrize("field", [0, 0xFFFF_FFFF])
def test_entry_forces_the_fixed_bits_of_dr7(field: int):
    cpu = loaded()
    cpu.vmcs[Field.GUEST_DR7] = field
    reenter(cpu)
    assert cpu.regs.dr7 == field & 0xFFFF_2FFF | 0x400


@pytest.mark.parametrize(("bits", "pae"), [(Cr4.VMXE, False), (Cr4.VMXE | Cr4.PAE, True)])
def test_a_64bit_host_gets_cr4_pae(bits: int, pae: bool):
    cpu = loaded()
    cpu.vmcs[Field.HOST_CR4] = bits
    reenter(cpu)
    leave(cpu)
    assert cpu.regs.cr4 == bits | Cr4.PAE


@pytest.mark.parametrize("ia32e", [True, False])
@pytest.mark.parametrize("paging", [True, False])
def test_efer_without_its_entry_control(ia32e: bool, paging: bool):
    cpu = loaded()
    set_control(cpu, Entry.LOAD_IA32_EFER, False)
    set_control(cpu, Entry.IA32E_MODE_GUEST, ia32e)
    cpu.vmcs[Field.GUEST_CR0] = Cr0.PE | Cr0.NE | (Cr0.PG if paging else 0)
    cpu.vmcs[Field.GUEST_CR4] = Cr4.VMXE
    cpu.regs.efer = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE
    reenter(cpu)
    lme = ia32e if paging else True
    assert cpu.regs.efer == Efer.SCE | Efer.NXE | (Efer.LMA if ia32e else 0) | (
        Efer.LME if lme else 0
    )


@pytest.mark.parametrize("misc5", [True, False])
def test_ia32e_mode_guest_follows_the_guest(misc5: bool):
    from tests.cpu.states import with_msrs

    shape = shape_of_everything()
    misc = shape.msr(Msr.IA32_VMX_MISC) & ~(1 << 5) | misc5 << 5
    cpu = loaded(with_msrs(shape, IA32_VMX_MISC=misc))
    before = cpu.vmcs[Field.VM_ENTRY_CONTROLS]
    reenter(cpu)
    cpu.regs.efer &= ~(Efer.LMA | Efer.LME)
    cpu.regs.cr4 &= ~Cr4.PAE
    leave(cpu)
    after = before & ~Entry.IA32E_MODE_GUEST if misc5 else before
    assert cpu.vmcs[Field.VM_ENTRY_CONTROLS] == after


def test_reserved_access_rights_are_neither_loaded_nor_saved():
    cpu = loaded()
    cpu.vmcs[Field.GUEST_DS_ACCESS_RIGHTS] = 0xC093 | 0xFFFE_0F00
    reenter(cpu)
    assert cpu.regs.ds.access_rights == 0xC093
    cpu.regs.ds = cpu.regs.ds._replace(access_rights=0xC0F3 | 0xF00)
    leave(cpu)
    assert cpu.vmcs[Field.GUEST_DS_ACCESS_RIGHTS] == 0xC0F3
    reenter(cpu)
    assert cpu.regs.ds.access_rights == 0xC0F3


@pytest.mark.parametrize("name", ["es", "ss", "ds", "fs", "gs"])
def test_unusable_segments(name: str):
    cpu = loaded()
    cpu.vmcs[Field[f"GUEST_{name.upper()}_ACCESS_RIGHTS"]] = UNUSABLE | 0x60
    cpu.vmcs[Field[f"GUEST_{name.upper()}_BASE"]] = 0xFFFF_8000_1234_5678
    reenter(cpu)
    segment = getattr(cpu.regs, name)
    assert not segment.usable
    assert segment.base == (0x1234_5678 if name in ("es", "ss", "ds") else 0xFFFF_8000_1234_5678)
    if name == "ss":
        assert cpu.regs.cpl == 3
        assert segment.access_rights & 0x4000


# ---- Host state ------------------------------------------------------------------------------


def test_host_segments_are_flat():
    cpu = loaded(
        host_es_selector=0, host_ss_selector=0x10, host_ds_selector=0x18, host_fs_selector=0x20,
        host_gs_selector=0, host_cs_selector=0x08, host_tr_selector=0x40, host_fs_base=0x1111,
        host_gs_base=0x2222, host_tr_base=0x3333, host_gdtr_base=0x4444, host_idtr_base=0x5555,
    )  # fmt: skip
    reenter(cpu)
    leave(cpu)
    regs, flat = cpu.regs, 0xFFFF_FFFF
    assert regs.cs == Segment(0x08, 0, flat, 0xA09B)
    assert regs.es == Segment(0, 0, flat, 0xC093 | UNUSABLE)
    assert regs.ss == Segment(0x10, 0, flat, 0xC093)
    assert regs.ds == Segment(0x18, 0, flat, 0xC093)
    assert regs.fs == Segment(0x20, 0x1111, flat, 0xC093)
    assert regs.gs == Segment(0, 0x2222, flat, 0xC093 | UNUSABLE)
    assert regs.tr == Segment(0x40, 0x3333, 0x67, 0x8B)
    assert regs.ldtr.selector == 0
    assert not regs.ldtr.usable
    assert regs.gdtr == TableRegister(0x4444, 0xFFFF)
    assert regs.idtr == TableRegister(0x5555, 0xFFFF)


def test_host_registers_and_non_register_state():
    cpu = loaded(host_rip=0x1234, host_rsp=0x5678, host_cr3=0x9000)
    reenter(cpu)
    cpu.regs.activity_state = 1
    cpu.regs.interruptibility_state = 0b1011
    cpu.regs.pending_debug_exceptions = 1
    cpu.monitor_armed = True
    leave(cpu)
    regs = cpu.regs
    assert (regs.rip, regs.rsp, regs.rflags, regs.cr3) == (0x1234, 0x5678, 2, 0x9000)
    assert regs.dr7 == 0x400
    assert regs.activity_state == regs.pending_debug_exceptions == 0
    assert regs.interruptibility_state == 0
    assert not cpu.monitor_armed
    assert not cpu.non_root


def leave_ia32e(cpu: Cpu) -> None:
    """Let the guest leave IA-32e mode."""
    cpu.regs.efer &= ~(Efer.LMA | Efer.LME)
    cpu.regs.cs = Segment(8, 0, 0xFFFF_FFFF, 0xC09B)
    cpu.regs.cr4 &= ~Cr4.PAE


def to_32bit_host(**fields: int) -> Cpu:
    cpu = loaded(**fields)
    set_control(cpu, Exit1.HOST_ADDRESS_SPACE_SIZE, False)
    reenter(cpu)
    leave_ia32e(cpu)
    return cpu


def test_a_32bit_host():
    cpu = to_32bit_host(host_cr4=Cr4.VMXE | Cr4.PCIDE | Cr4.FRED)
    leave(cpu)
    assert cpu.regs.cr4 == Cr4.VMXE
    assert cpu.regs.cs.access_rights == 0xC09B
    assert not cpu.regs.efer & (Efer.LMA | Efer.LME)


PDPT = 0x6000


def test_a_host_with_pae_paging_gets_its_pdptes():
    cpu = to_32bit_host(host_cr4=Cr4.VMXE | Cr4.PAE, host_cr3=PDPT)
    entries = (0x7001, 0, 0x8001 | 0x18, 0xFFF0_0000_0000_0000)
    for number, entry in enumerate(entries):
        cpu.memory.write_u64(PDPT + 8 * number, entry)
    leave(cpu)
    assert cpu.regs.pdptes == entries


@pytest.mark.parametrize("bit", [1, 2, 5, 6, 7, 8, 52, 63])
def test_abort_for_an_invalid_host_pdpte(bit: int):
    cpu = to_32bit_host(host_cr4=Cr4.VMXE | Cr4.PAE, host_cr3=PDPT)
    cpu.memory.write_u64(PDPT + 16, 0x7001 | 1 << bit)
    with pytest.raises(VmxAbort, match="PDPTE2") as raised:
        leave(cpu)
    assert raised.value.indicator is AbortIndicator.HOST_PDPTES
    assert cpu.memory.read_u32(cpu.current_vmcs_pointer + 4) == 2


def test_abort_for_leaving_ia32e_mode():
    cpu = loaded()
    set_control(cpu, Exit1.HOST_ADDRESS_SPACE_SIZE, False)
    reenter(cpu)
    with pytest.raises(EmulationStopped, match="VMX abort 6") as raised:
        leave(cpu)
    assert raised.value.indicator == 6
    assert cpu.memory.read_u32(cpu.current_vmcs_pointer + 4) == 6
    assert cpu.regs.activity_state == 2
    assert cpu.vmcs.abort_indicator == 6


# ---- Guests with PAE paging ------------------------------------------------------------------


def pae_guest(**fields: int) -> Cpu:
    cpu = loaded(**fields)
    set_control(cpu, Entry.IA32E_MODE_GUEST, False)
    cpu.vmcs[Field.GUEST_IA32_EFER] = 0
    cpu.vmcs[Field.GUEST_CS_ACCESS_RIGHTS] = 0xC09B
    cpu.vmcs[Field.GUEST_CR3] = PDPT + 0x20
    return cpu


def test_pdptes_come_from_their_fields_under_ept():
    cpu = pae_guest(guest_pdpte0=0x1001, guest_pdpte1=0x2001, guest_pdpte2=0, guest_pdpte3=0x3001)
    reenter(cpu)
    assert cpu.regs.pdptes == (0x1001, 0x2001, 0, 0x3001)
    assert cpu.context.pdptes == cpu.regs.pdptes
    cpu.regs.pdptes = (5, 6, 7, 8)
    leave(cpu)
    assert [cpu.vmcs[Field[f"GUEST_PDPTE{n}"]] for n in range(4)] == [5, 6, 7, 8]


def test_pdptes_come_from_memory_without_ept():
    cpu = pae_guest(secondary_processor_based_controls=0)
    cpu.memory.write_u64(PDPT + 0x20 + 8, 0x9001)
    reenter(cpu)
    assert cpu.regs.pdptes == (0, 0x9001, 0, 0)
    leave(cpu)
    assert cpu.vmcs[Field.GUEST_PDPTE1] == 0


# ---- Non-register state ----------------------------------------------------------------------


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("blocked", [True, False])
def test_nmi_blocking_after_entry(virtual: bool, blocked: bool):
    cpu = loaded(guest_interruptibility_state=8 if blocked else 0)
    cpu.vmcs[Field.PIN_BASED_CONTROLS] |= Pin.NMI_EXITING | Pin.VIRTUAL_NMIS
    if not virtual:
        cpu.vmcs[Field.PIN_BASED_CONTROLS] ^= Pin.VIRTUAL_NMIS
    cpu.nmi_blocked = not blocked
    reenter(cpu)
    assert cpu.nmi_blocked is (blocked and not virtual)
    assert cpu.regs.interruptibility_state == (8 if blocked else 0)


NMI_EXIT = {"interruption_information": 1 << 31 | 2 << 8 | 2}


@pytest.mark.parametrize(
    ("information", "blocked"),
    [(NMI_EXIT, True), ({"interruption_information": 1 << 31 | 3 << 8 | 14}, False), ({}, False)],
)
def test_only_an_nmi_exit_blocks_nmis(information: dict[str, int], blocked: bool):
    cpu = loaded()
    reenter(cpu)
    leave(cpu, ExitReason.EXCEPTION_OR_NMI, **information)
    assert cpu.nmi_blocked is blocked


@pytest.mark.parametrize("saves", [True, False])
def test_preemption_timer(saves: bool):
    cpu = loaded(vmx_preemption_timer_value=1000)
    reenter(cpu)
    assert cpu.preemption_timer is None
    leave(cpu)
    cpu.vmcs[Field.PIN_BASED_CONTROLS] |= Pin.ACTIVATE_VMX_PREEMPTION_TIMER
    set_control(cpu, Exit1.SAVE_VMX_PREEMPTION_TIMER_VALUE, saves)
    reenter(cpu)
    assert cpu.preemption_timer == 1000
    cpu.preemption_timer = 700
    leave(cpu)
    assert cpu.vmcs[Field.VMX_PREEMPTION_TIMER_VALUE] == (700 if saves else 1000)
    assert cpu.preemption_timer is None


# ---- VM-exit information -----------------------------------------------------------------------

INFORMATION = {
    "qualification": (Field.EXIT_QUALIFICATION, 0x1_0000_0001),
    "instruction_length": (Field.VM_EXIT_INSTRUCTION_LENGTH, 5),
    "instruction_information": (Field.VM_EXIT_INSTRUCTION_INFORMATION, 0x1234_5678),
    "guest_linear_address": (Field.GUEST_LINEAR_ADDRESS, 0xFFFF_8000_0000_1000),
    "guest_physical_address": (Field.GUEST_PHYSICAL_ADDRESS, 0x12_3456_7000),
    "interruption_information": (Field.VM_EXIT_INTERRUPTION_INFORMATION, 0x8000_0B0E),
    "interruption_error_code": (Field.VM_EXIT_INTERRUPTION_ERROR_CODE, 7),
    "idt_vectoring_information": (Field.IDT_VECTORING_INFORMATION, 0x8000_0020),
    "idt_vectoring_error_code": (Field.IDT_VECTORING_ERROR_CODE, 9),
}


def test_exit_records_its_information():
    cpu = loaded()
    reenter(cpu)
    values = {name: value for name, (_, value) in INFORMATION.items()}
    leave(cpu, ExitReason.EPT_VIOLATION, exit_reason_bits=1 << 27, **values)
    assert cpu.vmcs[Field.EXIT_REASON] == 48 | 1 << 27
    for field, value in INFORMATION.values():
        assert cpu.vmcs[field] == value
    reenter(cpu)
    leave(cpu, ExitReason.HLT)
    assert cpu.vmcs[Field.EXIT_REASON] == 12
    assert all(cpu.vmcs[field] == 0 for field, _ in INFORMATION.values())


def test_exit_clears_the_valid_bit_of_an_injected_event():
    cpu = loaded(vm_entry_interruption_information=0x8000_0B0E)
    reenter(cpu)
    leave(cpu)
    assert cpu.vmcs[Field.VM_ENTRY_INTERRUPTION_INFORMATION] == 0x0B0E
    assert Field.VM_ENTRY_INTERRUPTION_INFORMATION in cpu.vmcs.dirty
    assert cpu.events.exits[-1].injected == 0x8000_0B0E


@pytest.mark.parametrize(("flag", "saved"), [(None, 0x1_0002), (0, 0x2), (1, 0x1_0002)])
def test_saved_resume_flag(flag: int | None, saved: int):
    cpu = loaded(guest_rflags=0x1_0002)
    reenter(cpu)
    leave(cpu, resume_flag=flag)
    assert cpu.vmcs[Field.GUEST_RFLAGS] == saved


def test_pending_debug_exceptions_of_the_exit():
    cpu = loaded()
    reenter(cpu)
    cpu.regs.pending_debug_exceptions = 1
    leave(cpu, pending_debug_exceptions=0x4000)
    assert cpu.vmcs[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == 0x4000


def test_exits_are_counted_and_kept():
    cpu = loaded()
    reenter(cpu)
    cpu.regs.rip, cpu.steps = 0x4000, 17
    leave(cpu, ExitReason.EPT_VIOLATION, qualification=2, guest_physical_address=0x5000)
    record = cpu.events.exits[-1]
    assert (record.reason, record.qualification, record.guest_rip) == (48, 2, 0x4000)
    assert (record.guest_physical_address, record.step, record.processor) == (0x5000, 17, 0)
    from vtx.machine.events import Event

    row = cpu.events.counts[48]
    assert row[Event.VM_EXIT] == row[Event.FAULT_EXIT] == 1
    reenter(cpu)
    leave(cpu, ExitReason.CPUID)
    assert cpu.events.counts[10][Event.FAULT_EXIT] == 0


@pytest.mark.parametrize(
    ("information", "faults"),
    [
        (0x8000_0B0E, 1),  # #PF
        (0x8000_0306, 1),  # #UD
        (0x8000_0301, 0),  # #DB
        (0x8000_0202, 0),  # NMI
        (0x8000_0501, 0),  # INT1
        (0x8000_0603, 0),  # INT3
        (0x8000_0604, 0),  # INTO
    ],
)
def test_which_exceptions_count_as_faults(information: int, faults: int):
    cpu = loaded()
    reenter(cpu)
    leave(cpu, ExitReason.EXCEPTION_OR_NMI, interruption_information=information)
    from vtx.machine.events import Event

    row = cpu.events.counts[ExitReason.EXCEPTION_OR_NMI]
    assert (row[Event.VM_EXIT], row[Event.FAULT_EXIT]) == (1, faults)


# ---- Translation ---------------------------------------------------------------------------------


def test_context_is_that_of_the_guest():
    cpu = loaded(guest_cr3=0x12_3000, ept_pointer=0x5E, vpid=7, pml_address=0x8000, pml_index=300)
    cpu.vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] |= (
        Proc2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT | Proc2.ENABLE_PML
    )
    cpu.vmcs[Field.GUEST_SS_ACCESS_RIGHTS] = 0xC0F3
    reenter(cpu)
    context, regs = cpu.context, cpu.regs
    assert (context.cr0, context.cr3, context.cr4) == (regs.cr0, regs.cr3, regs.cr4)
    assert (context.efer, context.cpl) == (regs.efer, 3)
    assert (context.eptp, context.vpid, context.mode_based_execute) == (0x5E, 7, True)
    assert (context.pml_address, context.pml_index) == (0x8000, 300)
    context.pml_index = 299
    leave(cpu)
    assert cpu.vmcs[Field.PML_INDEX] == 299


def test_context_without_ept_and_vpid():
    cpu = loaded(ept_pointer=0x5E, vpid=7, secondary_processor_based_controls=0)
    reenter(cpu)
    assert cpu.context.eptp is None
    assert cpu.context.vpid == 0
    assert cpu.context.pml_address is None


@pytest.mark.parametrize(
    ("field", "value", "seen"),
    [
        (Field.GUEST_CR3, 0x77_7000, lambda c: c.context.cr3),
        (Field.EPT_POINTER, 0x6_005E, lambda c: c.context.eptp),
        (Field.VPID, 9, lambda c: c.context.vpid),
        (Field.GUEST_IA32_EFER, 0x501, lambda c: c.context.efer),
        (Field.PML_INDEX, 5, lambda c: c.context.pml_index),
    ],
)
def test_context_follows_vmwrites_between_entries(field: Field, value: int, seen):
    cpu = loaded()
    for _ in range(3):
        reenter(cpu)
        leave(cpu)
    cpu.vmcs[field] = value
    reenter(cpu)
    assert seen(cpu) == value


def test_context_follows_alignment_check_and_protection_keys():
    cpu = loaded(guest_cr4=Cr4.PAE | Cr4.VMXE | Cr4.SMAP | Cr4.PKE)
    for flags, pkru in ((2, 0), (0x4_0002, 5), (2, 6)):
        cpu.vmcs[Field.GUEST_RFLAGS] = flags
        cpu.regs.pkru = pkru
        reenter(cpu)
        assert cpu.context.rflags == flags
        assert cpu.context.pkru == pkru
        leave(cpu)


@pytest.mark.parametrize("vpid", [True, False])
def test_transitions_without_vpid_forget_vpid_0(vpid: bool):
    cpu = loaded()
    controls = Proc2.ENABLE_EPT | (Proc2.ENABLE_VPID if vpid else 0)
    cpu.vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] = controls
    for transitions in (2, 4):
        reenter(cpu)
        leave(cpu)
        assert cpu.mmu.counters()["invalidations"] == (0 if vpid else transitions)


# ---- MSR areas -------------------------------------------------------------------------------

AREA = 0x5000


def write_area(cpu: Cpu, *entries: tuple[int, int]) -> None:
    for number, (low, data) in enumerate(entries):
        cpu.memory.write_u64(AREA + 16 * number, low)
        cpu.memory.write_u64(AREA + 16 * number + 8, data)


def test_exit_stores_and_loads_msrs():
    cpu = loaded(vm_exit_msr_store_address=AREA, vm_exit_msr_store_count=3)
    write_area(cpu, (Msr.IA32_LSTAR, 0), (Msr.IA32_GS_BASE, 0), (Msr.IA32_TSC, 0))
    load_area = AREA + 0x100
    cpu.memory.write_u64(load_area, Msr.IA32_LSTAR)
    cpu.memory.write_u64(load_area + 8, 0x4444)
    cpu.vmcs.update(vm_exit_msr_load_address=load_area, vm_exit_msr_load_count=1)
    reenter(cpu)
    cpu.regs.write_msr(Msr.IA32_LSTAR, 0x1111)
    cpu.regs.write_msr(Msr.IA32_GS_BASE, 0x2222)
    cpu.tsc = 0x3333
    leave(cpu)
    stored = [cpu.memory.read_u64(AREA + 16 * number + 8) for number in range(3)]
    assert stored == [0x1111, 0x2222, 0x3333]
    assert cpu.regs.read_msr(Msr.IA32_LSTAR) == 0x4444


def test_exit_stores_capability_msrs():
    cpu = loaded(vm_exit_msr_store_address=AREA, vm_exit_msr_store_count=1)
    write_area(cpu, (Msr.IA32_VMX_BASIC, 0))
    reenter(cpu)
    leave(cpu)
    assert cpu.memory.read_u64(AREA + 8) == cpu.shape.msr(Msr.IA32_VMX_BASIC)


@pytest.mark.parametrize(
    "msr",
    [Msr.IA32_LSTAR | 1 << 32, 0x800, 0x8FF, Msr.IA32_SMBASE, Msr.IA32_PRED_CMD, 0x1234_5678],
)
def test_abort_for_an_msr_that_cannot_be_stored(msr: int):
    cpu = loaded(vm_exit_msr_store_address=AREA, vm_exit_msr_store_count=2)
    write_area(cpu, (Msr.IA32_LSTAR, 0), (msr, 0))
    reenter(cpu)
    with pytest.raises(VmxAbort, match="entry 2") as raised:
        leave(cpu)
    assert raised.value.indicator is AbortIndicator.SAVING_GUEST_MSRS
    assert cpu.memory.read_u32(cpu.current_vmcs_pointer + 4) == 1


def test_smbase_can_be_stored_in_smm():
    cpu = loaded(vm_exit_msr_store_address=AREA, vm_exit_msr_store_count=1)
    write_area(cpu, (Msr.IA32_SMBASE, 7))
    cpu.smm = True
    reenter(cpu)
    leave(cpu)
    assert cpu.memory.read_u64(AREA + 8) == 0


@pytest.mark.parametrize(
    ("msr", "data"),
    [(Msr.IA32_FS_BASE, 0), (Msr.IA32_LSTAR | 1 << 32, 0), (0x800, 0), (Msr.IA32_PAT, 2)],
)
def test_abort_for_an_msr_that_cannot_be_loaded(msr: int, data: int):
    cpu = loaded(vm_exit_msr_load_address=AREA, vm_exit_msr_load_count=1)
    write_area(cpu, (msr, data))
    reenter(cpu)
    with pytest.raises(VmxAbort, match="entry 1") as raised:
        leave(cpu)
    assert raised.value.indicator is AbortIndicator.LOADING_HOST_MSRS


def test_an_abort_leaves_the_data_of_the_vmcs():
    cpu = loaded(vm_exit_msr_load_address=AREA, vm_exit_msr_load_count=1)
    write_area(cpu, (Msr.IA32_FS_BASE, 0))
    region = cpu.memory.read(cpu.current_vmcs_pointer, 4096)
    reenter(cpu)
    with pytest.raises(VmxAbort):
        leave(cpu)
    after = cpu.memory.read(cpu.current_vmcs_pointer, 4096)
    assert after[:4] + after[8:] == region[:4] + region[8:]


# ---- Failed entries ------------------------------------------------------------------------------


def test_a_failed_entry_records_little_and_loads_host_state():
    cpu = loaded(host_rip=0x1234, vm_entry_interruption_information=0x8000_0020)
    for field, _ in INFORMATION.values():
        cpu.vmcs[field] = numbered(field)
    before = dict(cpu.vmcs.values)
    cpu.nmi_blocked = True
    info = entry_failure(cpu, ExitReason.ENTRY_FAILURE_GUEST_STATE, 4)
    assert info.exit_reason_bits == ENTRY_FAILURE
    assert cpu.regs.rip == 0x1234
    assert cpu.nmi_blocked
    changed = {field for field in Field if cpu.vmcs[field] != before[field]}
    assert changed == {Field.EXIT_REASON, Field.EXIT_QUALIFICATION}
    assert cpu.vmcs[Field.EXIT_REASON] == 33 | 1 << 31
    assert cpu.vmcs[Field.EXIT_QUALIFICATION] == 4


def test_a_failed_entry_loads_the_exit_msr_area():
    cpu = loaded(vm_exit_msr_load_address=AREA, vm_exit_msr_load_count=1)
    write_area(cpu, (Msr.IA32_LSTAR, 0x77))
    entry_failure(cpu, ExitReason.ENTRY_FAILURE_MACHINE_CHECK)
    assert cpu.regs.read_msr(Msr.IA32_LSTAR) == 0x77


def test_system_registers_have_rows():
    names = {row.name for row in BANK} | {str(row.register) for row in CONDITIONAL}
    assert set(SystemRegisters._fields) <= names


def test_secondary_exit_controls_act_only_when_activated():
    cpu = loaded()
    cpu.vmcs[Field.SECONDARY_VM_EXIT_CONTROLS] = Exit2.LOAD_IA32_SPEC_CTRL
    cpu.vmcs[Field.HOST_IA32_SPEC_CTRL] = 1
    cpu.vmcs[Field.VM_EXIT_CONTROLS] &= ~Exit1.ACTIVATE_SECONDARY_CONTROLS
    reenter(cpu)
    leave(cpu)
    assert cpu.regs.read_msr(Msr.IA32_SPEC_CTRL) == 0
