"""Lines per second of ``vtx exits``, beside a reader with Python's re, on the same file.

    python tests/bench/bench_exits.py [MILLIONS OF LINES]

Prints one line for each: the scanner alone, all of vtx exits, and Python's re.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtx.hypervisor.importers.analysis import read_report
from vtx.machine.exit_scanner import ExitScanner, exit_dtype

REASONS = ("EPT_VIOLATION", "MSR_WRITE", "IO_INSTRUCTION", "HLT", "EXTERNAL_INTERRUPT", "CPUID")


def write_trace(path: Path, lines: int) -> int:
    """Write what ftrace prints on a current kernel for four busy vCPUs."""
    chance = random.Random(5)
    time_us = written = 0
    with path.open("w") as file:
        while written < lines:
            vcpu, reason = chance.randrange(4), chance.choice(REASONS)
            rip = 0xFFFFFFFF81000000 + chance.randrange(1000) * 16
            time_us += chance.randrange(1, 20)
            head = f" qemu-system-x86-{5000 + vcpu}    [{vcpu:03d}] d..1. {{}}: "
            now = head.format(f"{time_us / 1e6:.6f}")
            file.write(
                f"{now}kvm_exit: vcpu {vcpu} reason {reason} rip 0x{rip:x} "
                f"info1 0x{chance.randrange(4096):016x} info2 0x{0:016x} "
                f"intr_info 0x{0x800000EC:08x} error_code 0x{0:08x}\n"
            )
            if reason == "EPT_VIOLATION":
                file.write(
                    f"{now}kvm_page_fault: vcpu {vcpu} rip 0x{rip:x} "
                    f"address 0x{chance.randrange(1 << 30):016x} error_code 0x{0x182:016x}\n"
                )
            elif reason == "MSR_WRITE":
                file.write(f"{now}kvm_msr: msr_write 6e0 = 0x{chance.randrange(1 << 40):x}\n")
            time_us += chance.randrange(1, 20)
            now = head.format(f"{time_us / 1e6:.6f}")
            file.write(f"{now}kvm_entry: vcpu {vcpu}, rip 0x{rip:x}\n")
            written += 2 + (reason in ("EPT_VIOLATION", "MSR_WRITE"))
    return written


def scan(path: Path) -> int:
    scanner = ExitScanner()
    records = np.zeros(1 << 16, exit_dtype())
    buffer = memoryview(bytearray(2 << 20))
    exits = have = 0
    with path.open("rb", buffering=0) as file:
        final = False
        while not final or have:
            got = file.readinto(buffer[have:]) or 0
            final = not got
            have += got
            done, count = scanner.scan(buffer, have, records, final=final)
            buffer[: have - done] = buffer[done:have]
            have -= done
            exits += count
    return exits


def with_re(path: Path) -> int:
    line = re.compile(r"-(\d+)\s+\[\d+\]\s+\S+\s+(\d+\.\d+): kvm_(exit|entry): (.*)")
    reason = re.compile(r"reason (\S+)")
    waiting: dict[str, tuple[float, str]] = {}
    durations: dict[str, list[float]] = {}
    with path.open() as file:
        for text in file:
            found = line.search(text)
            if found is None:
                continue
            if found[3] == "exit":
                said = reason.search(found[4])
                assert said is not None
                waiting[found[1]] = (float(found[2]), said[1])
            elif entry := waiting.pop(found[1], None):
                durations.setdefault(entry[1], []).append(float(found[2]) - entry[0])
    return sum(map(len, durations.values()))


def best(run: Callable[[Path], int], path: Path, times: int) -> tuple[float, int]:
    seconds, exits = [], 0
    for _ in range(times):
        start = time.perf_counter()
        exits = run(path)
        seconds.append(time.perf_counter() - start)
    return min(seconds), exits


def main() -> None:
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.txt"
        lines = write_trace(path, int(millions * 1e6))
        rows: list[tuple[str, Callable[[Path], int], int]] = [
            ("scanner alone", scan, 5),
            ("vtx exits", lambda p: read_report(str(p)).total.samples, 5),
            ("Python re", with_re, 2),
        ]
        slowest = best(with_re, path, 1)[0]
        for name, run, times in rows:
            seconds, exits = best(run, path, times)
            rate = lines / seconds / 1e6
            print(
                f"{name:14} {rate:6.2f} million lines/s  {slowest / seconds:5.1f}x  {exits:,} exits"
            )


if __name__ == "__main__":
    main()
