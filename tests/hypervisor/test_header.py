"""The header of a trace: every key, and what is said about wrong ones."""

from __future__ import annotations

import pytest

import vtx
from vtx.errors import InputError, VMfailValid
from vtx.facts.controls import Pin, Proc1
from vtx.facts.exits import ExitReason
from vtx.facts.fields import Field
from vtx.hypervisor.header import KEYS
from vtx.hypervisor.options import EptOptions, Expectation
from vtx.hypervisor.trace import load_trace, parse_trace

STEPS = "steps: |\n  cpuid\n"


def header(text: str):
    return parse_trace(f"schema: 1\n{text}\n{STEPS}", "t.yaml").header


def fails(text: str, steps: str = STEPS) -> InputError:
    with pytest.raises(InputError) as caught:
        trace = parse_trace(f"schema: 1\n{text}\n{steps}", "t.yaml")
        assert trace.records is None
    assert caught.value.file == "t.yaml"
    assert "\n" not in str(caught.value)
    return caught.value


def test_defaults():
    said = header("")
    assert said.processors == 1
    assert said.profile is None
    assert said.guest.memory_bytes == 1 << 30
    assert not said.guest.user
    assert not said.guest.demand
    assert said.ept == EptOptions(enabled=True, pages="4K", map_all=False)
    assert said.vpid is None


def test_texts_and_numbers():
    said = header(
        "name: n\ndescription: d\nsource: s\nprofile: haswell\nprocessors: 2\nmemory: 64M\n"
        "preemption_timer: 5\nvpid: 7"
    )
    assert (said.name, said.description, said.source, said.profile) == ("n", "d", "s", "haswell")
    assert (said.processors, said.guest.memory_bytes) == (2, 64 << 20)
    assert (said.preemption_timer, said.vpid) == (5, 7)


@pytest.mark.parametrize(("word", "vpid"), [("on", None), ("off", 0), ("3", 3)])
def test_vpid(word, vpid):
    assert header(f"vpid: {word}").vpid == vpid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ept: off", EptOptions(enabled=False)),
        ("ept: on", EptOptions()),
        ("ept: {pages: 2M}", EptOptions(pages="2M")),
        ("ept: {pages: 1G, map: all}", EptOptions(pages="1G", map_all=True)),
    ],
)
def test_ept(text, expected):
    assert header(text).ept == expected


def test_guest():
    guest = header(
        "guest: {privilege: user, map: demand, pages: 2M, entry: 0x5000, registers: {rax: 1}}"
    ).guest
    assert guest.user
    assert guest.demand
    assert guest.pages == "2M"
    assert guest.entry == 0x5000
    assert guest.registers == {"rax": 1}


def test_controls_are_a_list_or_a_mapping():
    assert header("controls: [rdtsc_exiting, pin.nmi_exiting]").controls[1][0].control is (
        Pin.NMI_EXITING
    )
    ((info, on),) = header("controls: {HLT exiting: off}").controls
    assert info.control is Proc1.HLT_EXITING
    assert not on


def test_fields_by_name_and_number():
    assert header("vmcs: {tsc_offset: 5, 0x681e: 9}").vmcs == {
        Field.TSC_OFFSET: 5,
        Field.GUEST_RIP: 9,
    }


def test_exits_are_sets():
    exits = header(
        "exits:\n  msr: {read: [0x1b], write: [IA32_TSC_DEADLINE, 0xc0000080]}\n"
        "  io: [0x3f8, 0x60-0x62]\n  exceptions: ['#PF', 6]\n  cr0: [ts, 0]\n  cr4: all\n"
        "  cr3: [load]\n  cr8: none"
    ).exits
    assert exits.msr_read == {0x1B}
    assert exits.msr_write == {0x6E0, 0xC000_0080}
    assert exits.io == {0x3F8, 0x60, 0x61, 0x62}
    assert exits.exceptions == {14, 6}
    assert exits.cr0 == 0b1001
    assert exits.cr4 == (1 << 64) - 1
    assert (exits.cr3_load, exits.cr3_store) == (True, False)
    assert (exits.cr8_load, exits.cr8_store) == (False, False)


def test_all_msrs_are_those_of_the_bitmaps():
    exits = header("exits: {msr: all}").exits
    assert len(exits.msr_read or ()) == 0x4000
    assert header("exits: {msr: none}").exits.msr_write == frozenset()


def test_handlers_by_vector_or_exception_name():
    said = header("handlers:\n  0x20: |\n    nop\n    iret\n  '#UD': iret\n")
    assert {v: [s.name for s in steps] for v, steps in said.handlers.items()} == {
        0x20: ["nop", "iret"],
        6: ["iret"],
    }


def test_expectations():
    said = header(
        "expect:\n  exits: {MSR_WRITE: 2, 48: 1}\n  registers: {rax: 1}\n  memory: {0x7000: 2}\n"
        "  vmcs: {guest_rip: 3}\n  total_exits: 9\n  console: hi\n  outcome: end"
    ).expectations
    assert [(e.kind, e.key, e.value) for e in said] == [
        (Expectation.EXITS, ExitReason.WRMSR, 2),
        (Expectation.EXITS, ExitReason.EPT_VIOLATION, 1),
        (Expectation.REGISTER, "rax", 1),
        (Expectation.MEMORY, 0x7000, 2),
        (Expectation.FIELD, Field.GUEST_RIP, 3),
        (Expectation.TOTAL_EXITS, "", 9),
        (Expectation.CONSOLE, "", "hi"),
        (Expectation.OUTCOME, "", "end"),
    ]


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_just_anything(key):
    value = "[[1]]" if key not in ("description", "source", "name") else "[x]"
    if key == "schema":
        return
    error = fails(f"{key}: {value}", "" if key == "steps" else STEPS)
    assert error.line in (2, 3), str(error)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("epts: on", 2, "did you mean ept"),
        ("ept: {page: 4K}", 2, "did you mean pages"),
        ("ept: {pages: 4M}", 2, "unknown pages '4M'"),
        ("memory: 3M", 2, "8M to 63G"),
        ("memory: 100G", 2, "8M to 63G"),
        ("memory: big", 2, "64M or 1G"),
        ("processors: 17", 2, "processors is 17"),
        ("processors: 0", 2, "processors is 0"),
        ("vpid: 65536", 2, "vpid is"),
        ("guest:\n  registers: {raxx: 1}", 3, "did you mean rax"),
        ("guest:\n  registers: {rax: -1}", 3, "rax is -1"),
        ("guest: {privilege: root}", 2, "privilege"),
        ("controls: [ept_enable]", 2, "enable_ept"),
        ("controls: {enable_ept: 2}", 2, "on or off"),
        ("vmcs: {guest_rib: 1}", 2, "guest_rip"),
        ("vmcs: {vpid: 0x10000}", 2, "vpid is"),
        ("exits: {msr: [IA32_EFFER]}", 2, "IA32_EFER"),
        ("exits: {msr: [0x5000]}", 2, "no bit"),
        ("exits: {io: [0x64-0x60]}", 2, "range"),
        ("exits: {io: ['a-b']}", 2, "range"),
        ("exits: {io: [65536]}", 2, "port"),
        ("exits: {io: some}", 2, "all, none or a list"),
        ("exits: {exceptions: ['#PG']}", 2, "did you mean"),
        ("exits: {exceptions: [32]}", 2, "vector"),
        ("exits: {cr0: [xx]}", 2, "bit of CR0"),
        ("exits: {cr3: [move]}", 2, "cr3"),
        ("interrupts: {vector: 32, every: 5}", 2, "needs a stream"),
        ("schedule: []", 2, "needs a stream"),
        ("preemption_timer: 0x100000000", 2, "timer"),
        ("handlers:\n  32: nop", 3, "end it with iret"),
        ("handlers:\n  256: iret", 3, "256"),
        ("handlers:\n  xx: iret", 3, "vector"),
        ("handlers:\n  32: '@1 iret'", 3, "write no @"),
        (
            "handlers:\n  32: |\n" + "    mov rax, 0x1122334455667788\n" * 26 + "    iret",
            3,
            "262 bytes",
        ),
        ("expect: {exits: {CPUIDD: 1}}", 2, "cpuid"),
        ("expect: {registers: {eip: 1}}", 2, "rip"),
        ("expect: {memory: {here: 1}}", 2, "0x7000"),
        ("expect: {memory: {-1: 1}}", 2, "0x7000"),
        ("expect: {outcome: fine}", 2, "outcome"),
        ("name: 5", 2, "must be text"),
    ],
)
def test_errors_say_what_to_write(text, line, says):
    error = fails(text)
    assert says in str(error)
    assert error.line == line, str(error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("- a", "must be a mapping"),
        ("steps: cpuid", "does not say its schema"),
        ("schema: 2\nsteps: cpuid", "schema 2 is unknown"),
        ("name: x\nschema: 1\nsteps: cpuid", "schema must be the first key"),
        ("schema: 1", "neither steps nor a stream"),
        ("schema: 1\nname: a\nname: b\nsteps: cpuid", "stands twice"),
        ("schema: 1\nsteps: &a cpuid\nname: *a", "alias"),
        ("schema: 1\nsteps: {", "not YAML"),
        ("schema: 1\nsteps: \x00", "not YAML"),
    ],
)
def test_what_is_no_trace(text, says):
    with pytest.raises(InputError) as caught:
        parse_trace(text, "t.yaml")
    assert says in str(caught.value)
    assert caught.value.file == "t.yaml"


def test_files_that_are_no_traces(tmp_path):
    (tmp_path / "garbage.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "empty.yaml").touch()
    for name, says in {
        "garbage.yaml": "not UTF-8",
        "empty.yaml": "empty",
        "missing.yaml": "No such file",
        ".": "a directory, not a trace",
        "nul\0.yaml": "name",
    }.items():
        with pytest.raises(InputError) as caught:
            load_trace(tmp_path / name)
        assert says in str(caught.value)


def test_an_ept_pointer_of_0_is_taken_as_it_is():
    trace = parse_trace(f"schema: 1\nvmcs: {{ept_pointer: 0}}\n{STEPS}")
    with pytest.raises(VMfailValid) as raised:
        vtx.replay(trace, "skylake_sp")
    assert raised.value.check == "ctl.exec.eptp.walk_length"
