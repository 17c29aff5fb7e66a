"""What recorded exits would come to if something about the machine were different.

Each claim follows from what the trace shows and from what the manual says a control does. What
does not follow is refused with the reason, and never estimated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vtx.errors import InputError, UnknownName, UsageError
from vtx.facts.controls import Pin, Proc2
from vtx.facts.exits import ExitReason
from vtx.lab.bounds import NOTHING, Bounds, price_ns
from vtx.lab.exit_pricing import IDLE, PricedExits
from vtx.lab.exit_reasons import reason_number
from vtx.lab.exit_report import ExitReport
from vtx.lab.exit_rows import ExitRow, Tally
from vtx.lab.profile import Profile

__all__ = ["CLAIMS", "Claim", "Saving", "claim"]

_LEAF_2M, _LEAF_1G = 16, 17  # IA32_VMX_EPT_VPID_CAP
_REGION = re.compile(r"gpa (0x[0-9a-f]+)-")
#: Exits that come from outside the guest: no change of the guest keeps them away.
_OUTSIDE = frozenset(
    map(int, (ExitReason.EXTERNAL_INTERRUPT, ExitReason.INIT_SIGNAL, ExitReason.OTHER_SMI))
)
#: WRMSRs that APIC-register virtualization does without an exit: TPR, EOI, self-IPI.
_VIRTUALIZED_MSRS = ("msr 0x808", "msr 0x80b", "msr 0x83f")
#: The vector with which Linux makes another processor look at its work; KVM kicks vCPUs with it.
_RESCHEDULE = "vector 0xfd"


@dataclass(frozen=True)
class Saving:
    """Exits that would not be.

    Parameters
    ----------
    row : ExitRow
        Their reason.
    tally : Tally
        The exits that the claim is about.
    whole : bool
        They are all exits of the row.
    least, likely, most : float
        Which part of them would not be.
    """

    row: ExitRow
    tally: Tally
    whole: bool
    least: float = 1.0
    likely: float = 1.0
    most: float = 1.0


@dataclass(frozen=True)
class Claim:
    """One change.

    Parameters
    ----------
    option : str
        As given: ``"no-exit:MSR_WRITE"``.
    text : str
        What is claimed, and on what it rests.
    savings : sequence of Saving
        The exits that would not be.
    refuses : callable
        Why a CPU cannot do it, or None.
    adds : callable
        What the CPU would take beside, in nanoseconds.
    """

    option: str
    text: str
    savings: Sequence[Saving] = ()
    refuses: Callable[[Profile], str | None] = lambda profile: None
    adds: Callable[[PricedExits], Bounds] = lambda priced: NOTHING

    def total(self, priced: PricedExits) -> Bounds:
        """Return hardware and software of the exits that are left."""
        left = priced.total
        low, value, high = left.low, left.value, left.high
        for saving in self.savings:
            row = saving.row if saving.whole else None
            one = priced.hardware_of(saving.row.number).times(saving.tally.samples)
            if saving.row.number != IDLE:
                one += priced.recording.software_ns(saving.tally, row)
            # What is saved is part of the total: where prices are low, both are.
            low -= one.low * saving.most
            value -= one.value * saving.likely
            high -= one.high * saving.least
        return Bounds(max(0.0, low), max(0.0, value), max(0.0, high)) + self.adds(priced)

    @property
    def exits(self) -> Bounds:
        """How many exits would not be."""
        return Bounds(
            sum(s.tally.samples * s.least for s in self.savings),
            sum(s.tally.samples * s.likely for s in self.savings),
            sum(s.tally.samples * s.most for s in self.savings),
        )


def _needs(control: IntEnum, name: str) -> Callable[[Profile], str | None]:
    return lambda p: None if p.shape.supports(control) else f"{p.id} has no {name}"


def _row(report: ExitReport, number: int) -> ExitRow | None:
    return next((row for row in report.rows if row.number == number), None)


def _whole(report: ExitReport, *numbers: ExitReason) -> list[Saving]:
    rows = (_row(report, int(number)) for number in numbers)
    return [Saving(row, row.tally, True) for row in rows if row is not None]


def _details(report: ExitReport, number: ExitReason, starts: Sequence[str]) -> list[Saving]:
    row = _row(report, int(number))
    if row is None:
        return []
    chosen = tuple(start + " " for start in starts)
    return [
        Saving(row, tally, False)
        for text, tally in row.details
        if f"{text.replace(',', '')} ".startswith(chosen)
    ]


# ---- The claims ----------------------------------------------------------------------------------


def _no_exit(report: ExitReport, value: str) -> Claim:
    name, _, detail = value.partition(":")
    number = reason_number(name)
    if number is None:
        raise UnknownName("exit reason", name, [row.reason for row in report.rows])
    if number == IDLE:
        raise UsageError(
            "no-exit:HLT cannot be claimed: the time in HLT is the guest's rest, with or without "
            "an exit"
        )
    if number in _OUTSIDE:
        raise UsageError(
            f"no-exit:{name} cannot be claimed: the event comes from outside the guest, and the "
            "host has to take it"
        )
    row = _row(report, number)
    if row is None:
        raise InputError(f"no-exit:{value}: the trace has no such exit", file=report.name)
    savings = [Saving(row, row.tally, True)]
    if detail:
        savings = [
            Saving(row, tally, False)
            for text, tally in row.details
            if detail.lower() in text.lower().replace(",", "").split()
        ]
        if not savings:
            known = ", ".join(text for text, _ in row.details[:5]) or "no detail at all"
            raise InputError(
                f"no-exit:{value}: no exit of {name} is about {detail!r} (there is: {known})",
                file=report.name,
            )
    return Claim(
        f"no-exit:{value}",
        "The exits do not happen. What the guest would do instead of them is not counted.",
        savings,
    )


def _ept_pages(report: ExitReport, value: str) -> Claim:
    if value not in ("2M", "1G"):
        raise UsageError(f"ept-pages wants 2M or 1G, not {value!r}")
    row = _row(report, int(ExitReason.EPT_VIOLATION))
    if row is None:
        raise InputError("ept-pages: the trace has no EPT violation", file=report.name)
    starts = [int(m[1], 0) for text, _ in row.details if (m := _REGION.match(text))]
    located = sum(tally.samples for text, tally in row.details if _REGION.match(text))
    if not located:
        raise UsageError(
            f"ept-pages={value} cannot be claimed: no guest-physical address of the "
            f"{row.samples:,} EPT violations is known (record kvm:kvm_page_fault)"
        )
    shift = 21 if value == "2M" else 30
    regions = len({start >> shift for start in starts})
    stuck = sum(
        storm.samples - 1
        for storm in report.storms
        if reason_number(storm.first.reason) == ExitReason.EPT_VIOLATION
    )
    part = max(0, located - regions - stuck) / row.samples
    bit = _LEAF_2M if value == "2M" else _LEAF_1G
    return Claim(
        f"ept-pages={value}",
        f"Regions of {value} that the {located:,} EPT violations with a known address lie in: "
        f"{regions:,}. One violation for each is left, and {stuck:,} that only repeated the one "
        "before, if the others were first touches of a page (the figure, and the most); none is "
        "saved if they were not (the least). Clearing larger pages and shorter page walks are not "
        "counted.",
        [Saving(row, row.tally, True, 0.0, part, part)],
        lambda p: None if p.shape.ept_vpid_cap(bit) else f"{p.id} has no {value} pages in EPT",
    )


def _posted_interrupts(report: ExitReport, value: str) -> Claim:
    _only("posted-interrupts", value, "on")
    savings = _whole(report, ExitReason.INTERRUPT_WINDOW, ExitReason.TPR_BELOW_THRESHOLD)
    savings += _details(report, ExitReason.WRMSR, _VIRTUALIZED_MSRS)
    kicks = _details(report, ExitReason.EXTERNAL_INTERRUPT, [_RESCHEDULE])
    savings += [Saving(s.row, s.tally, False, 0.0, 0.0, 1.0) for s in kicks]
    if not savings:
        raise InputError(
            "posted-interrupts=on: the trace has no exit that posted interrupts and virtual-"
            "interrupt delivery do away with",
            file=report.name,
        )
    return Claim(
        "posted-interrupts=on",
        "With virtual-interrupt delivery there are no interrupt windows, no exits by the TPR "
        "threshold and none by WRMSR to TPR, EOI and self-IPI of the x2APIC; of the external "
        "interrupts with vector 0xfd (Linux: reschedule) between none and all were kicks that a "
        "posted interrupt replaces (the figure: none). Exits by devices' interrupts need VT-d and "
        "are not claimed.",
        savings,
        lambda p: (
            _needs(Pin.PROCESS_POSTED_INTERRUPTS, "posted interrupts")(p)
            or _needs(Proc2.VIRTUAL_INTERRUPT_DELIVERY, "virtual-interrupt delivery")(p)
        ),
    )


def _vmcs_shadowing(report: ExitReport, value: str) -> Claim:
    _only("vmcs-shadowing", value, "on")
    found = _whole(report, ExitReason.VMREAD, ExitReason.VMWRITE)
    if not found:
        raise InputError(
            "vmcs-shadowing=on: the trace has no exit by VMREAD or VMWRITE", file=report.name
        )
    return Claim(
        "vmcs-shadowing=on",
        "VMREAD and VMWRITE of the L1 hypervisor exit only for fields whose bit is set in the "
        "bitmaps: between none (the figure) and all of these exits are saved. Copying the shadow "
        "VMCS is not counted.",
        [Saving(s.row, s.tally, True, 0.0, 0.0, 1.0) for s in found],
        _needs(Proc2.VMCS_SHADOWING, "VMCS shadowing"),
    )


def _vpid(report: ExitReport, value: str) -> Claim:
    _only("vpid", value, "off")
    samples = report.total.samples

    def refill(priced: PricedExits) -> Bounds:
        profile = priced.profile
        if not profile.shape.supports(Proc2.ENABLE_VPID):
            return NOTHING
        fixed, reference = price_ns(profile, "walk.fixed"), price_ns(profile, "walk.reference")
        entries = max((a.entries for a in profile.shape.tlb.arrays if "4K" in a.pages), default=0)
        if reference is None:
            raise InputError("no figure for page walks is known")
        # A walk of 4 guest levels under 4 EPT levels makes (4 + 1) x (4 + 1) - 1 references.
        walk = (fixed or NOTHING) + reference.times(24)
        most = walk.times(samples * entries).high
        return Bounds(0.0, 0.0, most)

    return Claim(
        "vpid=off",
        "Every transition empties the TLB of the guest. A trace of exits does not tell how much of "
        "it the guest uses again: between nothing and every entry, each by a full walk in two "
        "dimensions; the figure stays at nothing, the upper bound is the claim.",
        (),
        lambda p: None,
        refill,
    )


def _only(option: str, value: str, only: str) -> None:
    if value == only:
        return
    if option == "vpid" and value == "on":
        raise UsageError(
            "vpid=on cannot be claimed: a trace of exits does not tell whether VPIDs were in use, "
            "nor how often the guest's TLB was refilled"
        )
    raise UsageError(
        f"{option}={value} cannot be claimed: what it would bring about is not in a trace of exits "
        f"({option}={only} can)"
    )


#: What can be claimed, and how it is written.
CLAIMS: dict[str, tuple[str, Callable[[ExitReport, str], Claim]]] = {
    "no-exit": ("no-exit:REASON[:DETAIL]", _no_exit),
    "ept-pages": ("ept-pages=2M|1G", _ept_pages),
    "posted-interrupts": ("posted-interrupts=on", _posted_interrupts),
    "vmcs-shadowing": ("vmcs-shadowing=on", _vmcs_shadowing),
    "vpid": ("vpid=off", _vpid),
}
#: Wishes that are known and cannot be answered from a trace of exits, with the reason.
_REFUSED = {
    "ept": "what shadow paging would cost depends on the guest's page tables",
    "tlb": "a trace of exits has no memory references",
    "halt-poll": "how the hypervisor waits is software, which is left as measured",
    "ple": "whether a spinning guest would get on without the exit is not in the trace "
    "(no-exit:PAUSE_INSTRUCTION bounds it)",
    "unrestricted-guest": "what ran in real mode is not in the trace",
    "vt-d": "which interrupts came from assigned devices is not in the trace",
}


def claim(report: ExitReport, option: str) -> Claim:
    """Return what can be claimed of a change.

    Parameters
    ----------
    report : ExitReport
        The recorded exits.
    option : str
        ``no-exit:MSR_WRITE``, ``ept-pages=2M`` ...

    Raises
    ------
    UsageError
        The change is unknown, or its effect does not follow from a trace of exits.
    InputError
        The trace has nothing that the change would act on.
    """
    name = re.split("[:=]", option, maxsplit=1)[0]
    mark, value = option[len(name) : len(name) + 1], option[len(name) + 1 :]
    if name in _REFUSED:
        raise UsageError(f"{name} cannot be claimed: {_REFUSED[name]}")
    if name not in CLAIMS or not value or mark != CLAIMS[name][0][len(name)]:
        forms = ", ".join(form for form, _ in CLAIMS.values())
        raise UsageError(f"--what-if {option!r} is none of {forms}")
    return CLAIMS[name][1](report, value)
