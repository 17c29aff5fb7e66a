"""Lesson 04: the first launch."""

from collections.abc import Callable

import vtx
from vtx import Field


def set_bits(field: Field, mask: int) -> Callable[[vtx.Cpu], object]:
    """Return a repair that sets bits of a field."""
    return lambda cpu: cpu.vmwrite(field, cpu.vmread(field) | mask)


def clear_bits(field: Field, mask: int) -> Callable[[vtx.Cpu], object]:
    """Return a repair that clears bits of a field."""
    return lambda cpu: cpu.vmwrite(field, cpu.vmread(field) & ~mask)


def must_be_1(cpu: vtx.Cpu) -> None:
    """Add what the CPU demands of the pin-based controls."""
    word = cpu.vmread(Field.PIN_BASED_CONTROLS)
    cpu.vmwrite(Field.PIN_BASED_CONTROLS, word | cpu.shape.allowed0("pin"))


REPAIRS: dict[str, Callable[[vtx.Cpu], object]] = {
    "ctl.exec.pin_reserved.must_be_1": must_be_1,
    "ctl.exec.vpid_nonzero": lambda cpu: cpu.vmwrite(Field.VPID, 1),
    "ctl.exec.eptp.walk_length": lambda cpu: cpu.vmwrite(Field.EPT_POINTER, cpu.ept.eptp),
    "host.cr4_fixed.must_be_1": set_bits(Field.HOST_CR4, 1 << 13),
    "host.tr.selector_rpl_ti": clear_bits(Field.HOST_TR_SELECTOR, 7),
    "guest.rflags.reserved_1": set_bits(Field.GUEST_RFLAGS, 1 << 1),
    "guest.cr4_fixed.must_be_1": set_bits(Field.GUEST_CR4, 1 << 13),
    "guest.efer.lma": set_bits(Field.GUEST_IA32_EFER, 1 << 10),
    "guest.tr.type.ia32e": set_bits(Field.GUEST_TR_ACCESS_RIGHTS, 1 << 1),
    "guest.cs.db_l": clear_bits(Field.GUEST_CS_ACCESS_RIGHTS, 1 << 14),
    "guest.gdtr.limit_high": clear_bits(Field.GUEST_GDTR_LIMIT, 0xFFFF_0000),
    "guest.link_pointer.revision": set_bits(Field.VMCS_LINK_POINTER, (1 << 64) - 1),
}


def first_launch(cpu: vtx.Cpu, program: object) -> list[str]:
    """Launch the guest, repairing the VMCS until it runs; return the rules that were broken."""
    broken: list[str] = []
    while True:
        try:
            exit = cpu.vmlaunch(program)
        except vtx.VMfailValid as failure:
            check = failure.check
        else:
            if not exit.entry_failure:
                return broken
            check = exit.check
        assert check is not None
        broken.append(check)
        REPAIRS[check](cpu)
