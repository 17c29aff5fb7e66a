"""``vtx check``."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vtx.commands.base import FAILED, FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.errors import InputError, UsageError

if TYPE_CHECKING:
    from vtx.hypervisor.check import Cpu, Judgement

__all__ = ["Check"]

SCHEMA = "vtx.check/1"
_LEAST_MAXPHYADDR, _MOST_MAXPHYADDR = 32, 52
_MOST_BYTES = 1 << 30


class Check(Command):
    """Say which rules of VM entry the VMCS of a dump breaks.

    FILE holds what KVM or Xen printed when a VM entry failed, as it stands in dmesg,
    journalctl, 'xl dmesg' or a mail, or a VMCS in YAML (fields:); - is standard input.
    A file may hold several dumps. What is damaged is left out, what is missing is named.

    How to get such a dump from KVM: set the parameter dump_invalid_vmcs of the module
    kvm_intel (kernel parameter kvm_intel.dump_invalid_vmcs=1, or at run time
    echo 1 > /sys/module/kvm_intel/parameters/dump_invalid_vmcs), let the guest fail again
    with "KVM: entry failed, hardware error 0x80000021", and take the output of dmesg.

    From Xen: it is printed when the entry fails; key 'v' prints that of every guest
    (xl debug-keys v). Take the output of xl dmesg.

    A dump says nothing of the CPU. Name its profile, or at least the width of its
    physical addresses, and more rules can be judged.

    Exit code 1: a rule is broken; 3: there is no VMCS in a file.
    """

    name = "check"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("files", metavar="FILE", nargs="+", help="dump; - is standard input")
        cpu = parser.add_argument_group("the CPU")
        cpu.add_argument("--profile", metavar="P", help="CPU profile, by name or YAML file")
        cpu.add_argument(
            "--maxphyaddr", metavar="N", type=int, help="bits of a physical address (else 46)"
        )
        cpu.add_argument(
            "--linear-bits",
            metavar="N",
            type=int,
            choices=(48, 57),
            help="bits of a linear address: 48, or 57 (else as CR4.LA57 suggests)",
        )
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Judge every dump of every file."""
        output = Output(args)
        cpu = _cpu(args)
        if args.files.count("-") > 1:
            raise UsageError("standard input can be read once only")
        with _without_collection():
            judged = [(name, judgement) for name in args.files for judgement in _judge(name, cpu)]
            text = _RENDER[output.format](judged)
        output.write(text)
        return FAILED if any(judgement.failures for _, judgement in judged) else FINE


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let no garbage be looked for: thousands of dumps make millions of objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _cpu(args: argparse.Namespace) -> Cpu:
    from vtx.hypervisor.check import Cpu

    width = args.maxphyaddr
    if width is not None and not _LEAST_MAXPHYADDR <= width <= _MOST_MAXPHYADDR:
        raise UsageError(
            f"--maxphyaddr wants {_LEAST_MAXPHYADDR} to {_MOST_MAXPHYADDR} bits, not {width}"
        )
    return Cpu(args.profile, width, args.linear_bits)


def _judge(name: str, cpu: Cpu) -> list[Judgement]:
    from vtx.hypervisor.check import judge
    from vtx.hypervisor.dumps import read_dumps

    source = "<stdin>" if name == "-" else name
    return [judge(dump, cpu) for dump in read_dumps(_read(name), source)]


def _read(name: str) -> str:
    """Return the text of a file: a log may hold bytes that are no text."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed")
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror or error}", file=name) from None
    except ValueError as error:  # a null character in the name
        raise InputError(f"no file can have this name: {error}") from None
    if len(data) > _MOST_BYTES:
        raise InputError("the file is too long for a dump", file=name)
    return _text(data)


def _text(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as a terminal's log on Windows is saved
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


_Judged = list[tuple[str, "Judgement"]]


def _as_text(judged: _Judged) -> str:
    from vtx.hypervisor.check_report import text
    from vtx.lab.table import printable

    rule = "\n\n" + "=" * 72 + "\n\n"
    parts = (text(judgement, name) for name, judgement in judged)
    return rule.join("\n".join(map(printable, part.split("\n"))) for part in parts) + "\n"


def _as_json(judged: _Judged) -> str:
    import json

    from vtx.hypervisor.check_report import as_dict, as_line

    if len(judged) == 1:
        name, judgement = judged[0]
        data = {"schema": SCHEMA, "file": name, **as_dict(judgement)}
        return json.dumps(data, indent=2, allow_nan=False) + "\n"
    # One dump a line: there may be thousands.
    entries = (as_line(judgement, name) for name, judgement in judged)
    return f'{{"schema": "{SCHEMA}", "dumps": [\n' + ",\n".join(entries) + "\n]}\n"


def _as_csv(judged: _Judged) -> str:
    import csv
    import io

    from vtx.hypervisor.check_report import COLUMNS, rows

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, judgement in judged:
        writer.writerows(rows(judgement, name))
    return out.getvalue()


_RENDER = {"table": _as_text, "json": _as_json, "csv": _as_csv}
