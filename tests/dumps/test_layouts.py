"""Files of many dumps: learned layouts give what careful reading gives."""

from __future__ import annotations

import random

import pytest

from vtx.facts.fields import Field as F
from vtx.hypervisor.dumps.layouts import FEW, Reader, beginnings
from vtx.hypervisor.dumps.text import _read_carefully, read_text

from .printers import KVM_ERAS, dmesg, journal, kvm, quoted
from .samples import random_fields, valid

COUNT = 3 * FEW


def _alike(rng: random.Random) -> dict[F, int]:
    """Return fields that differ from dump to dump and change no line's form."""
    values = valid()
    for field in (F.GUEST_RIP, F.GUEST_RSP, F.GUEST_CR3, F.HOST_RSP, F.TSC_OFFSET):
        values[field] = rng.getrandbits(64)
    values[F.GUEST_RFLAGS] = rng.choice([2, 0x202, 0x246])
    values[F.EXIT_REASON] = rng.choice([0x8000_0021, 0x30])
    return values


def _text(era: str, seed: int = 0) -> str:
    rng = random.Random(f"{era}{seed}")
    return "between\n".join(
        dmesg(kvm(_alike(rng), era)[0], 100.0 + 10 * n, module="kvm_intel: ") for n in range(COUNT)
    )


@pytest.mark.parametrize("era", KVM_ERAS)
@pytest.mark.parametrize("place", [lambda text: text, quoted], ids=["dmesg", "quoted"])
def test_same_as_careful_reading(era: str, place: object) -> None:
    assert callable(place)
    text = place(_text(era))
    dumps, rest = Reader(lambda block: _read_carefully(block, False)[0]).read(text)
    assert dumps == _read_carefully(text, False)[0]
    assert len(dumps) == COUNT
    assert rest.count("\n") == text.count("\n")
    assert "Guest State" not in rest


def test_dumps_that_are_not_alike_are_read_with_care() -> None:
    rng = random.Random(7)
    parts = [_text("6.2").split("between\n")]
    others = [dmesg(kvm(random_fields(rng), "6.2")[0], 900.0 + 10 * n) for n in range(5)]
    damaged = parts[0][3].replace("RFLAGS=0x0", "RFLAGS=")
    text = "".join([*parts[0], *others[:3], damaged, *parts[0], *others])
    assert read_text(text)[0] == _read_carefully(text, False)[0]


def test_what_stands_between_the_dumps_is_read() -> None:
    error = "KVM: entry failed, hardware error 0x7\n"
    lines = _text("6.2").split("between\n")
    text = error.join(lines)
    dumps = read_text(text)[0]
    kinds = {dump.verdict.kind for dump in dumps[:-1]}
    assert kinds == {"vmfail_valid", "entry_failure"}
    assert dumps == _with_attachments(text)


def _with_attachments(text: str) -> list[object]:
    """Read with all care, by keeping every dump from being one of many."""
    dumps = []
    for start, end in zip(beginnings(text), [*beginnings(text)[1:], len(text)], strict=True):
        [dump] = read_text("\n" * text.count("\n", 0, start) + text[start:end])[0]
        dumps.append(dump)
    return dumps


def test_lines_of_a_later_dump_are_not_matched_into_an_earlier_one() -> None:
    dumps = _text("6.2").split("between\n")
    half = dumps[5].splitlines(keepends=True)
    later = dumps[20].splitlines(keepends=True)
    middle = len(half) // 2
    spliced = "".join(half[:middle] + later[middle:])
    text = "".join([*dumps[:5], spliced, *dumps[6:]])
    assert len(read_text(text)[0]) == COUNT + 1


def test_two_sources_of_one_layout() -> None:
    rng = random.Random(1)
    parts = [journal(kvm(_alike(rng))[0]) for _ in range(COUNT)]
    parts += [dmesg(kvm(_alike(rng))[0], 10.0 * n, task="T12") for n in range(COUNT)]
    text = "".join(parts)
    assert read_text(text)[0] == sorted(
        _read_carefully(text, False)[0], key=lambda dump: dump.first_line
    )
