"""Laws of the table of exit reasons, over every row."""

from __future__ import annotations

import pytest

from vtx.errors import UnknownName
from vtx.facts.exits import (
    EXITS,
    ExitInfo,
    ExitKind,
    ExitReason,
    Filled,
    find_exit_reason,
    kvm_name,
)
from vtx.facts.qualifications import INSTRUCTION_INFORMATION, QUALIFICATIONS, qualification_layout

from .samples import (
    LINUX_EXITS,
    MEASURED_EXITS,
    OTHER_EXITS,
    OTHER_QUALIFIED_EXITS,
    QUALIFIED_EXITS,
)

every_exit = pytest.mark.parametrize("info", EXITS.values(), ids=lambda info: info.name)

UNUSED = {35, 38, 42, 71, 82, 83}


def test_there_are_80_exit_reasons() -> None:
    assert len(EXITS) == len(ExitReason) == 80
    assert set(ExitReason) == set(range(86)) - UNUSED
    assert list(EXITS) == sorted(EXITS)


@every_exit
def test_name_is_that_of_the_member(info: ExitInfo) -> None:
    assert info.reason is ExitReason[info.name.upper()]
    assert EXITS[info.reason] is info
    assert info.meaning and not info.meaning.endswith(".")


@every_exit
def test_layouts_resolve(info: ExitInfo) -> None:
    assert info.qualification is None or info.qualification in QUALIFICATIONS
    layout = info.instruction_information
    assert layout is None or layout in INSTRUCTION_INFORMATION


@every_exit
def test_only_fault_like_exits_always_report_a_length(info: ExitInfo) -> None:
    if info.instruction_length is Filled.YES:
        assert info.kind is ExitKind.FAULT
    if info.kind in (ExitKind.TRAP, ExitKind.ENTRY_FAILURE):
        assert info.instruction_length is Filled.NO
    if info.instruction_information is not None:
        assert info.instruction_length is not Filled.NO


def test_entry_failures_write_only_the_qualification() -> None:
    failures = [info for info in EXITS.values() if info.kind is ExitKind.ENTRY_FAILURE]
    assert [int(info.reason) for info in failures] == [33, 34, 41]
    for info in failures:
        others = (
            info.guest_linear_address,
            info.guest_physical_address,
            info.instruction_length,
            info.interruption_information,
        )
        assert set(others) == {Filled.NO}
        assert info.instruction_information is None
        assert not info.idt_vectoring_possible


def test_trap_like_exits() -> None:
    traps = [int(info.reason) for info in EXITS.values() if info.kind is ExitKind.TRAP]
    assert traps == [43, 45, 56, 74]


def test_exits_that_report_a_guest_physical_address() -> None:
    """SDM, "Basic VM-Exit Information": EPT violations, misconfigurations and SPP events."""
    filled = [int(i.reason) for i in EXITS.values() if i.guest_physical_address is Filled.YES]
    assert filled == [48, 49, 66]


def test_exits_that_have_a_qualification() -> None:
    qualified = {int(info.reason) for info in EXITS.values() if info.qualification}
    assert qualified == QUALIFIED_EXITS | OTHER_QUALIFIED_EXITS


def test_exits_that_report_an_instruction_length() -> None:
    measured = {int(i.reason) for i in EXITS.values() if i.instruction_length is Filled.YES}
    assert measured == MEASURED_EXITS


def test_exits_that_can_interrupt_the_delivery_of_an_event() -> None:
    """SDM, "Information for VM Exits During Event Delivery"."""
    possible = {int(info.reason) for info in EXITS.values() if info.idt_vectoring_possible}
    assert possible == {0, 9, 44, 48, 49, 62, 66}


def test_every_layout_is_used_by_an_exit() -> None:
    used = {info.qualification for info in EXITS.values()} | {
        "debug_exception",
        "page_fault",
        "nmi_source",
    }
    assert used == {None, *QUALIFICATIONS}
    words = {info.instruction_information for info in EXITS.values()}
    assert words == {None, *INSTRUCTION_INFORMATION}


@pytest.mark.parametrize(
    ("vector", "nmi", "layout"),
    [
        (None, False, "by_vector"),
        (1, False, "debug_exception"),
        (14, False, "page_fault"),
        (2, True, "nmi_source"),
    ],
)
def test_the_vector_decides_the_layout_of_an_exception(
    vector: int | None, nmi: bool, layout: str
) -> None:
    found = qualification_layout(ExitReason.EXCEPTION_OR_NMI, vector, nmi=nmi)
    assert found is QUALIFICATIONS[layout]


def test_other_exceptions_and_exits_have_no_qualification() -> None:
    assert qualification_layout(ExitReason.EXCEPTION_OR_NMI, 13) is None
    assert qualification_layout(ExitReason.CPUID) is None
    assert qualification_layout(ExitReason.CR_ACCESS) is QUALIFICATIONS["cr_access"]


@pytest.mark.parametrize(("number", "name"), LINUX_EXITS.items())
def test_names_of_linux(number: int, name: str) -> None:
    assert ExitReason[name] == number
    assert find_exit_reason(name).reason == number
    assert find_exit_reason(f"EXIT_REASON_{name}").reason == number
    assert kvm_name(ExitReason(number)) == name


@pytest.mark.parametrize(("name", "number"), OTHER_EXITS.items())
def test_names_of_older_kernels_and_xen(name: str, number: int) -> None:
    assert find_exit_reason(name).reason == number


@pytest.mark.parametrize(
    "what", [48, "48", "0x30", "30h", "EPT violation", "ept-violation", "Ept_Violation"]
)
def test_an_exit_is_found_however_it_is_written(what: str | int) -> None:
    assert find_exit_reason(what).reason is ExitReason.EPT_VIOLATION


def test_of_a_whole_exit_reason_field_the_basic_reason_counts() -> None:
    assert find_exit_reason(0x8000_0021).reason is ExitReason.ENTRY_FAILURE_GUEST_STATE
    assert find_exit_reason("0x80000022").reason is ExitReason.ENTRY_FAILURE_MSR_LOADING


@pytest.mark.parametrize("what", [*sorted(UNUSED), 86, -1, 0xFFFF, 1 << 32, "", "nothing"])
def test_what_is_no_exit_is_refused(what: str | int) -> None:
    with pytest.raises(UnknownName, match="exit reason"):
        find_exit_reason(what)


def test_a_misspelt_name_gets_suggestions() -> None:
    with pytest.raises(UnknownName, match="did you mean cpuid"):
        find_exit_reason("cpudi")


def test_no_alias_hides_another_exit() -> None:
    for name, reason in ExitReason.__members__.items():
        assert find_exit_reason(name).reason is reason
    for info in EXITS.values():
        assert find_exit_reason(info.sdm_title) is info
