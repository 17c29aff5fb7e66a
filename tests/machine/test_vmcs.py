"""The VMCS as data, its region in memory, and the starting state of a 64-bit guest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtx.errors import InputError, UnknownName
from vtx.facts.controls import GROUPS, Entry, Exit1, Proc1, Proc2
from vtx.facts.fields import FIELDS, Field, mask
from vtx.facts.msrs import Msr
from vtx.machine.image import GUEST_BASE
from vtx.machine.shape import Shape
from vtx.machine.vmcs import REGION_BYTES, Vmcs
from vtx.profiles import names

FIELD_VALUES = st.dictionaries(
    st.sampled_from(list(Field)), st.integers(0, (1 << 64) - 1), max_size=len(Field)
)


@st.composite
def vmcss(draw: st.DrawFn) -> Vmcs:
    """Return a VMCS with any content."""
    vmcs = Vmcs(draw(st.integers(0, (1 << 31) - 1)))
    vmcs.shadow = draw(st.booleans())
    vmcs.launched = draw(st.booleans())
    vmcs.session = draw(st.integers(0, 1 << 40))
    vmcs.abort_indicator = draw(st.integers(0, 6))
    for field, value in draw(FIELD_VALUES).items():
        vmcs[field] = value
    return vmcs


@given(vmcss())
def test_region_round_trip(vmcs: Vmcs):
    region = vmcs.to_bytes()
    assert len(region) == REGION_BYTES
    parsed = Vmcs.from_bytes(region)
    assert parsed.values == vmcs.values
    for name in ("revision_id", "shadow", "launched", "session", "abort_indicator"):
        assert getattr(parsed, name) == getattr(vmcs, name)
    assert parsed.to_bytes() == region


@given(vmcss(), st.frozensets(st.sampled_from(list(Field))))
def test_a_region_holds_just_the_fields_asked_for(vmcs: Vmcs, held: frozenset[Field]):
    parsed = Vmcs.from_bytes(vmcs.content(held).ljust(REGION_BYTES, b"\xff"))
    for field in Field:
        assert parsed[field] == (vmcs[field] if field in held else 0)


@pytest.mark.parametrize("profile", names())
def test_the_data_of_a_vmcs_fit_into_the_bytes_that_the_cpu_reports(profile: str):
    shape = Shape.of(profile)
    reported = shape.msr(Msr.IA32_VMX_BASIC) >> 32 & 0x1FFF
    assert len(Vmcs().content(shape.fields)) <= reported


def test_a_region_whose_map_names_fields_that_do_not_exist_is_all_zero():
    region = bytearray(Vmcs.for_64bit_guest().to_bytes())
    region[24:56] = b"\xff" * 32
    assert set(Vmcs.from_bytes(bytes(region)).values.values()) == {0}


@given(st.sampled_from(list(Field)), st.integers(0, (1 << 80) - 1))
def test_fields_keep_the_bits_of_their_width(field: Field, value: int):
    vmcs = Vmcs()
    vmcs[field] = value
    assert vmcs[field] == value & (1 << FIELDS[field].width.bits) - 1 == value & mask(field)


def test_first_words_are_architectural():
    vmcs = Vmcs(0x1234_5678)
    vmcs.shadow = True
    vmcs.abort_indicator = 4
    assert vmcs.to_bytes()[:8] == bytes.fromhex("78563492 04000000")


def test_region_that_software_only_prepared_is_clear_and_all_zero():
    parsed = Vmcs.from_bytes((0x1234).to_bytes(4, "little").ljust(REGION_BYTES, b"\0"))
    assert parsed.revision_id == 0x1234
    assert not parsed.launched
    assert set(parsed.values.values()) == {0}


def test_region_with_garbage_behind_the_first_word_is_all_zero():
    parsed = Vmcs.from_bytes(b"\xff" * REGION_BYTES)
    assert set(parsed.values.values()) == {0}
    assert not parsed.launched


def test_region_of_another_size_is_refused():
    with pytest.raises(InputError, match="4096"):
        Vmcs.from_bytes(b"\0" * 100)


def test_a_new_vmcs_is_dirty_everywhere_and_writes_mark_their_field():
    vmcs = Vmcs()
    assert vmcs.dirty == set(Field)
    vmcs.dirty.clear()
    vmcs[Field.GUEST_RIP] = 5
    assert vmcs.dirty == {Field.GUEST_RIP}


def test_copy_shares_nothing():
    vmcs = Vmcs(7)
    twin = vmcs.copy()
    twin[Field.GUEST_RIP] = 5
    assert vmcs[Field.GUEST_RIP] == 0
    assert twin.revision_id == 7


def test_update_by_name():
    vmcs = Vmcs().update(guest_rip=0x1000, eptp=0x5E)
    assert vmcs[Field.GUEST_RIP] == 0x1000
    assert vmcs[Field.EPT_POINTER] == 0x5E
    with pytest.raises(UnknownName, match="guest_rip"):
        vmcs.update(guest_ripp=1)


ALL_ONES = (1 << 64) - 1


@pytest.mark.parametrize(
    ("name", "parent", "control"),
    [
        ("proc2", Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.ACTIVATE_SECONDARY_CONTROLS),
        ("proc3", Field.PRIMARY_PROCESSOR_BASED_CONTROLS, Proc1.ACTIVATE_TERTIARY_CONTROLS),
        ("exit2", Field.VM_EXIT_CONTROLS, Exit1.ACTIVATE_SECONDARY_CONTROLS),
    ],
)
def test_control_words_act_as_0_until_activated(name: str, parent: Field, control: int):
    vmcs = Vmcs()
    for group in GROUPS.values():
        vmcs[group.field] = ALL_ONES
    assert getattr(vmcs, name) == mask(GROUPS[name].field)
    vmcs[parent] = vmcs[parent] & ~control
    assert getattr(vmcs, name) == 0


def test_vm_functions_need_their_control():
    vmcs = Vmcs()
    for group in GROUPS.values():
        vmcs[group.field] = ALL_ONES
    assert vmcs.vm_functions == ALL_ONES
    vmcs[Field.SECONDARY_PROCESSOR_BASED_CONTROLS] = Proc2.ENABLE_EPT
    assert vmcs.vm_functions == 0


def test_plain_control_words():
    vmcs = Vmcs().update(
        pin_based_controls=1, primary_processor_based_controls=2, vm_exit_controls=4,
        vm_entry_controls=int(Entry.IA32E_MODE_GUEST),
    )  # fmt: skip
    assert (vmcs.pin, vmcs.proc1, vmcs.exit1) == (1, 2, 4)
    assert vmcs.entry == Entry.IA32E_MODE_GUEST
    assert vmcs.ia32e_guest


class Recording(Vmcs):
    """A VMCS that notes which fields are read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __getitem__(self, field: int) -> int:
        self.seen.append(field)
        return super().__getitem__(field)


@pytest.mark.parametrize(
    "name", ["pin", "proc1", "proc2", "proc3", "exit1", "exit2", "entry", "vm_functions"]
)
def test_control_words_are_read_through_indexing(name: str):
    vmcs = Recording()
    assert getattr(vmcs, name) == 0
    assert vmcs.seen


# ---- The starting state ------------------------------------------------------------------------

PROFILES = ["nehalem", "haswell", "skylake_sp", "sapphire_rapids", "penryn_core2"]


@pytest.mark.parametrize("profile", PROFILES)
def test_starting_state_obeys_the_allowed_settings(profile: str):
    shape = Shape.of(profile)
    vmcs = Vmcs.for_64bit_guest(shape)
    assert vmcs.revision_id == shape.revision_id
    for key in ("pin", "proc1", "exit1", "entry"):
        word = vmcs[GROUPS[key].field]
        assert word & shape.allowed0(key) == shape.allowed0(key)
        assert word & ~shape.allowed1(key) == 0
    if vmcs.proc1 & Proc1.ACTIVATE_SECONDARY_CONTROLS:
        assert vmcs.proc2 & ~shape.allowed1("proc2") == 0
    assert bool(vmcs.proc2 & Proc2.ENABLE_EPT) == shape.has_ept
    assert bool(vmcs[Field.VPID]) == shape.has_vpid


def test_starting_state_without_ept_stands_at_the_image():
    vmcs = Vmcs.for_64bit_guest(Shape.of("penryn_core2"))
    assert vmcs[Field.GUEST_CR3] > GUEST_BASE


def test_starting_state_without_a_shape_uses_ept_and_vpid():
    vmcs = Vmcs.for_64bit_guest()
    assert vmcs.proc2 & Proc2.ENABLE_EPT
    assert vmcs.proc2 & Proc2.ENABLE_VPID
    assert not vmcs.proc1 & (Proc1.CR3_LOAD_EXITING | Proc1.CR3_STORE_EXITING)


def test_starting_state_at_cpl_3():
    assert Vmcs.for_64bit_guest(user=True)[Field.GUEST_SS_ACCESS_RIGHTS] >> 5 & 3 == 3
