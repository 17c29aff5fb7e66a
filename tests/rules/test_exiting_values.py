"""Exits that hang on values, against restatements of the manual's rules bit by bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import ACTIVATE, Bench
from vtx.errors import GuestFault
from vtx.facts.controls import Proc1, Proc2, Proc3, VmFunction
from vtx.facts.fields import Field as F
from vtx.facts.instructions import GENERAL_REGISTERS
from vtx.facts.msrs import Msr
from vtx.machine.assembly import parse_instruction
from vtx.machine.exit_information import ExitInformation
from vtx.machine.processor import Processor
from vtx.machine.registers import Segment
from vtx.rules.exiting import decide

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
SMALL_CHANGE = st.sampled_from([0, 1, 2, 4, 8, 0x10, 1 << 31, 1 << 63, 0xF, (1 << 64) - 1])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        yield Bench(cpu)


def exits(processor: Processor, step: str) -> ExitInformation | None:
    return decide(processor, parse_instruction(step))


# Control registers.


@given(mask=U64, shadow=U64, change=st.one_of(U64, SMALL_CHANGE), gpr=st.integers(0, 15),
       number=st.sampled_from([0, 4]))  # fmt: skip
def test_mov_to_cr0_and_cr4(
    bench: Bench, mask: int, shadow: int, change: int, gpr: int, number: int
) -> None:
    """It exits iff some masked bit of the source differs from the shadow's."""
    name, source = GENERAL_REGISTERS[gpr], shadow ^ change
    fields = {0: (F.CR0_GUEST_HOST_MASK, F.CR0_READ_SHADOW),
              4: (F.CR4_GUEST_HOST_MASK, F.CR4_READ_SHADOW)}[number]  # fmt: skip
    processor = bench(dict(zip(fields, (mask, shadow), strict=True)), **{name: source})
    exit = exits(processor, f"mov cr{number}, {name}")
    differs = any(mask >> n & 1 and (source >> n & 1) != (shadow >> n & 1) for n in range(64))
    assert (exit is not None) == differs
    if exit is not None:
        assert exit.reason == 28
        assert exit.qualification == number + (gpr << 8)


@given(count=st.integers(0, 4), targets=st.lists(U64, min_size=4, max_size=4),
       pick=st.integers(0, 4), noise=SMALL_CHANGE, on=st.booleans())  # fmt: skip
def test_mov_to_cr3(
    bench: Bench, count: int, targets: list[int], pick: int, noise: int, on: bool
) -> None:
    """With "CR3-load exiting" it exits unless the source is one of the first `count` targets."""
    source = (targets[pick] if pick < 4 else 0x1234_5000) ^ noise
    fields = {F.CR3_TARGET_COUNT: count} | {
        F[f"CR3_TARGET_VALUE_{n}"]: value for n, value in enumerate(targets)
    }
    fields[F.PRIMARY_PROCESSOR_BASED_CONTROLS] = ACTIVATE | (Proc1.CR3_LOAD_EXITING if on else 0)
    exit = exits(bench(fields, rdx=source), "mov cr3, rdx")
    expected = on and source not in targets[:count]
    assert (exit is not None) == expected
    assert exit is None or exit.qualification == 3 | 2 << 8


@given(mask=U64, shadow=U64)
def test_clts(bench: Bench, mask: int, shadow: int) -> None:
    fields = {F.CR0_GUEST_HOST_MASK: mask, F.CR0_READ_SHADOW: shadow}
    exit = exits(bench(fields), "clts")
    assert (exit is not None) == (mask & 8 != 0 and shadow & 8 != 0)
    assert exit is None or exit.qualification == 0x20


@given(mask=st.integers(0, 31), shadow=st.integers(0, 31), source=st.integers(0, 0xFFFF),
       in_memory=st.booleans())  # fmt: skip
def test_lmsw(bench: Bench, mask: int, shadow: int, source: int, in_memory: bool) -> None:
    """It exits iff it would set a masked PE against the shadow, or change a masked MP, EM, TS."""
    fields = {F.CR0_GUEST_HOST_MASK: mask, F.CR0_READ_SHADOW: shadow}
    processor = bench(fields, rbx=0x7000, rcx=source | 0xABCD_0000)
    processor.memory.write_u16((1 << 30) + 0x7000, source)
    exit = exits(processor, "lmsw [rbx]" if in_memory else "lmsw cx")
    sets_pe = mask & 1 and source & 1 and not shadow & 1
    changes = any(mask >> n & 1 and (source ^ shadow) >> n & 1 for n in (1, 2, 3))
    assert (exit is not None) == bool(sets_pe or changes)
    if exit is not None:
        assert exit.qualification == 3 << 4 | in_memory << 6 | source << 16
        assert exit.guest_linear_address == (0x7000 if in_memory else 0)


@given(number=st.integers(0, 7), gpr=st.integers(0, 15), to=st.booleans())
def test_mov_dr(bench: Bench, number: int, gpr: int, to: bool) -> None:
    on = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.MOV_DR_EXITING}
    name = GENERAL_REGISTERS[gpr]
    text = f"mov dr{number}, {name}" if to else f"mov {name}, dr{number}"
    exit = exits(bench(on, cpl=3), text)
    assert exit is not None
    assert exit.reason == 29
    assert exit.qualification == number | (0 if to else 16) | gpr << 8


# Ports.

PORT = st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0x7FFE, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF]))


@given(port=PORT, near=st.integers(-4, 4), size=st.sampled_from([1, 2, 4]), write=st.booleans(),
       bitmaps=st.booleans(), unconditional=st.booleans())  # fmt: skip
def test_ports(
    bench: Bench, port: int, near: int, size: int, write: bool, bitmaps: bool, unconditional: bool
) -> None:
    """One port has its bit set; the access exits iff it touches that port, or wraps."""
    marked = port + near & 0xFFFF
    in_a = [marked] if marked < 0x8000 else []
    in_b = [marked - 0x8000] if marked >= 0x8000 else []
    proc1 = ACTIVATE | (Proc1.USE_IO_BITMAPS if bitmaps else 0)
    proc1 |= Proc1.UNCONDITIONAL_IO_EXITING if unconditional else 0
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: proc1,
        F.IO_BITMAP_A: bench.page(0, *in_a),
        F.IO_BITMAP_B: bench.page(1, *in_b),
    }
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    text = f"out dx, {register}" if write else f"in {register}, dx"
    exit = exits(bench(fields, rdx=port | 0xFFFF_0000_0000), text)
    touched = range(port, port + size)
    by_bitmap = marked in touched or port + size - 1 > 0xFFFF
    assert (exit is not None) == (by_bitmap if bitmaps else unconditional)
    if exit is not None:
        assert exit.reason == 30
        assert exit.qualification == size - 1 | (0 if write else 8) | port << 16


@given(port=st.integers(0, 255), size=st.sampled_from([1, 2, 4]), write=st.booleans())
def test_immediate_ports(bench: Bench, port: int, size: int, write: bool) -> None:
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.UNCONDITIONAL_IO_EXITING}
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    text = f"out {port}, {register}" if write else f"in {register}, {port}"
    exit = exits(bench(fields, rdx=0x1234), text)
    assert exit is not None
    assert exit.qualification == size - 1 | (0 if write else 8) | 1 << 6 | port << 16


@given(size=st.sampled_from("bwd"), outs=st.booleans(), rep=st.booleans(), count=st.integers(0, 3),
       narrow=st.booleans(), segment=st.sampled_from(["", "fs", "gs", "es"]),
       pointer=U64)  # fmt: skip
def test_string_ports(
    bench: Bench, size: str, outs: bool, rep: bool, count: int, narrow: bool, segment: str,
    pointer: int,
) -> None:  # fmt: skip
    """The linear address is that of ES:rDI or of DS:rSI (overridable), in the address size."""
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.UNCONDITIONAL_IO_EXITING}
    words = ["rep"] * rep + ["a32"] * narrow + [segment] * bool(segment)
    words.append(("outs" if outs else "ins") + size)
    processor = bench(fields, rdx=0x3F8, rsi=pointer, rdi=pointer, rcx=count)
    regs = processor.regs
    regs.fs = regs.fs._replace(base=0x1_0000)
    regs.gs = regs.gs._replace(base=0x2_0000)
    exit = exits(processor, " ".join(words))
    if rep and count == 0:
        assert exit is None
        return
    assert exit is not None
    wide = {"b": 0, "w": 1, "d": 3}[size]
    assert exit.qualification == wide | (0 if outs else 8) | 16 | rep << 5 | 0x3F8 << 16
    offset = pointer & 0xFFFF_FFFF if narrow else pointer
    base = {"fs": 0x1_0000, "gs": 0x2_0000}.get(segment, 0) if outs else 0
    assert exit.guest_linear_address == (base + offset) % (1 << 64)
    reported = {"": 3, "es": 0, "fs": 4, "gs": 5}[segment] if outs else 0
    assert exit.instruction_information == (1 if narrow else 2) << 7 | reported << 15


def test_ins_and_outs_report_operands_only_where_the_cpu_does(bench: Bench) -> None:
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.UNCONDITIONAL_IO_EXITING}
    processor = bench(fields)
    basic, msrs = Msr.IA32_VMX_BASIC, dict(processor.shape.msrs)
    try:
        processor.shape.msrs[basic] = msrs[basic] & ~(1 << 54)  # type: ignore[index]
        exit = exits(processor, "outsb")
    finally:
        processor.shape.msrs[basic] = msrs[basic]  # type: ignore[index]
    assert exit is not None
    assert exit.instruction_information == 0


@given(port=PORT, size=st.sampled_from([1, 2, 4]), denied=st.integers(0, 7), iopl=st.integers(0, 3),
       cpl=st.sampled_from([0, 3]),
       limit=st.sampled_from([0x67, 0x68 + 0x1FFF, 0x68 + 0x2000]))  # fmt: skip
def test_io_permission_comes_first(
    bench: Bench, port: int, size: int, denied: int, iopl: int, cpl: int, limit: int
) -> None:
    """Above IOPL the TSS must hold a clear bit for each port, and one more byte."""
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.UNCONDITIONAL_IO_EXITING}
    processor = bench(fields, cpl=cpl, rdx=port, rflags=2 | iopl << 12)
    tss, memory = 0x1_0000, processor.memory
    host = (1 << 30) + tss
    memory.write(host, bytes(0x3000))
    memory.write_u16(host + 102, 0x68)
    bad = port + denied
    memory.write_u8(host + 0x68 + bad // 8, 1 << bad % 8)
    processor.regs.tr = Segment(0x28, tss, limit, 0x8B)
    register = {1: "al", 2: "ax", 4: "eax"}[size]
    try:
        exit = exits(processor, f"in {register}, dx")
    except GuestFault as fault:
        assert (fault.vector, fault.error_code) == (13, 0)
        outcome = "fault"
    else:
        outcome = "exit" if exit is not None else "none"
    inside_tss = 0x68 + port // 8 + 1 <= limit
    allowed = inside_tss and bad not in range(port, port + size)
    assert outcome == ("exit" if cpl <= iopl or allowed else "fault")


# MSRs.

MSR = st.one_of(
    U32,
    st.integers(0, 0x2010),
    st.integers(0xC000_0000 - 4, 0xC000_2004),
)


@given(
    msr=MSR, near=st.integers(-1, 1), write=st.booleans(), area=st.integers(0, 3), on=st.booleans()
)
def test_msr_bitmaps(bench: Bench, msr: int, near: int, write: bool, area: int, on: bool) -> None:
    """Four bitmaps of 1 KByte: read low, read high, write low, write high."""
    marked = area * 8192 + (msr + near & 0x1FFF)
    proc1 = ACTIVATE | (Proc1.USE_MSR_BITMAPS if on else 0)
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: proc1, F.MSR_BITMAP: bench.page(0, marked)}
    processor = bench(fields, rcx=0xFFFF_FFFF << 32 | msr)
    exit = exits(processor, "wrmsr" if write else "rdmsr")
    if msr <= 0x1FFF:
        selected = marked == (16384 if write else 0) + msr
    elif 0xC000_0000 <= msr <= 0xC000_1FFF:
        selected = marked == (16384 if write else 0) + 8192 + msr - 0xC000_0000
    else:
        selected = True
    assert (exit is not None) == (selected or not on)
    assert exit is None or exit.reason == (32 if write else 31)
    assert exit is None or exit.qualification == 0


@given(msr=MSR, gpr=st.integers(0, 15))
def test_msr_instructions_with_an_immediate(bench: Bench, msr: int, gpr: int) -> None:
    name = GENERAL_REGISTERS[gpr]
    for text, reason in ((f"rdmsr {name}, {msr}", 84), (f"wrmsrns {msr}, {name}", 85)):
        exit = exits(bench(), text)
        assert exit is not None
        assert exit.reason == reason
        assert exit.qualification == msr
        assert exit.instruction_information == gpr << 3


def test_wrmsrns_shares_the_reason_of_wrmsr(bench: Bench) -> None:
    for text, qualification in (("wrmsr", 0), ("wrmsrns", 1)):
        exit = exits(bench(rcx=0x10), text)
        assert exit is not None
        assert (exit.reason, exit.qualification) == (32, qualification)


@given(mask=st.integers(0, (1 << 64) - 1), marked=st.integers(0, 7), write=st.booleans())
def test_msr_lists_exit_at_the_first_selected_entry(
    bench: Bench, mask: int, marked: int, write: bool
) -> None:
    """The table names MSR 10H + n in entry n; the lowest bit of RCX is the entry that is next."""
    table, data = 0x7000, 0x8000
    fields = {
        F.PRIMARY_PROCESSOR_BASED_CONTROLS: ACTIVATE | Proc1.USE_MSR_BITMAPS,
        F.TERTIARY_PROCESSOR_BASED_CONTROLS: int(Proc3.ENABLE_MSR_LIST_INSTRUCTIONS),
        F.MSR_BITMAP: bench.page(0, (16384 if write else 0) + 0x10 + marked),
    }
    processor = bench(fields, rcx=mask, rsi=table, rdi=data)
    for n in range(64):
        processor.memory.write_u64((1 << 30) + table + 8 * n, 0x10 + n)
        processor.memory.write_u64((1 << 30) + data + 8 * n, 1000 + n)
    exit = exits(processor, "wrmsrlist" if write else "rdmsrlist")
    following = next((n for n in range(64) if mask >> n & 1), None)
    assert (exit is not None) == (following == marked)
    if exit is not None:
        assert exit.reason == (79 if write else 78)
        assert exit.qualification == 0x10 + marked
        assert not write or bench.vmcs[F.MSR_DATA] == 1000 + marked


def test_msr_lists_exit_at_once_without_bitmaps(bench: Bench) -> None:
    fields = {F.TERTIARY_PROCESSOR_BASED_CONTROLS: int(Proc3.ENABLE_MSR_LIST_INSTRUCTIONS)}
    exit = exits(bench(fields, rcx=0), "rdmsrlist")
    assert exit is not None
    assert exit.qualification == 0
    for registers in ({"rsi": 4}, {"rdi": 1}):
        with pytest.raises(GuestFault):
            exits(bench(fields, **registers), "wrmsrlist")


@given(msr=st.integers(0, 0x5000), write=st.booleans(), allowed=st.booleans(), marked=st.booleans(),
       bitmaps=st.booleans(), enabled=st.booleans())  # fmt: skip
def test_user_msrs(
    bench: Bench, msr: int, write: bool, allowed: bool, marked: bool, bitmaps: bool, enabled: bool
) -> None:
    """#UD unless enabled, #GP unless the user's bitmap allows; then the low MSR bitmaps decide."""
    control, proc1 = 0x1C, ACTIVATE | (Proc1.USE_MSR_BITMAPS if bitmaps else 0)
    position = (16384 if write else 0) + msr
    selected = [position] if marked and msr < 0x2000 else []
    fields = {F.PRIMARY_PROCESSOR_BASED_CONTROLS: proc1, F.MSR_BITMAP: bench.page(0, *selected)}
    processor = bench(fields, cpl=3, rbx=msr)
    processor.regs.msrs[control] = 0x7000 | enabled
    page = (1 << 30) + 0x7000
    processor.memory.write(page, bytes(4096))
    if allowed and msr < 0x4000:
        processor.memory.write_u8(page + position // 8, 1 << position % 8)
    try:
        exit = exits(processor, "uwrmsr rbx, rcx" if write else "urdmsr rcx, rbx")
    except GuestFault as fault:
        assert fault.vector == (13 if enabled else 6)
        assert not enabled or not allowed or msr > 0x3FFF
        return
    assert enabled
    assert allowed
    assert (exit is not None) == (not bitmaps or marked or msr > 0x1FFF)
    if exit is not None:
        assert exit.reason == (81 if write else 80)
        assert exit.qualification == msr
        assert exit.instruction_information == 1 << 3


# Leaf functions.

LEAVES = [
    ("encls", 60, "proc2", Proc2.ENABLE_ENCLS_EXITING, F.ENCLS_EXITING_BITMAP),
    ("enclv", 70, "proc2", Proc2.ENABLE_ENCLV_EXITING, F.ENCLV_EXITING_BITMAP),
    ("pconfig", 65, "proc2", Proc2.ENABLE_PCONFIG, F.PCONFIG_EXITING_BITMAP),
]


@given(row=st.sampled_from(LEAVES), bitmap=U64, leaf=st.one_of(st.integers(0, 70), U32))
def test_leaf_bitmaps(
    bench: Bench, row: tuple[str, int, str, int, F], bitmap: int, leaf: int
) -> None:
    """Bit EAX decides; from leaf 63 on, bit 63."""
    name, reason, _, control, field = row
    fields = {F.SECONDARY_PROCESSOR_BASED_CONTROLS: control, field: bitmap}
    exit = exits(bench(fields, rax=0xAAAA_AAAA << 32 | leaf), name)
    wanted = bitmap >> 63 & 1 if leaf >= 63 else bitmap >> leaf & 1
    assert (exit is not None) == bool(wanted)
    assert exit is None or exit.reason == reason
    if name != "pconfig":
        assert exits(bench({field: bitmap}, rax=leaf), name) is None


@given(asked=U64, enabled=U64, bitmap=U64, restore=st.booleans())
def test_xss_bitmap(bench: Bench, asked: int, enabled: int, bitmap: int, restore: bool) -> None:
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.ENABLE_XSAVES_XRSTORS),
        F.XSS_EXITING_BITMAP: bitmap,
    }
    processor = bench(fields, rax=asked & 0xFFFF_FFFF, rdx=asked >> 32)
    processor.regs.cr4 |= 1 << 18
    processor.regs.msrs[Msr.IA32_XSS] = enabled
    exit = exits(processor, ("xrstors" if restore else "xsaves") + " [rbx+0x40]")
    assert (exit is not None) == bool(asked & enabled & bitmap)
    if exit is not None:
        assert exit.reason == (64 if restore else 63)
        assert exit.qualification == 0x40


# PAUSE-loop exiting.


@given(gaps=st.lists(st.integers(1, 40), min_size=1, max_size=12), gap=st.integers(0, 30),
       window=st.integers(0, 100), cpl=st.sampled_from([0, 3]))  # fmt: skip
def test_pause_loops(bench: Bench, gaps: list[int], gap: int, window: int, cpl: int) -> None:
    """A loop begins after a gap longer than PLE_Gap; it exits when longer than PLE_Window."""
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.PAUSE_LOOP_EXITING),
        F.PLE_GAP: gap,
        F.PLE_WINDOW: window,
    }
    processor = bench(fields, cpl=cpl)
    times = [processor.tsc]
    for step in gaps:
        times.append(times[-1] + step)
    first = last = None
    for now in times:
        processor.tsc = now
        exit = exits(processor, "pause")
        if first is None or last is None or now - last > gap:
            first, expected = now, False
        else:
            expected = now - first > window
        last = now
        assert (exit is not None) == (expected and cpl == 0)
        if exit is not None:
            assert exit.reason == 40
            break


# VMCS shadowing.


@given(encoding=st.one_of(st.integers(0, 0x8010), U64), near=st.integers(-1, 1),
       write=st.booleans(), on=st.booleans())  # fmt: skip
def test_shadowing_bitmaps(bench: Bench, encoding: int, near: int, write: bool, on: bool) -> None:
    marked = (encoding + near) % 32768
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.VMCS_SHADOWING) if on else 0,
        F.VMREAD_BITMAP_ADDRESS: bench.page(0, *([] if write else [marked])),
        F.VMWRITE_BITMAP_ADDRESS: bench.page(1, *([marked] if write else [])),
    }
    processor = bench(fields, rcx=encoding)
    exit = exits(processor, "vmwrite rcx, rax" if write else "vmread rax, rcx")
    expected = not on or encoding >= 32768 or marked == encoding
    assert (exit is not None) == expected
    if exit is not None:
        assert exit.reason == (25 if write else 23)
        assert exit.instruction_information == 1 << 10 | 0 << 3 | 1 << 28


# VM functions.


@given(function=st.one_of(st.integers(0, 66), U32), controls=U64)
def test_vm_function_numbers(bench: Bench, function: int, controls: int) -> None:
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.ENABLE_VM_FUNCTIONS),
        F.VM_FUNCTION_CONTROLS: controls & ~VmFunction.EPTP_SWITCHING,
    }
    processor = bench(fields, rax=function, cpl=3)
    if function > 63:
        with pytest.raises(GuestFault):
            exits(processor, "vmfunc")
        return
    exit = exits(processor, "vmfunc")
    assert (exit is not None) == (function == 0 or not controls >> function & 1)


@given(number=st.one_of(st.integers(0, 520), U32), entry=st.sampled_from(["same", "other_walk",
       "reserved", "type", "beyond", "zero"]), tracing=st.booleans())  # fmt: skip
def test_eptp_switching(bench: Bench, number: int, entry: str, tracing: bool) -> None:
    current = bench.initial[F.EPT_POINTER]
    eptp = {"same": current + 0x1000, "other_walk": current ^ 0x38, "reserved": current | 0x800,
            "type": current & ~7 | 5, "beyond": current | 1 << 60, "zero": 0}[entry]  # fmt: skip
    page = bench.page(2)
    bench.cpu.memory.write_u64(page + 8 * (number % 512), eptp)
    proc2 = Proc2.ENABLE_VM_FUNCTIONS | Proc2.ENABLE_EPT
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: proc2
        | (Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES if tracing else 0),
        F.VM_FUNCTION_CONTROLS: 1,
        F.EPTP_LIST_ADDRESS: page,
    }
    processor = bench(fields, rax=0, rcx=number)
    processor.regs.msrs[Msr.IA32_RTIT_CTL] = 1
    exit = exits(processor, "vmfunc")
    assert (exit is None) == (number < 512 and entry == "same" and not tracing)
    assert exit is None or (exit.reason, exit.qualification) == (59, 0)


# ENQCMD.


@given(pasid=st.integers(0, 0xF_FFFF), directory=st.sampled_from([0, 1, 3, 1 | 1 << 60]),
       leaf=st.sampled_from([0, 1 << 31, 1 << 31 | 1 << 20, 0x7FFF_FFFF]), user=st.booleans(),
       translates=st.booleans(), valid=st.booleans())  # fmt: skip
def test_pasid_translation(
    bench: Bench, pasid: int, directory: int, leaf: int, user: bool, translates: bool, valid: bool
) -> None:
    """Two levels: a directory by bit 19 and bits 18:10, a table by bits 9:0."""
    low, high, table = bench.page(3), bench.page(4), bench.page(5)
    bench.cpu.memory.write_u64(
        (high if pasid >> 19 else low) + 8 * (pasid >> 10 & 511), table | directory
    )
    bench.cpu.memory.write_u32(table + 4 * (pasid & 1023), leaf)
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.PASID_TRANSLATION) if translates else 0,
        F.LOW_PASID_DIRECTORY_ADDRESS: low,
        F.HIGH_PASID_DIRECTORY_ADDRESS: high,
    }
    processor = bench(fields)
    processor.regs.msrs[Msr.IA32_PASID] = pasid | valid << 31
    processor.memory.write_u32((1 << 30) + 0x7000, pasid | 0xABC0_0000)
    text = "enqcmd rax, [0x7000]" if user else "enqcmds rax, [0x7000]"
    if user and not valid:
        with pytest.raises(GuestFault):
            exits(processor, text)
        return
    exit = exits(processor, text)
    good = directory == 1 and leaf == 1 << 31
    assert (exit is None) == (good or not translates)
    if exit is not None:
        assert exit.reason == (72 if user else 73)
        assert exit.qualification == (pasid if user else pasid | 0xABC0_0000)


# Task switches.


@example(selector=0x28, source=0, kind=9, present=True, short=False, long_mode=False)
@example(selector=0x28, source=1, kind=11, present=True, short=False, long_mode=False)
@example(selector=0x28, source=3, kind=1, present=True, short=True, long_mode=False)
@given(selector=st.integers(0, 0x30FF), source=st.integers(0, 3),
       kind=st.sampled_from([1, 3, 9, 11, 2]), present=st.booleans(), short=st.booleans(),
       long_mode=st.booleans())  # fmt: skip
def test_task_switches(
    bench: Bench, selector: int, source: int, kind: int, present: bool, short: bool,
    long_mode: bool,
) -> None:  # fmt: skip
    processor = bench()
    regs = processor.regs
    if not long_mode:
        regs.efer &= ~0x400
    processor.memory.write(1 << 30, bytes(0x1_0000))
    regs.gdtr = regs.gdtr._replace(base=0, limit=0x2FFF)
    needed = 0x67 if kind & 8 else 0x2B
    descriptor = needed - short | kind << 40 | present << 47
    if selector | 7 <= 0x2FFF:
        processor.memory.write_u64((1 << 30) + (selector & ~7), descriptor)
    by_iret = source == 1
    good = (
        not long_mode and not selector & 4 and selector & ~3 and selector | 7 <= 0x2FFF
        and kind in ((3, 11) if by_iret else (1, 9)) and present and not short
        # The descriptor's DPL is 0; CALL and JMP compare it with CPL (0) and RPL.
        and (source in (1, 3) or not selector & 3)
    )  # fmt: skip
    # Only the rule sees legacy mode; the descriptor is read through the tables that are there.
    try:
        exit = exits(processor, f"task_switch selector={selector} source={source}")
    except GuestFault as fault:
        assert not good
        assert fault.error_code == selector & ~3
    else:
        assert good
        assert exit is not None
        assert (exit.reason, exit.qualification) == (9, selector | source << 30)
