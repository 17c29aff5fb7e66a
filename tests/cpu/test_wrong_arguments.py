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


@pytest.mark.parametrize("vector", [-1, 256])
def test_a_vector_that_does_not_exist(cpu, vector):
    with pytest.raises(vtx.UsageError, match="a vector is 0 to 255"):
        cpu.inject(vector)


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
