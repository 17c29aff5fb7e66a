"""A text with VMCS dumps in it, from the first prefix to the last field."""

from __future__ import annotations

from vtx.hypervisor.dumps.assemble import assemble
from vtx.hypervisor.dumps.clean import clean, streams
from vtx.hypervisor.dumps.layouts import FEW, HEADER, Reader
from vtx.hypervisor.dumps.model import Dump, Verdict
from vtx.hypervisor.dumps.scan import Item, scan

__all__ = ["read_text"]


def _attach(item: Item, dumps: list[Dump]) -> None:
    """Add what QEMU says to the last dump above it."""
    above = [dump for dump in dumps if dump.first_line <= item.line]
    if not above:
        return
    dump = above[-1]
    if item.kind == "qemu":
        dump.remarks.append(item.text)
        return
    shown, said = dump.verdict, item.verdict
    if said is None or shown.kind in ("entry_failure", "vmfail_valid"):
        return
    # The dump shows the last exit or nothing: with VMfail, the exit fields keep older values.
    dump.verdict = Verdict(said.kind, said.error, said.exit_reason, None)


def _read_carefully(text: str, xen: bool) -> tuple[list[Dump], list[Item]]:
    """Return the dumps of a text, and what stands below a dump and is about it."""
    lines = clean(text)
    cut = not text.endswith("\n")
    dumps: list[Dump] = []
    below: list[Item] = []
    for stream in streams(lines):
        items = scan(stream, cut and stream[-1] is lines[-1])
        dumps += assemble([item for item in items if not (item.kind == "qemu" or item.after)], xen)
        below += [item for item in items if item.kind == "qemu" or item.after]
    return dumps, below


def read_text(text: str) -> tuple[list[Dump], str]:
    """Return the dumps in a text, in order, and a word on what else was seen if there are none."""
    xen = "(XEN)" in text
    alike: list[Dump] = []
    rest = text
    if not xen and text.count(HEADER) >= FEW:
        alike, rest = Reader(lambda block: _read_carefully(block, False)[0]).read(text)
    dumps, below = _read_carefully(rest, xen)
    dumps = sorted(dumps + alike, key=lambda dump: dump.first_line)
    for item in sorted(below, key=lambda item: item.line):
        _attach(item, dumps)
    return dumps, _seen(below, text)


def _seen(below: list[Item], text: str) -> str:
    """Say what there is in a text that holds no dump."""
    for item in below:
        if item.verdict is not None:
            number = item.verdict.exit_reason or item.verdict.error
            return (
                f"QEMU's line says {number:#x}, but the VMCS was not dumped: set "
                "kvm_intel.dump_invalid_vmcs=1 and try again; looked for"
            )
    if "dump_invalid_vmcs=1" in text:
        return "KVM was not told to dump the VMCS: set kvm_intel.dump_invalid_vmcs=1; looked for"
    return ""
