"""Checks read what they say that they read: VM entry relies on it to skip them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from vtx.facts.fields import Field, mask
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.check import CHECKS, Check, Live, Stage

from .broken_controls import POSTED
from .entry_support import EVERYTHING, MODES, PAGE, VMCS, VMXON, guest, processor, put, with_msr
from .test_entry_counterexamples import CASES

AT_ENTRY = [
    check for check in CHECKS.values() if check.area.stage in (Stage.CONTROLS_AND_HOST, Stage.GUEST)
]
#: What VM entry knows to have changed, or asks of SMM anew.
KNOWN_LIVE = {Live.EFER_LMA, Live.RTIT_CTL, Live.SEAM, Live.CURRENT_VMCS}
SMM_LIVE = {Live.SMM, Live.VMXON_POINTER}


class RecordingVmcs(Vmcs):
    """A VMCS that remembers which fields were read."""

    __slots__ = ("reads",)

    def __init__(self, content: Vmcs) -> None:
        super().__init__(content.revision_id)
        self.values = dict(content.values)
        self.reads: set[int] = set()

    def __getitem__(self, field: int) -> int:
        self.reads.add(field)
        return super().__getitem__(field)


class NoMemory:
    """Memory that must not be read."""

    def read(self, address: int, length: int) -> bytes:
        raise AssertionError(f"memory was read at {address:#x}")


def _disturb(vmcs: Vmcs, rng: random.Random, changes: int) -> Vmcs:
    """Change some fields at random: bits flipped, all of it, or an extreme value."""
    for field in rng.sample(list(Field), changes):
        full = mask(field)
        vmcs[field] = rng.choice(
            (vmcs[field] ^ 1 << rng.randrange(full.bit_length()), rng.getrandbits(64), 0, full)
        )
    return vmcs


def _samples() -> Iterator[tuple[Vmcs, Processor]]:
    """Return VMCSs of every kind with the processors that judge them."""
    rng = random.Random(33)
    for mode in MODES:
        cpu = processor(lma=mode != "32-bit host")
        for changes in (0, 2, 8, 60, 206) * 3:
            yield _disturb(guest(mode), rng, changes), cpu
    for case in CASES:
        yield case.vmcs(), case.processor()
    yield from _rare_samples()


def _rare_samples() -> Iterator[tuple[Vmcs, Processor]]:
    """Return samples in which a field decides that hardly ever does."""
    # Memory encryption takes four bits of CR3 away from a guest without EPT.
    encrypting = with_msr(Msr.IA32_TME_ACTIVATE, set=4 << 36 | 1)
    yield put(guest(), {"guest_cr3": 1 << 45}), processor(encrypting)
    # "Entry to SMM" decides which VMCS the link pointer must not reference.
    in_smm = {"smm": True, "dual_monitor_active": True}
    yield put(guest(), {"vmcs_link_pointer": VMCS}), processor(**in_smm)
    # Posted interrupts of an executive VMCS need a VM-exit control of the current one.
    posting = put(guest(), {**POSTED, "posted_interrupt_descriptor_address": PAGE})
    posting.launched = True
    returning = put(guest(), {"executive_vmcs_pointer": 0x7000})
    yield returning, processor(memory={0x7000: posting.to_bytes()}, **in_smm)
    # A halted guest that single-steps, and one with a single step pending.
    yield put(guest(), {"guest_activity_state": 1, "guest_rflags": 0x102}), processor()
    pending = {"guest_activity_state": 1, "guest_pending_debug_exceptions": 1 << 14}
    yield put(guest(), pending), processor()
    # #GP without error code: right in real mode only.
    injecting = {"vm_entry_interruption_information": 1 << 31 | 3 << 8 | 13}
    yield put(guest("real"), injecting), processor()
    # Dual-monitor treatment ends with a return to VMX root operation only.
    ending = {"entry.deactivate_dual_monitor_treatment": 1, "executive_vmcs_pointer": VMXON}
    yield put(guest(), ending), processor(**in_smm)


@cache
def _fields_read() -> dict[str, list[set[int]]]:
    """Return by check which fields it read, each time."""
    reads: dict[str, list[set[int]]] = defaultdict(list)
    for vmcs, cpu in _samples():
        recorder = RecordingVmcs(vmcs)
        for check in AT_ENTRY:
            recorder.reads = set()
            check.holds(recorder, cpu)
            if check.applies is not None:
                check.applies(recorder, cpu)
            reads[check.id].append(recorder.reads)
    return reads


every_check = pytest.mark.parametrize("check", AT_ENTRY, ids=lambda check: check.id)


@every_check
def test_a_check_reads_only_what_it_declares(check: Check) -> None:
    for reads in _fields_read()[check.id]:
        assert reads <= set(check.reads)


@every_check
def test_what_a_check_declares_is_read(check: Check) -> None:
    assert set().union(*_fields_read()[check.id]) == set(check.reads)


def test_bits_that_a_check_does_not_declare_do_not_matter() -> None:
    """Every other bit of the VMCS may take any value without a change of the answer."""
    rng = random.Random(34)
    for vmcs, cpu in _samples():
        noise = {field: rng.getrandbits(64) & mask(field) for field in Field}
        for check in AT_ENTRY:
            if Live.MEMORY in check.live:
                continue
            twin = Vmcs(vmcs.revision_id)
            twin.values = noise.copy()
            for field, bits in check.reads.items():
                twin.values[field] = vmcs.values[field] & bits | noise[field] & ~bits
            assert check.holds(twin, cpu) == check.holds(vmcs, cpu), check.id


def test_every_declared_field_matters() -> None:
    """For each field that a check declares there is a VMCS in which it decides."""
    undecided = {(check, field) for check in AT_ENTRY for field in check.reads}
    rng = random.Random(35)
    for vmcs, cpu in _samples():
        for check, field in list(undecided):
            bits = check.reads[field]
            before, kept = check.holds(vmcs, cpu), vmcs.values[field]
            single = 1 << rng.choice([n for n in range(64) if bits >> n & 1])
            for value in (kept ^ single, kept ^ bits, kept & ~bits, kept | bits, kept + 1 & bits):
                vmcs.values[field] = value
                if check.holds(vmcs, cpu) != before:
                    undecided.discard((check, field))
                    break
            vmcs.values[field] = kept
    assert {(check.id, field.name) for check, field in undecided} == set()


def test_a_check_that_does_not_apply_holds_and_reads_no_memory() -> None:
    on_memory = [check for check in AT_ENTRY if check.applies is not None]
    assert on_memory
    for vmcs, cpu in _samples():
        idle = [check for check in on_memory if not check.applies(vmcs, cpu)]  # type: ignore[misc]
        cpu.memory = NoMemory()  # type: ignore[assignment]
        for check in idle:
            assert check.holds(vmcs, cpu)


def test_only_checks_on_memory_read_it() -> None:
    for vmcs, cpu in _samples():
        cpu.memory = NoMemory()  # type: ignore[assignment]
        for check in AT_ENTRY:
            if Live.MEMORY not in check.live:
                check.holds(vmcs, cpu)


@pytest.mark.parametrize(
    ("state", "live"),
    [
        ({"lma": 0}, Live.EFER_LMA),
        ({"rtit_ctl": 1}, Live.RTIT_CTL),
        ({"in_seam": True}, Live.SEAM),
        ({"current_vmcs_pointer": 0x3000}, Live.CURRENT_VMCS),
        ({"smm": True, "dual_monitor_active": True}, Live.SMM),
        ({"vmxon_pointer": 0x7000}, Live.VMXON_POINTER),
        ({"vmx_session": 7, "nmi_blocked": True, "steps": 5}, None),
    ],
)
def test_state_that_a_check_does_not_declare_does_not_matter(
    state: dict[str, int | bool], live: Live | None
) -> None:
    for case in CASES:
        before = case.processor()
        after = processor(case.shape, case.memory, **{**case.state, **state})
        vmcs = case.vmcs()
        for check in AT_ENTRY:
            if live not in check.live and Live.SMM not in check.live:
                assert check.holds(vmcs, before) == check.holds(vmcs, after), check.id


def test_vm_entry_knows_all_live_state() -> None:
    declared = set().union(*(check.live for check in AT_ENTRY))
    assert declared == KNOWN_LIVE | SMM_LIVE | {Live.MEMORY}
    for check in AT_ENTRY:
        # What depends on SMM is asked anew in SMM, and holds or not at once outside it.
        if Live.VMXON_POINTER in check.live:
            assert Live.SMM in check.live


def test_capabilities_come_from_the_shape() -> None:
    """A check that declares no capability gives the same answer on every CPU."""
    bare = replace(EVERYTHING, msrs={}, features=frozenset(), maxphyaddr=36, linear_bits=57)
    for case in CASES:
        vmcs, cpu = case.vmcs(), case.processor()
        answers = {check: check.holds(vmcs, cpu) for check in AT_ENTRY if not check.capability}
        cpu.shape = bare
        for check, answer in answers.items():
            if Live.MEMORY not in check.live and Live.SMM not in check.live:
                assert check.holds(vmcs, cpu) == answer, check.id
