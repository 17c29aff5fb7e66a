"""The guest that times its own VM exits, and what the times come to.

32-bit protected mode, no paging, interrupts off. Between two RDTSCs stands one instruction that
causes a VM exit, or none at all: that gives what the timing itself takes, which is subtracted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from vtx.errors import VtxError
from vtx.host.kvm import ExitKind, KvmExit

__all__ = ["KINDS", "MEMORY_BYTES", "Figure", "Guest", "Kind", "measure", "program"]

CODE, RESULTS, TOUCHED = 0x1000, 0x1_0000, 0x10_0000
MEMORY_BYTES = 32 << 20
#: Far enough apart that mapping one page does not map the next.
_STRIDE = 0x1_0000
_PAGES = (MEMORY_BYTES - TOUCHED) // _STRIDE
_MOST = (TOUCHED - RESULTS) // 4
#: Rounds before the first that counts.
_WARM = 8
USER_PORT, DONE_PORT = 0xF4, 0xF5


class Guest(Protocol):
    """What the measurement needs of :class:`vtx.host.kvm.Kvm`."""

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory."""

    def read(self, address: int, size: int) -> bytes:
        """Read guest memory."""

    def start(self, address: int) -> None:
        """Let the processor begin at an address."""

    def run(self) -> KvmExit:
        """Run until KVM returns to user space."""


@dataclass(frozen=True)
class Kind:
    """One kind of VM exit: its name, what it is, the code that causes it, most repetitions."""

    name: str
    what: str
    code: bytes
    most: int = _MOST - _WARM


KINDS = (
    Kind("nothing", "the two RDTSCs alone; subtracted from the others", b""),
    Kind(
        "cpuid",
        "CPUID, answered by KVM in the kernel",
        b"\x31\xc0\x31\xc9\x0f\xa2",  # xor eax, eax; xor ecx, ecx; cpuid
    ),
    Kind(
        "io_kernel",
        "OUT to port 21H, the interrupt controller in the kernel",
        b"\xb0\xff\xe6\x21",  # mov al, 0FFH; out 21H, al
    ),
    Kind(
        "io_userspace",
        "OUT to a port of no device: KVM returns to this Python program and is called again",
        b"\xe6\xf4",  # out 0F4H, al
    ),
    Kind(
        "memory",
        "first write to a page of guest memory that the host has: EPT violation (nested page "
        "fault), KVM maps the page",
        b"\x88\x03\x81\xc3" + struct.pack("<I", _STRIDE),  # mov [ebx], al; add ebx, stride
        _PAGES - _WARM,
    ),
    Kind(
        "mmio_userspace",
        "write where no memory is: KVM emulates it and returns to this Python program",
        b"\xa2\x00\x00\x00\xd0",  # mov [0D0000000H], al
    ),
)


@dataclass(frozen=True)
class Figure:
    """Times of one kind of VM exit, in ticks of the TSC; the timing itself is subtracted.

    Parameters
    ----------
    kind : Kind
        Which.
    repetitions : int
        How often.
    least, middle, p90, most : int
        Of the repetitions.
    """

    kind: Kind
    repetitions: int
    least: int
    middle: int
    p90: int
    most: int


def program(kind: Kind, rounds: int) -> bytes:
    """Return the machine code that times one kind of exit `rounds` times."""
    head = b"\xbe" + struct.pack("<I", RESULTS)  # mov esi, results
    head += b"\xbf" + struct.pack("<I", rounds)  # mov edi, rounds
    head += b"\xbb" + struct.pack("<I", TOUCHED)  # mov ebx, first page
    before = b"\x0f\xae\xe8\x0f\x31\x89\xc5"  # lfence; rdtsc; mov ebp, eax
    after = b"\x0f\xae\xe8\x0f\x31\x29\xe8"  # lfence; rdtsc; sub eax, ebp
    after += b"\x89\x06\x83\xc6\x04\x4f"  # mov [esi], eax; add esi, 4; dec edi
    body = before + kind.code + after
    back = b"\x75" + struct.pack("<b", -len(body) - 2)  # jnz before
    return head + body + back + bytes((0xE6, DONE_PORT, 0xF4))  # out done, al; hlt


def measure(guest: Guest, repetitions: int) -> dict[str, Figure]:
    """Time every kind of exit.

    Parameters
    ----------
    guest : Guest
        A guest of :data:`MEMORY_BYTES`.
    repetitions : int
        Of each; of those kinds that run out of fresh pages, fewer.

    Returns
    -------
    dict
        By the name of the kind; ``"nothing"`` is as timed, the others are what is above it.

    Raises
    ------
    VtxError
        The guest does not do what it should.
    """
    figures: dict[str, Figure] = {}
    overhead = 0
    for kind in KINDS:
        rounds = min(repetitions, kind.most) + _WARM
        times = sorted(max(0, time - overhead) for time in _times(guest, kind, rounds))
        middle = round(median(times))
        p90 = times[(len(times) - 1) * 9 // 10]
        figures[kind.name] = Figure(kind, len(times), times[0], middle, p90, times[-1])
        if not kind.code:
            overhead = middle
    return figures


def _times(guest: Guest, kind: Kind, rounds: int) -> tuple[int, ...]:
    guest.write(CODE, program(kind, rounds))
    guest.start(CODE)
    for _ in range(rounds + 1):
        exit = guest.run()
        if exit == (ExitKind.IO, DONE_PORT):
            return struct.unpack(f"<{rounds}I", guest.read(RESULTS, 4 * rounds))[_WARM:]
        if exit.kind != ExitKind.MMIO and exit != (ExitKind.IO, USER_PORT):
            raise VtxError(f"the guest that times {kind.name} ended with KVM exit {exit.kind}")
    raise VtxError(f"the guest that times {kind.name} does not end")
