"""The controls of the current VMCS as a set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vtx
from vtx import Cpu, ExitReason, Field, InputError, NotSupported, UnknownName, UsageError, Vmcs
from vtx.facts.controls import Proc1, Proc2


@pytest.fixture
def cpu() -> Iterator[Cpu]:
    with Cpu() as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        cpu.ept.map(0, size="1G")
        yield cpu


def test_a_control_is_turned_on_and_off_by_its_name(cpu: Cpu) -> None:
    assert "RDTSC exiting" not in cpu.controls
    cpu.controls.add("rdtsc exiting")
    assert "RDTSC exiting" in cpu.controls
    assert Proc1.RDTSC_EXITING in cpu.controls
    assert cpu.vmread(Field.PRIMARY_PROCESSOR_BASED_CONTROLS) & Proc1.RDTSC_EXITING
    exit = cpu.vmlaunch(vtx.program("rdtsc\nrdtsc\nhlt"))
    assert exit.reason is ExitReason.RDTSC
    cpu.skip(exit)
    cpu.controls.discard("proc1.rdtsc_exiting")
    assert cpu.vmresume().reason is ExitReason.HLT


def test_the_set_is_what_the_words_say(cpu: Cpu) -> None:
    names = set(cpu.controls)
    word = cpu.vmread(Field.SECONDARY_PROCESSOR_BASED_CONTROLS)
    assert {name for name in names if name.startswith("proc2.")} == {
        f"proc2.{control.name.lower()}" for control in Proc2 if word & control
    }
    assert len(cpu.controls) == len(names)
    cpu.controls |= {"RDPMC exiting", "MONITOR exiting"}
    assert set(cpu.controls) - names == {"proc1.rdpmc_exiting", "proc1.monitor_exiting"}
    cpu.controls -= {Proc1.RDPMC_EXITING}
    assert set(cpu.controls) - names == {"proc1.monitor_exiting"}


def test_what_activates_a_group_comes_with_it(cpu: Cpu) -> None:
    cpu.controls.discard("proc1.activate_secondary_controls")
    assert "enable EPT" not in cpu.controls
    assert not any(name.startswith("proc2.") for name in cpu.controls)
    cpu.controls.add("enable VPID")
    assert "proc1.activate_secondary_controls" in cpu.controls
    assert "enable EPT" in cpu.controls


def test_what_the_cpu_does_not_allow(cpu: Cpu) -> None:
    with pytest.raises(NotSupported, match=r'skylake_sp does not allow control "Load PKRS"'):
        cpu.controls.add("exit1.load_pkrs")
    with pytest.raises(NotSupported, match=r"skylake_sp does not allow .* to be 1"):
        cpu.controls.add("LOADIWKEY exiting")
    with Cpu(profile="penryn_core2") as old:
        old.vmxon()
        old.load(Vmcs.for_64bit_guest(old.shape))
        assert "enable EPT" not in old.controls
        with pytest.raises(NotSupported, match=r'penryn_core2 does not allow control "Enable EPT"'):
            old.controls.add("enable EPT")


def test_what_must_be_1_stays_so(prescott: Cpu) -> None:
    before = set(prescott.controls)
    with pytest.raises(NotSupported, match="to be 0"):
        prescott.controls.discard("CR3-load exiting")
    assert set(prescott.controls) == before


@pytest.fixture
def prescott() -> Iterator[Cpu]:
    with Cpu(profile="prescott_p4_672") as cpu:
        cpu.vmxon()
        cpu.load(Vmcs.for_64bit_guest(cpu.shape))
        yield cpu


def test_wrong_names_and_things_that_are_no_names(cpu: Cpu) -> None:
    with pytest.raises(UnknownName, match="did you mean hlt_exiting"):
        cpu.controls.add("hlt exitting")
    with pytest.raises(UnknownName, match="did you mean enable_ept"):
        _ = "enable eptt" in cpu.controls
    with pytest.raises(InputError, match=r"write exit1\.load_ia32_efer or entry\.load_ia32_efer"):
        cpu.controls.add("load IA32_EFER")
    with pytest.raises(InputError, match="128 is no control"):
        cpu.controls.add(128)
    with pytest.raises(InputError, match="one control, where a set is wanted"):
        cpu.controls |= "HLT exiting"
    with pytest.raises(UsageError, match=r"cpu\.controls\.add"):
        cpu.controls = {"HLT exiting"}  # type: ignore[assignment]


def test_there_must_be_a_vmcs() -> None:
    with Cpu() as cpu:
        cpu.vmxon()
        with pytest.raises(UsageError, match="no VMCS is current"):
            _ = cpu.controls
