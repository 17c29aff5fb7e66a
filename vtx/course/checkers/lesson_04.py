"""The first launch: faults in a VMCS, each of which one repair mends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vtx.facts.fields import FIELDS, Area, Field
from vtx.rules.check import CHECKS

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu
    from vtx.machine.vmcs import Vmcs

__all__ = ["check"]


class _Fault(NamedTuple):
    """What was done to a field: bits cleared, bits set."""

    field: Field
    clear: int = 0
    set: int = 0


_ALL = (1 << 64) - 1
_VMXE = 1 << 13
_FAULTS = {
    "ctl.exec.pin_reserved.must_be_1": _Fault(Field.PIN_BASED_CONTROLS, clear=0x16),
    "ctl.exec.vpid_nonzero": _Fault(Field.VPID, clear=0xFFFF),
    "ctl.exec.eptp.walk_length": _Fault(Field.EPT_POINTER, clear=0xFFF),
    "host.cr4_fixed.must_be_1": _Fault(Field.HOST_CR4, clear=_VMXE),
    "host.tr.selector_rpl_ti": _Fault(Field.HOST_TR_SELECTOR, set=3),
    "guest.rflags.reserved_1": _Fault(Field.GUEST_RFLAGS, clear=2),
    "guest.cr4_fixed.must_be_1": _Fault(Field.GUEST_CR4, clear=_VMXE),
    "guest.efer.lma": _Fault(Field.GUEST_IA32_EFER, clear=1 << 10),
    "guest.tr.type.ia32e": _Fault(Field.GUEST_TR_ACCESS_RIGHTS, clear=2),
    "guest.cs.db_l": _Fault(Field.GUEST_CS_ACCESS_RIGHTS, set=1 << 14),
    "guest.gdtr.limit_high": _Fault(Field.GUEST_GDTR_LIMIT, set=0x7_0000),
    "guest.link_pointer.revision": _Fault(Field.VMCS_LINK_POINTER, clear=_ALL),
}
#: RFLAGS.CF, PF, AF, ZF, SF and OF.
_STATUS_FLAGS = (1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11)
#: Their repairs may end in values other than before.
_FREE = {Field.VPID}


def check(lab: Lab) -> None:
    """Launch guests with each fault once, two at a time, in random pairs."""
    first_launch = lab.function("first_launch", "first_launch(cpu, program)")
    from vtx.hypervisor.trace import program

    names = list(_FAULTS)
    lab.random.shuffle(names)
    for at in range(0, len(names), 2):
        faults = names[at : at + 2]
        cpu = lab.cpu()
        right = _content(lab, cpu)
        for name in faults:
            fault = _FAULTS[name]
            right_value = right[fault.field]
            cpu.vmwrite(fault.field, right_value & ~fault.clear | fault.set)
        broken = first_launch(cpu, program("cpuid\nhlt"))
        if not _mended(lab, cpu, right, faults) or not lab.equal(
            sorted(broken) if isinstance(broken, list) else broken,
            sorted(faults),
            "the list names the rules that were broken",
            "failure.check after VMfailValid, exit.check after exit reason 33; each once",
        ):
            return


def _content(lab: Lab, cpu: Cpu) -> Vmcs:
    """Load a VMCS that is right, and has something of its own in it; return that."""
    from vtx.machine.vmcs import Vmcs

    right = Vmcs.for_64bit_guest(cpu.shape).update(
        vpid=lab.random.randrange(2, 1 << 16),
        ept_pointer=cpu.ept.eptp,
        tsc_offset=lab.random.getrandbits(64),
    )
    right[Field.GUEST_RSP] -= lab.random.randrange(16, 2048, 16)
    right[Field.GUEST_RFLAGS] |= sum(lab.random.sample(_STATUS_FLAGS, 3))
    cpu.load(right)
    cpu.ept.map(0, size="1G")
    return right


def _mended(lab: Lab, cpu: Cpu, right: Vmcs, faults: list[str]) -> bool:
    """Tell whether the guest was entered, with all fields as they should be."""
    assert cpu.vmcs is not None
    if not cpu.vmcs.launched:
        name = next((name for name in faults if not _is_mended(cpu, right, name)), faults[-1])
        rule = CHECKS[name].rule
        return lab.expect(
            False,
            "the guest runs in the end",
            f"after your repairs the VMCS still breaks a rule, {name}: {rule} There may be more "
            "than one fault: try again after each repair, with VMLAUNCH",
        )
    for field, value in right.fields():
        if FIELDS[field].area is Area.READ_ONLY or field in _FREE or cpu.vmcs[field] == value:
            continue
        return lab.equal(
            cpu.vmcs[field],
            value,
            f"{FIELDS[field].name} is as it was before the fault was made",
            "change the bits that the rule is about, and leave the others: read, modify, write",
        )
    return lab.expect(True, "the guest runs, and nothing else of the VMCS has changed")


def _is_mended(cpu: Cpu, right: Vmcs, name: str) -> bool:
    field = _FAULTS[name].field
    return cpu.vmread(field) == right[field] or (field in _FREE and bool(cpu.vmread(field)))
