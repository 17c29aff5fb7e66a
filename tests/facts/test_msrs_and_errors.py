"""Laws of the tables of MSRs and of VM-instruction errors."""

from __future__ import annotations

import pytest

from vtx.errors import UnknownName
from vtx.facts.controls import GROUPS
from vtx.facts.fields import Field
from vtx.facts.instruction_errors import (
    INSTRUCTION_ERRORS,
    InstructionError,
    InstructionErrorInfo,
    find_instruction_error,
)
from vtx.facts.msrs import CAPABILITY_MSRS, Msr, MsrInfo, find_capability_msr, find_msr

from .samples import MSR_ADDRESSES

every_msr = pytest.mark.parametrize("info", CAPABILITY_MSRS.values(), ids=lambda info: info.name)
every_error = pytest.mark.parametrize(
    "info", INSTRUCTION_ERRORS.values(), ids=lambda info: info.name
)
VMX_INSTRUCTIONS = {
    "VMXON", "VMXOFF", "VMCLEAR", "VMPTRLD", "VMPTRST", "VMREAD", "VMWRITE", "VMLAUNCH",
    "VMRESUME", "VMCALL", "VMFUNC", "INVEPT", "INVVPID",
}  # fmt: skip


def test_there_are_21_capability_msrs_in_one_block_and_feature_control() -> None:
    assert list(CAPABILITY_MSRS) == [0x3A, *range(0x480, 0x494)]


def test_no_msr_address_occurs_twice_but_for_the_two_aliases() -> None:
    aliases = {name for name, msr in Msr.__members__.items() if name != msr._name_}
    assert aliases == {"IA32_TSC", "IA32_FEAT_CTL"}


@every_msr
def test_what_it_reports_on_is_a_field_of_controls(info: MsrInfo) -> None:
    fields = {group.field for group in GROUPS.values()}
    if info.reports is not None:
        assert Field[info.reports.upper()] in fields
    assert (info.reports is not None) == (
        info.name.split("_")[-1] in ("CTLS", "CTLS2", "CTLS3", "VMFUNC")
    )


@every_msr
def test_it_says_when_it_exists(info: MsrInfo) -> None:
    assert info.exists_if
    assert info.msr is Msr[info.name]


def test_only_feature_control_can_be_written() -> None:
    writable = [info.name for info in CAPABILITY_MSRS.values() if "WRMSR" not in info.access]
    assert writable == ["IA32_FEATURE_CONTROL"]


@pytest.mark.parametrize(("name", "address"), MSR_ADDRESSES.items())
def test_addresses_from_other_sources(name: str, address: int) -> None:
    assert Msr[name] == address
    assert find_msr(name) == find_msr(address) == address


@pytest.mark.parametrize(
    "what", ["IA32_EFER", "ia32_efer", "EFER", "efer", 0xC0000080, "0xC0000080"]
)
def test_an_msr_is_found_however_it_is_written(what: str | int) -> None:
    assert find_msr(what) is Msr.IA32_EFER


def test_capability_msrs_are_found_by_their_short_names() -> None:
    assert find_capability_msr("ept_vpid_cap").msr is Msr.IA32_VMX_EPT_VPID_CAP
    assert find_capability_msr(0x480).name == "IA32_VMX_BASIC"


@pytest.mark.parametrize("what", ["", "IA32_NOTHING", 0x494, -1, 1 << 40])
def test_what_is_no_msr_is_refused(what: str | int) -> None:
    with pytest.raises(UnknownName, match="unknown MSR"):
        find_msr(what)


@pytest.mark.parametrize("what", ["efer", 0xC0000080, 0x494, "basci"])
def test_what_is_no_capability_msr_is_refused(what: str | int) -> None:
    with pytest.raises(UnknownName, match="VMX capability MSR"):
        find_capability_msr(what)


def test_there_are_25_errors() -> None:
    assert set(INSTRUCTION_ERRORS) == set(InstructionError) == set(range(1, 29)) - {14, 21, 27}
    assert list(INSTRUCTION_ERRORS) == sorted(INSTRUCTION_ERRORS)


@every_error
def test_reporters_are_vmx_instructions(info: InstructionErrorInfo) -> None:
    assert info.instructions
    assert set(info.instructions) <= VMX_INSTRUCTIONS
    assert info.text and info.when
    assert INSTRUCTION_ERRORS[info.error] is info


@pytest.mark.parametrize(
    ("number", "instructions"),
    [
        (4, ("VMLAUNCH",)),
        (5, ("VMRESUME",)),
        (7, ("VMLAUNCH", "VMRESUME")),
        (8, ("VMLAUNCH", "VMRESUME")),
        (12, ("VMREAD", "VMWRITE")),
        (13, ("VMWRITE",)),
        (15, ("VMXON",)),
        (28, ("INVEPT", "INVVPID")),
    ],
)
def test_numbers_that_people_know(number: int, instructions: tuple[str, ...]) -> None:
    assert find_instruction_error(number).instructions == instructions


@pytest.mark.parametrize(
    "what", [7, "7", "entry_invalid_control_fields", "VM entry with invalid control fields"]
)
def test_an_error_is_found_however_it_is_written(what: str | int) -> None:
    assert find_instruction_error(what).error is InstructionError.ENTRY_INVALID_CONTROL_FIELDS


@pytest.mark.parametrize("what", [0, 14, 21, 27, 29, -7, "", "no error"])
def test_what_is_no_error_is_refused(what: str | int) -> None:
    with pytest.raises(UnknownName, match="VM-instruction error"):
        find_instruction_error(what)


def test_a_name_of_a_member_is_never_another_members_text() -> None:
    for info in INSTRUCTION_ERRORS.values():
        assert find_instruction_error(info.name) is info
        assert find_instruction_error(info.text) is info
