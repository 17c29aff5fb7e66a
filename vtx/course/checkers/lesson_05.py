"""CPUID: answer for the processor, and step over the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.facts.exits import ExitReason

if TYPE_CHECKING:
    from vtx.course.lab import Lab

__all__ = ["check"]

_VENDOR = b"TeachingVM!!"
_HYPERVISOR = 1 << 31
_ANSWER = ("rax", "rbx", "rcx", "rdx")


def check(lab: Lab) -> None:
    """Run guests that ask for the vendor, the features and a leaf of the VMM's own."""
    handle = lab.function("handle", "the handler: handle(cpu, exit)")
    leaves = [0, 1, 0x4000_0000, lab.random.choice([2, 4, 7, 0xB])]
    lab.random.shuffle(leaves)
    steps = "\n".join(f"cpuid leaf={leaf:#x} rbx=0xdead rcx=0 rdx=0xbeef" for leaf in leaves)
    watched = lab.run(lab.guest(), f"{steps}\nhlt", handle)
    lab.equal(
        watched.count(ExitReason.CPUID),
        len(leaves),
        "every CPUID of the guest exits once",
        "cpu.skip(exit) moves RIP behind the instruction",
    )
    answers = dict(zip(leaves, watched.registers, strict=False))
    vendor = _text(answers[0x4000_0000])
    lab.equal(
        vendor,
        _VENDOR,
        "leaf 0x40000000 names the hypervisor TeachingVM!! in EBX, ECX, EDX",
        "four characters a register, the first in the low byte: int.from_bytes(b'Teac', 'little')",
    )
    lab.expect(
        answers[0x4000_0000]["rax"] & 0xFFFF_FFFF >= 0x4000_0000,
        "EAX of leaf 0x40000000 is the highest leaf of the hypervisor",
        "0x40000000 if there is no other",
    )
    lab.expect(
        bool(answers[1]["rcx"] & _HYPERVISOR),
        "leaf 1 sets ECX[31], by which a guest knows that it has a hypervisor",
        "cpu.regs.rcx |= 1 << 31",
    )
    others = {
        leaf: [name for name in _ANSWER if answers[leaf][name]]
        for leaf in leaves
        if leaf not in (1, 0x4000_0000)
    }
    for leaf, names in others.items():
        lab.expect(
            not names,
            "a leaf that the hypervisor does not know is answered with zeros",
            f"leaf {leaf:#x} leaves something in {', '.join(names).upper()}: CPUID writes all four",
        )
    lab.expect(
        all(answer[name] >> 32 == 0 for answer in answers.values() for name in _ANSWER),
        "CPUID clears the upper halves of RAX, RBX, RCX and RDX",
        "the registers hold 64 bits; keep answers below 1 << 32",
    )


def _text(answer: dict[str, int]) -> bytes:
    """Return EBX, ECX and EDX as the characters of a vendor."""
    return b"".join(
        (answer[name] & 0xFFFF_FFFF).to_bytes(4, "little") for name in ("rbx", "rcx", "rdx")
    )
