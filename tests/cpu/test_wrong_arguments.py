"""A wrong argument of the library gets a sentence that says what was meant to stand there."""

import pytest

import vtx
from vtx import Field


@pytest.fixture
def cpu():
    with vtx.Cpu() as cpu:
        cpu.vmxon()
        cpu.load(vtx.Vmcs.for_64bit_guest())
        yield cpu


def test_a_field_by_its_name_as_text(cpu):
    with pytest.raises(vtx.UsageError, match=r"VMREAD takes a member of vtx\.Field"):
        cpu.vmread("GUEST_RIP")
    with pytest.raises(vtx.UsageError, match=r"VMWRITE takes a member of vtx\.Field"):
        cpu.vmwrite("GUEST_RIP", 1)


@pytest.mark.parametrize("value", ["0x1000", 1.5, None])
def test_a_value_that_is_no_number(cpu, value):
    with pytest.raises(vtx.UsageError, match="an operand is an int"):
        cpu.vmwrite(Field.GUEST_RIP, value)


def test_the_name_of_a_trace_instead_of_a_trace(cpu):
    with pytest.raises(vtx.UsageError, match="load the trace first"):
        cpu.vmlaunch("traces/01-cpuid.yaml")


@pytest.mark.parametrize("vector", [-1, 256, 13.0])
def test_a_vector_that_does_not_exist(cpu, vector):
    with pytest.raises(vtx.UsageError, match="a vector is 0 to 255"):
        cpu.inject(vector)


def test_a_program_that_is_a_list_of_lines(cpu):
    with pytest.raises(vtx.UsageError, match=r"a Program or a trace .* not \['cpuid'\]"):
        cpu.vmlaunch(["cpuid"])


@pytest.mark.parametrize("kind", ["exception", 8, -1])
def test_an_event_type_that_does_not_exist(cpu, kind):
    with pytest.raises(vtx.UsageError, match=r"the type of an event is one of .*EventType\.NMI"):
        cpu.inject(13, type=kind)


def test_what_is_no_vmcs_and_what_is_no_exit(cpu):
    with pytest.raises(vtx.UsageError, match=r"cpu\.load takes a vtx\.Vmcs"):
        cpu.load("skylake_sp")
    with pytest.raises(vtx.UsageError, match=r"cpu\.skip takes the exit"):
        cpu.skip(None)


def test_a_vmcs_is_indexed_by_fields_and_holds_numbers():
    vmcs = vtx.Vmcs()
    with pytest.raises(vtx.UsageError, match=r"members of vtx\.Field.* not by 'guest_rip'"):
        vmcs["guest_rip"]
    with pytest.raises(vtx.UsageError, match=r"members of vtx\.Field"):
        vmcs["guest_rip"] = 1
    with pytest.raises(vtx.UsageError, match="holds an int, not '0x1000'"):
        vmcs[Field.GUEST_RIP] = "0x1000"


@pytest.mark.parametrize(
    ("name", "hint"), [("eax", "it is rax & 0xFFFFFFFF"), ("ch", "it is rcx >> 8 & 0xFF")]
)
def test_parts_of_registers_cannot_be_set(cpu, name, hint):
    with pytest.raises(AttributeError, match=hint):
        setattr(cpu.regs, name, 1)


def test_a_register_set_beside_the_registers(cpu):
    with pytest.raises(AttributeError, match=r"it is cpu\.regs\.rax"):
        cpu.rax = 1


def test_the_parts_of_an_invvpid_descriptor(cpu):
    taken = []
    cpu.mmu.invvpid = lambda *operands: taken.append(operands)
    cpu.invvpid(0, vpid=3, linear_address=0x7000)
    cpu.invvpid(0, 0x7000 << 64 | 3)
    assert taken[0] == taken[1] and 3 in taken[0] and 0x7000 in taken[0]
    with pytest.raises(vtx.UsageError, match="not both"):
        cpu.invvpid(0, 3, linear_address=0x7000)
    with pytest.raises(vtx.UsageError, match="vpid is an int of 64 bits, not '3'"):
        cpu.invvpid(1, vpid="3")
    with pytest.raises(vtx.UsageError, match="linear_address is an int of 64 bits, not -1"):
        cpu.invvpid(0, vpid=1, linear_address=-1)


def test_a_vmcs_for_another_cpu_says_how_to_make_one():
    with vtx.Cpu(profile="penryn_core2") as cpu:
        cpu.vmxon()
        with pytest.raises(vtx.NotSupported, match=r"for_64bit_guest\(cpu\.shape\)"):
            cpu.load(vtx.Vmcs.for_64bit_guest())


@pytest.mark.parametrize("key", ["exits: {io: [0x60]}", "vmcs: {tsc_offset: 1}"])
def test_a_trace_with_settings_is_no_program(cpu, tmp_path, key):
    path = tmp_path / "settings.yaml"
    path.write_text(f"schema: 1\n{key}\nsteps: hlt\n")
    with pytest.raises(vtx.InputError, match="which a program alone does not carry"):
        cpu.vmlaunch(vtx.load_trace(path))
