"""Nothing a user writes into a trace ends in a traceback: errors of vtx, one sentence, in time."""

from __future__ import annotations

import lzma
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vtx.errors import InputError, VtxError
from vtx.hypervisor.replay import replay
from vtx.hypervisor.trace import load_trace

TRACES = Path(__file__).parents[1] / "traces"
SECONDS = 60

#: Everything a header can say, so that mutations reach every reader.
RICH = """schema: 1
name: rich
description: everything a header can say
profile: skylake_sp
processors: 2
memory: 16M
guest: {privilege: kernel, entry: 0x200000, registers: {rbx: 5, rflags: 0x202}}
ept: {pages: 2M, map: demand}
vpid: 3
controls: {rdtsc_exiting: on, pause_exiting: off}
vmcs: {tsc_offset: 16, guest_fs_base: 0x1000}
exits:
  msr: {read: [IA32_EFER, 0x1b], write: [IA32_X2APIC_EOI]}
  io: [0x3f8, 0x60-0x64]
  exceptions: ["#PF", 6]
  cr0: [ts]
  cr3: [load]
preemption_timer: 50
handlers:
  0x20: |
    wrmsr msr=IA32_X2APIC_EOI value=0
    iret
steps: |
  repeat 3
    cpuid leaf=1 subleaf=0
    load rax, 0x7000
    @1 store 0x7000 value=1
    mov cr3, rcx value=0x300000 rip=0x200100
  end
  external_interrupt vector=0x20
  rdmsr msr=IA32_EFER
  out dx, al port=0x3f8 value=65
  exception vector=14 error_code=2 address=0x9000
  rep outsb port=0x3f8 address=0x7000 count=4
  hlt
expect:
  exits: {CPUID: 3}
  registers: {rax: 1}
  memory: {0x7000: 1}
  outcome: halted
"""

STREAMING = """schema: 1
name: streaming
memory: 16M
ept: {pages: 4K, map: demand}
stream: {file: s.u64, kind: u64, start: 0, stop: 200}
interrupts: {vector: 0x20, every: 20, first: 10}
handlers:
  0x20: iret
  0x80: |
    cpuid leaf=1
    iret
schedule:
  - {at: 5, every: 50, until: 150, steps: int 0x80}
steps: |
  stream 0 100
  int 0x80
  stream 100 200
expect: {exits: {CPUID: 4}}
"""

_TOKENS = (
    "", " ", "\n", "\t", ":", ": ", "- ", "[", "]", "{", "}", "|", "#", "'", '"', "@1", "@", "&a",
    "*a", "!!binary ", "0x", "-1", "0", "1e400", "99999999999999999999", "0xffffffffffffffff",
    "null", "yes", "~", "%", "\x00", "\x07", "é", "\U0001f642", "repeat 2", "end", "stream", "iret",
    "rip=0", "length=15", "value=-5", "vector=3", "[rsp+rax*8]", "cr9", "schema: 1\n", "name: [x]",
)  # fmt: skip


@contextmanager
def in_time() -> Iterator[None]:
    """Turn a hang into a failure."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError("the replay does not end")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def survives(path: Path) -> None:
    """Load and run a trace; only errors of vtx may come out, each one sentence."""
    with in_time():
        try:
            replay(path)
        except VtxError as error:
            says = str(error)
            assert says
            assert "\n" not in says, says
            assert len(says) < 1000, says
            if isinstance(error, InputError):
                assert error.file is not None, says


def mutate(text: str, chance: random.Random) -> str:
    """Change a few places of a trace, as typing errors, cuts and pastes do."""
    for _ in range(chance.randint(1, 3)):
        here = chance.randrange(len(text) + 1)
        there = min(len(text), here + chance.choice((0, 1, 2, 5, 40)))
        match chance.randrange(6):
            case 0:
                text = text[:here] + chance.choice(_TOKENS) + text[there:]
            case 1:
                text = text[:here] + text[there:]
            case 2:
                text = text[:here] + chr(chance.randrange(1, 0x250)) + text[here:]
            case 3:
                lines = text.split("\n")
                first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
                lines[first], lines[second] = lines[second], lines[first]
                text = "\n".join(lines)
            case 4:
                lines = text.split("\n")
                lines.insert(chance.randrange(len(lines)), chance.choice(lines))
                text = "\n".join(lines)
            case _:
                digits = [index for index, letter in enumerate(text) if letter.isdigit()]
                place = chance.choice(digits)
                text = text[:place] + chance.choice("0123456789abcdefx-") + text[place + 1 :]
    return text


def stream_records() -> np.ndarray:
    chance = random.Random(5)
    kinds = [chance.choice((0, 0, 0, 1, 2, 3)) for _ in range(200)]
    addresses = [0x400000 + chance.randrange(64) * 0x800 for _ in range(200)]
    pairs = zip(kinds, addresses, strict=True)
    return np.array([kind << 62 | 4 << 48 | address for kind, address in pairs], dtype="<u8")


SOURCES = {
    "cpuid": (TRACES / "01-cpuid.yaml").read_text(),
    "ept": (TRACES / "02-ept-violation.yaml").read_text(),
    "cr": (TRACES / "03-cr-msr-io.yaml").read_text(),
    "smp": (TRACES / "04-two-processors.yaml").read_text(),
    "rich": RICH,
    "streaming": STREAMING,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("seed", range(40))
def test_mutated_traces_end_in_a_sentence(tmp_path, source, seed):
    stream_records().tofile(tmp_path / "s.u64")
    chance = random.Random(f"{source} {seed}")
    path = tmp_path / "t.yaml"
    path.write_text(mutate(SOURCES[source], chance), encoding="utf-8", newline="")
    survives(path)


@pytest.mark.parametrize("source", SOURCES)
def test_the_originals_run(tmp_path, source):
    stream_records().tofile(tmp_path / "s.u64")
    (tmp_path / "t.yaml").write_text(SOURCES[source])
    assert replay(tmp_path / "t.yaml").outcome in ("end", "halted")


@pytest.mark.parametrize("seed", range(30))
def test_binary_garbage_is_no_trace(tmp_path, seed):
    path = tmp_path / "t.yaml"
    path.write_bytes(random.Random(seed).randbytes(300))
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("seed", range(30))
def test_cut_traces(tmp_path, seed):
    stream_records().tofile(tmp_path / "s.u64")
    chance = random.Random(seed)
    text = chance.choice(list(SOURCES.values())).encode()
    (tmp_path / "t.yaml").write_bytes(text[: chance.randrange(len(text))])
    survives(tmp_path / "t.yaml")


@pytest.mark.parametrize("seed", range(30))
def test_streams_of_garbage(tmp_path, seed):
    """Records may say anything: addresses without memory, any size, crossing pages, no fetch."""
    chance = random.Random(seed)
    records = np.array([chance.getrandbits(64) for _ in range(50)], dtype="<u8")
    if seed % 2:
        records &= np.uint64((0b11 << 62) | (0xF << 48) | (1 << 30) - 1)
        records |= np.uint64(1 << 48)
    content = records.tobytes()[: 400 - chance.choice((0, 0, 0, 3))]
    (tmp_path / "s.u64").write_bytes(content)
    (tmp_path / "s.u64.xz").write_bytes(lzma.compress(content)[: chance.choice((None, 40))])
    suffix = chance.choice((".u64", ".u64.xz"))
    (tmp_path / "t.yaml").write_text(f"schema: 1\nmemory: 16M\nstream: s{suffix}\n")
    survives(tmp_path / "t.yaml")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("steps: [cpuid", 3, "not YAML"),
        ("steps: |\n  cpuidd", 3, "did you mean cpuid?"),
        ("steps: |\n  mov cr3, raxx value=1", 3, "did you mean rax"),
        ("vmcs: {guest_ripp: 1}\nsteps: cpuid", 2, "did you mean guest_rip"),
        ("stream: missing.u64", 2, "No such file"),
        ("stream: short.u64", 2, "truncated"),
        ("stream: wrong.npy", 2, "float64 array"),
        ("stream: .", 2, "it is a directory"),
        ("profile: skylake_spp\nsteps: cpuid", 2, "did you mean skylake_sp"),
        ("profile: impossible.yaml\nsteps: cpuid", None, "impossible.yaml"),
        ("memory: 8M\nsteps: |\n  store 0x304000 value=0x800000e7\n  load 0x100000", 5, "beyond"),
        ("memory: 100G\nsteps: cpuid", 2, "8M to 63G"),
    ],
)
def test_the_usual_mistakes_name_file_line_and_remedy(tmp_path, monkeypatch, text, line, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.u64").write_bytes(stream_records().tobytes()[:-3])
    np.save(tmp_path / "wrong.npy", np.ones(8))
    (tmp_path / "impossible.yaml").write_text("schema: 1\n")
    path = tmp_path / "t.yaml"
    path.write_text(f"schema: 1\n{text}\n")
    with pytest.raises(InputError) as caught:
        replay(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    if line is not None:
        assert (caught.value.file, caught.value.line) == (str(path), line), str(caught.value)
