"""Every check can be broken, and alone unless that is impossible."""

from __future__ import annotations

from collections import Counter

import pytest

from vtx.machine.processor import NO_VMCS
from vtx.machine.registers import Interruptibility, Segment
from vtx.machine.vmcs import Vmcs
from vtx.rules.check import CHECKS, Stage, entry_failure, failing_checks

from . import broken_controls, broken_guest, broken_host, broken_segments, broken_state
from .entry_support import MODES, Broken, guest, ids, processor

CASES: tuple[Broken, ...] = (
    *broken_controls.CASES,
    *broken_host.CASES,
    *broken_guest.CASES,
    *broken_segments.CASES,
    *broken_state.CASES,
)
AT_ENTRY = (Stage.CONTROLS_AND_HOST, Stage.GUEST)

every_case = pytest.mark.parametrize("case", CASES, ids=ids(CASES))


def failing(case: Broken, vmcs: Vmcs) -> set[str]:
    return {check.id for check in failing_checks(vmcs, case.processor())}


def test_every_check_on_a_vmcs_has_one_counterexample() -> None:
    on_vmcs = [
        check.id
        for check in CHECKS.values()
        if check.area.stage not in (Stage.INSTRUCTION, Stage.EVENT)
    ]
    assert Counter(ids(CASES)) == Counter(on_vmcs)


@every_case
def test_breaks_its_check_and_only_that(case: Broken) -> None:
    assert failing(case, case.vmcs()) == {case.id, *case.also}
    assert bool(case.also) == bool(case.why)


@pytest.mark.parametrize("case", [case for case in CASES if case.change], ids=lambda case: case.id)
def test_nothing_was_broken_before(case: Broken) -> None:
    assert failing(case, case.valid()) == set()


@every_case
def test_the_entry_fails_as_the_area_says(case: Broken) -> None:
    check = CHECKS[case.id]
    failure = entry_failure(case.vmcs(), case.processor())
    if check.area.stage not in AT_ENTRY:
        assert failure is None
        return
    assert failure is not None
    assert failure.check.id in {case.id, *case.also}
    expected = failure.check.consequence
    assert failure[1:] == (expected.error, expected.reason, expected.qualification)


@pytest.mark.parametrize("mode", MODES)
def test_guests_of_every_mode_are_valid(mode: str) -> None:
    state = {"lma": 0} if mode == "32-bit host" else {}
    cpu = processor(**state)
    assert failing_checks(guest(mode), cpu) == []
    assert entry_failure(guest(mode), cpu) is None


def test_the_only_qualifications_are_those_of_the_manual() -> None:
    """A qualification other than 0 belongs to PDPTEs (2), to NMI and STI (3), to the link (4)."""
    by_qualification: dict[int | None, set[str]] = {}
    for check in CHECKS.values():
        if check.area.stage is Stage.GUEST:
            prefix = ".".join(check.id.split(".")[:2])
            by_qualification.setdefault(check.consequence.qualification, set()).add(prefix)
    assert by_qualification.pop(0)
    assert by_qualification == {
        2: {"guest.pdpte"},
        3: {"guest.interruptibility"},
        4: {"guest.link_pointer"},
    }


# What the instructions decide themselves


def _holds(name: str, vmcs: Vmcs | None = None, **state: int | bool) -> bool:
    cpu = processor(**state)
    return CHECKS[name].holds(vmcs or guest(), cpu)


def test_mode_allows_vmx() -> None:
    cpu = processor()
    assert CHECKS["basic.mode"].holds(guest(), cpu)
    cpu.regs.cs = cpu.regs.cs._replace(access_rights=0xC09B)
    assert not CHECKS["basic.mode"].holds(guest(), cpu)
    cpu = processor(lma=0)
    cpu.regs.rflags |= 1 << 17
    assert not CHECKS["basic.mode"].holds(guest(), cpu)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("basic.vmx_operation", {"in_vmx": False}),
        ("basic.non_root", {"non_root": True}),
        ("basic.no_current_vmcs", {"current_vmcs_pointer": NO_VMCS}),
    ],
)
def test_state_of_the_processor(name: str, state: dict[str, int | bool]) -> None:
    assert _holds(name)
    assert not _holds(name, **state)


def test_privilege_level() -> None:
    cpu = processor()
    assert CHECKS["basic.cpl"].holds(guest(), cpu)
    cpu.regs.ss = Segment(0x13, 0, 0xFFFF_FFFF, 0xC0F3)
    assert not CHECKS["basic.cpl"].holds(guest(), cpu)


def test_blocking_by_mov_ss() -> None:
    cpu = processor()
    cpu.regs.interruptibility_state = Interruptibility.STI
    assert CHECKS["basic.mov_ss_blocking"].holds(guest(), cpu)
    cpu.regs.interruptibility_state = Interruptibility.MOV_SS
    assert not CHECKS["basic.mov_ss_blocking"].holds(guest(), cpu)


def test_kind_and_launch_state_of_the_vmcs() -> None:
    vmcs = guest()
    assert _holds("basic.current_vmcs_is_shadow", vmcs)
    assert _holds("basic.vmlaunch_launch_state", vmcs)
    assert not _holds("basic.vmresume_launch_state", vmcs)
    vmcs.launched = vmcs.shadow = True
    assert not _holds("basic.current_vmcs_is_shadow", vmcs)
    assert not _holds("basic.vmlaunch_launch_state", vmcs)
    assert _holds("basic.vmresume_launch_state", vmcs)


def test_machine_check_during_entry() -> None:
    cpu = processor()
    assert CHECKS["mce.during_entry"].holds(guest(), cpu)
    cpu.pending.machine_check = True
    assert not CHECKS["mce.during_entry"].holds(guest(), cpu)


def test_guest_state_of_a_return_from_smm_is_judged_by_the_executive_controls() -> None:
    """The rule that stands in the table of rules without a check."""
    state = {"smm": True, "dual_monitor_active": True}
    real = guest("real")
    cpu = processor(memory=broken_state.executive(), **state)
    real[0x200C] = broken_state.EXECUTIVE
    # "Unrestricted guest" is 1 in the current VMCS, 0 in the executive one.
    assert "guest.cr0_fixed.must_be_1.restricted" in {c.id for c in failing_checks(real, cpu)}
    executive = guest("real")
    executive.launched = True
    cpu = processor(memory={broken_state.EXECUTIVE: executive.to_bytes()}, **state)
    assert failing_checks(real, cpu) == []
    assert entry_failure(real, cpu) is None
