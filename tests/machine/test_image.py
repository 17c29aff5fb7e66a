"""The image of a 64-bit guest: what the processor would read there."""

from __future__ import annotations

import struct

import pytest

from vtx.errors import EmulationStopped, InputError
from vtx.facts.fields import Field
from vtx.machine import image
from vtx.machine.image import DIRECT_MAP, GUEST_BASE, GuestImage
from vtx.machine.memory import Memory

GIB = 1 << 30


@pytest.fixture
def memory():
    with Memory(8 * GIB) as memory:
        yield memory


def walk(memory: Memory, cr3: int, linear: int, base: int) -> tuple[int, int] | None:
    """Walk 4-level tables by hand: the guest-physical address, and the AND of all entries."""
    table, rights = cr3, -1
    for shift in (39, 30, 21, 12):
        entry = memory.read_u64(base + table + 8 * (linear >> shift & 511))
        if not entry & 1:
            return None
        rights &= entry
        if entry & 0x80 and shift < 39:
            mask = (1 << shift) - 1
            return (entry & (1 << 52) - 1 & ~mask) | linear & mask, rights
        table = entry & (1 << 52) - 4096
    return table | linear & 0xFFF, rights


@pytest.mark.parametrize("guest_base", [0, GUEST_BASE])
@pytest.mark.parametrize("size", [8 << 20, 3 * GIB])
def test_guest_memory_is_mapped_twice(memory, guest_base, size):
    guest = GuestImage(memory, size, guest_base=guest_base)
    guest.install()
    offset = GUEST_BASE - guest_base
    for place in (0, 0x7000, image.TEXT, size - 1):
        kernel = walk(memory, guest.cr3, DIRECT_MAP + place, offset)
        low = walk(memory, guest.cr3, place, offset)
        assert kernel is not None
        assert low is not None
        assert kernel[0] == low[0] == guest_base + place
        assert not kernel[1] & 4, "the direct map is the supervisor's"
        assert low[1] & 4, "the low map is open to user code"
        assert kernel[1] & low[1] & 0x22 == 0x22, "writable, and accessed already"
    assert walk(memory, guest.cr3, size, offset) is None
    assert walk(memory, guest.cr3, DIRECT_MAP + size, offset) is None


def test_the_low_map_can_be_left_to_user_programs(memory):
    guest = GuestImage(memory, low_map=False)
    guest.install()
    assert walk(memory, guest.cr3, 0x7000, GUEST_BASE) is None
    assert walk(memory, guest.cr3, DIRECT_MAP + 0x7000, GUEST_BASE) is not None


def test_every_gate_leads_to_its_handler(memory):
    guest = GuestImage(memory)
    guest.install()
    for vector in range(256):
        gate = memory.read(GUEST_BASE + image.IDT + 16 * vector, 16)
        low, selector, stack, rights, middle, high, zero = struct.unpack("<HHBBHII", gate)
        assert low | middle << 16 | high << 32 == guest.handler_address(vector)
        assert (selector, zero) == (image.KERNEL_CS, 0)
        assert rights & 0x9F == 0x8E, "a present interrupt gate"
        assert (rights >> 5 & 3) == (3 if vector in (3, 4, *range(0x80, 0x90)) else 0)
        assert stack == (1 if vector == 8 else 0)


def test_a_gate_can_be_changed(memory):
    guest = GuestImage(memory)
    guest.install()
    guest.set_gate(14, 0xFFFF_8880_1234_5678)
    low, _, _, _, middle, high, _ = struct.unpack(
        "<HHBBHII", memory.read(GUEST_BASE + image.IDT + 224, 16)
    )
    assert low | middle << 16 | high << 32 == 0xFFFF_8880_1234_5678


@pytest.mark.parametrize("processor", [0, 1, 15])
def test_fields_agree_with_the_descriptors_in_memory(memory, processor):
    GuestImage(memory).install()
    fields = image.guest_fields(processor=processor)
    gdt = GUEST_BASE + fields[Field.GUEST_GDTR_BASE] - DIRECT_MAP
    code = memory.read_u64(gdt + fields[Field.GUEST_CS_SELECTOR])
    data = memory.read_u64(gdt + fields[Field.GUEST_SS_SELECTOR])
    for descriptor, name in ((code, "CS"), (data, "SS")):
        rights = descriptor >> 40 & 0xF0FF
        assert rights == fields[Field[f"GUEST_{name}_ACCESS_RIGHTS"]]
    selector = fields[Field.GUEST_TR_SELECTOR]
    assert selector + 15 <= fields[Field.GUEST_GDTR_LIMIT]
    low, high = memory.read_u64(gdt + selector), memory.read_u64(gdt + selector + 8)
    base = (low >> 16 & 0xFF_FFFF) | (low >> 56) << 24 | high << 32
    assert base == fields[Field.GUEST_TR_BASE]
    assert low & 0xFFFF == fields[Field.GUEST_TR_LIMIT]
    assert low >> 40 & 0xF0FF == fields[Field.GUEST_TR_ACCESS_RIGHTS]


def test_user_fields_are_those_of_the_user_descriptors(memory):
    GuestImage(memory).install()
    fields = image.guest_fields(user=True)
    gdt = GUEST_BASE + fields[Field.GUEST_GDTR_BASE] - DIRECT_MAP
    for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
        selector = fields[Field[f"GUEST_{name}_SELECTOR"]]
        assert selector & 3 == 3
        rights = memory.read_u64(gdt + (selector & ~7)) >> 40 & 0xF0FF
        assert rights == fields[Field[f"GUEST_{name}_ACCESS_RIGHTS"]]


def test_task_states_hold_stacks_of_their_own(memory):
    GuestImage(memory).install()
    tops = set()
    for processor in range(image.MAXIMUM_PROCESSORS):
        state = memory.read(GUEST_BASE + image.TSS + processor * image.TSS_STRIDE, 0x68)
        rsp0 = int.from_bytes(state[4:12], "little")
        ist1 = int.from_bytes(state[36:44], "little")
        assert rsp0 == image.kernel_stack(processor)
        assert state[0x66:0x68] == b"\x68\0", "no I/O permission bitmap"
        tops |= {rsp0, ist1, image.stack_pointer(processor, user=True) + DIRECT_MAP}
    assert len(tops) == 3 * image.MAXIMUM_PROCESSORS
    assert max(tops) <= DIRECT_MAP + image.HANDLER_STUBS


@pytest.mark.parametrize(
    ("user", "low_map", "rip"),
    [
        (False, True, image.TEXT),
        (True, True, image.TEXT),
        (False, False, DIRECT_MAP + image.TEXT),
        (True, False, image.USER_TEXT),
    ],
)
def test_the_first_instruction_is_where_its_page_is(memory, user, low_map, rip):
    fields = image.guest_fields(user=user, low_map=low_map)
    assert fields[Field.GUEST_RIP] == rip
    guest = GuestImage(memory, low_map=low_map)
    guest.install()
    demand = user and not low_map
    assert (walk(memory, guest.cr3, rip, GUEST_BASE) is None) == demand
    assert (walk(memory, guest.cr3, fields[Field.GUEST_RSP] - 8, GUEST_BASE) is None) == demand


def test_frames_are_handed_out_once(memory):
    guest = GuestImage(memory, 8 << 20, guest_base=GUEST_BASE)
    first = [guest.allocate_frame() for _ in range(3)]
    assert first == [GUEST_BASE + image.FREE + index * 4096 for index in range(3)]
    assert guest.allocate_large_frame() == GUEST_BASE + (6 << 20)
    with pytest.raises(EmulationStopped, match="used up its memory"):
        guest.allocate_large_frame()
    frames = {guest.allocate_frame() for _ in range(512 - 3)}
    assert len(frames | set(first)) == 512
    assert max(frames) < GUEST_BASE + (6 << 20)
    with pytest.raises(EmulationStopped, match="used up its memory"):
        guest.allocate_frame()
    assert guest.frames_used == 512


def test_addresses_outside_the_guest_are_refused(memory):
    guest = GuestImage(memory, 8 << 20)
    assert guest.host_physical(0x7000) == GUEST_BASE + 0x7000
    for address in (-1, 8 << 20):
        with pytest.raises(InputError, match="beyond the guest's memory"):
            guest.host_physical(address)


@pytest.mark.parametrize("size", [0, 4 << 20, (8 << 20) + 4096, 64 * GIB])
def test_impossible_sizes(memory, size):
    with pytest.raises(InputError, match="impossible"):
        GuestImage(memory, size)


def test_a_guest_that_does_not_fit(memory):
    with pytest.raises(InputError, match="does not fit"):
        GuestImage(memory, 8 * GIB)


def test_the_host_has_tables_too(memory):
    image.write_host(memory)
    fields = image.host_fields(3)
    for address in (0, image.HOST_TEXT, GIB - 1):
        found = walk(memory, fields[Field.HOST_CR3], address, 0)
        assert found is not None
        assert found[0] == address
    gdt, selector = fields[Field.HOST_GDTR_BASE], fields[Field.HOST_TR_SELECTOR]
    low = memory.read_u64(gdt + selector)
    assert (low >> 16 & 0xFF_FFFF) | (low >> 56) << 24 == fields[Field.HOST_TR_BASE]
    assert memory.read_u64(gdt + fields[Field.HOST_CS_SELECTOR]) >> 53 & 1, "64-bit code"
