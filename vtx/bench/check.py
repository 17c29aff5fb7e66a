"""Seconds of ``vtx check`` over 10,000 VMCSs, each with one field damaged."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from vtx.bench.registry import Result, benchmark
from vtx.bench.timing import best, seconds

__all__ = ["write_vmcss"]

_VMCSS = 10_000
#: In a quick run so many are judged, and the figure is scaled.
_QUICK_VMCSS = 500


def write_vmcss(path: Path, count: int) -> None:
    """Write a file of VMCSs in YAML: valid ones but for one random field of each."""
    from vtx.facts.fields import FIELDS, mask
    from vtx.machine.shape import Shape
    from vtx.machine.vmcs import Vmcs

    chance = random.Random(1)  # noqa: S311 - test data
    good = dict(Vmcs.for_64bit_guest(Shape.of("skylake_sp")).fields())
    fields = list(good)
    with path.open("w") as file:
        for _ in range(count):
            field = chance.choice(fields)
            values = good | {field: chance.getrandbits(64) & mask(field)}
            rows = (f"  {FIELDS[key].name}: {value:#x}\n" for key, value in values.items())
            file.write("---\nfields:\n" + "".join(rows))


@benchmark("check", unit="s")
def check(quick: bool) -> Result:
    """Time of vtx check --format json over 10,000 VMCSs; ceiling: reading their numbers."""
    count = _QUICK_VMCSS if quick else _VMCSS
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vmcss.yaml"
        write_vmcss(path, count)
        value, ceiling = best(
            lambda: seconds(lambda: _check(path)),
            lambda: seconds(lambda: _read(path)),
            quick=True,
            lower_is_better=True,
        )
    scale = _VMCSS / count
    return Result(value * scale, ceiling * scale)


def _check(path: Path) -> int:
    """Judge every VMCS and render the judgements, as the command does."""
    from vtx.hypervisor.check import Cpu, judge
    from vtx.hypervisor.check_report import as_line
    from vtx.hypervisor.dumps import read_dumps

    cpu = Cpu("skylake_sp", None, None)
    judged = [judge(dump, cpu) for dump in read_dumps(path.read_text(), path.name)]
    return sum(len(as_line(judgement, path.name)) for judgement in judged)


def _read(path: Path) -> int:
    """Read every number of the file with the least that Python can do."""
    return sum(int(line.rpartition(" ")[2], 0) for line in path.open() if "0x" in line)
