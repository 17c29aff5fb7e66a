"""The default VMM: what it does about each exit, seen from the guest."""

from __future__ import annotations

import pytest

import vtx
from vtx import ExitReason as Why
from vtx.errors import EmulationStopped, EndOfTrace, InputError, UnhandledExit, UnknownName
from vtx.facts.controls import Proc2
from vtx.facts.fields import Field
from vtx.hypervisor.emulation.identification import cpuid
from vtx.hypervisor.replay import replay
from vtx.hypervisor.run import Run
from vtx.hypervisor.trace import parse_trace
from vtx.machine.assembly import parse_instruction
from vtx.machine.events import Event
from vtx.machine.program import Cursor, Instruction, Program
from vtx.machine.shape import Shape
from vtx.profiles import names


def run(steps: str, header: str = "ept: off", profile: str = "skylake_sp", vmm=None) -> Run:
    block = "".join(f"  {line.strip()}\n" for line in steps.strip().split("\n"))
    return replay(parse_trace(f"schema: 1\n{header}\nsteps: |\n{block}"), profile, vmm=vmm)


def exits(run: Run) -> dict[str, int]:
    return {reason.name: count for reason, count in run.exits.items()}


# ---- CPUID --------------------------------------------------------------------------------------


def test_cpuid_names_the_vendor_and_the_vmm():
    done = run("cpuid leaf=0")
    regs = done.registers
    vendor = b"".join(regs[name].to_bytes(4, "little") for name in ("rbx", "rdx", "rcx"))
    assert vendor == b"GenuineIntel"
    assert regs["rax"] == 0x16
    regs = run("cpuid leaf=0x40000000").registers
    assert b"".join(regs[n].to_bytes(4, "little") for n in ("rbx", "rcx", "rdx")) == b"vtx" * 4


@pytest.mark.parametrize("profile", names())
def test_cpuid_follows_the_shape_and_hides_vmx(profile):
    shape = Shape.of(profile)
    one = cpuid(shape, 1, apic_id=3)
    assert not one.ecx >> 5 & 1, "VMX"
    assert one.ecx >> 31, "a hypervisor is present"
    assert one.ebx >> 24 == 3
    assert bool(one.ecx >> 17 & 1) == ("pcid" in shape.features)
    extended = cpuid(shape, 0x8000_0001)
    assert bool(extended.edx >> 20 & 1) == ("nx" in shape.features)
    assert bool(extended.edx >> 26 & 1) == ("page_1g" in shape.features)
    assert extended.edx >> 29 & 1, "Intel 64"
    widths = cpuid(shape, 0x8000_0008)
    assert (widths.eax & 0xFF, widths.eax >> 8) == (shape.maxphyaddr, shape.linear_bits)
    assert cpuid(shape, 0x1234) == (0, 0, 0, 0)


def test_osxsave_follows_cr4():
    assert run("cpuid leaf=1").registers["rcx"] >> 27 & 1 == 0
    done = run("mov cr4, rax value=0x406a0\ncpuid leaf=1")
    assert done.registers["rcx"] >> 27 & 1 == 1


def test_an_emulated_instruction_is_single_stepped():
    header = (
        "ept: off\nvmcs: {guest_rflags: 0x302}\n"
        "handlers:\n  1: |\n    out 0x80, al value=0x44\n    iret\n"
    )
    done = run("nop\ncpuid\nnop\nhlt", header)
    assert done.exits[Why.CPUID] == done.exits[Why.HLT] == 1
    assert done.exits[Why.IO_INSTRUCTION] == 4, "behind HLT as well, which a trap ends"


# ---- Control registers --------------------------------------------------------------------------


def test_masks_and_shadows_of_cr0():
    header = "ept: off\nexits: {cr0: [ts, em]}"
    done = run("mov cr0, rax value=0x8005003b\nmov rbx, cr0\nclts\nmov rcx, cr0", header)
    assert exits(done) == {"CONTROL_REGISTER_ACCESS": 2}
    assert done.registers["rbx"] == 0x8005003B
    assert done.registers["rcx"] == 0x80050033
    assert done.vmcs[Field.CR0_READ_SHADOW] == 0x80050033


def test_reserved_bits_of_cr0_are_ignored():
    done = run("mov cr0, rax value=0x9005007b\nmov rbx, cr0", "ept: off\nexits: {cr0: all}")
    assert done.registers["rbx"] == 0x8005003B


def emulated_cr0(value: int, **fields: int) -> tuple[bool, vtx.Cpu]:
    """Let the default VMM write CR0 of a guest in compatibility mode."""
    cpu = vtx.Machine("skylake_sp").cpus[0]
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest())
    controls = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
    cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, controls | 1 << 7 | 1 << 5)
    cpu.vmwrite(Field.VPID, 7)
    cpu.vmwrite(Field.GUEST_CS_ACCESS_RIGHTS, 0xC09B)
    for name, field in fields.items():
        cpu.vmwrite(Field[name.upper()], field)
    return vtx.Vmm()._write_cr0(cpu, value), cpu


def test_paging_goes_off_only_without_pcids_and_forgets_translations():
    done, cpu = emulated_cr0(0x33)
    assert done
    assert cpu.vmread(Field.GUEST_CR0) == 0x33
    assert cpu.events.total(Event.INVALIDATION) == 1
    assert not emulated_cr0(0x33, guest_cr4=0x22020)[0]
    assert not emulated_cr0(0x80000033, guest_cr4=0x802020)[0], "CET asks for WP"


def test_lmsw_sets_the_low_bits_and_never_clears_pe():
    header = "ept: off\nexits: {cr0: [ts, mp]}"
    done = run("lmsw ax value=8\nmov rbx, cr0", header)
    assert exits(done) == {"CONTROL_REGISTER_ACCESS": 1}
    assert done.registers["rbx"] & 0xF == 0b1001


def test_cr3_loads_and_stores():
    done = run("mov rcx, cr3\nmov cr3, rcx\nmov rdx, cr3", "ept: off\nexits: {cr3: all}")
    assert exits(done) == {"CONTROL_REGISTER_ACCESS": 3}
    assert done.registers["rcx"] == done.registers["rdx"] == done.vmcs[Field.GUEST_CR3]
    assert done.events.total(Event.INVALIDATION) == 1, "the guest's translations are forgotten"


def test_cr3_loads_of_a_guest_without_vpid_need_no_invvpid():
    done = run("mov rcx, cr3\nmov cr3, rcx", "ept: off\nvpid: off\nexits: {cr3: all}")
    assert done.events.total(Event.INVALIDATION) == 0


def test_cr4_hides_vmxe():
    done = run("mov rbx, cr4\nmov cr4, rbx\nmov rcx, cr4", "ept: off\nexits: {cr4: [pge]}")
    assert exits(done) == {}, "no bit of the mask differs from its shadow"
    done = run("mov cr4, rbx value=0x620\nmov rcx, cr4", "ept: off\nexits: {cr4: [pge]}")
    assert exits(done) == {"CONTROL_REGISTER_ACCESS": 1}
    assert done.registers["rcx"] == 0x620
    assert done.vmcs[Field.GUEST_CR4] == 0x2620


def test_cr8_through_the_vmm():
    done = run("mov cr8, rax value=5\nmov rbx, cr8", "ept: off\nexits: {cr8: all}")
    assert exits(done) == {"CONTROL_REGISTER_ACCESS": 2}
    assert done.registers["rbx"] == 5


@pytest.mark.parametrize(
    ("step", "header"),
    [
        ("mov cr0, rax value=0x180000000", "exits: {cr0: all}"),
        ("mov cr0, rax value=0x80050032", "exits: {cr0: all}"),  # PG without PE
        ("mov cr0, rax value=0xa0050033", "exits: {cr0: all}"),  # NW without CD
        ("mov cr0, rax value=0x00050033", "exits: {cr0: all}"),  # no paging in 64-bit mode
        ("mov cr4, rax value=0x2020", "exits: {cr4: all}"),  # VMXE
        ("mov cr4, rax value=0x600", "exits: {cr4: all}"),  # PAE off in IA-32e mode
        ("mov cr4, rax value=0x8000000000000020", "exits: {cr4: all}"),
        ("mov cr3, rax value=0x4000000000000000", "exits: {cr3: all}"),
        ("mov cr8, rax value=16", "exits: {cr8: all}"),
        ("rdmsr msr=0x480", ""),  # the guest has no VMX
        ("rdmsr msr=0x12345", ""),
        ("wrmsr msr=0x12345 value=0", ""),
        ("wrmsr msr=IA32_EFER value=0x2", ""),  # reserved bits
        ("wrmsr msr=IA32_EFER value=0", ""),  # LME while paging is on
        ("wrmsr msr=IA32_MTRRCAP value=0", ""),
        ("wrmsr msr=IA32_LSTAR value=0x8000000000000000", ""),  # not canonical
        ("wrmsr msr=IA32_X2APIC_EOI value=1", ""),
        ("rdmsr msr=IA32_X2APIC_EOI", ""),
        ("wrmsr msr=0x802 value=0", ""),
        ("wrmsr msr=IA32_X2APIC_TPR value=0x100", ""),
        ("wrmsr msr=IA32_X2APIC_SELF_IPI value=3", ""),
        ("xsetbv xcr=0 value=2", "vmcs: {guest_cr4: 0x426a0}"),  # x87 state off
        ("xsetbv xcr=0 value=5", "vmcs: {guest_cr4: 0x426a0}"),  # AVX without SSE
        ("xsetbv xcr=1 value=1", "vmcs: {guest_cr4: 0x426a0}"),
        ("rdpmc counter=0", "controls: [rdpmc_exiting]"),
        ("mov dr7, rax value=0x100000000", "controls: [mov_dr_exiting]"),
        ("lgdt [0x5000]", "controls: [descriptor_table_exiting]"),
        ("ltr ax value=0x10", "controls: [descriptor_table_exiting]"),
        ("lldt ax value=0x200", "controls: [descriptor_table_exiting]"),
    ],
)
def test_what_the_guest_may_not_do_ends_in_general_protection(step, header):
    # The handler returns to the step, which faults again: 32 times are enough.
    steps = f"store 0x5000 value=0\nstore 0x5002 value=0x8000000000000000\n{step}"
    with pytest.raises(EmulationStopped, match=r"raises #GP\(") as caught:
        run(steps, f"ept: off\n{header}")
    assert step.split("value")[0].strip() in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        "vmxon [0x5000]",
        "vmclear [0x5000]",
        "vmptrld [0x5000]",
        "vmlaunch",
        "vmread rax, rbx field=GUEST_RIP",
        "invvpid rax, [0x5000] type=0",
    ],
)
def test_vmx_is_hidden_from_the_guest(step):
    with pytest.raises(EmulationStopped, match="raises #UD"):
        run(step, "ept: off\nvmcs: {guest_cr4: 0x26a0}")


def test_debug_registers():
    done = run(
        """
        mov dr0, rax value=0x7000
        mov dr6, rax value=0xf
        mov dr7, rax value=0x1
        mov rbx, dr0
        mov rcx, dr6
        mov rdx, dr7
        mov rsi, dr4
        """,
        "ept: off\ncontrols: [mov_dr_exiting]",
    )
    assert exits(done) == {"MOV_DR": 7}
    regs = done.registers
    assert (regs["rbx"], regs["rdx"]) == (0x7000, 0x401)
    assert regs["rcx"] == regs["rsi"] == 0xFFFF0FFF, "DR4 is DR6 while CR4.DE is 0"


def test_xsetbv():
    done = run("xsetbv xcr=0 value=7\nxgetbv xcr=0", "ept: off\nvmcs: {guest_cr4: 0x426a0}")
    assert exits(done) == {"XSETBV": 1}
    assert done.registers["rax"] == 7


# ---- MSRs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["prescott_p4_672", "penryn_core2", "skylake_sp"])
@pytest.mark.parametrize(
    ("msr", "value"),
    [
        ("IA32_EFER", 0xD01),
        ("IA32_PAT", 0x0007040600070406),
        ("IA32_STAR", 0x0023001000000000),
        ("IA32_LSTAR", 0xFFFF888000200000),
        ("IA32_KERNEL_GS_BASE", 0x1234),
        ("IA32_FS_BASE", 0x5678),
        ("IA32_SYSENTER_EIP", 0x9ABC),
        ("IA32_TSC_DEADLINE", 0x1122334455667788),
        ("IA32_X2APIC_TPR", 0x20),
        ("0x832", 0x10020),  # local vector table of the timer
    ],
)
def test_msrs_keep_what_is_written(profile, msr, value):
    done = run(f"wrmsr msr={msr} value={value:#x}\nmov rax, 0\nrdmsr msr={msr}", profile=profile)
    assert exits(done) == {"RDMSR": 1, "WRMSR": 1}
    assert done.registers["rdx"] << 32 | done.registers["rax"] == value


def test_the_time_stamp_counter_can_be_set():
    done = run("wrmsr msr=0x10 value=0x500000000\nnop\nrdmsr msr=0x10\nrdtsc")
    value = done.registers["rdx"] << 32 | done.registers["rax"]
    assert 0x500000000 <= value < 0x500000010


@pytest.mark.parametrize("scaled", [False, True])
def test_the_time_stamp_counter_is_scaled_and_moves_with_its_adjustment(scaled):
    header = "ept: off\ncontrols: {use_tsc_offsetting: on, use_tsc_scaling: SCALED}\n"
    header += "vmcs: {tsc_multiplier: 0x3000000000000, tsc_offset: 0x700000000}"
    header = header.replace("SCALED", "on" if scaled else "off")
    steps = "wrmsr msr=IA32_TSC_ADJUST value=0x100000000\nrdtsc"
    registers = run(steps, header, "sapphire_rapids").registers
    assert 0 <= (registers["rdx"] << 32 | registers["rax"]) - 0x800000000 < 16
    # What RDMSR returns, the VMM computes; what RDTSC returns, the processor.
    body = "nop\n" * 40
    values = []
    for last in ("rdmsr msr=0x10", "rdtsc"):
        registers = run(f"{body}{last}", header, "sapphire_rapids").registers
        values.append(registers["rdx"] << 32 | registers["rax"])
    assert values[0] == values[1]
    assert values[0] - 0x700000000 == 40 * (3 if scaled else 1)


def test_writing_the_time_stamp_counter_moves_its_adjustment():
    done = run("wrmsr msr=0x10 value=0x500000000\nrdmsr msr=IA32_TSC_ADJUST")
    adjustment = done.registers["rdx"] << 32 | done.registers["rax"]
    assert 0x500000000 - 16 < adjustment <= 0x500000000


@pytest.mark.parametrize(
    ("msr", "value"),
    [("IA32_FEATURE_CONTROL", 1), ("IA32_APIC_BASE", 0xFEE00D00), ("0x802", 0), ("0x80d", 1)],
)
def test_msrs_that_the_vmm_makes_up(msr, value):
    done = run(f"rdmsr msr={msr}")
    assert done.registers["rdx"] << 32 | done.registers["rax"] == value


def test_msr_bitmaps_let_the_guest_go_its_way():
    steps = "rdmsr msr=IA32_STAR\nwrmsr msr=IA32_STAR value=5\nrdmsr msr=IA32_LSTAR"
    header = "ept: off\nexits: {msr: {read: [IA32_LSTAR], write: [IA32_STAR]}}"
    assert exits(run(steps, header)) == {"WRMSR": 1, "RDMSR": 1}
    assert exits(run(steps, "ept: off\nexits: {msr: none}")) == {}
    assert exits(run(steps, "ept: off\nexits: {msr: all}")) == {"WRMSR": 1, "RDMSR": 2}


def test_a_self_ipi_comes_back_as_an_interrupt():
    handlers = "handlers:\n  0x30: |\n    mov r12, 0x30\n    iret"
    done = run("wrmsr msr=IA32_X2APIC_SELF_IPI value=0x30\nnop", f"ept: off\n{handlers}")
    assert done.registers["r12"] == 0x30
    assert done.events.total(Event.INJECTION) == 1


@pytest.mark.parametrize(
    ("command", "reached"),
    [
        (0x1_0000_0030, [1]),
        (0x9_0000_0030, []),
        (0x0004_0030, [0]),  # self, whatever the destination says
        (0x2_0004_0030, [0]),
        (0x0008_0030, [0, 1, 2]),
        (0x000C_0030, [1, 2]),
        (0xFFFF_FFFF_0000_0030, [0, 1, 2]),
        (0xFFFF_FFFF_0000_0830, [0, 1, 2]),
        (0x6_0000_0830, [1, 2]),  # logical: bits 1 and 2 of cluster 0
        (0x1_0006_0000_0830, []),  # of cluster 1
        (0x000C_0008, []),  # no such vector
    ],
)
def test_destinations_of_interrupt_commands(command, reached):
    vmm = vtx.Vmm()
    machine = vtx.Machine("skylake_sp", processors=3)
    for cpu in machine.cpus:
        vmm.vcpu(cpu)
    assert vmm.write_msr(machine.cpus[0], 0x830, command)
    assert [n for n, vcpu in sorted(vmm.guest.vcpus.items()) if vcpu.interrupts] == reached


# ---- INIT and start-up IPIs ---------------------------------------------------------------------


def unrestricted(processors: int = 1) -> list[vtx.Cpu]:
    """Return processors whose guests may be in real-address mode, in VMX root operation."""
    cpus = vtx.Machine("skylake_sp", processors=processors).cpus
    for cpu in cpus:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape, processor=cpu.number))
        controls = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
        cpu.vmwrite(Field.SECONDARY_PROCESSOR_BASED_CONTROLS, controls | Proc2.UNRESTRICTED_GUEST)
        cpu.vmwrite(Field.CR0_GUEST_HOST_MASK, (1 << 64) - 1)
        cpu.vmwrite(Field.CR4_GUEST_HOST_MASK, (1 << 64) - 1)
    cpus[0].ept.map(0, size="1G")
    return cpus


def listing(*lines: str) -> Program:
    return Program(tuple(parse_instruction(line) for line in lines))


def test_init_and_start_up():
    """The manual's state after INIT: a processor that waits, and then begins where it is told."""
    vmm, (cpu,) = vtx.Vmm(), unrestricted()
    cpu.regs.rbx = 5
    exit = cpu.vmlaunch(listing("init", "nop"))
    assert exit.reason is Why.INIT_SIGNAL
    vmm.handle(cpu, exit)
    assert (cpu.regs.rbx, cpu.regs.rdx, cpu.regs.dr6) == (0, 0x6F0, 0xFFFF0FF0)
    assert cpu.vmread(Field.GUEST_RIP) == 0xFFF0
    cpu.cursors = [Cursor(listing("sipi vector=0x9a", "nop"))]
    exit = cpu.vmresume()
    assert exit.reason is Why.STARTUP_IPI, exit.explain()
    vmm.handle(cpu, exit)
    cpu.cursors = [Cursor(listing("nop"))]
    with pytest.raises(EndOfTrace):
        cpu.vmresume()
    regs = cpu.regs
    assert (regs.cs.selector, regs.cs.base, regs.rip) == (0x9A00, 0x9A000, 1)
    assert not regs.in_protected_mode
    assert not regs.in_ia32e_mode
    assert (regs.cr0 & 0x8000_0001, regs.cr3, regs.activity_state) == (0, 0, 0)


def test_init_without_real_mode_stops():
    with pytest.raises(EmulationStopped, match="real-address mode, which needs"):
        run("init\nnop")


def test_the_guest_starts_another_processor():
    vmm, cpus = vtx.Vmm(), unrestricted(2)
    for cpu in cpus:
        vmm.vcpu(cpu)
    with pytest.raises(EndOfTrace):
        cpus[1].vmlaunch(listing("nop"))
    assert vmm.write_msr(cpus[0], 0x830, 1 << 32 | 5 << 8)
    vmm.handle(cpus[1], cpus[1].proceed())
    with pytest.raises(EndOfTrace):
        cpus[1].cursors = [Cursor(listing())]
        cpus[1].vmresume()
    assert vmm.write_msr(cpus[0], 0x830, 1 << 32 | 6 << 8 | 0x12)
    exit = cpus[1].proceed()
    assert (exit.reason, exit.qualification) == (Why.STARTUP_IPI, 0x12)


# ---- I/O ----------------------------------------------------------------------------------------


def test_ports():
    done = run(
        """
        out dx, al port=0x3f8 value=0x41
        out 0x80, eax value=0x12345678
        in al, dx port=0x3fd rax=0x1100
        mov rbx, rax
        in ax, 0x70
        mov rcx, rax
        in eax, 0x70
        """
    )
    assert exits(done) == {"IO_INSTRUCTION": 5}
    assert done.console == "A"
    assert done.registers["rbx"] == 0x1160
    assert done.registers["rcx"] == 0xFFFF
    assert done.registers["rax"] == 0xFFFF_FFFF


def test_string_output_reads_the_guests_memory():
    done = run(
        """
        store 0x7ffe value=0x21_6f6c6c6548 size=8
        rep outsb port=0x3f8 address=0x7ffe count=6
        """
    )
    assert exits(done) == {"IO_INSTRUCTION": 6}
    assert done.console == "Hello!"
    assert (done.registers["rcx"], done.registers["rsi"]) == (0, 0x8004)


def test_string_input_writes_the_guests_memory():
    header = "ept: off\nexpect: {memory: {0x7000: 0x6060}}"
    done = run("std\nrep insb port=0x3fd address=0x7001 count=2", header)
    assert done.holds, done.results
    assert done.registers["rdi"] == 0x6FFF


@pytest.mark.parametrize("size", [2, 4, 8])
def test_string_io_uses_as_much_of_its_registers_as_its_addresses_have(size):
    """RDI and RCX of the address size: 32 bits clear what is above them, 16 leave it."""
    vmm, cpu = vtx.Vmm(), vtx.Machine("skylake_sp").cpus[0]
    cpu.vmxon()
    cpu.load(vtx.Vmcs.for_64bit_guest(cpu.shape))
    cpu.ept.map(0x0, size="2M")
    above = 0x5_0000_0000 if size < 8 else 0
    cpu.regs.rdi, cpu.regs.rcx, cpu.regs.rdx = above | 0x7000, above | 2, 0x3FD
    step = Instruction("ins", {"size": 1, "rep": 1, "address_size": size})
    exit = cpu.vmlaunch(Program((step, Instruction("vmcall"))))
    count = 0
    while exit.reason is not Why.VMCALL:
        count += exit.reason is Why.IO_INSTRUCTION
        vmm.handle(cpu, exit)
        exit = cpu.vmresume()
    assert count == 2
    kept = above if size == 2 else 0
    assert (cpu.regs.rdi, cpu.regs.rcx) == (kept | 0x7002, kept)


def test_string_io_to_a_page_that_is_not_there_faults():
    with pytest.raises(InputError, match="0x40000000, beyond the guest's memory"):
        run("insb port=0x60 address=0x40000000")


def test_io_bitmaps():
    steps = "in al, 0x60\nin al, 0x61\nin al, dx port=0x9000"
    header = "ept: off\nexits: {io: [0x60, 0x9000-0x9003]}"
    assert exits(run(steps, header)) == {"IO_INSTRUCTION": 2}


# ---- Descriptor tables --------------------------------------------------------------------------


def test_descriptor_tables_are_stored_and_loaded():
    done = run(
        """
        sgdt [0x6000]
        sidt [0x6010]
        lgdt [0x6000]
        lidt [rbx+rcx*8+0x10] rbx=0x5800 rcx=0x100
        sldt eax
        str ebx
        """,
        "ept: off\ncontrols: [descriptor_table_exiting]\n"
        "expect: {memory: {0x6002: 0xffff888000100000, 0x6012: 0xffff888000101000}}",
    )
    assert exits(done) == {"GDTR_IDTR_ACCESS": 4, "LDTR_TR_ACCESS": 2}
    assert done.holds, done.results
    assert done.registers["rax"] == 0
    assert done.registers["rbx"] == 0x28
    assert done.vmcs[Field.GUEST_GDTR_BASE] == 0xFFFF888000100000


def test_ldtr_and_tr_are_loaded_from_the_gdt():
    done = run(
        """
        lldt ax value=0
        store 0xffff888000100205 value=0x89 size=1
        store 0xffff888000100200 value=0x2000000067 size=8
        store 0xffff888000100205 value=0x89 size=1
        store 0xffff888000100208 value=0 size=8
        """,
        "ept: off\ncontrols: [descriptor_table_exiting]",
    )
    assert done.vmcs[Field.GUEST_LDTR_ACCESS_RIGHTS] >> 16 & 1


@pytest.mark.parametrize("emulated", [False, True])
def test_ltr_by_the_vmm_is_as_by_the_processor(emulated):
    """The TSS of 16 bytes of the GDT is busy then, so that a second LTR raises #GP."""
    header = "ept: off\nhandlers:\n  13: |\n    pop r12\n    vmcall\n    iret\n"
    header += "expect: {memory: {0x100040: 0x12008b5678900067}}\n"
    header += "controls: {descriptor_table_exiting: %s}" % ("on" if emulated else "off")
    steps = """
        sgdt [0x6000]
        store 0x6000 value=0x4f size=2
        lgdt [0x6000]
        store 0xffff888000100040 value=0x1200895678900067 size=8
        store 0xffff888000100048 value=0xffff8880 size=8
        lldt ax value=0
        ltr bx value=0x40
        str ecx
        ltr bx value=0x40
        nop
        """
    done = run(steps, header, vmm=stopping_at_vmcall())
    assert done.holds, done.results
    assert done.registers["r12"] == 0x40
    assert done.vmcs[Field.GUEST_TR_BASE] == 0xFFFF888012567890
    assert done.vmcs[Field.GUEST_TR_LIMIT] == 0x67
    assert done.vmcs[Field.GUEST_TR_ACCESS_RIGHTS] == 0x8B
    assert done.vmcs[Field.GUEST_LDTR_ACCESS_RIGHTS] >> 16 & 1


def stopping_at_vmcall():
    vmm = vtx.Vmm()

    @vmm.on(Why.VMCALL)
    def vmcall(cpu, exit):
        vmm.stop("halted", "")

    return vmm


# ---- Events -------------------------------------------------------------------------------------

COUNTING = "handlers:\n  0x21: |\n    push r12\n    pop r12\n    mov r12, 0x21\n    iret\n"


def test_an_interrupt_goes_to_the_vmm_and_comes_back_injected():
    done = run("external_interrupt vector=0x21\nnop", f"ept: off\n{COUNTING}")
    assert exits(done) == {"EXTERNAL_INTERRUPT": 1}
    assert done.events.total(Event.INJECTION) == 1
    assert done.registers["r12"] == 0x21


def test_interrupts_that_are_not_acknowledged_on_exit():
    header = f"ept: off\n{COUNTING}controls: {{acknowledge_interrupt_on_exit: off}}"
    done = run("external_interrupt vector=0x21\nnop", header)
    assert exits(done) == {"EXTERNAL_INTERRUPT": 1}
    assert done.registers["r12"] == 0x21


def test_an_interrupt_waits_for_its_window():
    steps = "cli\nexternal_interrupt vector=0x21\nnop\nmov rbx, r12\nsti\nnop\nmov rcx, r12"
    done = run(steps, f"ept: off\n{COUNTING}")
    assert exits(done) == {"EXTERNAL_INTERRUPT": 1, "INTERRUPT_WINDOW": 1}
    assert (done.registers["rbx"], done.registers["rcx"]) == (0, 0x21)


def test_interrupts_that_come_together_are_delivered_one_after_the_other():
    second = "  0x22: |\n    mov r13, 2\n    iret"
    header = f"ept: off\nhandlers:\n  0x21: |\n    mov r12, 1\n    iret\n{second}"
    steps = "external_interrupt vector=0x21\nexternal_interrupt vector=0x22\nnop\nnop"
    done = run(steps, header)
    assert done.exits[Why.EXTERNAL_INTERRUPT] == 2
    assert done.events.total(Event.INJECTION) == 2
    assert (done.registers["r12"], done.registers["r13"]) == (1, 2)


def test_nmis_are_passed_on():
    done = run("nmi\nnop\nnmi\nnop\nnop", "ept: off\nhandlers:\n  2: |\n    nop\n    iret\n")
    assert exits(done) == {"EXCEPTION_OR_NMI": 2}
    assert done.events.total(Event.INJECTION) == 2


def test_an_nmi_waits_for_its_window():
    done = run("mov ss, ax value=0x10\nnmi\nnop\nnop")
    assert exits(done) == {"EXCEPTION_OR_NMI": 1, "NMI_WINDOW": 1}
    assert done.events.total(Event.INJECTION) == 1


def test_without_virtual_nmis_a_second_nmi_stays_blocked():
    header = "ept: off\ncontrols: {virtual_nmis: off}\nhandlers:\n  2: |\n    nop\n    iret\n"
    done = run("nmi\nnop\nnmi\nnop\nnop", header)
    assert done.exits == {Why.EXCEPTION_OR_NMI: 1}
    assert done.events.total(Event.INJECTION) == 1


@pytest.mark.parametrize(
    ("vector", "step"),
    [("#UD", "exception vector=6"), ("#PF", "exception vector=14 error_code=2 address=0x1234")],
)
def test_exceptions_that_exit_are_given_back(vector, step):
    header = (
        f'ept: off\nexits: {{exceptions: ["{vector}"]}}\n'
        f'handlers:\n  "{vector}": |\n    mov r12, cr2\n    mov r13, 7\n    nop\n    iret\n'
    )
    done = run(f"{step}\nnop", header)
    assert exits(done) == {"EXCEPTION_OR_NMI": 1}
    assert done.registers["r13"] == 7
    if vector == "#PF":
        assert done.registers["r12"] == 0x1234


def test_a_software_exception_returns_behind_its_instruction():
    header = "ept: off\nexits: {exceptions: ['#BP']}\nhandlers:\n  3: |\n    mov r13, 3\n    iret\n"
    done = run("int3\nmov r14, 9", header)
    assert exits(done) == {"EXCEPTION_OR_NMI": 1}
    assert (done.registers["r13"], done.registers["r14"]) == (3, 9)


def test_the_preemption_timer_is_set_again():
    done = run("repeat 1000\nnop\nend", "ept: off\npreemption_timer: 2")
    period = 2 << (Shape.of("skylake_sp").msrs[0x485] & 31)
    assert done.exits[Why.VMX_PREEMPTION_TIMER_EXPIRED] == pytest.approx(1000 / period, abs=1)


def test_a_timer_that_nobody_set_is_stopped():
    header = "ept: off\ncontrols: [activate_vmx_preemption_timer]"
    assert exits(run("nop\nnop", header)) == {"VMX_PREEMPTION_TIMER_EXPIRED": 1}


def test_a_triple_fault_ends_the_run():
    header = "ept: off\nvmcs: {guest_idtr_limit: 0}"
    with pytest.raises(EmulationStopped, match="triple fault"):
        run("ud2", header)
    done = run("ud2", f"{header}\nexpect: {{outcome: shutdown}}")
    assert done.outcome == "shutdown"
    assert done.holds


@pytest.mark.parametrize("exceptions", ["[]", "[13]", "[8, 13]"])
def test_a_fault_in_delivery_of_a_fault_becomes_a_double_fault(exceptions):
    header = (
        f"ept: off\nexits: {{exceptions: {exceptions}}}\nvmcs: {{guest_idtr_limit: 0xcf}}\n"
        "handlers:\n  8: |\n    mov r12, 8\n    hlt\n    iret\n"
    )
    done = run("exception vector=13 error_code=0", header)
    assert done.registers["r12"] == 8
    assert done.exits[Why.HLT] == 1


@pytest.mark.parametrize("exceptions", ["[]", "[13]", "[8, 13]"])
def test_a_fault_in_delivery_of_a_double_fault_shuts_down(exceptions):
    header = f"ept: off\nexits: {{exceptions: {exceptions}}}\nvmcs: {{guest_idtr_limit: 0x6f}}"
    with pytest.raises(EmulationStopped, match="triple fault"):
        run("exception vector=13 error_code=0", header)


@pytest.mark.parametrize(
    ("control", "step", "reason"),
    [
        ("invlpg_exiting", "invlpg [0x7000]", Why.INVLPG),
        ("rdtsc_exiting", "rdtsc", Why.RDTSC),
        ("rdtsc_exiting", "rdtscp", Why.RDTSCP),
        ("pause_exiting", "pause", Why.PAUSE),
        ("monitor_exiting", "monitor address=0x7000", Why.MONITOR),
        ("mwait_exiting", "mwait", Why.MWAIT),
        ("wbinvd_exiting", "wbinvd", Why.WBINVD_OR_WBNOINVD),
        ("rdrand_exiting", "rdrand rax", Why.RDRAND),
        ("rdseed_exiting", "rdseed ax", Why.RDSEED),
        ("monitor_trap_flag", "nop", Why.MONITOR_TRAP_FLAG),
    ],
)
def test_instructions_that_the_vmm_asked_for(control, step, reason):
    done = run(f"{step}\nhlt", f"ept: off\ncontrols: [{control}]")
    assert done.exits[reason] >= 1
    assert done.exits[Why.HLT] == 1
    assert done.outcome == "halted"


def test_random_numbers_are_the_same_in_every_run():
    header = "ept: off\ncontrols: [rdrand_exiting]"
    steps = "rdrand rax\nrdrand rbx\nrdrand cx rcx=0x12345678"
    one, two = run(steps, header), run(steps, header)
    assert one.registers == two.registers
    assert one.registers["rax"] != one.registers["rbx"]
    assert one.registers["rcx"] >> 16 == 0x1234, "a 16-bit destination keeps the rest"
    assert one.registers["rflags"] & 1, "CF: the number is valid"


def test_invd_and_a_hypercall():
    done = run("invd\nvmcall number=5")
    assert exits(done) == {"INVD": 1, "VMCALL": 1}
    assert done.registers["rax"] == (1 << 64) - 1000


# ---- Memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pages", "violations"), [("4K", 6), ("2M", 3), ("1G", 1)])
def test_ept_violations_by_page_size(pages, violations):
    # PML4, PDPT, PD at 3 MiB; code at 2 MiB; data at 0x7000 and 0x9000.
    done = run("load 0x7000\nload 0x9000", f"ept: {{pages: {pages}}}")
    assert exits(done) == {"EPT_VIOLATION": {"4K": 6, "2M": 2, "1G": 1}[pages]}
    assert violations >= 1


def test_everything_can_be_mapped_before():
    assert exits(run("load 0x7000", "ept: {pages: 2M, map: all}")) == {}


def test_a_guest_that_leaves_its_memory_is_an_error_of_its_trace():
    # The low map's page directory is the fifth table: let its first entry lead to 2 GiB.
    with pytest.raises(InputError, match=r"0x80100000, beyond its memory of 0x800000 b") as caught:
        run("store 0x304000 value=0x800000e7\nload 0x100000", "memory: 8M")
    assert caught.value.line == 5


def test_an_access_that_ept_does_not_allow_is_not_the_default_vmms_business():
    class Guard(vtx.Vmm):
        @vtx.on(Why.EPT_VIOLATION)
        def ept_violation(self, cpu, exit):
            super().ept_violation(cpu, exit)
            cpu.ept.protect(exit.guest_physical_address, write=False)

    with pytest.raises(EmulationStopped, match="the page is mapped, but not for this access"):
        run("load 0x7000\nstore 0x7000 value=1", "ept: on", vmm=Guard())


# ---- Handlers of one's own ----------------------------------------------------------------------


def test_a_handler_of_a_vmm():
    vmm = vtx.Vmm()

    @vmm.on(Why.CPUID)
    def answer(cpu, exit):
        cpu.regs.rax = 0x16
        cpu.skip(exit)

    assert run("cpuid leaf=0x99", vmm=vmm).registers["rax"] == 0x16
    assert answer.__name__ == "answer"


def test_marked_functions_modules_and_objects():
    @vtx.on("MSR_WRITE", 31)
    def msr(cpu, exit):
        cpu.regs.rbx += 1
        cpu.skip(exit)

    class Owner:
        handler = staticmethod(msr)

    for handlers in (msr, Owner()):
        done = run("wrmsr msr=1 value=1\nrdmsr msr=1", vmm=vtx.Vmm(handlers))
        assert done.registers["rbx"] == 2


def test_subclasses_override_methods_with_or_without_the_mark():
    class Loud(vtx.Vmm):
        def cpuid(self, cpu, exit):
            super().cpuid(cpu, exit)
            self.guest.console += b"!"

        @vtx.on(Why.HLT)
        def hlt(self, cpu, exit):
            self.stop("end", "enough")

    done = run("cpuid leaf=0\ncpuid leaf=1\nhlt\ncpuid leaf=2", vmm=Loud())
    assert done.console == "!!"
    assert done.outcome == "end"
    assert done.exits[Why.CPUID] == 2


def test_a_handler_may_pass():
    vmm = vtx.Vmm()
    seen = []

    @vmm.on(Why.CPUID)
    def watch(cpu, exit):
        seen.append(exit.rip)
        return vmm.PASS

    done = run("cpuid leaf=0", vmm=vmm)
    assert seen == [0x200000]
    assert done.registers["rax"] == 0x16


def test_a_vmm_starts_afresh_with_every_run():
    vmm = vtx.Vmm()
    for _ in range(2):
        assert run("out dx, al port=0x3f8 value=0x41", vmm=vmm).console == "A"


def test_wrong_handlers():
    with pytest.raises(UnknownName, match="CPUID"):
        vtx.on("CPUIDD")
    with pytest.raises(InputError, match="needs an exit reason"):
        vtx.on()
    with pytest.raises(InputError, match="handles no exit reason"):
        vtx.Vmm(print)


def test_what_is_left_to_a_vmm_that_knows_its_guest():
    """SMM, tasks, devices behind the APIC-access page, PASIDs, sub-pages."""
    assert set(Why) - set(vtx.Vmm()._defaults) == {
        Why.IO_SMI,
        Why.OTHER_SMI,
        Why.TASK_SWITCH,
        Why.APIC_ACCESS,
        Why.SPP_RELATED_EVENT,
        Why.ENQCMD_PASID_TRANSLATION_FAILURE,
        Why.ENQCMDS_PASID_TRANSLATION_FAILURE,
    }


APIC_ACCESS = (
    "ept: off\ncontrols: {virtualize_apic_accesses: on}\nvmcs: {apic_access_address: 0x40007000}"
)


def test_a_reason_without_a_handler():
    with pytest.raises(UnhandledExit, match="APIC access"):
        run("load 0x7000", APIC_ACCESS)
    vmm = vtx.Vmm()

    @vmm.on(Why.APIC_ACCESS)
    def access(cpu, exit):
        return vmm.PASS

    with pytest.raises(UnhandledExit, match="APIC access"):
        run("load 0x7000", APIC_ACCESS, vmm=vmm)


@pytest.mark.parametrize(
    ("reason", "steps", "header", "says"),
    [
        (Why.CPUID, "cpuid leaf=0", "ept: off", "did not advance RIP"),
        (Why.EPT_VIOLATION, "load 0x7000", "ept: on", "did not map the page"),
        (
            Why.EXTERNAL_INTERRUPT,
            "external_interrupt vector=33\nnop",
            "ept: off\ncontrols: {acknowledge_interrupt_on_exit: off}",
            "did not acknowledge",
        ),
        (
            Why.EXCEPTION_OR_NMI,
            "ud2",
            "ept: off\nexits: {exceptions: ['#UD']}",
            "neither injected",
        ),
    ],
)
def test_exits_without_progress_are_noticed(reason, steps, header, says):
    vmm = vtx.Vmm()
    times = []

    @vmm.on(reason)
    def forgetful(cpu, exit):
        times.append(exit.reason)

    with pytest.raises(EmulationStopped, match=says):
        run(steps, header, vmm=vmm)
    assert len(times) < 100


def test_exits_that_change_something_are_no_standstill():
    vmm = vtx.Vmm()

    @vmm.on(Why.CPUID)
    def slow(cpu, exit):
        cpu.regs.rbx += 1
        if cpu.regs.rbx == 200:
            cpu.skip(exit)

    assert run("cpuid leaf=0", vmm=vmm).exits[Why.CPUID] == 200


def test_a_loop_of_equal_interrupts_is_no_standstill():
    done = run("cli\nrepeat 100\nexternal_interrupt vector=33\nend\nnop")
    assert done.exits[Why.EXTERNAL_INTERRUPT] == 100


def test_a_repeated_instruction_that_would_take_for_ever():
    with pytest.raises(EmulationStopped, match="exits each time"):
        run("rep outsb port=0x3f8 address=0x7000 count=0xffffffff")


def test_a_stack_at_the_bottom_of_memory_wraps():
    with pytest.raises(EmulationStopped):
        run("mov rsp, 8\nud2")


@pytest.mark.parametrize("size", [0, 4097, 1 << 60])
def test_a_step_accesses_at_most_a_page(size):
    with pytest.raises(InputError, match="cannot access"):
        run(f"store 0x7000 size={size}")
