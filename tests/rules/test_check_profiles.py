"""On every CPU profile a sound guest may be entered, and what the CPU lacks may not be used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vtx.facts.controls import GROUPS
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.machine.shape import Shape
from vtx.profiles import names
from vtx.rules.check import entry_failure, failing_checks
from vtx.rules.limits import canonical, has_intel64

from .entry_support import EVERYTHING, guest, processor, put, with_msr

every_profile = pytest.mark.parametrize("profile", sorted(names()))


@every_profile
def test_a_64bit_guest_is_valid(profile: str) -> None:
    shape = Shape.of(profile)
    cpu = processor(shape)
    assert failing_checks(guest(shape=shape), cpu) == []
    assert entry_failure(guest(shape=shape), cpu) is None


@every_profile
def test_each_control_that_the_cpu_lacks_is_refused(profile: str) -> None:
    shape = Shape.of(profile)
    cpu = processor(shape)
    for key, group in GROUPS.items():
        for control in group.members:
            if shape.supports(control):
                continue
            vmcs = put(guest(shape=shape), {f"{key}.{control.name}": 1})
            failure = entry_failure(vmcs, cpu)
            assert failure is not None, f"{key}.{control.name}"
            assert failure.error == 7


@every_profile
def test_addresses_end_where_those_of_the_cpu_end(profile: str) -> None:
    shape = Shape.of(profile)
    cpu = processor(shape)
    highest = 1 << (shape.maxphyaddr - 1)
    for field in (Field.HOST_CR3, Field.GUEST_CR3):
        vmcs = guest(shape=shape)
        vmcs[field] = highest
        assert entry_failure(vmcs, cpu) is None
        vmcs[field] = highest << 1
        failure = entry_failure(vmcs, cpu)
        assert failure is not None
        assert failure.check.id == f"{field.name[:-4].lower()}.cr3_reserved"


@every_profile
def test_linear_addresses_are_canonical_for_the_cpu(profile: str) -> None:
    shape = Shape.of(profile)
    cpu = processor(shape)
    highest = (1 << (shape.linear_bits - 1)) - 1
    vmcs = guest(shape=shape)
    for value, fits in ((highest, True), (highest + 1, False), (2**64 - 1 - highest, True)):
        vmcs[Field.GUEST_IDTR_BASE] = value
        assert (entry_failure(vmcs, cpu) is None) == fits


@pytest.mark.parametrize(("width", "fits"), [(48, False), (57, True)])
def test_rip_may_be_as_wide_as_linear_addresses(width: int, fits: bool) -> None:
    cpu = processor(replace(EVERYTHING, linear_bits=width))
    vmcs = put(guest(), {"guest_rip": 1 << 48})
    assert (entry_failure(vmcs, cpu) is None) == fits
    # One bit more than canonical: #GP in the guest, not a failed entry.
    vmcs = put(guest(), {"guest_rip": 1 << (width - 1)})
    assert entry_failure(vmcs, cpu) is None


def test_a_cpu_without_intel_64_knows_no_canonical_addresses() -> None:
    narrow = replace(EVERYTHING, linear_bits=32)
    assert not has_intel64(narrow)
    assert canonical(1 << 47, narrow)


def test_vmx_structures_may_be_limited_to_32_bits() -> None:
    shape = with_msr(Msr.IA32_VMX_BASIC, set=1 << 48)
    vmcs = put(guest(), {"ept_pointer": 1 << 32 | 3 << 3 | 6})
    assert entry_failure(vmcs, processor()) is None
    failure = entry_failure(vmcs, processor(shape))
    assert failure is not None
    assert failure.check.id == "ctl.exec.eptp.width"


def test_memory_encryption_takes_address_bits_away() -> None:
    shape = with_msr(Msr.IA32_TME_ACTIVATE, set=6 << 36 | 1)
    cpu = processor(shape)
    for change, name in (
        ({"ept_pointer": 1 << 40 | 3 << 3 | 6}, "ctl.exec.eptp.width"),
        ({"host_cr3": 1 << 40}, "host.cr3_reserved"),
        ({"guest_cr3": 1 << 40, "proc2.enable_ept": 0}, "guest.cr3_reserved"),
        ({"vmcs_link_pointer": 1 << 40}, "guest.link_pointer.width"),
    ):
        failure = entry_failure(put(guest(), change), cpu)
        assert failure is not None
        assert failure.check.id == name
    # Under EPT, CR3 holds a guest-physical address: KeyIDs do not matter to it.
    assert entry_failure(put(guest(), {"guest_cr3": 1 << 40}), cpu) is None
