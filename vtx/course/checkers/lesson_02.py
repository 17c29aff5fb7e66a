"""The VMCS: encodings, a region by hand, and two guests whose launch states differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.course.lab import StudentError
from vtx.facts.exits import ExitReason
from vtx.facts.fields import FIELDS, Area, Field, Width

if TYPE_CHECKING:
    from vtx.course.lab import Lab
    from vtx.cpu import Cpu

__all__ = ["check"]

_PARTS = ("width", "area", "index", "high")
_BITS = ("14:13", "11:10", "9:1", "0")
_ROUNDS = 10


def check(lab: Lab) -> None:
    """Check encodings, then the fields of two VMCSs, then entries in random order."""
    _encodings(lab)
    profile = lab.random.choice(["haswell", "skylake_sp", "ice_lake_sp"])
    cpu = lab.cpu(profile)
    pages = [_prepared(lab, cpu) for _ in range(2)]
    _turns(lab, cpu, pages)


def _encodings(lab: Lab) -> None:
    """Ask for the parts of encodings, one of them of an upper half."""
    split = lab.function("split", "split(encoding) returns width, area, index, high")
    wide = [field for field, info in FIELDS.items() if info.width is Width.W64]
    encodings = [int(field) for field in lab.random.sample(list(FIELDS), 4)]
    encodings.append(lab.random.choice(wide) | 1)
    for encoding in encodings:
        parts = split(encoding)
        if not isinstance(parts, tuple) or len(parts) != len(_PARTS):
            lab.expect(False, "split returns four numbers", "return (width, area, index, high)")
            return
        wanted = (encoding >> 13 & 3, encoding >> 10 & 3, encoding >> 1 & 0x1FF, encoding & 1)
        for name, place, got, right in zip(_PARTS, _BITS, parts, wanted, strict=True):
            if got != right:
                hint = f"bits {place} of the encoding, shifted down and masked"
                lab.equal(got, right, f"the {name} of encoding {encoding:#x} is right", hint)
                return
    lab.expect(True, "encodings are taken apart: width, area, index, high")


def _prepared(lab: Lab, cpu: Cpu) -> int:
    """Let the student set up a page that holds something old; return it."""
    from vtx.machine.vmcs import Vmcs

    setup = lab.function("setup", "setup(cpu, page, fields) makes a VMCS of the page")
    content = Vmcs.for_64bit_guest(cpu.shape).update(
        ept_pointer=cpu.ept.eptp, tsc_offset=lab.random.randrange(1 << 64)
    )
    fields = {
        field: value
        for field, value in content.fields()
        if value and FIELDS[field].area is not Area.READ_ONLY
    }
    page = cpu.machine.frames.allocate()
    cpu.memory.write_u32(page, cpu.shape.revision_id + lab.random.randrange(1, 100))
    setup(cpu, page, fields)
    if cpu.current_vmcs_pointer != page:
        raise StudentError(
            "after setup the VMCS in the page is not current",
            "VMCLEAR makes no VMCS current; VMPTRLD does",
        )
    wrong = [field for field, value in fields.items() if cpu.vmcs and cpu.vmcs[field] != value]
    lab.expect(
        not wrong,
        "all fields have the values that were given",
        f"{wrong[0].name} has not: VMWRITE every field of the dictionary" if wrong else "",
    )
    return page


def _turns(lab: Lab, cpu: Cpu, pages: list[int]) -> None:
    """Enter two guests in random order, with VMCLEARs in between."""
    from vtx.hypervisor.trace import program

    enter = lab.function("enter", "enter(cpu, page) enters a guest and returns its exit")
    park = lab.function("park", "park(cpu, page) makes the VMCS free for another processor")
    cpu.machine.guest_image(ept=True)
    cpu.ept.map(0, size="1G")
    cpu.set_program(program("cpuid\n" * _ROUNDS + "hlt"))
    order = [pages[0], pages[1], *lab.random.choices(pages, k=_ROUNDS - 2)]
    parked_after = {3, 5, lab.random.randrange(6, _ROUNDS - 1)}
    seen = dict.fromkeys(pages, 0)
    for turn, page in enumerate(order):
        exit = enter(cpu, page)
        if exit is None or cpu.current_vmcs_pointer != page:
            lab.expect(
                False,
                "enter enters the guest of the page it is given, and returns the exit",
                "VMLAUNCH and VMRESUME take no address: VMPTRLD makes the VMCS current first",
            )
            return
        if exit.information.reason is not ExitReason.CPUID:
            lab.expect(False, "the guest runs to its CPUID", exit.explain())
            return
        seen[page] += 1
        cpu.vmwrite(Field.GUEST_RIP, exit.rip + exit.instruction_length)
        if turn in parked_after:
            park(cpu, page)
            lab.expect(
                page not in cpu.active_vmcss,
                "after park the VMCS is not active on this processor",
                "its data may still be inside the processor: VMCLEAR writes them to memory",
            )
    lab.expect(True, "both guests are entered in turn, after VMCLEAR, too")
