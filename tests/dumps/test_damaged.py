"""Dumps that were cut, interleaved, re-wrapped: nothing breaks, and nothing is invented."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vtx.errors import InputError
from vtx.facts.fields import Field as F
from vtx.hypervisor.check import judge
from vtx.hypervisor.dumps import Dump, read_dumps

from .printers import KVM_ERAS, XEN_ERAS, dmesg, journal, kvm, quoted, wrapped, xen, xl_dmesg
from .samples import random_fields, valid

NOISE = (
    "usb 1-1: new high-speed USB device, base=0x0000000000001234",
    "EAX=00001e30 EBX=4e364180 CR0=00050032 CR2=826c6000 CR3=3cbf4002 CR4=00000000",
    "CPU 3/KVM: reason=0 code=5",
    "...",
)
Damage = Callable[[str, str, random.Random], str]


def _cut_end(text: str, other: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text))]


def _cut_start(text: str, other: str, rng: random.Random) -> str:
    return text[rng.randrange(len(text)) :]


def _cut_lines(text: str, other: str, rng: random.Random) -> str:
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    return "\n".join(lines[:at] + lines[at + rng.randrange(1, 20) :])


def _lose_lines(text: str, other: str, rng: random.Random) -> str:
    return "\n".join(line for line in text.split("\n") if rng.random() > 0.2)


def _lose_characters(text: str, other: str, rng: random.Random) -> str:
    characters = list(text)
    for _ in range(rng.randrange(1, 30)):
        del characters[rng.randrange(len(characters))]
    return "".join(characters)


def _narrow(text: str, other: str, rng: random.Random) -> str:
    width = rng.randrange(10, 100)
    return "\n".join(line[:width] for line in text.split("\n"))


def _wrap(text: str, other: str, rng: random.Random) -> str:
    return wrapped(text, rng.randrange(20, 90), rng.choice(["", "> ", "  "]))


def _join(text: str, other: str, rng: random.Random) -> str:
    return rng.choice([" ", "  "]).join(text.split("\n"))


def _insert_lines(text: str, other: str, rng: random.Random) -> str:
    rows = []
    for line in text.split("\n"):
        rows.append(line)
        if rng.random() < 0.2:
            rows.append(rng.choice(NOISE))
    return "\n".join(rows)


def _insert_words(text: str, other: str, rng: random.Random) -> str:
    for _ in range(5):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["\n[ 1.2] foo: bar\n", " <cut> ", "\n"]) + text[at:]
    return text


def _interleave(text: str, other: str, rng: random.Random) -> str:
    one, two, rows = text.split("\n"), other.split("\n"), []
    step = rng.choice([1, 3, 12])
    while one or two:
        source = one if one and (not two or rng.random() < 0.5) else two
        count = rng.randrange(1, step + 1)
        rows += source[:count]
        del source[:count]
    return "\n".join(rows)


def _blot(text: str, other: str, rng: random.Random) -> str:
    characters = list(text)
    for _ in range(rng.randrange(1, 20)):
        characters[rng.randrange(len(characters))] = rng.choice("~?ÿ\n\t\x00")
    return "".join(characters)


def _twice(text: str, other: str, rng: random.Random) -> str:
    return _cut_end(text, other, rng) + "\n" + other


DAMAGES: dict[str, Damage] = {
    damage.__name__.strip("_"): damage
    for damage in (
        _cut_end,
        _cut_start,
        _cut_lines,
        _lose_lines,
        _lose_characters,
        _narrow,
        _wrap,
        _join,
        _insert_lines,
        _insert_words,
        _interleave,
        _blot,
        _twice,
    )
}


def _printed(rng: random.Random, form: str) -> tuple[list[str], dict[F, int]]:
    values = random_fields(rng)
    if form == "xen":
        return xen(values, rng.choice(XEN_ERAS))[0], values
    return kvm(values, rng.choice(KVM_ERAS))[0], values


def _log(lines: list[str], form: str, rng: random.Random) -> str:
    if form == "xen":
        return xl_dmesg(lines, stamp=rng.random() < 0.5)
    return rng.choice(
        [
            "\n".join(lines) + "\n",
            dmesg(lines, module=rng.choice(["", "kvm_intel: "])),
            journal(lines),
            quoted(dmesg(lines)),
        ]
    )


def _read(text: str) -> list[Dump]:
    try:
        return read_dumps(text)
    except InputError:
        return []  # too little is left


@pytest.mark.parametrize("form", ["kvm", "xen"])
@pytest.mark.parametrize("name", DAMAGES)
def test_every_value_was_printed(name: str, form: str) -> None:
    rng = random.Random(f"{name} {form}")
    for _ in range(12):
        one, first = _printed(rng, form)
        two, second = _printed(rng, form)
        text = DAMAGES[name](_log(one, form, rng), _log(two, form, rng), rng)
        for dump in _read(text):
            judge(dump)
            invented = {
                field.name
                for field, value in dump.values.items()
                if value not in (first[field], second[field])
            }
            assert invented == set()
            if not dump.tangled:
                assert any(
                    all(value == source[field] for field, value in dump.values.items())
                    for source in (first, second)
                )


BREAKS: dict[str, dict[F, int]] = {
    "guest.rflags.reserved_1": {F.GUEST_RFLAGS: 0},
    "guest.rflags.if.external_interrupt": {
        F.VM_ENTRY_INTERRUPTION_INFORMATION: 0x8000_0020,
        F.GUEST_RFLAGS: 2,
    },
    "guest.interruptibility.sti_needs_if": {
        F.GUEST_INTERRUPTIBILITY_STATE: 1,
        F.GUEST_RFLAGS: 2,
    },
    "host.tr.selector_null": {F.HOST_TR_SELECTOR: 0},
    "guest.tr.unusable": {F.GUEST_TR_ACCESS_RIGHTS: 0x1008B},
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("id", BREAKS)
def test_no_verdict_is_invented(id: str, name: str) -> None:
    """A damaged dump shows its broken rule, or shows nothing; a valid one beside it, neither."""
    rng = random.Random(f"{id} {name}")
    broken = valid() | BREAKS[id]
    for _ in range(4):
        form = rng.choice(["kvm", "xen"])
        printer = xen if form == "xen" else kvm
        era = rng.choice(XEN_ERAS if form == "xen" else KVM_ERAS)
        one, two = printer(broken, era)[0], printer(valid(), era)[0]
        text = DAMAGES[name](_log(one, form, rng), _log(two, form, rng), rng)
        for dump in _read(text):
            assert {rule.check.id for rule in judge(dump).failures} <= {id}


def test_a_dump_that_is_only_re_wrapped_loses_nothing() -> None:
    broken = valid() | BREAKS["guest.interruptibility.sti_needs_if"]
    for width in range(20, 100):
        [dump] = read_dumps(wrapped(quoted(dmesg(kvm(broken)[0])), width, "> "))
        [rule] = judge(dump).failures
        assert rule.check.id == "guest.interruptibility.sti_needs_if"


def test_lines_that_break_a_rule_together_are_not_taken_from_two_dumps() -> None:
    """Interleaved without any mark: RFLAGS of one and interruptibility of the other."""
    one = valid() | {F.GUEST_RFLAGS: 0x202, F.GUEST_INTERRUPTIBILITY_STATE: 1}
    two = valid() | {F.GUEST_RFLAGS: 2, F.GUEST_INTERRUPTIBILITY_STATE: 0}
    first, second = kvm(one)[0], kvm(two)[0]
    rows = [row for pair in zip(first, second, strict=True) for row in pair]
    for dump in read_dumps("\n".join(rows) + "\n"):
        assert judge(dump).failures == []


def test_what_one_line_shows_is_certain_even_then() -> None:
    one = valid() | {F.GUEST_RFLAGS: 0}
    rows = [row for pair in zip(kvm(one)[0], kvm(one)[0], strict=True) for row in pair]
    rows.insert(40, "CR3 = 0x0000000000005000")
    found = {
        rule.check.id
        for dump in read_dumps("\n".join(rows) + "\n")
        for rule in judge(dump).failures
    }
    assert found == {"guest.rflags.reserved_1"}


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("RFLAGS=0x00000002", "RFLAGS=0x0000002", F.GUEST_RFLAGS),
        ("RFLAGS=0x00000002", "RFLAGS=0x0000000O", F.GUEST_RFLAGS),
        ("RFLAGS=0x00000002", "FLAGS=0x00000002", F.GUEST_RFLAGS),
        ("RFLAGS=0x00000002", "RFLAGS=0x0000[  12.3] usb: 0002", F.GUEST_RFLAGS),
        ("Interruptibility = 00000000", "Interruptibility = 0000", F.GUEST_INTERRUPTIBILITY_STATE),
        ("*** Host State ***\nRIP = 0x", "*** Host State ***\nRIP = 0", F.HOST_RIP),
        ("attr=0x0a09b,", "attr=0xa09b,", F.GUEST_CS_ACCESS_RIGHTS),
        ("attr=0x0a09b,", "attr=0x00a09b,", F.GUEST_CS_ACCESS_RIGHTS),
    ],
)
def test_a_damaged_value_is_reported_and_not_taken(old: str, new: str, missing: F) -> None:
    text = "\n".join(kvm(valid())[0]) + "\n"
    assert old in text
    [dump] = read_dumps(text.replace(old, new, 1))
    assert missing not in dump.values
    assert new.startswith("FLAGS") or missing.name.lower() in {
        name for place in dump.unreadable for name in place.what.split(" or ")
    }


def test_a_value_at_a_cut_end_is_not_taken_unless_it_is_whole() -> None:
    text = "\n".join(kvm(valid())[0])
    end = text.index("RFLAGS=0x00000002") + len("RFLAGS=0x00000002")
    [dump] = read_dumps(text[:end])
    assert dump.values[F.GUEST_RFLAGS] == 2  # with a leading 0 there can be no more digits
    [dump] = read_dumps(text[:end].replace("RFLAGS=0x00000002", "RFLAGS=0x12345678"))
    assert F.GUEST_RFLAGS in dump.values  # 9 digits would not be read anyway
    at = text.index("attr=0x0a09b") + len("attr=0x0a09b")
    [dump] = read_dumps(text[:at].replace("attr=0x0a09b", "attr=0x1a09b"))
    assert F.GUEST_CS_ACCESS_RIGHTS not in dump.values


def test_a_contradiction_within_a_dump_leaves_the_field_unknown() -> None:
    lines, _ = kvm(valid())
    at = next(n for n, line in enumerate(lines) if line.startswith("RFLAGS"))
    lines.insert(at + 1, "RFLAGS=0x00000246         DR7 = 0x0000000000000400")
    [dump] = read_dumps("\n".join(lines) + "\n")
    assert F.GUEST_RFLAGS not in dump.values
    assert dump.values[F.GUEST_DR7] == 0x400
    assert any(place.what == "guest_rflags" for place in dump.unreadable)


def test_a_long_pause_between_two_lines_parts_them() -> None:
    one, two = kvm(valid() | {F.GUEST_RFLAGS: 0x202})[0], kvm(valid())[0]
    half = len(one) // 2
    rows = dmesg(one, 100.0).splitlines()[:half] + dmesg(two, 900.0).splitlines()[half:]
    first, second = read_dumps("\n".join(rows) + "\n")
    assert F.GUEST_RFLAGS in first.values
    assert F.GUEST_RFLAGS not in second.values
