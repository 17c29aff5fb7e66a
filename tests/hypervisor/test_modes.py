"""Guests outside IA-32e mode, from a trace to the end of their program."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vtx.cpu import Machine
from vtx.errors import InputError, NotSupported
from vtx.hypervisor.replay import replay
from vtx.hypervisor.trace import load_trace, parse_trace
from vtx.machine import image, image_legacy
from vtx.machine.assembly import parse_instruction
from vtx.machine.image import GUEST_BASE

TRACES = Path(__file__).parents[2] / "traces"
NAMES = ["05-protected", "06-real-mode", "07-virtual-8086", "08-pae"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_traces_of_other_modes(name: str) -> None:
    run = replay(TRACES / f"{name}.yaml")
    assert run.results
    assert all(result.holds for result in run.results)


@pytest.mark.parametrize("ept", ["on", "off"])
@pytest.mark.parametrize("mode", ["protected", "pae", "virtual_8086"])
def test_other_modes_with_and_without_ept(mode: str, ept: str) -> None:
    text = (
        f"schema: 1\nmemory: 8M\nept: {ept}\nguest: {{mode: {mode}}}\nsteps: |\n"
        "  int 0x80\n  store 0x9000 value=5 size=1\n  cpuid leaf=0\nexpect:\n"
        "  exits: {CPUID: 1}\n  outcome: end\n"
    )
    run = replay(parse_trace(text, "a.yaml"), profile="skylake_sp")
    assert all(result.holds for result in run.results)


@pytest.mark.parametrize(
    ("guest", "what"),
    [
        ("{mode: unreal}", "unknown mode"),
        ("{mode: real, privilege: user}", "privilege"),
        ("{mode: pae, map: demand}", "64-bit guest"),
        ("{mode: pae}\nmemory: 4G", "2G"),
    ],
)
def test_what_other_modes_cannot_have(guest: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        parse_trace(f"schema: 1\nguest: {guest}\nsteps: |\n  nop\n", "a.yaml")


def test_real_mode_needs_an_unrestricted_guest() -> None:
    trace = load_trace(TRACES / "06-real-mode.yaml")
    with pytest.raises(NotSupported, match="unrestricted"):
        replay(trace, profile="nehalem")


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("iret", (1, 1, 2)), ("iretd", (2, 1, 1)), ("iretw", (1, 2, 2)),
        ("pushf", (1, 1, 1)), ("popfd", (2, 1, 1)),
        ("in al, 0x60", (2, 2, 2)), ("in ax, dx", (1, 2, 2)), ("in eax, dx", (2, 1, 1)),
        ("mov cr3, rax", (3, 3, 3)), ("load 0x700", (4, 6, 8)), ("jmp 0x8000", (3, 5, 5)),
        ("cpuid", (2, 2, 2)), ("push rax", (1, 1, 1)), ("lgdt [ebx]", (4, 3, 4)),
    ],
)  # fmt: skip
def test_lengths_in_code_of_each_width(text: str, lengths: tuple[int, int, int]) -> None:
    """As the opcode tables have them, in code of 16, 32 and 64 bits."""
    assert tuple(parse_instruction(text, bits).length for bits in (16, 32, 64)) == lengths


def test_registers_of_32_bits_are_for_narrow_code() -> None:
    assert parse_instruction("mov cr3, eax", 32).operands["source"] == 0
    with pytest.raises(InputError):
        parse_instruction("mov cr3, eax", 64)


def test_gates_and_tables_lead_where_the_layout_says() -> None:
    with Machine("skylake_sp", memory_bytes=GUEST_BASE + (8 << 20)) as machine:
        guest = image.GuestImage(machine.memory, 8 << 20, guest_base=0, low_map=True)
        image_legacy.install(guest, "real")
        ip, cs = struct.unpack("<HH", machine.memory.read(GUEST_BASE + 4 * 0x21, 4))
        assert (cs, ip) == (0x1000, 0x100 + 0x80 * 0x21)
        image_legacy.install(guest, "pae")
        fields = image_legacy.guest_fields("pae")
        low, selector = struct.unpack("<HH", machine.memory.read(GUEST_BASE + image.IDT + 8, 4))
        assert selector == image.KERNEL_CS
        assert low == image.HANDLER_STUBS + image.HANDLER_STRIDE & 0xFFFF
        assert image_legacy.Field.GUEST_PDPTE3 in fields
