"""What the stepper shows of a frame, as lines of plain text; a leading ``*`` marks changes."""

from __future__ import annotations

from collections.abc import Iterator

from vtx.explanation import explain
from vtx.hypervisor.recording import Frame, Kind, Recording
from vtx.lab.ledger import price
from vtx.lab.profile import Profile
from vtx.lab.report import cycles_text

__all__ = ["costs", "exit_details", "listing", "registers", "title", "vmcs_changes", "walk"]

_COLUMNS = (
    ("rax", "r8"), ("rbx", "r9"), ("rcx", "r10"), ("rdx", "r11"), ("rsi", "r12"), ("rdi", "r13"),
    ("rbp", "r14"), ("rsp", "r15"), ("rip", "rflags"), ("cr0", "cr2"), ("cr3", "cr4"),
)  # fmt: skip
_FLAGS = (("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("OF", 11))


def title(recording: Recording, frame: Frame) -> str:
    """Return one line: where in the run this is, and in which operation."""
    mode = "VMX root operation" if frame.root else "VMX non-root operation"
    if frame.kind is Kind.END:
        mode = "end"
    last = len(recording.frames) - 1
    return (
        f"{recording.trace.name}  {frame.index}/{last}  cpu {frame.processor}  {mode}  "
        f"step {frame.steps}"
    )


def listing(recording: Recording, frame: Frame, height: int) -> list[str]:
    """Return the frames around this one, the current one marked with ``>``."""
    around = max(0, min(frame.index - height // 2, len(recording.frames) - height))
    rows = []
    for shown in recording.frames[around : around + height]:
        mark = ">" if shown.index == frame.index else " "
        place = f"{shown.line:>4}" if shown.line is not None and shown.kind is Kind.STEP else "    "
        rows.append(f"{mark}{place} {_short(shown)}")
    return rows


def _short(frame: Frame) -> str:
    if frame.kind is Kind.EXIT:
        assert frame.reason is not None
        return f"  --> exit {int(frame.reason)} {frame.reason.name.lower()}"
    if frame.kind is Kind.ENTRY:
        return "  <-- entry"
    return frame.text


def registers(frame: Frame, before: Frame | None) -> list[str]:
    """Return the guest's registers in two columns; those that changed are marked."""
    rows = []
    for pair in _COLUMNS:
        cells = []
        for name in pair:
            value = frame.registers[name]
            changed = before is not None and before.registers[name] != value
            cells.append(f"{'*' if changed else ' '}{name:<6} {value:016x}")
        rows.append(" ".join(cells))
    flags = frame.registers["rflags"]
    rows.append("  " + " ".join(name for name, bit in _FLAGS if flags >> bit & 1))
    return rows


def vmcs_changes(frame: Frame) -> list[str]:
    """Return the VMCS fields that the exit, or the VMM, has changed."""
    if not frame.root:
        return ["the guest runs: the VMCS stands still"]
    who = "the VM exit wrote" if frame.kind is Kind.EXIT else "the VMM wrote"
    if not frame.changes:
        return [f"{who} nothing that was not there before"]
    return [
        f"{who}:",
        *(f"*{change.field}: {change.before:#x} -> {change.after:#x}" for change in frame.changes),
    ]


def exit_details(frame: Frame) -> list[str]:
    """Return the exit in words, and its qualification bit by bit."""
    if frame.kind is not Kind.EXIT or frame.reason is None:
        return [frame.text]
    rows = [frame.text, ""]
    article = explain(int(frame.reason), "exit", frame.qualification).articles[0]
    for table in article.tables[:1]:
        if table.sentence:
            rows.append(table.sentence)
        rows += [
            f"{row.bits:>7} {row.name:<22} {row.value or 0:#x}  {row.meaning}"
            for row in table.rows
            if row.value
        ]
    return rows


def walk(frame: Frame) -> list[str]:
    """Return the walk of the address that the frame is about, a reference a line."""
    if frame.address is None:
        return ["this step is about no address"]
    if frame.walk is None:
        return [f"linear address {frame.address:#x}: the guest has not walked it yet"]
    return [f"linear address {frame.address:#x}", *_walk_rows(frame)]


def _walk_rows(frame: Frame) -> Iterator[str]:
    assert frame.walk is not None
    for number, step in enumerate(frame.walk.steps, 1):
        where = f"{step.dimension.name.lower()} level {step.level}"
        yield f"{number:>3} {where:<14} {step.address:#014x}: {step.value:#018x}"
    yield frame.walk.explain()


def costs(recording: Recording, frame: Frame, profile: Profile) -> list[str]:
    """Return what the run has cost so far, by reason."""
    counted = next(
        (f.counts for f in reversed(recording.frames[: frame.index + 1]) if f.counts is not None),
        None,
    )
    if counted is None:
        return ["nothing has been counted yet: the first VM exit is still to come"]
    ledger = price(counted, profile)
    if not ledger.priced:
        return [f"{profile.id} has no prices: {profile.prices['round_trip'].source}"]
    rows = [f"{profile.id}: {cycles_text(ledger.cycles)} cycles, {float(ledger.ns) / 1000:.2f} us"]
    rows += [
        f"  {row.name:<32} {row.samples:>6} {cycles_text(row.cycles):>14}" for row in ledger.rows
    ]
    return rows
