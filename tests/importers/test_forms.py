"""Every form of every line, written from known events and read back."""

from __future__ import annotations

import pytest

from .lines import COMMS, DETAILS, ENTRIES, EXITS, FRAMES, HAS, Event, line
from .scanning import Scan

EXIT = Event(
    "kvm_exit", 5_000_123, tid=4711, vcpu=3, cpu=12, reason="EPT_VIOLATION",
    rip=0xFFFFFFFFC0771AA2, info1=0x683, info2=0x800000EC, intr_info=0x800000FD, error_code=0x14,
)  # fmt: skip
ENTRY = Event("kvm_entry", 5_000_130, tid=4711, vcpu=3, cpu=12, rip=0xFFFFFFFFC0771AA2)


@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("form", [form for form in EXITS if not form.startswith("nested")])
def test_exit_and_entry(comm: str, frame: str, form: str) -> None:
    text = f"{line(frame, comm, EXIT, EXITS[form](EXIT))}\n"
    text += f"{line(frame, comm, ENTRY, ENTRIES['5.7'](ENTRY))}\n"
    scan = Scan(text)
    (exit,) = scan.exits
    assert scan.counts["used"] == 2
    for key in ("info1", "info2", "intr_info", "error_code"):
        assert exit[key] == (getattr(EXIT, key) if key in HAS[form] else None)
    assert (exit["reason"], exit["rip"]) == (EXIT.reason, EXIT.rip)
    assert (exit["time_ns"], exit["duration_ns"]) == (5_000_123_000, 7_000)
    assert (exit["tid"], exit["vcpu"], exit["line"]) == (4711, 3, 1)
    assert exit["cpu"] == (0xFFFF if frame in ("perf script, no CPU", "trace-cmd -l") else 12)


@pytest.mark.parametrize("form", ENTRIES)
def test_entries(form: str) -> None:
    text = line("ftrace", "q", EXIT, EXITS["2.6.38"](EXIT)) + "\n"
    text += line("ftrace", "q", ENTRY, ENTRIES[form](ENTRY)) + "\n"
    (exit,) = Scan(text).exits
    assert (exit["duration_ns"], exit["vcpu"]) == (7_000, 3)


@pytest.mark.parametrize(("name", "payload", "expected"), DETAILS)
@pytest.mark.parametrize("frame", FRAMES)
def test_details(frame: str, name: str, payload: str, expected: dict[str, object]) -> None:
    between = Event(name, 5_000_125, tid=4711, cpu=12)
    text = line(frame, "q", EXIT, EXITS["5.10"](EXIT)) + "\n"
    text += line(frame, "q", between, payload) + "\n"
    text += line(frame, "q", ENTRY, ENTRIES["first"](ENTRY)) + "\n"
    scan = Scan(text)
    (exit,) = scan.exits
    assert scan.counts["used"] == 3, scan.skipped
    assert {key: exit[key] for key in expected} == expected


@pytest.mark.parametrize("form", ["nested, 5.0", "nested, 5.7", "5.10", "complaints"])
def test_nested_exit_marks_the_exit_that_it_repeats(form: str) -> None:
    from vtx.machine.exit_scanner import ExitFlag

    nested = Event(**{**vars(EXIT), "name": "kvm_nested_vmexit"})
    text = line("ftrace", "q", EXIT, EXITS["2.6.37"](EXIT)) + "\n"
    text += line("ftrace", "q", nested, EXITS[form](nested)) + "\n"
    text += line("ftrace", "q", ENTRY, ENTRIES["5.7"](ENTRY)) + "\n"
    (exit,) = Scan(text).exits
    assert exit["flags"] & ExitFlag.L2
    assert exit["info1"] == EXIT.info1


@pytest.mark.parametrize(
    "reason", ["UNKNOWN (74)", "UNKNOWN (-2147483615)", "0x4b", "io_instruction"]
)
@pytest.mark.parametrize("form", ["2.6.37", "2.6.38", "5.10"])
def test_unknown_reasons_keep_their_numbers(reason: str, form: str) -> None:
    event = Event(**{**vars(EXIT), "reason": reason})
    (exit,) = Scan(line("trace-cmd", "q", event, EXITS[form](event)) + "\n").exits
    assert (exit["reason"], exit["rip"]) == (reason, EXIT.rip)


def test_failed_entries_are_marked() -> None:
    from vtx.machine.exit_scanner import ExitFlag

    text = "q-1 [000] d..1 1.000001: kvm_exit: vcpu 0 reason INVALID_STATE FAILED_VMENTRY rip 0x1\n"
    (exit,) = Scan(text).exits
    assert exit["flags"] & ExitFlag.FAILED
    assert exit["rip"] == 1


@pytest.mark.parametrize("head", ["kvm_exit: ", "kvm:kvm_exit: ", "[003] kvm_exit: "])
def test_without_stamps_no_time_is_invented(head: str) -> None:
    text = "".join(
        f"{head}reason HLT rip 0x{n:x} info 0 0\n{head.replace('exit', 'entry')}vcpu 0, rip 0x1\n"
        for n in range(3)
    )
    scan = Scan(text)
    assert [exit["rip"] for exit in scan.exits] == [0, 1, 2]
    assert {exit["time_ns"] for exit in scan.exits} == {None}
    assert {exit["duration_ns"] for exit in scan.exits} == {None}
    assert scan.counts["untimed"] == 3


def test_ticks_are_no_time() -> None:
    text = "q-1 [000] d..1 123456789: kvm_exit: reason HLT rip 0x1\n"
    scan = Scan(text)
    assert scan.exits[0]["time_ns"] is None
    assert scan.counts["ticks"] == 1


def test_two_vcpus_on_lines_without_threads_are_told_apart() -> None:
    text = "".join(
        f"[{cpu:03d}] 1.00000{n}: kvm:kvm_{what}\n"
        for n, (cpu, what) in enumerate(
            [
                (1, "exit: vcpu 0 reason HLT rip 0x1"),
                (2, "exit: vcpu 1 reason CPUID rip 0x2"),
                (2, "entry: vcpu 1, rip 0x2"),
                (1, "entry: vcpu 0, rip 0x1"),
            ]
        )
    )
    assert {e["reason"]: e["duration_ns"] for e in Scan(text).exits} == {"HLT": 3000, "CPUID": 1000}


def test_interleaved_threads() -> None:
    text = "".join(
        f" q-{tid} [00{cpu}] d..1 1.0000{n:02d}: kvm_{what}\n"
        for n, (tid, cpu, what) in enumerate(
            [
                (11, 0, "exit: reason HLT rip 0x1 info 0 0"),
                (12, 1, "exit: reason CPUID rip 0x2 info 0 0"),
                (12, 1, "entry: vcpu 1"),
                (12, 1, "exit: reason CPUID rip 0x4 info 0 0"),
                (11, 3, "entry: vcpu 0"),
            ]
        )
    )
    exits = {exit["line"]: exit for exit in Scan(text).exits}
    assert [exits[n]["duration_ns"] for n in (1, 2, 4)] == [4000, 1000, None]
    assert [exits[n]["vcpu"] for n in (1, 2, 4)] == [0, 1, 1]


def test_an_exit_behind_an_exit_has_no_duration() -> None:
    text = (
        "".join(
            f" q-1 [000] d..1 1.00000{n}: kvm_exit: reason HLT rip 0x1 info 0 0\n" for n in range(3)
        )
        + " q-1 [000] d..1 1.000009: kvm_entry: vcpu 0\n"
    )
    assert [exit["duration_ns"] for exit in Scan(text).exits] == [None, None, 7000]
    assert [exit["repeats"] for exit in Scan(text).exits] == [0, 1, 2]


def test_xenalyze() -> None:
    text = (
        "]  0.000000100 -x-- d1v0 vmexit exit_reason EXTERNAL_INTERRUPT eip fffff80001\n"
        "]  0.000000150 x--- d2v1 vmexit(n) exit_reason CPUID eip 1000\n"
        " ]  0.000000200 -x-- d1v0 pf_xen:emulate va 1\n"
        "]  0.000002380 -x-- d1v0 vmentry cycles 2280 !\n"
        "]  0.000002390 x--- d2v1 vmentry cycles 5000\n"
    )
    scan = Scan(text)
    assert [(e["reason"], e["tid"], e["vcpu"], e["duration_ns"], e["rip"]) for e in scan.exits] == [
        ("EXTERNAL_INTERRUPT", 1, 0, 2280, 0xFFFFF80001),
        ("CPUID", 2, 1, 2240, 0x1000),
    ]
    assert scan.skipped == {"other_event": 1}


@pytest.mark.parametrize(
    "note", ["CPU:3 [LOST 128 EVENTS]", "CPU:3 [128 EVENTS DROPPED]", "[128 events dropped]"]
)
def test_lost_events_are_counted(note: str) -> None:
    scan = Scan(f"{note}\n")
    assert scan.counts["lost_events"] == 128
    assert scan.skipped == {"lost_events_note": 1}


def test_prose_is_no_event() -> None:
    text = (
        " q-1 [000] d..1 1.000001: kvm_exit: reason HLT rip 0x1 info 0 0\n"
        "reason is unknown to me, info 5 6\n"
        "At 10:30 the kvm_exit: came and vcpu 1 stood still\n"
        " q-1 [000] d..1 1.000002: kvm_entry: vcpu 0\n"
        "    ffffffffc0a1 vmx_handle_exit+0x1 ([kvm])\n"
    )
    scan = Scan(text)
    assert scan.skipped == {"no_event": 3}
    assert scan.exits[0]["info1"] == 0
