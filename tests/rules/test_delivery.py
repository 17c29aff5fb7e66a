"""Events through the guest's IDT: frames, stacks, faults and exits on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench
from vtx.errors import GuestFault
from vtx.facts.controls import Pin
from vtx.facts.fields import Field as F
from vtx.machine.exit_information import ExitInformation
from vtx.machine.processor import Processor
from vtx.machine.registers import Activity, Interruptibility, Segment, TableRegister
from vtx.rules.delivery import Event, deliver, exception, fault_event
from vtx.rules.injected import EventType

IDT, GDT, TSS = 0x4000, 0x6000, 0x6800
KERNEL, USER, HANDLER = 0x08, 0x23, 0x5_0000
STACKS = {"rsp0": 0x9000, "ist1": 0xA000}
UNMAPPED = 0x3000_0000
HARDWARE, SOFTWARE = EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_INTERRUPT
CONTRIBUTORY, PAGE_FAULTS = {0, 10, 11, 12, 13, 21}, {14, 20}
WITH_CODE = {8, 10, 11, 12, 13, 14, 17, 21}
U64 = st.integers(0, (1 << 64) - 1)


def gate(
    offset: int = HANDLER, selector: int = KERNEL, ist: int = 0, kind: int = 14, dpl: int = 0,
    present: int = 1,
) -> bytes:  # fmt: skip
    low = offset & 0xFFFF | selector << 16 | ist << 32 | kind << 40 | dpl << 45 | present << 47
    low |= (offset >> 16 & 0xFFFF) << 48
    return low.to_bytes(8, "little") + (offset >> 32).to_bytes(8, "little")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        cpu.ept.unmap(UNMAPPED)
        cpu.mmu.flush_all()
        yield Bench(cpu)


def at(bench: Bench, cpl: int = 0) -> Processor:
    """Return a processor with tables of its own, every gate leading to HANDLER."""
    processor = bench(cpl=cpl, rsp=0x8008, rflags=0x4_0302)
    memory, regs = processor.memory, processor.regs
    memory.write(GUEST + IDT, gate() * 256)
    descriptors = [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF,
                   0x00AF_FB00_0000_FFFF, 0x00AF_9F00_0000_FFFF, 0x00CF_9B00_0000_FFFF,
                   0x00AF_1B00_0000_FFFF, 0x00AF_9A00_0000_FFFF]  # fmt: skip
    for n, value in enumerate(descriptors):
        memory.write_u64(GUEST + GDT + 8 * n, value)
    memory.write(GUEST + TSS, bytes(0x68))
    memory.write_u64(GUEST + TSS + 4, STACKS["rsp0"])
    memory.write_u64(GUEST + TSS + 36, STACKS["ist1"])
    regs.idtr, regs.gdtr = TableRegister(IDT, 0xFFF), TableRegister(GDT, 0x47)
    regs.tr = Segment(0x28, TSS, 0x67, 0x8B)
    regs.cs = Segment(USER if cpl else KERNEL, 0, 0xFFFF_FFFF, 0xA0FB if cpl else 0xA09B)
    regs.rip = 0x1000
    return processor


def put_gate(processor: Processor, vector: int, **parts: int) -> None:
    processor.memory.write(GUEST + IDT + 16 * vector, gate(**parts))


def frame(processor: Processor, count: int) -> list[int]:
    top = processor.regs.rsp
    return [processor.memory.read_u64(GUEST + top + 8 * n) for n in range(count)]


# Delivery that succeeds.


@settings(deadline=None)
@given(vector=st.integers(0, 255), kind=st.sampled_from([14, 15]), ist=st.sampled_from([0, 1]),
       user=st.booleans(), code=st.none() | st.integers(0, 0xFFFF),
       type=st.sampled_from([EventType.EXTERNAL_INTERRUPT, HARDWARE, SOFTWARE]),
       rsp=st.integers(0x8000, 0x8100))  # fmt: skip
def test_the_frame(
    bench: Bench, vector: int, kind: int, ist: int, user: bool, code: int | None,
    type: EventType, rsp: int,
) -> None:  # fmt: skip
    """SS, RSP, RFLAGS, CS, RIP and the error code, below a stack aligned to 16 bytes."""
    processor = at(bench, 3 if user else 0)
    put_gate(processor, vector, kind=kind, ist=ist, dpl=3)
    regs = processor.regs
    regs.rsp = rsp
    old = (regs.rip, regs.cs.selector, regs.rflags, regs.rsp, regs.ss.selector)
    fault = type == HARDWARE
    event = Event(vector, type, code, 2 if type == SOFTWARE else 0, fault=fault)
    assert deliver(processor, event) is None
    expected = [old[0] + (2 if type == SOFTWARE else 0), old[1], old[2] | fault << 16, *old[3:]]
    if code is not None:
        expected.insert(0, code)
    assert frame(processor, len(expected)) == expected
    stack = STACKS["ist1"] if ist else STACKS["rsp0"] if user else rsp & ~15
    assert regs.rsp == stack - 8 * len(expected)
    assert regs.rip == HANDLER
    assert (regs.cs.selector, regs.cpl) == (KERNEL, 0)
    assert regs.ss.usable != user
    assert regs.rflags == (old[2] & ~0x100 & ~(0x200 if kind == 14 else 0))
    assert processor.delivered == (vector, code)
    assert processor.context.cpl == 0


def test_a_conforming_handler_keeps_the_privilege_level(bench: Bench) -> None:
    processor = at(bench, 3)
    put_gate(processor, 40, selector=0x28)
    assert deliver(processor, Event(40, EventType.EXTERNAL_INTERRUPT)) is None
    assert processor.regs.cpl == 3
    assert processor.regs.cs.selector == 0x2B


def test_the_accessed_bit_of_the_code_segment(bench: Bench) -> None:
    processor = at(bench)
    put_gate(processor, 40, selector=0x40)
    assert deliver(processor, Event(40, EventType.EXTERNAL_INTERRUPT)) is None
    assert processor.memory.read_u8(GUEST + GDT + 0x45) == 0x9B


def test_what_delivery_changes_beside_the_frame(bench: Bench) -> None:
    processor = at(bench)
    regs = processor.regs
    regs.activity_state, regs.interruptibility_state = Activity.HLT, 3
    fault = GuestFault(14, 2, "", 0x1234_5678)
    assert exception(processor, fault_event(fault)) is None
    assert regs.cr2 == 0x1234_5678
    assert (regs.activity_state, regs.interruptibility_state) == (Activity.ACTIVE, 0)
    processor = at(bench)
    before = processor.regs.cr2
    assert deliver(processor, Event(14, HARDWARE, 0, qualification=0x99)) is None
    assert processor.regs.cr2 == before  # an injected page fault does not touch CR2


def test_debug_exceptions_report_their_conditions(bench: Bench) -> None:
    processor = at(bench)
    processor.regs.dr7 |= 1 << 13
    assert exception(processor, fault_event(GuestFault(1, None, "", 1 << 13))) is None
    assert processor.regs.dr6 & 1 << 13
    assert not processor.regs.dr7 & 1 << 13
    assert frame(processor, 3)[2] & 1 << 16


@given(virtual=st.booleans())
def test_nmis_block_nmis(bench: Bench, virtual: bool) -> None:
    processor = at(bench)
    bench.vmcs[F.PIN_BASED_CONTROLS] = int(Pin.NMI_EXITING | Pin.VIRTUAL_NMIS) if virtual else 0
    assert deliver(processor, Event(2, EventType.NMI)) is None
    assert processor.regs.interruptibility_state == Interruptibility.NMI
    assert processor.nmi_blocked != virtual


# The exception bitmap.


@given(bitmap=st.integers(0, (1 << 32) - 1), vector=st.integers(0, 31).filter(lambda v: v != 2),
       code=st.integers(0, 0xFFFF), mask=st.integers(0, 31), match=st.integers(0, 31))  # fmt: skip
def test_the_exception_bitmap(
    bench: Bench, bitmap: int, vector: int, code: int, mask: int, match: int
) -> None:
    processor = at(bench)
    for field, value in {F.EXCEPTION_BITMAP: bitmap, F.PAGE_FAULT_ERROR_CODE_MASK: mask,
                         F.PAGE_FAULT_ERROR_CODE_MATCH: match}.items():  # fmt: skip
        bench.vmcs[field] = value
    before = (processor.regs.cr2, processor.regs.dr6, processor.regs.rip)
    error = code if vector in WITH_CODE else None
    exit = exception(processor, fault_event(GuestFault(vector, error, "", 0x5123)))
    selected = bool(bitmap >> vector & 1)
    if vector == 14:
        selected = ((code & mask) == match) == selected
    assert (exit is not None) == selected
    if exit is None:
        return
    assert exit.reason == 0
    valid_code = 1 << 11 if error is not None else 0
    assert exit.interruption_information == 1 << 31 | valid_code | 3 << 8 | vector
    assert exit.interruption_error_code == (error or 0)
    assert exit.qualification == (0x5123 if vector in (1, 14) else 0)
    assert exit.instruction_length == 0
    assert exit.resume_flag == (0 if vector == 1 else 1)
    assert (processor.regs.cr2, processor.regs.dr6, processor.regs.rip) == before


# Faults on the way.

#: What is wrong, and the fault: vector and error code without the EXT bit.
BROKEN = {
    "beyond the IDT": (13, "gate"),
    "no gate": (13, "gate"),
    "not present": (11, "gate"),
    "null code segment": (13, 0),
    "code segment beyond the GDT": (13, 0x200),
    "data as code": (13, 0x10),
    "less privileged code": (13, 0x20),
    "32-bit code": (13, 0x30),
    "absent code": (11, 0x38),
    "handler not canonical": (13, 0),
    "short TSS": (10, 0x28),
    "stack not canonical": (12, 0),
}


def spoil(processor: Processor, vector: int, what: str) -> None:  # noqa: C901 one case a kind
    regs, memory = processor.regs, processor.memory
    match what:
        case "beyond the IDT":
            regs.idtr = TableRegister(IDT, 16 * vector + 14)
        case "no gate":
            put_gate(processor, vector, kind=12)
        case "not present":
            put_gate(processor, vector, present=0)
        case "null code segment":
            put_gate(processor, vector, selector=3)
        case "code segment beyond the GDT":
            put_gate(processor, vector, selector=0x200)
        case "data as code":
            put_gate(processor, vector, selector=0x10)
        case "less privileged code":
            put_gate(processor, vector, selector=0x20)
        case "32-bit code":
            put_gate(processor, vector, selector=0x30)
        case "absent code":
            put_gate(processor, vector, selector=0x38)
        case "handler not canonical":
            put_gate(processor, vector, offset=1 << 60)
        case "short TSS":
            put_gate(processor, vector, ist=1)
            regs.tr = regs.tr._replace(limit=42)
        case "stack not canonical":
            put_gate(processor, vector, ist=1)
            memory.write_u64(GUEST + TSS + 36, 1 << 60)


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("type", [EventType.EXTERNAL_INTERRUPT, HARDWARE, SOFTWARE])
def test_faults_during_delivery_exit_with_the_event(
    bench: Bench, what: str, type: EventType
) -> None:
    """The nested exception exits; the original event is in the IDT-vectoring information."""
    processor = at(bench)
    vector, code = 0x60 if type != HARDWARE else 5, 7 if type == HARDWARE else None
    spoil(processor, vector, what)
    bench.vmcs[F.EXCEPTION_BITMAP] = (1 << 32) - 1
    before = processor.regs.as_dict()
    exit = deliver(processor, Event(vector, type, code, 2, fault=type == HARDWARE))
    assert exit is not None
    nested, error = BROKEN[what]
    external = type != SOFTWARE
    number = vector << 3 | 2 if error == "gate" else int(error)
    assert exit.interruption_information == 1 << 31 | 1 << 11 | 3 << 8 | nested
    assert exit.interruption_error_code == number | external
    valid_code = 1 << 11 if code is not None else 0
    assert exit.idt_vectoring_information == 1 << 31 | valid_code | type << 8 | vector
    assert exit.idt_vectoring_error_code == (code or 0)
    assert exit.instruction_length == (2 if type == SOFTWARE else 0)
    assert processor.regs.as_dict() == before


def test_users_may_call_only_gates_for_users(bench: Bench) -> None:
    """The gate's DPL counts for software interrupts and exceptions, not for the others."""
    for type, faults in (
        (SOFTWARE, True),
        (EventType.SOFTWARE_EXCEPTION, True),
        (EventType.PRIVILEGED_SOFTWARE_EXCEPTION, False),
        (EventType.EXTERNAL_INTERRUPT, False),
        (HARDWARE, False),
    ):
        processor = at(bench, 3)
        bench.vmcs[F.EXCEPTION_BITMAP] = 1 << 13
        exit = deliver(processor, Event(0x60, type, None, 2))
        assert (exit is not None) == faults
        if exit is not None:
            assert exit.interruption_error_code == 0x60 << 3 | 2


def test_a_page_fault_during_delivery(bench: Bench) -> None:
    processor = at(bench)
    processor.regs.rsp = 0x7000_0000_0000
    bench.vmcs[F.EXCEPTION_BITMAP] = 1 << 14
    exit = deliver(processor, Event(32, EventType.EXTERNAL_INTERRUPT))
    assert exit is not None
    assert exit.interruption_information == 1 << 31 | 1 << 11 | 3 << 8 | 14
    assert exit.qualification == 0x7000_0000_0000 - 40
    assert exit.interruption_error_code == 2


@pytest.mark.parametrize("what", ["idt", "gdt", "tss", "stack"])
def test_ept_violations_during_delivery(bench: Bench, what: str) -> None:
    processor = at(bench, 3 if what == "tss" else 0)
    regs = processor.regs
    if what == "idt":
        regs.idtr = TableRegister(UNMAPPED, 0xFFF)
    elif what == "gdt":
        regs.gdtr = TableRegister(UNMAPPED, 0xFFF)
    elif what == "tss":
        regs.tr = Segment(0x28, UNMAPPED, 0x67, 0x8B)
    else:
        regs.rsp = UNMAPPED + 0x100
    exit = deliver(processor, Event(14, HARDWARE, 6, fault=True))
    assert exit is not None
    assert exit.reason == 48
    assert exit.idt_vectoring_information == 1 << 31 | 1 << 11 | 3 << 8 | 14
    assert exit.idt_vectoring_error_code == 6
    assert exit.qualification & 3 == (2 if what == "stack" else 1)
    assert exit.resume_flag == 1
    assert processor.delivered is None


# Two exceptions at once.


def spoiled_by(processor: Processor, vector: int, nested: int) -> None:
    """Let delivery of `vector` meet the exception `nested` (11 or 13, or 14)."""
    if nested == 14:
        put_gate(processor, vector, ist=1)
        processor.memory.write_u64(GUEST + TSS + 36, 0x7000_0000_0000)
    else:
        put_gate(processor, vector, present=int(nested == 13), selector=0x200)


@given(first=st.sampled_from([0, 1, 5, 6, 8, 10, 12, 13, 14, 17, 20, 21, 40]),
       nested=st.sampled_from([11, 13, 14]),
       catches=st.sampled_from([0, 8, 11, 13, 14]))  # fmt: skip
def test_double_and_triple_faults(bench: Bench, first: int, nested: int, catches: int) -> None:
    processor = at(bench)
    spoiled_by(processor, first, nested)
    bench.vmcs[F.EXCEPTION_BITMAP] = 1 << catches
    type = HARDWARE if first < 32 else EventType.EXTERNAL_INTERRUPT
    code = 0 if first in WITH_CODE else None
    exit = deliver(processor, Event(first, type, code, fault=True))
    double = type == HARDWARE and (
        (first in CONTRIBUTORY and nested in CONTRIBUTORY)
        or (first in PAGE_FAULTS and nested in CONTRIBUTORY | PAGE_FAULTS)
    )
    if catches == nested:
        assert exit is not None
        assert exit.interruption_information & 0xFF == nested
        assert exit.idt_vectoring_information & 0xFF == first
    elif first == 8:
        assert exit is not None
        assert exit.reason == 2
        assert exit == ExitInformation(exit.reason, resume_flag=1)
    elif double and catches == 8:
        assert exit is not None
        assert exit.interruption_information == 1 << 31 | 1 << 11 | 3 << 8 | 8
        assert exit.idt_vectoring_information == 0
    else:
        assert exit is None
        assert processor.delivered == ((8, 0) if double else (nested, frame(processor, 1)[0]))


@pytest.mark.parametrize("intercepted", [False, True])
def test_a_second_page_fault_leaves_its_address_in_cr2(bench: Bench, intercepted: bool) -> None:
    """Unless it exits itself: then CR2 is still that of the first."""
    processor = at(bench)
    spoiled_by(processor, 14, 14)
    bench.vmcs[F.EXCEPTION_BITMAP] = 0
    if intercepted:
        bench.vmcs[F.EXCEPTION_BITMAP] = 1 << 14
    exit = deliver(processor, Event(14, HARDWARE, 2, fault=True, qualification=0x1234))
    assert (exit is not None) == intercepted
    assert processor.regs.cr2 == (0x1234 if intercepted else 0x7000_0000_0000 - 8 * 6)


def test_a_triple_fault(bench: Bench) -> None:
    processor = at(bench)
    processor.regs.idtr = TableRegister(IDT, 0)
    exit = exception(processor, fault_event(GuestFault(6)))
    assert exit is not None
    assert exit == ExitInformation(exit.reason, resume_flag=1)
    assert exit.reason == 2
