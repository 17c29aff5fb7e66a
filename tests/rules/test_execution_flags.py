"""STI, CLI, PUSHF and POPF outside IA-32e mode, against the manual's tables restated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench, execution, fault_of
from vtx.machine.processor import Processor
from vtx.machine.registers import Segment

STACK = 0x8000
IF, VIF, VIP, TF = 1 << 9, 1 << 19, 1 << 20, 1 << 8
LOW = 0x4DD5  # CF PF AF ZF SF TF DF OF NT
HIGH = 0x24_0000  # AC ID
FAULT = (13, 0)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def at(bench: Bench, mode: str, cpl: int, iopl: int, extensions: int, flags: int) -> Processor:
    """Return a processor in a mode with 32-bit code; 8086 code has 16 bits."""
    cpl = 3 if mode == "8086" else cpl
    rflags = 2 | iopl << 12 | flags | (1 << 17 if mode == "8086" else 0)
    processor = bench(cpl=cpl, rsp=STACK, rflags=rflags)
    regs = processor.regs
    regs.efer &= ~0x400
    regs.cr4 = regs.cr4 & ~3 | extensions
    rights = 0xF3 if mode == "8086" else 0xC09B | cpl << 5
    regs.cs = Segment(0, 0, 0xFFFF_FFFF, rights)
    return processor


MODES = st.sampled_from(["8086", "protected"])
STATE = {"mode": MODES, "cpl": st.sampled_from([0, 3]), "iopl": st.integers(0, 3),
         "extensions": st.integers(0, 3),
         "flags": st.sets(st.sampled_from([IF, VIF, VIP])).map(sum)}  # fmt: skip


@given(**STATE, enable=st.booleans())
def test_sti_and_cli(
    bench: Bench, mode: str, cpl: int, iopl: int, extensions: int, flags: int, enable: bool
) -> None:
    processor = at(bench, mode, cpl, iopl, extensions, flags)
    before, text = processor.regs.rflags, "sti" if enable else "cli"
    real_if = processor.regs.cpl <= iopl
    virtual = processor.regs.cpl == 3 and bool(extensions & (1 if mode == "8086" else 2))
    if not real_if and (not virtual or (enable and flags & VIP)):
        assert fault_of(processor, text) == FAULT
        return
    execution(processor, text)
    bit = IF if real_if else VIF
    assert processor.regs.rflags == (before | bit if enable else before & ~bit)


@given(**STATE, size=st.sampled_from([2, 4]))
def test_pushf(
    bench: Bench, mode: str, cpl: int, iopl: int, extensions: int, flags: int, size: int
) -> None:
    processor = at(bench, mode, cpl, iopl, extensions, flags)
    text = "pushfw" if size == 2 else "pushfd"
    expected = processor.regs.rflags & ~0x3_0000
    if mode == "8086" and iopl < 3:
        if size == 4 or not extensions & 1:
            assert fault_of(processor, text) == FAULT
            return
        expected = expected & ~IF | 0x3000 | (IF if flags & VIF else 0)
    execution(processor, text)
    assert processor.regs.rsp == STACK - size
    found = int.from_bytes(processor.memory.read(GUEST + STACK - size, size), "little")
    assert found == expected & (1 << 8 * size) - 1


@given(**STATE, size=st.sampled_from([2, 4]), image=st.integers(0, (1 << 32) - 1))
def test_popf(
    bench: Bench, mode: str, cpl: int, iopl: int, extensions: int, flags: int, size: int,
    image: int,
) -> None:  # fmt: skip
    processor = at(bench, mode, cpl, iopl, extensions, flags)
    processor.memory.write(GUEST + STACK, image.to_bytes(4, "little"))
    text, before = "popfw" if size == 2 else "popfd", processor.regs.rflags
    cpl = processor.regs.cpl
    loaded = LOW | (HIGH if size == 4 else 0)
    expected = None
    if mode == "8086" and iopl < 3:
        refused = image & TF or (image & IF and flags & VIP)
        if size == 4 or not extensions & 1 or refused:
            assert fault_of(processor, text) == FAULT
            assert processor.regs.rsp == STACK
            return
        expected = before & ~(loaded | VIF) | image & loaded | (VIF if image & IF else 0)
    else:
        loaded |= IF if cpl <= iopl else 0
        loaded |= 0x3000 if cpl == 0 else 0
        expected = before & ~loaded | image & loaded
    execution(processor, text)
    assert processor.regs.rflags == expected | 2
    assert processor.regs.rsp == STACK + size
