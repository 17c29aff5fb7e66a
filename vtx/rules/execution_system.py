"""System instructions of the guest that do not exit: descriptor tables, caches, waiting, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32, MASK64, bit, is_canonical
from vtx.errors import GuestFault, NotSupported
from vtx.facts.controls import Proc2
from vtx.facts.msrs import Msr
from vtx.machine.encoding import has_memory_operand
from vtx.machine.mmu import Access
from vtx.machine.registers import (
    Activity,
    Cr0,
    Cr4,
    Interruptibility,
    Rflags,
    Segment,
    TableRegister,
)
from vtx.rules.delivery_segments import (
    mark_accessed,
    read_descriptor,
    real_mode_segment,
)
from vtx.rules.execution_context import is_linear_address
from vtx.rules.execution_memory import access, read, write
from vtx.rules.execution_msrs import set_edx_eax
from vtx.rules.execution_registers import put, put_sized
from vtx.rules.exiting_faults import ENABLED_BY, GP, NM, SS, UD
from vtx.rules.exiting_information import operand_address, register
from vtx.rules.system_segments import Gdt, ldt_segment, tss_segment

if TYPE_CHECKING:
    from vtx.machine.processor import Processor
    from vtx.machine.program import Instruction

__all__ = ["EFFECTS"]

_STATUS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
_INVPCID_ADDRESS, _INVPCID_CONTEXT, _INVPCID_LAST = 0, 1, 3
_XSAVE_HEADER = 512
_COMPACTED = 1 << 63
_COUNTERS = 8
_FIXED_COUNTERS, _FIXED = 4, 1 << 30


def nothing(processor: Processor, instruction: Instruction) -> None:
    """Have no effect that the model can show (NOP, PAUSE, WBINVD, a wait that ends at once)."""


# Descriptor tables.


def store_table(processor: Processor, instruction: Instruction) -> None:
    """SGDT and SIDT."""
    regs = processor.regs
    table = regs.gdtr if instruction.name == "sgdt" else regs.idtr
    wide = 8 if regs.in_64bit_mode else 4
    content = (table.limit & 0xFFFF).to_bytes(2, "little")
    content += (table.base & (1 << 8 * wide) - 1).to_bytes(wide, "little")
    write(processor, operand_address(regs, instruction.operands), content)


def load_table(processor: Processor, instruction: Instruction) -> None:
    """LGDT and LIDT."""
    regs = processor.regs
    wide = 8 if regs.in_64bit_mode else 4
    raw = read(processor, operand_address(regs, instruction.operands), 2 + wide)
    base = int.from_bytes(raw[2:], "little")
    if wide == 8 and not is_canonical(base, processor.shape.linear_bits):
        raise GuestFault(GP, 0, f"{instruction.name}: {base:#x} is not canonical")
    table = TableRegister(base, int.from_bytes(raw[:2], "little"))
    if instruction.name == "lgdt":
        regs.gdtr = table
    else:
        regs.idtr = table


def store_selector(processor: Processor, instruction: Instruction) -> None:
    """SLDT and STR: 16 bits to memory, zero-extended to a register."""
    regs, operands = processor.regs, instruction.operands
    selector = (regs.ldtr if instruction.name == "sldt" else regs.tr).selector
    if has_memory_operand(operands):
        write(processor, operand_address(regs, operands), selector.to_bytes(2, "little"))
    else:
        put_sized(processor, operands["destination"], selector, operands.get("operand_size", 4))


def _selector(processor: Processor, instruction: Instruction) -> int:
    operands = instruction.operands
    if has_memory_operand(operands):
        raw = read(processor, operand_address(processor.regs, operands), 2)
        return int.from_bytes(raw, "little")
    return register(processor.regs, operands["source"]) & 0xFFFF


def _gdt(processor: Processor) -> Gdt:
    """Return the guest's GDT, read as the processor reads it."""
    regs = processor.regs
    base = regs.gdtr.base

    def read_table(offset: int, size: int) -> bytes:
        return read(processor, base + offset, size, supervisor=True)

    return Gdt(regs.gdtr.limit, regs.in_ia32e_mode, processor.shape.linear_bits, read_table)


def lldt(processor: Processor, instruction: Instruction) -> None:
    """LLDT."""
    processor.regs.ldtr = ldt_segment(_gdt(processor), _selector(processor, instruction))


def ltr(processor: Processor, instruction: Instruction) -> None:
    """LTR: marks the TSS busy in its descriptor."""
    selector = _selector(processor, instruction)
    tss = tss_segment(_gdt(processor), selector)
    place = processor.regs.gdtr.base + (selector & ~7) + 5
    write(processor, place, bytes([tss.access_rights & 0xFF]), supervisor=True)
    processor.regs.tr = tss


def mov_to_ss(processor: Processor, instruction: Instruction) -> None:
    """MOV SS, r: events are blocked until the next instruction is done."""
    regs = processor.regs
    selector = register(regs, instruction.operands["source"]) & 0xFFFF
    error, cpl = selector & ~3, regs.cpl
    if not regs.in_protected_mode:
        regs.ss = real_mode_segment(processor, regs.ss, selector)
    elif not error:
        # In 64-bit mode, but not at CPL 3, SS may be null.
        if not regs.in_64bit_mode or cpl == 3 or selector & 3 != cpl:
            raise GuestFault(GP, 0, "MOV SS of a null selector")
        regs.ss = Segment(selector, 0, 0, 1 << 16 | cpl << 5)
    else:
        descriptor = read_descriptor(processor, selector, GP, 0)
        value = descriptor.value
        is_writable_data = bit(value, 44) and not bit(value, 43) and bit(value, 41)
        if not is_writable_data or selector & 3 != cpl or descriptor.dpl != cpl:
            raise GuestFault(GP, error, f"selector {selector:#x} names no stack for CPL {cpl}")
        if not bit(value, 47):
            raise GuestFault(SS, error, f"the segment {selector:#x} is not present")
        mark_accessed(processor, descriptor, delivery=False)
        regs.ss = descriptor.segment(selector)
    regs.interruptibility_state |= Interruptibility.MOV_SS


def swapgs(processor: Processor, instruction: Instruction) -> None:
    """SWAPGS."""
    regs = processor.regs
    if not regs.in_64bit_mode:
        raise GuestFault(UD, None, "SWAPGS outside 64-bit mode")
    _privileged(processor, instruction)
    kernel = regs.msrs.get(Msr.IA32_KERNEL_GS_BASE, 0)
    regs.msrs[Msr.IA32_KERNEL_GS_BASE] = regs.gs.base
    regs.gs = regs.gs._replace(base=kernel)


def _privileged(processor: Processor, instruction: Instruction) -> None:
    if processor.regs.cpl:
        raise GuestFault(GP, 0, f"{instruction.name} at CPL {processor.regs.cpl}")


# Translation caches.


def invlpg(processor: Processor, instruction: Instruction) -> None:
    """INVLPG: an address that is not canonical makes it a no-operation."""
    linear = operand_address(processor.regs, instruction.operands)
    if is_linear_address(processor, linear):
        processor.mmu.invlpg(processor.context, linear)


def invpcid(processor: Processor, instruction: Instruction) -> None:
    """INVPCID."""
    regs = processor.regs
    kind = register(regs, instruction.operands["register"])
    if not regs.in_64bit_mode:
        kind &= MASK32
    descriptor = read(processor, operand_address(regs, instruction.operands), 16)
    low = int.from_bytes(descriptor[:8], "little")
    linear = int.from_bytes(descriptor[8:], "little")
    if kind > _INVPCID_LAST or low >> 12:
        raise GuestFault(GP, 0, "INVPCID: bad type or reserved bits in the descriptor")
    by_pcid = kind in (_INVPCID_ADDRESS, _INVPCID_CONTEXT)
    if by_pcid and low and not regs.cr4 & Cr4.PCIDE:
        raise GuestFault(GP, 0, "INVPCID of a PCID with CR4.PCIDE 0")
    if kind == _INVPCID_ADDRESS and not is_linear_address(processor, linear):
        raise GuestFault(GP, 0, "INVPCID of an address that is not canonical")
    processor.mmu.invpcid(processor.context, kind, low, linear)


# Waiting.


def hlt(processor: Processor, instruction: Instruction) -> None:
    """HLT: the processor waits in the HLT state for an event."""
    processor.regs.activity_state = Activity.HLT


def monitor(processor: Processor, instruction: Instruction) -> None:
    """MONITOR: arms monitoring of the line at DS:RAX."""
    regs = processor.regs
    if regs.rcx & MASK32:
        raise GuestFault(GP, 0, "MONITOR with extensions in ECX")
    access(processor, regs.rax, 1, Access.LOAD)
    processor.monitor_armed = True


def umonitor(processor: Processor, instruction: Instruction) -> None:
    """UMONITOR: arms monitoring of the line at the source address."""
    if not processor.shape.supports(Proc2.ENABLE_USER_WAIT_AND_PAUSE):
        raise GuestFault(UD, None, f"{processor.shape.name} has no UMONITOR")
    ENABLED_BY["wait"](processor, instruction)
    access(processor, register(processor.regs, instruction.operands["source"]), 1, Access.LOAD)
    processor.monitor_armed = True


def mwait(processor: Processor, instruction: Instruction) -> None:
    """MWAIT: the wait ends at once, as the manual lets it for any reason."""
    regs = processor.regs
    if regs.rcx & MASK32 & ~1:
        raise GuestFault(GP, 0, "MWAIT with extensions in ECX that do not exist")
    processor.monitor_armed = False


def timed_wait(processor: Processor, instruction: Instruction) -> None:
    """TPAUSE and UMWAIT: the wait ends at once, not for the operating system's limit: CF is 0."""
    regs = processor.regs
    if register(regs, instruction.operands["source"]) & MASK32 & ~1:
        raise GuestFault(GP, 0, f"{instruction.name}: reserved bits of the source are set")
    regs.rflags &= ~_STATUS
    if instruction.name == "umwait":
        processor.monitor_armed = False


# Numbers.


def _mixed(value: int) -> int:
    """Return 64 bits that look random and depend on `value` alone (the finaliser of splitmix64)."""
    value = value + 0x9E37_79B9_7F4A_7C15 & MASK64
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & MASK64
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & MASK64
    return value ^ value >> 31


def random_number(processor: Processor, instruction: Instruction) -> None:
    """RDRAND and RDSEED: a number made of the guest's time alone, so runs repeat; CF is 1."""
    regs, operands = processor.regs, instruction.operands
    value = _mixed(processor.tsc << 1 | (instruction.name == "rdseed"))
    put_sized(processor, operands["destination"], value, operands.get("operand_size", 4))
    regs.rflags = regs.rflags & ~_STATUS | Rflags.CF


def rdpmc(processor: Processor, instruction: Instruction) -> None:
    """RDPMC: the counters exist and stand at 0."""
    index = processor.regs.rcx & MASK32
    last = _FIXED_COUNTERS if index & _FIXED else _COUNTERS
    if index & ~_FIXED >= last:
        raise GuestFault(GP, 0, f"there is no performance counter {index:#x}")
    set_edx_eax(processor, 0)


def rdpid(processor: Processor, instruction: Instruction) -> None:
    """RDPID."""
    ENABLED_BY["rdtscp"](processor, instruction)
    put(processor, instruction, processor.regs.msrs.get(Msr.IA32_TSC_AUX, 0))


def xgetbv(processor: Processor, instruction: Instruction) -> None:
    """XGETBV of XCR0 (ECX = 0) or of the components in use (ECX = 1)."""
    regs = processor.regs
    if not regs.cr4 & Cr4.OSXSAVE:
        raise GuestFault(UD, None, "XGETBV with CR4.OSXSAVE 0")
    if regs.rcx & MASK32 > 1:
        raise GuestFault(GP, 0, f"there is no XCR{regs.rcx & MASK32}")
    set_edx_eax(processor, regs.xcr0)


# Extended state, keys, enclaves.


def _xsave_area(processor: Processor, instruction: Instruction) -> int:
    """Return the linear address of an XSAVE area, after the faults of reaching it."""
    regs = processor.regs
    if regs.cr0 & Cr0.TS:
        raise GuestFault(NM, None, f"{instruction.name} with CR0.TS 1")
    linear = operand_address(regs, instruction.operands)
    if linear & 63:
        raise GuestFault(GP, 0, f"{instruction.name}: the area is not aligned to 64 bytes")
    return linear


def xsaves(processor: Processor, instruction: Instruction) -> None:
    """XSAVES: every component is in its initial configuration, so the header is all it writes."""
    regs = processor.regs
    linear = _xsave_area(processor, instruction)
    asked = (regs.rdx & MASK32) << 32 | regs.rax & MASK32
    enabled = asked & (regs.xcr0 | regs.msrs.get(Msr.IA32_XSS, 0))
    header = bytes(8) + (_COMPACTED | enabled).to_bytes(8, "little")
    write(processor, linear + _XSAVE_HEADER, header)


def xrstors(processor: Processor, instruction: Instruction) -> None:
    """XRSTORS: checks the header; the components stay as they are."""
    regs = processor.regs
    linear = _xsave_area(processor, instruction)
    header = read(processor, linear + _XSAVE_HEADER, 64)
    present = int.from_bytes(header[:8], "little")
    layout = int.from_bytes(header[8:16], "little")
    allowed = regs.xcr0 | regs.msrs.get(Msr.IA32_XSS, 0)
    if not layout & _COMPACTED or layout & ~_COMPACTED & ~allowed or present & ~layout:
        raise GuestFault(GP, 0, "XRSTORS: the header is not that of a compacted area")
    if any(header[16:]):
        raise GuestFault(GP, 0, "XRSTORS: reserved bytes of the header are not 0")


def loadiwkey(processor: Processor, instruction: Instruction) -> None:
    """LOADIWKEY: the key is in no state that software can read; the status flags become 0."""
    regs = processor.regs
    if regs.cr0 & Cr0.TS:
        raise GuestFault(NM, None, "LOADIWKEY with CR0.TS 1")
    control = regs.rax & MASK32
    if control & ~0x1F or control >> 1 & 0xF > 1:
        raise GuestFault(GP, 0, "LOADIWKEY: reserved bits of EAX are set")
    regs.rflags &= ~_STATUS


def pbndkb(processor: Processor, instruction: Instruction) -> None:
    """PBNDKB: #UD unless enabled; no platform here binds keys, so leaf and operands fault."""
    ENABLED_BY["pbndkb"](processor, instruction)
    _privileged(processor, instruction)
    raise GuestFault(GP, 0, "PBNDKB: the platform binds no keys")


def pconfig(processor: Processor, instruction: Instruction) -> None:
    """PCONFIG: no leaf is available on the platform."""
    raise GuestFault(GP, 0, f"PCONFIG leaf {processor.regs.rax & MASK32:#x} is not available")


def enclave(processor: Processor, instruction: Instruction) -> None:
    """ENCLS and ENCLV: enclaves are not modelled.

    Raises
    ------
    NotSupported
        Always: the VMM must intercept the leaf.
    """
    raise NotSupported(
        f"{instruction.name} leaf {processor.regs.rax & MASK32:#x}: the machine has no enclave "
        f"memory; set its bit in the {instruction.name}-exiting bitmap"
    )


#: What each instruction does when it does not exit.
EFFECTS = {
    **dict.fromkeys(("nop", "pause", "wbinvd", "wbnoinvd"), nothing),
    **dict.fromkeys(("sgdt", "sidt"), store_table),
    **dict.fromkeys(("lgdt", "lidt"), load_table),
    **dict.fromkeys(("sldt", "str"), store_selector),
    "lldt": lldt,
    "ltr": ltr,
    "mov_to_ss": mov_to_ss,
    "swapgs": swapgs,
    "invlpg": invlpg,
    "invpcid": invpcid,
    "hlt": hlt,
    "monitor": monitor,
    "umonitor": umonitor,
    "mwait": mwait,
    **dict.fromkeys(("tpause", "umwait"), timed_wait),
    **dict.fromkeys(("rdrand", "rdseed"), random_number),
    "rdpmc": rdpmc,
    "rdpid": rdpid,
    "xgetbv": xgetbv,
    "xsaves": xsaves,
    "xrstors": xrstors,
    "loadiwkey": loadiwkey,
    "pbndkb": pbndkb,
    "pconfig": pconfig,
    **dict.fromkeys(("encls", "enclv"), enclave),
}
