"""VMREAD, VMWRITE and VMFUNC that the guest executes without an exit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nonroot.guests import capable_shape, inside
from tests.rules.bench import GUEST, Bench, execution, fault_of
from vtx.facts.controls import Proc2
from vtx.facts.fields import Field as F
from vtx.facts.fields import mask
from vtx.machine.mmu import Access
from vtx.machine.paging import Ept
from vtx.machine.processor import Processor
from vtx.machine.vmcs import NO_LINK, Vmcs
from vtx.rules.execution_memory import ExitTaken

U64 = st.integers(0, (1 << 64) - 1)
FIELD = st.sampled_from([F.GUEST_RIP, F.GUEST_CS_SELECTOR, F.GUEST_IA32_EFER, F.TPR_THRESHOLD])
STATUS, CF, ZF = 0x8D5, 1, 0x40
UNMAPPED = 0x3000_0000


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with inside(capable_shape()) as cpu:
        cpu.ept.unmap(UNMAPPED)
        cpu.mmu.flush_all()
        yield Bench(cpu)


def at(bench: Bench, *, linked: bool = True, cpl: int = 0) -> Processor:
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.VMCS_SHADOWING),
        F.VMREAD_BITMAP_ADDRESS: bench.page(0),
        F.VMWRITE_BITMAP_ADDRESS: bench.page(1),
        F.VMCS_LINK_POINTER: 0x5000 if linked else NO_LINK,
    }
    processor = bench(fields, cpl=cpl, rbx=0x7000)
    processor.link_vmcs = Vmcs() if linked else None
    processor.regs.rflags |= STATUS
    return processor


@given(field=FIELD, value=U64, in_memory=st.booleans())
def test_the_shadow_vmcs_is_read_and_written(
    bench: Bench, field: F, value: int, in_memory: bool
) -> None:
    processor = at(bench)
    linked, current = processor.link_vmcs, dict(bench.vmcs.values)
    assert linked is not None
    processor.memory.write_u64(GUEST + 0x7000, value)
    source = "[rbx]" if in_memory else "rdi"
    processor.regs.rdi = value
    execution(processor, f"vmwrite rcx, {source} field={field.name}")
    assert linked[field] == value & mask(field)
    assert not processor.regs.rflags & STATUS
    processor.memory.write_u64(GUEST + 0x7000, 0)
    execution(processor, f"vmread {source} , rcx field={field.name}")
    read = processor.memory.read_u64(GUEST + 0x7000) if in_memory else processor.regs.rdi
    assert read == value & mask(field)
    assert bench.vmcs.values == current


def test_failures_set_flags(bench: Bench) -> None:
    for text in ("vmread rax, rcx", "vmwrite rcx, rax"):
        processor = at(bench, linked=False)
        rip = processor.regs.rip
        execution(processor, f"{text} field=GUEST_RIP")
        assert processor.regs.rflags & STATUS == CF
        assert processor.regs.rip == rip + 3
        processor = at(bench)
        execution(processor, f"{text} field=0x7ffe")
        assert processor.regs.rflags & STATUS == ZF
        assert bench.vmcs[F.VM_INSTRUCTION_ERROR] == 12
        assert fault_of(at(bench, cpl=3), f"{text} field=GUEST_RIP") == (13, 0)


def test_memory_operands_are_reached_after_vmread_and_before_vmwrite_looks_at_fields(
    bench: Bench,
) -> None:
    processor = at(bench)
    processor.regs.rbx = UNMAPPED
    flags = processor.regs.rflags
    with pytest.raises(ExitTaken):
        execution(processor, "vmread [rbx], rcx field=GUEST_RIP")
    assert processor.regs.rflags == flags
    execution(processor, "vmread [rbx], rcx field=0x7ffe")
    assert processor.regs.rflags & ZF
    with pytest.raises(ExitTaken):
        execution(processor, "vmwrite rcx, [rbx] field=0x7ffe")
    processor = at(bench, linked=False)
    processor.regs.rbx = UNMAPPED
    execution(processor, "vmwrite rcx, [rbx] field=GUEST_RIP")
    assert processor.regs.rflags & CF


def test_eptp_switching_changes_what_memory_is(bench: Bench) -> None:
    """The guest's next access goes through the other EPT hierarchy; the index is recorded."""
    cpu = bench.cpu
    other = Ept(cpu.memory, cpu.machine.frames)
    for page in range(0, 1 << 30, 1 << 21):
        other.map(page, GUEST + page, size="2M")
    other.unmap(0x40_0000)
    other.map(0x40_0000, GUEST + 0x80_0000, size="2M")
    page = bench.page(2)
    cpu.memory.write_u64(page + 8 * 5, other.eptp)
    fields = {
        F.SECONDARY_PROCESSOR_BASED_CONTROLS: int(Proc2.ENABLE_VM_FUNCTIONS | Proc2.ENABLE_EPT),
        F.VM_FUNCTION_CONTROLS: 1,
        F.EPTP_LIST_ADDRESS: page,
    }
    processor = bench(fields)
    translate = processor.mmu.translate
    assert translate(processor.context, 0x40_0000, Access.LOAD).hpa == GUEST + 0x40_0000
    flags = processor.regs.rflags
    execution(processor, "vmfunc function=0 argument=5")
    assert translate(processor.context, 0x40_0000, Access.LOAD).hpa == GUEST + 0x80_0000
    assert bench.vmcs[F.EPT_POINTER] == other.eptp
    assert bench.vmcs[F.EPTP_INDEX] == 5
    assert processor.regs.rflags == flags
    processor.context.eptp = bench.initial[F.EPT_POINTER]
