"""VM entry checks again only what can have changed, and never misses anything."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtx.facts.fields import Field, mask
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules import check as checks
from vtx.rules.check import CHECKS, Check, Failure, entry_failure, failing_checks

from .broken_controls import APIC
from .broken_state import LINK, LINKED, ORDINARY, pdptes
from .entry_support import MODES, PAGE, VMCS, Broken, guest, processor, put, with_msr
from .test_entry_counterexamples import CASES, every_case


def enter(vmcs: Vmcs, cpu: Processor) -> Failure | None:
    """Check as VM entry does, and do what a successful entry does to `dirty`."""
    failure = entry_failure(vmcs, cpu)
    if failure is None:
        vmcs.dirty.clear()
    return failure


def first(vmcs: Vmcs, cpu: Processor) -> str | None:
    """Return the first broken rule of a VMCS that was never entered."""
    broken = failing_checks(vmcs.copy(), cpu)
    names = [check.id for check in broken if not check.id.startswith("msrload.")]
    # In the order of VM entry: controls and host state before guest state.
    return min(names, key=list(CHECKS).index) if names else None


def failed(failure: Failure | None) -> str | None:
    return failure.check.id if failure else None


@every_case
def test_a_change_is_noticed_after_a_good_entry(case: Broken) -> None:
    """Break the VMCS after it was entered; repair it, and it can be entered again."""
    cpu, vmcs = case.processor(), case.valid()
    if enter(vmcs, cpu) is not None:
        assert not case.change
        return
    put(vmcs, case.change)
    assert failed(enter(vmcs, cpu)) == first(vmcs, cpu)
    assert failed(enter(vmcs, cpu)) == first(vmcs, cpu)
    for field, value in case.valid().values.items():
        vmcs[field] = value
    assert enter(vmcs, cpu) is None


_CHANGES = [case.change for case in CASES] + [case.given for case in CASES if case.given]


@given(
    mode=st.sampled_from(sorted(MODES)),
    steps=st.lists(st.lists(st.sampled_from(_CHANGES), max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=150)
def test_entry_after_entry_judges_like_a_first_entry(
    mode: str, steps: list[list[dict[str, int]]], seed: int
) -> None:
    rng = random.Random(seed)
    cpu = processor(lma=mode != "32-bit host")
    vmcs = guest(mode)
    assert enter(vmcs, cpu) is None
    for changes in steps:
        good = dict(vmcs.values)
        for change in changes:
            put(vmcs, change)
        for field in rng.sample(list(Field), rng.choice((0, 0, 1, 3))):
            vmcs[field] = vmcs[field] ^ 1 << rng.randrange(mask(field).bit_length())
        expected = first(vmcs, cpu)
        assert failed(enter(vmcs, cpu)) == expected
        if expected is not None and rng.random() < 0.7:
            for field, value in good.items():
                vmcs[field] = value


def _stale(vmcs: Vmcs) -> set[Check]:
    return checks._stale_checks(vmcs, vmcs.judged)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"guest_rip": 0x2000, "guest_rsp": 0x3000}, set()),
        ({"guest_rflags": 0x46}, set()),
        ({"guest_cr3": 0x7654_3000}, {
            "guest.pdpte.memory.reserved_low",
            "guest.pdpte.memory.reserved_high",
        }),
        ({"cr0_read_shadow": 1, "tsc_offset": 5, "exception_bitmap": 1 << 14}, set()),
        ({"guest_rip": 1 << 40}, {"guest.rip.not_64bit"}),
        ({"proc1.interrupt_window_exiting": 1}, {
            "ctl.exec.proc1_reserved.must_be_1",
            "ctl.exec.proc1_reserved.must_be_0",
        }),
        ({"guest_ds_limit": 0xFFFF}, {"guest.ds.granularity.must_be_1", "guest.ds.limit.v8086"}),
    ],
)  # fmt: skip
def test_only_what_can_have_changed_is_checked_again(
    change: dict[str, int], again: set[str]
) -> None:
    cpu, vmcs = processor(), guest()
    vmcs[Field.GUEST_RFLAGS] = 2
    assert enter(vmcs, cpu) is None
    put(vmcs, change)
    assert {check.id for check in _stale(vmcs)} == again


def test_a_field_that_is_written_but_keeps_its_value_costs_nothing() -> None:
    cpu, vmcs = processor(), guest()
    assert enter(vmcs, cpu) is None
    for field, value in list(vmcs.values.items()):
        vmcs[field] = value
    assert vmcs.dirty
    assert _stale(vmcs) == set()


def test_a_failed_entry_forgets_nothing() -> None:
    """What was written before a failed entry is still new to the next one."""
    cpu, vmcs = processor(), guest()
    assert enter(vmcs, cpu) is None
    put(vmcs, {"guest_rflags": 0})
    assert failed(enter(vmcs, cpu)) == "guest.rflags.reserved_1"
    put(vmcs, {"guest_dr7": 1 << 32})
    assert failed(enter(vmcs, cpu)) == "guest.dr7_high"
    put(vmcs, {"guest_dr7": 0})
    assert failed(enter(vmcs, cpu)) == "guest.rflags.reserved_1"


# What is not in the VMCS


def test_linked_region_is_read_at_every_entry() -> None:
    cpu = processor(memory=ORDINARY)
    vmcs = put(guest(), LINK)
    assert enter(vmcs, cpu) is None
    cpu.memory.write_u32(LINKED, 0x99)
    assert failed(enter(vmcs, cpu)) == "guest.link_pointer.revision"
    # Unlinked while it was entered, then linked: memory matters from then on.
    put(vmcs, {"vmcs_link_pointer": 2**64 - 1})
    assert enter(vmcs, cpu) is None
    put(vmcs, LINK)
    assert failed(enter(vmcs, cpu)) == "guest.link_pointer.revision"


def test_virtual_tpr_is_read_at_every_entry() -> None:
    cpu = processor()
    vmcs = put(guest(), {**APIC, "tpr_threshold": 0})
    assert enter(vmcs, cpu) is None
    cpu.memory.write(PAGE + 0x80, b"\x40")
    put(vmcs, {"tpr_threshold": 4})
    assert enter(vmcs, cpu) is None
    cpu.memory.write(PAGE + 0x80, b"\x30")
    assert failed(enter(vmcs, cpu)) == "ctl.exec.tpr_threshold_vs_vtpr"


def test_pdptes_in_memory_are_read_at_every_entry() -> None:
    cpu = processor(memory=pdptes(1, 0, 0, 0))
    vmcs = guest("pae without ept")
    assert enter(vmcs, cpu) is None
    cpu.memory.write_u64(PAGE + 8, 1 | 1 << 1)
    assert failed(enter(vmcs, cpu)) == "guest.pdpte.memory.reserved_low"


def test_where_no_memory_answers_all_bits_are_1() -> None:
    beyond = {"vmcs_link_pointer": 1 << 40}
    assert failed(enter(put(guest(), beyond), processor())) == "guest.link_pointer.revision"
    threshold = {**APIC, "virtual_apic_address": 1 << 40, "tpr_threshold": 0xF}
    assert enter(put(guest(), threshold), processor()) is None


@pytest.mark.parametrize(
    ("state", "given", "name"),
    [
        ({"lma": 0}, {}, "host.size.lma0_ia32e_guest"),
        (
            {"rtit_ctl": 1},
            {"entry.load_ia32_rtit_ctl": 1},
            "ctl.exec.pt_enabled_vs_load_rtit",
        ),
        ({"current_vmcs_pointer": LINKED}, LINK, "guest.link_pointer.not_current"),
        ({"in_seam": True}, {"seam_shared_ept_pointer": 1}, "ctl.exec.seam.shared_eptp_reserved"),
        (
            {"smm": True, "dual_monitor_active": True},
            {"executive_vmcs_pointer": 0x7008},
            "smm.executive_vmcs_pointer.align",
        ),
    ],
)
def test_a_change_of_the_processor_is_noticed(
    state: dict[str, int | bool], given: dict[str, int], name: str
) -> None:
    vmcs = put(guest(), given)
    assert enter(vmcs, processor(memory=ORDINARY)) is None
    assert failed(enter(vmcs, processor(memory=ORDINARY, **state))) == name


def test_another_cpu_judges_anew() -> None:
    vmcs = guest()
    assert enter(vmcs, processor()) is None
    other = with_msr(Msr.IA32_VMX_EPT_VPID_CAP, clear=1 << 14)
    assert failed(enter(vmcs, processor(other))) == "ctl.exec.eptp.memory_type"


def test_a_vmcs_that_comes_back_from_memory_is_judged_anew() -> None:
    cpu, vmcs = processor(), guest()
    assert enter(vmcs, cpu) is None
    again = Vmcs.from_bytes(vmcs.to_bytes())
    again.values[Field.GUEST_RFLAGS] = 0
    assert failed(enter(again, cpu)) == "guest.rflags.reserved_1"


def test_controls_and_host_state_come_before_guest_state() -> None:
    """However many rules are broken: VMfail first, and in the manual's order."""
    vmcs = put(guest(), {"guest_rflags": 0, "host_cs_selector": 0, "cr3_target_count": 5})
    cpu = processor()
    assert failed(entry_failure(vmcs, cpu)) == "ctl.exec.cr3_target_count"
    assert entry_failure(vmcs, cpu)[1:] == (7, None, None)  # type: ignore[index]
    put(vmcs, {"cr3_target_count": 0})
    assert entry_failure(vmcs, cpu)[1:] == (8, None, None)  # type: ignore[index]
    put(vmcs, {"host_cs_selector": 8})
    assert entry_failure(vmcs, cpu)[1:] == (None, 33, 0)  # type: ignore[index]


def test_failing_checks_leaves_the_vmcs_alone() -> None:
    vmcs = put(guest(), {"guest_rflags": 0, "vmcs_link_pointer": VMCS})
    before, dirty = dict(vmcs.values), set(vmcs.dirty)
    assert [check.id for check in failing_checks(vmcs, processor())] == [
        "guest.rflags.reserved_1",
        "guest.link_pointer.not_current",
    ]
    assert (vmcs.values, vmcs.dirty, vmcs.judged) == (before, dirty, None)
