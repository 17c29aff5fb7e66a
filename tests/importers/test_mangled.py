"""Text that mails, terminals and disks have damaged: never a crash, never an invented exit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from . import naive
from .lines import ENTRIES, EXITS, FRAMES, Event, line
from .scanning import Scan

REASONS = ("HLT", "EPT_VIOLATION", "MSR_WRITE", "UNKNOWN (74)")
FORMS = ("2.6.37", "2.6.38", "5.10", "trace-cmd, new plugin")
KEYS = ("reason", "rip", "info1", "info2", "intr_info", "error_code", "time_ns", "duration_ns")


@st.composite
def traces(draw: st.DrawFn) -> list[str]:
    """Exits and entries of a few threads, in one form."""
    frame = draw(st.sampled_from([f for f in FRAMES if f != "perf script, no CPU"]))
    form, entry = draw(st.sampled_from(FORMS)), draw(st.sampled_from(list(ENTRIES)))
    lines, time = [], 1_000_000
    inside: set[int] = set()
    for _ in range(draw(st.integers(1, 12))):
        tid = draw(st.integers(4000, 4002))
        time += draw(st.integers(0, 2000))
        if tid in inside:
            inside.discard(tid)
            event = Event("kvm_entry", time, tid, tid - 4000, 1, rip=0xABC)
            lines.append(line(frame, "CPU 0/KVM", event, ENTRIES[entry](event)))
        else:
            inside.add(tid)
            event = Event(
                "kvm_exit", time, tid, tid - 4000, 1, draw(st.sampled_from(REASONS)),
                rip=draw(st.integers(0, 2**64 - 1)), info1=draw(st.integers(0, 0xFFFFF)),
                info2=draw(st.integers(0, 0xFFFFFFFF)),
            )  # fmt: skip
            lines.append(line(frame, "CPU 0/KVM", event, EXITS[form](event)))
    return lines


def wrap(text: str, width: int, quote: str) -> str:
    """Break lines at blanks behind the stamp, as mail programs do, and quote them."""
    out = []
    for whole in text.split("\n"):
        head, sep, rest = whole.partition(": ")
        line_now = head + sep.rstrip()
        for word in rest.split():
            if len(line_now) + 1 + len(word) > max(width, len(head) + 1):
                out.append(line_now)
                line_now = word
            else:
                line_now += " " + word
        out.append(line_now)
    return "\n".join(quote + each for each in out)


def keys(exits: list[dict[str, object]], names: tuple[str, ...] = KEYS) -> list[list[object]]:
    ordered = sorted(exits, key=lambda each: each["line"])
    return [[exit[key] for key in names] for exit in ordered]


@given(traces().filter(lambda lines: "[" in lines[0]))
def test_the_naive_reader_agrees(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    names = ("reason", "rip", "time_ns", "duration_ns")
    assert keys(Scan(text).exits, names) == [[e[k] for k in names] for e in naive.exits(text)]


@given(traces(), st.integers(40, 100), st.sampled_from(["", "> ", ">> ", "> > "]))
def test_wrapped_and_quoted(lines: list[str], width: int, quote: str) -> None:
    text = "\n".join(lines)
    mangled = wrap(text, width, quote) + "\n"
    assert keys(Scan(mangled).exits) == keys(Scan(text + "\n").exits)
    assert not Scan(mangled).skipped


def test_wrapped_behind_the_period_of_perf() -> None:
    """The number between stamp and event may end the line."""
    text = "CPU 0/KVM 4000 [001] 1.000000: 1\nkvm:kvm_exit: reason HLT rip 0x0\n"
    assert Scan(text).exits[0]["time_ns"] == 1_000_000_000


@given(traces(), st.sampled_from(["\r\n", " \n", "\n\n", "\u00a0\n"]))
def test_other_line_ends(lines: list[str], end: str) -> None:
    plain, mangled = Scan("\n".join(lines) + "\n"), Scan(end.join(lines) + end)
    assert keys(mangled.exits) == keys(plain.exits)


@given(traces(), st.data())
def test_cut_anywhere_no_value_is_invented(lines: list[str], data: st.DataObject) -> None:
    text = "\n".join(lines) + "\n"
    whole = {exit["line"]: exit for exit in Scan(text).exits}
    at = data.draw(st.integers(0, len(text)))
    part = Scan(text[:at])
    for exit in part.exits:
        original = whole[exit["line"]]
        for key in KEYS:
            assert exit[key] in (original[key], None), (key, text[:at][-60:])
    # What lies before the line that was cut is all there.
    complete = text[:at].count("\n")
    assert {e["line"] for e in part.exits} >= {n for n in whole if n <= complete}


@given(traces(), st.integers(1, 300), st.integers(1, 3))
def test_pieces_and_room_make_no_difference(lines: list[str], piece: int, room: int) -> None:
    text = "\n".join(lines) + "\n"
    whole, parts = Scan(text), Scan(text, piece, room)
    assert parts.exits == whole.exits
    assert (parts.counts, parts.skipped, parts.events) == (
        whole.counts,
        whole.skipped,
        whole.events,
    )


@settings(max_examples=300)
@given(traces(), st.data())
def test_damage_never_crashes(lines: list[str], data: st.DataObject) -> None:
    text = bytearray("\n".join(lines).encode())
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not text:
            break
    Scan(bytes(text))


@given(st.binary(max_size=2000))
def test_garbage_is_no_trace(data: bytes) -> None:
    scan = Scan(data)
    assert scan.counts["read"] == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))


def test_a_line_without_end_costs_no_memory() -> None:
    scan = Scan(
        b"x" * 5_000_000 + b"\n q-1 [000] d..1 1.0: kvm_exit: reason HLT rip 0x1\n", 1 << 20
    )
    assert scan.skipped == {"too_long": 1}
    assert (scan.counts["read"], len(scan.exits)) == (2, 1)
