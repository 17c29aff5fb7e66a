"""Lines per second of recorded VM exits, from a plain file to the table."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vtx.bench.registry import Result, benchmark
from vtx.bench.timing import best, seconds
from vtx.hypervisor.importers.analysis import Views, read_report

__all__ = ["exit_lines", "trace_lines"]

_LINES, _QUICK_LINES = 400_000, 60_000
_REASONS = ("EPT_VIOLATION", "MSR_WRITE", "IO_INSTRUCTION", "HLT", "EXTERNAL_INTERRUPT", "CPUID")
_LINE = re.compile(r"-(\d+)\s+\[\d+\]\s+\S+\s+(\d+\.\d+): kvm_(exit|entry): (.*)")
_REASON = re.compile(r"reason (\S+)")


def trace_lines(seed: int = 5) -> Iterator[str]:
    """Yield what ftrace prints on a current kernel for four busy vCPUs, without end."""
    chance = random.Random(seed)  # noqa: S311 - figures, not secrets
    time_us = 0
    while True:
        vcpu, reason = chance.randrange(4), chance.choice(_REASONS)
        rip = 0xFFFFFFFF81000000 + chance.randrange(1000) * 16
        time_us += chance.randrange(1, 20)
        head = f" qemu-system-x86-{5000 + vcpu}    [{vcpu:03d}] d..1. {{}}: "
        now = head.format(f"{time_us / 1e6:.6f}")
        yield (
            f"{now}kvm_exit: vcpu {vcpu} reason {reason} rip 0x{rip:x} "
            f"info1 0x{chance.randrange(4096):016x} info2 0x{0:016x} "
            f"intr_info 0x{0x800000EC:08x} error_code 0x{0:08x}\n"
        )
        if reason == "EPT_VIOLATION":
            yield (
                f"{now}kvm_page_fault: vcpu {vcpu} rip 0x{rip:x} "
                f"address 0x{chance.randrange(1 << 30):016x} error_code 0x{0x182:016x}\n"
            )
        elif reason == "MSR_WRITE":
            yield f"{now}kvm_msr: msr_write 6e0 = 0x{chance.randrange(1 << 40):x}\n"
        time_us += chance.randrange(1, 20)
        now = head.format(f"{time_us / 1e6:.6f}")
        yield f"{now}kvm_entry: vcpu {vcpu}, rip 0x{rip:x}\n"


def _ends(path: Path) -> int:
    """Count line ends in C: what reading and looking at every byte costs at least."""
    count = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            count += piece.count(b"\n")
    return count


def _with_re(path: Path) -> dict[str, list[float]]:
    """Pair exits with entries the way a script does."""
    waiting: dict[str, tuple[float, str]] = {}
    durations: dict[str, list[float]] = {}
    with path.open() as file:
        for text in file:
            found = _LINE.search(text)
            if found is None:
                continue
            if found[3] == "exit":
                said = _REASON.search(found[4])
                assert said is not None
                waiting[found[1]] = (float(found[2]), said[1])
            elif entry := waiting.pop(found[1], None):
                durations.setdefault(entry[1], []).append(float(found[2]) - entry[0])
    return durations


def _rate(work: Callable[[], object], count: int) -> Callable[[], float]:
    return lambda: count / seconds(work)


@benchmark("exit-lines", unit="lines/s")
def exit_lines(quick: bool) -> Result:
    """Read a trace of exits to its table. Ceiling: count its lines; peer: pairing with Python's re.

    Both threads of the reader count: on two processors it is faster than the figure.
    """
    count = _QUICK_LINES if quick else _LINES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.txt"
        lines = trace_lines()
        with path.open("w") as file:
            file.writelines(next(lines) for _ in range(count))

        def read() -> None:
            assert read_report(str(path), Views()).lines.used == count

        def ends() -> None:
            assert _ends(path) == count

        value, ceiling, peer = best(
            _rate(read, count),
            _rate(ends, count),
            _rate(lambda: _with_re(path), count),
            quick=quick,
        )
    return Result(value, ceiling, peer, "Python's re")
