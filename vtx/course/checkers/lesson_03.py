"""Control words: on CPUs that exist, and on some that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from vtx.course.lab import StudentError
from vtx.errors import GuestFault
from vtx.facts.msrs import Msr
from vtx.machine.shape import Shape

if TYPE_CHECKING:
    from vtx.course.lab import Lab

__all__ = ["check"]

_MSRS = {"pin": "PINBASED", "proc1": "PROCBASED", "exit1": "EXIT", "entry": "ENTRY"}
_TRUE_CONTROLS = 1 << 55
_GENERAL_PROTECTION = 13
_PROFILES = ("prescott_p4_672", "penryn_core2", "nehalem", "skylake_sp", "ice_lake_sp")


class _Cpu(NamedTuple):
    """What a CPU reports: the MSRs that RDMSR does not fault for."""

    name: str
    msrs: dict[int, int]

    def rdmsr(self, address: int) -> int:
        """RDMSR of a capability MSR."""
        if address not in self.msrs:
            raise GuestFault(
                _GENERAL_PROTECTION,
                0,
                f"RDMSR of {address:#x}, which {self.name} does not have: IA32_VMX_BASIC[55] tells "
                "whether there are TRUE MSRs, bit 63 of 0x482 whether there is 0x48b",
            )
        return self.msrs[address]

    def masks(self, group: str) -> tuple[int, int]:
        """Return which bits of a word must be 1 and which may be."""
        if group == "proc2":
            value = self.msrs.get(Msr.IA32_VMX_PROCBASED_CTLS2, 0)
        else:
            kind = "TRUE_" if self.msrs[Msr.IA32_VMX_BASIC] & _TRUE_CONTROLS else ""
            value = self.msrs[Msr[f"IA32_VMX_{kind}{_MSRS[group]}_CTLS"]]
        return value & 0xFFFF_FFFF, value >> 32


def check(lab: Lab) -> None:
    """Ask for words on an old, a new and an invented CPU, in random order."""
    control_word = lab.function("control_word", "control_word(rdmsr, group, required, optional)")
    cpus = [_real(name) for name in _PROFILES] + [_invented(lab, true) for true in (True, False)]
    lab.random.shuffle(cpus)
    for cpu in cpus:
        for group in (*_MSRS, "proc2"):
            if not _word_is_right(lab, control_word, cpu, group):
                return
    lab.expect(True, "the words have what is required, what can be had, and what must be")
    for cpu in cpus:
        if not _refuses(lab, control_word, cpu):
            return
    lab.expect(True, "what a CPU does not allow is refused if it is required")


def _real(profile: str) -> _Cpu:
    return _Cpu(profile, {int(msr): value for msr, value in Shape.of(profile).msrs.items()})


def _invented(lab: Lab, true: bool) -> _Cpu:
    """Return a CPU with random words; the old MSRs of one with TRUE MSRs demand more."""
    msrs = {int(Msr.IA32_VMX_BASIC): _TRUE_CONTROLS if true else 0}
    for name in _MSRS.values():
        must, may = lab.random.getrandbits(32), 0xFFFF_FFFF
        needless = lab.random.getrandbits(32)
        may &= ~(lab.random.getrandbits(32) & ~must & ~needless)
        if name == "PROCBASED":
            may |= 1 << 31
        msrs[Msr[f"IA32_VMX_{name}_CTLS"]] = may << 32 | must | needless
        if true:
            msrs[Msr[f"IA32_VMX_TRUE_{name}_CTLS"]] = may << 32 | must
    msrs[Msr.IA32_VMX_PROCBASED_CTLS2] = lab.random.getrandbits(32) << 32
    return _Cpu("a CPU with TRUE MSRs" if true else "a CPU without TRUE MSRs", msrs)


def _word_is_right(lab: Lab, control_word: Callable[..., Any], cpu: _Cpu, group: str) -> bool:
    """Compare one word, and say which of the four steps is missing."""
    must, may = cpu.masks(group)
    required = lab.random.getrandbits(32) & may
    optional = lab.random.getrandbits(32)
    try:
        word = control_word(cpu.rdmsr, group, required, optional)
    except StudentError as error:
        if isinstance(error.__cause__, ValueError):
            raise StudentError(
                f"{error.message}, but {cpu.name} allows all that is required of {group}",
                "what may be 1 is the upper half of the MSR (63:32), what must be 1 the lower one",
            ) from error
        raise
    wanted = required | optional & may | must
    if word == wanted:
        return True
    what = f"the word for {group} on {cpu.name} is right"
    if not isinstance(word, int):
        return lab.expect(False, what, f"control_word returned {word!r}, not a number")
    # What is wrong on a TRUE-capable CPU may be right by its old MSRs.
    for bits, hint in (
        (word & ~may, "bits that may not be 1 (upper half of the MSR) are set: drop them"),
        (must & ~word, "bits that must be 1 (lower half of the MSR) are missing: add them"),
        (required & ~word, "required bits are missing"),
        (optional & may & ~word, "optional bits that the CPU has are missing"),
        (word & ~wanted, "bits are set that nobody asked for: the old MSRs report the default1 "
         "class as must-be-1 where the TRUE ones do not, and allowed-1 says may, not must"),
    ):  # fmt: skip
        if bits:
            return lab.equal(word, wanted, what, f"{bits:#x}: {hint}")
    return True


def _refuses(lab: Lab, control_word: Callable[..., Any], cpu: _Cpu) -> bool:
    """Require something that the CPU does not have."""
    groups = [group for group in (*_MSRS, "proc2") if cpu.masks(group)[1] != 0xFFFF_FFFF]
    if not groups:
        return True
    group = lab.random.choice(groups)
    _, may = cpu.masks(group)
    missing = lab.random.choice([bit for bit in range(32) if not may >> bit & 1])
    try:
        word = control_word(cpu.rdmsr, group, 1 << missing, 0)
    except StudentError as error:
        if isinstance(error.__cause__, ValueError):
            return True
        raise
    return lab.expect(
        False,
        f"ValueError is raised for {group} on {cpu.name}, which does not allow bit {missing}",
        f"the word {word:#x} was returned; a VMM that needs the control cannot run without it",
    )
